"""Errors over HTTP: problem documents (RFC 9457), their status from `makel.errors.CODES`."""

from __future__ import annotations

import errno
import json
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from makel.errors import DiskFullError, MakelError, Overloaded, UnauthorisedError, http_status

RETRY_AFTER_S = 1
"""A full queue has room again within a second."""

GONE = 499
"""What nginx calls a client that has closed the connection."""

MEDIA_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)


class Problem(BaseModel):
    """What went wrong."""

    type: str = Field(description="The kind of error, a class of makel.errors", examples=["Overloaded"])
    title: str = Field(description="What the status means", examples=["Service Unavailable"])
    status: int = Field(examples=[503])
    detail: str = Field(
        description="One line: what came, what was expected, what to do",
        examples=["toothbrush has 64 images under way, at most 64: send it again later"],
    )
    error: str = Field(description="As detail, where clients of the Open Inference Protocol look for it")


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problems an endpoint can answer with, for OpenAPI; those that any can are added."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
            **({"headers": {"Retry-After": {"schema": {"type": "integer"}}}} if status == 503 else {}),
        }
        for status in sorted({400, 401, 403, 422, 503, *statuses})
    }


def response(status: int, kind: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    """A problem document."""
    title = HTTPStatus(status).phrase
    # `error` is where clients of the Open Inference Protocol look.
    body = json.dumps({"type": kind, "title": title, "status": status, "detail": detail, "error": detail})
    return Response(body, status, headers, MEDIA_TYPE)


def response_to(error: MakelError) -> Response:
    """The problem document of an error."""
    headers = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if isinstance(error, UnauthorisedError):
        headers["WWW-Authenticate"] = "Bearer"
    return response(http_status(error), type(error).__name__, str(error), headers)


def install(app: FastAPI) -> None:
    """Answer every error of an app with a problem document."""

    async def makel_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, MakelError)
        return response_to(error)

    async def os_error(request: Request, error: Exception) -> Response:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return response_to(DiskFullError("the station's disk is full, so nothing was kept: free some space there"))
        return await unexpected(request, error)

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return response(error.status_code, "HTTPException", str(error.detail), dict(error.headers or {}))

    async def gone(*_: object) -> Response:
        return Response(status_code=GONE)  # nobody reads it

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return response(422, "RequestValidationError", f"{where}: {first['msg']}")

    async def unexpected(request: Request, error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return response(500, type(error).__name__, "a mistake in makel; the station's log has the details")

    app.add_exception_handler(MakelError, makel_error)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(OSError, os_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)
