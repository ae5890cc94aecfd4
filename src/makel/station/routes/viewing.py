"""What people look at: a part as a browser can show it, its heat to lay over, and a good part to hold beside it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response

from makel.errors import MakelError, NotFoundError
from makel.station import bodies, drawing, problems
from makel.station.declared import Declared, declared
from makel.station.look import golden_images
from makel.station.neighbours import Neighbours
from makel.station.routes.history import Number
from makel.station.routes.models import Name, VersionNumber
from makel.station.station import Station

SIZE_HEADER = "Makel-Image-Size"
"""Width and height of the image as it came, "1024x768": what the boxes of regions refer to."""

_KEEP = {"Cache-Control": "private, max-age=600"}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": _BINARY}}}
_PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": _BINARY}}}


def router(station: Station) -> APIRouter:
    """The endpoints for a station."""
    routes = APIRouter(tags=["pictures"], route_class=Declared)
    neighbours = Neighbours(station)

    @routes.get(
        "/history/{number}/view",
        responses={**_JPEG, **problems.responses(404)},
        response_class=Response,
        response_model=None,
    )
    @declared("operator", lane="drawing")
    def view(
        number: Number,
        longest_px: Annotated[int, Query(ge=16, le=4096, description="Longer side at most")] = 1600,
    ) -> Response:
        """The image as any browser can show it, 16 bits and TIFF too; the header Makel-Image-Size has its own size."""
        recorded = station.store.get(number)
        pixels = station.decode(station.picture(recorded))
        try:
            white_level = station.inspector_of(recorded.decision).manifest.preprocessing.white_level
        except MakelError:  # the version is gone, or none answered: brightness is then the image's own matter
            white_level = None
        shown = drawing.view(pixels, longest_px=longest_px, white_level=white_level)
        size = {SIZE_HEADER: f"{pixels.shape[1]}x{pixels.shape[0]}"}
        return Response(shown, media_type="image/jpeg", headers=_KEEP | size)

    @routes.get(
        "/history/{number}/heat",
        responses={**_PNG, **problems.responses(404)},
        response_class=Response,
        response_model=None,
    )
    @declared("operator", lane="drawing")
    def heat(number: Number) -> Response:
        """The heat of a decision to lay over its image, clear where nothing is; made again by the model that judged."""
        recorded = station.store.get(number)
        if not recorded.decision.model_id:
            raise NotFoundError(f"no model answered for decision {number} ({recorded.decision.reason}): no heat")
        inspector = station.inspector_of(recorded.decision)
        verdict = station.look(inspector, station.decode(station.picture(recorded)))
        return Response(drawing.heat(verdict, inspector), media_type="image/png", headers=_KEEP)

    @routes.get(
        "/history/{number}/nearest",
        responses={200: {"model": bodies.NearestBody}, **problems.responses(404, 422)},
        response_model=None,
    )
    @declared("operator", lane="drawing")
    def nearest(number: Number) -> Response:
        """The good picture most like this one, of the same model.

        Compared with: kept pictures of parts a person called good, and of the latest parts that passed. Where there is
        none, the golden images of the model.
        """
        recorded = station.store.get(number)
        if not recorded.decision.model_id:
            raise NotFoundError(f"no model answered for decision {number}: nothing to compare it with")
        found = neighbours.nearest(recorded)
        version = station.registry.of(recorded.decision.model, recorded.decision.model_id)
        return JSONResponse(
            {
                "number": found.number,
                "golden": found.golden,
                "version": version.version if version else None,
                "difference": round(found.difference, 6),
                "n_compared": found.n_compared,
            }
        )

    @routes.get(
        "/models/{name}/golden/{index}",
        responses={**_JPEG, **problems.responses(404)},
        response_class=Response,
        response_model=None,
    )
    @declared("operator", lane="drawing")
    def golden(name: Name, index: Annotated[int, Path(ge=0, le=10_000)], version: VersionNumber = None) -> Response:
        """A good image of the fit, at the size the model sees."""
        images = golden_images(station.inspector(name, version))
        if index >= len(images):
            raise NotFoundError(f"{name} has {len(images)} golden images, counted from 0: there is no {index}")
        shown = drawing.view(images[index], longest_px=4096)
        size = {SIZE_HEADER: f"{images[index].shape[1]}x{images[index].shape[0]}"}
        return Response(shown, media_type="image/jpeg", headers=size)

    return routes
