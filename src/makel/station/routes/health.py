"""Whether the station lives, and whether it decides."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from makel.station import bodies
from makel.station.station import Station


def router(station: Station) -> APIRouter:
    """The endpoints for a station; they need no token."""
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

    return routes
