"""How the station does: latency, queues, pictures, disk, and whether the record is as it was written."""

from __future__ import annotations

import shutil
import threading
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from makel.station import bodies, problems
from makel.station.decisions import now
from makel.station.declared import Declared, declared
from makel.station.station import Station

_RECENT = 500


def router(station: Station) -> APIRouter:
    """The endpoints for a station."""
    routes = APIRouter(tags=["health"], route_class=Declared)
    verified: dict[str, Any] = {}
    verifying = threading.Lock()

    @routes.get(
        "/overview", responses={200: {"model": bodies.OverviewBody}, **problems.responses()}, response_model=None
    )
    @declared("operator")
    def overview() -> Response:
        """Latency of the latest decisions, queues, pictures, disk and record."""
        latencies = [each.decision.latency_ms for each in station.store.find(limit=_RECENT)]
        percentiles = np.percentile(latencies, (50, 95, 99)).round(2).tolist() if latencies else [None] * 3
        head, disk = station.store.head(), shutil.disk_usage(station.folder)
        return JSONResponse(
            {
                "obstacles": station.obstacles(),
                "warnings": station.warnings(),
                "latency_ms": {"n": len(latencies), **dict(zip(("p50", "p95", "p99"), percentiles, strict=True))},
                "lines": [
                    {"name": name, "depth": station.line(name).depth, "queue": station.settings.queue}
                    for name in station.models()
                ],
                "refused": station.refused,
                "pictures": {
                    "shelves": {
                        shelf: {"n": n, "size_bytes": size_bytes}
                        for shelf, (n, size_bytes) in station.pictures.usage().items()
                    },
                    "limit_bytes": station.pictures.limits.size_bytes,
                    "disk_free_bytes": disk.free,
                    "disk_total_bytes": disk.total,
                },
                "record": {
                    "entries": head.entry,
                    "decisions": head.number,
                    "waiting": station.waiting,
                    "verified": dict(verified) or None,
                },
            }
        )

    @routes.post(
        "/record/verify", responses={200: {"model": bodies.VerifiedBody}, **problems.responses()}, response_model=None
    )
    @declared("operator", lane="changing")
    def verify() -> Response:
        """Check every entry of the record and the chain that holds them together. A long record takes a while."""
        with verifying:
            head = station.store.head()
            broken = station.store.verify(None, lambda _done, _total: None)
            verified.update(at=now(), entry=head.entry, problem=str(broken) if broken else "")
            return JSONResponse(dict(verified))

    return routes
