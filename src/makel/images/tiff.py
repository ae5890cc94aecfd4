"""TIFF: what its tags say, and its pixels by whichever decoder stops at damage instead of returning part of them.

None of them takes more than the pixels are worth: see `makel.images.segments` for plain files; libtiff behind Pillow
and OpenCV decodes a strip or tile into a buffer of its size, which is bounded here.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.images import tags as tag
from makel.images.containers import Header, orientation_in, upright
from makel.images.segments import DEFLATE, NONE, PACKBITS, Segments
from makel.images.tags import Malformed, Tags, first, read_tags

_WANTED = (
    *(tag.WIDTH, tag.HEIGHT, tag.BITS, tag.COMPRESSION, tag.PHOTOMETRIC, tag.SAMPLES, tag.FILL_ORDER),
    *(tag.STRIP_STARTS, tag.STRIP_LENGTHS, tag.STRIP_ROWS, tag.PLANAR, tag.PREDICTOR, tag.PALETTE, tag.SAMPLE_FORMAT),
    *(tag.TILE_STARTS, tag.TILE_LENGTHS, tag.TILE_WIDTH, tag.TILE_HEIGHT, tag.ORIENTATION),
)

_LZW = 5
_COMPRESSIONS = (NONE, _LZW, PACKBITS, *DEFLATE)

_LEAST_TILE_PX, _LARGEST_TILE_PX = 16, 1 << 24
"""The specification's least side of a tile; and pixels of one that is larger than its image."""

_LEAST_SEGMENT_PX, _FEW_SEGMENTS = 64, 4096
"""Strips and tiles hold so many pixels on average, where there are more than a few of them."""

DAMAGE = (OSError, ValueError, TypeError, LookupError, SyntaxError, Warning, struct.error, zlib.error)
"""What Pillow, zlib and NumPy raise over a damaged file; warnings are raised where the user made them errors."""

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _INDEXED = range(4)
_DEPTHS = {
    # photometric interpretation: bits a value
    _WHITE_IS_ZERO: (1, 4, 8),
    _BLACK_IS_ZERO: (1, 4, 8, 16),
    _RGB: (8, 16),
    _INDEXED: (1, 4, 8),
}


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
    compression, photometric = first(tags, tag.COMPRESSION, 1), first(tags, tag.PHOTOMETRIC, -1)
    if compression not in _COMPRESSIONS:
        raise Malformed(
            f"is compressed in way {compression}; None, LZW, Deflate and PackBits are read: save it as one of them"
        )
    if photometric not in _DEPTHS:
        raise Malformed(f"is neither grey, RGB nor palette (photometric {photometric}): save it as RGB or grey")
    depths, samples = tags.get(tag.BITS, (1,)), first(tags, tag.SAMPLES, 1)
    bits = depths[0]
    if len(set(depths)) > 1 or bits not in _DEPTHS[photometric]:
        came, expected = (", ".join(map(str, numbers)) for numbers in (depths[:4], _DEPTHS[photometric]))
        raise Malformed(f"has {came} bits a value; one of {expected} for all was expected: save it with 8 or 16")
    if set(tags.get(tag.SAMPLE_FORMAT, (1,))) != {1}:
        raise Malformed("has signed or floating-point values: save it with unsigned 8 or 16 bits")
    if not (3 if photometric == _RGB else 1) <= samples <= 4:
        raise Malformed(f"has {samples} samples a pixel: save it as RGB or grey")
    _check_complete(tags, size)
    colour = photometric == _RGB or (photometric == _INDEXED and not _is_grey(tags.get(tag.PALETTE, ())))
    width, height = first(tags, tag.WIDTH, 0), first(tags, tag.HEIGHT, 0)
    return upright("TIFF", width, height, 3 if colour else 1, 16 if bits == 16 else 8, orientation_in(tags))


def decode_tiff(stream: BinaryIO, size: int, header: Header) -> NDArray[Any]:
    """The pixels of a TIFF file as they are stored, not turned upright.

    Plain ones are read here. LZW needs Pillow, which reads no 16-bit RGB, or OpenCV, which stops at damage in 16 bits
    only.

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
    return without_alpha(pixels, header.channels)


def without_alpha(pixels: NDArray[Any], channels: int) -> NDArray[Any]:
    """(H, W, samples) to (H, W) or (H, W, 3)."""
    return pixels[..., :3] if channels == 3 else pixels[..., 0]


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
    if header.orientation != 1 or not _is_plain(tags):
        return False
    found = _segments(stream, tags)
    return found.planes == 1 and (found.by_rows or found.high * found.wide <= max_segment_pixels)


def segments(stream: BinaryIO, size: int) -> Segments:
    """Where the pixels of a file that `streams` are."""
    return _segments(stream, read_tags(stream, size, _WANTED)[0])


def _segments(stream: BinaryIO, tags: Tags) -> Segments:
    stream.seek(0)
    return Segments.of(tags, ">" if stream.read(2) == b"MM" else "<")


def _is_plain(tags: Tags) -> bool:
    return (
        first(tags, tag.PHOTOMETRIC, -1) in (_BLACK_IS_ZERO, _RGB)
        and first(tags, tag.BITS, 1) in (8, 16)
        and first(tags, tag.COMPRESSION, NONE) != _LZW
        and first(tags, tag.FILL_ORDER, 1) == 1
        and first(tags, tag.PREDICTOR, 1) in (1, 2)
    )


def _decode(stream: BinaryIO, tags: Tags, header: Header) -> NDArray[Any]:
    if _is_plain(tags):
        return _segments(stream, tags).pixels(stream)
    stream.seek(0)
    if header.bit_depth == 16:
        return _with_opencv(stream)
    return _with_pillow(stream, header.channels)


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
    """Every strip or tile must be there, and none be larger, or much smaller, than an image has them."""
    width, height = first(tags, tag.WIDTH, 0), first(tags, tag.HEIGHT, 0)
    planes = first(tags, tag.SAMPLES, 1) if first(tags, tag.PLANAR, 1) == 2 else 1
    if tag.TILE_STARTS in tags:
        starts, lengths = tags[tag.TILE_STARTS], tags.get(tag.TILE_LENGTHS, ())
        wide, high = first(tags, tag.TILE_WIDTH, 0), first(tags, tag.TILE_HEIGHT, 0)
        if min(wide, high) < _LEAST_TILE_PX or wide * high > max(_LARGEST_TILE_PX, 4 * width * height):
            raise Malformed(f"is damaged: tiles of {wide}x{high} pixels in an image of {width}x{height}; save it again")
    else:
        starts, lengths = tags.get(tag.STRIP_STARTS, ()), tags.get(tag.STRIP_LENGTHS, ())
        wide, high = width, min(first(tags, tag.STRIP_ROWS, height), height)
    pieces = planes * -(-width // max(wide, 1)) * -(-height // max(high, 1))
    if len(starts) != len(lengths) or len(starts) < pieces or 0 in lengths:
        raise Malformed(f"is damaged: it says where {len(starts)} of its {pieces} parts are; copy it again")
    end = max(map(sum, zip(starts, lengths, strict=True)), default=0)
    if end > size:
        raise Malformed(f"is cut short: {size} of {end} bytes are there; copy it again")
    if sum(lengths) > 2 * size or len(starts) > max(_FEW_SEGMENTS, planes * width * height // _LEAST_SEGMENT_PX):
        raise Malformed(f"is damaged: its {len(starts)} parts lie over each other, or are tiny; save it again")
    samples = first(tags, tag.SAMPLES, 1) * first(tags, tag.BITS, 1)
    if first(tags, tag.COMPRESSION, 1) == 1 and sum(lengths) < height * (width * samples // 8):
        raise Malformed(f"is cut short: {sum(lengths)} bytes of pixels cannot be {width}x{height}; copy it again")


def _is_grey(palette: tuple[int, ...]) -> bool:
    third = len(palette) // 3
    return palette[:third] == palette[third : 2 * third] == palette[2 * third :]
