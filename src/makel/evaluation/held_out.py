"""Good images that a model was not fitted on, as it scores them: what its thresholds come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from makel.errors import ImageError
from makel.images import Preparation, decode_all, open_rows, prepare, shown
from makel.model.layout import ModelLayout
from makel.model.scan import Run, Scan
from makel.model.tiling import Tiling

Found = TypeVar("Found")


@dataclass(frozen=True)
class HeldOut:
    """What became of a list of good images.

    Attributes:
        paths: Those that could be read.
        scores: (N,) image scores.
        peaks: (N, parts) highest value of each map in each part of the image.
        images: The first of them as prepared, each (3, H, W) float32; with tiles, the tile of each on which its verdict
            rests.
        unreadable: One error for each of the others.
    """

    paths: tuple[Path, ...]
    scores: NDArray[np.float32]
    peaks: NDArray[np.float32]
    images: tuple[NDArray[np.float32], ...]
    unreadable: tuple[ImageError, ...]


@dataclass(frozen=True)
class Scored:
    """One image: its score, (parts,) the highest values of its map, and what the model took, (3, H, W) float32."""

    score: float
    peaks: NDArray[np.float32]
    image: NDArray[np.float32]


def score_held_out(
    run: Run,
    paths: Sequence[Path],
    preparation: Preparation,
    layout: ModelLayout,
    tiling: Tiling | None = None,
    *,
    keep: int = 0,
    check: Callable[[Path], None] = lambda _path: None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> HeldOut:
    """Score images one by one, as they will be on the line.

    Args:
        run: What runs the model.
        paths: The images.
        preparation: How they are prepared.
        layout: The parts of the input that have a threshold each.
        tiling: How images are cut; None for whole.
        keep: How many of `HeldOut.images` to keep.
        check: Raises an ImageError for a file that is no longer what it was; called after each was read.
        progress: Called with how many are done, and how many there are.
    """
    whole = _each_whole(run, paths, preparation, layout)
    each = whole if tiling is None else _each_in_tiles(run, paths, preparation, tiling)
    read: list[Path] = []
    found: list[Scored] = []
    images: list[NDArray[np.float32]] = []
    unreadable: list[ImageError] = []
    for done, (path, scored) in enumerate(each, start=1):
        if not isinstance(scored, ImageError):
            scored = checked(path, scored, check)
        if isinstance(scored, ImageError):
            unreadable.append(scored)
        else:
            read.append(path)
            found.append(scored)
            if len(images) < keep:
                images.append(scored.image)
        progress(done, len(paths))
    return HeldOut(
        tuple(read),
        np.array([scored.score for scored in found], np.float32),
        np.array([scored.peaks for scored in found], np.float32).reshape(-1, 1 + len(layout.judged)),
        tuple(images),
        tuple(unreadable),
    )


def checked(path: Path, found: Found, check: Callable[[Path], None]) -> Found | ImageError:
    """What was made of a file, or the error where the file is no longer what it was."""
    try:
        check(path)
    except ImageError as error:
        return error
    return found


def scan_image(run: Run, path: Path, preparation: Preparation, tiling: Tiling) -> Scored:
    """Score one image in tiles: the score is the highest of the tiles', the peak that of the blended map.

    Raises:
        ImageError: It cannot be read, or is not of the kind the model was fitted on.
    """
    with open_rows(path) as rows:
        scan = Scan(rows, tiling, preparation, run, name=shown(path))
        peak = max(float(band.max()) for band in scan.bands())
        (top, left), high = scan.worst, tiling.cut(rows.shape[0]).side_px
        tile = rows.read(top, top + high)[:, left : left + tiling.cut(rows.shape[1]).side_px]
        return Scored(scan.score, np.array([peak], np.float32), prepare(tile, preparation, name=shown(path)))


def _each_whole(
    run: Run, paths: Sequence[Path], preparation: Preparation, layout: ModelLayout
) -> Iterator[tuple[Path, Scored | ImageError]]:
    for path, image in decode_all(paths, preparation=preparation):
        if isinstance(image, ImageError):
            yield path, image
            continue
        out = run(image[None])
        yield path, Scored(float(out.image[0]), layout.peaks(out.anomaly_map[0, 0]), image)


def _each_in_tiles(
    run: Run, paths: Sequence[Path], preparation: Preparation, tiling: Tiling
) -> Iterator[tuple[Path, Scored | ImageError]]:
    for path in paths:
        try:
            yield path, scan_image(run, path, preparation, tiling)
        except ImageError as error:
            yield path, error
