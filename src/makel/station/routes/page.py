"""The page: files of the package, listed once, so that no name from a request is ever a path."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

from makel.errors import NotFoundError
from makel.station.declared import Declared, declared

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def router() -> APIRouter:
    """The page's endpoints. They need no token: the page holds nothing until its reader has one."""
    routes = APIRouter(include_in_schema=False, route_class=Declared)
    held = {
        item.name: (item.read_bytes(), _TYPES[item.name.rpartition(".")[2]])
        for item in files("makel.station").joinpath("page").iterdir()
        if item.name.rpartition(".")[2] in _TYPES
    }

    @routes.get("/")
    @declared(None)
    async def index() -> Response:
        content, kind = held["index.html"]
        return Response(content, media_type=kind)

    @routes.get("/favicon.ico")
    @declared(None)
    async def icon() -> Response:
        # Browsers ask for it by themselves, also where they show no page but JSON.
        content, kind = held["icon.svg"]
        return Response(content, media_type=kind)

    @routes.get("/page/{name}")
    @declared(None)
    async def file(name: str) -> Response:
        if name not in held:
            raise NotFoundError(f"the page has no file {name[:100]!r}")
        content, kind = held[name]
        return Response(content, media_type=kind)

    return routes
