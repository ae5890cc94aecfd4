"""The content of files: two names of the same bytes are one image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from makel.errors import ImageError
from makel.images import file_size, shown
from makel.types import Sample


def hashes(samples: Sequence[Sample]) -> list[str]:
    """SHA-256 of each image file in hex. One that cannot be read counts as unlike all others: decoding reports it."""
    found = []
    for sample in samples:
        try:
            found.append(_file_hash(sample.image_path))
        except ImageError:
            found.append(hashlib.sha256(f"unreadable {sample.image_path}".encode(errors="surrogateescape")).hexdigest())
    return found


def digest(samples: Sequence[Sample]) -> str:
    """One SHA-256 in hex over the bytes of all image files, whatever their names and order.

    Raises:
        ImageError: A file cannot be read.
    """
    total = hashlib.sha256()
    for file_hash in sorted(_file_hash(sample.image_path) for sample in samples):
        total.update(bytes.fromhex(file_hash))
    return total.hexdigest()


def _file_hash(path: Path) -> str:
    size = file_size(path)
    try:
        return _hash_unchanged(path, size, path.stat().st_mtime_ns)
    except OSError as error:
        raise ImageError(f"{shown(path)} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=100_000)
def _hash_unchanged(path: Path, _size: int, _mtime_ns: int) -> str:
    """Remembered as long as size and time stay: loading, splitting and recording all ask."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
