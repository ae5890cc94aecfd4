"""The rank-sum test of two samples: are these numbers larger or smaller than those, or do they come from the same?

Wilcoxon 1945, Mann and Whitney 1947. It assumes nothing about how the numbers are distributed, and the few good images
a calibration has count as the few they are: nothing is taken for exactly known. That makes it right for p-values of a
calibration too, which lie on a grid of n + 1 and all depend on the same n images: ranking the scores behind them among
the calibration's own scores is the same comparison without the grid.
"""

from __future__ import annotations

from functools import lru_cache
from math import erfc, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

_EXACT_BELOW = 12
"""From so many numbers on in both samples the normal approximation is good enough, and exact counting slow."""


def rank_sum(reference: ArrayLike, sample: ArrayLike) -> float:
    """The two-sided p-value of the hypothesis that both samples come from the same distribution.

    Args:
        reference: (n,) numbers.
        sample: (m,) numbers.

    Returns:
        Probability of ranks as unequal as these, or more; 1.0 where a sample is empty or all numbers are equal. Exact
        where a sample is small, with equal numbers of both samples ordered as speaks least against the hypothesis; else
        by the normal approximation, corrected for ties and for continuity.
    """
    first, second = np.asarray(reference, np.float64).ravel(), np.asarray(sample, np.float64).ravel()
    n, m = len(first), len(second)
    if not n or not m:
        return 1.0
    ranks, counts = _ranks(np.concatenate([first, second]))
    if len(counts) == 1:
        return 1.0
    above = float(ranks[:n].sum()) - n * (n + 1) / 2  # pairs in which the reference is the larger one
    away = abs(above - n * m / 2)
    if min(n, m) < _EXACT_BELOW:
        tied = int(np.count_nonzero(first[:, None] == second))
        share = _shares(min(n, m), max(n, m))
        return min(1.0, 2 * float(share[: int(n * m / 2 - max(0.0, away - tied / 2)) + 1].sum()))
    ties = float((counts**3 - counts).sum()) / ((n + m) * (n + m - 1))
    deviation = sqrt(n * m / 12 * (n + m + 1 - ties))
    return min(1.0, erfc(max(0.0, away - 0.5) / deviation / sqrt(2)))


def _ranks(numbers: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The rank of each number from 1, equal numbers sharing the mean of theirs; and how often each value occurs."""
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place], counts


@lru_cache(maxsize=64)
def _shares(few: int, many: int) -> NDArray[np.float64]:
    """(few * many + 1,) probability of each number of pairs in which the one of the small sample is the larger.

    By counting the sets of `few` among all ranks by their sum, one rank after the other.
    """
    ways = np.zeros((few + 1, few * many + 1))
    ways[0, 0] = 1
    for rank in range(few + many):
        for size in range(min(few, rank + 1), 0, -1):
            # The rank-th number as the largest of `size` has rank - (size - 1) of the other sample below it.
            below = rank - (size - 1)
            if below <= few * many:
                ways[size, below:] += ways[size - 1, : few * many + 1 - below]
    return np.asarray(ways[few] / ways[few].sum())
