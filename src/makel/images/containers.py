"""The file formats as containers: header, orientation and whether the file is whole, without decoding a pixel.

Own parsers, because Pillow reports 16-bit RGB as 8-bit and has a pixel limit that belongs to the whole process, and
OpenCV decodes first and asks later. After ITU-T T.81 annex B (JPEG), the W3C PNG specification, RFC 9649 (WebP) and
Microsoft's BITMAPINFOHEADER.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO

from makel.images.tags import ORIENTATION, Malformed, Tags, read_tags, take

ANIMATED = "is animated: save the frame to inspect as an image of its own"


@dataclass(frozen=True)
class Header:
    """What an image file is, before its pixels are decoded.

    Attributes:
        format: "JPEG", "PNG", "BMP", "TIFF" or "WebP".
        width_px: Width of the upright image, as `read` returns it.
        height_px: Height of the upright image.
        channels: 1 for grey, 3 for colour; alpha is not counted, and a palette counts as what its colours are.
        bit_depth: 8 or 16, the bits of a decoded value.
        orientation: EXIF orientation, 1 to 8; 1 where the file says none, or nonsense.
    """

    format: str
    width_px: int
    height_px: int
    channels: int
    bit_depth: int
    orientation: int = 1


def upright(name: str, width: int, height: int, channels: int, bit_depth: int, orientation: int) -> Header:
    """A header from the sides as stored: orientations 5 to 8 lie on their side."""
    width, height = (height, width) if orientation >= 5 else (width, height)
    return Header(name, width, height, channels, bit_depth, orientation)


def check_plausible(width: int, height: int, size: int) -> None:
    """A file many times as long as its pixels is not read: it would fill the memory, or keep the walk through it busy.

    Raises:
        Malformed: It is longer than twice the largest pixel makel knows, and the metadata cameras write.
    """
    if size > 2 * 8 * width * height + (16 << 20):
        raise Malformed(f"is {size} bytes, far more than {width}x{height} pixels take: it is not a plain image")


def orientation_in(tags: Tags) -> int:
    """The orientation among TIFF or EXIF tags; 1 where there is none that means something."""
    found = tags.get(ORIENTATION, (1,))[0]
    return found if 1 <= found <= 8 else 1


def read_bmp_header(stream: BinaryIO, size: int) -> Header:
    """The header of a BMP, once the file is seen to be long enough for its pixels."""
    start, info = struct.unpack("<10xII", take(stream, 18))
    if info == 12:  # OS/2
        width, height, _, bits = struct.unpack("<HHHH", take(stream, 8))
        compression, colours, entry = 0, 0, 3
    elif 40 <= info <= 124:
        width, height, _, bits, compression, colours = struct.unpack("<iiHHI12xI", take(stream, 32))
        take(stream, info - 36)
        entry = 4
    else:
        raise Malformed(f"is damaged: its header claims {info} bytes, 12 or 40 to 124 were expected")
    height = abs(height)  # negative where rows run from the top
    if bits not in (1, 4, 8, 16, 24, 32) or compression not in (0, 1, 2, 3, 6):
        raise Malformed(f"has {bits} bits a pixel in compression {compression}, unknown here: save it as PNG")
    run_lengths = compression in (1, 2)
    if not run_lengths and start + (width * bits + 31) // 32 * 4 * height > size:
        raise Malformed(f"is cut short: {size} bytes cannot hold {width}x{height} pixels; copy it again")
    grey = bits <= 8 and is_grey(take(stream, min(colours or 256, 1 << bits) * entry), entry)
    return Header("BMP", width, height, 1 if grey else 3, 8)


def read_webp_header(stream: BinaryIO, size: int) -> Header:
    """The header of a WebP, once the file is seen to be as long as it says. WebP knows no grey."""
    length = struct.unpack("<4xI4x", take(stream, 12))[0]
    if length + 8 > size:
        raise Malformed(f"is cut short: {size} of {length + 8} bytes are there; copy it again")
    width = height = 0
    orientation, position = 1, 12
    while position + 8 <= length + 8:
        stream.seek(position)
        name, count = struct.unpack("<4sI", take(stream, 8))
        if name == b"VP8X":
            flags, wide, high = struct.unpack("<B3x3s3s", take(stream, 10))
            if flags & 0x02:
                raise Malformed(ANIMATED)
            width, height = int.from_bytes(wide, "little") + 1, int.from_bytes(high, "little") + 1
        elif name == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack("<6xHH", take(stream, 10)))
        elif name == b"VP8L" and not width:
            bits = struct.unpack("<xI", take(stream, 5))[0]
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif name == b"EXIF":
            orientation = exif_orientation(take(stream, min(count, size)).removeprefix(b"Exif\0\0"))
        if not width:
            raise Malformed("is damaged: it does not begin with its header")
        check_plausible(width, height, size)
        position += 8 + count + (count & 1)
    return upright("WebP", width, height, 3, 8, orientation)


def exif_orientation(exif: bytes) -> int:
    """Broken metadata does not make a good picture unusable: it counts as upright, as in every viewer."""
    try:
        tags, _ = read_tags(io.BytesIO(exif), len(exif), (ORIENTATION,))
    except Malformed:
        return 1
    return orientation_in(tags)


def is_grey(palette: bytes, entry: int) -> bool:
    """Whether every colour is grey: mono cameras write 8-bit BMP with such a palette."""
    return palette[0::entry] == palette[1::entry] == palette[2::entry]
