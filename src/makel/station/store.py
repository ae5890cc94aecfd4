"""The record of everything the station decided and everything people changed: one chain, added to and never altered.

One flush of the disk carries everything that waits for it: callers queue, and whoever gets the writing lock commits
what all of them brought, in the order they came.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, func, insert, literal, select, update

from makel.errors import NotFoundError, StoreError, UsageError
from makel.station.database import Database
from makel.station.decisions import (
    Answer,
    Audit,
    Decision,
    Head,
    Kind,
    Recorded,
    canonical,
    instant,
    link,
    now,
)
from makel.station.tables import ENTRIES, HAS_ARRIVAL, HEAD, IS_ANSWER, IS_DECISION
from makel.types import Label


@dataclass(frozen=True)
class Filter:
    """Which decisions are meant: those that meet everything that is set.

    Attributes:
        model: The name a model is served under.
        verdict: "pass" or "reject".
        answer: What a person last said: "good", "defect", or "none" for parts nobody spoke of.
        since: From this moment on, in ISO 8601.
        until: Before this moment, in ISO 8601.
        name: Part of the caller's name, whether in capitals or not.
    """

    model: str | None = None
    verdict: Literal["pass", "reject"] | None = None
    answer: Label | Literal["none"] | None = None
    since: str | None = None
    until: str | None = None
    name: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The same as conditions on the table of entries.

        Raises:
            UsageError: A moment that is not ISO 8601.
        """
        found: list[ColumnElement[bool]] = [IS_DECISION]
        if self.model is not None:
            found.append(ENTRIES.c.model == _storable(self.model))
        if self.verdict is not None:
            found.append(ENTRIES.c.verdict == self.verdict)
        if self.since is not None:
            found.append(ENTRIES.c.at >= instant(self.since))
        if self.until is not None:
            found.append(ENTRIES.c.at < instant(self.until))
        if self.name:
            found.append(ENTRIES.c.name.icontains(_storable(self.name), autoescape=True))
        if self.answer == "none":
            found.append(_LAST_ANSWER.is_(None))
        elif self.answer is not None:
            # From the answers, which are few, to their decisions; the other way would walk through all of those.
            said = ENTRIES.alias("said")
            answered = select(said.c.number).where(said.c.kind == "answer", said.c.answer == self.answer)
            found += [ENTRIES.c.number.in_(answered), literal(self.answer) == _LAST_ANSWER]
        return found


_ANSWERS = ENTRIES.alias("answers")
_LAST_ANSWER = (
    select(_ANSWERS.c.answer)
    .where(_ANSWERS.c.kind == "answer", _ANSWERS.c.number == ENTRIES.c.number)
    .order_by(_ANSWERS.c.entry.desc())
    .limit(1)
    .correlate(ENTRIES)
    .scalar_subquery()
)
EVERYTHING = Filter()


@dataclass
class _Draft:
    """An entry on its way into the chain: all of its JSON but the positions, which its turn decides."""

    kind: Kind
    body: dict[str, Any]
    line: str = field(init=False)

    def __post_init__(self) -> None:
        try:
            self.line = canonical(self.body)
        except (TypeError, ValueError) as error:  # found here, it harms nobody else's entries
            raise UsageError(f"this {self.kind} cannot be recorded: {error}; it holds plain finite values") from None


@dataclass
class _Waiting:
    """What one caller brought, and what became of it."""

    drafts: list[_Draft]
    once: bool = False
    written: list[tuple[int, str]] = field(default_factory=list)  # number and hash of each
    error: StoreError | None = None
    done: bool = False


class Store:
    """The record. Thread-safe; several processes may add to one.

    A StoreError says that the record cannot be used now (locked, full, gone) and that nothing of the call was written;
    only where a server's connection breaks during the commit it may have been, and `append_all(..., once=True)` tells.
    As soon as the cause is away the same object works again.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: list[_Waiting] = []
        self._queueing = threading.Lock()
        self._writing = threading.Lock()

    @classmethod
    def open(cls, where: str | Path, *, create: bool = True, timeout_s: float = 5.0) -> Store:
        """Open a record, make it where there is none, and bring its tables up to date.

        Args:
            where: Path of an SQLite file, or postgresql://user:password@host/database.
            create: Whether a missing file is made.
            timeout_s: How long to wait for another program that writes, in seconds.

        Raises:
            StoreError: It cannot be opened, or a newer makel wrote it.
            UsageError: Neither a path nor a URL of PostgreSQL.
            MissingExtraError: PostgreSQL without its driver.
        """
        return cls(Database(where, create=create, timeout_s=timeout_s))

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        """Path or URL, without a password."""
        return self._database.name

    def append(self, decision: Decision) -> Recorded:
        """Add a decision; when this returns, it is on the disk.

        Raises:
            StoreError: The record cannot be written now.
        """
        return self.append_all([decision])[0]

    def append_all(self, decisions: Sequence[Decision], *, once: bool = False) -> list[Recorded]:
        """Add decisions in one transaction: all of them or none.

        Args:
            decisions: In the order of their numbers.
            once: Leave out what is in the record already, and return it as it stands there. For decisions of which it
                is not known whether they came in before something failed.

        Raises:
            StoreError: The record cannot be written now.
        """
        drafts = [_Draft("decision", decision.to_json()) for decision in decisions]
        written = self._add(_Waiting(drafts, once))
        return [
            Recorded(number, decision, entry_hash)
            for (number, entry_hash), decision in zip(written, decisions, strict=True)
        ]

    def answer(self, number: int, answer: Label, by: str) -> None:
        """Add what a person says of a part.

        Raises:
            NotFoundError: No decision has this number.
            StoreError: The record cannot be written now.
        """
        if answer not in ("good", "defect"):
            raise UsageError(f"answer is {answer!r}: it is 'good' or 'defect'")
        self.get(number)
        self._add(_Waiting([_Draft("answer", Answer(number, answer, by, now()).to_json())]))

    def audit(self, by: str, role: str, action: str, detail: Mapping[str, Any]) -> None:
        """Add a change somebody made.

        Args:
            by: Who made it.
            role: "operator" or "engineer".
            action: What was done, such as "activate".
            detail: Plain values for JSON that say which and how.

        Raises:
            StoreError: The record cannot be written now.
        """
        self._add(_Waiting([_Draft("audit", Audit(by, role, action, detail, now()).to_json())]))

    def get(self, number: int) -> Recorded:
        """The decision of a number.

        Raises:
            NotFoundError: No decision has it.
            StoreError: The record cannot be read now.
        """
        with self._database.read() as connection:
            row = connection.execute(_DECISIONS.where(IS_DECISION, ENTRIES.c.number == number)).one_or_none()
        if row is None:
            raise NotFoundError(f"{self.name} has no decision number {number}")
        return self._recorded(row)

    def find(self, filter: Filter = EVERYTHING, *, before: int | None = None, limit: int = 100) -> list[Recorded]:  # noqa: A002  the word users know
        """Decisions, newest first.

        Args:
            filter: Which.
            before: Only those of a lower number: the last one of the page before.
            limit: How many at most.

        Raises:
            StoreError: The record cannot be read now.
        """
        query = _DECISIONS.where(*filter.conditions()).order_by(ENTRIES.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(ENTRIES.c.number < before)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [self._recorded(row) for row in rows]

    def after(self, number: int, *, limit: int = 100) -> list[Recorded]:
        """Decisions of a higher number, oldest first: what a reader that knows all up to `number` has missed.

        Raises:
            StoreError: The record cannot be read now.
        """
        query = _DECISIONS.where(IS_DECISION, ENTRIES.c.number > number).order_by(ENTRIES.c.number).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [self._recorded(row) for row in rows]

    def arrived(self, arrival: str) -> list[Recorded]:
        """The decisions on one delivery of a file, oldest first.

        Raises:
            StoreError: The record cannot be read now.
        """
        query = _DECISIONS.where(IS_DECISION, HAS_ARRIVAL, ENTRIES.c.arrival == _storable(arrival))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(ENTRIES.c.number)).all()
        return [self._recorded(row) for row in rows]

    def count(self, filter: Filter = EVERYTHING) -> int:  # noqa: A002  as in `find`
        """How many decisions there are.

        Raises:
            StoreError: The record cannot be read now.
        """
        with self._database.read() as connection:
            query = select(func.count()).select_from(ENTRIES).where(*filter.conditions())
            return connection.execute(query).scalar_one()

    def answers(self, number: int) -> list[Answer]:
        """Everything people said of a part, oldest first; the last one counts.

        Raises:
            StoreError: The record cannot be read now.
        """
        with self._database.read() as connection:
            query = select(ENTRIES.c.body).where(IS_ANSWER, ENTRIES.c.number == number).order_by(ENTRIES.c.entry)
            bodies = [json.loads(body) for body in connection.execute(query).scalars()]
        return [Answer(body["number"], body["answer"], body["by"], body["at"]) for body in bodies]

    def audits(self, *, limit: int = 100) -> list[Audit]:
        """The changes people made, newest first.

        Raises:
            StoreError: The record cannot be read now.
        """
        query = select(ENTRIES.c.body).where(ENTRIES.c.kind == "audit").order_by(ENTRIES.c.entry.desc()).limit(limit)
        with self._database.read() as connection:
            bodies = [json.loads(body) for body in connection.execute(query).scalars()]
        return [Audit(body["by"], body["role"], body["action"], body["detail"], body["at"]) for body in bodies]

    def head(self) -> Head:
        """Where the chain ends. Kept elsewhere, it proves later that nothing up to here was changed.

        Raises:
            StoreError: The record cannot be read now.
        """
        with self._database.read() as connection:
            return _head(connection.execute(select(HEAD)).one())

    def _add(self, mine: _Waiting) -> list[tuple[int, str]]:
        with self._queueing:
            self._queue.append(mine)
        with self._writing:
            if not mine.done:
                with self._queueing:
                    batch, self._queue = self._queue, []
                self._commit(batch)
        if mine.error is not None:
            raise StoreError(str(mine.error)) from mine.error
        return mine.written

    def _commit(self, batch: list[_Waiting]) -> None:
        try:
            with self._database.write() as connection:
                # On PostgreSQL this lock makes writers queue; on SQLite they already do.
                head = _head(connection.execute(select(HEAD).with_for_update()).one())
                rows: list[dict[str, Any]] = []
                for waiting in batch:
                    waiting.written = []
                    known = _known(connection, waiting.drafts) if waiting.once else {}
                    for draft in waiting.drafts:
                        there = known.get(draft.line)
                        if there is None:
                            head, row = _row(head, draft)
                            rows.append(row)
                        waiting.written.append(there or (head.number, head.hash))
                if rows:
                    connection.execute(insert(ENTRIES), rows)
                    connection.execute(update(HEAD).values(entry=head.entry, number=head.number, hash=head.hash))
        except BaseException as error:
            for waiting in batch:
                waiting.error = error if isinstance(error, StoreError) else StoreError(f"{self.name}: {error!r}")
            if not isinstance(error, StoreError):
                raise
        finally:
            for waiting in batch:
                waiting.done = True

    def _recorded(self, row: Any) -> Recorded:
        try:
            return Recorded(row.number, Decision.from_json(json.loads(row.body)), row.hash, row.said)
        except (ValueError, KeyError, TypeError, UsageError) as error:
            raise StoreError(f"{self.name}: decision {row.number} was changed; 'makel history' verifies it") from error


_DECISIONS: Select[Any] = select(ENTRIES.c.number, ENTRIES.c.body, ENTRIES.c.hash, _LAST_ANSWER.label("said"))


def _head(row: Any) -> Head:
    return Head(row.entry, row.number, row.hash)


def _row(head: Head, draft: _Draft) -> tuple[Head, dict[str, Any]]:
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
    found = {key: body.get(key) for key in ("kind", "number", "at", "model", "verdict", "name", "arrival", "answer")}
    return {key: _storable(value) if isinstance(value, str) else value for key, value in found.items()}


def _storable(text: str) -> str:
    """Text as every database takes it: file names may hold bytes that are no text, and PostgreSQL takes no NUL."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _known(connection: Connection, drafts: Sequence[_Draft]) -> dict[str, tuple[int, str]]:
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
