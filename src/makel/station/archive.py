"""Zip files from outside: unpacked only where every name stays inside and the whole has a size that was agreed on."""

from __future__ import annotations

import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from makel.errors import TooLargeError, UsageError

_LITTER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
"""What systems put into archives by themselves."""

_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BLOCK_BYTES = 2**20


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
        with zipfile.ZipFile(archive) as opened:
            members = [item for item in opened.infolist() if not item.is_dir() and not _is_litter(item.filename)]
            _check(members, limits, name)
            left = limits.unpacked_bytes
            for member in members:
                left -= _extract(opened, member, target, left, name)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UsageError(f"{name} is no zip file, or damaged: {' '.join(str(error).split())}") from error
    if not members:
        raise UsageError(f"{name} holds no file")
    inside = list(target.iterdir())
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else target


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
        raise UsageError(
            f"{name} holds {member.filename[:100]!r}, which cannot be written: {error.strerror}"
        ) from error
    return size
