"""The HTTP protocol of the station: what a connection may cost before anybody knows who is at its other end.

uvicorn bounds neither headers nor connections, and waits for both as long as it takes. Here a request has so much time
and so many bytes to say what it wants; a client that does not read its answer is cut off; and where there are too many
connections, the one that has let the station wait longest makes room for the next.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_CONNECTIONS = 256
_HEADER_BYTES = 32 * 2**10
_HEADERS_S = 10.0
"""From the first byte of a request to the end of its headers; also from a connection to its first request."""

_UNREAD_S = 20.0
"""For so long an answer may lie here that its client does not take."""

_LEFT_OVER_S = 2.0
"""For so long the rest of a body is taken that nobody wants: a client cut off at once would not read why."""

_PIPELINED = 16


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on connections, headers, pipelined requests, and on clients that only wait."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client is there; where there are too many, one that waits has to go."""
        super().connection_made(transport)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._header_bytes = 0
        self._in_headers = self._answered = self._parsing = False
        self._refusal = (400, "this is no HTTP request")
        self._heard_s = self.loop.time()
        self._set_timer("headers", _HEADERS_S, self._cut_off)
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [each for each in self.connections if isinstance(each, BoundedProtocol) and each.waits]
            # Who was answered before is somebody; this one has not had the chance to say anything yet.
            longest = min(waiting, key=lambda each: (each is self, each._answered, each._heard_s))
            longest._cut_off()

    @property
    def waits(self) -> bool:
        """Whether the station waits for this client, and not the client for the station."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone."""
        for name in list(self._timers):
            self._stop_timer(name)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._heard_s = self.loop.time()
        if self._in_headers:
            self._count(len(data))
        elif (self.cycle is None or not self.cycle.more_body) and self.waits and "headers" not in self._timers:
            self._set_timer("headers", _HEADERS_S, self._cut_off)  # empty lines between requests begin none
        if self.transport.is_closing():
            return
        self._parsing = True
        super().data_received(data)
        self._parsing = False
        if self._in_headers and len(data) > 2 * _HEADER_BYTES and not self.transport.is_closing():
            self._count(len(data))  # all of it one header, which is not whole yet

    def on_message_begin(self) -> None:
        """A request begins."""
        self._header_bytes, self._in_headers = 0, True
        self._set_timer("headers", _HEADERS_S, self._cut_off)
        if len(self.pipeline) >= _PIPELINED:
            self._refusal = (429, f"at most {_PIPELINED} requests at once on one connection: wait for answers")
            raise ValueError(self._refusal[1])  # the parser stops, and the refusal is sent
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or one behind the body of a request in chunks."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The request has said what it wants."""
        self._in_headers = False
        self._stop_timer("headers")
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """The answer is on its way."""
        self._answered = True
        super().on_response_complete()
        if self.cycle is not None and self.cycle.response_complete and self.cycle.more_body:
            self._set_timer("left over", _LEFT_OVER_S, self.transport.close)

    def on_message_complete(self) -> None:
        """All of the request is there."""
        self._stop_timer("left over")
        if self.cycle is not None:
            self.cycle.more_body = False  # uvicorn does not say so where the answer came first
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client takes no more."""
        self._set_timer("unread", _UNREAD_S, self._cut_off)
        super().pause_writing()

    def resume_writing(self) -> None:
        """It does again."""
        self._stop_timer("unread")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """The client has asked for nothing more."""
        self._cut_off() if self.transport.get_write_buffer_size() else super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Say why nothing more is read."""
        del msg
        status, why = self._refusal
        head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: "
        self.transport.write(STATUS_LINE[status] + head + b"%d\r\n\r\n%b" % (len(why), why.encode()))
        self.transport.close()
        self._set_timer("unread", _LEFT_OVER_S, self._cut_off)

    def _count(self, size_bytes: int) -> None:
        """Bytes of headers; beyond the limit nothing more is read.

        They are counted as they come, for the parser keeps what it has of an unfinished one, and as they are parsed,
        for many come at once: at most twice the limit passes.
        """
        self._header_bytes += size_bytes
        if self._header_bytes > 2 * _HEADER_BYTES:
            self._refusal = (431, f"the headers of this request are over {_HEADER_BYTES} bytes: send less")
            if self._parsing:
                raise ValueError(self._refusal[1])
            self.send_400_response("")

    def _set_timer(self, name: str, seconds: float, call: Any) -> None:
        self._stop_timer(name)
        self._timers[name] = self.loop.call_later(seconds, call)

    def _stop_timer(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    def _cut_off(self) -> None:
        self.transport.abort()
