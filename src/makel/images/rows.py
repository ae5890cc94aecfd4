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
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import ImageError
from makel.images import tiff
from makel.images.preparation import check_pixels
from makel.images.reading import MAX_PIXELS, opened, read, shown
from makel.images.tags import Malformed

if TYPE_CHECKING:
    from tifffile import TiffPage

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
    """Rows of a TIFF page of one plane, without alpha."""

    def __init__(self, page: TiffPage, shape: tuple[int, ...], name: str) -> None:
        self.shape = shape
        self.dtype = np.dtype(page.dtype).newbyteorder("=")
        self._page, self._name = page, name
        # The segment row decoded last: the next rows wanted often begin amid it.
        self._held: tuple[int, NDArray[Any]] = (0, np.empty((0, *shape[1:]), self.dtype))

    def read(self, start: int, stop: int) -> NDArray[Any]:
        try:
            pixels = self._contiguous(start, stop) if self._page.is_contiguous else self._segments(start, stop)
        except (*tiff.DAMAGE, Malformed) as error:
            raise ImageError(
                f"{self._name} is damaged in its rows {start} to {stop}: {' '.join(str(error).split())}; copy it again"
            ) from error
        return pixels

    def _contiguous(self, start: int, stop: int) -> NDArray[Any]:
        # Read and not mapped: mapped pages count as the memory of this process until the system wants them back.
        stored = np.dtype(self._page.dtype).newbyteorder(self._page.parent.byteorder)
        values = self.shape[1] * self._page.samplesperpixel
        stream = self._page.parent.filehandle
        stream.seek(self._page.dataoffsets[0] + start * values * stored.itemsize)
        data = stream.read((stop - start) * values * stored.itemsize)
        return self._without_alpha(np.frombuffer(data, stored).reshape(stop - start, self.shape[1], -1))

    def _segments(self, start: int, stop: int) -> NDArray[Any]:
        rows = np.empty((stop - start, *self.shape[1:]), self.dtype)
        at = start
        while at < stop:
            top, held = self._held
            if not top <= at < top + len(held):
                top, held = self._held = self._segment_row(at)
            until = min(stop, top + len(held))
            rows[at - start : until - start] = held[at - top : until - top]
            at = until
        return rows

    def _segment_row(self, row: int) -> tuple[int, NDArray[Any]]:
        """The strip, or all tiles side by side, that `row` is in: the first of its rows, and its pixels."""
        page, width = self._page, self.shape[1]
        high = page.tilelength if page.is_tiled else min(page.rowsperstrip, self.shape[0])
        wide = -(-width // page.tilewidth) if page.is_tiled else 1
        top = row - row % high
        pixels = np.empty((min(high, self.shape[0] - top), *self.shape[1:]), self.dtype)
        for index in range(row // high * wide, (row // high + 1) * wide):
            stream = page.parent.filehandle
            stream.seek(page.dataoffsets[index])
            decoded, (_, _, _, left, _), _ = page.decode(stream.read(page.databytecounts[index]), index)
            if decoded is None:
                raise Malformed(f"part {index} is empty")
            # The last tile of a row, and of a column, reaches beyond the image.
            part = np.asarray(decoded)[0, : len(pixels), : width - left]
            pixels[:, left : left + part.shape[1]] = self._without_alpha(part)
        return top, pixels

    def _without_alpha(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """(h, w, samples) in the file's byte order to (h, w) or (h, w, 3) in the machine's."""
        return (pixels[..., :3] if len(self.shape) == 3 else pixels[..., 0]).astype(self.dtype, copy=False)


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
    import tifffile  # 0.1 s to import, and most lines write PNG or BMP

    with opened(path):  # what is wrong with the file becomes an ImageError, not what goes wrong where its rows are used
        try:
            file = tifffile.TiffFile(Path(path))
            page = file.pages.first
        except tiff.DAMAGE as error:
            raise Malformed(f"is damaged: {' '.join(str(error).split())}; copy it again") from error
    with file:
        yield _TiffRows(page, shape, shown(path))


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
