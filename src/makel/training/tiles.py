"""Which tiles of the good images a tiled model is fitted on, and how they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from makel.errors import DatasetError, ImageError
from makel.images import Preparation, open_rows, prepare, read_header, shown, work_ahead
from makel.model.tiling import Tiling

MAX_TILES = 1000
"""Tiles fitted on at most, or one an image: what a method learns from a thousand, more hardly change."""


@dataclass(frozen=True)
class TilePlan:
    """Tiles chosen of a list of images, from where they stand when the image is inspected.

    Attributes:
        tiling: How images are cut.
        chosen: Row and column where each chosen tile begins, by image.
        n_available: Tiles that all the images have.
    """

    tiling: Tiling
    chosen: dict[Path, tuple[tuple[int, int], ...]]
    n_available: int

    @classmethod
    def of(cls, paths: Sequence[Path], tiling: Tiling, *, seed: int, limit: int = MAX_TILES) -> TilePlan:
        """Choose tiles: all of them, or the same number of every image where that is more than `limit`.

        Args:
            paths: The images. One whose header cannot be read counts as one tile, and fails when it is read.
            tiling: How images are cut.
            seed: Same seed, same choice.
            limit: Tiles in all, though at least one an image.
        """
        every = {path: _boxes(path, tiling) for path in paths}
        most = max(1, limit // len(every))
        rng = np.random.default_rng(seed)
        chosen = {}
        for path, boxes in every.items():
            kept = sorted(rng.permutation(len(boxes))[:most].tolist())
            chosen[path] = tuple(boxes[index] for index in kept)
        return cls(tiling, chosen, sum(map(len, every.values())))

    @property
    def count(self) -> int:
        """Tiles chosen."""
        return sum(map(len, self.chosen.values()))

    def check(self) -> None:
        """Refuse tiles that cut nothing.

        Raises:
            DatasetError: No image is larger than a tile.
        """
        if self.n_available == len(self.chosen):
            raise DatasetError(
                f"none of {len(self.chosen)} good images is larger than a tile of {self.tiling.tile_px} px: leave "
                "--tile out, or give a smaller one"
            )

    def pixels(self) -> Iterator[tuple[Path, NDArray[Any] | ImageError]]:
        """The file and the pixels of every tile, in order; or once the error that keeps an image from being read."""
        return self._each(None)

    def prepared(self, preparation: Preparation) -> Iterator[tuple[Path, NDArray[Any] | ImageError]]:
        """The same, as the model takes them."""
        return self._each(preparation)

    def _each(self, preparation: Preparation | None) -> Iterator[tuple[Path, NDArray[Any] | ImageError]]:
        def work(path: Path) -> list[NDArray[Any]] | ImageError:
            try:
                return _cut(path, self.tiling, self.chosen[path], preparation)
            except ImageError as error:
                return error

        for path, found in work_ahead(work, self.chosen, workers=2, ahead=2):
            if isinstance(found, ImageError):
                yield path, found
            else:
                yield from ((path, tile) for tile in found)


def _boxes(path: Path, tiling: Tiling) -> list[tuple[int, int]]:
    try:
        header = read_header(path)
    except ImageError:
        return [(0, 0)]
    return tiling.boxes((header.height_px, header.width_px))


def _cut(
    path: Path, tiling: Tiling, boxes: Sequence[tuple[int, int]], preparation: Preparation | None
) -> list[NDArray[Any]]:
    tiles = []
    with open_rows(path) as rows:
        high, wide = tiling.cut(rows.shape[0]).side_px, tiling.cut(rows.shape[1]).side_px
        for top, group in groupby(boxes, key=lambda box: box[0]):
            band = rows.read(top, top + high)
            for _, left in group:
                tile = band[:, left : left + wide]
                tiles.append(tile.copy() if preparation is None else prepare(tile, preparation, name=shown(path)))
    return tiles
