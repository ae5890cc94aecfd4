"""The last step of every image: its picture is kept, its decision recorded, and only then is anybody answered.

One thread takes whatever has been decided meanwhile, so that one flush of the disk carries all of it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from time import monotonic

from makel.errors import MakelError, Overloaded, StoreError
from makel.station.decisions import Decision, Recorded
from makel.station.journal import Recorder
from makel.station.pictures import Pictures

_GROUP = 64
_BLOCKED_S = 1.0
"""For so long nothing is accepted after neither record nor journal took a decision."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """Something decided.

    Attributes:
        decision: What was decided, without the hash of the image.
        image: The bytes as they came; empty where none came.
        settle: Called once with what was recorded, or with why it could not be.
    """

    decision: Decision
    image: bytes
    settle: Callable[[Recorded | MakelError], None]


class Recording:
    """Keeps pictures and records decisions, in groups, on one thread."""

    def __init__(
        self,
        recorder: Recorder,
        pictures: Pictures,
        tell: Callable[[Sequence[Recorded]], None],
        *,
        queue: int = _GROUP,
    ) -> None:
        """Start the thread.

        Args:
            recorder: Takes the decisions.
            pictures: Takes the images.
            tell: Called with what was recorded.
            queue: Entries that wait at most; whoever brings the next one waits too.
        """
        self._recorder, self._pictures, self._tell, self._queue = recorder, pictures, tell, queue
        self._waiting: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._blocked: tuple[float, str] | None = None
        self.pictures_problem = ""
        self._thread = threading.Thread(target=self._run, name="makel-recording", daemon=True)
        self._thread.start()

    def put(self, entry: Entry) -> None:
        """Hand something over to be recorded; waits while too much waits already.

        Raises:
            Overloaded: This is closed: nobody would ever settle the entry.
        """
        with self._changed:
            if self._closing:
                raise Overloaded("the station is being closed: nothing is recorded any more")
            self._changed.wait_for(lambda: len(self._waiting) < self._queue)
            self._waiting.append(entry)
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

    def close(self) -> None:
        """Record what waits, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                entries = [self._waiting.popleft() for _ in range(min(_GROUP, len(self._waiting)))]
                self._changed.notify_all()
            self._record(entries)

    def _record(self, entries: Sequence[Entry]) -> None:
        decisions = [replace(entry.decision, image_sha256=self._keep(entry)) for entry in entries]
        results: Sequence[Recorded | MakelError]
        try:
            results = recorded = self._recorder.append_all(decisions)
            self._blocked = None
            self._tell([each for each in recorded if each.number])  # the others are told when the record is back
        except MakelError as error:
            self._blocked = (monotonic(), str(error))
            results = [error] * len(entries)
        except Exception as error:  # the thread goes on, whatever happens to one group
            _log.exception("%d decisions cannot be recorded", len(entries))
            results = [StoreError(f"the decision cannot be recorded: {type(error).__name__}")] * len(entries)
        for entry, result in zip(entries, results, strict=True):
            entry.settle(result)

    def _keep(self, entry: Entry) -> str:
        """The hash of the image. A picture that cannot be kept holds no decision up; `pictures_problem` says so."""
        if not entry.image:
            return ""
        try:
            name = self._pictures.keep(entry.image, entry.decision.verdict)
        except MakelError as error:
            self.pictures_problem = str(error)
            return sha256(entry.image).hexdigest()
        self.pictures_problem = ""
        return name
