"""TIFF: what its tags say, and its pixels by whichever decoder stops at damage instead of returning part of them."""

from __future__ import annotations

import logging
import struct
import zlib
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.images.containers import ORIENTATION, Header, orientation_in, upright
from makel.images.tags import Malformed, Tags, read_tags

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES = 256, 257, 258, 259, 262, 277
_STRIP_STARTS, _STRIP_LENGTHS, _STRIP_ROWS = 273, 279, 278
_TILE_STARTS, _TILE_LENGTHS, _TILE_WIDTH, _TILE_HEIGHT = 324, 325, 322, 323
_PLANAR, _PALETTE, _SAMPLE_FORMAT = 284, 320, 339
_WANTED = (
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _STRIP_STARTS, _STRIP_LENGTHS, _STRIP_ROWS),
    *(_TILE_STARTS, _TILE_LENGTHS, _TILE_WIDTH, _TILE_HEIGHT, _PLANAR, _PALETTE, _SAMPLE_FORMAT, ORIENTATION),
)

_LZW = 5
_COMPRESSIONS = (1, _LZW, 8, 32773, 32946)
"""None, LZW, Deflate, PackBits, and the old number of Deflate."""

DAMAGE = (OSError, ValueError, TypeError, LookupError, SyntaxError, Warning, struct.error, zlib.error)
"""What tifffile and Pillow raise over a damaged file; warnings are raised where the user made them errors."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _INDEXED = range(4)
_DEPTHS = {
    # photometric interpretation: bits a value
    _WHITE_IS_ZERO: (1, 4, 8),
    _BLACK_IS_ZERO: (1, 4, 8, 16),
    _RGB: (8, 16),
    _INDEXED: (1, 4, 8),
}


# What tifffile finds odd would reach the terminal through Python's handler of last resort; an application that sets up
# logging still receives it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read_tiff_header(stream: BinaryIO, size: int) -> Header:
    """The header of a TIFF file of one page.

    Args:
        stream: The file.
        size: Its bytes.

    Raises:
        Malformed: It is cut short, or of a kind makel does not read.
    """
    tags, following = read_tags(stream, size, _WANTED)
    if following:
        raise Malformed("holds more than one page: save the page to inspect as a file of its own")
    compression, photometric = _first(tags, _COMPRESSION, 1), _first(tags, _PHOTOMETRIC, -1)
    if compression not in _COMPRESSIONS:
        raise Malformed(
            f"is compressed in way {compression}; None, LZW, Deflate and PackBits are read: save it as one of them"
        )
    if photometric not in _DEPTHS:
        raise Malformed(f"is neither grey, RGB nor palette (photometric {photometric}): save it as RGB or grey")
    depths, samples = tags.get(_BITS, (1,)), _first(tags, _SAMPLES, 1)
    bits = depths[0]
    if len(set(depths)) > 1 or bits not in _DEPTHS[photometric]:
        came, expected = (", ".join(map(str, numbers)) for numbers in (depths[:4], _DEPTHS[photometric]))
        raise Malformed(f"has {came} bits a value; one of {expected} for all was expected: save it with 8 or 16")
    if set(tags.get(_SAMPLE_FORMAT, (1,))) != {1}:
        raise Malformed("has signed or floating-point values: save it with unsigned 8 or 16 bits")
    if not (3 if photometric == _RGB else 1) <= samples <= 4:
        raise Malformed(f"has {samples} samples a pixel: save it as RGB or grey")
    _check_complete(tags, size)
    colour = photometric == _RGB or (photometric == _INDEXED and not _is_grey(tags.get(_PALETTE, ())))
    width, height = _first(tags, _WIDTH, 0), _first(tags, _HEIGHT, 0)
    return upright("TIFF", width, height, 3 if colour else 1, 16 if bits == 16 else 8, orientation_in(tags))


def decode_tiff(stream: BinaryIO, size: int, header: Header) -> NDArray[Any]:
    """The pixels of a TIFF file as they are stored, not turned upright.

    tifffile is several times faster on the line-scan camera's uncompressed files, and stops at damage. It cannot read
    LZW by itself: Pillow can, but neither 16-bit RGB; and OpenCV stops at damage in 16 bits only.

    Args:
        stream: The file.
        size: Its bytes.
        header: Its header.

    Returns:
        (H, W) or (H, W, 3) uint8 or uint16, RGB, without alpha.

    Raises:
        Malformed: It is damaged.
    """
    tags, _ = read_tags(stream, size, _WANTED)
    try:
        pixels = _decode(stream, tags, header)
    except DAMAGE as error:
        raise Malformed(f"is damaged: {' '.join(str(error).split())}; copy it again") from error
    if pixels.ndim == 2:
        return pixels
    return pixels[..., :3] if header.channels == 3 else pixels[..., 0]


def streams(stream: BinaryIO, size: int, header: Header, max_segment_pixels: int) -> bool:
    """Whether a TIFF file gives its rows without all of it in memory: upright, in one plane, plain values.

    Args:
        stream: The file.
        size: Its bytes.
        header: Its header.
        max_segment_pixels: Largest compressed strip or tile.

    Raises:
        Malformed: It is damaged.
    """
    tags, _ = read_tags(stream, size, _WANTED)
    compression = _first(tags, _COMPRESSION, 1)
    separate = _first(tags, _PLANAR, 1) == 2 and _first(tags, _SAMPLES, 1) > 1
    if header.orientation != 1 or separate or compression == _LZW or not _is_plain(tags):
        return False
    if _TILE_STARTS in tags:
        segment = _first(tags, _TILE_WIDTH, 0) * _first(tags, _TILE_HEIGHT, 0)
        return segment <= max_segment_pixels
    rows = min(_first(tags, _STRIP_ROWS, header.height_px), header.height_px)
    # Strips of an uncompressed file that follow each other are read row by row.
    starts, lengths = tags[_STRIP_STARTS], tags[_STRIP_LENGTHS]
    follow = all(start + length == after for start, length, after in zip(starts, lengths, starts[1:], strict=False))
    return (compression == 1 and follow) or rows * header.width_px <= max_segment_pixels


def _is_plain(tags: Tags) -> bool:
    return _first(tags, _PHOTOMETRIC, -1) in (_BLACK_IS_ZERO, _RGB) and _first(tags, _BITS, 1) in (8, 16)


def _decode(stream: BinaryIO, tags: Tags, header: Header) -> NDArray[Any]:
    stream.seek(0)
    if _is_plain(tags) and _first(tags, _COMPRESSION, 1) != _LZW:
        return _with_tifffile(stream, separate=_first(tags, _PLANAR, 1) == 2 and _first(tags, _SAMPLES, 1) > 1)
    if header.bit_depth == 16:
        return _with_opencv(stream)
    return _with_pillow(stream, header.channels)


def _with_tifffile(stream: BinaryIO, *, separate: bool) -> NDArray[Any]:
    import tifffile  # 0.1 s to import, and most lines write PNG or BMP

    with tifffile.TiffFile(stream) as file:
        pixels: NDArray[Any] = file.pages[0].asarray(maxworkers=1)
    return np.moveaxis(pixels, 0, -1) if separate else pixels


def _with_opencv(stream: BinaryIO) -> NDArray[Any]:
    pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("OpenCV cannot decode it")
    return pixels if pixels.ndim == 2 else pixels[..., 2::-1]


def _with_pillow(stream: BinaryIO, channels: int) -> NDArray[Any]:
    from PIL import TiffImagePlugin

    # The plugin itself: `Image.open` would apply Pillow's own pixel limit, which belongs to the whole process.
    with TiffImagePlugin.TiffImageFile(stream) as image:
        return np.asarray(image.convert("RGB" if channels == 3 else "L"))


def _check_complete(tags: Tags, size: int) -> None:
    """Every strip or tile must be there: tifffile takes a missing one as black."""
    width, height = _first(tags, _WIDTH, 0), _first(tags, _HEIGHT, 0)
    planes = _first(tags, _SAMPLES, 1) if _first(tags, _PLANAR, 1) == 2 else 1
    if _TILE_STARTS in tags:
        starts, lengths = tags[_TILE_STARTS], tags.get(_TILE_LENGTHS, ())
        wide, high = _first(tags, _TILE_WIDTH, 0), _first(tags, _TILE_HEIGHT, 0)
    else:
        starts, lengths = tags.get(_STRIP_STARTS, ()), tags.get(_STRIP_LENGTHS, ())
        wide, high = width, min(_first(tags, _STRIP_ROWS, height), height)
    pieces = planes * -(-width // max(wide, 1)) * -(-height // max(high, 1))
    if len(starts) != len(lengths) or len(starts) < pieces or 0 in lengths:
        raise Malformed(f"is damaged: it says where {len(starts)} of its {pieces} parts are; copy it again")
    end = max(map(sum, zip(starts, lengths, strict=True)), default=0)
    if end > size:
        raise Malformed(f"is cut short: {size} of {end} bytes are there; copy it again")
    samples = _first(tags, _SAMPLES, 1) * _first(tags, _BITS, 1)
    if _first(tags, _COMPRESSION, 1) == 1 and sum(lengths) < height * (width * samples // 8):
        raise Malformed(f"is cut short: {sum(lengths)} bytes of pixels cannot be {width}x{height}; copy it again")


def _first(tags: Tags, tag: int, default: int) -> int:
    return tags[tag][0] if tag in tags else default


def _is_grey(palette: tuple[int, ...]) -> bool:
    third = len(palette) // 3
    return palette[:third] == palette[third : 2 * third] == palette[2 * third :]
