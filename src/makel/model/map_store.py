"""Anomaly maps too large for memory: written band by band to a file without a name, read as any array is."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from makel.errors import MakelError

Value = TypeVar("Value", np.float32, np.uint8)

MEMORY_LIMIT_PX = 1 << 24
"""A map of at most so many pixels, 64 MiB, stays in memory."""


class MapStore:
    """An anomaly map in the making.

    A large one goes to the system's folder for temporary files (`TMPDIR` names another), four bytes a pixel. Its file
    has no name there, so nothing is left behind however the process ends, and it lasts as long as the array.
    """

    def __init__(self, height_px: int, width_px: int) -> None:
        self._shape = (height_px, width_px)
        self._at = 0
        in_memory = height_px * width_px <= MEMORY_LIMIT_PX
        self._array = np.empty(self._shape, np.float32) if in_memory else None
        self._file = None if in_memory else tempfile.TemporaryFile()  # noqa: SIM115, closed in `finish`

    def add(self, band: NDArray[np.float32]) -> None:
        """The next rows, (h, W) float32.

        Raises:
            MakelError: The disk has no room for them.
        """
        if self._array is not None:
            self._array[self._at : self._at + len(band)] = band
        elif self._file is not None:
            try:
                self._file.write(np.ascontiguousarray(band).data)
            except OSError as error:
                size = 4 * self._shape[0] * self._shape[1] >> 20
                raise MakelError(
                    f"{tempfile.gettempdir()} cannot take a map of {size} MiB ({error.strerror}): make room, or let "
                    "TMPDIR name a folder with more"
                ) from error
        self._at += len(band)

    def finish(self) -> NDArray[np.float32]:
        """(H, W) float32; one in a file is read-only."""
        if self._file is None:
            assert self._array is not None
            return self._array
        with self._file as file:
            file.flush()
            # Mapped rather than written through a map: pages a process writes to count as its memory.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.ndarray(self._shape, np.float32, buffer=mapped)


def is_in_file(anomaly_map: NDArray[np.float32]) -> bool:
    """Whether a map was too large for memory."""
    return isinstance(anomaly_map.base, mmap.mmap)


def bands(anomaly_map: NDArray[Value], rows: int) -> Iterator[NDArray[Value]]:
    """A map from the top, so many rows at a time; of one in a file, no more than that stays in memory."""
    for start in range(0, len(anomaly_map), rows):
        yield anomaly_map[start : start + rows]
        if isinstance(anomaly_map.base, mmap.mmap) and hasattr(anomaly_map.base, "madvise"):
            anomaly_map.base.madvise(mmap.MADV_DONTNEED)


def reduce_peaks(anomaly_map: NDArray[Value], factor: int) -> NDArray[Value]:
    """A map, or a mask, reduced by a whole number n: each pixel the highest of those it stands for.

    Args:
        anomaly_map: (H, W).
        factor: n.

    Returns:
        (ceil(H / n), ceil(W / n)).
    """
    if factor == 1:
        return anomaly_map
    columns = np.arange(0, anomaly_map.shape[1], factor)
    reduced = [
        np.maximum.reduceat(np.maximum.reduceat(band, np.arange(0, len(band), factor), axis=0), columns, axis=1)
        for band in bands(anomaly_map, 32 * factor)
    ]
    return np.concatenate(reduced)
