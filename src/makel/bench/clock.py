"""Inference times of all methods by one clock: in one process, one after the other, with nothing else running.

Inside the clock is what a line waits for: from decoded pixels to the verdict, thus resizing and scaling, the network,
the map brought to the image's size, thresholds and regions. A second column has reading and decoding the file as well,
which then lies in the system's cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from makel.bench.measure import machine
from makel.errors import MakelError
from makel.images import read
from makel.model.inspector import Image, Inspector

CALLS = 200
SECONDS = 15.0
"""A method is timed over so many calls, or for so long where that comes first, but at least `LEAST_CALLS`."""

LEAST_CALLS = 5
WARM_UP = 10
_WARM_UP_SECONDS = 5.0
IMAGES = 8


@dataclass(frozen=True)
class Race:
    """What is timed.

    Attributes:
        models: Model folders by the key of their variant, in the order they run.
        images: Image files, used in turn.
        device: Where they were fitted; for the record.
        provider: What they run on.
        threads: Threads each may use.
    """

    models: tuple[tuple[str, Path], ...]
    images: tuple[Path, ...]
    device: str
    provider: str
    threads: int


def race(job: Race) -> dict[str, Any]:
    """Milliseconds by variant: `median`, `p95` and number of `calls`; the same from the file under `from_file`.

    Where a model cannot be timed, `error` says why.
    """
    try:
        return _race(job)
    except MakelError as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _race(job: Race) -> dict[str, Any]:
    decoded = [read(path) for path in job.images]
    times = {}
    for key, model in job.models:
        inspector = Inspector.load(model, threads=job.threads, provider=job.provider)
        times[key] = {
            "decoded": _time(inspector, decoded),
            "from_file": _time(inspector, job.images),
        }
    shapes = sorted({f"{image.shape[1]}x{image.shape[0]}" for image in decoded})
    return {"times": times, "images": shapes, "machine": machine(job.device, job.provider, job.threads)}


def _time(inspector: Inspector, images: Sequence[Image]) -> dict[str, float]:
    began = perf_counter()
    for turn in range(WARM_UP):
        inspector.inspect(images[turn % len(images)])
        if perf_counter() - began > _WARM_UP_SECONDS:
            break
    elapsed_ms: list[float] = []
    began = perf_counter()
    while len(elapsed_ms) < LEAST_CALLS or (len(elapsed_ms) < CALLS and perf_counter() - began < SECONDS):
        image = images[len(elapsed_ms) % len(images)]
        started = perf_counter()
        inspector.inspect(image)
        elapsed_ms.append(1000 * (perf_counter() - started))
    median, p95 = np.percentile(elapsed_ms, [50, 95]).tolist()
    return {"median": round(median, 3), "p95": round(p95, 3), "calls": len(elapsed_ms)}
