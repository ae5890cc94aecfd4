"""`makel fit --latency-budget`: the input size and backbone that keep a time per image on this machine, by measurement.

What is promised is the 99th percentile of the time from a decoded image to its verdict, one image at a time: resize,
network, map at the image's own size, regions. Decoding a file of the same kind is measured too and stated beside it,
since a camera on the line hands over pixels and a folder of PNG files does not.

A candidate is measured as what it would become: fitted on a few of the good images for one pass, exported, opened by
the `Inspector`. Its weights are of no use, its time is that of the real model. No label is looked at; among the
candidates that keep the budget the order of preference is

1. the larger input, up to what the images can fill: what is smaller than a few of the model's pixels is lost to every
   backbone;
2. at that size, the larger backbone.

A larger input or backbone is taken to be no faster, so that five measurements at most find the choice. The model that
comes out of the fit is measured again, on real images, and its folder says both figures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from math import ceil, prod
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from makel.datasets import Dataset, distinct
from makel.errors import DatasetError, ImageError, UsageError, WeightsError
from makel.images import decode_all, read
from makel.model.folder import ModelFolder, open_folder
from makel.model.inspector import Inspector
from makel.model.manifest import RUNS, Draft, Latency, Manifest, Tried
from makel.model.session import default_threads, open_session
from makel.training.detector import DetectorConfig, as_shape
from makel.training.facts import facts_of
from makel.training.features import Progress
from makel.training.weights import find
from makel.types import Sample, Shape, in_px

SIZES = (128, 192, 224, 256, 320, 384)
"""Sides of squares of as many pixels as a candidate sees."""

BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
"""One family, smallest first; those whose weights are on this machine take part."""

HEADROOM = 0.9
"""Share of the budget a candidate may take: the finished model is measured again, and no two measurements agree."""

N_PROBE = 8
"""Good images a candidate is fitted on and measured with."""

CALLS = 200
LIMIT_S = 10.0
"""A model is timed over so many calls, or for so long where that comes first."""

_LEAST_CALLS = 20
_WARM_UP = 5


@dataclass(frozen=True)
class Choice:
    """What to fit.

    Attributes:
        size: Height and width of the input, in pixels.
        backbone: Name of the backbone; "" for a method without one.
        tried: Every candidate that was measured, in that order.
    """

    size: Shape
    backbone: str
    tried: tuple[Tried, ...]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated calls: median, 99th percentile, and how many calls."""

    p50_ms: float
    p99_ms: float
    n_calls: int


def check_budget(budget_ms: float) -> float:
    """The budget, if it is one.

    Raises:
        UsageError: It is not a positive number.
    """
    if not 0 < budget_ms < float("inf"):
        raise UsageError(f"a latency budget of {budget_ms} ms cannot be kept: give milliseconds above 0")
    return budget_ms


def choose(
    budget_ms: float,
    dataset: Dataset,
    config: DetectorConfig,
    *,
    given: Container[str],
    shape_of: Callable[[int], Shape],
    build: Callable[[DetectorConfig], object],
    fit: Callable[..., object],
    progress: Progress,
) -> Choice:
    """Size and backbone for a budget.

    Args:
        budget_ms: What a decoded image may take at the 99th percentile.
        dataset: The good images.
        config: The settings as they would be without a budget.
        given: Settings that the user chose, and that stay.
        shape_of: Height and width of the input for as many pixels as a square of this side has.
        build: Builds an unfitted detector, or refuses the settings with a UsageError.
        fit: `makel.fit` but for the images, the folder, `size` and `backbone`.
        progress: Called as candidates are measured.

    Raises:
        UsageError: No candidate keeps the budget, or none can be built.
        DatasetError: The images cannot be used.
    """
    samples, images = _first_readable(dataset)
    few = replace(dataset, good=samples, test=())
    names = backbones_for(config.backbone, fixed="backbone" in given)
    side, longest_px = config.size[0], max(max(each.shape[:2]) for each in images)
    sides = (side,) if "size" in given else sizes_for(side, longest_px)
    sizes = sorted({shape_of(each) for each in sides}, key=lambda shape: (prod(shape), shape))
    usable = [size for size in sizes if _builds(build, replace(config, size=size, backbone=names[0]))]
    if not usable:
        build(replace(config, size=shape_of(side), backbone=names[0]))
    most = len(usable).bit_length() + len(names) - 1
    n_measured = 0

    def measure(size: Shape, backbone: str) -> Timing:
        nonlocal n_measured
        with TemporaryDirectory() as folder:
            fit(few, Path(folder) / "model", size=size, backbone=backbone or None)
            timing = time_model(open_folder(Path(folder) / "model", verify=False), images)
        n_measured += 1
        progress("latency", n_measured, most)
        return timing

    return search(usable, names, budget_ms, measure)


def backbones_for(name: str, *, fixed: bool) -> tuple[str, ...]:
    """The backbones to choose from, smallest first: one, if it is fixed, "" or none of `BACKBONES`."""
    if fixed or not name or facts_of(name).name not in BACKBONES:
        return (name,)
    return tuple(each for each in BACKBONES if _is_here(each)) or (name,)


def sizes_for(size: int, longest_px: int) -> tuple[int, ...]:
    """Sides of squares to choose from, ascending: the preset's own, smaller, and larger ones that images can fill."""
    enough = next((each for each in SIZES if each >= longest_px), SIZES[-1])
    return tuple(sorted(each for each in {*SIZES, size} if each <= max(enough, size)))


def search(
    sizes: Sequence[Shape], backbones: Sequence[str], budget_ms: float, measure: Callable[[Shape, str], Timing]
) -> Choice:
    """The preferred candidate that keeps the budget.

    Args:
        sizes: Heights and widths of the input, ascending in pixels.
        backbones: Ascending.
        budget_ms: What a decoded image may take at the 99th percentile.
        measure: Times one candidate.

    Raises:
        UsageError: None keeps it; the message says what the fastest takes.
    """
    tried: list[Tried] = []

    def keeps(size: Shape, backbone: str) -> bool:
        timing = measure(size, backbone)
        tried.append(Tried(size=size, backbone=backbone, p99_ms=timing.p99_ms))
        return timing.p99_ms <= HEADROOM * budget_ms

    # The first size that the smallest backbone is too slow for: all before it are fast enough.
    count = bisect_left(sizes, True, key=lambda size: not keeps(size, backbones[0]))
    if not count:
        fastest = min(tried, key=lambda each: each.p99_ms)
        size_px = in_px(as_shape(fastest.size))
        name = f"{fastest.backbone} at {size_px}" if fastest.backbone else size_px
        raise UsageError(
            f"a latency budget of {budget_ms:g} ms cannot be kept on this machine: the fastest there is, {name}, takes "
            f"{fastest.p99_ms:.1f} ms at the 99th percentile from a decoded image to its verdict, and a tenth of the "
            f"budget must be left. Give {ceil(fastest.p99_ms / HEADROOM)} ms or more, or use a faster machine"
        )
    size = sizes[count - 1]
    backbone = next((name for name in reversed(backbones[1:]) if keeps(size, name)), backbones[0])
    return Choice(size, backbone, tuple(tried))


def time_model(folder: ModelFolder, images: Sequence[NDArray[Any]]) -> Timing:
    """Time from decoded image to verdict, as it will be on the line.

    Args:
        folder: A model folder.
        images: Decoded images, used in turn.
    """
    inspector = Inspector(folder, open_session(folder, threads=threads()))
    return _time(lambda turn: inspector.inspect(images[turn % len(images)]))


def keep_promise(choice: Choice, budget_ms: float, draft: Draft, stage: Path, paths: Sequence[Path]) -> Latency:
    """Measure the finished model, before its folder is sealed.

    Args:
        choice: What was chosen.
        budget_ms: What was promised.
        draft: The model's manifest so far.
        stage: The folder that holds its files.
        paths: Real images.
    """
    name = RUNS[draft.runtime]
    manifest = Manifest.seal(draft, {name: sha256((stage / name).read_bytes()).hexdigest()})
    files = [path for path, image in decode_all(paths[:N_PROBE]) if not isinstance(image, ImageError)]
    images = [read(path) for path in files]
    timing = time_model(ModelFolder(stage, manifest), images)
    decoding = _time(lambda turn: read(files[turn % len(files)]), calls=5 * len(files))
    height_px, width_px = max((image.shape[:2] for image in images), key=lambda shape: shape[0] * shape[1])
    return Latency(
        budget_ms=budget_ms,
        p50_ms=timing.p50_ms,
        p99_ms=timing.p99_ms,
        n_calls=timing.n_calls,
        threads=threads(),
        image_px=(width_px, height_px),
        decode_p99_ms=decoding.p99_ms,
        tried=choice.tried,
    )


def threads() -> int:
    """What an inspector takes by itself, or fewer where the fit was told to use fewer."""
    return min(default_threads(), torch.get_num_threads())


def _first_readable(dataset: Dataset) -> tuple[tuple[Sample, ...], list[NDArray[Any]]]:
    samples = distinct(dataset.good)[:N_PROBE]
    decoded = [image for _, image in decode_all(sample.image_path for sample in samples)]
    images = [image for image in decoded if not isinstance(image, ImageError)]
    if not images:
        raise DatasetError(f"none of the first {len(samples)} good images can be read; the first says: {decoded[0]}")
    chosen = [sample for sample, image in zip(samples, decoded, strict=True) if not isinstance(image, ImageError)]
    return tuple(chosen), images


def _builds(build: Callable[[DetectorConfig], object], config: DetectorConfig) -> bool:
    """Whether a method takes these settings: many halve their maps a number of times."""
    try:
        build(config)
    except UsageError:
        return False
    return True


def _time(call: Callable[[int], object], calls: int = CALLS) -> Timing:
    elapsed_ms: list[float] = []
    began = perf_counter()
    for turn in range(-_WARM_UP, calls):
        started = perf_counter()
        call(turn)
        now = perf_counter()
        if turn >= 0:
            elapsed_ms.append(1000 * (now - started))
        if len(elapsed_ms) >= _LEAST_CALLS and now - began > LIMIT_S:
            break
    # The higher of two neighbours: a promise is not interpolated.
    p50, p99 = np.percentile(elapsed_ms, [50, 99], method="higher").tolist()
    return Timing(round(p50, 3), round(p99, 3), len(elapsed_ms))


def _is_here(name: str) -> bool:
    try:
        find(facts_of(name), online=False)
    except WeightsError:
        return False
    return True
