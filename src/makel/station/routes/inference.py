"""The Open Inference Protocol, version 2, on the same model and the same line.

It takes tensors and gives raw scores, as the ONNX file does: there is no image to keep and no decision to record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

import makel
from makel.errors import NotFoundError
from makel.model.inspector import Inspector
from makel.station import open_inference, problems
from makel.station.declared import Declared, declared, run_in
from makel.station.line import Line
from makel.station.routes.models import Name
from makel.station.station import Station

Number = Annotated[str, Path(pattern="^[1-9][0-9]{0,8}$", description="A version that is active")]

_OBJECT: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": {"type": "object"}}}}}
_TENSORS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "JSON; with the bytes of tensors behind it where they were asked for so",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {"inputs": {"type": "array", "items": {"type": "object"}, "minItems": 1}},
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


def router(station: Station) -> APIRouter:
    """The endpoints for a station."""
    routes = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=Declared)

    @routes.get("/health/live", responses={200: {"description": "It lives"}}, response_class=Response)
    @declared(None)
    async def live() -> Response:
        """The process answers."""
        return Response()

    @routes.get("/health/ready", responses={**problems.responses()}, response_class=Response)
    @declared(None, lane="health")
    def ready() -> Response:
        """Images are judged."""
        return Response(status_code=503 if station.obstacles() else 200)

    @routes.get("", responses={**_OBJECT, **problems.responses()}, response_model=None)
    @declared("operator")
    async def server() -> Response:
        """What this server is."""
        extensions = list(open_inference.EXTENSIONS)
        return JSONResponse({"name": "makel", "version": makel.__version__, "extensions": extensions})

    @declared("operator")
    def described(name: Name, version: Number | None = None) -> Response:
        line = _line(station, name, version)
        active = str(station.registry.active(name))
        shape = line.inspector.manifest.preprocessing.shape
        return JSONResponse(open_inference.metadata(name, [active], shape))

    @declared("operator")
    def model_ready(name: Name, version: Number | None = None) -> Response:
        _line(station, name, version)
        return Response()

    @declared("operator", body="image")
    async def infer(request: Request, name: Name, version: Number | None = None) -> Response:
        line = await run_in_threadpool(_line, station, name, version)
        shape = line.inspector.manifest.preprocessing.shape
        header_length = request.headers.get(open_inference.HEADER_LENGTH)
        content = await request.body()
        asked = await run_in("parsing", lambda: open_inference.read(content, header_length, shape))
        arrays = await asyncio.wrap_future(line.run_in_turn(lambda each: _scores(each, asked.images, line.batch)))
        active = str(station.registry.active(name))
        body, headers = await run_in("parsing", lambda: open_inference.write(asked, name, active, arrays))
        return Response(body, headers=headers)

    for path in ("/models/{name}", "/models/{name}/versions/{version}"):
        common: dict[str, Any] = {"response_model": None}
        found = problems.responses(404)
        routes.get(path, responses={**_OBJECT, **found}, summary="What a model takes and gives", **common)(described)
        routes.get(
            f"{path}/ready", responses=found, response_class=Response, summary="Whether a model judges", **common
        )(model_ready)
        routes.post(
            f"{path}/infer",
            responses={**_TENSORS, **problems.responses(404, 413)},
            summary="Raw scores and maps of prepared images",
            openapi_extra=_BODY,
            **common,
        )(infer)
    return routes


def _line(station: Station, name: str, version: str | None) -> Line:
    line = station.line(name)
    active = station.registry.active(name)
    if version is not None and int(version) != active:
        raise NotFoundError(f"version {version} of {name} is not the active one, which is {active}")
    return line


def _scores(
    inspector: Inspector, images: NDArray[np.float32], batch: int
) -> Generator[None, None, dict[str, NDArray[np.float32]]]:
    """A part at a time: what the model needs for one image, it needs for each of a batch at once."""
    parts = []
    for start in range(0, len(images), batch):
        parts.append(inspector.scores(images[start : start + batch]))
        yield
    return {
        "score": np.concatenate([part.image for part in parts]),
        "anomaly_map": np.concatenate([part.anomaly_map for part in parts]),
    }
