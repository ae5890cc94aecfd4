"""Deflate, as PNG and TIFF have it, no further than is asked for: a kilobyte may stand for a megabyte."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

BLOCK = 1 << 16
"""Bytes to hand over at once."""

_LONGEST_PIECE = 1 << 20


def inflated(blocks: Iterable[bytes], most: int) -> Iterator[bytes]:
    """What compressed data give, piece by piece.

    Args:
        blocks: The data; taken as they are needed, and copied for every megabyte they give, so of `BLOCK` bytes.
        most: Bytes after which it ends, whatever is left.

    Raises:
        zlib.error: They are damaged.
    """
    inflate = zlib.decompressobj()
    for block in blocks:
        data = block
        while most and (piece := inflate.decompress(data, min(most, _LONGEST_PIECE))):
            data = inflate.unconsumed_tail
            most -= len(piece)
            yield piece
        if inflate.eof or not most:
            return
