"""Ranking metrics and rates, in NumPy alone: one pass over the pixels gives every curve.

A score ranks good against defect; nothing here ever chooses a threshold. What cannot be computed (no good
pixels, no defects) is None: never NaN, never a made-up 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from makel.errors import UsageError
from makel.evaluation.histogram import CHUNK, PAGES, BitHistogram

EXACT_PIXELS = 1 << 24
"""Pixels that `PixelCurves` keeps as they are before it counts them: 256 maps of 256x256, 64 MB."""

MAX_BINS = 1 << 27
"""Bins of the histogram that `PixelCurves` counts in: 134 MB while no score is shared by more than 255 pixels."""

PLOT_POINTS = 500
AUPRO_LIMIT = 0.30
AUPRO_STRICT_LIMIT = 0.05

_SIGN = np.uint32(0x8000_0000)
_INFINITY = np.uint32(0x7F80_0000)
_SORTED_PIXELS = 1 << 20  # up to so many are ranked faster by sorting than by looking at every bin
_MERGED_AT_ONCE = 1 << 22
_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Curves:
    """What a ranking of good against defect is worth. Numbers that are undefined are None.

    Attributes:
        auroc: Area under the receiver operating characteristic; ties count one half.
        ap: Average precision as scikit-learn defines it: sum of precision times gained recall, no interpolation.
        f1_max: Largest F1 over all thresholds. The threshold that gives it needs labels and is never used.
        aupro_30: Mean overlap with the ground-truth regions, integrated over the pixel false-positive rate from 0
            to 0.30 and divided by 0.30. Good images count in the rate.
        aupro_05: The same up to 0.05.
        n_good: Good items (images or pixels).
        n_defect: Defect items.
        n_regions: Connected ground-truth regions; 0 where regions are not ranked.
        exact: False where scores closer than a stated resolution were counted as ties, see `PixelCurves`.
        roc: (K, 2) float64, false-positive rate and true-positive rate, K at most 500: for drawing only.
        pro: (K, 2) float64, false-positive rate up to 0.30 and mean overlap, K at most 500: for drawing only.
    """

    auroc: float | None
    ap: float | None
    f1_max: float | None
    aupro_30: float | None
    aupro_05: float | None
    n_good: int
    n_defect: int
    n_regions: int
    exact: bool
    roc: NDArray[np.float64] = field(repr=False)
    pro: NDArray[np.float64] = field(repr=False)


def rank_images(good: ArrayLike, defect: ArrayLike) -> Curves:
    """Rank image scores.

    Args:
        good: (N,) scores of good images.
        defect: (M,) scores of defective images.

    Returns:
        The curves, exact; `aupro_30` and `aupro_05` are None.

    Raises:
        UsageError: A score is NaN or infinite.
    """
    goods = np.sort(np.asarray(good, np.float64).ravel())
    defects = np.asarray(defect, np.float64).ravel()
    if not (np.isfinite(goods).all() and np.isfinite(defects).all()):
        raise UsageError(
            "image scores hold NaN or infinity; expected finite numbers: the model that gave them is broken"
        )
    levels, n_tied = np.unique(defects, return_counts=True)
    first, last = np.searchsorted(goods, levels, "left"), np.searchsorted(goods, levels, "right")
    return _summarise(
        goods.size - last, last - first, n_tied, np.zeros(levels.size), goods.size, n_regions=0, exact=True
    )


def rate_interval(count: int, of: int) -> tuple[float, float] | None:
    """The 95 % Wilson score interval of a rate.

    Args:
        count: How often it happened.
        of: How often it could have happened.

    Returns:
        Lower and upper end in [0, 1], or None when `of` is 0.

    Raises:
        UsageError: `count` is not within 0 and `of`.
    """
    if not 0 <= count <= of:
        raise UsageError(f"a rate of {count} out of {of} is none; expected 0 <= count <= of")
    if of == 0:
        return None
    rate, z2 = count / of, _Z_95**2
    centre = (rate + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z_95 / (1 + z2 / of) * math.sqrt(rate * (1 - rate) / of + z2 / (4 * of * of))
    # At the ends the formula gives 0 and 1 but for rounding.
    return (0.0 if count == 0 else max(0.0, centre - half), 1.0 if count == of else min(1.0, centre + half))


class PixelCurves:
    """Ranks the pixels of any number of anomaly maps, in one pass and bounded memory.

    Exactness: every float32 score counts as it is, ties too, and the results equal scikit-learn's up to the rounding
    of float64. Up to `exact_pixels` pixels that holds for any scores. Past that, pixels are counted in a histogram
    with a bin for every float32: 8 million bins for each factor of two that the scores span, of one byte each while no
    score is shared by more than 255 pixels, and of two, four or eight where one is. Scores that span more than a factor
    of 65,000 would pass its limit of 134 million bins (`max_bins`): then neighbouring floats begin to share bins,
    those in one bin count as ties, and `Curves.exact` is False. (Fewer bits would be faster and never exact: rounding
    leaves its own pattern in the last bits, which moved AUROC by 1e-8 and average precision by 1e-7.)

    Pixels of defects are kept besides, 20 bytes for every different score among them.

    Example:
        >>> curves = PixelCurves()
        >>> curves.add(np.float32([[0.1, 0.2], [0.9, 0.3]]), np.int32([[0, 0], [1, 0]]))
        >>> curves.results().auroc
        1.0
    """

    def __init__(self, *, exact_pixels: int = EXACT_PIXELS, max_bins: int = MAX_BINS) -> None:
        """Start with no pixels.

        Args:
            exact_pixels: Pixels to keep as they are before they are counted; 0 counts every map at once, slowly.
            max_bins: Bins of the histogram before neighbouring floats share one: a power of two.

        Raises:
            UsageError: `max_bins` is not a power of two, or below 65,536, or above the 2**32 floats there are.
        """
        if max_bins.bit_count() != 1 or not PAGES <= max_bins <= 1 << 32:
            raise UsageError(f"max_bins is {max_bins}; expected a power of two from {PAGES} to {1 << 32}")
        self.exact_pixels = exact_pixels
        self.max_bins = max_bins
        self.n_pixels = 0
        self.n_regions = 0
        self._buffer = np.empty(0, np.uint32)
        self._n_kept = 0  # so many keys of the buffer wait to be counted
        self._histogram: BitHistogram | None = None
        self._defects: list[_Levels] = []
        self._n_defects_kept = 0  # scores in these lists
        self._merge_at = _MERGED_AT_ONCE

    def add(self, anomaly_map: NDArray[np.float32], regions: NDArray[np.integer] | None = None) -> None:
        """Count the pixels of one map.

        Args:
            anomaly_map: (H, W) float32, higher is worse.
            regions: (H, W) integers: 0 on good pixels, 1, 2, ... on the connected regions of the ground truth.
                None: every pixel is good.

        Raises:
            UsageError: Another shape or dtype, a score that is NaN or infinite, or region numbers that are negative
                or larger than the map has pixels. The curves are then as they were before.
        """
        bits = _finite_bits(anomaly_map)
        marked = None if regions is None else _marked(regions, anomaly_map.shape)
        keys = self._keep(bits.size)
        np.bitwise_xor(bits, _SIGN, out=keys)
        if marked is not None:
            self._add_defects(keys, *marked)

    def include(self, other: PixelCurves) -> None:
        """Count everything that `other` has counted, as if its maps had been added here.

        Args:
            other: Unchanged.
        """
        kept = other._kept
        self._keep(kept.size)[:] = kept
        self.n_pixels += other.n_pixels - kept.size
        self.n_regions += other.n_regions
        self._keep_defects(other._defects)
        if other._histogram is not None:
            self._histogram = self._histogram or BitHistogram(self.max_bins)
            self._histogram.include(other._histogram)

    def results(self) -> Curves:
        """The numbers and curves of everything counted so far; more may be added afterwards."""
        if self._histogram is not None:
            self._count()
        histogram = self._histogram
        if histogram is None and self.n_pixels > _SORTED_PIXELS:
            histogram = BitHistogram(self.max_bins)
            histogram.count(self._kept)
            if histogram.shift:
                histogram = None
        keys, counts, overlaps = _merge(self._defects, 0 if histogram is None else histogram.shift)
        if histogram is None:
            kept = np.sort(self._kept)
            below, up_to = np.searchsorted(kept, keys, "left"), np.searchsorted(kept, keys, "right")
        else:
            below, up_to = histogram.ranks(keys)
        up_to_defects = np.cumsum(counts)
        n_defect = int(counts.sum())
        return _summarise(
            (self.n_pixels - up_to) - (n_defect - up_to_defects),
            (up_to - below) - counts,
            counts,
            overlaps,
            self.n_pixels - n_defect,
            n_regions=self.n_regions,
            exact=histogram is None or histogram.shift == 0,
        )

    @property
    def _kept(self) -> NDArray[np.uint32]:
        return self._buffer[: self._n_kept]

    def _keep(self, size: int) -> NDArray[np.uint32]:
        """(size,) room for the keys of so many more pixels, to be filled; what is kept may be counted first."""
        self.n_pixels += size
        if self._n_kept + size > self.exact_pixels:
            self._count()
        if self._n_kept + size > self._buffer.size:
            grown = np.empty(max(self._n_kept + size, min(4 * self._buffer.size, self.exact_pixels)), np.uint32)
            grown[: self._n_kept] = self._kept
            self._buffer = grown
        self._n_kept += size
        return self._kept[self._n_kept - size :]

    def _add_defects(self, keys: NDArray[np.uint32], at: NDArray[np.intp], ids: NDArray[np.intp]) -> None:
        if at.size == 0:
            return
        areas_px = np.bincount(ids)
        self.n_regions += int(np.count_nonzero(areas_px))
        overlaps = (1.0 / np.maximum(areas_px, 1))[ids]
        self._keep_defects([_Levels(keys[at], None, overlaps)])

    def _keep_defects(self, levels: list[_Levels]) -> None:
        self._defects += levels
        self._n_defects_kept += sum(each.keys.size for each in levels)
        if self._n_defects_kept > self._merge_at:  # equal scores become one entry
            self._defects = [_Levels(*_merge(self._defects))]
            self._n_defects_kept = self._defects[0].keys.size
            # Merging only what has doubled costs no more, in all, than sorting everything a few times.
            self._merge_at = 2 * self._n_defects_kept + _MERGED_AT_ONCE

    def _count(self) -> None:
        self._histogram = self._histogram or BitHistogram(self.max_bins)
        self._histogram.count(self._kept)
        self._n_kept = 0


@dataclass(frozen=True)
class _Levels:
    """Scores of defect pixels: key, how many have it (None: one each), and their sum of 1 / region area. (K,) each."""

    keys: NDArray[np.uint32]
    counts: NDArray[np.int64] | None
    overlaps: NDArray[np.float64]


def _merge(levels: list[_Levels], shift: int = 0) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.float64]]:
    """Keys, counts and overlaps with one entry for every different key, ascending, less `shift` trailing bits."""
    if not levels:
        return np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0)
    keys = np.concatenate([part.keys for part in levels])
    if shift:
        keys = keys >> np.uint32(shift) << np.uint32(shift)
    # NumPy sorts words with vector instructions, and has none for argsort: so each holds a key and its place.
    words = keys.astype(np.uint64) << np.uint64(32) | np.arange(keys.size, dtype=np.uint64)
    words.sort()
    order, keys = words.astype(np.uint32), (words >> np.uint64(32)).astype(np.uint32)
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    if all(part.counts is None for part in levels):
        counts = np.diff(first, append=keys.size)
    else:
        each = [np.ones(part.keys.size, np.int64) if part.counts is None else part.counts for part in levels]
        counts = np.add.reduceat(np.concatenate(each)[order], first)
    return keys[first], counts, np.add.reduceat(np.concatenate([part.overlaps for part in levels])[order], first)


def _marked(regions: NDArray[np.integer], shape: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """(M,) where the defect pixels of a flattened map are, and (M,) their regions, when they fit its shape."""
    if regions.shape != shape or regions.dtype.kind not in "iu":
        raise UsageError(
            f"regions must be integers of shape {shape}, one for each pixel of the anomaly map, "
            f"but got {regions.dtype} of shape {regions.shape}"
        )
    at = np.flatnonzero(regions != 0)
    ids = regions.ravel()[at]
    if at.size and not (ids.min() >= 0 and ids.max() <= regions.size):
        raise UsageError(
            f"regions are numbered from {regions.min()} to {regions.max()}; expected 0 on good pixels and 1, 2, ... on "
            "the connected regions"
        )
    return at, ids.astype(np.intp, copy=False)


def _finite_bits(anomaly_map: NDArray[np.float32]) -> NDArray[np.uint32]:
    """(H*W,) integers which, their sign flipped, are in the order of the scores; 0.0 and -0.0 give the same."""
    if anomaly_map.ndim != 2 or anomaly_map.dtype != np.float32:
        raise UsageError(
            f"an anomaly map must be float32 of shape (H, W), but got {anomaly_map.dtype} of shape {anomaly_map.shape}"
        )
    bits = np.ascontiguousarray(anomaly_map).view(np.uint32).ravel()
    if bits.size == 0 or bits.max() < _INFINITY:  # no sign bit, no infinity, no NaN: by far the usual map
        return bits
    if not np.isfinite(anomaly_map).all():
        raise UsageError(
            "an anomaly map holds NaN or infinity; expected finite scores: the model that gave it is broken"
        )
    bits = (anomaly_map + np.float32(0)).view(np.uint32).ravel()  # -0.0 + 0.0 is 0.0
    return np.where(bits & _SIGN, ~bits ^ _SIGN, bits)


def _summarise(
    good_above: NDArray[np.int64],
    good_tied: NDArray[np.int64],
    n_tied: NDArray[np.int64],
    overlap: NDArray[np.float64],
    n_good: int,
    *,
    n_regions: int,
    exact: bool,
) -> Curves:
    """Curves from the distinct scores of defect items, ascending: between two of them every curve is level.

    Args:
        good_above: (K,) good items with a higher score.
        good_tied: (K,) good items with this very score.
        n_tied: (K,) defect items with this score.
        overlap: (K,) sum of 1 / region area over these items.
        n_good: All good items.
        n_regions: All regions.
        exact: Passed on.
    """
    n_defect = int(n_tied.sum())
    none = np.empty((0, 2))
    if n_good == 0 or n_defect == 0:
        return Curves(None, None, None, None, None, n_good, n_defect, n_regions, exact, none, none)
    # Strictest first, and in float64, which holds these counts exactly.
    above, up_to = (np.array(each[::-1], np.float64) for each in (good_above, good_above + good_tied))
    hits, overlap = np.array(n_tied[::-1], np.float64), np.array(overlap[::-1])
    found, middle = np.cumsum(hits), (above + up_to) / 2
    precision, f1 = 0.0, 0.0
    for start in range(0, hits.size, CHUNK):
        part = slice(start, start + CHUNK)
        alarms = found[part] + up_to[part]
        precision += float(np.sum(hits[part] * (found[part] / alarms)))
        f1 = max(f1, float(np.max(found[part] / (alarms + n_defect))))
    auroc = 1.0 - float(np.dot(hits, middle)) / n_defect / n_good
    ap = precision / n_defect  # in this order a perfect ranking gives 1 without rounding
    roc = _draw(above, up_to, found - hits, found, n_good)
    if n_regions == 0:
        return Curves(auroc, ap, 2 * f1, None, None, n_good, n_defect, n_regions, exact, roc, none)
    covered = np.cumsum(overlap)  # the last is n_regions but for rounding, and the curve has to end at 1

    def aupro(limit: float) -> float:
        """Up to so many false positives: a level's share is lost up to the middle of those it is found between."""
        cut = int(np.searchsorted(up_to, limit, "right"))
        lost = float(np.dot(overlap[:cut], middle[:cut]))
        if cut < overlap.size:
            lost += limit * float(covered[-1] - covered[cut] + overlap[cut])
            if above[cut] < limit:  # the limit cuts this level: part of it is found
                lost -= float(overlap[cut] * (limit - above[cut]) ** 2 / (up_to[cut] - above[cut])) / 2
        return 1.0 - lost / float(covered[-1]) / limit

    end = int(np.searchsorted(above, AUPRO_LIMIT * n_good)) + 1  # with the level that is reached behind the limit
    pro = _draw(above[:end], up_to[:end], (covered - overlap)[:end], covered[:end], n_good, float(covered[-1]))
    return Curves(
        auroc,
        ap,
        2 * f1,
        aupro(AUPRO_LIMIT * n_good),
        aupro(AUPRO_STRICT_LIMIT * n_good),
        n_good,
        n_defect,
        n_regions,
        exact,
        roc,
        _cut(pro, AUPRO_LIMIT),
    )


def _draw(
    above: NDArray[np.float64],
    up_to: NDArray[np.float64],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    n_good: int,
    whole: float | None = None,
) -> NDArray[np.float64]:
    """At most `PLOT_POINTS` corners of a rising curve, evenly spaced along it, both ends included.

    Args:
        above: (K,) false positives before each level, strictest first.
        up_to: (K,) and after it.
        before: (K,) what is found before each level.
        after: (K,) and after it.
        n_good: What false positives are divided by.
        whole: What is found is divided by this. None: by the last of it.
    """
    whole = whole or float(after[-1])
    room = PLOT_POINTS // 2 - 2  # each level has two corners
    at = np.append(np.arange(0, above.size - 1, above.size // CHUNK + 1), above.size - 1)
    if at.size > room:
        way = up_to[at] / n_good + after[at] / whole
        at = at[np.unique(np.searchsorted(way, np.linspace(way[0], way[-1], room)).clip(max=at.size - 1))]
    x = np.stack([above[at], up_to[at]], axis=1).ravel() / n_good
    y = np.stack([before[at], after[at]], axis=1).ravel() / whole
    return np.concatenate([[[0.0, 0.0]], np.stack([x, y], axis=1), [[1.0, 1.0]]])


def _cut(curve: NDArray[np.float64], limit: float) -> NDArray[np.float64]:
    """The curve up to x = limit, its last point interpolated linearly."""
    end = int(np.searchsorted(curve[:, 0], limit))  # x[end - 1] < limit <= x[end]
    share = (limit - curve[end - 1, 0]) / (curve[end, 0] - curve[end - 1, 0])
    return np.concatenate([curve[:end], [[limit, curve[end - 1, 1] + share * (curve[end, 1] - curve[end - 1, 1])]]])
