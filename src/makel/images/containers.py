"""The file formats as containers: header, orientation and whether the file is whole, without decoding a pixel.

Own parsers, because Pillow reports 16-bit RGB as 8-bit and has a pixel limit that belongs to the whole process, and
OpenCV decodes first and asks later. After ITU-T T.81 annex B (JPEG), the W3C PNG specification, RFC 9649 (WebP) and
Microsoft's BITMAPINFOHEADER.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from makel.images.tags import Malformed, Tags, read_tags, take

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ANIMATED = "is animated: save the frame to inspect as an image of its own"
ORIENTATION = 274
_LONGEST_JPEG_HEADER = 32 << 20
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""What ends a run of compressed data: neither a stuffed zero nor a restart."""


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


def read_jpeg_header(stream: BinaryIO, _size: int) -> Header:
    """The header of a JPEG; like its siblings, it takes the file and its size in bytes and raises Malformed."""
    take(stream, 2)
    orientation = 1
    while True:
        code = _marker(stream)
        if stream.tell() > _LONGEST_JPEG_HEADER:
            raise Malformed(f"has no frame header in its first {_LONGEST_JPEG_HEADER >> 20} MiB: it holds no image")
        length = int.from_bytes(take(stream, 2), "big") - 2
        payload = take(stream, max(length, 0))
        if code == 0xE1 and payload.startswith(b"Exif\0\0") and orientation == 1:
            orientation = _exif_orientation(payload[6:])
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):  # a frame header; those three are tables
            break
    bits, height, width, components = struct.unpack(">BHHB", payload[:6].ljust(6, b"\0"))
    if bits != 8:
        raise Malformed(f"has {bits} bits a value, 8 were expected: save it as a 16-bit PNG or TIFF")
    if components not in (1, 3):
        kind = "CMYK, made for print" if components == 4 else f"of {components} components"
        raise Malformed(f"is {kind}: save it as RGB or grey")
    return upright("JPEG", width, height, components, 8, orientation)


def check_jpeg(data: bytes) -> None:
    """Follow a JPEG to its end: a decoder would fill what is missing with grey and only mutter about it.

    Raises:
        Malformed: The file ends, or turns into zeros, before its end-of-image marker.
    """
    position = 2
    while found := _JPEG_MARKER.search(data, position):
        code = found[1][0]
        if code == 0xD9:
            return
        length = 0 if code == 0x01 else max(int.from_bytes(data[found.end() : found.end() + 2], "big"), 2)
        position = found.end() + length
    raise Malformed("is cut short: it ends before its end-of-image marker; copy it again")


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


def read_png_header(stream: BinaryIO, size: int) -> Header:
    """The header of a PNG, once all its chunks are seen to be there."""
    width = height = depth = kind = 0
    orientation, grey = 1, False
    for name, length in _png_chunks(stream, size):
        if name == b"IHDR":
            width, height, depth, kind = struct.unpack(">IIBB", take(stream, 10))
            grey = kind in (0, 4)
            check_plausible(width, height, size)
        elif name == b"PLTE" and kind == 3:
            grey = _is_grey(take(stream, length), 3)
        elif name == b"eXIf":
            orientation = _exif_orientation(take(stream, length))
        elif name == b"acTL":
            raise Malformed(_ANIMATED)
    return upright("PNG", width, height, 1 if grey else 3, 16 if depth == 16 else 8, orientation)


def bare_png(data: bytes) -> bytes:
    """A PNG without the chunks that do not change pixels, about which libpng prints to the terminal.

    Raises:
        Malformed: A checksum is wrong, or the file is cut short.
    """
    stream, kept = io.BytesIO(data), [memoryview(PNG_SIGNATURE)]
    for name, length in _png_chunks(stream, len(data)):
        if name[0] & 0x20:  # a lower-case letter: not needed to show the picture
            continue
        start = stream.tell() - 8
        chunk = memoryview(data)[start : start + length + 12]
        if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            raise Malformed(f"is damaged: the checksum of the {name!r} chunk at byte {start} is wrong; copy it again")
        kept.append(chunk)
    return b"".join(kept)


def _png_chunks(stream: BinaryIO, size: int) -> Iterator[tuple[bytes, int]]:
    """Name and length of each chunk up to IEND, the stream standing at its content."""
    position, first = len(PNG_SIGNATURE), True
    while position + 12 <= size:
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
    raise Malformed("is cut short: it ends before its IEND chunk; copy it again")


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
    grey = bits <= 8 and _is_grey(take(stream, min(colours or 256, 1 << bits) * entry), entry)
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
                raise Malformed(_ANIMATED)
            width, height = int.from_bytes(wide, "little") + 1, int.from_bytes(high, "little") + 1
        elif name == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack("<6xHH", take(stream, 10)))
        elif name == b"VP8L" and not width:
            bits = struct.unpack("<xI", take(stream, 5))[0]
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif name == b"EXIF":
            orientation = _exif_orientation(take(stream, min(count, size)).removeprefix(b"Exif\0\0"))
        if not width:
            raise Malformed("is damaged: it does not begin with its header")
        check_plausible(width, height, size)
        position += 8 + count + (count & 1)
    return upright("WebP", width, height, 3, 8, orientation)


def _exif_orientation(exif: bytes) -> int:
    """Broken metadata does not make a good picture unusable: it counts as upright, as in every viewer."""
    try:
        tags, _ = read_tags(io.BytesIO(exif), len(exif), (ORIENTATION,))
    except Malformed:
        return 1
    return orientation_in(tags)


def _is_grey(palette: bytes, entry: int) -> bool:
    """Whether every colour is grey: mono cameras write 8-bit BMP with such a palette."""
    return palette[0::entry] == palette[1::entry] == palette[2::entry]
