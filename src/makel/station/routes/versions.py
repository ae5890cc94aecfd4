"""What a version of a model makes of scores and images, before and after it judges."""

from __future__ import annotations

from base64 import b64encode
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from makel.calibration import Calibration, calibrate
from makel.errors import UsageError
from makel.station import bodies, drawing, problems
from makel.station.declared import Declared, declared, run_in
from makel.station.filters import Filter
from makel.station.routes.models import Name, VersionNumber
from makel.station.station import Station

_RECENT = 500
_LEVELS = 400
_IMAGE = {
    "required": True,
    "content": {
        kind: {"schema": {"type": "string", "format": "binary"}} for kind in ("image/*", "application/octet-stream")
    },
}


def router(station: Station) -> APIRouter:
    """The endpoints for a station."""
    routes = APIRouter(tags=["models"], route_class=Declared)

    @routes.get(
        "/models/{name}/thresholds",
        responses={200: {"model": bodies.ThresholdsBody}, **problems.responses(404)},
        response_model=None,
    )
    @declared("operator")
    def thresholds(
        name: Name,
        version: VersionNumber = None,
        false_reject: Annotated[
            float | None, Query(gt=0, lt=1, description="The budget to explain; its own where none is given")
        ] = None,
    ) -> Response:
        """The scores of held-out good images, every threshold they offer, and what each promises."""
        inspector = station.inspector(name, version)
        calibration = inspector.calibration
        asked = calibration
        if false_reject is not None:
            asked = calibrate(
                calibration.image_scores, calibration.pixel_peaks, false_reject=false_reject, scheme=calibration.scheme
            )
        of_version = station.registry.of(name, inspector.model_id)
        latest = station.store.find(Filter(model=name, of_the_line=True), limit=_RECENT)
        mine = (each.decision for each in latest if each.decision.model_id == inspector.model_id)
        return JSONResponse(
            {
                "version": of_version.version if of_version else 0,
                "model_id": inspector.model_id,
                "scheme": calibration.scheme,
                "scores": list(calibration.image_scores),
                "recent": [decision.score for decision in mine if decision.score is not None],
                "image_threshold": asked.image_threshold,
                "promised_false_reject": asked.promised_false_reject,
                "requested_false_reject": asked.requested_false_reject,
                "levels": _levels(calibration),
                "explanation": asked.explain(),
            }
        )

    @routes.post(
        "/models/{name}/try",
        responses={200: {"model": bodies.TriedBody}, **problems.responses(404, 413, 422)},
        response_model=None,
        openapi_extra={"requestBody": _IMAGE},
    )
    @declared("operator", body="image")
    async def try_out(request: Request, name: Name, version: VersionNumber = None) -> Response:
        """What a version says of an image. Nothing is recorded, and no line is asked."""
        image = await request.body()
        if not image:
            raise UsageError("no image came: send the bytes of an image file as the body")
        return JSONResponse(await run_in("drawing", lambda: _tried(station, name, version, image)))

    return routes


def _levels(calibration: Calibration) -> list[dict[str, float]]:
    """Every rate the images can promise up to one half, with its threshold."""
    n = calibration.n
    ranks = range(1, max(2, (n + 1) // 2 + 1))
    own = round(calibration.promised_false_reject * (n + 1))
    rates = [rank / (n + 1) for rank in sorted({own, *ranks[:: -(-len(ranks) // _LEVELS)]})]
    return [{"false_reject": rate, "threshold": calibration.threshold_for(rate)} for rate in rates]


def _tried(station: Station, name: str, version: int | None, image: bytes) -> dict[str, Any]:
    inspector = station.inspector(name, version)
    pixels = station.decode(image)
    verdict = station.look(inspector, pixels)
    shown = drawing.view(pixels, longest_px=800, white_level=inspector.manifest.preprocessing.white_level)
    said = verdict.to_json()
    return {
        **{key: said[key] for key in ("verdict", "score", "threshold", "p_value", "regions", "zones")},
        "size_px": [pixels.shape[1], pixels.shape[0]],
        "view_jpg": b64encode(shown).decode("ascii"),
        "heat_png": b64encode(drawing.heat(verdict, inspector)).decode("ascii"),
    }
