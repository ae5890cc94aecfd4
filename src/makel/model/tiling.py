"""Tiles of a large image: where they stand, and how their maps blend into one.

A tiled model takes squares of `tile_px` of the image's own pixels, each brought to the model's input size as any image
is. Neighbours overlap, and in the overlap their maps are averaged with weights that fall to nothing towards a tile's
border, where its network sees least, and sum to one everywhere: no seam shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from makel.errors import UsageError

AUTO_OVERLAP = 4
"""`auto` is a tile's side over this: docs/large_images.md has how far borders reach, and what more overlap costs."""

MIN_TILE_PX = 32


@dataclass(frozen=True)
class Tiling:
    """How a model cuts images. It is stored with the model.

    Attributes:
        tile_px: Side of a tile, in pixels of the image.
        overlap_px: Pixels that neighbours share at least; at most half a tile.
    """

    tile_px: int
    overlap_px: int

    def __post_init__(self) -> None:
        if self.tile_px < MIN_TILE_PX:
            raise UsageError(f"a tile of {self.tile_px} px is too small to show anything: give at least {MIN_TILE_PX}")
        if not 0 <= self.overlap_px <= self.tile_px // 2:
            raise UsageError(
                f"an overlap of {self.overlap_px} px does not fit tiles of {self.tile_px} px: give 0 to "
                f"{self.tile_px // 2}, or auto"
            )

    @classmethod
    def of(cls, tile_px: int, overlap: str | int = "auto") -> Self:
        """A tiling as it is asked for.

        Args:
            tile_px: Side of a tile.
            overlap: Pixels, also as text, or "auto" for a quarter of the side.

        Raises:
            UsageError: It is no number, or does not fit the tile.
        """
        if overlap == "auto":
            return cls(tile_px, tile_px // AUTO_OVERLAP)
        try:
            return cls(tile_px, int(overlap))
        except ValueError as error:
            raise UsageError(f"overlap {overlap!r} is neither auto nor a whole number of pixels") from error

    def cut(self, length_px: int) -> Axis:
        """The tiles along one side of an image, spread evenly.

        A side that is no longer than a tile makes one tile of its own length.
        """
        side = min(self.tile_px, length_px)
        count = 1 + -(-(length_px - side) // (self.tile_px - self.overlap_px))
        starts = tuple(round(index * (length_px - side) / max(1, count - 1)) for index in range(count))
        return Axis(side, starts, self.overlap_px)

    def boxes(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Row and column where each tile of an (H, W) image begins, row by row."""
        return [(y, x) for y in self.cut(shape[0]).starts for x in self.cut(shape[1]).starts]

    def divides(self, shape: tuple[int, ...]) -> bool:
        """Whether an (H, W) image has more than one tile."""
        return max(shape[:2]) > self.tile_px


@dataclass(frozen=True)
class Axis:
    """Tiles along one side of an image.

    Attributes:
        side_px: Length of each.
        starts: Where each begins, ascending; the first at 0, the last ends with the image.
        overlap_px: What neighbours share at least.
    """

    side_px: int
    starts: tuple[int, ...]
    overlap_px: int

    @property
    def length_px(self) -> int:
        """Length of the image's side."""
        return self.starts[-1] + self.side_px

    def weights(self) -> Iterator[NDArray[np.float32]]:
        """(side_px,) for each tile: at every pixel of the image, the weights of the tiles over it sum to one.

        Towards a neighbour a weight falls over the overlap as a squared sine, towards the image's border not at all.
        """
        total = np.zeros(self.length_px, np.float64)
        shapes = [self._shape(index) for index in range(len(self.starts))]
        for start, shape in zip(self.starts, shapes, strict=True):
            total[start : start + self.side_px] += shape
        for start, shape in zip(self.starts, shapes, strict=True):
            yield (shape / total[start : start + self.side_px]).astype(np.float32)

    def _shape(self, index: int) -> NDArray[np.float64]:
        shape = np.ones(self.side_px)
        if self.overlap_px:
            ramp = np.sin(np.pi / 2 * (np.arange(self.overlap_px) + 0.5) / self.overlap_px) ** 2
            if index > 0:
                shape[: self.overlap_px] *= ramp
            if index < len(self.starts) - 1:
                shape[-self.overlap_px :] *= ramp[::-1]
        return shape
