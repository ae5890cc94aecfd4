"""Images by rows: what is too large for memory is read as it is needed, from the top down.

An uncompressed TIFF gives any rows at the cost of reading them; one in Deflate or PackBits is decoded strip by strip,
or one row of its tiles at a time. Everything else is decoded once and kept.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import ImageError
from makel.images import tiff
from makel.images.preparation import check_pixels
from makel.images.reading import MAX_PIXELS, opened, read, shown
from makel.images.segments import Segments
from makel.images.tags import Malformed

MAX_STREAMED_PIXELS = 4_000_000_000
"""Largest image read by rows: as much map as a disk has room for, and more than any camera gives."""

_MAX_SEGMENT_PIXELS = 1 << 25
"""A compressed strip or tile is decoded whole; a file with larger ones is no easier on memory than any other."""

_REDUCED_ROWS = 32


class Rows(ABC):
    """An upright image that gives its rows.

    Attributes:
        shape: (H, W), or (H, W, 3) in RGB.
        dtype: uint8 or uint16; whatever an array has that was given.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`, exclusive: (stop - start, W) or (stop - start, W, 3).

        Raises:
            ImageError: The file is damaged there.
        """


class DecodedRows(Rows):
    """Rows of pixels that are in memory."""

    def __init__(self, pixels: NDArray[Any], *, name: str = "image") -> None:
        """Take pixels as `prepare` does; `name` is for the ImageError where they are no image."""
        check_pixels(pixels, name)
        self._pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
        self.shape, self.dtype = self._pixels.shape, pixels.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See `Rows`; a view."""
        return self._pixels[start:stop]


class _TiffRows(Rows):
    """Rows of a TIFF of one plane, without alpha."""

    def __init__(self, stream: BinaryIO, segments: Segments, shape: tuple[int, ...], name: str) -> None:
        self.shape = shape
        self.dtype = segments.dtype.newbyteorder("=")
        self._stream, self._segments, self._name = stream, segments, name
        # The segment row decoded last: the next rows wanted often begin amid it.
        self._held: tuple[int, NDArray[Any]] = (0, np.empty((0, *shape[1:]), self.dtype))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        try:
            if self._segments.by_rows:
                return self._without_alpha(self._segments.rows(self._stream, start, stop))
            return self._from_bands(start, stop)
        except (*tiff.DAMAGE, Malformed) as error:
            raise ImageError(
                f"{self._name} is damaged in its rows {start} to {stop}: {' '.join(str(error).split())}; copy it again"
            ) from error

    def _from_bands(self, start: int, stop: int) -> NDArray[Any]:
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        at = start
        while at < stop:
            top, held = self._held
            if not top <= at < top + len(held):
                top = at - at % self._segments.high
                held = self._without_alpha(self._segments.band(self._stream, top))
                self._held = top, held
            until = min(stop, top + len(held))
            rows[at - start : until - start] = held[at - top : until - top]
            at = until
        return rows

    def _without_alpha(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return tiff.without_alpha(pixels, 3 if len(self.shape) == 3 else 1)


@contextmanager
def open_rows(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Iterator[Rows]:
    """Open an image to read by rows.

    Args:
        path: An image file, as for `read`.
        max_pixels: A larger image is refused where it has to be decoded whole; one that is read by rows may have
            `MAX_STREAMED_PIXELS`.

    Raises:
        ImageError: As `read`.
    """
    with opened(path) as (stream, size, header):
        shape = (header.height_px, header.width_px) + ((3,) if header.channels == 3 else ())
        by_rows = header.format == "TIFF" and tiff.streams(stream, size, header, _MAX_SEGMENT_PIXELS)
        if by_rows and shape[0] * shape[1] > MAX_STREAMED_PIXELS:
            raise Malformed(
                f"has {shape[1]}x{shape[0]} pixels, at most {MAX_STREAMED_PIXELS} are read by rows: cut it into parts"
            )
    if not by_rows:
        yield DecodedRows(read(path, max_pixels=max_pixels))
        return
    with opened(path) as (stream, size, _):
        segments = tiff.segments(stream, size)
    with Path(path).open("rb") as stream:
        yield _TiffRows(stream, segments, shape, shown(path))


def read_reduced(path: str | os.PathLike[str], side_px: int, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """An image reduced by the whole number that brings its longer side to `side_px` at most, in little memory.

    Args:
        path: As for `open_rows`.
        side_px: Longest side wanted; a smaller image stays as it is.
        max_pixels: As for `open_rows`.

    Returns:
        (ceil(H / n), ceil(W / n)) or the same with 3 channels; each pixel the mean of those it stands for.

    Raises:
        ImageError: As `open_rows`.
    """
    with open_rows(path, max_pixels=max_pixels) as rows:
        height, width = rows.shape[:2]
        factor = reduction((height, width), side_px)
        if factor == 1:
            return np.ascontiguousarray(rows.read(0, height))
        parts = []
        for start in range(0, height, factor * _REDUCED_ROWS):
            part = rows.read(start, min(height, start + factor * _REDUCED_ROWS))
            size = (-(-width // factor), -(-len(part) // factor))
            parts.append(cv2.resize(part, size, interpolation=cv2.INTER_AREA))
        return np.concatenate(parts)


def reduction(shape: tuple[int, ...], side_px: int) -> int:
    """The whole number by which (H, W) has to be divided to be `side_px` at most."""
    return max(1, -(-max(shape[:2]) // side_px))
