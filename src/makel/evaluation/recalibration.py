"""New thresholds for a fitted model, from fresh good images and without fitting: the network stays what it is.

The promise rests on the same argument as after a fit (`makel.calibration`): the images were not fitted on, and they
come from the line as it is now. Fresh images alone say what the line does today; joined to the scores the model has,
they make the promise finer where the line has not changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from makel import __version__
from makel.calibration import Calibration, images_needed
from makel.calibration import calibrate as from_scores
from makel.errors import DatasetError
from makel.evaluation.held_out import HeldOut, score_held_out
from makel.evaluation.report import find_doubtful, write_fit_report
from makel.images import likeness, shown
from makel.model import cards
from makel.model import folder as model_folder
from makel.model.folder import ModelFolder
from makel.model.golden import replay
from makel.model.layout import place_on_input
from makel.model.manifest import (
    MANIFEST_NAME,
    REPORT_NAME,
    SEEN_NAME,
    Draft,
    Manifest,
    Recalibration,
    read_json,
    short_hash,
)
from makel.model.session import Runner
from makel.model.zones import Zones

Progress = Callable[[str, int, int], None]
"""Called with stage, done and total."""

_LOG_NAME = "log.jsonl"


@dataclass(frozen=True)
class Recalibrated:
    """What came of it.

    Attributes:
        path: The new model folder.
        manifest: Its manifest.
        before: The calibration it replaces.
        n_above_before: How many of the fresh images score above a threshold before, or cannot be judged.
        n_above: How many of them score above one now, or cannot be judged.
        n_refused: How many of them cannot be judged: the line takes them out at every threshold.
        n_known: How many of the fresh images are of those that the thresholds came from before.
        left_out: Each image that was not used, and why.
        warning: What could not be checked; "" where nothing.
        notes: What lies beside the images and was not looked at, a line each.
    """

    path: Path
    manifest: Manifest
    before: Calibration
    n_above_before: int
    n_above: int
    n_refused: int
    n_known: int
    left_out: tuple[tuple[str, str], ...]
    warning: str
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to look at before this model judges; none as a rule."""
        found: tuple[str, ...] = (self.warning,) if self.warning else ()
        if self.n_refused:
            found += (
                f"{self.n_refused} of the {self.n_fresh} fresh images cannot be judged: the line rejects such parts at "
                "every threshold, beside what is promised. Mend what makes them so",
            )
        if self.n_fresh and self.before.contradicted_by(self.n_above_before, self.n_fresh):
            found += (
                f"{self.n_above_before} of the {self.n_fresh} fresh images were rejects before, more than luck "
                "explains: are all of them good? If one shows a defect, the new threshold lets such defects pass; if "
                "the line has changed this much, fit again with these images",
            )
        return found

    @property
    def n_images(self) -> int:
        """Fresh images used."""
        return self.manifest.recalibration.n_images if self.manifest.recalibration else 0

    @property
    def n_fresh(self) -> int:
        """Fresh images, those that cannot be judged among them."""
        return self.n_images + self.n_refused

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        calibration, zones = self.manifest.calibration, self.manifest.zones
        return {
            "model": str(self.path),
            "model_id": self.manifest.model_id,
            "recalibrated": self.manifest.recalibration and self.manifest.recalibration.model_id,
            "n_images": self.n_images,
            "n_calibrate": calibration.n,
            "n_known": self.n_known,
            "left_out": [" ".join(each) for each in self.left_out],
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "threshold_before": self.before.image_threshold,
            "threshold": calibration.image_threshold,
            "n_above_before": self.n_above_before,
            "n_above": self.n_above,
            "n_refused": self.n_refused,
            "requested_false_reject": calibration.requested_false_reject,
            "promised_false_reject": calibration.promised_false_reject,
            "zones": [] if zones is None else zones.lines(calibration),
        }

    def lines(self) -> list[str]:
        """The same for a person."""
        calibration, n = self.manifest.calibration, self.n_images
        joined = f", beside {calibration.n - n} known before" if calibration.n > n else ""
        refused = f"; {self.n_refused} of them as they cannot be judged" if self.n_refused else ""
        known = f"; {self.n_known} of them set the thresholds before and say nothing new" if self.n_known else ""
        return [
            *self._left_out(),
            *(f"warning: {line}" for line in self.warnings),
            *(f"note: {line}" for line in self.notes),
            f"model      {self.path} ({self.manifest.model_id})",
            f"images     {_count(n, 'fresh good image')}{joined}{known}",
            f"threshold  {calibration.image_threshold:.4g}, was {self.before.image_threshold:.4g}",
            f"rejects    {self.n_above} of the {self.n_fresh} fresh images, {self.n_above_before} before{refused}",
            f"promise    {calibration.explain()}",
            *(f"zones      {line}" for line in self.to_json()["zones"]),
        ]

    def _left_out(self) -> list[str]:
        """A line a reason, however many images share it."""
        names: dict[str, list[str]] = {}
        for name, why in self.left_out:
            names.setdefault(why, []).append(name)
        return [
            f"left out: {first} {why}" + (f"; so it is with {_count(len(others), 'other')}" if others else "")
            for why, (first, *others) in names.items()
        ]


def _count(n: int, name: str) -> str:
    return f"{n} {name}{'' if n == 1 else 's'}"


def recalibrate(
    folder: ModelFolder,
    runner: Runner,
    images: Sequence[Path],
    out: str | os.PathLike[str],
    *,
    data_name: str,
    false_reject: float | None = None,
    join: bool = False,
    progress: Progress | None = None,
) -> Recalibrated:
    """Write a model folder with the same network and thresholds from fresh good images.

    Args:
        folder: The model, opened.
        runner: What runs it, from `session.open_session`. Its golden images are replayed first.
        images: Good images that it was not fitted on. Copies, and those that look alike, count once; images that the
            model was fitted on are left out, as are those that look like one and those that cannot be read. Together
            with `join` there may be none: the scores that the model has are then given another budget.
        out: The model folder to write; not the one that is read.
        data_name: What to call the images.
        false_reject: Share of good parts that may be rejected; None for the model's own. Zones keep theirs.
        join: Keep the scores that the present thresholds come from, beside those of the fresh images.
        progress: Called with (stage, done, total).

    Returns:
        What was done.

    Raises:
        UsageError: The budget is none.
        DatasetError: No image is left.
        CalibrationError: The scores carry no threshold.
        ModelFolderError: A golden image scores differently here, or `out` cannot be written.
    """
    progress = progress or (lambda _stage, _done, _total: None)
    manifest, target = folder.manifest, Path(out).resolve()
    budget = manifest.calibration.requested_false_reject if false_reject is None else false_reject
    images_needed(budget)  # refuses a budget that is none, before anything is spent
    if target == folder.path.resolve():
        raise DatasetError(f"{target} is the model that is read: give another folder for the recalibrated one")
    replay(folder, runner)
    fresh, left_out = _fresh(images, folder, join=join)
    with model_folder.staging(target) as stage:
        progress("scoring", 0, len(fresh))
        measured = score_held_out(
            runner.run,
            list(fresh.values()),
            manifest.preprocessing,
            place_on_input(manifest.zones or Zones(), manifest.preprocessing.shape),
            manifest.tiling,
            progress=partial(progress, "scoring"),
        )
        left_out += [(str(error), "") for error in measured.unreadable]
        if not measured.paths and (images or not join):
            why = " ".join(left_out[0]) if left_out else ""
            raise DatasetError(f"no fresh good image is left of {len(images)}: {why}" if why else _NONE)
        hash_of = {path: content for content, path in fresh.items()}
        draft = _draft(manifest, measured, [hash_of[path] for path in measured.paths], budget, join, data_name)
        for name in manifest.files:
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            (stage / name).write_bytes(folder.read(name))
        if SEEN_NAME in manifest.files:
            white_level = manifest.preprocessing.white_level
            looks = _scaled(likeness.thumbnails(measured.paths), white_level)
            packed = likeness.pack([*_known(folder, join=join), *looks], None)
            (stage / SEEN_NAME).write_bytes(packed)
        _report(stage, draft, measured, runner, [" ".join(each) for each in left_out])
        cards.write(stage, draft)
        written = model_folder.write(target, stage, draft)
    return Recalibrated(
        target,
        written,
        manifest.calibration,
        _above(measured, manifest) + len(measured.unreadable),
        _above(measured, written) + len(measured.unreadable),
        len(measured.unreadable),
        len({*manifest.calibrate_hashes} & {short_hash(hash_of[path]) for path in measured.paths}),
        tuple(left_out),
        _warning(manifest),
    )


_NONE = "there is no fresh good image: give a folder with at least one"


def _fresh(images: Sequence[Path], folder: ModelFolder, *, join: bool) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """Content hash → image, without copies and without what the model knows already; and what was left out, and why."""
    provenance = folder.manifest.provenance
    fitted = set(provenance.fit_hashes)
    counted = {*folder.manifest.calibrate_hashes} if join else set()
    found: dict[str, Path] = {}
    left_out = []
    for path in images:
        try:
            with path.open("rb") as file:
                content = file_digest(file, "sha256").hexdigest()
        except OSError:  # decoding says why
            content = sha256(f"unreadable {path}".encode(errors="surrogateescape")).hexdigest()
        if content in found:
            left_out.append((shown(path), f"is {shown(found[content].name)} once more, byte for byte"))
        elif short_hash(content) in fitted:
            left_out.append((shown(path), "was fitted on: it says nothing about parts the model has not seen"))
        elif short_hash(content) in counted:
            left_out.append((shown(path), "is among the images of the present thresholds already"))
        else:
            found[content] = path
    if found and _digest(found) == provenance.data_digest:
        raise DatasetError(
            "these are the very images the model was fitted on: fresh ones are needed, that it has not seen"
        )
    return _unlike(found, folder, left_out, join=join), left_out


def _unlike(
    found: dict[str, Path], folder: ModelFolder, left_out: list[tuple[str, str]], *, join: bool
) -> dict[str, Path]:
    """The images that are not alike one before them, nor one that the model knows."""
    known = _known(folder, join=join)
    white_level = folder.manifest.preprocessing.white_level
    looks = _scaled(likeness.thumbnails(found.values()), white_level)
    numbers = likeness.groups([*known, *looks], n_known=len(known)).tolist()
    n_fitted = len(folder.manifest.provenance.fit_hashes)
    kept: dict[str, Path] = {}
    names: dict[int, str] = {}
    for (content, path), number in zip(found.items(), numbers[len(known) :], strict=True):
        place = numbers.index(number)
        if place < min(n_fitted, len(known)):
            left_out.append((shown(path), "looks like an image that was fitted on: a part the model has seen"))
        elif place < len(known):
            left_out.append((shown(path), "looks like an image that the present thresholds come from"))
        elif number in names:
            left_out.append((shown(path), f"looks like {names[number]}: pictures of one part count once"))
        else:
            kept[content], names[number] = path, shown(path.name)
    return kept


def _scaled(found: Sequence[likeness.Thumbnail | None], white_level: int | None) -> list[likeness.Thumbnail | None]:
    """Thumbnails in 0 to 255, as those of the model are."""
    return [None if each is None else each * np.float32(255 / (white_level or 255)) for each in found]


def _known(folder: ModelFolder, *, join: bool) -> list[likeness.Thumbnail | None]:
    """Thumbnails of what the model was fitted on and, with `join`, of what its thresholds come from."""
    if SEEN_NAME not in folder.manifest.files:
        return []
    n_fitted = len(folder.manifest.provenance.fit_hashes)
    return likeness.unpack(folder.read(SEEN_NAME))[: None if join else n_fitted]


def _digest(hashes: Sequence[str] | dict[str, Path]) -> str:
    """As `makel.datasets.digest` computes it."""
    total = sha256()
    for content in sorted(hashes):
        total.update(bytes.fromhex(content))
    return total.hexdigest()


def _draft(
    manifest: Manifest, measured: HeldOut, measured_hashes: Sequence[str], budget: float, join: bool, data_name: str
) -> Draft:
    old = manifest.calibration

    def renewed(
        scores: NDArray[np.float32], peaks: NDArray[np.float32], known: Calibration | None, false_reject: float
    ) -> Calibration:
        kept = known if join else None
        return from_scores(
            np.concatenate([kept.image_scores if kept else (), scores]),
            np.concatenate([kept.pixel_peaks if kept else (), peaks]),
            false_reject=false_reject,
            scheme=kept.scheme if kept else "holdout",  # these were not fitted on, however it was done then
        )

    calibration = renewed(measured.scores, measured.peaks[:, 0], old, budget)
    zones = manifest.zones
    if zones is not None:
        own = {
            zone.name: renewed(peaks := measured.peaks[:, number], peaks, zone.calibration, zone.false_reject or 0.0)
            for number, zone in enumerate(zones.judged, start=1)
        }
        zones = zones.calibrated(calibration, own)
    kept = manifest.calibrate_hashes if join else ()
    changes = {
        "calibration": calibration,
        "zones": zones,
        "provenance": manifest.provenance.model_copy(update={"n_calibrate": calibration.n}),
        "recalibration": Recalibration(
            model_id=manifest.model_id,
            data_name=data_name,
            data_digest=_digest(measured_hashes),
            n_images=len(measured.paths),
            joined=join,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            makel_version=__version__,
            hashes=(*kept, *map(short_hash, measured_hashes)),
        ),
    }
    return Draft(**{name: changes.get(name, getattr(manifest, name)) for name in Draft.model_fields})


def _report(stage: Path, draft: Draft, measured: HeldOut, runner: Runner, left_out: Sequence[str]) -> None:
    """The report anew: it holds thresholds, and the good images that deserve a look."""
    log = stage / _LOG_NAME
    epochs = [read_json(line, log) for line in log.read_bytes().splitlines()] if log.is_file() else []
    write_fit_report(
        stage / REPORT_NAME,
        draft,
        losses=[
            epoch["loss"] for epoch in epochs if isinstance(epoch, dict) and isinstance(epoch.get("loss"), (int, float))
        ],
        doubtful=find_doubtful(measured.paths, measured.scores, runner.run, draft.preprocessing, tiling=draft.tiling),
        unreadable=left_out,
    )


def _above(measured: HeldOut, manifest: Manifest) -> int:
    """How many images score above the threshold of any part."""
    above = measured.scores > manifest.calibration.image_threshold
    for number, zone in enumerate(manifest.zones.judged if manifest.zones else (), start=1):
        if zone.calibration is not None:
            above |= measured.peaks[:, number] > zone.calibration.image_threshold
    return int(above.sum())


def _warning(manifest: Manifest) -> str:
    if manifest.provenance.fit_hashes:
        return ""
    return (
        f"the {MANIFEST_NAME} of this model does not list the images it was fitted on: make sure that none of these is "
        "among them, or the promise is worth nothing"
    )
