"""Watch a folder: every picture that arrives in it is decided, each exactly once, over bursts, crashes and restarts."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

from makel.station.decoding import Decode, decode_here
from makel.station.inbox import LARGEST_BYTES, Decider, Inbox, Waiting, recorded_on
from makel.station.patrol import RETRY_S, Patrol


class Watch:
    """Decides what arrives in a folder, in a thread of its own.

    A file that is not a whole image yet is waited for, `give_up_s` at most; then it is a fail-safe reject, recorded
    like any other decision. Where the station accepts nothing (full, or without its record) files wait in the folder.

    Attributes:
        problem: What keeps files from being decided right now; "" if nothing does.
    """

    def __init__(
        self,
        folder: Path,
        station: Decider,
        *,
        model: str,
        done: Path | None = None,
        settle_s: float = 0.2,
        give_up_s: float = 10.0,
        deadline_s: float | None = None,
        poll_s: float = 0.05,
        decode: Decode = decode_here,
        largest_bytes: int = LARGEST_BYTES,
    ) -> None:
        """Get ready; `start` begins.

        Args:
            folder: Where pictures arrive.
            station: What decides and records.
            model: Which model decides, by the name it is served under.
            done: Where decided files go; None leaves them.
            settle_s: Seconds a file must stand still; 0 where files are renamed into place.
            give_up_s: Seconds a file may take to become a whole image.
            deadline_s: Seconds a decision may take; then it is a fail-safe reject.
            poll_s: Seconds between two looks at the folder.
            decode: What tells whether a file is a whole image.
            largest_bytes: A larger file is no image; nothing of it is read.

        Raises:
            UsageError: The folder or `done` cannot be used.
        """
        self._inbox = Inbox(folder, done=done, settle_s=settle_s, decode=decode, largest_bytes=largest_bytes)
        self._station, self._model = station, model
        self._recorded: set[str] = set()  # keys of files that lie here and have a record, not compared with it yet
        self._give_up_s, self._deadline_s, self._poll_s = give_up_s, deadline_s, poll_s
        self._patrol = Patrol(folder, self._look)

    @property
    def problem(self) -> str:
        """What keeps files from being decided right now; "" if nothing does."""
        return self._patrol.problem

    @property
    def overlooked(self) -> str:
        """What lies in the folder and may be an image, but is not looked at; "" if nothing."""
        return self._inbox.overlooked()

    def start(self) -> None:
        """Begin to watch."""
        self._patrol.start()

    def stop(self) -> None:
        """Finish the file at hand and end."""
        self._patrol.stop()

    def _look(self) -> float:
        started = monotonic()
        waiting = self._inbox.scan()
        pause_s = max(self._poll_s, monotonic() - started)  # a folder slow to list is not listed all the time
        self._decide(waiting)
        return pause_s

    def _decide(self, waiting: list[Waiting]) -> None:
        started, stuck = monotonic(), None
        ready = [each for each in waiting if self._inbox.settled(each) or self._late(each)]
        # After a restart this process knows nothing of what lies here. What the record does not know either goes first;
        # the others must be read to be compared with their records, which may take long and can wait.
        for each in ready:
            if each.arrival.key not in self._recorded and self._station.arrived(each.arrival.key):
                self._recorded.add(each.arrival.key)
        for each in sorted(ready, key=lambda each: each.arrival.key in self._recorded):
            can_wait = each.arrival.key in self._recorded and monotonic() - started > RETRY_S
            if can_wait or self._patrol.stopping.is_set():
                break
            try:
                self._handle(each)
            except OSError as error:  # one file that cannot be moved does not hold up the others
                stuck = error
        if stuck is not None:
            raise stuck

    def _late(self, waiting: Waiting) -> bool:
        return monotonic() - waiting.since >= self._give_up_s

    def _handle(self, waiting: Waiting) -> None:
        arrival, settled = waiting.arrival, self._inbox.settled(waiting)
        read = self._inbox.read(arrival)
        if read is None:
            return
        image, fault = read
        recorded = recorded_on(self._station, self._model, arrival, image)
        if recorded is None:
            fault = fault if settled else f"{arrival.name} is still being written"
            if fault and not self._late(waiting):
                return
            told = {"model": self._model, "name": arrival.name, "source": "watch", "arrival": arrival.key}
            if fault:
                reason = f"{fault} ({self._give_up_s:g} s after it came)"
                recorded = self._station.reject(reason, image=image, **told).recorded
            else:
                recorded = self._station.decide(image, deadline_s=self._deadline_s, **told).recorded
        if settled:
            self._inbox.finish(arrival, recorded)
        else:
            self._inbox.wait_again(arrival)
        self._recorded.discard(arrival.key)
