"""Entries on their way into the chain: what is written of each, and which are there already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from makel.errors import UsageError
from makel.station.decisions import Decision, Head, Kind, canonical, link
from makel.station.tables import ENTRIES, IS_DECISION


@dataclass
class Draft:
    """An entry before its turn.

    Attributes:
        kind: "decision", "answer" or "audit".
        body: All of its JSON but the positions, which its turn decides.
        line: The same as canonical JSON.

    Raises:
        UsageError: Something that is no plain finite value.
    """

    kind: Kind
    body: dict[str, Any]
    line: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.line = canonical(self.body)
        except (TypeError, ValueError) as error:  # found here, it harms nobody else's entries
            raise UsageError(f"this {self.kind} cannot be recorded: {error}; it holds plain finite values") from None


def next_row(head: Head, draft: Draft) -> tuple[Head, dict[str, Any]]:
    """The next entry of the chain as a row, and the head after it."""
    entry = head.entry + 1
    number = head.number + 1 if draft.kind == "decision" else head.number
    body = draft.body | {"kind": draft.kind, "entry": entry}
    if draft.kind == "decision":
        body["number"] = number
    line = canonical(body)
    head = Head(entry, number, link(head.hash, line))
    return head, {"entry": entry, "hash": head.hash, "body": line, **columns(body)}


def columns(body: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that repeat what is in an entry's JSON, to find it by."""
    found = {key: body.get(key) for key in ("kind", "number", "at", "model", "verdict", "name", "answer")}
    plain = {key: storable(value) if isinstance(value, str) else value for key, value in found.items()}
    return plain | {"arrival": fingerprint(body["arrival"]) if body.get("arrival") else body.get("arrival")}


def fingerprint(text: str) -> str:
    """Text of any length and kind as 64 digits, to find it by."""
    return hashlib.sha256(canonical({"text": text}).encode("ascii")).hexdigest()


def storable(text: str) -> str:
    """Text as every database takes it: file names may hold bytes that are no text, and PostgreSQL takes no NUL."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def known(connection: Connection, drafts: Sequence[Draft]) -> dict[str, tuple[int, str]]:
    """Which of the drafts are in the record already: canonical JSON to number and hash."""
    found: dict[str, tuple[int, str]] = {}
    moments = sorted({str(draft.body["at"]) for draft in drafts})
    for start in range(0, len(moments), 500):  # databases bound the values of one statement
        query = select(ENTRIES.c.number, ENTRIES.c.hash, ENTRIES.c.body).where(
            IS_DECISION, ENTRIES.c.at.in_(moments[start : start + 500])
        )
        for row in connection.execute(query):
            body = json.loads(row.body)
            found[canonical(Decision.from_json(body).to_json())] = (row.number, row.hash)
    return found
