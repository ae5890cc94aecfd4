"""The content of files: two names of the same bytes are one image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from makel.errors import ImageError
from makel.images import file_size, shown
from makel.types import Sample

Stamp = tuple[int, int, int, int]
"""What changes with a file's content: inode, size, time of the content, time of the inode."""


@dataclass(frozen=True)
class Snapshot:
    """What files held at one moment. One that is the same file later was not written to in between.

    Attributes:
        hashes: SHA-256 of each file in hex, by path; without those that could not be read.
        stamps: What stood beside it then.
    """

    hashes: dict[Path, str]
    stamps: dict[Path, Stamp]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Snapshot:
        """What the image files hold now."""
        found: dict[Path, str] = {}
        stamps: dict[Path, Stamp] = {}
        for sample in samples:
            path = sample.image_path
            try:
                stamps[path] = _stamp(path)
                found[path] = _file_hash(path)
            except ImageError:  # whoever decodes it says why
                continue
        return cls(found, stamps)

    def check(self, path: Path) -> None:
        """Make sure, after a file was read, that it is what the snapshot says of it.

        Raises:
            ImageError: It was replaced or written to since.
        """
        if path in self.stamps and _stamp(path) != self.stamps[path]:
            raise ImageError(f"{shown(path)} was replaced while it was used: fit again with what is there now")

    def digest(self, paths: Iterable[Path]) -> str:
        """As `digest` of these images, as they were then."""
        return digest_of(self.hashes[path] for path in paths)


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
    return digest_of(_file_hash(sample.image_path) for sample in samples)


def digest_of(file_hashes: Iterable[str]) -> str:
    """As `digest`, of files whose SHA-256 in hex are known."""
    total = hashlib.sha256()
    for file_hash in sorted(file_hashes):
        total.update(bytes.fromhex(file_hash))
    return total.hexdigest()


def _stamp(path: Path) -> Stamp:
    file_size(path)
    try:
        status = path.stat()
    except OSError as error:
        raise ImageError(f"{shown(path)} cannot be read: {error.strerror}") from error
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _file_hash(path: Path) -> str:
    stamp = _stamp(path)
    try:
        return _hash_unchanged(path, stamp)
    except OSError as error:
        raise ImageError(f"{shown(path)} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=100_000)
def _hash_unchanged(path: Path, _stamp: Stamp) -> str:
    """Remembered as long as the file stays: loading, splitting and recording all ask."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
