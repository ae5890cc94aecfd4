"""A browser's session: the token as a cookie that scripts cannot read, so that pictures and streams load with it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, Response

from makel.station import bodies, problems
from makel.station.access import COOKIE, Access, Principal
from makel.station.declared import Declared, declared


def router(access: Access) -> APIRouter:
    """The endpoints for the access rules of a station."""
    routes = APIRouter(prefix="/session", tags=["session"], route_class=Declared)

    @routes.get("", responses={200: {"model": bodies.SessionBody}, **problems.responses()}, response_model=None)
    @declared(None)
    async def who(request: Request) -> Response:
        """Who asks, and whether a token is needed."""
        return _answer(access, request.state.principal)

    @routes.post("", responses={200: {"model": bodies.SessionBody}, **problems.responses()}, response_model=None)
    @declared(None, body="json")
    def enter(token: Annotated[str, Body(embed=True, max_length=200)]) -> Response:
        """Begin a session with a token."""
        answer = _answer(access, access.tokens.owner(token))
        # Not `secure`: a plant's network mostly has no certificates, and the browser would drop the cookie.
        answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", path="/")
        return answer

    @routes.delete("", status_code=204, responses=problems.responses(), response_class=Response)
    @declared(None)
    async def leave() -> Response:
        """End a session."""
        answer = Response(status_code=204)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")
        return answer

    return routes


def _answer(access: Access, who: Principal | None) -> Response:
    body = {"name": who.name if who else None, "role": who.role if who else None, "token_needed": access.token_needed}
    return JSONResponse(body)
