"""The process that decodes for a station: one image at a time, in bounds that the image's own size sets.

    python -m makel.station.decoder FILE

A line of JSON on stdin announces an image that lies in FILE; a line on stdout says what its pixels are, which then lie
there instead, or why there are none. What a decoder does with hostile bytes stays in here: beyond its time the system
ends the process, and beyond its memory an allocation fails. `makel.station.decoding` starts it anew.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np

from makel.errors import ImageError
from makel.images import Header, decode, decode_header

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST_MEMORY_BYTES = 64 * 2**20
_MEMORY_OF_DECODED = 4
"""A progressive JPEG takes twice its pixels' bytes for coefficients, beside the pixels themselves and a copy."""

_LEAST_TIME_S = 0.4
_TIME_S_PER_MPX = 1.0
"""Of processor time. The slowest honest file met, a JPEG 2000 of noise in 16-bit colour, takes a fifth of that."""

LARGE_BYTES = 32 * 2**20
"""Pixels of more than this are decoded when the station says so: see `Decoders`."""


def memory_of(header: Header, size_bytes: int) -> int:
    """Bytes that decoding an image may take, by what its file says of itself."""
    decoded = header.width_px * header.height_px * header.channels * header.bit_depth // 8
    return _LEAST_MEMORY_BYTES + _MEMORY_OF_DECODED * decoded + 2 * size_bytes


def main(path: str) -> None:
    """Decode what comes on stdin until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts everybody; the station ends its decoders
    cv2.setNumThreads(1)
    with Path(path).open("r+b", buffering=0) as exchange:
        for line in sys.stdin.buffer:
            try:
                said = _decode(exchange, json.loads(line))
            except ImageError as error:
                said = {"error": str(error)}
            print(json.dumps(said), flush=True)


def _decode(exchange: BinaryIO, asked: dict[str, Any]) -> dict[str, Any]:
    exchange.seek(0)
    data = exchange.read(asked["size_bytes"])
    name, max_pixels = asked["name"], asked["max_pixels"]
    with _bounded(_LEAST_TIME_S, _LEAST_MEMORY_BYTES + 2 * len(data)):
        header = decode_header(data, name=name)
    megapixels = min(header.width_px * header.height_px, max_pixels) / 1e6  # beyond that it is refused at once
    needed = memory = memory_of(header, len(data))
    if megapixels * 1e6 * header.channels * header.bit_depth / 8 > LARGE_BYTES:
        print(json.dumps({"memory_bytes": memory}), flush=True)
        memory = int(sys.stdin.readline())
        if not memory:
            return {"large": True}
    with _bounded(_LEAST_TIME_S + _TIME_S_PER_MPX * megapixels, memory):
        try:
            pixels = decode(data, name=name, max_pixels=max_pixels)
        except ImageError as error:
            if memory >= needed:
                raise
            raise ImageError(
                f"{error}. Or its format takes more memory than the {memory / 1e6:.0f} MB there are here for large "
                "images: save it as a plain one, or give more with --max-pixels"
            ) from error
    del data
    exchange.seek(0)
    _write(exchange, np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data)
    return {"shape": pixels.shape, "dtype": str(pixels.dtype)}


def _write(file: IO[bytes], content: memoryview) -> None:
    """All of it: one call writes 2 GB at most."""
    while content:
        content = content[file.write(content) :]


@contextmanager
def _bounded(time_s: float, memory_bytes: int) -> Iterator[None]:
    """No more processor time and memory than this, where the system can see to it."""
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    signal.setitimer(signal.ITIMER_PROF, time_s)  # its signal ends the process, in whatever C code that is
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


if __name__ == "__main__":
    main(sys.argv[1])
