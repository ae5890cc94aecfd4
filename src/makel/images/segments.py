"""The strips and tiles of a plain TIFF: 8 or 16 bits, grey or RGB, uncompressed, in Deflate or PackBits.

Each gives as many bytes as its pixels take, however many it could be inflated to. After the TIFF specification, 6.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from makel.images import tags as tag
from makel.images.inflate import BLOCK, inflated
from makel.images.tags import Malformed, Tags, first

NONE, PACKBITS = 1, 32773
DEFLATE = (8, 32946)
_HORIZONTAL = 2


@dataclass(frozen=True)
class Segments:
    """Where the pixels of a file are.

    Attributes:
        starts: Offset of each strip or tile, in bytes; planes after each other, rows of tiles after each other.
        lengths: Bytes of each.
        height: Of the image as stored.
        width: Its width.
        high: Rows of a strip or tile; the last strip may have fewer.
        wide: Columns of a tile, or `width`.
        planes: 1, or the samples of a pixel where each is stored by itself.
        samples: Samples of a pixel in a segment.
        dtype: Of a stored value, in the file's byte order.
        compression: As the tag has it.
        predictor: 1, or 2 where values are differences along a row.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    height: int
    width: int
    high: int
    wide: int
    planes: int
    samples: int
    dtype: np.dtype[Any]
    compression: int
    predictor: int

    @classmethod
    def of(cls, tags: Tags, byteorder: str) -> Self:
        """From the tags of a file, which were checked; `byteorder` is "<" or ">"."""
        height, width, samples = first(tags, tag.HEIGHT, 0), first(tags, tag.WIDTH, 0), first(tags, tag.SAMPLES, 1)
        tiled = tag.TILE_STARTS in tags
        starts = tags[tag.TILE_STARTS if tiled else tag.STRIP_STARTS]
        lengths = tags[tag.TILE_LENGTHS if tiled else tag.STRIP_LENGTHS]
        separate = first(tags, tag.PLANAR, 1) == 2 and samples > 1
        high = first(tags, tag.TILE_HEIGHT, 0) if tiled else min(first(tags, tag.STRIP_ROWS, height), height)
        compression = first(tags, tag.COMPRESSION, NONE)
        dtype = np.dtype(f"{byteorder}u{first(tags, tag.BITS, 8) // 8}")
        strip = high * width * samples * dtype.itemsize
        if compression == NONE and not tiled and not separate and _follow(starts, lengths, strip):
            # As good as one strip, of which any rows can be read.
            starts, lengths, high = starts[:1], (sum(lengths),), height
        return cls(
            starts=starts,
            lengths=lengths,
            height=height,
            width=width,
            high=high,
            wide=first(tags, tag.TILE_WIDTH, 0) if tiled else width,
            planes=samples if separate else 1,
            samples=1 if separate else samples,
            dtype=dtype,
            compression=compression,
            predictor=first(tags, tag.PREDICTOR, 1),
        )

    @property
    def by_rows(self) -> bool:
        """Whether any rows can be read without those before."""
        return self.compression == NONE and self.high == self.height and self.wide == self.width and self.planes == 1

    def pixels(self, stream: BinaryIO) -> NDArray[Any]:
        """All of them: (H, W, samples), in the machine's byte order.

        Raises:
            Malformed: A segment gives fewer bytes than its pixels take.
            zlib.error: One is damaged.
        """
        if self.by_rows:
            return self.rows(stream, 0, self.height)
        planes = np.empty((self.planes, self.height, self.width, self.samples), self.dtype.newbyteorder("="))
        for plane, pixels in enumerate(planes):
            for top in range(0, self.height, self.high):
                band = self.band(stream, top, plane)
                pixels[top : top + len(band)] = band
        return np.moveaxis(planes[..., 0], 0, -1) if self.planes > 1 else planes[0]

    def rows(self, stream: BinaryIO, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop`, exclusive, where `by_rows`: (stop - start, W, samples). Raises Malformed."""
        row = self.width * self.samples * self.dtype.itemsize
        stream.seek(self.starts[0] + start * row)
        return self._values(_read(stream, (stop - start) * row), stop - start)

    def band(self, stream: BinaryIO, row: int, plane: int = 0) -> NDArray[Any]:
        """The strip, or all tiles side by side, whose first row is `row`: (h, W, samples). Raises as `pixels`."""
        rows, across = min(self.high, self.height - row), -(-self.width // self.wide)
        first_index = (plane * -(-self.height // self.high) + row // self.high) * across
        whole = self.high if self.wide != self.width or across > 1 else rows
        tiles = [self._segment(stream, first_index + index, whole) for index in range(across)]
        side_by_side = tiles[0] if across == 1 else np.concatenate(tiles, axis=1)
        return side_by_side[:rows, : self.width]  # the last tile of a row, and of a column, reaches beyond the image

    def _segment(self, stream: BinaryIO, index: int, rows: int) -> NDArray[Any]:
        most = rows * self.wide * self.samples * self.dtype.itemsize
        stream.seek(self.starts[index])
        if self.compression in DEFLATE:
            return self._values(b"".join(inflated(_blocks(stream, self.lengths[index]), most)), rows)
        if self.compression == PACKBITS:
            return self._values(_unpacked(stream.read(self.lengths[index]), most), rows)
        return self._values(_read(stream, min(self.lengths[index], most)), rows)

    def _values(self, data: bytes | memoryview, rows: int) -> NDArray[Any]:
        count = rows * self.wide * self.samples
        if len(data) < count * self.dtype.itemsize:
            raise Malformed(f"{len(data)} of {count * self.dtype.itemsize} bytes of a part are there")
        values = np.frombuffer(data, self.dtype, count).reshape(rows, self.wide, self.samples)
        native = self.dtype.newbyteorder("=")
        if self.predictor == _HORIZONTAL:
            return np.cumsum(values, axis=1, dtype=native)
        return values.astype(native, copy=False)


def _follow(starts: tuple[int, ...], lengths: tuple[int, ...], strip: int) -> bool:
    """Whether strips of so many bytes lie one after the other."""
    return all(
        length == strip and start + length == after
        for start, length, after in zip(starts, lengths, starts[1:], strict=False)
    )


def _read(stream: BinaryIO, count: int) -> memoryview:
    """As many bytes, or what there is, in memory that may be written to."""
    data = memoryview(bytearray(count))
    return data[: stream.readinto(data)]  # type: ignore[attr-defined]  # of every stream that is opened or in memory


def _blocks(stream: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (block := stream.read(min(BLOCK, length))):
        length -= len(block)
        yield block


def _unpacked(data: bytes, most: int) -> bytes:
    """PackBits: a count n, then n + 1 bytes as they are; or 257 - n times the next one."""
    parts, at = bytearray(), 0
    while len(parts) < most and at < len(data):
        count = data[at]
        if count < 128:
            parts += data[at + 1 : at + 2 + count]
            at += 2 + count
        elif count > 128:
            parts += data[at + 1 : at + 2] * (257 - count)
            at += 2
        else:
            at += 1
    return bytes(parts)
