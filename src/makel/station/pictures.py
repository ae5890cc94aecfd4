"""The images behind the decisions, kept by content hash below a limit: passes go first, what people answered goes last.

    pictures/pass/ab/abcd...        the bytes as they came; the file name is their SHA-256
    pictures/reject/...
    pictures/answered/...

Which shelf a picture stands on is all there is to know of it, so there is no index that could disagree with the disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from makel.errors import NotFoundError, StoreError
from makel.types import Result

SHELVES = ("pass", "reject", "answered")
"""In the order in which they are cleared when there is no room."""

_HASH = re.compile(r"[0-9a-f]{64}")
_UNFINISHED_S = 600.0  # a file that is being written is younger than this
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Limits:
    """How many pictures are kept.

    Attributes:
        size_bytes: Of all pictures together.
        age_days: Older ones are dropped, on every shelf; None keeps them.
        free_bytes: What the disk keeps free for the record. Below it passes are dropped, and then no more are taken.
    """

    size_bytes: int = 20 * 10**9
    age_days: float | None = None
    free_bytes: int = 10**9


@dataclass(frozen=True)
class Checked:
    """What looking at every kept picture found.

    Attributes:
        n_pictures: How many there are.
        damaged: One line for each that is not what its name says, or cannot be read.
    """

    n_pictures: int
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class _Kept:
    size_bytes: int
    at_s: float


class Pictures:
    """A folder of images. Thread-safe; several processes may share it."""

    def __init__(self, folder: str | Path, limits: Limits | None = None) -> None:
        """Open a folder of pictures, or make one.

        Raises:
            StoreError: It cannot be made or read.
        """
        self._folder = Path(folder)
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._clock_s = time.time() - time.monotonic()
        try:
            for shelf in SHELVES:
                (self._folder / shelf).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{error.filename} cannot be made: {error.strerror}") from error
        self._shelves = self._scan()
        self._total_bytes = sum(item.size_bytes for kept in self._shelves.values() for item in kept.values())

    def keep(self, image: bytes, verdict: Result, *, image_sha256: str | None = None) -> str:
        """Keep an image; one that is there already stays as it is, or moves to the better shelf.

        Args:
            image: The bytes as they came.
            verdict: What was decided.
            image_sha256: Where it is known already: hashing a large image takes longer than writing it.

        Returns:
            Its SHA-256, in hexadecimal.

        Raises:
            StoreError: There is no room, or the disk refuses. Nothing is left behind.
        """
        name = image_sha256 or hashlib.sha256(image).hexdigest()
        with self._lock:
            there = self._find(name)
            if there is not None:
                self._move(name, there, max(there, verdict, key=SHELVES.index))
                return name
            for shelf in SHELVES:  # somebody removed the file
                self._forget(shelf, name)
            self._make_room(len(image))
            self._write(self._place(verdict, name), image, durable=verdict == "reject")
            self._put(verdict, name, _Kept(len(image), time.time()))
        return name

    def answered(self, image_sha256: str) -> None:
        """Keep a picture longest, because somebody said what it shows. One that is gone stays gone."""
        with self._lock:
            there = self._find(image_sha256)
            if there is not None:
                self._move(image_sha256, there, "answered")

    def read(self, image_sha256: str) -> bytes:
        """The bytes of a picture.

        Raises:
            NotFoundError: It is not kept (any more), or this is no SHA-256.
            StoreError: The file was damaged or changed, or cannot be read.
        """
        with self._lock:
            there = self._find(image_sha256)
        if there is None:
            raise NotFoundError(f"no picture {image_sha256[:64]!r} is kept; the oldest passes are dropped first")
        path = self._place(there, image_sha256)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != image_sha256:
            raise StoreError(f"{path} was damaged or changed: its content is not what its name says")
        return content

    def link(self, image_sha256: str, target: Path) -> None:
        """Let a picture have a second name, under which it stays when it is dropped here; a copy where disks differ.

        Raises:
            NotFoundError: The picture is not kept (any more).
            StoreError: The second name cannot be made.
        """
        with self._lock:
            there = self._find(image_sha256)
            if there is None:
                raise NotFoundError(f"no picture {image_sha256[:64]!r} is kept")
            source = self._place(there, image_sha256)
            try:
                target.hardlink_to(source)
            except OSError:
                try:
                    shutil.copyfile(source, target)
                except OSError as error:
                    raise StoreError(f"{target} cannot be written: {error.strerror}") from error

    def __contains__(self, image_sha256: str) -> bool:
        with self._lock:
            return self._find(image_sha256) is not None

    @property
    def limits(self) -> Limits:
        """How many are kept."""
        return self._limits

    def usage(self) -> dict[str, tuple[int, int]]:
        """Number of pictures and their bytes, by shelf."""
        with self._lock:
            return {
                shelf: (len(kept), sum(item.size_bytes for item in kept.values()))
                for shelf, kept in self._shelves.items()
            }

    def tidy(self) -> None:
        """Look at the disk again, and drop what is over a limit.

        `keep` holds the limits by what it knows. Call this now and then (every few minutes) where another process keeps
        pictures in the same folder, or nothing is kept for days and pictures have an age limit.

        Raises:
            StoreError: The disk refuses.
        """
        began_s = time.time()
        found = self._scan()
        with self._lock:
            for shelf, there in found.items():
                there |= {name: item for name, item in self._shelves[shelf].items() if item.at_s >= began_s}
            self._shelves = found
            self._total_bytes = sum(item.size_bytes for kept in found.values() for item in kept.values())
            self._make_room(0)

    def _place(self, shelf: str, name: str) -> Path:
        return self._folder / shelf / name[:2] / name

    def _put(self, shelf: str, name: str, item: _Kept) -> None:
        self._shelves[shelf][name] = item
        self._total_bytes += item.size_bytes

    def _forget(self, shelf: str, name: str) -> int:
        item = self._shelves[shelf].pop(name, _Kept(0, 0.0))
        self._total_bytes -= item.size_bytes
        return item.size_bytes

    def _find(self, name: str) -> str | None:
        """The shelf a picture stands on, on the disk; never a path that came from outside."""
        if not _HASH.fullmatch(name):
            return None
        return next((shelf for shelf in SHELVES if self._place(shelf, name).is_file()), None)

    def _scan(self) -> dict[str, dict[str, _Kept]]:
        """What is on the disk, oldest first; removes what a killed process left half-written."""
        shelves = {}
        for shelf in SHELVES:
            found = []
            for path in (self._folder / shelf).glob("*/*"):
                try:
                    facts = path.stat()
                    if _HASH.fullmatch(path.name):
                        found.append((path.name, _Kept(facts.st_size, facts.st_mtime)))
                    elif path.name.startswith(".") and facts.st_mtime < time.time() - _UNFINISHED_S:
                        path.unlink()
                except OSError:
                    continue  # another process was faster
            shelves[shelf] = dict(sorted(found, key=lambda item: item[1].at_s))
        return shelves

    def _move(self, name: str, there: str, to: str) -> None:
        if there == to:
            return
        place = self._place(to, name)
        try:
            place.parent.mkdir(exist_ok=True)
            self._place(there, name).replace(place)
        except FileNotFoundError:
            return  # another process dropped or moved it
        except OSError as error:
            raise StoreError(f"{place} cannot be written: {error.strerror}") from error
        known = self._shelves[there].pop(name, None)
        if known is None:  # another process kept it
            known = _Kept(place.stat().st_size, time.time())
            self._total_bytes += known.size_bytes
        self._shelves[to][name] = known

    def _make_room(self, need_bytes: int) -> None:
        self._drop_old()
        if need_bytes > self._limits.size_bytes:
            raise StoreError(f"a picture of {need_bytes} bytes is over the limit of {self._limits.size_bytes} for all")
        for shelf in SHELVES:
            while self._shelves[shelf] and self._total_bytes + need_bytes > self._limits.size_bytes:
                self._drop(shelf)
        lacking = need_bytes + self._limits.free_bytes - shutil.disk_usage(self._folder).free
        while lacking > 0 and self._shelves["pass"]:
            lacking -= self._drop("pass")
        if need_bytes and lacking > 0:
            # Rejects and answers are not given up for whatever else fills this disk.
            raise StoreError(f"{self._folder}: the disk is nearly full, no more pictures are kept; free some space")

    def _drop_old(self) -> None:
        # A clock that was set since the start says nothing about age: nothing is dropped for it.
        if self._limits.age_days is None or abs(time.time() - time.monotonic() - self._clock_s) > _DAY_S:
            return
        oldest_s = time.time() - self._limits.age_days * _DAY_S
        for shelf, kept in self._shelves.items():
            while kept and next(iter(kept.values())).at_s < oldest_s:
                self._drop(shelf)

    def _drop(self, shelf: str) -> int:
        """Remove the oldest picture of a shelf; gives its size in bytes."""
        name = next(iter(self._shelves[shelf]))
        try:
            self._place(shelf, name).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self._place(shelf, name)} cannot be removed: {error.strerror}") from error
        return self._forget(shelf, name)

    def _write(self, place: Path, content: bytes, durable: bool) -> None:
        temporary = place.with_name(f".{secrets.token_hex(8)}")
        try:
            place.parent.mkdir(exist_ok=True)
            with temporary.open("xb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(place)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            why = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise StoreError(f"{place} cannot be written: {why}") from error


def check(folder: Path, progress: Callable[[int, int], None] = lambda *_: None) -> Checked:
    """Compare every picture in a folder of pictures with the hash that is its name; nothing in it is changed.

    Args:
        folder: The folder, also one that a station has open.
        progress: Called with the number of pictures looked at, and of all.

    Raises:
        StoreError: The folder cannot be read.
    """
    try:
        there = [path for shelf in SHELVES for path in sorted((folder / shelf).glob("*/*"))]
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error.strerror}") from error
    paths = [path for path in there if _HASH.fullmatch(path.name)]
    found, gone = [], 0
    for done, path in enumerate(paths, start=1):
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
                    found.append(f"{path} was damaged or changed: its content is not what its name says")
        except FileNotFoundError:  # the station dropped it, or moved it to another shelf
            gone += 1
        except OSError as error:
            found.append(f"{path} cannot be read: {error.strerror}")
        progress(done, len(paths))
    return Checked(len(paths) - gone, tuple(found))
