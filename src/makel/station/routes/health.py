"""Whether the station lives, whether it decides, and its numbers."""

from __future__ import annotations

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from makel.station import bodies, problems
from makel.station.access import needs
from makel.station.prometheus import CONTENT_TYPE, Metrics
from makel.station.station import Station


def router(station: Station, metrics: Metrics) -> APIRouter:
    """The endpoints for a station. Health needs no token, the metrics do."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", responses={200: {"model": bodies.AliveBody}}, response_model=None)
    async def healthz() -> Response:
        """The process answers."""
        return JSONResponse({"alive": True})

    @routes.get(
        "/readyz",
        responses={200: {"model": bodies.ReadyBody}, 503: {"model": bodies.ReadyBody}},
        response_model=None,
    )
    def readyz() -> Response:
        """Whether images are decided; 503 where not. Warnings are what needs somebody all the same."""
        obstacles = station.obstacles()
        ready = {"ready": not obstacles, "obstacles": obstacles, "warnings": station.warnings()}
        return JSONResponse(ready, 503 if obstacles else 200)

    @routes.get(
        "/metrics",
        responses={200: {"content": {"text/plain": {}}}, **problems.responses()},
        response_class=Response,
        dependencies=[Depends(needs("operator"))],
    )
    def numbers() -> Response:
        """For Prometheus."""
        return Response(metrics.page(), media_type=CONTENT_TYPE)

    return routes
