"""A histogram with a bin for every float32, for ranking any number of scores exactly in bounded memory."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 16
"""What is worked on at a time stays in a processor's cache."""

_PAGE_BITS = 16
PAGES = 1 << (32 - _PAGE_BITS)
"""Pages that the keys of all float32 would fill."""

_UNOPENED = -(1 << 40)


class BitHistogram:
    """Counts keys in pages of equal leading 16 bits; a page takes memory once a key falls into it.

    Attributes:
        shift: Trailing bits of a key that are not told apart.
        max_bins: Bins of all pages together before `shift` grows by one.
        n_pixels: Keys counted.
    """

    def __init__(self, max_bins: int) -> None:
        self.shift = 0
        self.max_bins = max_bins
        self.n_pixels = 0
        self._pages = np.empty(0, np.intp)  # leading bits of each page, ascending
        # As few bytes as suffice: what counting takes is the time to reach a bin, and few bins fit a processor's cache.
        self._bins: NDArray[np.unsignedinteger] = np.zeros(0, np.uint8)
        self._offset = np.full(PAGES, _UNOPENED, np.int64)  # (key >> shift) + offset = place of the key's bin

    def count(self, keys: NDArray[np.uint32]) -> None:
        """Count (N,) keys. It looks at every bin once, so it is best called with many."""
        if keys.size == 0:
            return
        step = self._step(keys)
        if step is None:
            self._open_for(keys)
            step = self._step(keys)
        self._tally(np.add, keys, step)
        self.n_pixels += keys.size
        while self._total() != self.n_pixels:
            # A bin went past the largest number it holds and began again at 0. Counting back undoes that exactly.
            self._tally(np.subtract, keys, step)
            self._widen()
            self._tally(np.add, keys, step)

    def include(self, other: BitHistogram) -> None:
        """Count everything that `other`, which stays as it is, has counted."""
        while self.shift < other.shift:
            self._halve()
        self._open(other._pages)
        bins = other._bins.reshape(-1, 1 << (self.shift - other.shift)).sum(axis=1, dtype=np.uint64)
        while bins.size and int(self._bins.max()) + int(bins.max()) > np.iinfo(self._bins.dtype).max:
            self._widen()
        slots = np.searchsorted(self._pages, other._pages)
        self._by_page(self._bins)[slots] += self._by_page(bins).astype(self._bins.dtype)
        self.n_pixels += other.n_pixels

    def ranks(self, keys: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each of these (K,) ascending keys, pixels in lower bins, and pixels in lower bins or its own."""
        below = np.empty(keys.size, np.int64)
        up_to = np.empty(keys.size, np.int64)
        # The first key of each page, and of the one behind the last.
        bounds = [*np.searchsorted(keys, (self._pages << _PAGE_BITS).astype(np.uint32)).tolist(), keys.size]
        places = ((keys & np.uint32(PAGES - 1)) >> np.uint32(self.shift)).astype(np.intp)
        passed = 0
        cumulated = np.empty(1 << (_PAGE_BITS - self.shift), np.int64)
        for bins, first, last in zip(self._by_page(self._bins), bounds[:-1], bounds[1:], strict=True):
            if first == last:
                passed += int(bins.sum(dtype=np.int64))
                continue
            np.cumsum(bins, dtype=np.int64, out=cumulated)
            np.add(cumulated[places[first:last]], passed, out=up_to[first:last])
            np.subtract(up_to[first:last], bins[places[first:last]], out=below[first:last], casting="unsafe")
            passed += int(cumulated[-1])
        return below, up_to

    def _tally(self, operation: np.ufunc, keys: NDArray[np.uint32], step: int | None) -> None:
        one = self._bins.dtype.type(1)
        places = np.empty(min(CHUNK, keys.size), np.intp)
        for start in range(0, keys.size, CHUNK):
            chunk = keys[start : start + CHUNK]
            out = places[: chunk.size]
            if step is None:
                # Pages are always in range; "clip" only spares `take` the copy of `out` that "raise" makes.
                np.take(self._offset, chunk >> np.uint32(_PAGE_BITS), out=out, mode="clip")
                out += chunk >> np.uint32(self.shift)
            else:
                np.add(chunk, np.uint32(step % (1 << 32)), out=out, casting="unsafe")
            operation.at(self._bins, out, one)

    def _total(self) -> int:
        if self._bins.itemsize <= 2:  # many times as fast, and exact: sums of integers, in float64
            return int(cv2.sumElems(self._bins)[0])
        return int(self._bins.sum(dtype=np.uint64))

    def _step(self, keys: NDArray[np.uint32]) -> int | None:
        """What leads from each of these keys to its bin; None where that is not the same for all."""
        lowest, highest = (int(self._offset[int(key) >> _PAGE_BITS]) for key in (keys.min(), keys.max()))
        # Pages lie in order, so two that are as far apart in the bins as they are by key have all between them open.
        return lowest if lowest == highest != _UNOPENED and self.shift == 0 else None

    def _open_for(self, keys: NDArray[np.uint32]) -> None:
        seen = self._offset != _UNOPENED
        for start in range(0, keys.size, CHUNK):
            chunk = keys[start : start + CHUNK]
            lowest, highest = int(chunk.min()) >> _PAGE_BITS, int(chunk.max()) >> _PAGE_BITS
            if not seen[lowest : highest + 1].all():
                seen[chunk >> np.uint32(_PAGE_BITS)] = True
        found = np.flatnonzero(seen)
        first, last = int(found[0]), int(found[-1])
        if last - first < min(2 * found.size, self.max_bins >> _PAGE_BITS):  # with no gap, counting is faster
            seen[first : last + 1] = True
        self._open(np.flatnonzero(seen))

    def _open(self, pages: NDArray[np.intp]) -> None:
        pages = np.flatnonzero(np.isin(np.arange(PAGES), np.concatenate([self._pages, pages])))
        while pages.size << (_PAGE_BITS - self.shift) > self.max_bins:
            self._halve()
        if pages.size > self._pages.size:
            opened = np.zeros(pages.size << (_PAGE_BITS - self.shift), self._bins.dtype)
            self._by_page(opened)[np.searchsorted(pages, self._pages)] = self._by_page(self._bins)
            self._pages, self._bins = pages, opened
        self._offset[pages] = (np.arange(pages.size) - pages) << (_PAGE_BITS - self.shift)

    def _halve(self) -> None:
        if self._bins.size and int(self._bins.max()) > np.iinfo(self._bins.dtype).max // 2:
            self._widen()
        self.shift += 1
        self._bins = self._bins.reshape(-1, 2).sum(axis=1, dtype=self._bins.dtype)

    def _widen(self) -> None:
        self._bins = self._bins.astype(f"u{2 * self._bins.dtype.itemsize}")

    def _by_page(self, bins: NDArray[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
        return bins.reshape(-1, 1 << (_PAGE_BITS - self.shift))
