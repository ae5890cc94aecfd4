"""POST /trigger/{line}: a part is there, take its picture from the line's folder and decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from makel.errors import NotFoundError
from makel.station import bodies, problems
from makel.station.declared import Declared, declared
from makel.station.routes.inspection import body
from makel.station.trigger import Trigger


def router(triggers: Mapping[str, Trigger]) -> APIRouter:
    """The endpoint for the triggered lines of a station, by the name of their model."""
    routes = APIRouter(tags=["inspection"], route_class=Declared)

    @routes.post(
        "/trigger/{line}",
        summary="Decide the part that is there now",
        responses={200: {"model": bodies.InspectedBody}, **problems.responses(404)},
        response_model=None,
    )
    @declared("operator", lane="inspecting")
    def trigger(
        line: Annotated[str, Path(max_length=64, description="The name of its model")],
        name: Annotated[str, Query(max_length=500, description="The part's name; else that of its file")] = "",
    ) -> Response:
        """The next picture in the line's folder is that part's. Without one in time the part is a fail-safe reject.

        503 while the part before is not decided yet.
        """
        if line not in triggers:
            known = ", ".join(triggers) or "none; 'makel serve --trigger NAME=FOLDER' makes one"
            raise NotFoundError(f"{line!r} is no line with a trigger; there are {known}")
        return JSONResponse(body(triggers[line].take(part=name, source="trigger")))

    return routes
