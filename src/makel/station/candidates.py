"""From what people say of parts to a version that may judge: made, tested on what is known, and only then activated.

A candidate is a re-calibration (the same network, thresholds from the good parts of the line as it is now), a refit
(the images of the version that judges, and the good parts people spoke of, fitted anew), or another budget (thresholds
from the scores that the present ones come from). Each is compared with the version that judges on every kept picture
with an answer before it can take its place (`regression`). The way back is the registry's.

    DIR/candidates/ID/candidate.json   what is known of it
    DIR/candidates/ID/model/           a re-calibrated model, until it is activated; signed where the station signs
"""

from __future__ import annotations

import logging
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from makel.errors import CandidateError, MakelError, NotFoundError, Overloaded, StoreError, UsageError
from makel.evaluation.recalibration import recalibrate
from makel.model.folder import open_folder
from makel.model.inspector import Inspector
from makel.model.session import open_session
from makel.station.advice import images_of, refit_obstacle
from makel.station.candidate import NAME, Candidate, Kind
from makel.station.decisions import Recorded, now
from makel.station.fitting import FitSettings
from makel.station.gathering import FEWEST, false_rejects, gather, good_folder, ratio, write_out
from makel.station.registry import Version
from makel.station.regression import regress
from makel.station.station import Station

_REMEMBERED = 20
_LISTED = 50
_LOOK_AGAIN_S = 0.2
_PART_FILE = re.compile(r"\S*/part-0*(\d+)\.\w+")
"""What `write_out` calls a picture."""

_log = logging.getLogger(__name__)


class Candidates:
    """The candidates of a station; one is made at a time. Thread-safe."""

    def __init__(self, station: Station) -> None:
        """Find those of earlier runs; what was not finished then has failed."""
        self._station, self._folder = station, station.folder / "candidates"
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._busy = ""
        self._all: dict[str, Candidate] = {}
        for path in sorted(self._folder.glob(f"*/{NAME}"), key=lambda path: path.stat().st_mtime_ns):
            with suppress(OSError, ValueError):  # one that cannot be read is none
                found = Candidate.read(path.parent)
                self._all[found.id] = found
        for found in list(self._all.values()):
            if found.state in ("making", "testing"):
                self._change(found.id, state="failed", problem="the station was stopped meanwhile", ended=now())
        station.guard(self.objection)
        station.before_closing(self.close)

    def all(self, name: str) -> list[Candidate]:
        """Those of a model, newest first."""
        with self._lock:
            return [each for each in reversed(self._all.values()) if each.name == name]

    def get(self, name: str, candidate_id: str) -> Candidate:
        """One of them.

        Raises:
            NotFoundError: There is none of this id.
        """
        with self._lock:
            found = self._all.get(candidate_id)
        if found is None or found.name != name:
            raise NotFoundError(f"{name} has no candidate {candidate_id!r}: the last {_REMEMBERED} are remembered")
        return found

    def begin(
        self, name: str, kind: Kind = "recalibrate", *, false_reject: float | None, join: bool, by: str, role: str
    ) -> Candidate:
        """Make a candidate and test it, beside the line.

        Args:
            name: The model.
            kind: "recalibrate", "refit" or "budget".
            false_reject: The budget; None for that of the version that judges, but not for "budget".
            join: Of a re-calibration: keep the scores of the present thresholds beside the new ones.
            by: Who asks.
            role: In which role.

        Raises:
            NotFoundError: There is no such model.
            Overloaded: Another one is being made.
            UsageError: A refit of this version is not possible here, or the budget is not said.
            StoreError: It cannot be recorded, so it is not begun.
        """
        base = self._station.registry.version(name)
        inspector = self._station.inspector(name)
        if kind == "refit" and (reason := refit_obstacle(self._station, name, inspector)):
            raise UsageError(reason)
        if kind == "budget" and false_reject is None:
            raise UsageError("a candidate of kind 'budget' needs false_reject: the share of good parts it may reject")
        with self._lock:
            if self._busy or self._closing.is_set():
                raise Overloaded("another candidate is being made, and one is made at a time: wait for it")
            candidate = Candidate(
                id=secrets.token_hex(6),
                name=name,
                kind=kind,
                base_version=base.version,
                base_model_id=inspector.model_id,
                newest=max(version.version for version in self._station.registry.versions(name)),
                false_reject=inspector.calibration.requested_false_reject if false_reject is None else false_reject,
                join=join or kind == "budget",
                by=by,
                role=role,
                began=now(),
            )
            self._busy = candidate.id
        try:
            detail = {"model": name, "candidate": candidate.id, "kind": kind, "base": base.version}
            self._station.store.audit(by, role, "candidate", detail)
            with self._lock:
                self._all[candidate.id] = candidate
                self._write(candidate)
                self._forget()
            thread = threading.Thread(target=self._run, args=(candidate, inspector), name="makel-candidate")
            self._thread = thread
            thread.start()
            self._station.changed("candidates", model=name)
        except BaseException:
            with self._lock:
                self._all.pop(candidate.id, None)
                self._busy = ""
            raise
        return candidate

    def activate(self, name: str, candidate_id: str, *, by: str, role: str) -> Version:
        """Let a candidate judge that passed its comparison.

        Raises:
            NotFoundError: There is no such candidate.
            CandidateError: It did not pass, or another version judges now than it was compared with.
            ModelFolderError: It computes something else by now. The present version goes on.
            StoreError: It cannot be recorded, so it is not done.
        """
        candidate = self.get(name, candidate_id)
        if candidate.state != "ready":
            why = f": {candidate.problem}" if candidate.problem else ""
            raise CandidateError(f"candidate {candidate_id} is {candidate.state} and must not judge{why}")
        if self._station.inspector(name).model_id != candidate.base_model_id:
            raise CandidateError(
                f"candidate {candidate_id} was compared with version {candidate.base_version}, and another one judges "
                "by now: make a new one"
            )
        number = candidate.version
        if number is None:
            version, _ = self._station.add(name, self._folder / candidate.id / "model", by=by, role=role)
            number = version.version
            self._update(candidate.id, version=number)
        found = self._station.activate(name, number, by=by, role=role)
        self._update(candidate.id, state="active")
        shutil.rmtree(self._folder / candidate.id / "model", ignore_errors=True)
        return found

    def objection(self, name: str, number: int) -> str:
        """Why a version must not judge: it is a candidate that did not pass, or is not tested yet. "" where it may."""
        versions = self._station.registry.versions(name)
        model_id = next((each.model_id for each in versions if each.version == number), "")
        same = []
        for each in self.all(name):
            if each.kind == "refit" and each.state in ("making", "testing") and number > each.newest:
                return f"version {number} may be a candidate that is not tested yet: wait for candidate {each.id}"
            # One that came in another way, as a folder somebody gave, is the same candidate.
            if each.version == number or (each.model_id and each.model_id == model_id):
                same.append(each)
        if not same or any(each.state in ("ready", "active") for each in same):
            return ""
        return f"version {number} is a candidate that is {same[0].state}: {same[0].problem}"

    def close(self) -> None:
        """Stop what is being made."""
        with self._lock:
            self._closing.set()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, candidate: Candidate, before: Inspector) -> None:
        try:
            make = self._refit if candidate.kind == "refit" else self._recalibrate
            after = make(candidate, before)
            self._update(candidate.id, state="testing", model_id=after.model_id)
            found = regress(
                self._station,
                candidate.name,
                before,
                after,
                asked=candidate.false_reject,
                progress=self._progress(candidate.id),
            )
            self._end(
                candidate.id,
                state="refused" if found.problems else "ready",
                problem="; ".join(found.problems),
                regression=found.to_json(),
            )
        except MakelError as error:
            self._end(candidate.id, state="failed", problem=self._without_paths(str(error)))
        except Exception as error:  # such as a full disk: this one has failed, and the next one must be able to run
            self._end(candidate.id, state="failed", problem=f"it could not be made: {type(error).__name__}: {error}")
        finally:
            with self._lock:
                self._busy = ""

    def _recalibrate(self, candidate: Candidate, before: Inspector) -> Inspector:
        station, folder = self._station, self._folder / candidate.id
        images = folder / "images"
        images.mkdir()
        try:
            paths, gone = ([], []) if candidate.kind == "budget" else self._write_good(candidate, images)
            source = open_folder(before.folder.path)
            done = recalibrate(
                source,
                open_session(source, threads=1, provider=station.settings.provider),
                paths,
                folder / "model",
                data_name=f"{candidate.name} at the station",
                false_reject=candidate.false_reject,
                join=candidate.join,
                progress=self._progress(candidate.id),
            )
        finally:
            shutil.rmtree(images, ignore_errors=True)
        station.seal.sign(folder / "model", origin=before.folder.path)
        summary = {key: value for key, value in done.to_json().items() if key not in ("model", "left_out")}
        unused = (_PART_FILE.sub(r"part \1", " ".join(line)) for line in done.left_out)
        left_out = tuple(self._without_paths(line) for line in (*gone, *unused))[:_LISTED]
        self._update(candidate.id, summary=summary, left_out=left_out)
        return station.registry.try_out(open_folder(folder / "model"))

    def _write_good(self, candidate: Candidate, folder: Path) -> tuple[list[Path], list[str]]:
        """The pictures of the line's good parts as files in a folder, and one line for each that is gone."""
        gathered = gather(self._station, candidate.name)
        paths, gone = write_out(self._station, gathered.all, folder)
        self._update(
            candidate.id,
            n_passed=len(gathered.passed),
            n_said_good=len(gathered.said_good),
            unanswered=gathered.unanswered,
        )
        if not paths:
            raise UsageError("no picture of a good part is kept: let parts pass, or answer rejects, and try again")
        return paths, [*map(_too_far, gathered.doubtful), *gone]

    def _refit(self, candidate: Candidate, before: Inspector) -> Inspector:
        station, fitting = self._station, self._station.fitting
        wrong = false_rejects(station, candidate.name)
        said_good = [each for each in wrong if each.decision.image_sha256 in station.pictures]
        if not said_good:
            raise UsageError("nobody called a reject good whose picture is kept: there is nothing to add to a refit")
        folder = fitting.reserve()
        try:
            images = folder / "images" / candidate.name  # the report calls the data by its folder's name
            fitted_on = images_of(station, candidate.name, before)
            if fitted_on is None:
                raise UsageError(refit_obstacle(station, candidate.name, before))
            shutil.copytree(fitted_on, images)
            paths, gone = write_out(station, said_good, good_folder(images))
            job = fitting.start(
                folder,
                images,
                name=candidate.name,
                n_images=sum(1 for path in images.rglob("*") if path.is_file()),
                settings=_as_fitted(before, candidate.false_reject),
                by=candidate.by,
                role=candidate.role,
            )
        except BaseException:
            fitting.discard(folder)
            raise
        self._update(candidate.id, job=job.id, n_said_good=len(paths), left_out=tuple(gone[:_LISTED]))
        while job.state == "fitting" or not job.ended:
            if self._closing.wait(_LOOK_AGAIN_S):
                fitting.close()
                raise Overloaded("the station was stopped meanwhile")
            job = fitting.job(job.id)
            self._update(candidate.id, keep=False, stage=job.stage, done=job.done, total=job.total)
        if job.version is None:
            raise CandidateError(f"the fit did not end well: {job.problem or job.state}")
        summary = {key: value for key, value in job.summary.items() if key != "model"}
        self._update(candidate.id, version=job.version, summary=summary)
        return station.registry.load(candidate.name, job.version)

    def _progress(self, candidate_id: str) -> Callable[[str, int, int], None]:
        def told(stage: str, done: int, total: int) -> None:
            if self._closing.is_set():
                raise Overloaded("the station was stopped meanwhile")
            self._update(candidate_id, keep=False, stage=stage, done=done, total=total)

        return told

    def _without_paths(self, text: str) -> str:
        """A message for outside: paths of this machine are nobody's matter there."""
        for folder in (self._folder, self._station.folder):
            text = text.replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "")
        return text

    def _end(self, candidate_id: str, **changes: Any) -> None:
        self._update(candidate_id, ended=now(), **changes)

    def _update(self, candidate_id: str, *, keep: bool = True, **changes: Any) -> None:
        with self._lock:
            self._change(candidate_id, keep=keep, **changes)

    def _change(self, candidate_id: str, *, keep: bool = True, **changes: Any) -> None:
        found = self._all[candidate_id] = replace(self._all[candidate_id], **changes)
        if keep:
            try:
                self._write(found)
            except StoreError as error:  # it is known here; only a restart would not know it
                _log.warning("%s", error)
            self._station.changed("candidates", model=found.name)

    def _write(self, candidate: Candidate) -> None:
        folder = self._folder / candidate.id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            candidate.write(folder)
        except OSError as error:
            raise StoreError(f"{folder} cannot be written: {error.strerror}") from error

    def _forget(self) -> None:
        """Keep the last ones, and whatever still guards a version."""
        for old in list(self._all.values())[:-_REMEMBERED]:
            if old.version is None or old.state in ("ready", "active"):
                del self._all[old.id]
                shutil.rmtree(self._folder / old.id, ignore_errors=True)


def _too_far(part: Recorded) -> str:
    return (
        f"part {part.number} was called good and scores {ratio(part):.3g} times its threshold: fewer than {FEWEST} "
        "like it do not move the threshold. Take the answer back if it was a slip, or answer more of them"
    )


def _as_fitted(inspector: Inspector, false_reject: float) -> FitSettings:
    """The settings a version was fitted with. What its config leaves open, such as epochs of 0, stays the preset's."""
    manifest, config = inspector.manifest, inspector.manifest.method.config
    return FitSettings(
        preset=manifest.method.preset,
        size=manifest.preprocessing.shape,
        epochs=config.get("epochs") or None,
        false_reject=false_reject,
        calibrate="holdout" if manifest.provenance.holdout else "cross",
        method=manifest.method.name,
        backbone=manifest.backbone.name if manifest.backbone else None,
        blocks=manifest.backbone.blocks if manifest.backbone else None,
        augment=manifest.provenance.n_copies > 0,
    )
