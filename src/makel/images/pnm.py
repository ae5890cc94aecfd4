"""PGM and PPM, the plainest of formats: a header in words, then the values. After the manual pages of Netpbm."""

from __future__ import annotations

import re
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from makel.images.containers import Header
from makel.images.tags import Malformed

_LONGEST_HEADER = 1 << 16
_HEADER = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})" + rb"\s")
_ANOTHER = re.compile(rb"P[1-7]\s")
_IN_WORDS = (2, 3)


def read_pnm_header(stream: BinaryIO, size: int) -> Header:
    """The header of a PGM or PPM, once the file is seen to be long enough for its pixels."""
    kind, width, height, highest, start = _numbers(stream)
    channels, depth = 3 if kind in (3, 6) else 1, 8 if highest < 256 else 16
    values = width * height * channels
    # In words a value takes a digit and a blank at least.
    least = 2 * values - 1 if kind in _IN_WORDS else values * depth // 8
    if start + least > size:
        raise Malformed(f"is cut short: {size} bytes cannot hold {width}x{height} pixels; copy it again")
    if kind not in _IN_WORDS:
        stream.seek(start + least)
        if _ANOTHER.match(stream.read(3)):
            raise Malformed("holds more than one image: save the one to inspect as a file of its own")
    return Header("PNM", width, height, channels, depth)


def decode_pnm(stream: BinaryIO, header: Header) -> NDArray[Any]:
    """The pixels of a PGM or PPM.

    Values of 8 bits are stretched so that the file's highest is 255, as its definition wants; those of 16 bits stay, as
    a camera of 10 or 12 bits gave them.

    Args:
        stream: The file.
        header: Its header.

    Returns:
        (H, W) or (H, W, 3) uint8 or uint16, RGB.

    Raises:
        Malformed: Values are missing, are no numbers, or lie above the highest that the file announces.
    """
    kind, width, height, highest, start = _numbers(stream)
    stream.seek(start)
    count, type_ = width * height * header.channels, ">u2" if header.bit_depth == 16 else "u1"
    if kind in _IN_WORDS:
        values = _from_words(stream.read())[:count]
    else:
        values = np.frombuffer(stream.read(count * np.dtype(type_).itemsize), type_)
    if values.size < count:
        raise Malformed(f"is cut short: {values.size} of {count} values are there; copy it again")
    if values.max() > highest:
        raise Malformed(f"is damaged: a value is {values.max()}, its header allows {highest}; copy it again")
    if header.bit_depth == 8 and highest < 255:
        values = np.rint(values * (255 / highest))
    pixels = values.astype(np.uint16 if header.bit_depth == 16 else np.uint8)
    return pixels.reshape((height, width, 3) if header.channels == 3 else (height, width))


def _from_words(text: bytes) -> NDArray[np.uint32]:
    if text.translate(None, b"0123456789 \t\r\n\v\f"):
        raise Malformed("is damaged: its values are not all numbers; copy it again")
    return np.fromstring(text.decode("ascii"), np.uint32, sep=" ")


def _numbers(stream: BinaryIO) -> tuple[int, int, int, int, int]:
    """Kind, width, height, highest value, and where the values start."""
    stream.seek(0)
    found = _HEADER.match(stream.read(_LONGEST_HEADER))
    if not found:
        raise Malformed("is damaged: its header is not that of a PGM or PPM; copy it again")
    kind, width, height, highest = map(int, found.groups())
    if not 0 < highest < 65536:
        raise Malformed(f"is damaged: its highest value is {highest}, 1 to 65535 was expected")
    return kind, width, height, highest, found.end()
