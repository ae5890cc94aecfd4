"""One image through a model tile by tile: rows of the file in, finished bands of the anomaly map out.

What is in memory is a row of tiles, of the image and of the map: it grows with the image's width, not its height.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from time import perf_counter

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import ModelFolderError
from makel.images import Preparation, Rows, prepare
from makel.model.tiling import Tiling
from makel.types import Scores

Run = Callable[[NDArray[np.float32]], Scores[NDArray[np.float32]]]
"""Prepared images (N, 3, H, W) → their scores and maps."""

TILES_AT_ONCE = 4
"""Tiles the model takes in one run: enough to keep its threads busy, little memory."""


class Scan:
    """An image on its way through a model.

    Attributes:
        score: The highest image score of the tiles so far: the image's, once all bands are taken.
        worst: Row and column where the tile of that score begins.
        reading_s: Time spent on reading and decoding so far.
    """

    def __init__(self, rows: Rows, tiling: Tiling, preparation: Preparation, run: Run, *, name: str) -> None:
        """Prepare to scan.

        Args:
            rows: The image.
            tiling: How to cut it.
            preparation: How a tile becomes what the model takes.
            run: What runs the model.
            name: What to call the image in an error.
        """
        self._rows, self._preparation, self._run, self._name = rows, preparation, run, name
        self._down, self._across = tiling.cut(rows.shape[0]), tiling.cut(rows.shape[1])
        self.score = -np.inf
        self.worst = (0, 0)
        self.reading_s = 0.0

    def bands(self) -> Iterator[NDArray[np.float32]]:
        """The anomaly map from the top, (h, W) at a time; each band is overwritten when the next is asked for.

        Raises:
            ImageError: The file is damaged, or not of the kind the model was fitted on.
            ModelFolderError: The model gives a number that is not finite.
        """
        high = self._down.side_px
        image = np.empty((high, *self._rows.shape[1:]), self._rows.dtype)
        blended = np.zeros((high, self._rows.shape[1]), np.float32)
        weights_across = list(self._across.weights())
        read_to = 0
        # The last row of tiles is finished to its end.
        steps = pairwise((*self._down.starts, self._down.length_px))
        for (top, following), weights_down in zip(steps, self._down.weights(), strict=True):
            kept = read_to - top
            image[:kept] = image[high - kept :]
            started = perf_counter()
            image[kept:] = self._rows.read(read_to, top + high)
            self.reading_s += perf_counter() - started
            read_to = top + high
            for number, tile_map in enumerate(self._maps(image, top)):
                left = self._across.starts[number]
                tile_map *= weights_down[:, None]
                tile_map *= weights_across[number]
                blended[:, left : left + self._across.side_px] += tile_map
            done = following - top
            yield blended[:done]
            blended[: high - done] = blended[done:]
            blended[high - done :] = 0

    def _maps(self, image: NDArray[np.generic], top: int) -> Iterator[NDArray[np.float32]]:
        """(tile height, tile width) of each tile of a row, left to right."""
        wide, starts = self._across.side_px, self._across.starts
        for first in range(0, len(starts), TILES_AT_ONCE):
            lefts = starts[first : first + TILES_AT_ONCE]
            tiles = [prepare(image[:, left : left + wide], self._preparation, name=self._name) for left in lefts]
            scores = self._run(np.stack(tiles))
            # NaN is not above any threshold: it would pass.
            if not (np.isfinite(scores.image).all() and np.isfinite(scores.anomaly_map).all()):
                raise ModelFolderError(
                    f"the model gives {self._name} a score or map that is not finite in the tiles at row {top}: its "
                    "network is broken, fit again"
                )
            for left, score, tile_map in zip(lefts, scores.image, scores.anomaly_map[:, 0], strict=True):
                if score > self.score:
                    self.score, self.worst = float(score), (top, left)
                size = (wide, len(image))
                yield np.array(cv2.resize(tile_map, size, interpolation=cv2.INTER_LINEAR), np.float32)
