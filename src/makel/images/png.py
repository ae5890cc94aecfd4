"""PNG: what a file says of itself, and its pixels' data no longer than they may be. After the W3C specification."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from makel.images.containers import ANIMATED, Header, check_plausible, exif_orientation, is_grey, upright
from makel.images.inflate import BLOCK, inflated
from makel.images.tags import Malformed, take

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS = 200_000
"""One for each row of the tallest image known, and time to spare."""

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Colour type → values a pixel, and bits of one."""

_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of Adam7: first column and row, and the steps between them."""

_REPACKED = 64 << 20
"""Up to so many bytes of pixels are handed to the decoder as they were inflated here; more would be memory for a third
copy, so they are inflated twice."""


def read_png_header(stream: BinaryIO, size: int) -> Header:
    """The header of a PNG, once all its chunks are seen to be there."""
    width = height = depth = kind = 0
    orientation, grey, palette = 1, False, False
    for name, length in _chunks(stream, size):
        if name == b"IHDR":
            width, height, depth, kind, *ways = struct.unpack(">IIBBBBB", take(stream, 13))
            if depth not in _DEPTHS.get(kind, ()) or ways[:2] != [0, 0] or ways[2] > 1:
                raise Malformed(f"is damaged: colour type {kind} of {depth} bits, in ways {ways}; copy it again")
            grey = kind in (0, 4)
            check_plausible(width, height, size)
        elif name == b"PLTE" and kind == 3:
            grey, palette = is_grey(take(stream, length), 3), True
        elif name == b"eXIf":
            orientation = exif_orientation(take(stream, length))
        elif name == b"acTL":
            raise Malformed(ANIMATED)
        elif name == b"IDAT" and kind == 3 and not palette:
            raise Malformed("is damaged: it has no palette before its pixels; copy it again")
    return upright("PNG", width, height, 1 if grey else 3, 16 if depth == 16 else 8, orientation)


def bare_png(data: bytes) -> bytes:
    """A PNG with nothing but its pixels, and of their data no more than they take.

    What does not change pixels is what libpng prints to the terminal about, and behind the last pixel it goes on
    inflating: a few megabytes kept it busy for half a minute.

    Raises:
        Malformed: A checksum is wrong, or there are too few pixels.
    """
    kept: list[bytes | memoryview] = [_SIGNATURE]
    stream, compressed = io.BytesIO(data), []
    view, expected = memoryview(data), 0
    for name, length in _chunks(stream, len(data)):
        if name[0] & 0x20:  # a lower-case letter: not needed to show the picture
            continue
        start = stream.tell()
        content = view[start : start + length]
        if zlib.crc32(content, zlib.crc32(name)) != int.from_bytes(view[start + length : start + length + 4], "big"):
            raise Malformed(
                f"is damaged: the checksum of the {name!r} chunk at byte {start - 8} is wrong; copy it again"
            )
        if name == b"IDAT":
            compressed.append(content)
        elif name != b"IEND":
            expected = _raw_size(content) if name == b"IHDR" else expected
            kept += _chunk(name, content)
    return b"".join([*kept, *_chunk(b"IDAT", _inflated(b"".join(compressed), expected)), *_chunk(b"IEND", b"")])


def _inflated(compressed: bytes, expected: int) -> bytes:
    """Compressed data that give `expected` bytes and no more, without compression where they are few.

    Raises:
        Malformed: They give fewer; or, of many, more; or they are damaged.
    """
    repack, store = expected <= _REPACKED, zlib.compressobj(0)
    parts, missing = [], expected
    try:
        blocks = (compressed[start : start + BLOCK] for start in range(0, len(compressed), BLOCK))
        for piece in inflated(blocks, expected + 1):
            if repack:
                parts.append(store.compress(piece[:missing]))
            missing -= len(piece)
    except zlib.error as error:
        raise Malformed(f"is damaged: {error}; copy it again") from error
    if missing > 0:
        raise Malformed(f"is cut short: {missing} of {expected} bytes of its pixels are missing; copy it again")
    if missing < 0 and not repack:
        raise Malformed("is damaged: its compressed data go on behind its last pixel; save it again")
    return b"".join([*parts, store.flush()]) if repack else compressed


def _raw_size(header: memoryview) -> int:
    """Bytes of the pixels before compression: each row of each pass with its filter's number before it."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    total = 0
    for left, top, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * _SAMPLES[kind] * depth // 8))
    return total


def _chunk(name: bytes, content: bytes | memoryview) -> tuple[bytes | memoryview, ...]:
    checksum = zlib.crc32(content, zlib.crc32(name))
    return struct.pack(">I4s", len(content), name), content, struct.pack(">I", checksum)


def _chunks(stream: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Name and length of each chunk up to IEND, the stream standing at its content."""
    position, first = len(_SIGNATURE), True
    for _ in range(_MOST_CHUNKS):
        if position + 12 > size:
            break
        stream.seek(position)
        length, name = struct.unpack(">I4s", take(stream, 8))
        if first and (name, length) != (b"IHDR", 13):
            raise Malformed("is damaged: it does not begin with its header")
        position, first = position + 12 + length, False
        if position > size:
            break
        yield name, length
        if name == b"IEND":
            return
    else:
        raise Malformed(f"has more than {_MOST_CHUNKS} chunks: it is not a plain image")
    raise Malformed("is cut short: it ends before its IEND chunk; copy it again")
