"""One picture for one part: a trigger says that a part is there, and the next picture in a folder is that part's."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from makel.errors import MakelError, Overloaded, UsageError
from makel.images import shown
from makel.station.decoding import Decode, decode_here
from makel.station.inbox import LARGEST_BYTES, Arrival, Decider, Inbox, Waiting, recorded_on
from makel.station.patrol import Patrol

if TYPE_CHECKING:
    from makel.station.decisions import Recorded
    from makel.station.station import Outcome

logger = logging.getLogger(__name__)

IDLE_POLL_S = 0.1
"""Seconds between two looks at the folder while no part is being decided."""
POLL_S = 0.01
"""The same while a part waits for its picture."""


class BusyError(Overloaded):
    """A part is being decided: its result must be there before the next one can start."""


class Trigger:
    """Pairs parts with pictures, one at a time.

    A picture belongs to a part if it arrives after the part's trigger, or at most `lead_s` before. A picture that no
    trigger came for belongs to nobody: it is recorded as a fail-safe reject as soon as that is certain, and never
    judged as the part that happens to come next. Two pictures for one part reject it: nobody can say which is its own.

    Attributes:
        model: Which model decides, by the name it is served under.
        deadline_s: Seconds from a trigger to its decision, at most; then the part is a fail-safe reject.
    """

    def __init__(
        self,
        folder: Path,
        station: Decider,
        *,
        model: str,
        done: Path | None = None,
        deadline_s: float = 1.0,
        settle_s: float = 0.02,
        lead_s: float = 0.0,
        decode: Decode = decode_here,
        largest_bytes: int = LARGEST_BYTES,
    ) -> None:
        """Get ready; `start` begins.

        Args:
            folder: Where the camera's pictures arrive.
            station: What decides and records.
            model: Which model decides.
            done: Where decided files go; None leaves them.
            deadline_s: Seconds from a trigger to its decision.
            settle_s: Seconds a file must stand still; 0 where files are renamed into place.
            lead_s: Seconds a picture may arrive before its trigger.
            decode: What tells whether a file is a whole image.
            largest_bytes: A larger file is no image; nothing of it is read.

        Raises:
            UsageError: The folder or `done` cannot be used.
        """
        self.model, self.deadline_s = model, deadline_s
        self._inbox = Inbox(folder, done=done, settle_s=settle_s, decode=decode, largest_bytes=largest_bytes)
        self._station, self._lead_s = station, lead_s
        self._busy = threading.Lock()
        self._looking = threading.Lock()
        self._patrol = Patrol(folder, self._look)

    @property
    def problem(self) -> str:
        """What keeps the folder from being looked at right now; "" if nothing does."""
        return self._patrol.problem

    @property
    def overlooked(self) -> str:
        """What lies in the folder and may be an image, but is not looked at; "" if nothing."""
        return self._inbox.overlooked()

    def start(self) -> None:
        """Begin to look at the folder; what lies in it already belongs to no part."""
        self._patrol.start()

    def stop(self) -> None:
        """Finish the part at hand and end."""
        self._patrol.stop()
        with self._busy:
            pass

    def take(self, *, part: str = "", source: str = "trigger", armed: Callable[[], None] = lambda: None) -> Outcome:
        """A part is there: wait for its picture, and decide.

        Args:
            part: What the line calls the part, a serial number; "" for the name of the picture's file.
            source: Who triggers, for the record.
            armed: Called as soon as a picture that arrives counts: the camera can be told to take it.

        Returns:
            The recorded decision, a fail-safe reject where there is none after `deadline_s`.

        Raises:
            BusyError: The part before is not decided yet.
            MakelError: Not even a reject could be recorded. The part has no decision: treat it as rejected.
        """
        called = monotonic()
        if not self._busy.acquire(blocking=False):
            raise BusyError("the part before is not decided yet: wait for its result")
        try:
            with self._looking:
                return self._take(part, source, called + self.deadline_s, armed)
        finally:
            self._busy.release()

    def _take(self, part: str, source: str, end: float, armed: Callable[[], None]) -> Outcome:
        fault = self._scan()[1]  # what is seen for the first time now came before the trigger
        came = monotonic()
        armed()
        while (left_s := end - monotonic()) > 0 and not self._patrol.stopping.is_set():
            found, problem = self._scan()
            mine = [each for each in found if each.changed >= came - self._lead_s]
            if len(mine) > 1:
                # All stay in the folder, from where they are recorded one by one as pictures of no part.
                names = ", ".join(each.arrival.name for each in mine)
                return self._reject(f"{len(mine)} pictures for one part: {names}", part, source)
            read = self._inbox.read(mine[0].arrival) if mine and self._inbox.settled(mine[0]) else None
            fault = problem or (read[1] if read else "")
            if read and not fault:
                return self._judge(mine[0].arrival, read[0], part, source, left_s)
            self._patrol.stopping.wait(POLL_S)
        late = f"no picture within {1000 * self.deadline_s:g} ms of the trigger"
        late = "the station was stopped before a picture came" if self._patrol.stopping.is_set() else late
        return self._reject(f"{late}: {fault}" if fault else late, part, source)

    def _scan(self) -> tuple[list[Waiting], str]:
        try:
            return self._inbox.scan(), ""
        except (UsageError, OSError) as error:
            return [], f"the folder cannot be listed ({getattr(error, 'strerror', None) or error})"

    def _judge(self, arrival: Arrival, image: bytes, part: str, source: str, left_s: float) -> Outcome:
        name = part or arrival.name
        try:
            outcome = self._station.decide(
                image, model=self.model, name=name, source=source, deadline_s=left_s, arrival=arrival.key
            )
        except MakelError as error:  # the station takes no more; the part is here and needs a decision
            outcome = self._reject(str(error), name, source, image, arrival.key)
        self._finish(arrival, outcome.recorded)
        return outcome

    def _reject(self, reason: str, part: str, source: str, image: bytes = b"", arrival: str = "") -> Outcome:
        return self._station.reject(reason, image=image, model=self.model, name=part, source=source, arrival=arrival)

    def _finish(self, arrival: Arrival, recorded: Recorded) -> None:
        try:
            self._inbox.finish(arrival, recorded)
        except OSError as error:  # the part is decided; a later look finds the file in the record, and moves it
            logger.warning("%s cannot be moved: %s", shown(arrival.path), error.strerror or error)

    def _look(self) -> float:
        """Between parts: record the pictures that no trigger came for."""
        with self._looking:
            for waiting in self._inbox.scan():
                if self._busy.locked():  # a part came; these can wait
                    break
                if self._inbox.settled(waiting) and monotonic() - waiting.changed > self._lead_s + IDLE_POLL_S:
                    self._record_stray(waiting.arrival)
        return IDLE_POLL_S

    def _record_stray(self, arrival: Arrival) -> None:
        read = self._inbox.read(arrival)
        if read is None:
            return
        image, fault = read
        recorded = recorded_on(self._station, self.model, arrival, image)
        if recorded is None:
            reason = f"{arrival.name} belongs to no part: it came without a trigger, or too late for it"
            reason += f"; {fault}" if fault else ""
            recorded = self._reject(reason, arrival.name, "trigger", image, arrival.key).recorded
        self._finish(arrival, recorded)
