"""The models a station serves: names, the versions of each, and which one is active.

    models/NAME/1/         a model folder, as `makel fit` wrote it; versions are numbered and never change
    models/NAME/1.sig      its signature, where it has one, with 1.origins.jsonl: `makel.signing.signature`
    models/NAME/2/
    models/NAME/active.json  {"active": 2, "before": [1]}

A version is copied in and checked byte by byte, so that what happens to the original afterwards is no matter here.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from makel.errors import MakelError, ModelFolderError, NotFoundError, UsageError
from makel.model.folder import ModelFolder, copy, open_folder, read_bytes
from makel.model.golden import replay
from makel.model.inspector import Inspector
from makel.model.manifest import MOST_MANIFEST_BYTES, read_json
from makel.model.session import open_session
from makel.signing.signature import carry, signature_path
from makel.station.seal import Seal

ACTIVE_NAME = "active.json"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
"""What a model may be called: a folder's name on every system, and a word in an address."""

_REHASH_S = 600.0
"""A folder whose files look untouched is hashed again after this time: a disk can rot in silence."""


@dataclass(frozen=True)
class Version:
    """One version of a model.

    Attributes:
        name: What the model is served under.
        version: 1, 2, ...
        path: The model folder.
        active: Whether it is the one that judges.
        model_id: From its manifest; "" where that cannot be read.
        created: When it was fitted, or recalibrated; "" where that is not known.
        problem: Why the folder no longer verifies; "" where it does.
    """

    name: str
    version: int
    path: Path
    active: bool
    model_id: str
    created: str
    problem: str


class Registry:
    """The models below one folder. Thread-safe within one process, which has the folder to itself."""

    def __init__(
        self, folder: Path, *, threads: int | None = None, provider: str = "cpu", seal: Seal | None = None
    ) -> None:
        """Open a folder of models, or make one.

        Args:
            folder: Holds a folder for each name.
            threads: Threads an inspection uses at most, see `makel.model.session.Session`.
            provider: What models run on.
            seal: Whose models may be served; None for anybody's.

        Raises:
            ModelFolderError: The folder cannot be made.
        """
        self._seal = seal or Seal(folder)
        self._folder, self._threads, self._provider = folder, threads, provider
        self._lock = threading.RLock()
        self._checked: dict[Path, tuple[float, object, str]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelFolderError(f"{folder} cannot be made: {error.strerror}") from error

    def names(self) -> list[str]:
        """The names that have an active version, sorted."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if (path / ACTIVE_NAME).exists())
        except OSError as error:
            raise ModelFolderError(f"{self._folder} cannot be read: {error.strerror}") from error

    def active(self, name: str) -> int:
        """The number of the version that judges; looks at nothing else, so it is quick.

        Raises:
            NotFoundError: There is no model of this name.
        """
        return self._state(name)[0]

    def versions(self, name: str) -> list[Version]:
        """Every version of a model, oldest first.

        Raises:
            NotFoundError: There is no model of this name.
        """
        active = self._state(name)[0]
        return [self._version(name, number, active) for number in self._numbers(name)]

    def version(self, name: str, number: int | None = None) -> Version:
        """One version of a model; the active one where no number is given.

        Raises:
            NotFoundError: There is no such model, or no such version.
        """
        active = self._state(name)[0]
        number = active if number is None else number
        if number not in self._numbers(name):
            raise NotFoundError(f"{name} has no version {number}: it has {', '.join(map(str, self._numbers(name)))}")
        return self._version(name, number, active)

    def of(self, name: str, model_id: str) -> Version | None:
        """The version that has this model_id; None where there is none any more."""
        return next((version for version in self.versions(name) if version.model_id == model_id), None)

    def add(self, name: str, source: Path) -> tuple[Version, bool]:
        """Copy a model folder in as a new version; it is not active yet, unless it is the first of its name.

        Args:
            name: What the model is served under.
            source: A model folder; it stays where it is.

        Returns:
            The version, and whether it is new: one that is here already is not copied again.

        Raises:
            UsageError: The name cannot be used.
            ModelFolderError: The folder does not verify, or its golden images score differently here.
        """
        check_name(name)
        folder = open_folder(source)
        self.try_out(folder)
        with self._lock:
            known = (self._folder / name / ACTIVE_NAME).is_file()
            if known and (same := self.of(name, folder.manifest.model_id)):
                if same.problem or not signature_path(same.path).exists():
                    carry(folder, same.path)  # signed since, or by somebody who is trusted now
                if not self._check(same.path):
                    return self.version(name, same.version), False
            number = max(self._numbers(name), default=0) + 1
            carry(folder, self._folder / name / str(number))  # first: a version is never there without it
            copy(folder, self._folder / name / str(number))
            if not known:
                self._write_state(name, number, [])
            return self.version(name, number), True

    def load(self, name: str, number: int | None = None) -> Inspector:
        """An inspector of a version that verifies and computes here what was fitted.

        Raises:
            NotFoundError: There is no such model, or no such version.
            ModelFolderError: The folder no longer verifies, or its golden images score differently here.
        """
        return self.try_out(open_folder(self.version(name, number).path))

    def try_out(self, folder: ModelFolder) -> Inspector:
        """An inspector of a folder whose golden images score here as they did when it was fitted.

        Raises:
            ModelFolderError: They do not, or nobody trusted signed it.
        """
        self._seal.check(folder)
        session = open_session(folder, threads=self._threads, provider=self._provider)
        replay(folder, session)
        return Inspector(folder, session)

    def set_active(self, name: str, number: int) -> None:
        """Make a version the active one, and remember the one before for `before`.

        Raises:
            NotFoundError: There is no such version.
        """
        with self._lock:
            self.version(name, number)
            active, before = self._state(name)
            if number != active:
                self._write_state(name, number, [*before, active])

    def earlier(self, name: str) -> int | None:
        """The version that judged before the present one, to which one step back leads; None where there was none.

        Raises:
            NotFoundError: There is no such model.
        """
        here = self._numbers(name)
        return next((number for number in reversed(self._state(name)[1]) if number in here), None)

    def before(self, name: str) -> int:
        """The version that judged before the present one.

        Raises:
            NotFoundError: There is no such model.
            UsageError: There was none before.
        """
        if (before := self.earlier(name)) is None:
            active = self.active(name)
            others = [f"version {number}" for number in self._numbers(name) if number != active]
            never = f" Activate {' or '.join(others)} instead" if others else " It has no other version"
            raise UsageError(
                f"version {active} of {name} has followed no other that judged here: there is no way back from it."
                f"{never}"
            )
        return before

    def step_back(self, name: str) -> None:
        """Make the version before the active one again. Another step back leads to the one before that."""
        with self._lock:
            number, judged = self.before(name), self._state(name)[1]
            self._write_state(name, number, judged[: len(judged) - 1 - judged[::-1].index(number)])

    def _version(self, name: str, number: int, active: int) -> Version:
        path = self._folder / name / str(number)
        try:
            manifest = open_folder(path, verify=False).manifest
        except ModelFolderError as error:
            return Version(name, number, path, number == active, "", "", str(error))
        problem = self._check(path)
        return Version(name, number, path, number == active, manifest.model_id, manifest.created, problem)

    def _check(self, path: Path) -> str:
        """Why a folder does not verify, "" where it does. Hashed when a file looks touched, or after a while."""
        signature = tuple(_signatures(path))
        now = time.monotonic()
        with self._lock:
            at, before, problem = self._checked.get(path, (0.0, None, ""))
        if signature == before and now - at < _REHASH_S:
            return problem
        try:
            self._seal.check(open_folder(path))
            problem = ""
        except MakelError as error:
            problem = str(error)
        with self._lock:
            self._checked[path] = (now, signature, problem)
        return problem

    def _numbers(self, name: str) -> list[int]:
        folder = self._folder / check_name(name)
        return sorted(int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal())

    def _state(self, name: str) -> tuple[int, list[int]]:
        path = self._folder / check_name(name) / ACTIVE_NAME
        if not path.exists():
            known = ", ".join(self.names()) or "none yet"
            raise NotFoundError(f"there is no model {name!r} here; there are: {known}")
        try:
            state = read_json(read_bytes(path, MOST_MANIFEST_BYTES), path)
            return int(state["active"]), [int(number) for number in state["before"]]
        except (ModelFolderError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise ModelFolderError(f'{path} is damaged: write {{"active": VERSION, "before": []}} into it') from error

    def _write_state(self, name: str, active: int, before: list[int]) -> None:
        target = self._folder / name / ACTIVE_NAME
        partial = target.with_name(f".{ACTIVE_NAME}.{secrets.token_hex(4)}")
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump({"active": active, "before": before}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise ModelFolderError(f"{target} cannot be written: {error.strerror}") from error


def check_name(name: str) -> str:
    """`name`, if a model can be called so.

    Raises:
        UsageError: It cannot.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a model: use letters, digits, - and _, 64 at most")
    return name


def _signatures(path: Path) -> Iterator[tuple[str, int, int]]:
    for root, _, names in os.walk(path):
        for name in sorted(names):
            try:
                status = (Path(root) / name).stat()
                yield f"{root}/{name}", status.st_size, status.st_mtime_ns
            except OSError:
                yield f"{root}/{name}", -1, 0
    beside = signature_path(path)
    if beside.exists():
        yield str(beside), beside.stat().st_size, beside.stat().st_mtime_ns
