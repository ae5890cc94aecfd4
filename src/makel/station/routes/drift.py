"""Whether each line is still the one its model was calibrated for."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from makel.station import bodies, problems
from makel.station.declared import Declared, declared
from makel.station.drift import Drift

GAUGES = {
    "makel_drift": "1 where the latest block of parts is not what the model was calibrated for, else 0.",
    "makel_drift_p_value": "Of the hypothesis that passing parts of the latest block score as the calibration images.",
    "makel_reject_rate": "Share of the latest 200 judged parts that were rejected.",
}


def router(monitor: Drift) -> APIRouter:
    """The endpoint for what follows a station's lines."""
    routes = APIRouter(tags=["health"], route_class=Declared)

    @routes.get("/drift", responses={200: {"model": bodies.DriftBody}, **problems.responses()}, response_model=None)
    @declared("operator")
    def drift() -> Response:
        """How each model's line stands: what changed if anything, since when, and the numbers it rests on."""
        return JSONResponse({"models": [state.to_json() for state in monitor.states()]})

    return routes
