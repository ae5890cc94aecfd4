"""JPEG 2000: what a file says of itself, and that decoding it takes no more than its pixels are worth.

A decoder keeps books on every tile, precinct, code-block and layer before it reads a pixel, and few bytes can claim
many of them. After ITU-T T.800, annexes A and I.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from makel.images.containers import Header
from makel.images.tags import Malformed, take

_MOST_PIXELS = 32_000_000
"""A decoder holds every component in 32 bits, twice: this is a gigabyte."""

_MOST_LAYERS = 100
_LEAST_TILE_PX, _FEW_TILES = 1 << 12, 64
"""Pixels of a tile, where there are more than a few."""

_LEAST_PRECINCT, _LEAST_BLOCK = 5, 4
"""Exponents of the sides of a precinct, and of the mean side of a code-block."""

_MOST_BOXES = 1000
_SIZ, _COD, _COC, _SOT, _SOD, _EOC = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_UNKNOWN_COLOUR, _RGB, _GREY = 0, 16, 17


def read_jp2_header(stream: BinaryIO, size: int) -> Header:
    """The header of a JPEG 2000 file, or of a bare codestream of it."""
    stream.seek(0)
    start = _codestream(stream, size) if take(stream, 2) == b"\0\0" else 0
    stream.seek(start + 2)
    header = None
    for code, content in _segments(stream):
        if code == _SIZ:
            header = _size(content)
        elif code == _COD:
            _check_coding(content, 5, content[:1])
            if struct.unpack(">H", content[2:4])[0] > _MOST_LAYERS:
                raise Malformed(f"has more than {_MOST_LAYERS} layers of quality: it is not a plain image")
        elif code == _COC:
            _check_coding(content, 2, content[1:2])
    if header is None:
        raise Malformed("is damaged: it says no size; copy it again")
    return header


def _codestream(stream: BinaryIO, size: int) -> int:
    """Where the codestream of a JP2 file begins, once its colours are seen to be of a kind that is read."""
    position = 0
    for _ in range(_MOST_BOXES):
        stream.seek(position)
        length, name = struct.unpack(">I4s", take(stream, 8))
        start = position + 8
        if length == 1:
            length, start = struct.unpack(">Q", take(stream, 8))[0], start + 8
        end = position + length if length else size
        if not start <= end <= size:
            raise Malformed(f"is cut short: {size} of {end} bytes are there; copy it again")
        if name == b"jp2c":
            return start
        if name == b"pclr":
            raise Malformed("has a palette: save it as RGB or grey")
        if name == b"colr":
            method, _, _, space = struct.unpack(">BBBI", take(stream, 7))
            if method == 1 and space not in (_UNKNOWN_COLOUR, _RGB, _GREY):
                raise Malformed(f"is neither RGB nor grey (colour space {space}): save it as RGB or grey")
        # The header box holds boxes itself: they come next.
        position = start if name == b"jp2h" else end
    raise Malformed("is damaged: it holds no codestream; copy it again")


def _segments(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Code and content of each segment of the main header, and of the headers of all parts of tiles."""
    part_end = None
    for _ in range(1 << 20):
        at = stream.tell()
        code = struct.unpack(">H", take(stream, 2))[0]
        if code == _EOC:
            return
        if code == _SOD:
            if part_end is None:  # the last part may say no length: it goes on to the end
                return
            stream.seek(part_end)
            continue
        if code < 0xFF00:
            raise Malformed("is damaged between its parts; copy it again")
        content = take(stream, max(struct.unpack(">H", take(stream, 2))[0] - 2, 0))
        if code == _SOT:
            length = struct.unpack(">HIBB", content)[1]
            part_end = max(at + length, stream.tell()) if length else None
        yield code, content
    raise Malformed("has more parts than an image has: it is not a plain image")


def _size(content: bytes) -> Header:
    right, low, left, top, tile_wide, tile_high, tile_left, tile_top, components = struct.unpack(">8IH", content[2:36])
    width, height = right - left, low - top
    if width <= 0 or height <= 0 or not tile_wide or not tile_high:
        raise Malformed(f"has no pixels: {width}x{height}")
    if width * height > _MOST_PIXELS:
        raise Malformed(f"has {width}x{height} pixels, at most {_MOST_PIXELS} are read of JPEG 2000: save it as TIFF")
    tiles = -(-(right - tile_left) // tile_wide) * -(-(low - tile_top) // tile_high)
    if tiles > _FEW_TILES and tile_wide * tile_high < _LEAST_TILE_PX:
        raise Malformed(f"has {tiles} tiles for {width}x{height} pixels: it is not a plain image")
    each = [content[36 + 3 * index : 39 + 3 * index] for index in range(components)]
    if components not in (1, 2, 3, 4) or len({*each}) != 1 or each[0][1:] != b"\x01\x01":
        raise Malformed(f"has {components} components, or of different kinds: save it as RGB or grey")
    bits = each[0][0] + 1  # the highest bit says that values are signed
    if bits not in (8, 16):
        raise Malformed(f"has {bits & 0x7F} bits a value; 8 or 16 without a sign were expected: save it so")
    return Header("JPEG 2000", width, height, 3 if components > 2 else 1, bits)


def _check_coding(content: bytes, at: int, style: bytes) -> None:
    """Refuse tiny code-blocks and precincts.

    Args:
        content: Of the segment.
        at: Where the number of levels is in it.
        style: Its byte of flags.
    """
    levels, wide, high = content[at : at + 3]
    precincts = content[at + 5 : at + 6 + levels] if style[0] & 1 else b""
    small = any(min(sides & 0x0F, sides >> 4) < _LEAST_PRECINCT for sides in precincts)
    if wide + high + 4 < 2 * _LEAST_BLOCK or small:
        raise Malformed("is cut into parts too tiny for an image: save it again")
