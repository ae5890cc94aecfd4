"""The record over HTTP: pages of decisions, their pictures, what people say of them, and the live stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from makel.errors import NotFoundError, Overloaded
from makel.station import bodies, problems
from makel.station.access import Known
from makel.station.decisions import Recorded
from makel.station.declared import Declared, declared
from makel.station.drawing import Picture, draw
from makel.station.filters import Filter
from makel.station.station import Changed, Station

Number = Annotated[int, Path(ge=1, le=2**53, description="Of a decision")]
_PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}
_SIGNATURES = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"BM": "image/bmp",
    b"RIFF": "image/webp",
    b"II*\0": "image/tiff",
    b"MM\0*": "image/tiff",
}
_UNKNOWN = "application/octet-stream"
_KEEP_ALIVE_S = 15.0
_STILL_KNOWN_S = 2.0
_CATCH_UP = 1000
_MAX_STREAMS = 64
"""Each has a thread."""


def router(station: Station, closing: asyncio.Event) -> APIRouter:
    """The endpoints for a station.

    Args:
        station: Whose record.
        closing: Set when the service ends: the live streams end too.
    """
    routes = APIRouter(tags=["history"], route_class=Declared)

    @routes.get("/history", responses={200: {"model": bodies.HistoryBody}, **problems.responses()}, response_model=None)
    @declared("operator")
    def history(
        model: Annotated[str | None, Query(max_length=64)] = None,
        verdict: Literal["pass", "reject"] | None = None,
        answer: Literal["good", "defect", "none"] | None = None,
        since: Annotated[str | None, Query(max_length=40, description="From this moment on, ISO 8601")] = None,
        until: Annotated[str | None, Query(max_length=40, description="Before this moment, ISO 8601")] = None,
        name: Annotated[str | None, Query(max_length=500, description="Part of the caller's name")] = None,
        source: Annotated[
            Literal["line", "manual"] | None, Query(description="Parts of the line, or what people tried by hand")
        ] = None,
        before: Annotated[int | None, Query(ge=1, le=2**53, description="Only lower numbers")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    ) -> Response:
        """Decisions, newest first, a page at a time."""
        of_the_line = None if source is None else source == "line"
        chosen = Filter(model, verdict, answer, since, until, name, of_the_line)
        found = station.store.find(chosen, before=before, limit=limit + 1)
        page = found[:limit]
        more = page[-1].number if len(found) > limit else None
        return JSONResponse({"decisions": [each.to_json() for each in page], "before": more})

    @routes.get(
        "/history/{number}",
        responses={200: {"model": bodies.DecisionBody}, **problems.responses(404)},
        response_model=None,
    )
    @declared("operator")
    def decision(number: Number) -> Response:
        """One decision."""
        return JSONResponse(station.store.get(number).to_json())

    @routes.get(
        "/history/{number}/image",
        responses={
            200: {
                "description": "The bytes as they came; octet-stream where they are no image",
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary"}}
                    for kind in [*dict.fromkeys(_SIGNATURES.values()), _UNKNOWN]
                },
            },
            **problems.responses(404),
        },
        response_class=Response,
        response_model=None,
    )
    @declared("operator")
    def image(number: Number) -> Response:
        """The image as it came, where it is still kept."""
        picture = station.picture(station.store.get(number))
        return Response(picture, media_type=_media_type(picture))

    @routes.get(
        "/history/{number}/overlay",
        responses={**_PNG, **problems.responses(404)},
        response_class=Response,
        response_model=None,
    )
    @declared("operator", lane="drawing")
    def overlay(number: Number) -> Response:
        """The image with heat and regions, drawn again by the model that judged it."""
        return _drawn(station, number, "overlay")

    @routes.get(
        "/history/{number}/mask",
        responses={**_PNG, **problems.responses(404)},
        response_class=Response,
        response_model=None,
    )
    @declared("operator", lane="drawing")
    def mask(number: Number) -> Response:
        """Where the anomaly map exceeds the pixel threshold, at the image's own size."""
        return _drawn(station, number, "mask")

    @routes.post(
        "/history/{number}/answer",
        responses={200: {"model": bodies.DecisionBody}, **problems.responses(404)},
        response_model=None,
    )
    @declared("operator", body="json")
    def answer(number: Number, said: bodies.AnswerBody, who: Known) -> Response:
        """Say what the part really was, or take that back. The decision stays; the answer is added to the record."""
        return JSONResponse(station.answer(number, said.answer, who.name).to_json())

    listening: set[object] = set()

    @routes.get(
        "/events",
        responses={200: {"content": {"text/event-stream": {}}}, **problems.responses()},
        response_class=Response,
        response_model=None,
    )
    @declared("operator")
    async def events(
        request: Request, last_event_id: Annotated[str | None, Header(max_length=20)] = None
    ) -> StreamingResponse:
        """Every decision as it is recorded, as server-sent events: `event: decision`, its number as `id`, JSON as data.

        Beside them `models` and `candidates` with the model that changed, and `answer` with the decision as it is now.
        A client that comes back with Last-Event-ID gets what it missed first, the last 1000 at most.
        """
        after = int(last_event_id) if last_event_id and last_event_id.isdecimal() else None
        if len(listening) >= _MAX_STREAMS:
            raise Overloaded(f"{len(listening)} clients listen already, at most {_MAX_STREAMS}: close one of them")
        told = _stream(station, closing, after, listening, request.state.still_known)
        return StreamingResponse(told, media_type="text/event-stream")

    return routes


async def _stream(
    station: Station,
    closing: asyncio.Event,
    after: int | None,
    listening: set[object],
    still_known: Callable[[], bool],
) -> AsyncIterator[str]:
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Recorded | Changed | None](1000)

    def hand(told: Recorded | Changed) -> None:
        loop.call_soon_threadsafe(_offer, queue, told)

    async def end() -> None:
        while still_known() and not closing.is_set():  # a token that was removed hears nothing more
            with suppress(TimeoutError):
                async with asyncio.timeout(_STILL_KNOWN_S):
                    await closing.wait()
        _offer(queue, None)

    listening.add(queue)
    stop, ending = station.follow(hand), asyncio.ensure_future(end())
    try:
        yield ": makel\n\n"
        sent = 0
        if after is not None:
            for recorded in await run_in_threadpool(station.store.after, after, limit=_CATCH_UP):
                yield _event(recorded)
                sent = recorded.number
        while True:
            try:
                async with asyncio.timeout(_KEEP_ALIVE_S):
                    told = await queue.get()
            except TimeoutError:
                yield ": still here\n\n"  # so that a proxy keeps the connection, and a client that has gone is noticed
                continue
            if told is None or not still_known():
                return
            if isinstance(told, Changed) or told.number > sent:  # the rest was in what it missed
                yield _event(told)
    finally:
        listening.discard(queue)
        ending.cancel()
        loop.run_in_executor(None, stop)  # not awaited: where the client has gone, nothing is any more


def _offer(queue: asyncio.Queue[Recorded | Changed | None], told: Recorded | Changed | None) -> None:
    """Put an event into a client's queue; of a client too slow for it the oldest goes."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(told)


def _event(told: Recorded | Changed) -> str:
    if isinstance(told, Changed):  # without an id: a client comes back from the last decision
        return f"event: {told.what}\ndata: {json.dumps(told.detail)}\n\n"
    return f"event: decision\nid: {told.number}\ndata: {json.dumps(told.to_json())}\n\n"


def _drawn(station: Station, number: int, picture: Picture) -> Response:
    recorded = station.store.get(number)
    if not recorded.decision.model_id:
        raise NotFoundError(f"no model answered for decision {number} ({recorded.decision.reason}): nothing to draw")
    image = station.picture(recorded)
    inspector = station.inspector_of(recorded.decision)
    pixels = station.decode(image)
    return Response(draw(station.look(inspector, pixels), inspector, pixels, picture), media_type="image/png")


def _media_type(image: bytes) -> str:
    """What a browser may show as a picture; anything else is a file to save."""
    return next((kind for start, kind in _SIGNATURES.items() if image.startswith(start)), _UNKNOWN)
