"""How much a request may bring and how long it may take for it: checked before it is read, and again while it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from starlette.types import Message, Receive, Scope

from makel.errors import Overloaded, StalledError, TooLargeError, UsageError
from makel.station.budget import Budget

Body = Literal["nothing", "json", "image", "upload"]
"""What a route takes: nothing to speak of, a few values, images or tensors into memory, or files to the disk."""

_SMALL_BYTES = 64 * 2**10
_STALLED_S = 1.0
"""Who has sent nothing for so long makes room for others where there is too little."""

_MAKING_ROOM_S = 0.5


@dataclass(frozen=True)
class BodyLimits:
    """Bytes that requests may bring, and time for them.

    Attributes:
        image_bytes: One request with images.
        upload_bytes: One request with a model or a folder of images; it goes to the disk as it arrives.
        held_bytes: All requests with images together, at any moment, as far as they have arrived.
        idle_s: A request of which nothing has arrived for so long is given up.
        least_bytes_per_s: One that is slower than this on the whole, after 30 s, is given up as well.
    """

    image_bytes: int = 64 * 2**20
    upload_bytes: int = 4 * 2**30
    held_bytes: int = 384 * 2**20
    idle_s: float = 10.0
    least_bytes_per_s: float = 32 * 2**10

    def of(self, body: Body) -> int:
        """Bytes that one request may bring."""
        return {"image": self.image_bytes, "upload": self.upload_bytes}.get(body, _SMALL_BYTES)


class Bodies:
    """The bodies that are arriving: none is read beyond its limit, and no more held in memory than there is room for.

    What a request announces is compared with the limit and counts for nothing else: only what has arrived is held.
    """

    def __init__(self, limits: BodyLimits) -> None:
        """Nothing is arriving yet."""
        self._limits = limits
        self._held = Budget(limits.held_bytes, "requests with images")
        self._arriving: set[_Arriving] = set()

    @asynccontextmanager
    async def bounded(self, scope: Scope, receive: Receive, body: Body) -> AsyncIterator[Receive]:
        """What receives a request in its limits, for as long as the request is served.

        Raises:
            TooLargeError: It announces more than its route takes; nothing was read. Receiving raises it as well.
            StalledError: Receiving: nothing more came, or too slowly.
            Overloaded: Receiving: there is no room.
            UsageError: The length it announces is no number.
        """
        limit_bytes = self._limits.of(body)
        _check(_announced(scope), limit_bytes)
        arriving = _Arriving(self._limits, limit_bytes)
        held_bytes = 0

        async def limited() -> Message:
            nonlocal held_bytes
            message = await arriving.next(receive)
            if body == "image" and arriving.came_bytes > held_bytes:
                await self._take(arriving.came_bytes - held_bytes)
                held_bytes = arriving.came_bytes
            return message

        self._arriving.add(arriving)
        try:
            yield limited if body in ("image", "upload") else await _whole(limited, scope)
        finally:
            self._arriving.discard(arriving)
            self._held.give(held_bytes)

    async def _take(self, size_bytes: int) -> None:
        """Hold bytes; where there is no room, those who keep it and send nothing give theirs."""
        try:
            self._held.take(size_bytes)
            return
        except Overloaded:
            stalled = [each for each in self._arriving if each.silent_s > _STALLED_S]
            if not stalled:
                raise
        for each in stalled:
            each.give_up()
        loop = asyncio.get_running_loop()
        end = loop.time() + _MAKING_ROOM_S
        while True:
            await asyncio.sleep(0.01)  # they give it back in tasks of their own
            try:
                self._held.take(size_bytes)
                return
            except Overloaded:
                if loop.time() > end:
                    raise


class _Arriving:
    """The body of one request."""

    def __init__(self, limits: BodyLimits, limit_bytes: int) -> None:
        self._limits, self._limit_bytes = limits, limit_bytes
        self._loop = asyncio.get_running_loop()
        self._began_s = self._last_s = self._loop.time()
        self._waiting: asyncio.Timeout | None = None
        self._whole = False
        self.came_bytes = 0

    @property
    def silent_s(self) -> float:
        """Seconds since anything came, while more is waited for."""
        return self._loop.time() - self._last_s if self._waiting is not None else 0.0

    def give_up(self) -> None:
        """Wait no longer."""
        if self._waiting is not None:
            self._waiting.reschedule(self._loop.time())

    async def next(self, receive: Receive) -> Message:
        if self._whole:  # what comes now is the news that the client has gone, whenever it goes
            return await receive()
        slowest_s = 30.0 + self.came_bytes / self._limits.least_bytes_per_s
        end = min(self._loop.time() + self._limits.idle_s, self._began_s + slowest_s)
        try:
            async with asyncio.timeout_at(end) as self._waiting:
                message = await receive()
        except TimeoutError:
            raise StalledError(
                f"only {self.came_bytes} bytes of this request came, and then no more in time: send it again"
            ) from None
        finally:
            self._waiting = None
        self._last_s = self._loop.time()
        self.came_bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        _check(self.came_bytes, self._limit_bytes)
        return message


async def _whole(receive: Receive, scope: Scope) -> Receive:
    """A small body, read here: FastAPI would make one error of all that goes wrong with it."""
    if scope["method"] in ("GET", "HEAD"):
        return receive
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    waiting = iter(messages)

    async def again() -> Message:
        return next(waiting, None) or await receive()

    return again


def _announced(scope: Scope) -> int:
    value = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    if not value.isdigit():
        raise UsageError(f"Content-Length is {value[:40]!r}: it is a number of bytes")
    return int(value)


def _check(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise TooLargeError(
            f"this request brings {size_bytes} bytes, at most {limit_bytes} are taken: send less at once"
        )
