"""Results files that a script appends to row by row, and goes on with after it was cut short."""

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
THREADS = 2
PACKAGES = ("makel", "torch", "onnxruntime", "timm", "numpy", "opencv-python-headless")


class Rows:
    """A csv of results; a row is known by some of its columns, and is measured once."""

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path, self.keys = path, tuple(keys)
        self.rows: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def get(self, **key: object) -> dict[str, str] | None:
        """The row of this key, if it was measured; a missing column is none of it."""
        return next((row for row in self.rows if all(row.get(name) == str(key[name]) for name in self.keys)), None)

    def has(self, **key: object) -> bool:
        """Whether a row of this key was measured."""
        return self.get(**key) is not None

    def add(self, row: Mapping[str, object]) -> None:
        """Append a row and see to it that it is on the disk."""
        self._check(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            self._write(file, [row], with_head=not self.rows)
        self.rows.append(_as_read(row))
        _say(row)

    def put(self, row: Mapping[str, object]) -> None:
        """Add a row, or write it in place of the one of its key."""
        if (old := self.get(**row)) is None:
            self.add(row)
            return
        self._check(row)
        self.rows[self.rows.index(old)] = _as_read(row)
        part = self.path.with_name(f"{self.path.name}.part")
        with part.open("w", newline="", encoding="utf-8") as file:
            self._write(file, self.rows, with_head=True)
        part.replace(self.path)
        _say(row)

    def _check(self, row: Mapping[str, object]) -> None:
        if self.rows and list(self.rows[0]) != list(row):
            sys.exit(f"{self.path} has the columns {list(self.rows[0])}, not {list(row)}: give another --out")

    @staticmethod
    def _write(file: TextIO, rows: Sequence[Mapping[str, object]], *, with_head: bool) -> None:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if with_head:
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def _as_read(row: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in row.items()}


def _say(row: Mapping[str, object]) -> None:
    print({key: value for key, value in row.items() if key not in ("machine", "versions", "commit")}, flush=True)


def facts(threads: int = THREADS, **more_versions: str) -> dict[str, object]:
    """Where a row comes from: the columns every results file ends with."""
    from makel.bench.measure import machine  # not above: a script may be timed from its start

    return {
        "machine": machine("cpu", "cpu", threads),
        "versions": json.dumps({**{name: version(name) for name in PACKAGES}, **more_versions}),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip(),
    }


@dataclass(frozen=True)
class Done:
    """A process that ended.

    Attributes:
        result: The JSON object of its last line; None where it failed.
        error: Its last line on stderr, where it failed.
        seconds: Wall time, starting the interpreter included.
        peak_mb: Peak resident memory.
        load: Processes that wanted a processor, on average of the minute before it began.
    """

    result: dict[str, object] | None
    error: str
    seconds: float
    peak_mb: int
    load: float


def run(*command: str | Path | int, threads: int = THREADS) -> Done:
    """Run a command that prints one JSON object in the end, on so many threads, alone in its process."""
    load = os.getloadavg()[0]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as complaints:
        began = time.perf_counter()
        process = subprocess.Popen([*map(str, command)], stdout=out, stderr=complaints, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        complaints.seek(0)
        said, complained = out.read().splitlines(), complaints.read().splitlines()
    found = next((line for line in reversed(said) if line.startswith("{")), None)
    failed = bool(status) or found is None
    error = (complained or ["it said nothing"])[-1] if failed else ""
    peak_mb = usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    return Done(None if failed else json.loads(found), error, round(seconds, 1), round(peak_mb), round(load, 2))
