"""How much a request may bring: checked before it is read, and again while it is."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from makel.errors import MakelError, TooLargeError, UsageError
from makel.station.budget import Budget
from makel.station.problems import response_to

_SMALL_BYTES = 2**20


@dataclass(frozen=True)
class BodyLimits:
    """Bytes that requests may bring.

    Attributes:
        image_bytes: One request with images.
        upload_bytes: One request with a model or a folder of images; it goes to the disk as it arrives.
        held_bytes: All requests with images together, at any moment.
    """

    image_bytes: int = 64 * 2**20
    upload_bytes: int = 4 * 2**30
    held_bytes: int = 512 * 2**20


class LimitBodies:
    """ASGI middleware: no request is read beyond its limit, and no more are held in memory than there is room for."""

    def __init__(self, app: ASGIApp, limits: BodyLimits) -> None:
        """Wrap an app."""
        self._app, self._limits = app, limits
        self._held = Budget(limits.held_bytes, "requests with images")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        to_memory = path == "/inspect" or path.startswith("/v2/") or path.endswith("/try")
        to_disk = path in ("/models", "/jobs") or path.endswith("/candidates")
        limit = self._limits.image_bytes if to_memory else self._limits.upload_bytes if to_disk else _SMALL_BYTES
        held, came = 0, 0

        async def limited() -> Message:
            nonlocal held, came
            message = await receive()
            if message["type"] == "http.request":
                came += len(message.get("body", b""))
                _check(came, limit)
                if to_memory and came > held:
                    self._held.take(came - held)
                    held = came
            return message

        try:
            announced = _announced(scope)
            _check(announced, limit)
            if to_memory:
                self._held.take(announced)
                held = announced
        except MakelError as error:
            await response_to(error)(scope, receive, send)
            return
        try:
            await self._app(scope, limited, send)
        finally:
            self._held.give(held)


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
