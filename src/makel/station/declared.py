"""What a route asks of those who call it, declared on the route: a role, what it takes, and which threads it may use.

    routes = APIRouter(route_class=Declared)

    @routes.post("/models/{name}/candidates")
    @declared("engineer", body="json")
    def begin(...): ...

A route without a declaration cannot be made, and role, site and size are checked before anything of a body is read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from makel.station.access import Role, check_role, check_site
from makel.station.limits import Bodies, Body

Result = TypeVar("Result")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

Lane = Literal["health", "reading", "drawing", "changing", "inspecting", "parsing"]
_THREADS: dict[Lane, int] = {"health": 2, "reading": 16, "drawing": 2, "changing": 4, "inspecting": 16, "parsing": 1}
"""Threads of each lane: whatever fills one of them, the others go on."""

_limiters: RunVar[dict[Lane, CapacityLimiter]] = RunVar("makel-lanes")


@dataclass(frozen=True)
class Declaration:
    """What a route asks.

    Attributes:
        role: What whoever calls it must be at least; None for anybody, also somebody unknown or on another site's page.
        body: What it takes.
        lane: Where its work is done, if it is no coroutine.
    """

    role: Role | None
    body: Body
    lane: Lane


def declared(role: Role | None, *, body: Body = "nothing", lane: Lane = "reading") -> Callable[[Endpoint], Endpoint]:
    """Declare what the route of an endpoint asks; see `Declaration`."""

    def declare(endpoint: Endpoint) -> Endpoint:
        made: Any = endpoint if inspect.iscoroutinefunction(endpoint) else _in_lane(endpoint, lane)
        made.makel_declaration = Declaration(role, body, lane)
        result: Endpoint = made
        return result

    return declare


class Declared(APIRoute):
    """A route that holds its callers to its declaration."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        """As `APIRoute`; the endpoint has a declaration."""
        if not hasattr(endpoint, "makel_declaration"):
            raise TypeError(f"{path} has no declaration: put @declared(...) below its route")
        self.declaration: Declaration = endpoint.makel_declaration
        super().__init__(path, endpoint, **settings)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that may be served."""
        if self.declaration.role is not None:
            check_site(Headers(scope=scope))
            check_role(scope["state"]["principal"], self.declaration.role)
        bodies: Bodies = scope["app"].state.bodies
        async with bodies.bounded(scope, receive, self.declaration.body) as bounded:
            await super().handle(scope, bounded, send)


async def run_in(lane: Lane, work: Callable[[], Result]) -> Result:
    """Do something that blocks in a thread of a lane; waits until one is free."""
    try:
        limiters = _limiters.get()
    except LookupError:
        _limiters.set(limiters := {each: CapacityLimiter(n) for each, n in _THREADS.items()})
    return await anyio.to_thread.run_sync(work, limiter=limiters[lane])


def _in_lane(endpoint: Callable[..., Any], lane: Lane) -> Callable[..., Any]:
    async def in_lane(*args: Any, **kwargs: Any) -> Any:
        return await run_in(lane, functools.partial(endpoint, *args, **kwargs))

    functools.update_wrapper(in_lane, endpoint)
    del in_lane.__wrapped__  # type: ignore[attr-defined]  # FastAPI would take it for the blocking function behind it
    in_lane.__signature__ = inspect.signature(endpoint, eval_str=True)  # type: ignore[attr-defined]
    return in_lane
