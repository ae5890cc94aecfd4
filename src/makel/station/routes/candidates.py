"""Candidates: what people said of parts becomes a version that may judge, once it has shown that it may."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import JSONResponse, Response

from makel.station import bodies, problems
from makel.station.access import Known
from makel.station.advice import advise
from makel.station.candidates import Candidates
from makel.station.declared import Declared, declared
from makel.station.routes.models import Name, version_body
from makel.station.station import Station

CandidateId = Annotated[str, Path(pattern="^[0-9a-f]{12}$")]


def router(station: Station, candidates: Candidates) -> APIRouter:
    """The endpoints for a station's candidates."""
    routes = APIRouter(tags=["models"], route_class=Declared)

    @routes.get(
        "/models/{name}/candidates",
        responses={200: {"model": bodies.CandidatesBody}, **problems.responses(404)},
        response_model=None,
    )
    @declared("operator")
    def listed(name: Name) -> Response:
        """The last candidates of a model, newest first, and which kind fits what people said of the rejects."""
        advice = asdict(advise(station, name))
        return JSONResponse({"advice": advice, "candidates": [each.to_json() for each in candidates.all(name)]})

    @routes.post(
        "/models/{name}/candidates",
        status_code=202,
        responses={202: {"model": bodies.CandidateBody}, **problems.responses(404)},
        response_model=None,
    )
    @declared("engineer", body="json", lane="changing")
    def begin(name: Name, wanted: bodies.CandidateRequestBody, who: Known) -> Response:
        """Make a candidate of the good parts people and the model know of, and compare it with what judges now."""
        candidate = candidates.begin(
            name, wanted.kind, false_reject=wanted.false_reject, join=wanted.join, by=who.name, role=who.role
        )
        return JSONResponse(candidate.to_json(), 202)

    @routes.get(
        "/models/{name}/candidates/{candidate_id}",
        responses={200: {"model": bodies.CandidateBody}, **problems.responses(404)},
        response_model=None,
    )
    @declared("operator")
    def candidate(name: Name, candidate_id: CandidateId) -> Response:
        """One candidate: how far it is, what it is made of, and which parts it judges differently."""
        return JSONResponse(candidates.get(name, candidate_id).to_json())

    @routes.post(
        "/models/{name}/candidates/{candidate_id}/activate",
        responses={200: {"model": bodies.VersionBody}, **problems.responses(404, 409)},
        response_model=None,
    )
    @declared("engineer", lane="changing")
    def activate(name: Name, candidate_id: CandidateId, who: Known) -> Response:
        """Let a candidate judge that passed the comparison; 409 where it did not. The way back is a rollback."""
        return JSONResponse(version_body(candidates.activate(name, candidate_id, by=who.name, role=who.role)))

    return routes
