"""Where the zones of a model lie on an image: of any size, the whole of it or a band of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import UsageError
from makel.images import Preparation, prepare
from makel.model.zones import Point, Zone, Zones
from makel.types import Shape, in_px


@dataclass(frozen=True)
class Layout:
    """Zones laid over an image.

    Attributes:
        ignored: (h, w) bool.
        labels: (h, w) uint8: 0 where there is no zone or nothing is inspected, else 1 + the zone's place among
            `zones.zones`. A zone that is judged by itself goes before one that is only included.
    """

    ignored: NDArray[np.bool_]
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class ModelLayout:
    """Zones laid over a model's input.

    Attributes:
        seen: (height, width) bool: what is not ignored. A pixel that an ignored one has any part in is ignored.
        labels: (height, width) uint8: as `Layout.labels`, for zones that are judged by themselves; 0 elsewhere.
        judged: Their labels, in the order of `Zones.judged`.
    """

    seen: NDArray[np.bool_]
    labels: NDArray[np.uint8]
    judged: tuple[int, ...] = ()

    @property
    def scored(self) -> NDArray[np.bool_]:
        """What the image score is taken from: all that is seen but the zones that are judged by themselves."""
        return np.asarray(self.seen & (self.labels == 0))

    def peaks(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Highest value of a (height, width) map: first of the scored part, then of each of `judged`."""
        return np.array([anomaly_map[self.seen & (self.labels == label)].max() for label in (0, *self.judged)])


def place(zones: Zones, width_px: int, height_px: int, rows: slice | None = None) -> Layout:
    """Lay zones over an image.

    Args:
        zones: The zones.
        width_px: Width of the image.
        height_px: Height of the image, whatever the rows.
        rows: The band of rows wanted; None for all.

    Returns:
        The layout of these rows.
    """
    first, last, _ = (rows or slice(None)).indices(height_px)
    labels = np.zeros((last - first, width_px), np.uint8)
    ignored = np.zeros(labels.shape, bool)
    included = np.zeros(labels.shape, bool)
    # From the least to the most important, the first of each kind last: what is painted later stays.
    for kind in ("include", "inspect", "ignore"):
        for number, zone in reversed([*enumerate(zones.zones, start=1)]):
            if zone.kind == kind:
                inside = outline(zones, zone, width_px, height_px, slice(first, last))
                labels[inside] = number
                if kind == "include":
                    included |= inside
                elif kind == "ignore":
                    ignored |= inside
    if any(zone.kind == "include" for zone in zones.zones):
        ignored |= ~included
    labels[ignored] = 0
    return Layout(ignored, labels)


def place_on_input(zones: Zones, shape: Shape) -> ModelLayout:
    """Lay zones over what a model takes, as `images.prepare` brings images to it.

    Args:
        zones: The zones.
        shape: Height and width of the model's input, in pixels.

    Raises:
        UsageError: Everything is ignored, nothing is left for the image score, or a zone has no pixel.
    """
    if not zones.zones or zones.image_size_px is None:
        return ModelLayout(np.ones(shape, bool), np.zeros(shape, np.uint8))
    whole = place(zones, *zones.image_size_px)
    # The very resize that images go through: above zero is every pixel that an ignored one has a part in.
    seen = prepare(whole.ignored.astype(np.float32), Preparation(*shape, "grey"))[0] == 0
    judged = tuple(number for number, zone in enumerate(zones.zones, start=1) if zone.kind == "inspect")
    labels = np.where(np.isin(whole.labels, judged), whole.labels, np.uint8(0))
    labels = np.asarray(cv2.resize(labels, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    labels[~seen] = 0
    layout = ModelLayout(seen, labels, judged)
    if not seen.any():
        raise UsageError("the zones leave nothing to inspect: everything is ignored or outside what is included")
    for number in judged:
        if not (labels == number).any():
            raise UsageError(
                f"zone {zones.zones[number - 1].name!r} has no pixel left at the model's input of {in_px(shape)}: "
                "it is ignored, covered by an earlier zone, or too small; for the last, fit with a larger --size"
            )
    if not layout.scored.any():
        raise UsageError(
            "the zones that are inspected by themselves leave nothing to the image score: take the largest of them "
            "out, what is in no zone is inspected anyway"
        )
    return layout


def outline(zones: Zones, zone: Zone, width_px: int, height_px: int, rows: slice | None = None) -> NDArray[np.bool_]:
    """(h, w) bool: the pixels of an image of this size, or of a band of its rows, whose centre lies in a zone.

    A polygon that crosses itself is filled by the even-odd rule.
    """
    first, last, _ = (rows or slice(None)).indices(height_px)
    mask = zone.mask
    if mask is not None:
        down = ((np.arange(first, last) + 0.5) * mask.shape[0] / height_px).astype(np.intp)
        along = ((np.arange(width_px) + 0.5) * mask.shape[1] / width_px).astype(np.intp)
        return mask[np.ix_(down, along)] > 0
    width, height = zones.image_size_px or (width_px, height_px)
    corners = [(x * width_px / width, y * height_px / height) for x, y in zone.polygon or ()]
    return _fill(corners, width_px, first, last)


def _fill(corners: list[Point], width_px: int, first: int, last: int) -> NDArray[np.bool_]:
    """Not cv2.fillPoly, which fills the pixels that the outline touches as well: neighbours would overlap."""
    toggles = np.zeros((last - first, width_px + 1), bool)
    for (x0, y0), (x1, y1) in pairwise([*corners, corners[0]]):
        low, high = sorted((y0, y1))
        rows = np.arange(max(first, ceil(low - 0.5)), min(last, ceil(high - 0.5)))  # none of a level edge
        if rows.size:
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            toggles[rows - first, np.clip(np.ceil(x - 0.5), 0, width_px).astype(np.intp)] ^= True
    return np.logical_xor.accumulate(toggles, axis=1)[:, :width_px]
