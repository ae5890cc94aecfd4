"""One model's line: a bounded queue, threads that decode, and one that runs the model on what is ready.

    submit → waiting → decoding (`workers` threads) → ready → judging (one thread, up to `batch` at once) → done

The queue is bounded from end to end: an image counts from `submit` until its `done` was called, and when `queue` images
are under way the next one is refused. Few images are decoded ahead, so that large ones wait as the bytes they came in.
Batches are what happens to be ready; nothing waits for one to fill.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

from makel.errors import MakelError, Overloaded
from makel.model.inspector import Inspector, Prepared
from makel.station.decoding import Decode, LargeImageError, decode_here
from makel.station.look import Look, Observer
from makel.types import Verdict

Result = TypeVar("Result")

_BATCH_PIXELS = 16_000_000
"""An image after so many waits for the next batch: the map of each is as large as the image."""

_STUCK_S = 10.0
_LEAVE_S = 2.0

_log = logging.getLogger(__name__)


class _Fair:
    """Images that wait, one of each request in turn: a form with many does not hold up who sends one."""

    def __init__(self) -> None:
        self._groups: dict[object, deque[Ticket]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._groups.values()))

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._groups.get(ticket.group, ())

    def append(self, ticket: Ticket) -> None:
        self._groups.setdefault(ticket.group, deque()).append(ticket)

    def popleft(self) -> Ticket:
        group = next(iter(self._groups))
        tickets = self._groups.pop(group)
        ticket = tickets.popleft()
        if tickets:
            self._groups[group] = tickets  # behind the others
        return ticket

    def remove(self, ticket: Ticket) -> None:
        self._groups[ticket.group].remove(ticket)
        if not self._groups[ticket.group]:
            del self._groups[ticket.group]


@dataclass(frozen=True)
class Judged:
    """What became of an image.

    Attributes:
        verdict: What the model said; None for a fail-safe reject.
        reason: Why it is a fail-safe reject; "" where there is a verdict.
        inspector: What said it; None where no model answered.
        latency_ms: From accepted to decided.
        look: What the image looks like; None where there is no verdict.
        deadline_s: When the decision has to be recorded, by `perf_counter`; None for whenever.
        allowed_ms: From accepted to that deadline.
    """

    verdict: Verdict | None
    reason: str
    inspector: Inspector | None
    latency_ms: float
    look: Look | None = None
    deadline_s: float | None = None
    allowed_ms: float = 0.0

    def late(self) -> Judged:
        """What it is once the deadline has passed: a fail-safe reject."""
        latency_ms = max(self.latency_ms, self.allowed_ms)
        return Judged(None, f"no decision within {self.allowed_ms:g} ms", None, latency_ms)


@dataclass(eq=False)
class Ticket:
    """An image on its way. `Line.cancel` takes it back as long as nothing was done with it."""

    name: str
    image: bytes | None  # None once it is decoded, or no longer wanted
    accepted_s: float
    deadline_s: float | None  # both by perf_counter
    done: Callable[[Judged], None] | None
    group: object
    inspector: Inspector | None = None
    prepared: Prepared | None = None
    look: Look | None = None


@dataclass(eq=False)
class _Errand:
    """Something else the model's thread is to do."""

    work: Callable[[Inspector], bool]  # whether it is done; if not, it is called again when others had their turn


class Line:
    """One model's queue and threads. `submit` may be called from anywhere and never waits.

    Attributes:
        name: What the model is served under.
        queue: Images under way at most.
        batch: Images the model takes at once, at most.
    """

    def __init__(
        self,
        name: str,
        inspector: Inspector,
        *,
        queue: int = 64,
        batch: int = 4,
        workers: int = 2,
        decode: Decode = decode_here,
    ) -> None:
        """Start the threads.

        Args:
            name: What the model is served under.
            inspector: The model.
            queue: Images under way at most; the next one is refused.
            batch: Images the model takes at once, at most.
            workers: Threads that decode.
            decode: What decodes; an image it refuses is a fail-safe reject.
        """
        self.name, self.queue, self.batch = name, queue, batch
        self._inspector, self._decode_image = inspector, decode
        self._observer = Observer(inspector)
        self._ahead = batch + workers
        self._waiting, self._large = _Fair(), _Fair()
        self._ready: deque[Ticket | _Errand] = deque()
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._order = itertools.count()
        self._under_way: set[Ticket] = set()
        self._moved_s = 0.0
        self._open = self._decoding = 0
        self._closing = self._stopped = False
        self._lock, self._judging_large = threading.Lock(), threading.Lock()
        self._can_decode, self._can_judge, self._can_expire, self._idle = (
            threading.Condition(self._lock) for _ in range(4)
        )
        self._threads = [
            threading.Thread(target=target, name=f"makel-{what}-{name}", daemon=True)
            for what, target in [
                *[("decode", self._decode), ("large", self._decode_large)] * workers,
                ("judge", self._judge),
                ("clock", self._expire),
            ]
        ]
        for thread in self._threads:
            thread.start()

    @property
    def inspector(self) -> Inspector:
        """The model that takes the next image."""
        return self._inspector

    @property
    def depth(self) -> int:
        """Images and errands under way."""
        return self._open

    def submit(
        self,
        image: bytes,
        *,
        name: str,
        done: Callable[[Judged], None],
        deadline_s: float | None = None,
        group: object = None,
    ) -> Ticket:
        """Accept an image.

        Args:
            image: The bytes of an image file.
            name: What to call it in a reason.
            done: Called once, on a thread of the line, with what became of the image. It may wait, and thereby hold the
                line back; it must not raise.
            deadline_s: Seconds from now after which it is a fail-safe reject.
            group: What it came with: images of different groups are taken in turn.

        Returns:
            What `cancel` takes.

        Raises:
            Overloaded: As many images as `queue` are under way, or the line is closing. Nothing was accepted.
        """
        now = perf_counter()
        ticket = Ticket(name, image, now, None if deadline_s is None else now + deadline_s, done, group)
        with self._lock:
            self._admit()
            self._moved_s = self._moved_s if self._under_way else now
            self._under_way.add(ticket)
            self._waiting.append(ticket)
            self._can_decode.notify_all()
            if ticket.deadline_s is not None:
                heapq.heappush(self._deadlines, (ticket.deadline_s, next(self._order), ticket))
                self._can_expire.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> bool:
        """Take an image back that nothing was done with.

        Returns:
            Whether it was still waiting. Its `done` is then never called.
        """
        with self._lock:
            if not self._forget(ticket):
                return False
            self._under_way.discard(ticket)
            ticket.image = ticket.done = None
            self._leave()
            return True

    def run(self, work: Callable[[Inspector], Result]) -> Future[Result]:
        """Do something with the model between two batches, on the thread that runs it.

        Args:
            work: Gets the inspector of that moment.

        Raises:
            Overloaded: As `submit`.
        """

        def all_of_it(inspector: Inspector) -> Generator[None, None, Result]:
            yield from ()
            return work(inspector)

        return self.run_in_turn(all_of_it)

    def run_in_turn(self, work: Callable[[Inspector], Generator[None, None, Result]]) -> Future[Result]:
        """As `run`, a part at a time: at each `yield` what else is ready has its turn.

        Args:
            work: Gets the inspector of the moment it begins, and returns the result.

        Raises:
            Overloaded: As `submit`.
        """
        future: Future[Result] = Future()
        begun: list[Generator[None, None, Result]] = []

        def errand(inspector: Inspector) -> bool:
            if not begun and not future.set_running_or_notify_cancel():
                return True
            try:
                begun[:] = begun or [work(inspector)]
                next(begun[0])
            except StopIteration as ended:
                future.set_result(ended.value)
            except BaseException as error:  # belongs to whoever asked
                future.set_exception(error)
            else:
                return False
            return True

        with self._lock:
            self._admit()
            self._ready.append(_Errand(errand))
            self._can_judge.notify()
        return future

    def swap(self, inspector: Inspector) -> Inspector:
        """Put another model on the line. What was prepared for the old one is still judged by it; nothing is dropped.

        Returns:
            The model before.
        """
        observer = Observer(inspector)
        with self._lock:
            before, self._inspector, self._observer = self._inspector, inspector, observer
            return before

    def drain(self, timeout_s: float | None = None) -> bool:
        """Accept nothing more, and wait for what was accepted; what is not done in time is a fail-safe reject.

        Returns:
            Whether all of it was done in time.
        """
        with self._lock:
            self._closing = True
            finished = self._idle.wait_for(lambda: not self._open, timeout_s)
            left = list(self._under_way)
        for ticket in left:
            self._settle(ticket, None, f"{ticket.name} had no decision when the station was ended")
        return finished

    def close(self) -> None:
        """End the threads, but one that a decoder or the model does not let go of. `drain` first."""
        with self._lock:
            self._closing = self._stopped = True
            for condition in (self._can_decode, self._can_judge, self._can_expire, self._idle):
                condition.notify_all()
        for thread in self._threads:
            thread.join(_LEAVE_S)

    @property
    def stuck(self) -> str:
        """Why nothing comes off the line although images are under way; "" where it does."""
        with self._lock:
            waited_s = perf_counter() - self._moved_s
            if not self._under_way or waited_s < _STUCK_S:
                return ""
            return f"{self.name} has decided nothing for {waited_s:.0f} s, with {len(self._under_way)} images under way"

    def _forget(self, ticket: Ticket) -> bool:
        """Take an image out of the queue it waits in; whether it was in one."""
        for waiting in (self._waiting, self._large):
            if ticket in waiting:
                waiting.remove(ticket)
                return True
        return False

    def _admit(self) -> None:
        if self._closing:
            raise Overloaded(f"{self.name} is being closed: send it to another station, or again later")
        if self._open >= self.queue:
            raise Overloaded(
                f"{self.name} has {self._open} images under way, at most {self.queue}: send it again later"
            )
        self._open += 1

    def _leave(self) -> None:
        self._open -= 1
        if not self._open:
            self._idle.notify_all()

    def _settle(self, ticket: Ticket, verdict: Verdict | None, reason: str, inspector: Inspector | None = None) -> None:
        """Say what became of an image; whoever comes second, model or clock, is not heard."""
        now = perf_counter()
        look = ticket.look if verdict else None
        allowed_ms = 0.0 if ticket.deadline_s is None else 1000 * (ticket.deadline_s - ticket.accepted_s)
        judged = Judged(
            verdict, reason, inspector, 1000 * (now - ticket.accepted_s), look, ticket.deadline_s, allowed_ms
        )
        if ticket.deadline_s is not None and now >= ticket.deadline_s:
            judged = judged.late()
        with self._lock:
            done, ticket.done, ticket.image = ticket.done, None, None
            self._under_way.discard(ticket)
            self._moved_s = now
        if done is None:
            return
        try:
            done(judged)
        except Exception:
            _log.exception("%s: %s was judged, and whoever wanted to know failed", self.name, ticket.name)
        with self._lock:
            self._leave()

    def _decode_large(self) -> None:
        """As `_decode`, for images that take long: what is small does not wait behind them."""
        self._decode(large=True)

    def _decode(self, *, large: bool = False) -> None:
        while (ticket := self._next_to_decode(large=large)) is not None:
            self._decode_one(ticket, large=large)

    def _next_to_decode(self, *, large: bool) -> Ticket | None:
        source = self._large if large else self._waiting
        with self._lock:
            while not (source and len(self._ready) + self._decoding < self._ahead):
                if self._stopped:
                    return None
                self._can_decode.wait()
            self._decoding += 1
            return source.popleft()

    def _decode_one(self, ticket: Ticket, *, large: bool) -> None:
        reason, is_large = "", False
        with self._lock:
            image, inspector, observer = ticket.image, self._inspector, self._observer
        try:
            if image is not None:
                pixels = self._decode_image(image, name=ticket.name, large=large)
                ticket.inspector, ticket.prepared = inspector, inspector.prepare(pixels, ticket.name)
                del pixels
                ticket.look = self._look(observer, ticket)
                if large:
                    self._judge_large(ticket)
        except LargeImageError:
            is_large = True
        except MakelError as error:
            reason = str(error)
        except Exception as error:  # a line goes on, whatever a file does to a decoder
            _log.exception("%s: %s cannot be prepared", self.name, ticket.name)
            reason = f"{ticket.name} cannot be prepared: {type(error).__name__}"
        del image
        if reason:
            self._settle(ticket, None, reason)
        with self._lock:
            self._decoding -= 1
            if is_large and ticket.done is not None:
                self._large.append(ticket)
                self._can_decode.notify_all()
            elif ticket.done is not None:
                ticket.image = None
                self._ready.append(ticket)
                self._can_judge.notify()
            else:
                ticket.prepared = None  # whatever still has the ticket keeps no pixels, whose room others wait for
                self._can_decode.notify_all()

    def _judge_large(self, ticket: Ticket) -> None:
        """Judge a large image here, one at a time: its map takes so long that others would wait for it at the model."""
        with self._judging_large:
            if ticket.done is not None:
                self._judge_batch([ticket])

    def _look(self, observer: Observer, ticket: Ticket) -> Look | None:
        """What an image looks like; no part is rejected for want of that."""
        try:
            return observer.look(ticket.prepared) if ticket.prepared else None
        except Exception:
            _log.exception("%s: %s has no look", self.name, ticket.name)
            return None

    def _judge(self) -> None:
        while self._judge_next():
            pass

    def _judge_next(self) -> bool:
        """Wait for what is ready, and do it; False where the line has ended. Nothing of it is kept for the next."""
        with self._lock:
            while not self._ready:
                if self._stopped:
                    return False
                self._can_judge.wait()
            first = self._ready.popleft()
            batch = [first] if isinstance(first, Ticket) else []
            while (
                batch
                and len(batch) < self.batch
                and sum(map(_pixels, batch)) <= _BATCH_PIXELS
                and self._ready
                and isinstance(following := self._ready[0], Ticket)
                and following.inspector is batch[0].inspector
            ):
                batch.append(following)
                self._ready.popleft()
            inspector = self._inspector
            self._can_decode.notify_all()
        if isinstance(first, _Errand):
            done = first.work(inspector)
            with self._lock:
                if done:
                    self._leave()
                else:
                    self._ready.append(first)
        else:
            self._judge_batch([ticket for ticket in batch if ticket.done is not None])
            for ticket in batch:
                ticket.prepared = None
        return True

    def _judge_batch(self, batch: list[Ticket]) -> None:
        if not batch:
            return
        inspector = batch[0].inspector
        assert inspector is not None  # set before a ticket is ready
        try:
            verdicts = inspector.judge([ticket.prepared for ticket in batch if ticket.prepared is not None])
        except Exception as error:
            if len(batch) > 1:  # one image must not take the others with it
                for ticket in batch:
                    self._judge_batch([ticket])
                return
            if not isinstance(error, MakelError):
                _log.exception("%s: %s cannot be judged", self.name, batch[0].name)
            reason = str(error) if isinstance(error, MakelError) else type(error).__name__
            self._settle(batch[0], None, f"{batch[0].name} cannot be judged: {reason}")
            return
        for ticket, verdict in zip(batch, verdicts, strict=True):
            self._settle(ticket, verdict, "", inspector)

    def _expire(self) -> None:
        while True:
            with self._lock:
                if self._stopped:
                    return
                left_s = self._deadlines[0][0] - perf_counter() if self._deadlines else None
                if left_s is None or left_s > 0:
                    self._can_expire.wait(left_s)
                    continue
                ticket = heapq.heappop(self._deadlines)[2]
                self._forget(ticket)
            self._settle(ticket, None, "")


def _pixels(ticket: Ticket) -> int:
    return ticket.prepared.width_px * ticket.prepared.height_px if ticket.prepared else 0
