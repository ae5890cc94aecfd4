"""From an anomaly map to the connected areas above a threshold."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import UsageError
from makel.types import Region


def find_regions(anomaly_map: NDArray[np.float32], threshold: float, *, min_area_px: int = 1) -> tuple[Region, ...]:
    """Connected areas where the map is above the threshold; pixels that touch at a corner are connected.

    Args:
        anomaly_map: (H, W) float32.
        threshold: The level that a pixel has to exceed.
        min_area_px: Smaller areas are left out.

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
    count, labels, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    peaks = np.full(count, -np.inf, np.float32)
    np.maximum.at(peaks, np.asarray(labels, np.int32)[above], anomaly_map[box][above])
    found = [
        Region((left + x, top + y, left + x + width, top + y + height), area, peak)
        for (x, y, width, height, area), peak in zip(stats[1:].tolist(), peaks[1:].tolist(), strict=True)
        if area >= min_area_px
    ]
    return tuple(sorted(found, key=lambda region: (-region.peak, region.box_px)))
