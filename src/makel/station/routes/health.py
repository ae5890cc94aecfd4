"""Whether the station lives, whether it decides, and its numbers."""

from __future__ import annotations

import re

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from makel.station import bodies, problems
from makel.station.declared import Declared, declared
from makel.station.prometheus import CONTENT_TYPE, Metrics
from makel.station.station import Station

_PATH = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:)?[/\\](?:[^/\\\n'\":]*[^/\\\n'\":,;\s][/\\])*")


def router(station: Station, metrics: Metrics) -> APIRouter:
    """The endpoints for a station. Health needs no token, the metrics do."""
    routes = APIRouter(tags=["health"], route_class=Declared)

    @routes.get("/healthz", responses={200: {"model": bodies.AliveBody}}, response_model=None)
    @declared(None)
    async def healthz() -> Response:
        """The process answers."""
        return JSONResponse({"alive": True})

    @routes.get(
        "/readyz",
        responses={200: {"model": bodies.ReadyBody}, 503: {"model": bodies.ReadyBody}},
        response_model=None,
    )
    @declared(None, lane="health")
    def readyz() -> Response:
        """Whether images are decided; 503 where not. Warnings are what needs somebody all the same."""
        obstacles = station.obstacles()
        said = {"obstacles": obstacles, "warnings": station.warnings()}
        ready = {"ready": not obstacles, **{key: [without_paths(each) for each in said[key]] for key in said}}
        return JSONResponse(ready, 503 if obstacles else 200)

    @routes.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {}}}, **problems.responses()},
        response_class=Response,
    )
    @declared("operator", lane="health")
    def numbers() -> Response:
        """For Prometheus."""
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    return routes


def without_paths(text: str) -> str:
    """A message for anybody: of a path of this machine it keeps the last part."""
    return _PATH.sub("", text)
