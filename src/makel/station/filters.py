"""Which decisions are meant, and the query that reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Select, literal, literal_column, select

from makel.errors import StoreError, UsageError
from makel.station.database import Database
from makel.station.decisions import MANUAL, Decision, Recorded, instant
from makel.station.entries import storable
from makel.station.tables import ENTRIES, IS_DECISION
from makel.types import Label, Result


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
        of_the_line: True for parts of the line alone, False for images that people sent by hand alone.
    """

    model: str | None = None
    verdict: Result | None = None
    answer: Label | Literal["none"] | None = None
    since: str | None = None
    until: str | None = None
    name: str | None = None
    of_the_line: bool | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """The same as conditions on the table of entries.

        Raises:
            UsageError: A moment that is not ISO 8601.
        """
        found: list[ColumnElement[bool]] = [IS_DECISION]
        if self.model is not None:
            found.append(ENTRIES.c.model == storable(self.model))
        if self.verdict is not None:
            found.append(ENTRIES.c.verdict == self.verdict)
        if self.since is not None:
            found.append(ENTRIES.c.at >= instant(self.since))
        if self.until is not None:
            found.append(ENTRIES.c.at < instant(self.until))
        if self.name:
            found.append(ENTRIES.c.name.icontains(storable(self.name), autoescape=True))
        if self.of_the_line is not None:
            # In canonical JSON a quote inside of text has a backslash before it, so no name can look like this.
            by_hand = ENTRIES.c.body.contains(f'"source":"{MANUAL}"')
            found.append(~by_hand if self.of_the_line else by_hand)
        if self.answer == "none":
            found.append(LAST_ANSWER.is_(None))
        elif self.answer is not None:
            # From the answers, which are few, to their decisions; the other way would walk through all of those.
            said = ENTRIES.alias("said")
            answered = select(said.c.number).where(
                said.c.kind == literal_column("'answer'"), said.c.answer == self.answer
            )
            found += [ENTRIES.c.number.in_(answered), literal(self.answer) == LAST_ANSWER]
        return found


_ANSWERS = ENTRIES.alias("answers")
LAST_ANSWER = (
    select(_ANSWERS.c.answer)
    .where(_ANSWERS.c.kind == literal_column("'answer'"), _ANSWERS.c.number == ENTRIES.c.number)
    .order_by(_ANSWERS.c.entry.desc())
    .limit(1)
    .correlate(ENTRIES)
    .scalar_subquery()
)
EVERYTHING = Filter()

DECISIONS: Select[Any] = select(ENTRIES.c.number, ENTRIES.c.body, ENTRIES.c.hash, LAST_ANSWER.label("said"))
"""Decisions with what was last said of them; to be narrowed by conditions."""


def recorded(database: Database, row: Any) -> Recorded:
    """A row of `DECISIONS` as a decision.

    Raises:
        StoreError: It is no longer what was written.
    """
    try:
        return Recorded(row.number, Decision.from_json(json.loads(row.body)), row.hash, row.said)
    except (ValueError, KeyError, TypeError, UsageError) as error:
        raise StoreError(
            f"{database.name}: decision {row.number} was changed ({error!r}); 'makel history verify' says more"
        ) from error
