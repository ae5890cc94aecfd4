"""The station over HTTP: the app, and the server that runs it until it is told to end."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

import makel
from makel.errors import UsageError
from makel.station import bodies, problems
from makel.station.access import Access, CheckAccess
from makel.station.assembly import Assembly
from makel.station.ending import DRAIN_S, STOP_S, end_within
from makel.station.http_protocol import MAX_CONNECTIONS, BoundedProtocol
from makel.station.limits import Bodies, BodyLimits
from makel.station.prometheus import Metrics
from makel.station.routes import (
    candidates,
    drift,
    health,
    history,
    inference,
    inspection,
    jobs,
    models,
    overview,
    page,
    session,
    trigger,
    versions,
    viewing,
)
from makel.station.station import Station
from makel.station.trigger import Trigger


def create_app(
    station: Station,
    access: Access,
    limits: BodyLimits | None = None,
    triggers: Mapping[str, Trigger] | None = None,
    assembly: Assembly | None = None,
) -> FastAPI:
    """The app of a station.

    Args:
        station: What decides. It is not closed with the app.
        access: Who may do what.
        limits: How much a request may bring.
        triggers: The lines that a request can trigger, by the name of their model.
        assembly: What watches over the station's models; None where nothing does yet.

    Returns:
        The app. `app.state.closing` is an event; setting it ends the live streams. `app.state.metrics` takes
        further gauges.
    """
    closing = asyncio.Event()
    app = FastAPI(
        title="makel station",
        version=makel.__version__,
        description="Judges images of parts: pass or reject, how sure, and where.",
        docs_url=None,  # both would load scripts from outside
        redoc_url=None,
    )
    assembly = assembly or Assembly.of(station)
    metrics, monitor = Metrics(station), assembly.drift
    for gauge, documentation in drift.GAUGES.items():
        metrics.add_gauge(gauge, documentation, partial(monitor.gauge, gauge))
    app.state.closing, app.state.metrics, app.state.bodies = closing, metrics, Bodies(limits or BodyLimits())
    for routes in (
        inspection.router(station),
        trigger.router(triggers or {}),
        models.router(station),
        versions.router(station),
        jobs.router(station),
        candidates.router(station, assembly.candidates),
        history.router(station, closing),
        viewing.router(station),
        inference.router(station),
        health.router(station, metrics),
        overview.router(station),
        drift.router(monitor),
        session.router(access),
        page.router(),
    ):
        app.include_router(routes)
    problems.install(app)
    app.add_middleware(CheckAccess, access=access)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]  # as FastAPI documents it
    return app


class Server(uvicorn.Server):
    """uvicorn, which ends live streams when it is told to stop: it would wait for them."""

    def __init__(self, config: uvicorn.Config, ended: Callable[[], None]) -> None:
        """Take a configuration, and what to call when told to stop."""
        super().__init__(config)
        self._ended = ended

    def end(self) -> None:
        """Accept no more, finish what was accepted, and return from `run`; from any thread."""
        self._ended()
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came: the first one ends gently."""
        end_within(STOP_S)
        self._ended()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which raises the signal again in the end: the station still has to be closed then."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0 takes a free one.

    Raises:
        UsageError: The address cannot be listened on.
    """
    _allow_open_files()
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise UsageError(
            f"{host} port {port} cannot be listened on: {error.strerror}; choose another --port"
        ) from error


def server(app: FastAPI) -> Server:
    """The server for an app: it accepts no more when told to stop, and finishes what it accepted.

    `server(app).run([listen(host, port)])`
    """
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=int(DRAIN_S),  # an upload that never ends must not keep the station from ending
    )
    return Server(config, app.state.closing.set)


def _allow_open_files() -> None:
    """Room for every connection and what the station has open beside them, where the system gives less by default."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(4 * MAX_CONNECTIONS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description of the app; what routes write by hand is added to what FastAPI finds."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            openapi_version="3.1.0",
        )
        components = schema.setdefault("components", {})
        known = components.setdefault("schemas", {})
        for body in (problems.Problem, bodies.InspectedBody, bodies.InspectedAllBody):
            described = body.model_json_schema(ref_template="#/components/schemas/{model}")
            known |= described.pop("$defs", {})
            known[body.__name__] = described
        for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form of errors is never sent
            known.pop(unused, None)
        components["securitySchemes"] = {
            "token": {"type": "http", "scheme": "bearer", "description": "Not needed on the loopback interface"}
        }
        schema["security"] = [{}, {"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema
