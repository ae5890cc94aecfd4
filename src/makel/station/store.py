"""The record of everything the station decided and everything people changed: one chain, added to and never altered.

One flush of the disk carries everything that waits for it: callers queue, and whoever gets the writing lock commits
what all of them brought, in the order they came.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, update

from makel.errors import NotFoundError, StoreError, UsageError
from makel.station.database import Database
from makel.station.decisions import Answer, Audit, Broken, Decision, Head, Recorded, now
from makel.station.entries import Draft, fingerprint, known, next_row
from makel.station.export import export
from makel.station.filters import DECISIONS, EVERYTHING, Filter, recorded
from makel.station.tables import ENTRIES, HAS_ARRIVAL, HEAD, HEAD_ROW, IS_ANSWER, IS_DECISION
from makel.station.verification import verify
from makel.types import Label

__all__ = ["Filter", "Store"]


@dataclass
class _Waiting:
    """What one caller brought, and what became of it."""

    drafts: list[Draft]
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
    def open(cls, where: str | Path, *, create: bool = True, read_only: bool = False, timeout_s: float = 5.0) -> Store:
        """Open a record, make it where there is none, and bring its tables up to date.

        Args:
            where: Path of an SQLite file, or postgresql://user:password@host/database.
            create: Whether a missing file is made.
            read_only: Only read, and change nothing: also where nothing can be written.
            timeout_s: How long to wait for another program that writes, in seconds.

        Raises:
            StoreError: It cannot be opened, or a newer makel wrote it; to be read only, also that it is none, or an
                older makel wrote it.
            UsageError: Neither a path nor a URL of PostgreSQL.
            MissingExtraError: PostgreSQL without its driver.
        """
        return cls(Database(where, create=create, read_only=read_only, timeout_s=timeout_s))

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
        drafts = [Draft("decision", decision.to_json()) for decision in decisions]
        written = self._add(_Waiting(drafts, once))
        return [
            Recorded(number, decision, entry_hash)
            for (number, entry_hash), decision in zip(written, decisions, strict=True)
        ]

    def answer(self, number: int, answer: Label | None, by: str) -> None:
        """Add what a person says of a part; None takes back what was said before.

        Raises:
            NotFoundError: No decision has this number.
            StoreError: The record cannot be written now.
        """
        if answer not in ("good", "defect", None):
            raise UsageError(f"answer is {answer!r}: it is 'good' or 'defect', or None to take it back")
        self.get(number)
        self._add(_Waiting([Draft("answer", Answer(number, answer, by, now()).to_json())]))

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
        self._add(_Waiting([Draft("audit", Audit(by, role, action, detail, now()).to_json())]))

    def get(self, number: int) -> Recorded:
        """The decision of a number.

        Raises:
            NotFoundError: No decision has it.
            StoreError: The record cannot be read now.
        """
        with self._database.read() as connection:
            row = connection.execute(DECISIONS.where(IS_DECISION, ENTRIES.c.number == number)).one_or_none()
        if row is None:
            raise NotFoundError(f"{self.name} has no decision number {number}")
        return recorded(self._database, row)

    def find(self, filter: Filter = EVERYTHING, *, before: int | None = None, limit: int = 100) -> list[Recorded]:  # noqa: A002  the word users know
        """Decisions, newest first.

        Args:
            filter: Which.
            before: Only those of a lower number: the last one of the page before.
            limit: How many at most.

        Raises:
            StoreError: The record cannot be read now.
        """
        query = DECISIONS.where(*filter.conditions()).order_by(ENTRIES.c.number.desc()).limit(limit)
        if before is not None:
            query = query.where(ENTRIES.c.number < before)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [recorded(self._database, row) for row in rows]

    def after(self, number: int, *, limit: int = 100) -> list[Recorded]:
        """Decisions of a higher number, oldest first: what a reader that knows all up to `number` has missed.

        Raises:
            StoreError: The record cannot be read now.
        """
        query = DECISIONS.where(IS_DECISION, ENTRIES.c.number > number).order_by(ENTRIES.c.number).limit(limit)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [recorded(self._database, row) for row in rows]

    def arrived(self, arrival: str) -> list[Recorded]:
        """The decisions on one delivery of a file, oldest first.

        Raises:
            StoreError: The record cannot be read now.
        """
        query = DECISIONS.where(IS_DECISION, HAS_ARRIVAL, ENTRIES.c.arrival == fingerprint(arrival))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(ENTRIES.c.number)).all()
        return [recorded(self._database, row) for row in rows]

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
            return self._only(connection.execute(HEAD_ROW).all())

    def verify(
        self, noted: Head | None = None, progress: Callable[[int, int], None] = lambda *_: None
    ) -> Broken | None:
        """Check the whole chain, also while others add to it.

        First the database checks itself, where it can: its pages, and its indexes beside its rows.

        Args:
            noted: A head from earlier, kept elsewhere: then a record that was written anew shows, too.
            progress: Called with the number of entries checked, and of all.

        Returns:
            The first entry that is not as it was written, or what is wrong with all of it, or None.

        Raises:
            StoreError: The record cannot be read now.
        """
        return verify(self._database, noted, progress)

    def export(
        self,
        path: str | Path,
        filter: Filter = EVERYTHING,  # noqa: A002  as in `find`
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> int:
        """Write decisions to a table, oldest first: .csv or .parquet, whole or not at all.

        Args:
            path: The file; one that is there is replaced.
            filter: Which decisions.
            progress: Called with the number of decisions written, and of all.

        Returns:
            Number of decisions.

        Raises:
            UsageError: Another ending.
            MissingExtraError: Parquet without its library.
            StoreError: The record cannot be read now, or the file not be written.
        """
        return export(self._database, Path(path), filter, progress)

    def _only(self, rows: Sequence[Any]) -> Head:
        if len(rows) != 1:
            raise StoreError(
                f"{self.name}: the table 'head', which says where the record ends, has {len(rows)} rows where it had "
                "one: bring back a copy of the record, or start a new one"
            )
        return Head(*rows[0])

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
                head = self._only(connection.execute(HEAD_ROW.with_for_update()).all())
                rows: list[dict[str, Any]] = []
                for waiting in batch:
                    waiting.written = []
                    in_it = known(connection, waiting.drafts) if waiting.once else {}
                    for draft in waiting.drafts:
                        there = in_it.get(draft.line)
                        if there is None:
                            head, row = next_row(head, draft)
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
