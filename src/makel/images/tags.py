"""TIFF tags: the directory of a TIFF file, and of the EXIF block inside JPEG, PNG and WebP, which is built the same."""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import BinaryIO

Tags = dict[int, tuple[int, ...]]

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES = 256, 257, 258, 259, 262, 277
FILL_ORDER, STRIP_STARTS, STRIP_LENGTHS, STRIP_ROWS = 266, 273, 279, 278
TILE_STARTS, TILE_LENGTHS, TILE_WIDTH, TILE_HEIGHT = 324, 325, 322, 323
PLANAR, PREDICTOR, PALETTE, SAMPLE_FORMAT = 284, 317, 320, 339
ORIENTATION = 274

_FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Type → struct format, for the types whose values are unsigned numbers; the others are left out."""

_MOST_TAGS = 1024
_MOST_VALUES = 1 << 20
"""A strip a row of the longest line scan is below; more would be gigabytes of Python numbers."""


class Malformed(Exception):  # noqa: N818, it is a finding, and becomes an ImageError with the path
    """What is wrong inside a file, to be said behind its name."""


def take(stream: BinaryIO, count: int) -> bytes:
    """Exactly `count` bytes.

    Raises:
        Malformed: The file ends before.
    """
    data = stream.read(count)
    if len(data) < count:
        raise Malformed("is cut short: it ends inside its header; copy it again")
    return data


def read_tags(stream: BinaryIO, size: int, wanted: Collection[int]) -> tuple[Tags, int]:
    """The first directory of a TIFF structure, classic or big.

    Args:
        stream: Standing anywhere; offsets count from its beginning.
        size: Bytes in it.
        wanted: The tags to read the values of.

    Returns:
        Tag → values for those that are there and are unsigned numbers; and the offset of the next directory, 0 where
        there is none.

    Raises:
        Malformed: It is not a TIFF structure, or ends before its directory does.
    """
    stream.seek(0)
    start = take(stream, 8)
    order = ">" if start.startswith(b"MM") else "<"
    version = struct.unpack(f"{order}H", start[2:4])[0] if start[:2] in (b"II", b"MM") else 0
    if version == 42:
        word, count_format = "I", "H"
        offset = struct.unpack(f"{order}I", start[4:])[0]
    elif version == 43:  # BigTIFF
        word, count_format = "Q", "Q"
        offset = struct.unpack(f"{order}Q", take(stream, 8))[0]
    else:
        raise Malformed("is damaged: it has no TIFF header")
    _seek(stream, offset, size)
    count = _one(stream, order + count_format)
    if count > _MOST_TAGS:
        raise Malformed(f"is damaged: it claims {count} tags")
    entry = struct.Struct(f"{order}HH{word}{struct.calcsize(word)}s")
    entries = {tag: rest for tag, *rest in (entry.unpack(take(stream, entry.size)) for _ in range(count))}
    following = _one(stream, order + word)
    found = {tag: _values(stream, size, order + word, *entries[tag]) for tag in wanted if tag in entries}
    return {tag: values for tag, values in found.items() if values}, following


def first(tags: Tags, tag: int, default: int) -> int:
    """The first value of a tag."""
    return tags[tag][0] if tag in tags else default


def _values(stream: BinaryIO, size: int, word: str, kind: int, count: int, inline: bytes) -> tuple[int, ...]:
    if kind not in _FORMATS or count > _MOST_VALUES:
        return ()
    format_ = f"{word[0]}{count}{_FORMATS[kind]}"
    length = count * struct.calcsize(_FORMATS[kind])
    if length <= len(inline):
        return struct.unpack(format_, inline[:length])
    _seek(stream, struct.unpack(word, inline)[0], size - length)
    return struct.unpack(format_, take(stream, length))


def _one(stream: BinaryIO, format_: str) -> int:
    value: int = struct.unpack(format_, take(stream, struct.calcsize(format_)))[0]
    return value


def _seek(stream: BinaryIO, offset: int, last: int) -> None:
    if offset > last:
        raise Malformed("is cut short: what its header points at lies behind its end; copy it again")
    stream.seek(offset)
