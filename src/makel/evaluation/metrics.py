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

EXACT_PIXELS = 1 << 24
"""Pixels that `PixelCurves` keeps as they are: 256 maps of 256x256, 64 MB."""

MAX_BINS = 1 << 27
"""Bins of the histogram that `PixelCurves` counts in beyond that: 512 MB."""

PLOT_POINTS = 500
AUPRO_LIMIT = 0.30
AUPRO_STRICT_LIMIT = 0.05

_SIGN = np.uint32(0x8000_0000)
_INFINITY = np.uint32(0x7F80_0000)
_PAGE_BITS = 16
_PAGES = 1 << (32 - _PAGE_BITS)
_UNOPENED = -(1 << 40)
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
    with a bin for every float32, which takes 32 MB for each factor of two that the scores span. Scores that span more
    than a factor of 65,000 would pass its limit of 512 MB (`max_bins`): then neighbouring floats begin to share bins,
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
            exact_pixels: Pixels to keep as they are before counting by bits; 0 counts by bits from the first map.
            max_bins: Bins of the histogram, 4 bytes each, before neighbouring floats share one: a power of two.

        Raises:
            UsageError: `max_bins` is not a power of two, or below 65,536, or above the 2**32 floats there are.
        """
        if max_bins.bit_count() != 1 or not _PAGES <= max_bins <= 1 << 32:
            raise UsageError(f"max_bins is {max_bins}; expected a power of two from {_PAGES} to {1 << 32}")
        self.exact_pixels = exact_pixels
        self.max_bins = max_bins
        self.n_pixels = 0
        self.n_regions = 0
        self._kept: list[NDArray[np.uint32]] = []
        self._histogram: _BitHistogram | None = None
        self._defects: list[_Levels] = []
        self._defects_merged = 0  # distinct scores at the last merge

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
        keys = _ordered_keys(anomaly_map)
        if regions is not None:
            self._add_defects(keys, _check_regions(regions, anomaly_map.shape))
        self.n_pixels += keys.size
        if self._histogram is None:
            self._kept.append(keys)
        else:
            self._histogram.count(keys)
        self._fold()

    def include(self, other: PixelCurves) -> None:
        """Count everything that `other` has counted, as if its maps had been added here.

        Args:
            other: Unchanged; what it keeps is shared, not copied.
        """
        self.n_pixels += other.n_pixels
        self.n_regions += other.n_regions
        self._kept += other._kept
        self._defects += other._defects
        if other._histogram is not None:
            if self._histogram is None:
                self._histogram = _BitHistogram(self.max_bins)
            self._histogram.include(other._histogram)
        self._fold()

    def results(self) -> Curves:
        """The numbers and curves of everything counted so far; more may be added afterwards."""
        defects = _merge(self._defects, 0 if self._histogram is None else self._histogram.shift)
        if self._histogram is None:
            kept = np.sort(np.concatenate([np.empty(0, np.uint32), *self._kept]))
            below, up_to = np.searchsorted(kept, defects.keys, "left"), np.searchsorted(kept, defects.keys, "right")
        else:
            below, up_to = self._histogram.ranks(defects.keys)
        defects_up_to = np.cumsum(defects.counts)
        n_defect = int(defects.counts.sum())
        return _summarise(
            (self.n_pixels - up_to) - (n_defect - defects_up_to),
            (up_to - below) - defects.counts,
            defects.counts,
            defects.overlaps,
            self.n_pixels - n_defect,
            n_regions=self.n_regions,
            exact=self._histogram is None or self._histogram.shift == 0,
        )

    def _add_defects(self, keys: NDArray[np.uint32], regions: NDArray[np.intp]) -> None:
        at = np.flatnonzero(regions)
        if at.size == 0:
            return
        ids = regions[at]
        areas_px = np.bincount(ids)
        self.n_regions += int(np.count_nonzero(areas_px))
        self._defects.append(_Levels(keys[at], np.ones(at.size, np.int64), 1.0 / areas_px[ids]))

    def _fold(self) -> None:
        """Keep the memory within bounds: maps go into the histogram, equal scores of defects into one entry."""
        if self._histogram is None and self.n_pixels > self.exact_pixels:
            self._histogram = _BitHistogram(self.max_bins)
        if self._histogram is not None:
            for keys in self._kept:
                self._histogram.count(keys)
            self._kept = []
        # Merging only what has doubled costs no more, in all, than sorting everything a few times.
        if sum(levels.keys.size for levels in self._defects) > 2 * self._defects_merged + EXACT_PIXELS // 4:
            self._defects = [_merge(self._defects)]
            self._defects_merged = self._defects[0].keys.size


@dataclass(frozen=True)
class _Levels:
    """Scores of defect pixels: key, how many pixels have it, and their sum of 1 / region area. (K,) each."""

    keys: NDArray[np.uint32]
    counts: NDArray[np.int64]
    overlaps: NDArray[np.float64]


def _merge(levels: list[_Levels], shift: int = 0) -> _Levels:
    """One entry for every different key, ascending; `shift` trailing bits are dropped first."""
    empty = _Levels(np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0))
    keys = np.concatenate([part.keys for part in (empty, *levels)]) >> np.uint32(shift) << np.uint32(shift)
    if keys.size == 0:
        return empty
    order = np.argsort(keys)
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return _Levels(
        keys[first],
        np.add.reduceat(np.concatenate([part.counts for part in levels])[order], first),
        np.add.reduceat(np.concatenate([part.overlaps for part in levels])[order], first),
    )


class _BitHistogram:
    """Counts keys in pages of equal leading 16 bits; a page takes memory once a key falls into it.

    Attributes:
        shift: Trailing bits of a key that are not told apart.
        max_bins: Bins of all pages together, 4 bytes each, before `shift` grows by one.
    """

    def __init__(self, max_bins: int) -> None:
        self.shift = 0
        self.max_bins = max_bins
        self.n_pixels = 0
        self._pages = np.empty(0, np.intp)  # leading bits of each page, in the order the pages were opened
        # 32 bits while they suffice: half the memory traffic, which is what the time goes into.
        self._bins: NDArray[np.unsignedinteger] = np.zeros(0, np.uint32)
        self._offset = np.full(_PAGES, _UNOPENED, np.int64)  # (key >> shift) + offset = place of the key's bin
        self._scratch = np.empty(0, np.int64)

    def count(self, keys: NDArray[np.uint32], times: NDArray[np.unsignedinteger] | None = None) -> None:
        self.n_pixels += keys.size if times is None else int(times.sum(dtype=np.int64))
        if self.n_pixels > np.iinfo(np.uint32).max:
            self._bins = self._bins.astype(np.uint64, copy=False)
        places = self._places(keys)  # first: it may replace the bins
        np.add.at(self._bins, places, self._bins.dtype.type(1) if times is None else times)

    def include(self, other: _BitHistogram) -> None:
        while self.shift < other.shift:
            self._halve()
        page_size = 1 << (_PAGE_BITS - other.shift)
        for start, page in zip(range(0, other._bins.size, page_size), other._pages.tolist(), strict=False):
            bins = other._bins[start : start + page_size]
            used = np.flatnonzero(bins)
            self.count((page << _PAGE_BITS | used << other.shift).astype(np.uint32), bins[used])

    def ranks(self, keys: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each of these (K,) ascending keys, pixels in lower bins, and pixels in lower bins or its own."""
        below = np.empty(keys.size, np.int64)
        up_to = np.empty(keys.size, np.int64)
        page_size = 1 << (_PAGE_BITS - self.shift)
        passed = 0
        for slot in np.argsort(self._pages).tolist():
            page = int(self._pages[slot])
            bounds = np.array([page << _PAGE_BITS, (page << _PAGE_BITS) + (1 << _PAGE_BITS) - 1], np.uint32)
            first, last = np.searchsorted(keys, bounds[0], "left"), np.searchsorted(keys, bounds[1], "right")
            bins = self._bins[slot * page_size : (slot + 1) * page_size]
            if first == last:
                passed += int(bins.sum(dtype=np.int64))
                continue
            cumulated = passed + np.cumsum(bins, dtype=np.int64)
            places = (keys[first:last].astype(np.int64) & ((1 << _PAGE_BITS) - 1)) >> self.shift
            up_to[first:last] = cumulated[places]
            below[first:last] = cumulated[places] - bins[places].astype(np.int64)
            passed = int(cumulated[-1])
        return below, up_to

    def _places(self, keys: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Where in the bins each key is counted; valid until the next call."""
        if self._scratch.size < keys.size:
            self._scratch = np.empty(keys.size, np.int64)
        pages = keys >> np.uint32(_PAGE_BITS)
        # Pages are always in range; "clip" only spares `take` the copy of `out` that "raise" makes.
        places = np.take(self._offset, pages, out=self._scratch[: keys.size], mode="clip")
        places += keys >> np.uint32(self.shift)
        if places.size and places.min() < 0:
            self._open(np.unique(pages[places < 0]))
            return self._places(keys)
        return places

    def _open(self, pages: NDArray[np.uint32]) -> None:
        self._pages = np.concatenate([self._pages, pages.astype(np.intp)])
        while self._pages.size << (_PAGE_BITS - self.shift) > self.max_bins:
            self._halve()
        needed = self._pages.size << (_PAGE_BITS - self.shift)
        if needed > self._bins.size:
            grown = np.zeros(max(needed, min(2 * self._bins.size, self.max_bins)), self._bins.dtype)
            grown[: self._bins.size] = self._bins
            self._bins = grown
        self._place()

    def _halve(self) -> None:
        self.shift += 1
        self._bins = self._bins.reshape(-1, 2).sum(axis=1, dtype=self._bins.dtype)
        self._place()

    def _place(self) -> None:
        self._offset[self._pages] = (np.arange(self._pages.size) - self._pages) << (_PAGE_BITS - self.shift)


def _check_regions(regions: NDArray[np.integer], shape: tuple[int, ...]) -> NDArray[np.intp]:
    """(H*W,) the regions, when they fit a map of this shape."""
    if regions.shape != shape or regions.dtype.kind not in "iu":
        raise UsageError(
            f"regions must be integers of shape {shape}, one for each pixel of the anomaly map, "
            f"but got {regions.dtype} of shape {regions.shape}"
        )
    if regions.size and not (regions.min() >= 0 and regions.max() <= regions.size):
        raise UsageError(
            f"regions are numbered from {regions.min()} to {regions.max()}; expected 0 on good pixels and 1, 2, ... on "
            "the connected regions"
        )
    return regions.ravel().astype(np.intp, copy=False)


def _ordered_keys(anomaly_map: NDArray[np.float32]) -> NDArray[np.uint32]:
    """(H*W,) unsigned integers in the order of the scores; equal scores, 0.0 and -0.0 too, give equal keys."""
    if anomaly_map.ndim != 2 or anomaly_map.dtype != np.float32:
        raise UsageError(
            f"an anomaly map must be float32 of shape (H, W), but got {anomaly_map.dtype} of shape {anomaly_map.shape}"
        )
    bits = np.ascontiguousarray(anomaly_map).view(np.uint32).ravel()
    if bits.size == 0 or bits.max() < _INFINITY:  # no sign bit, no infinity, no NaN: by far the usual map
        return bits ^ _SIGN
    if not np.isfinite(anomaly_map).all():
        raise UsageError(
            "an anomaly map holds NaN or infinity; expected finite scores: the model that gave it is broken"
        )
    bits = (anomaly_map + np.float32(0)).view(np.uint32).ravel()  # -0.0 + 0.0 is 0.0
    return np.where(bits & _SIGN, ~bits, bits ^ _SIGN)


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
    above, tied, hits, overlap = good_above[::-1], good_tied[::-1], n_tied[::-1], overlap[::-1]  # strictest first
    found = np.cumsum(hits)
    alarms = found + above + tied
    auroc = 1.0 - float(np.sum(hits / n_defect * ((above + 0.5 * tied) / n_good)))
    ap = float(np.sum(hits * (found / alarms))) / n_defect  # in this order a perfect ranking gives 1 without rounding
    f1_max = float(np.max(2 * found / (alarms + n_defect)))
    rate = _corners(above / n_good, (above + tied) / n_good)
    recall = _corners((found - hits) / n_defect, found / n_defect)
    roc = _thin(rate, recall)
    if n_regions == 0:
        return Curves(auroc, ap, f1_max, None, None, n_good, n_defect, n_regions, exact, roc, none)
    covered = np.cumsum(overlap)  # the last is n_regions but for rounding, and the curve has to end at 1
    mean_overlap = _corners((covered - overlap) / covered[-1], covered / covered[-1])
    return Curves(
        auroc,
        ap,
        f1_max,
        _area_up_to(rate, mean_overlap, AUPRO_LIMIT),
        _area_up_to(rate, mean_overlap, AUPRO_STRICT_LIMIT),
        n_good,
        n_defect,
        n_regions,
        exact,
        roc,
        _thin(*_cut(rate, mean_overlap, AUPRO_LIMIT)),
    )


def _corners(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2K + 2,) one coordinate of a curve: (0, the corners before and after each level, 1)."""
    return np.concatenate([[0.0], np.stack([before, after], axis=1).ravel(), [1.0]])


def _cut(
    x: NDArray[np.float64], y: NDArray[np.float64], limit: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve up to x = limit, its last point interpolated linearly."""
    end = int(np.searchsorted(x, limit, "left"))  # x[end - 1] < limit <= x[end]
    share = (limit - x[end - 1]) / (x[end] - x[end - 1])
    return np.append(x[:end], limit), np.append(y[:end], y[end - 1] + share * (y[end] - y[end - 1]))


def _area_up_to(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    x, y = _cut(x, y, limit)
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / limit)


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most `PLOT_POINTS` corners of a rising curve, evenly spaced along it, both ends included."""
    if x.size > PLOT_POINTS:
        way = x + y
        at = np.searchsorted(way, np.linspace(way[0], way[-1], PLOT_POINTS))
        at = np.unique(np.concatenate([[0], np.clip(at, 0, x.size - 1)[1:-1], [x.size - 1]]))
        x, y = x[at], y[at]
    return np.stack([x, y], axis=1)
