"""From an anomaly map to the connected areas above a threshold."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import UsageError
from makel.types import Region


def find_regions(
    anomaly_map: NDArray[np.float32],
    threshold: float | NDArray[np.float32],
    *,
    min_area_px: float = 1,
    labels: NDArray[np.uint8] | None = None,
    names: Sequence[str] = ("",),
) -> tuple[Region, ...]:
    """Connected areas where the map is above the threshold; pixels that touch at a corner are connected.

    Args:
        anomaly_map: (H, W) float32.
        threshold: The level that a pixel has to exceed; one for all, or (H, W) float32.
        min_area_px: Smaller areas are left out.
        labels: (H, W), the zone of each pixel as its place among `names`; None where there are no zones.
        names: Names of zones. A region is of the zone that most of its pixels lie in, the first of several.

    Returns:
        The regions, highest peak first; boxes and areas in the map's pixels.

    Raises:
        UsageError: The map is not two-dimensional.
    """
    if anomaly_map.ndim != 2:
        raise UsageError(f"an anomaly map must be of shape (H, W), but got {anomaly_map.shape}")
    above = anomaly_map > threshold
    rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    if rows.size == 0:
        return ()
    # Labels take four bytes a pixel and most maps are empty but for a corner: label only the box around what is above.
    top, left = int(rows[0]), int(columns[0])
    box = np.s_[top : rows[-1] + 1, left : columns[-1] + 1]
    above = np.ascontiguousarray(above[box])
    count, regions, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, np.asarray(regions, np.int32)[above], anomaly_map[box][above])
    votes = np.zeros((count, len(names)), np.int64)
    if labels is not None:
        np.add.at(votes, (np.asarray(regions, np.int32)[above], labels[box][above]), 1)
    found = [
        Region((left + x, top + y, left + x + width, top + y + height), area, peak, names[zone])
        for (x, y, width, height, area), peak, zone in zip(
            stats[1:].tolist(), peaks[1:].tolist(), votes[1:].argmax(axis=1).tolist(), strict=True
        )
        if area >= min_area_px
    ]
    return tuple(sorted(found, key=lambda region: (-region.peak, region.box_px)))
