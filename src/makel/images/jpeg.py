"""JPEG: what a file says of itself, whether all of it is there, and its pixels, by a decoder whose warnings count.

After ITU-T T.81. A decoder fills what is missing with grey and mutters about it; libjpeg-turbo behind simplejpeg says
so instead, and gives the pixels of OpenCV, which is built on it as well.
"""

from __future__ import annotations

import re
import struct
from typing import BinaryIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from makel.images.containers import Header, exif_orientation, upright
from makel.images.tags import Malformed, take

_LONGEST_HEADER = 32 << 20
_MOST_SCANS = 100
"""Colour in progressive steps takes about ten. Each is a pass over all blocks: a file of thousands takes minutes."""

_MOST_SEGMENTS = 10_000
_MOST_PROGRESSIVE_PX = 100_000_000
"""All coefficients are in memory beside the pixels: nine bytes a pixel."""

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""What ends a run of compressed data: neither a stuffed zero nor a restart."""

_HARMLESS = ("Unknown Adobe color transform", "Invalid SOS parameters")
_PADDING = "extraneous bytes before marker"
"""Warnings of libjpeg about files that hold all their pixels; padding amid restarts stands where pixels are missing."""

_REVISION, _JFIF = "JFIF revision", re.compile(rb"(JFIF\0)[^\x01]", re.DOTALL)
_RESTARTS = 0xDD


def read_jpeg_header(stream: BinaryIO, size: int) -> Header:
    """The header of a JPEG; like its siblings, it takes the file and its size in bytes and raises Malformed."""
    take(stream, 2)
    orientation = 1
    for _ in range(_MOST_SEGMENTS):
        code = _marker(stream)
        if stream.tell() > _LONGEST_HEADER:
            break
        length = int.from_bytes(take(stream, 2), "big") - 2
        payload = take(stream, max(length, 0))
        if code == 0xE1 and payload.startswith(b"Exif\0\0") and orientation == 1:
            orientation = exif_orientation(payload[6:])
        if _is_frame(code):
            bits, height, width, components = struct.unpack(">BHHB", payload[:6].ljust(6, b"\0"))
            _check_kind(bits, components)
            _check_worth(width, height, size, progressive=_is_progressive(code))
            return upright("JPEG", width, height, components, 8, orientation)
    raise Malformed(f"has no frame header in its first {_LONGEST_HEADER >> 20} MiB: it holds no image")


def decode_jpeg(data: bytes, header: Header) -> NDArray[np.uint8]:
    """The pixels of a JPEG as they are stored, not turned upright.

    Args:
        data: The file.
        header: Its header.

    Returns:
        (H, W) or (H, W, 3) uint8 RGB.

    Raises:
        Malformed: Some of it is missing, or it is damaged as far as the decoder can tell.
    """
    harmless = _HARMLESS if _check_whole(data) else (*_HARMLESS, _PADDING)
    colours = "GRAY" if header.channels == 1 else "RGB"
    try:
        pixels = _strictly(data, colours, harmless)
    except ValueError as error:
        said = " ".join(str(error).split())
        if "premature end" in said.lower():
            raise Malformed("is cut short: its data end before its last pixel; copy it again") from error
        raise Malformed(f"is damaged: {said}; copy it again") from error
    return pixels[..., 0] if header.channels == 1 else pixels


def _strictly(data: bytes, colours: str, harmless: tuple[str, ...]) -> NDArray[np.uint8]:
    """Decode, and take every warning but the harmless ones for an error."""
    try:
        return simplejpeg.decode_jpeg(data, colours)  # type: ignore[no-any-return]
    except ValueError as warning:
        # Of the revision simplejpeg makes an error in any case.
        if _REVISION in str(warning) and (known := _JFIF.sub(b"\\1\x01", data)) != data:
            return _strictly(known, colours, harmless)
        if not any(each in str(warning) for each in harmless):
            raise
    return simplejpeg.decode_jpeg(data, colours, strict=False)  # type: ignore[no-any-return]


def _check_kind(bits: int, components: int) -> None:
    if bits != 8:
        raise Malformed(f"has {bits} bits a value, 8 were expected: save it as a 16-bit PNG or TIFF")
    if components not in (1, 3):
        kind = "CMYK, made for print" if components == 4 else f"of {components} components"
        raise Malformed(f"is {kind}: save it as RGB or grey")


def _check_worth(width: int, height: int, size: int, *, progressive: bool) -> None:
    """Refuse a size that the file cannot hold, or that takes gigabytes to decode."""
    if progressive and width * height > _MOST_PROGRESSIVE_PX:
        raise Malformed(
            f"has {width}x{height} pixels in progressive steps, at most {_MOST_PROGRESSIVE_PX} are read so: save it as "
            "baseline"
        )
    if 8 * size < -(-width // 8) * -(-height // 8):  # a bit for each block of 8 x 8, at least
        raise Malformed(f"is cut short: {size} bytes cannot hold {width}x{height} pixels; copy it again")


def _check_whole(data: bytes) -> bool:
    """Follow a JPEG to its end, and see that its scans hold every bit of every component's coefficients.

    Returns:
        Whether it has restart markers.

    Raises:
        Malformed: The file ends, or turns into zeros, before its end-of-image marker; scans are missing or too many.
    """
    position, scans, segments = 2, 0, 0
    progressive = restarts = False
    missing: dict[int, list[int]] = {}  # component → of each coefficient, the bits not yet there; 99 for all
    while found := _MARKER.search(data, position):
        code, start = found[1][0], found.end()
        if code == 0xD9:
            if any(map(any, missing.values())):
                raise Malformed("is cut short: its last scans are missing, though an end-of-image marker follows")
            return restarts
        length = 0 if code == 0x01 else max(int.from_bytes(data[start : start + 2], "big"), 2)
        segment = data[start + 2 : start + length]
        if _is_frame(code):
            progressive = _is_progressive(code)
            missing = {component: [99] * 64 for component in segment[6::3][: segment[5] if len(segment) > 5 else 0]}
        elif code == _RESTARTS:
            restarts |= any(segment)
        elif code == 0xDA:
            scans += 1
            _mark_scan(segment, missing, progressive=progressive)
        segments += 1
        if scans > _MOST_SCANS or segments > _MOST_SEGMENTS:
            raise Malformed(f"has more than {_MOST_SCANS} scans or {_MOST_SEGMENTS} segments: it is not a plain image")
        position = start + length
    raise Malformed("is cut short: it ends before its end-of-image marker; copy it again")


def _mark_scan(segment: bytes, missing: dict[int, list[int]], *, progressive: bool) -> None:
    """Note what a scan brings: all of its components, or in steps some coefficients down to a bit of them."""
    count = segment[0] if segment else 0
    if len(segment) < 4 + 2 * count:
        raise Malformed("is damaged: the header of a scan is too short; copy it again")
    first, last, bits = segment[1 + 2 * count : 4 + 2 * count] if progressive else (0, 63, 0)
    for component in segment[1 : 1 + 2 * count : 2]:
        if component in missing:
            each = missing[component]
            each[first : last + 1] = [bits & 0x0F] * len(each[first : last + 1])


def _is_frame(code: int) -> bool:
    return 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC)  # those three are tables


def _is_progressive(frame: int) -> bool:
    return frame & 3 == 2


def _marker(stream: BinaryIO) -> int:
    while True:
        if take(stream, 1) != b"\xff":
            raise Malformed("is damaged before its frame header")
        code = 0xFF
        while code == 0xFF:  # any number of fill bytes
            code = take(stream, 1)[0]
        if code in (0xD9, 0xDA):
            raise Malformed("has no frame header: it holds no image")
        if code != 0x01 and not 0xD0 <= code <= 0xD8:  # those stand alone, without a length
            return code
