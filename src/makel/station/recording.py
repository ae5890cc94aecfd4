"""The last step of every image: its decision is recorded, then whoever waits is answered, then its picture is kept.

One thread records whatever has been decided meanwhile, so that one flush of the disk carries all of it. Another keeps
pictures, whose flushes nobody has to wait for; a crash can cost the pictures of the last moment, never a decision.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from time import monotonic, perf_counter

from makel.errors import MakelError, Overloaded, StoreError
from makel.station.decisions import Decision, Recorded
from makel.station.journal import Recorder
from makel.station.pictures import Pictures

_GROUP = 64
_BLOCKED_S = 1.0
"""For so long nothing is accepted after neither record nor journal took a decision."""

_PICTURE_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Something decided.

    Attributes:
        decision: What was decided, without the hash of the image.
        image: The bytes as they came; empty where none came.
        settle: Called once with what was recorded, or with why it could not be.
        release: Called once when the image is no longer held.
        deadline_s: When it has to be recorded, by `perf_counter`; None for whenever.
        late: What is recorded in its place once that has passed.
    """

    decision: Decision
    image: bytes
    settle: Callable[[Recorded | MakelError], None]
    release: Callable[[], None] = lambda: None
    deadline_s: float | None = None
    late: Decision | None = None

    def at(self, now_s: float) -> Entry:
        """The same, with what is to be recorded at this moment as its decision."""
        is_late = self.deadline_s is not None and now_s >= self.deadline_s
        return replace(self, decision=self.late, deadline_s=None) if is_late and self.late else self


class Recording:
    """Records decisions, in groups, and keeps their pictures.

    Attributes:
        pictures_problem: Why the last picture was not kept; "" where it was.
    """

    def __init__(
        self,
        recorder: Recorder,
        pictures: Pictures,
        tell: Callable[[Sequence[Recorded]], None],
        *,
        queue: int = _GROUP,
    ) -> None:
        """Start the threads.

        Args:
            recorder: Takes the decisions.
            pictures: Takes the images.
            tell: Called with what was recorded.
            queue: Entries, and pictures, that wait at most; whoever brings the next one waits too.
        """
        self._recorder, self._pictures, self._tell, self._queue = recorder, pictures, tell, queue
        self._decided: deque[Entry] = deque()
        self._recorded: deque[tuple[Entry, str]] = deque()
        self._changed = threading.Condition()
        self._closing = self._all_recorded = False
        self._blocked: tuple[float, str] | None = None
        self.pictures_problem = ""
        self._threads = [
            threading.Thread(target=target, name=f"makel-{name}", daemon=True)
            for name, target in (("recording", self._record_all), ("pictures", self._keep_all))
        ]
        for thread in self._threads:
            thread.start()

    def put(self, entry: Entry) -> None:
        """Hand something over to be recorded; waits while too much waits already.

        Raises:
            Overloaded: This is closed: nobody would ever settle the entry.
        """
        with self._changed:
            if self._closing:
                raise Overloaded("the station is being closed: nothing is recorded any more")
            self._changed.wait_for(lambda: len(self._decided) < self._queue)
            self._decided.append(entry)
            self._changed.notify_all()

    @property
    def blocked(self) -> str:
        """Why nothing can be recorded now; "" where it can, or may be tried again."""
        blocked = self._blocked
        return blocked[1] if blocked and monotonic() - blocked[0] < _BLOCKED_S else ""

    def check(self) -> None:
        """Refuse new work while nothing can be recorded.

        Raises:
            Overloaded: Neither record nor journal took the last decision.
        """
        if reason := self.blocked:
            raise Overloaded(f"decisions cannot be recorded, so none are made: {reason}")

    def wait_for_picture(self, image_sha256: str) -> None:
        """Wait until the picture of a decision that was just answered is kept, a moment."""
        with self._changed:
            self._changed.wait_for(lambda: all(name != image_sha256 for _, name in self._recorded), _PICTURE_S)

    def close(self) -> None:
        """Record what waits, keep its pictures, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _record_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._decided or self._closing)
                if not self._decided:
                    self._all_recorded = True
                    self._changed.notify_all()
                    return
                entries = [self._decided.popleft() for _ in range(min(_GROUP, len(self._decided)))]
                self._changed.notify_all()
            hashes = [sha256(entry.image).hexdigest() if entry.image else "" for entry in entries]
            self._record(entries, hashes)
            with self._changed:
                self._changed.wait_for(lambda: len(self._recorded) < self._queue)

    def _record(self, entries: Sequence[Entry], hashes: Sequence[str]) -> None:
        results: Sequence[Recorded | MakelError]
        now_s = perf_counter()
        entries = [entry.at(now_s) for entry in entries]
        patience_s = min((entry.deadline_s - now_s for entry in entries if entry.deadline_s is not None), default=None)
        decisions = [replace(entry.decision, image_sha256=name) for entry, name in zip(entries, hashes, strict=True)]
        try:
            results = recorded = self._recorder.append_all(decisions, patience_s=patience_s)
            self._blocked = None
            self._tell([each for each in recorded if each.number])  # the others are told when the record is back
        except MakelError as error:
            self._blocked = (monotonic(), str(error))
            results = [error] * len(entries)
        except Exception as error:  # the thread goes on, whatever happens to one group
            _log.exception("%d decisions cannot be recorded", len(entries))
            results = [StoreError(f"the decision cannot be recorded: {type(error).__name__}")] * len(entries)
        with self._changed:  # before the answer, so that whoever asks for the picture at once waits for it
            self._recorded.extend(zip(entries, hashes, strict=True))
            self._changed.notify_all()
        for entry, result in zip(entries, results, strict=True):
            entry.settle(result)

    def _keep_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._recorded or self._all_recorded)
                if not self._recorded:
                    return
                entry, name = self._recorded[0]  # it counts as waiting until it is kept
            try:
                if entry.image:
                    self._pictures.keep(entry.image, entry.decision.verdict, image_sha256=name)
                self.pictures_problem = ""
            except MakelError as error:  # it holds no decision up
                self.pictures_problem = str(error)
            with self._changed:
                self._recorded.popleft()
                self._changed.notify_all()
            entry.release()
            del entry  # not held while this thread waits for the next one
