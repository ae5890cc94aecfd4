"""Fits on the station's machine: each in a child process, one at a time, so the line neither waits nor dies with it.

The child is `makel fit` itself; nothing of training is imported here. It has half of the cores and yields to the line.
A page that is closed and opened again finds a job where it is. What became of the last ones outlives the station, and
one that a stop of the station cut off, or a power cut, says so.

    DIR/jobs/ID/job.json   what is known of it
    DIR/jobs/ID/images/    what it is fitted on, while it is
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from makel.errors import MakelError, MissingExtraError, NotFoundError, Overloaded, TrainingError
from makel.station.decisions import now
from makel.station.registry import Version

State = Literal["fitting", "done", "failed", "cancelled"]

NAME = "job.json"
_REMEMBERED = 20
_CLOSING = "the station is being closed: start the fit again later"
_CUT_OFF = "the station was stopped before it was learnt: send the images again"
_PATIENCE_S = 10.0
"""How long a child may take to end when it is asked to."""

_log = logging.getLogger(__name__)


class TakeIn(Protocol):
    """What a finished model is given to: `Station.add`."""

    def __call__(self, name: str, source: Path, *, by: str, role: str) -> tuple[Version, bool]:
        """The version, and whether it is new."""


@dataclass(frozen=True)
class FitSettings:
    """What a fit may be told; None leaves it to the preset. The words are those of `makel fit`.

    Attributes:
        preset: "fast" or "paper".
        size: What the model sees of an image: the side of a square of as many pixels, or height and width.
        epochs: Passes over the images.
        false_reject: Share of good parts that may be rejected.
        calibrate: "holdout" or "cross".
        method: How to learn; None for the default.
        backbone: Where features come from; None for the preset's.
        blocks: Blocks of the backbone; None for the preset's.
        augment: Whether jittered copies are fitted on as well.
    """

    preset: str = "fast"
    size: int | tuple[int, int] | None = None
    epochs: int | None = None
    false_reject: float = 0.01
    calibrate: str = "holdout"
    method: str | None = None
    backbone: str | None = None
    blocks: tuple[int, ...] | None = None
    augment: bool = False

    def arguments(self) -> list[str]:
        """The same for the command line."""
        size = f"{self.size[1]}x{self.size[0]}" if isinstance(self.size, tuple) else self.size
        given = {
            "--preset": self.preset,
            "--size": size,
            "--epochs": self.epochs,
            "--false-reject": self.false_reject,
            "--calibrate": self.calibrate,
            "--method": self.method,
            "--backbone": self.backbone,
            "--blocks": ",".join(map(str, self.blocks)) if self.blocks else None,
        }
        words = [word for option, value in given.items() if value is not None for word in (option, str(value))]
        return [*words, "--augment"] if self.augment else words


@dataclass(frozen=True)
class Job:
    """A fit, as it stands.

    Attributes:
        id: Its name here.
        name: What the model will be served under.
        state: "fitting", "done", "failed" or "cancelled".
        stage: What is being done, in the words of `makel fit`.
        done: How much of the stage is.
        total: How much the stage has; None where that is not known.
        n_images: Files that came.
        settings: What it was told.
        by: Who asked for it.
        began: When.
        ended: When; "" while it runs.
        problem: Why it failed; "" where it did not.
        version: Of the model that came out of it.
        summary: What `makel fit --json` printed.
    """

    id: str
    name: str
    n_images: int
    settings: FitSettings
    by: str
    began: str
    state: State = "fitting"
    stage: str = "start"
    done: int = 0
    total: int | None = None
    ended: str = ""
    problem: str = ""
    version: int | None = None
    summary: dict[str, Any] = field(default_factory=dict)


def obstacle() -> str:
    """Why nothing can be fitted on this machine; "" where it can."""
    return "" if find_spec("torch") else str(MissingExtraError("fitting on the station", "fit"))


class Fitting:
    """The fits of a station. Thread-safe."""

    def __init__(self, folder: Path, images: Path, take_in: TakeIn) -> None:
        """Clear what an earlier station left behind.

        Args:
            folder: Where jobs are worked on.
            images: Where the images of a version are kept, below NAME/VERSION, so that a later fit can add to them.
            take_in: Gets every finished model.
        """
        self._folder, self._images, self._take_in = folder, images, take_in
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._busy = ""
        self._closing = False
        self._child: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._recall()

    def jobs(self) -> list[Job]:
        """The last jobs, newest first."""
        with self._lock:
            return list(self._jobs.values())[::-1]

    def job(self, job_id: str) -> Job:
        """One job.

        Raises:
            NotFoundError: There is none of this id.
        """
        with self._lock:
            if job_id not in self._jobs:
                raise NotFoundError(f"there is no job {job_id!r}: the last {_REMEMBERED} are remembered")
            return self._jobs[job_id]

    def reserve(self) -> Path:
        """A new folder for the images of the next fit, which keeps others out until `start` or `discard`.

        Raises:
            Overloaded: A fit runs, or its images are arriving.
            MissingExtraError: Fitting is not installed here.
        """
        if obstacle():
            raise MissingExtraError("fitting on the station", "fit")
        with self._lock:
            if self._closing:
                raise Overloaded(_CLOSING)
            if self._busy:
                running = self._jobs.get(self._busy)
                what = f"{running.name!r} is being fitted" if running else "the images of another fit are arriving"
                raise Overloaded(f"{what}, and one fit runs at a time: wait for it or cancel it")
            folder = self._folder / secrets.token_hex(6)
            folder.mkdir(parents=True)
            self._busy = folder.name
            return folder

    def discard(self, folder: Path) -> None:
        """Give up a folder from `reserve` that no fit was started in."""
        shutil.rmtree(folder, ignore_errors=True)
        with self._lock:
            self._busy = ""

    def start(
        self, folder: Path, images: Path, *, name: str, n_images: int, settings: FitSettings, by: str, role: str
    ) -> Job:
        """Fit.

        Args:
            folder: From `reserve`; it is removed at the end.
            images: The good images, below it.
            name: What to serve the model under.
            n_images: How many files came.
            settings: What the fit is told.
            by: Who asks.
            role: In which role.

        Raises:
            Overloaded: The station is being closed.
        """
        if self._closing:
            raise Overloaded(_CLOSING)
        job = Job(folder.name, name, n_images, settings, by, began=now())
        threads = max(1, (os.cpu_count() or 2) // 2)
        command = [sys.executable, "-m", "makel", "fit", "--out", str(folder.resolve() / "model")]
        command += [*settings.arguments(), "--threads", str(threads), "--json", "--json-progress", "--", images.name]
        child = subprocess.Popen(
            command,
            cwd=images.parent,  # so that nothing it says holds a path of this machine
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            creationflags=getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),
        )
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, child.pid, 10)
        with self._lock:
            self._child = child
            self._jobs[job.id] = job
            for old in list(self._jobs)[:-_REMEMBERED]:
                del self._jobs[old]
                shutil.rmtree(self._folder / old, ignore_errors=True)
            self._keep(job)
        self._thread = threading.Thread(target=self._follow, args=(job, child, images, role), name="makel-fit")
        self._thread.start()
        return job

    def cancel(self, job_id: str) -> Job:
        """Stop a fit; one that has ended stays as it ended. Returns once it has.

        Raises:
            NotFoundError: There is no such job.
        """
        return self._interrupt(job_id, state="cancelled")

    def close(self) -> None:
        """Stop what runs, and start nothing more."""
        with self._lock:
            self._closing = True
            busy, thread = self._busy, self._thread
        if busy in {job.id for job in self.jobs()}:
            self._interrupt(busy, state="failed", problem=_CUT_OFF)
        if thread is not None:
            thread.join()

    def _interrupt(self, job_id: str, **ending: Any) -> Job:
        job = self.job(job_id)
        with self._lock:
            if self._busy != job.id or self._child is None or self._child.poll() is not None:
                return self._jobs[job.id]
            self._change(job.id, **ending)
            child, thread = self._child, self._thread
        _stop(child)
        if thread is not None:
            thread.join()
        return self.job(job_id)

    def _recall(self) -> None:
        """The jobs of earlier runs; what they worked on is cleared away."""
        for path in sorted(self._folder.glob(f"*/{NAME}"), key=lambda path: path.stat().st_mtime_ns):
            with suppress(OSError, ValueError, TypeError, KeyError):  # one that cannot be read is none
                known = json.loads(path.read_bytes())
                job = Job(**known | {"settings": FitSettings(**known["settings"])})
                if job.state == "fitting":
                    job = replace(job, state="failed", problem=_CUT_OFF, ended=now())
                self._jobs[job.id] = job
        if self._folder.is_dir():
            for folder in self._folder.iterdir():
                shutil.rmtree(folder, ignore_errors=True)
        for job in self._jobs.values():
            self._keep(job)

    def _keep(self, job: Job) -> None:
        """What is known of a job to the disk, whole or not at all."""
        folder = self._folder / job.id
        partial = folder / f".{NAME}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(asdict(job)), encoding="utf-8")
            partial.replace(folder / NAME)
        except OSError as error:  # it is known here; only a restart would not know it
            _log.warning("%s cannot be written: %s", partial, error.strerror)

    def _follow(self, job: Job, child: subprocess.Popen[str], images: Path, role: str) -> None:
        """Read what the child says to its end, and take its model in."""
        folder = self._folder / job.id
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.extend(child.stdout or ()), name="makel-fit-output")
        reader.start()
        said: list[str] = []
        for line in child.stderr or ():
            if not self._progress(job.id, line):
                said = [*said, line.strip()][-5:]
        reader.join()
        code = child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        try:
            if self.job(job.id).state == "fitting":
                self._finish(job, code, printed, said, images, role)
        except MakelError as error:
            self._end(job.id, state="failed", problem=str(error))
        except Exception as error:  # such as a full disk: the job has failed, and the next one must be able to run
            self._end(job.id, state="failed", problem=f"the model could not be taken in: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with self._lock:
                self._change(job.id, ended=now())
                self._keep(self._jobs[job.id])
                self._busy, self._child = "", None

    def _finish(
        self, job: Job, code: int, printed: Sequence[str], said: Sequence[str], images: Path, role: str
    ) -> None:
        if code != 0:
            last = next((line for line in reversed(said) if line.startswith("makel: ")), "").removeprefix("makel: ")
            problem = last or f"the fit ended with code {code}: {' '.join(said[-1:])}"
            raise TrainingError(problem.replace(f"{images.parent.resolve()}{os.sep}", ""))  # a path is nobody's matter
        with self._lock:
            self._change(job.id, stage="take in", done=0, total=None)
        summary = json.loads("".join(printed))
        version, new = self._take_in(job.name, self._folder / job.id / "model", by=job.by, role=role)
        if new:
            kept = self._images / job.name / str(version.version)
            shutil.rmtree(kept, ignore_errors=True)
            kept.parent.mkdir(parents=True, exist_ok=True)
            images.rename(kept)
        self._end(job.id, state="done", version=version.version, summary=summary)

    def _progress(self, job_id: str, line: str) -> bool:
        """Whether this line was progress."""
        if not line.startswith('{"stage"'):
            return False
        try:
            told = json.loads(line)
        except ValueError:
            return False
        with self._lock:
            self._change(job_id, stage=told["stage"], done=told["done"], total=told["total"])
        return True

    def _end(self, job_id: str, **changes: Any) -> None:
        with self._lock:
            self._change(job_id, **changes)

    def _change(self, job_id: str, **changes: Any) -> None:
        self._jobs[job_id] = replace(self._jobs[job_id], **changes)


def _stop(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
