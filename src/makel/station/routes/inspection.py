"""POST /inspect: images in, recorded decisions out."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import UploadFile

from makel.errors import UsageError
from makel.station import problems
from makel.station.declared import Declared, declared, run_in
from makel.station.drawing import Picture, draw
from makel.station.station import Outcome, Station

_MAX_IMAGES = 64

_BINARY = {"type": "string", "format": "binary"}
_REQUEST = {
    "required": True,
    "content": {
        "image/*": {"schema": _BINARY},
        "application/octet-stream": {"schema": _BINARY},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": _MAX_IMAGES}},
            }
        },
    },
}


def router(station: Station) -> APIRouter:
    """The endpoint for a station."""
    routes = APIRouter(tags=["inspection"], route_class=Declared)

    @routes.post(
        "/inspect",
        summary="Judge one image or several",
        response_model=None,
        responses={
            200: {
                "description": "One object for an image sent as the body; `results` for a form. What is no image, or "
                "has no decision in time, is a reject with a `reason`. With `Accept: image/png`, one image and one "
                "picture: that picture, and the decision in the header Makel-Decision.",
                "content": {
                    "application/json": {
                        "schema": {
                            "anyOf": [
                                {"$ref": "#/components/schemas/InspectedBody"},
                                {"$ref": "#/components/schemas/InspectedAllBody"},
                            ]
                        }
                    },
                    "image/png": {"schema": _BINARY},
                },
            },
            **problems.responses(404, 413),
        },
        openapi_extra={"requestBody": _REQUEST},
    )
    @declared("operator", body="image")
    async def inspect(
        request: Request,
        model: Annotated[str | None, Query(description="May be left out where one model is served")] = None,
        name: Annotated[str, Query(max_length=500, description="The part's name, for one image as the body")] = "",
        deadline_ms: Annotated[
            float | None, Query(gt=0, le=3_600_000, description="After this time it is a fail-safe reject")
        ] = None,
        picture: Annotated[list[Literal["overlay", "mask"]] | None, Query(description="Pictures wanted")] = None,
        source: Annotated[
            Literal["http", "manual"],
            Query(description="manual: tried by hand; recorded, and left out of rates, drift and thresholds"),
        ] = "http",
    ) -> Response:
        """Images come as the body of the request, one, or in a form, several."""
        is_form = request.headers.get("content-type", "").startswith("multipart/form-data")
        images = await _form(request) if is_form else [(name, await request.body())]
        if not all(image for _, image in images):
            raise UsageError("no image came: send the bytes of an image file as the body, or a form with files")
        futures: list[Future[Outcome]] = []
        try:
            for part, image in images:
                futures.append(
                    station.submit(
                        image,
                        model=model,
                        name=part,
                        source=source,
                        group=request,
                        deadline_s=None if deadline_ms is None else deadline_ms / 1000,
                    )
                )
            outcomes = await _outcomes(request, futures)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        if outcomes is None:
            return Response(status_code=problems.GONE)
        wanted: Sequence[Picture] = list(dict.fromkeys(picture or ()))
        first = outcomes[0]
        as_png = len(wanted) == len(outcomes) == 1 and "image/png" in request.headers.get("accept", "")
        if as_png and first.verdict is not None and first.inspector is not None:
            drawn = await _drawn(station, first, images[0][1], wanted[0])
            return Response(drawn, media_type="image/png", headers={"Makel-Decision": _in_short(first)})
        results = [
            await _result(station, outcome, image, wanted) for outcome, (_, image) in zip(outcomes, images, strict=True)
        ]
        return JSONResponse({"results": results} if is_form else results[0])

    return routes


def body(outcome: Outcome) -> dict[str, Any]:
    """The documented keys of an answer: those of the record, and those of `makel inspect --json`."""
    elapsed_ms = round(outcome.verdict.elapsed_ms, 3) if outcome.verdict else None
    return {**outcome.recorded.to_json(), "path": outcome.decision.name, "elapsed_ms": elapsed_ms}


def _in_short(outcome: Outcome) -> str:
    """A decision for a header, which has no room for lists."""
    return json.dumps({key: value for key, value in body(outcome).items() if key not in ("regions", "zones")})


async def _form(request: Request) -> list[tuple[str, bytes]]:
    async with request.form(max_files=_MAX_IMAGES, max_fields=_MAX_IMAGES) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise UsageError("the form holds no file: send images in fields called 'image'")
        return [((file.filename or "")[:500], await file.read()) for file in files]


async def _outcomes(request: Request, futures: list[Future[Outcome]]) -> list[Outcome] | None:
    """What becomes of the images; None where the client has gone, which takes back what was not begun."""
    answers: asyncio.Future[Any] = asyncio.gather(*map(asyncio.wrap_future, futures))
    gone: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answers, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answers.done():
            outcomes: list[Outcome] = answers.result()
            return outcomes
        answers.cancel()
        return None
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _result(station: Station, outcome: Outcome, image: bytes, wanted: Sequence[Picture]) -> dict[str, Any]:
    result = body(outcome)
    for picture in wanted:
        result[f"{picture}_png"] = None
        if outcome.verdict is not None:
            result[f"{picture}_png"] = b64encode(await _drawn(station, outcome, image, picture)).decode("ascii")
    return result


async def _drawn(station: Station, outcome: Outcome, image: bytes, picture: Picture) -> bytes:
    """A picture of an outcome that has a verdict."""

    def work() -> bytes:
        assert outcome.verdict is not None
        assert outcome.inspector is not None
        return draw(outcome.verdict, outcome.inspector, station.decode(image), picture)

    return await run_in("drawing", work)
