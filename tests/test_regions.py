"""Regions: hand-drawn maps, and a brute-force flood fill on random ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from makel.errors import UsageError
from makel.model.regions import find_regions
from makel.types import Region


def test_two_regions_by_hand_highest_first() -> None:
    drawn = np.zeros((7, 11), np.float32)
    drawn[1:3, 2:5] = [[2, 2, 2], [2, 3, 2]]
    drawn[5, 8:11] = [4, 7, 4]
    assert find_regions(drawn, 1) == (Region((8, 5, 11, 6), 3, 7.0), Region((2, 1, 5, 3), 6, 3.0))


def test_only_above_the_threshold_counts() -> None:
    assert find_regions(np.full((3, 5), 2, np.float32), 2) == ()
    assert find_regions(np.full((3, 5), 2, np.float32), 1.999) == (Region((0, 0, 5, 3), 15, 2.0),)


def test_corners_connect() -> None:
    assert find_regions(np.eye(5, dtype=np.float32), 0.5) == (Region((0, 0, 5, 5), 5, 1.0),)


def test_small_regions_can_be_left_out() -> None:
    drawn = np.zeros((5, 7), np.float32)
    drawn[0, 0] = 9
    drawn[2:4, 3:5] = 1
    assert [region.area_px for region in find_regions(drawn, 0.5)] == [1, 4]
    assert [region.area_px for region in find_regions(drawn, 0.5, min_area_px=2)] == [4]


def test_negative_scores_have_regions_too() -> None:
    drawn = np.full((3, 5), -8, np.float32)
    drawn[1, 2] = -2
    assert find_regions(drawn, -3) == (Region((2, 1, 3, 2), 1, -2.0),)


def test_a_map_of_another_shape_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\(H, W\), but got \(1, 3, 5\)"):
        find_regions(np.zeros((1, 3, 5), np.float32), 0)


def flood(anomaly_map: np.ndarray, threshold: float) -> set[Region]:
    """Brute force: fill from every pixel above the threshold."""
    left = {(int(y), int(x)) for y, x in np.argwhere(anomaly_map > threshold)}
    found = set()
    while left:
        region, border = set(), [left.pop()]
        while border:
            y, x = border.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border.extend(near)
        ys, xs = zip(*region, strict=True)
        peak = max(float(anomaly_map[point]) for point in region)
        found.add(Region((min(xs), min(ys), max(xs) + 1, max(ys) + 1), len(region), peak))
    return found


@given(
    arrays(np.float32, st.tuples(st.integers(1, 13), st.integers(1, 17)), elements=st.floats(0, 1, width=16)),
    st.floats(0, 1, width=16),
)
def test_regions_are_those_of_a_flood_fill(anomaly_map: np.ndarray, threshold: float) -> None:
    found = find_regions(anomaly_map, threshold)
    assert set(found) == flood(anomaly_map, threshold)
    assert len(set(found)) == len(found)
    peaks = [region.peak for region in found]
    assert peaks == sorted(peaks, reverse=True)
    assert sum(region.area_px for region in found) == (anomaly_map > threshold).sum()
