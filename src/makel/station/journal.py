"""What bridges an outage of the record: a bounded file that decisions wait in, in order, until the record is back.

The file has its full size from the start, so it can still be written when the disk is full. Each line carries a
checksum over the journal's generation, its position and its text. Emptying the journal begins a new generation, to
which no old line belongs.

Whatever is written in one go ends with a mark that says how many decisions there are up to here. A crash cuts off the
end, the mark with it: what is cut off does not count, and it was not acknowledged either. A bad line with a valid mark
behind it was whole once, so the file was damaged: then nothing is read from it and nothing written to it.

    makel-journal-2 GENERATION BYTES CHECKSUM
    CHECKSUM {"at": ...}
    CHECKSUM end 1
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from makel.errors import BrokenRecordError, StoreError, UsageError
from makel.model.lock import hold
from makel.station.decisions import Decision, Recorded, now
from makel.station.entries import Draft
from makel.station.store import Store

CAPACITY_BYTES = 16 * 2**20
"""About 30,000 decisions: an hour of a line with eight parts a second."""

_FORM = "makel-journal-2"
_FORM_BEFORE = "makel-journal-1"  # without marks, and without its size in the first line
_MARK = re.compile(rb"[0-9a-f]{16} (end ([0-9]{1,9}))\n")
_CHUNK = 200
_SHARE = 0.8
"""Of the time left until a deadline: the journal needs the rest."""


class Journal:
    """A file of decisions on their way. One process has it open at a time; not thread-safe by itself."""

    def __init__(self, path: str | Path, capacity_bytes: int = CAPACITY_BYTES) -> None:
        """Open a journal, or make one, and read what waits in it.

        Args:
            path: The file.
            capacity_bytes: Its size, which bounds what can wait.

        Raises:
            StoreError: Another process has it open, it is no journal, or the disk has no room for it.
            BrokenRecordError: It was damaged. It stays as it is.
        """
        self.path = Path(path)
        self._waiting: list[Decision] = []
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise StoreError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            if not _hold(self._file):
                raise StoreError(f"{path} is in use by another makel: one process at a time can use a journal")
            there = os.fstat(self._file).st_size
            self._capacity = max(there, capacity_bytes)
            is_new = not self._read(there)
            self._fill_up(there)
            if is_new:
                self.clear()
        except BaseException:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self, start: int = 0, limit: int | None = None) -> list[Decision]:
        """What waits, oldest first; of that, `limit` decisions from position `start` on."""
        return self._waiting[start : None if limit is None else start + limit]

    def add(self, decisions: Sequence[Decision]) -> None:
        """Write decisions behind those that wait; when this returns, they are on the disk.

        Raises:
            StoreError: There is no room for all of them, or the disk refuses; none counts.
        """
        first = self._position
        lines = b"".join(self._line(first + index, decision) for index, decision in enumerate(decisions))
        lines += _mark(self._generation, first + len(decisions))
        if self._end + len(lines) > self._capacity:
            raise StoreError(f"{self.path} is full: {len(self)} decisions wait in it for the record to come back")
        self._write(self._end, lines)
        self._end += len(lines)
        self._position += len(decisions)
        self._waiting += decisions

    def clear(self) -> None:
        """Forget what waits: it is in the record.

        Raises:
            StoreError: The disk refuses; everything still waits.
        """
        generation = secrets.token_hex(16)
        header = _header(_FORM, generation, str(self._capacity))
        self._write(0, header)
        self._generation, self._end, self._position, self._waiting = generation, len(header), 0, []

    def close(self) -> None:
        """Let another process have it. What waits stays in the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)

    def _fill_up(self, there: int) -> None:
        try:
            for start in range(there, self._capacity, 2**20):
                self._write(start, bytes(min(2**20, self._capacity - start)))
        except StoreError as error:
            os.ftruncate(self._file, there)
            raise StoreError(f"{self.path} needs {self._capacity / 2**20:.0f} MB of disk: {error}") from error

    def _read(self, size: int) -> bool:
        """Read what waits; gives whether there is a journal in the file of this size at all."""
        os.lseek(self._file, 0, os.SEEK_SET)
        with open(self._file, "rb", closefd=False) as file:  # the lock hangs on this very descriptor
            content = file.read()
        if not content.strip(b"\0"):
            return False
        header, _, rest = content.partition(b"\n")
        parts = header.decode("ascii", "replace").split(" ")
        if len(parts) != {_FORM: 4, _FORM_BEFORE: 3}.get(parts[0]) or header + b"\n" != _header(*parts[:-1]):
            raise StoreError(f"{self.path} is no journal of this makel or is damaged: move it away to start a new one")
        self._generation, self._end, self._position = parts[1], len(header) + 1, 0
        for line in rest.split(b"\n"):
            text = line.partition(b" ")[2]
            if not text or line + b"\n" != _sealed(self._generation, self._position, text):
                break  # cut off by a crash, left over from an earlier generation, or damaged
            if not text.startswith(b"end "):
                self._waiting.append(self._decision(text))
                self._position += 1
            self._end += len(line) + 1
        self._check_damage(content[self._end :], size, int(parts[2]) if len(parts) == 4 else size)
        return True

    def _check_damage(self, rest: bytes, size: int, full_size: int) -> None:
        """Refuse a file that had more in it once, by what stands behind its last good line."""
        counts = (int(mark[2]) for mark in _MARK.finditer(rest) if mark[0] == _mark(self._generation, int(mark[2])))
        written = max(counts, default=0)
        if written <= self._position and size >= full_size:
            return
        what = f"of {written} decisions in it {self._position} can be read" if written else f"{size} bytes are left"
        raise BrokenRecordError(
            f"{self.path} is damaged at byte {min(self._end, size)}: {what}. It was left as it is: bring back a copy, "
            "or move it away and keep it, since what waits in it is not in the record"
        )

    def _decision(self, text: bytes) -> Decision:
        try:
            return Decision.from_json(json.loads(text))
        except (ValueError, KeyError, TypeError, UsageError) as error:  # it is as it was written
            raise StoreError(f"{self.path} was written by a newer makel ({error!r}): use that one") from error

    def _line(self, position: int, decision: Decision) -> bytes:
        return _sealed(self._generation, position, Draft("decision", decision.to_json()).line.encode("ascii"))

    def _write(self, start: int, content: bytes) -> None:
        try:
            os.lseek(self._file, start, os.SEEK_SET)
            while content:
                content = content[os.write(self._file, content) :]
            os.fsync(self._file)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be written: {error.strerror}") from error


@dataclass(frozen=True)
class Outage:
    """The record cannot be written, and decisions wait.

    Attributes:
        waiting: How many.
        since: Since when: UTC, ISO 8601 with microseconds.
        reason: What the record said last.
    """

    waiting: int
    since: str
    reason: str


class Recorder:
    """Brings decisions into the record: at once where that works, by way of a journal while it does not. Thread-safe.

    While the record is away it is tried again every `retry_s`, and what waits goes in in order, each decision once:
    also where a process died, or a connection broke, halfway through.
    """

    def __init__(
        self,
        store: Store,
        journal: Journal,
        *,
        retry_s: float = 1.0,
        arrived: Callable[[list[Recorded]], None] = lambda _: None,
    ) -> None:
        """Start, with what waits from an earlier run.

        Args:
            store: The record.
            journal: Closed together with this.
            retry_s: Time between two tries while the record is away, in seconds.
            arrived: Called, on a thread of this, with decisions that waited and are in the record now.
        """
        self._store = store
        self._journal = journal
        self._retry_s = retry_s
        self._arrived = arrived
        self._lock = threading.RLock()
        self._due = threading.Event()
        self._closing = threading.Event()
        self._reason = "decisions wait from an earlier run"
        self._since = now()
        if len(journal):
            self._due.set()
        self._in_time = ThreadPoolExecutor(1, "makel-record")  # starts its thread with the first deadline
        self._thread = threading.Thread(target=self._bring, name="makel-recorder", daemon=True)
        self._thread.start()

    def append(self, decision: Decision) -> Recorded:
        """Bring one decision into the record; see `append_all`."""
        return self.append_all([decision])[0]

    def append_all(self, decisions: Sequence[Decision], *, patience_s: float | None = None) -> list[Recorded]:
        """Bring decisions into the record, or into the journal while that is away. Then they are on the disk.

        Args:
            decisions: What was decided.
            patience_s: For how long the record may take them before the journal does; None for its own time limit.
                A record that takes them after all has each once all the same, as after a crash.

        Returns:
            As `Store.append_all`; for decisions that wait in the journal, number 0 and no hash.

        Raises:
            StoreError: Neither can take them: they are not accepted.
        """
        if not self._journal_takes(decisions, None):
            try:
                if patience_s is None:
                    return self._store.append_all(decisions)
                return self._in_time.submit(self._store.append_all, decisions).result(_SHARE * patience_s)
            except StoreError as error:
                self._journal_takes(decisions, str(error))
            except TimeoutError:
                self._journal_takes(decisions, "the record did not take a decision before its deadline")
        return [Recorded(0, decision, "") for decision in decisions]

    def arrived(self, arrival: str) -> list[Recorded]:
        """The decisions on one delivery of a file that wait; number 0 and no hash, as from `append_all`."""
        with self._lock:
            return [Recorded(0, each, "") for each in self._journal.waiting() if each.arrival == arrival]

    @property
    def outage(self) -> Outage | None:
        """What is wrong, while decisions wait; None while all is well."""
        with self._lock:
            return Outage(len(self._journal), self._since, self._reason) if len(self._journal) else None

    def close(self) -> None:
        """Stop. What waits stays in the journal and goes in when the next run starts."""
        with self._lock:
            self._closing.set()
            self._due.set()
        self._thread.join()
        self._in_time.shutdown()
        self._journal.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _journal_takes(self, decisions: Sequence[Decision], reason: str | None) -> bool:
        """Put decisions behind those that wait; where none waits, only for a reason."""
        with self._lock:
            if not len(self._journal):
                if reason is None:
                    return False
                self._since = now()
            self._reason = reason or self._reason
            self._journal.add(decisions)
            self._due.set()
            return True

    def _bring(self) -> None:
        while True:
            self._due.wait()
            if self._closing.is_set():
                return
            try:
                self._replay()
            except Exception as error:  # whatever it is: trying again loses nothing, and giving up would
                with self._lock:
                    self._reason = str(error)
                self._closing.wait(self._retry_s)

    def _replay(self) -> None:
        """Move everything that waits into the record. What is decided meanwhile never waits for the record's lock."""
        done = 0
        while True:
            with self._lock:
                part = self._journal.waiting(done, _CHUNK)
                if not part:
                    self._journal.clear()
                    if not self._closing.is_set():  # or its thread would never wake up to end
                        self._due.clear()
                    return
            arrived = self._store.append_all(part, once=True)
            done += len(part)
            try:
                self._arrived(arrived)
            except Exception:  # somebody else's, and the record has what matters
                logging.getLogger(__name__).exception("a listener failed on decisions %s", [r.number for r in arrived])


def _header(*parts: str) -> bytes:
    text = " ".join(parts)
    return f"{text} {hashlib.sha256(text.encode()).hexdigest()[:16]}\n".encode("ascii")


def _sealed(generation: str, position: int, text: bytes) -> bytes:
    seal = hashlib.sha256(f"{generation} {position} ".encode("ascii") + text).hexdigest()[:16]
    return seal.encode("ascii") + b" " + text + b"\n"


def _mark(generation: str, count: int) -> bytes:
    """What stands behind everything that was written in one go: how many decisions there are up to here."""
    return _sealed(generation, count, f"end {count}".encode("ascii"))


def _hold(file: int) -> bool:
    """Keep other processes out until the file is closed."""
    if sys.platform == "win32":
        os.lseek(file, 2**31 - 2, os.SEEK_SET)  # a byte behind the end: Windows would keep others from reading it
    return hold(file)
