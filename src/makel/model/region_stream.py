"""Regions of a map that comes in bands: those of `regions.find_regions`, wherever the bands are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.types import Region


@dataclass
class _Open:
    """A region that may go on in the next band."""

    x0: int
    y0: int
    x1: int
    y1: int
    area: int
    peak: float

    def take(self, other: _Open) -> None:
        self.x0, self.y0 = min(self.x0, other.x0), min(self.y0, other.y0)
        self.x1, self.y1 = max(self.x1, other.x1), max(self.y1, other.y1)
        self.area += other.area
        self.peak = max(self.peak, other.peak)


class RegionStream:
    """Finds regions in bands of a map; only those that touch the last row wait for the next band.

    Pixels that touch at a corner are connected, also across bands.
    """

    def __init__(
        self, threshold: float, *, min_area_px: float = 1, keep: Callable[[Region], bool] = lambda _: True
    ) -> None:
        """Begin at the top.

        Args:
            threshold: The level that a pixel has to exceed.
            min_area_px: Smaller areas are left out.
            keep: Says of each whole region whether it counts.
        """
        self._threshold, self._min_area_px, self._keep = threshold, min_area_px, keep
        self._at = 0
        self._open: dict[int, _Open] = {}
        self._last: NDArray[np.int64] | None = None  # keys of the open regions in the last row, 0 elsewhere
        self._next = 1
        self._found: list[Region] = []

    def add(self, band: NDArray[np.float32]) -> None:
        """The next rows, (h, W) float32."""
        above = band > self._threshold
        keys = self._label(band, above)
        first, last = keys
        same = self._join(first)
        self._last = np.zeros(band.shape[1], np.int64)
        touching = np.flatnonzero(last)
        self._last[touching] = [same(key) for key in last[touching].tolist()]
        still = set(self._last[touching].tolist())
        for key in [key for key in self._open if key not in still]:
            self._close(self._open.pop(key))
        self._at += len(band)

    def finish(self) -> tuple[Region, ...]:
        """All regions, highest peak first; boxes and areas in the map's pixels."""
        for region in self._open.values():
            self._close(region)
        self._open = {}
        return tuple(sorted(self._found, key=lambda region: (-region.peak, region.box_px)))

    def _label(
        self, band: NDArray[np.float32], above: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Open every area of a band; the keys in its first and in its last row."""
        first, last = np.zeros(band.shape[1], np.int64), np.zeros(band.shape[1], np.int64)
        rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
        if not rows.size:
            return first, last
        top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
        part = np.ascontiguousarray(above[top:bottom, left:right])
        count, found, stats, _ = cv2.connectedComponentsWithStats(part.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        labels = np.asarray(found, np.int32)
        peaks = np.full(count, -np.inf, np.float32)
        np.maximum.at(peaks, labels[part], band[top:bottom, left:right][part])
        keys = np.concatenate([[0], np.arange(self._next, self._next + count - 1)])
        self._next += count - 1
        for key, (x, y, width, height, area), peak in zip(
            keys[1:].tolist(), stats[1:].tolist(), peaks[1:].tolist(), strict=True
        ):
            x0, y0 = left + x, self._at + top + y
            self._open[key] = _Open(x0, y0, x0 + width, y0 + height, area, peak)
        if top == 0:
            first[left:right] = keys[labels[0]]
        if bottom == len(band):
            last[left:right] = keys[labels[-1]]
        return first, last

    def _join(self, first: NDArray[np.int64]) -> Callable[[int], int]:
        """Merge areas of this band with those above they touch; what gives the key an area goes by from now on."""
        parent: dict[int, int] = {}

        def root(key: int) -> int:
            while key in parent:
                key = parent[key]
            return key

        if self._last is not None:
            pairs: set[tuple[int, int]] = set()
            for above, below in (
                (self._last, first),
                (self._last[:-1], first[1:]),
                (self._last[1:], first[:-1]),
            ):
                both = np.flatnonzero((above > 0) & (below > 0))
                pairs.update(zip(above[both].tolist(), below[both].tolist(), strict=True))
            for one, other in sorted(pairs):
                kept, gone = root(one), root(other)
                if kept != gone:
                    parent[gone] = kept
                    self._open[kept].take(self._open.pop(gone))
        return root

    def _close(self, region: _Open) -> None:
        whole = Region((region.x0, region.y0, region.x1, region.y1), region.area, region.peak)
        if region.area >= self._min_area_px and self._keep(whole):
            self._found.append(whole)
