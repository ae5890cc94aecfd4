"""Zip files from outside: unpacked only where every name stays inside and the whole has a size that was agreed on."""

from __future__ import annotations

import errno
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from makel.errors import DiskFullError, TooLargeError, UsageError

_LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
"""What systems put into archives by themselves."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BLOCK_BYTES = 2**20
_LIST_BYTES = 8 * 2**20
_DAMAGED = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError,
    ValueError, OverflowError, IndexError, OSError,
)  # fmt: skip
"""What `zipfile` raises for a file that is damaged."""


@dataclass(frozen=True)
class ArchiveLimits:
    """How large an archive may be.

    Attributes:
        unpacked_bytes: Of all files together, unpacked.
        files: Number of files.
    """

    unpacked_bytes: int = 8 * 2**30
    files: int = 20_000


def unpack(archive: BinaryIO, target: Path, limits: ArchiveLimits | None = None, *, name: str = "the upload") -> Path:
    """Unpack a zip file into an empty folder.

    Args:
        archive: The zip file.
        target: An empty folder; what is in it after an error is the caller's to delete.
        limits: How large it may be.
        name: What to call it in errors.

    Returns:
        The folder with the content: `target`, or the one folder that everything in the archive lies in.

    Raises:
        UsageError: It is no zip file or damaged, or holds a name that leads outside, a link, the same name twice, or
            something encrypted.
        TooLargeError: It is larger than agreed; known before anything is written, and watched while it is.
    """
    limits = limits or ArchiveLimits()
    try:
        with zipfile.ZipFile(cast(BinaryIO, _Listed(archive, name))) as opened:
            members = [item for item in opened.infolist() if not item.is_dir() and not _is_litter(item.filename)]
            _check(members, limits, name)
            left = limits.unpacked_bytes
            for member in members:
                left -= _extract(opened, member, target, left, name)
    except _DAMAGED as error:
        raise UsageError(f"{name} is no zip file, or damaged: {' '.join(str(error).split())}") from error
    if not members:
        raise UsageError(f"{name} holds no file")
    inside = list(target.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


class _Listed:
    """An archive whose list of files is of a size that was agreed on: `zipfile` reads all of it before it looks."""

    def __init__(self, archive: BinaryIO, name: str) -> None:
        self._archive, self._name = archive, name

    def read(self, size: int = -1) -> bytes:
        if size > _LIST_BYTES:
            raise TooLargeError(f"{self._name} has a list of {size} bytes of its files, at most {_LIST_BYTES} are read")
        return self._archive.read(size if size >= 0 else _LIST_BYTES)  # to the end: of the last 64 kB, by its format

    def __getattr__(self, name: str) -> Any:
        return getattr(self._archive, name)


def _check(members: list[zipfile.ZipInfo], limits: ArchiveLimits, name: str) -> None:
    if len(members) > limits.files:
        raise TooLargeError(f"{name} holds {len(members)} files, at most {limits.files} are taken")
    size = sum(member.file_size for member in members)
    if size > limits.unpacked_bytes:
        raise TooLargeError(f"{name} is {size} bytes unpacked, at most {limits.unpacked_bytes} are taken")
    taken: set[str] = set()
    for member in members:
        path, shown = member.filename, f"{name} holds {member.filename[:100]!r}"
        if not _is_inside(path):
            raise UsageError(f"{shown}, which leads outside: pack the folder again, with plain relative names")
        if member.external_attr >> 16 and stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise UsageError(f"{shown}, which is a link or a special file: only plain files are taken")
        if member.flag_bits & 0x1:
            raise UsageError(f"{shown}, which is encrypted: pack the folder without a password")
        if member.compress_type not in _METHODS:
            raise UsageError(
                f"{shown}, packed in way {member.compress_type}: pack with Deflate, or without compression"
            )
        if path.casefold() in taken:  # some disks cannot tell A.png from a.png
            raise UsageError(f"{shown} twice: give every file a name of its own")
        taken.add(path.casefold())


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return path.isprintable() and all(
        part and part not in (".", "..") and not set(part) & set('\\:*?"<>|') and part[-1] not in ". " for part in parts
    )


def _is_litter(path: str) -> bool:
    return any(part in _LITTER for part in PurePosixPath(path).parts)


def _extract(opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, left: int, name: str) -> int:
    """Write one file; gives its size. What the archive says of its sizes is not relied upon."""
    place, size = target.joinpath(*member.filename.split("/")), 0
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with opened.open(member) as source, place.open("xb") as file:
            while block := source.read(_BLOCK_BYTES):
                size += len(block)
                if size > left:
                    raise TooLargeError(f"{name} is larger than it says: more than the bytes that are taken")
                file.write(block)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"the disk is full while {name} is unpacked: free some space there") from error
        raise UsageError(
            f"{name} holds {member.filename[:100]!r}, which cannot be written: {error.strerror}"
        ) from error
    return size
