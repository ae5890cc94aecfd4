"""The folder of results: one file a cell, whole or not there, and room for shared features that is kept within a limit.

cells/KEY.json     the result of a cell
clock/KEY.json     inference times of a set of models
data/              made-up images
models/KEY/        models the clock needs
features/          shared features, removed at the end
work/              models of cells that run now
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from makel.errors import UsageError
from makel.model.lock import hold


@dataclass(frozen=True)
class Store:
    """Results below a folder.

    Attributes:
        root: The folder.
    """

    root: Path

    @property
    def features(self) -> Path:
        """Shared features."""
        return self.root / "features"

    @property
    def work(self) -> Path:
        """Models of cells that run now."""
        return self.root / "work"

    @property
    def data(self) -> Path:
        """Made-up images."""
        return self.root / "data"

    def model(self, key: str) -> Path:
        """Where the model of a cell is kept."""
        return self.root / "models" / key

    def load(self, kind: str, key: str) -> dict[str, Any] | None:
        """A result, or None where there is none.

        Args:
            kind: "cells" or "clock".
            key: Its name.

        Raises:
            UsageError: The file is not a result.
        """
        path = self.root / kind / f"{key}.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UsageError(f"{path} was damaged or changed ({error}): delete it, and it is measured again") from error
        return found

    def save(self, kind: str, key: str, result: dict[str, Any]) -> None:
        """Write a result, whole or not at all."""
        path = self.root / kind / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(result, indent=1) + "\n")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep a second benchmark out of the folder, and tidy what a killed one left behind.

        Raises:
            UsageError: Another benchmark writes into it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            if not hold(lock.fileno()):
                raise UsageError(f"another benchmark writes into {self.root}: wait for it, or choose another --out")
            if self.work.exists():
                shutil.rmtree(self.work)
            self.work.mkdir()
            for unfinished in self.features.glob(".*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            try:
                yield
            finally:
                shutil.rmtree(self.work, ignore_errors=True)

    def trim_features(self, limit_bytes: float) -> None:
        """Remove the shared features that were used least recently until the rest is within the limit."""
        sizes = {index.parent: _size(index.parent) for index in self.features.glob("*/index.json")}
        by_age = sorted(sizes, key=lambda place: (place / "index.json").stat().st_mtime)
        for place in by_age:
            if sum(sizes.values()) <= limit_bytes:
                return
            del sizes[place]
            # Renamed first: whoever opens it now finds all of it or nothing. Who reads it already keeps its maps.
            gone = place.rename(place.with_name(f".{place.name}.gone"))
            shutil.rmtree(gone, ignore_errors=True)

    def drop_features(self) -> None:
        """Remove all shared features."""
        shutil.rmtree(self.features, ignore_errors=True)


def write(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    temporary.replace(path)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
