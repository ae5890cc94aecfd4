"""A folder that pictures arrive in: what is new, what is whole, what was decided before, and where decided files go.

What was decided is known from the record alone: every decision on a file carries its `arrival`, and the record keeps it
in the same transaction as the verdict. There is no second list that could disagree with it after a crash.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from makel.errors import ImageError, UsageError
from makel.images import in_words, is_image_name, kind_of, shown
from makel.station.decoding import Decode, decode_here

if TYPE_CHECKING:
    from makel.station.decisions import Recorded
    from makel.station.station import Outcome

OVERLOOKED_S = 10.0
"""A file with another name than an image's may be one that is still being written, and renamed then."""

LARGEST_BYTES = 512 * 2**20
"""As many as a station holds of all images under way: no larger one would ever be accepted."""


class Decider(Protocol):
    """What the inputs of a line ask of the station."""

    def decide(
        self, image: bytes, *, model: str, name: str, source: str, deadline_s: float | None, arrival: str
    ) -> Outcome:
        """The recorded decision on a picture; a fail-safe reject where there is none in time."""

    def reject(self, reason: str, *, image: bytes, model: str, name: str, source: str, arrival: str) -> Outcome:
        """Record a fail-safe reject: no picture, or none that could be judged."""

    def arrived(self, arrival: str) -> list[Recorded]:
        """The decisions recorded on an arrival."""


@dataclass(frozen=True)
class Arrival:
    """One delivery of a file: the same name with another modification time is another delivery, thus another part.

    A camera may write every picture under one name, and with the lamp out all its pictures are the same bytes; so
    neither the name nor the content alone tells parts apart.

    Attributes:
        path: The file.
        mtime_ns: When its content was last written, in ns, by the clock of whoever wrote it.
        size: Bytes in it.
        inode: Which file it is, whatever its name; 0 on file systems that have no such number.
    """

    path: Path
    mtime_ns: int
    size: int
    inode: int

    @property
    def name(self) -> str:
        """The file's name, with escapes for bytes that are no text."""
        return os.fsencode(self.path.name).decode("utf-8", "backslashreplace")

    @property
    def key(self) -> str:
        """What the record keeps: name and modification time. The hash of the image stands beside it."""
        return f"{self.name}@{self.mtime_ns}"


@dataclass(frozen=True)
class Waiting:
    """A file nothing was decided on yet.

    Attributes:
        arrival: The file as it is now.
        since: When it was first seen, in seconds of the monotonic clock.
        changed: When it was last seen to change.
    """

    arrival: Arrival
    since: float
    changed: float


class Inbox:
    """The image files of one folder, looked at again and again.

    The folder is polled. Notifications (inotify, ReadDirectoryChangesW) do not tell of what another machine writes to a
    network share, which is where cameras write, and they are dropped when a burst overflows their queue; so the folder
    would have to be listed anyway, and listing one of a thousand files takes about a millisecond.

    Attributes:
        folder: The folder.
        done: Where decided files go, below it into `pass/` and `reject/`; None leaves them where they are.
    """

    def __init__(
        self,
        folder: Path,
        *,
        done: Path | None = None,
        settle_s: float = 0.2,
        decode: Decode = decode_here,
        largest_bytes: int = LARGEST_BYTES,
    ) -> None:
        """Look at `folder`.

        Args:
            folder: A folder; one that is not there yet, as before a share is mounted, is waited for. Hidden files,
                links, and folders in it are left alone.
            done: A folder on the same file system, so that a file goes there whole or not at all. It is made.
            settle_s: Seconds that a file's size and modification time must stand still before it counts as written.
            decode: What tells whether a file is a whole image.
            largest_bytes: A larger file is no image; nothing of it is read.

        Raises:
            UsageError: It is no folder, or `done` is the same one, or on another file system.
        """
        check_folder(folder)
        self.folder, self.done, self._settle_s, self._decode = folder, done, settle_s, decode
        self._largest_bytes = largest_bytes
        self._waiting: dict[str, Waiting] = {}
        self._decided: dict[str, Arrival] = {}
        self._others: dict[str, tuple[float, str | None]] = {}  # name → since when, and what it is once that is known
        self._is_ready = False
        if folder.is_dir():
            self._get_ready()

    def scan(self) -> list[Waiting]:
        """The files nothing was decided on, as far as this object knows, in the order they were written.

        Raises:
            OSError: The folder cannot be listed, as when its share is gone, or is not there yet.
            UsageError: It came, and `done` is on another file system.
        """
        self._get_ready()
        now, found = monotonic(), {}
        names, others = [], []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if is_image_name(Path(entry.name)) and not entry.is_symlink():
                    names.append(entry.name)
                elif not entry.name.startswith(".") and not entry.is_dir(follow_symlinks=False):
                    others.append(entry.name)
        self._note(others)
        for name in names:
            arrival = _look(self.folder / name)
            if arrival is None or self._decided.get(name) == arrival:
                continue
            before = self._waiting.get(name)
            if before is None:
                found[name] = Waiting(arrival, now, now)
            else:
                found[name] = before if before.arrival == arrival else Waiting(arrival, before.since, now)
        for gone in self._decided.keys() - set(names):
            del self._decided[gone]
        self._waiting = found
        return sorted(found.values(), key=lambda waiting: (waiting.arrival.mtime_ns, waiting.arrival.name))

    def _get_ready(self) -> None:
        """Make `done`, once the folder is there: before that, it would be made where the share is to be mounted."""
        if self._is_ready or not self.folder.is_dir():
            return  # listing it says why not
        if self.done is not None:
            if self.done.resolve() == self.folder.resolve():
                raise UsageError(f"--done {shown(self.done)} is the watched folder itself: give another one")
            for verdict in ("pass", "reject"):
                (self.done / verdict).mkdir(parents=True, exist_ok=True)
            if self.done.stat().st_dev != self.folder.stat().st_dev:
                raise UsageError(
                    f"--done {shown(self.done)} is not on the drive of {shown(self.folder)}: a file can be moved whole "
                    "only within one drive"
                )
        self._is_ready = True

    def overlooked(self) -> str:
        """One line on files that may be images and are not looked at, by their names or as links; "" for none."""
        return in_words(Counter(kind for _, kind in self._others.values() if kind))

    def _note(self, names: list[str]) -> None:
        """Remember files that are passed over; what stays is looked at once, so that notes are no warning."""
        now, found = monotonic(), {}
        for name in names:
            since, kind = self._others.get(name, (now, None))
            if kind is None and now - since >= OVERLOOKED_S:
                path = self.folder / name
                kind, is_image = ("link", True) if path.is_symlink() else kind_of(path)
                kind = kind if is_image else ""
            found[name] = since, kind
        self._others = found

    def settled(self, waiting: Waiting) -> bool:
        """Whether a file has stood still for long enough."""
        return monotonic() - waiting.changed >= self._settle_s

    def read(self, arrival: Arrival) -> tuple[bytes, str] | None:
        """The bytes of a file, and why they are not a whole image, "" where they are; None where the file has gone.

        All is decoded, because a header is whole long before its pixels are.
        """
        if arrival.size > self._largest_bytes:
            most = f"at most {self._largest_bytes} are read"
            return b"", f"{arrival.name} is {arrival.size} bytes, {most}: cut it into parts, or give --max-pixels"
        try:
            data = arrival.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:  # on Windows also: whoever writes it has it locked
            return b"", f"{arrival.name} cannot be read: {error.strerror or error}"
        if _look(arrival.path) != arrival or len(data) != arrival.size:
            return data, f"{arrival.name} is still being written"
        try:
            self._decode(data, name=arrival.name)
        except ImageError as error:
            return data, str(error)
        return data, ""

    def finish(self, arrival: Arrival, recorded: Recorded) -> None:
        """A file was decided: move it away where that was asked for, else never look at it again.

        Raises:
            OSError: It cannot be moved.
        """
        if self.done is None:
            self._decided[arrival.path.name] = arrival
        elif _look(arrival.path) == arrival:
            # While the record is away a decision has no number yet; the time of writing then tells names apart.
            number = f"{recorded.number:06d}" if recorded.number else f"unnumbered_{arrival.mtime_ns}"
            target = self.done / recorded.decision.verdict / f"{number}_{arrival.path.name}"
            arrival.path.replace(target)
            # What took this name between looking and moving is the next part's picture: it must not go undecided.
            moved = _look(target)
            if moved is not None and replace(moved, path=arrival.path) != arrival:
                target.replace(arrival.path)

    def wait_again(self, arrival: Arrival) -> None:
        """A file was decided while it was still being written: what becomes of it is another delivery."""
        now = monotonic()
        self._waiting[arrival.path.name] = Waiting(arrival, now, now)


def check_folder(folder: Path) -> None:
    """Refuse a place where no picture can ever arrive. A folder may come later.

    Raises:
        UsageError: There is something else.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{shown(folder)} is not a folder: give the one that pictures arrive in")


def recorded_on(station: Decider, model: str, arrival: Arrival, image: bytes) -> Recorded | None:
    """The decision of this model that stands in the record for this delivery of these bytes."""
    known = [one for one in station.arrived(arrival.key) if one.decision.model == model]
    image_sha256 = hashlib.sha256(image).hexdigest() if known and image else ""
    return next((one for one in known if one.decision.image_sha256 == image_sha256), None)


def _look(path: Path) -> Arrival | None:
    """A regular file as it is now; None for anything else. Links are not followed: they lead out of the folder."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return Arrival(path, status.st_mtime_ns, status.st_size, status.st_ino) if stat.S_ISREG(status.st_mode) else None
