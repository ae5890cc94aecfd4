"""How a model is measured: labelled images through the `Inspector` that ships, at the threshold it ships with.

Nothing is learned from the test images: no threshold, no scaling, no choice of map. Rules that change figures:

1. Pixels count at the model's input size: the map as the session gives it, masks resized with nearest neighbour, and
   every pixel above 0 is defect (`makel.images.masks` says what a mask means that is not plainly that). Images of
   different sizes thus count the same, as in the published tables.
2. The pixels of good images count as good. Defects without a usable mask count among images, not among pixels; so do
   those whose mask marks no pixel, or none that is left at the model's input size.
3. Regions of the ground truth are 8-connected, at the model's input size.
4. A defect kind is ranked against all good images of the test set, for pixels together with the good pixels of its own
   images.
5. What a zone of the model ignores is no part of pixels or regions. A defect that lies there wholly still counts among
   the images: it is one that the model passes by design.
6. A model with tiles has maps as large as its images. They and the masks are reduced by the whole number that brings a
   tile to the model's input size, or a larger one where the longer side would still be over 2048: a pixel counts with
   the highest score of those it stands for, and as defect if any of them is. Rules 1 to 4 then hold at that size.
7. An image that cannot be judged counts as what the line makes of it, a reject with a reason: good ones among the false
   rejects, defects as found by refusal. It has no score, so it takes no part in the ranking of images or pixels.
8. Latency is that of `Inspector.inspect` on one decoded image at a time, after everything else, when no decoding runs
   beside it. With tiles it is that of every image as it is inspected, reading and decoding left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import file_digest
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.calibration import Calibration
from makel.errors import DatasetError, ImageError, ModelFolderError
from makel.evaluation.metrics import Curves, PixelCurves, rank_images, rate_interval
from makel.evaluation.pictures import Exhibit, Gallery
from makel.images import MAX_PIXELS, decode_all, prepare, read_header, read_mask, read_reduced, reduction, shown
from makel.model.manifest import Manifest, short_hash
from makel.model.map_store import reduce_peaks
from makel.model.rules import Judgement, Rules
from makel.model.tiling import Tiling
from makel.types import Sample, Scores, Verdict

LATENCY_CALLS = 100
LATENCY_LIMIT_S = 15.0
"""Latency is measured over this many calls, or until so much time has passed."""

LARGE_SIDE_PX = 2048
"""Longest side at which the map of an image in tiles is measured and shown."""

_WARM_UP_CALLS = 3
_KEPT_IMAGES = 8
_KEPT_BYTES = 128 << 20

Progress = Callable[[str, int, int], None]
"""Called with the stage, how much of it is done, and how much there is."""


class Inspecting(Protocol):
    """What of `makel.Inspector` a measurement needs."""

    @property
    def manifest(self) -> Manifest:
        """Everything known about the model."""

    @property
    def calibration(self) -> Calibration:
        """The thresholds."""

    def inspect(self, image: Path | NDArray[Any], /) -> Verdict:
        """The verdict on a file or decoded pixels."""

    def scores(self, images: NDArray[np.float32], /) -> Scores[NDArray[np.float32]]:
        """Raw scores of prepared images."""


@dataclass(frozen=True)
class Outcome:
    """What the model said of one labelled image.

    Attributes:
        path: The image file.
        label: What it is.
        kind: The defect kind; "good" for good images.
        score: Raw image score.
        p_value: Share of good parts that would look at least this bad.
        rejected: Whether the score is above the calibrated threshold.
    """

    path: Path
    label: Literal["good", "defect"]
    kind: str
    score: float
    p_value: float
    rejected: bool


@dataclass(frozen=True)
class Refusal:
    """A labelled image that cannot be judged, which the line takes out with a reason in place of a score.

    Attributes:
        path: The image file.
        label: What it is.
        kind: The defect kind; "good" for good images.
        reason: Why it cannot be judged, one line.
    """

    path: Path
    label: Literal["good", "defect"]
    kind: str
    reason: str


@dataclass(frozen=True)
class Rate:
    """How often something happened.

    Attributes:
        count: How often it happened.
        of: How often it could have.
    """

    count: int
    of: int

    @property
    def value(self) -> float | None:
        """The share, or None of nothing."""
        return self.count / self.of if self.of else None

    @property
    def interval_95(self) -> tuple[float, float] | None:
        """The 95 % Wilson score interval, or None of nothing."""
        return rate_interval(self.count, self.of)


@dataclass(frozen=True)
class KindResult:
    """What the model makes of one kind of defect.

    Attributes:
        kind: The kind as the dataset names it.
        image: Its images against all good images.
        pixel: Its marked pixels against the good pixels of its own and of all good images.
        misses: Its images that pass.
    """

    kind: str
    image: Curves
    pixel: Curves
    misses: Rate

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "n": self.misses.of,
            "image_auroc": self.image.auroc,
            "image_ap": self.image.ap,
            "pixel_auroc": self.pixel.auroc,
            "pixel_ap": self.pixel.ap,
            "aupro_30": self.pixel.aupro_30,
            "miss_rate": self.misses.value,
            "miss_interval": _list(self.misses.interval_95),
        }


@dataclass(frozen=True)
class Latency:
    """Milliseconds from a decoded image to its verdict, one image at a time. Decoding is not inside.

    Attributes:
        p50: Median.
        p95: 95th percentile.
        p99: 99th percentile.
        n_calls: Calls measured.
        n_images: Different images among them.
    """

    p50: float
    p95: float
    p99: float
    n_calls: int
    n_images: int


@dataclass(frozen=True)
class Evaluation:
    """A model measured on labelled images. `makel.evaluation.report` makes a page of it.

    Attributes:
        manifest: The model that was measured.
        outcomes: Every image that could be judged, in the order given.
        refused: Every image that could not, in the order given.
        image: Image scores ranked.
        pixel: Pixels ranked, see this module's rules.
        false_rejects: Good images that were rejected, those that were refused among them.
        misses: Defects that passed; of all defects, those found by refusal among them.
        per_kind: One result for each kind of defect, by name.
        latency: None where no image could be inspected.
        failures: Path and reason, for each image that was refused and each mask that could not be used.
        n_unlabelled: Samples that nobody labelled; they are left out.
        n_unmarked: Defect images judged whose pixels do not count: without a mask, or one of `blank_masks`, or one
            among the failures.
        blank_masks: Masks that mark no pixel that is inspected, at the model's input size.
        n_seen: Good images that were fitted on, or that the thresholds come from: they say nothing of new parts. Told
            by their bytes; 0 where the manifest does not list those images.
        seconds: Wall time of the whole evaluation.
        mask_notes: How masks were read whose meaning is not plain, and which those are.
        n_shared: Good images of the dataset that were left out, since one to fit on shows the same.
        gallery: The few images worth showing, with truth and map.
        notes: What lies beside the images and was not looked at, a line each.
    """

    manifest: Manifest
    outcomes: tuple[Outcome, ...]
    refused: tuple[Refusal, ...]
    image: Curves
    pixel: Curves
    false_rejects: Rate
    misses: Rate
    per_kind: tuple[KindResult, ...]
    latency: Latency | None
    failures: tuple[tuple[Path, str], ...]
    n_unlabelled: int
    n_unmarked: int
    blank_masks: tuple[Path, ...]
    n_seen: int
    seconds: float
    gallery: tuple[Exhibit, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    n_shared: int = 0
    mask_notes: dict[str, tuple[Path, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The documented keys of `makel evaluate --json`. What is undefined is None."""
        latency = self.latency
        return {
            "model_id": self.manifest.model_id,
            "image_auroc": self.image.auroc,
            "image_ap": self.image.ap,
            "image_f1_max": self.image.f1_max,
            "pixel_auroc": self.pixel.auroc,
            "pixel_ap": self.pixel.ap,
            "pixel_f1_max": self.pixel.f1_max,
            "aupro_30": self.pixel.aupro_30,
            "aupro_05": self.pixel.aupro_05,
            "threshold": self.manifest.calibration.image_threshold,
            "false_reject_rate": self.false_rejects.value,
            "false_reject_interval": _list(self.false_rejects.interval_95),
            "miss_rate": self.misses.value,
            "miss_interval": _list(self.misses.interval_95),
            "n_good": self.false_rejects.of,
            "n_defect": self.misses.of,
            "n_good_refused": self.n_refused("good"),
            "n_defect_refused": self.n_refused("defect"),
            "n_unlabelled": self.n_unlabelled,
            "n_unmarked": self.n_unmarked,
            "blank_masks": [str(path) for path in self.blank_masks],
            "n_seen": self.n_seen,
            "n_shared": self.n_shared,
            "mask_notes": {note: [str(path) for path in paths] for note, paths in self.mask_notes.items()},
            "per_kind": {result.kind: result.to_json() for result in self.per_kind},
            "latency_ms": None if latency is None else {"p50": latency.p50, "p95": latency.p95, "p99": latency.p99},
            "failures": [{"path": str(path), "error": reason} for path, reason in self.failures],
            "notes": list(self.notes),
        }

    def n_refused(self, label: Literal["good", "defect"]) -> int:
        """How many images of a label could not be judged."""
        return sum(refusal.label == label for refusal in self.refused)

    def refusals(self) -> str | None:
        """One line on the images that could not be judged, or None where all could."""
        if not self.refused:
            return None
        good, defect = self.n_refused("good"), self.n_refused("defect")
        n = len(self.refused)
        text = f"{n} of {n + len(self.outcomes)} images cannot be judged, and the line would take them out: "
        parts = [
            *((f"{good} good, counted as false rejects",) if good else ()),
            *((f"{defect} with a defect, counted as found",) if defect else ()),
        ]
        return f"{text}{'; '.join(parts)} (such as: {self.refused[0].reason})"

    def unmarked(self) -> str | None:
        """One line on the defects whose pixels do not count, or None where all do."""
        if not self.n_unmarked:
            return None
        have = "has no usable mask and counts" if self.n_unmarked == 1 else "have no usable mask and count"
        n_judged = self.misses.of - self.n_refused("defect")
        text = f"{self.n_unmarked} of {n_judged} defect images {have} among the images, not among the pixels"
        if self.blank_masks:
            marks = "mask marks" if len(self.blank_masks) == 1 else "masks mark"
            text += f" ({len(self.blank_masks)} {marks} no pixel, such as {shown(self.blank_masks[0])})"
        return text

    def seen(self) -> str | None:
        """One line on good images that the model knows already, or None where there are none."""
        if not self.n_seen:
            return None
        verb = "was" if self.n_seen == 1 else "were"
        return (
            f"{self.n_seen} of {self.false_rejects.of} good images {verb} fitted on or set the thresholds: the "
            "false-reject rate and AUROC flatter the model. Test on images it has not seen"
        )

    def masks_read(self) -> list[str]:
        """A line for each way in which masks were read whose meaning is not plain."""
        return [
            f"{len(paths)} {'mask' if len(paths) == 1 else 'masks'}, such as {shown(paths[0])}: {note}"
            for note, paths in self.mask_notes.items()
        ]

    def _shared(self) -> list[str]:
        if not self.n_shared:
            return []
        images = "image shows" if self.n_shared == 1 else "images show"
        return [f"left out: {self.n_shared} good test {images} what an image to fit on shows"]

    def lines(self) -> list[str]:
        """The figures for a person, five lines and the failures."""
        latency, refused = self.latency, {refusal.path for refusal in self.refused}
        good, defect = self.n_refused("good"), self.n_refused("defect")
        unjudged = f", {good} of them as they cannot be judged" if good else ""
        by_refusal = f"; {defect} found only as they cannot be judged" if defect else ""
        speed = "not measured" if latency is None else f"{latency.p50:.1f} ms median, {latency.p99:.1f} ms p99"
        return [
            *(f"{'refused' if path in refused else 'left out'}: {reason}" for path, reason in self.failures),
            *self._shared(),
            f"images         AUROC {figure(self.image.auroc)}, AP {figure(self.image.ap)}",
            f"pixels         AUROC {figure(self.pixel.auroc)}, AP {figure(self.pixel.ap)}, "
            f"AUPRO {figure(self.pixel.aupro_30)} at 0.30 and {figure(self.pixel.aupro_05)} at 0.05",
            f"false rejects  {_rate(self.false_rejects)} of the good images{unjudged}",
            f"misses         {_rate(self.misses)} of the defects{by_refusal}",
            f"latency        {speed} for a decoded image",
            *(f"note           {line}" for line in self.notes),
        ]


def evaluate(
    inspector: Inspecting, samples: Sequence[Sample], *, workers: int = 2, progress: Progress | None = None
) -> Evaluation:
    """Measure a model on labelled images.

    An image that cannot be judged counts as rejected; it, and a mask that cannot be used, is listed among the failures
    and the rest goes on. No maps are kept but the few to be shown, so memory does not grow with the number of images.

    Args:
        inspector: The model.
        samples: Images with labels; those without are counted and left out.
        workers: Threads that decode.
        progress: Called as images are done.

    Returns:
        The measurements. With good images only, or defects only, what needs both is None.

    Raises:
        DatasetError: No sample has a label.
        ModelFolderError: The model gives a number that is not finite, or another score for the same image when it is
            measured for latency.
    """
    started = perf_counter()
    labelled = [sample for sample in samples if sample.label is not None]
    if not labelled:
        raise DatasetError(
            f"none of {len(samples)} images has a label, so nothing can be measured: sort them into folders of good "
            "images and of defects, such as test/good and test/scratch"
        )
    run = _Run(inspector, labelled)
    tiling = inspector.manifest.tiling
    for done, _ in enumerate(run.take_all(workers, tiling), start=1):
        if progress is not None:
            progress("evaluate", done, len(labelled))
    if tiling is None:
        latency = _measure_latency(inspector, run.kept, run.kept_scores, progress)
    else:
        latency = _latency(run.elapsed_ms, len(run.elapsed_ms))
    kinds = sorted(({each.kind for each in run.outcomes} | {each.kind for each in run.refused}) - {"good"})
    good_scores = [outcome.score for outcome in run.outcomes if outcome.label == "good"]
    good_pixels = run.pixels.get("good", PixelCurves())
    return Evaluation(
        manifest=inspector.manifest,
        outcomes=tuple(run.outcomes),
        refused=tuple(run.refused),
        image=rank_images(good_scores, [outcome.score for outcome in run.outcomes if outcome.label == "defect"]),
        pixel=_together(*run.pixels.values()).results(),
        false_rejects=run.rate("good", rejected=True),
        misses=run.rate("defect", rejected=False),
        per_kind=tuple(
            KindResult(
                kind=kind,
                image=rank_images(good_scores, [each.score for each in run.outcomes if each.kind == kind]),
                pixel=_together(good_pixels, run.pixels.get(kind, PixelCurves())).results(),
                misses=run.rate("defect", kind, rejected=False),
            )
            for kind in kinds
        ),
        latency=latency,
        failures=tuple(run.failures),
        n_unlabelled=len(samples) - len(labelled),
        n_unmarked=run.n_unmarked,
        blank_masks=tuple(run.blank_masks),
        mask_notes={note: tuple(paths) for note, paths in run.mask_notes.items()},
        n_seen=_count_seen(inspector.manifest, run.outcomes),
        seconds=perf_counter() - started,
        gallery=run.gallery.exhibits(),
    )


def _count_seen(manifest: Manifest, outcomes: Sequence[Outcome]) -> int:
    seen = manifest.seen_hashes
    count = 0
    for outcome in outcomes if seen else ():
        if outcome.label == "good":
            with outcome.path.open("rb") as file:
                count += short_hash(file_digest(file, "sha256").hexdigest()) in seen
    return count


class _Run:
    """What accumulates while images go by."""

    def __init__(self, inspector: Inspecting, samples: Sequence[Sample]) -> None:
        self._inspector, self._samples = inspector, samples
        self._rules = Rules(inspector.manifest)
        self._has_masks = any(sample.mask_path is not None for sample in samples)
        self.outcomes: list[Outcome] = []
        self.refused: list[Refusal] = []
        self.pixels: dict[str, PixelCurves] = {}  # by kind; "good" are the good images
        self.failures: list[tuple[Path, str]] = []
        self.n_unmarked = 0
        self.blank_masks: list[Path] = []
        self.mask_notes: dict[str, list[Path]] = {}
        self.gallery = Gallery(white_level=inspector.manifest.preprocessing.white_level)
        self.kept: list[NDArray[Any]] = []
        self.kept_scores: list[float] = []
        self.elapsed_ms: list[float] = []

    def take_all(self, workers: int, tiling: Tiling | None) -> Iterator[None]:
        """Take every sample; yields after each."""
        if tiling is None:
            for sample, image in _decoded(self._samples, workers):
                self.take(sample, image)
                yield
        else:
            for sample in self._samples:
                self.take_tiles(sample, tiling)
                yield

    def take(self, sample: Sample, image: NDArray[Any] | ImageError) -> None:
        try:
            if isinstance(image, ImageError):
                raise image
            name, (height_px, width_px) = shown(sample.image_path), image.shape[:2]
            self._rules.zones.check_aspect(width_px, height_px, name)
            prepared = prepare(image, self._inspector.manifest.preprocessing, name=name)
        except ImageError as error:
            self._refuse(sample, error)
            return
        scores = self._inspector.scores(prepared[np.newaxis])
        raw, anomaly_map = float(scores.image[0]), scores.anomaly_map[0, 0]
        if not (np.isfinite(raw) and np.isfinite(anomaly_map).all()):
            raise ModelFolderError(
                f"the model gives {shown(sample.image_path)} a score or map that is not finite: its network is broken, "
                "fit again"
            )
        judgement = self._rules.judge(raw, anomaly_map, width_px, height_px)
        truth = self._truth(sample, image.shape[:2], self._shrink)
        self._record(sample, judgement, image, anomaly_map, truth, seen=self._rules.layout.seen)
        self._keep(image, judgement.score)

    def take_tiles(self, sample: Sample, tiling: Tiling) -> None:
        """The same for a model with tiles, which reads the file as it goes."""
        try:
            verdict = self._inspector.inspect(sample.image_path)
        except ImageError as error:
            self._refuse(sample, error)
            return
        shape = verdict.anomaly_map.shape
        side = min(self._inspector.manifest.preprocessing.shape)
        factor = max(1, tiling.tile_px // side, reduction(shape, LARGE_SIDE_PX))
        picture = read_reduced(sample.image_path, max(1, max(shape) // factor))
        truth = self._truth(sample, shape, partial(reduce_peaks, factor=factor))
        judgement = Judgement(verdict.verdict == "reject", verdict.score, verdict.p_value, verdict.zones)
        self._record(sample, judgement, picture, reduce_peaks(verdict.anomaly_map, factor), truth)
        self.elapsed_ms.append(verdict.elapsed_ms)

    def rate(self, label: str, kind: str | None = None, *, rejected: bool) -> Rate:
        """How many of the images of a label, or of a kind of defect, were rejected, or passed."""
        among = [each.rejected for each in self.outcomes if each.label == label and kind in (None, each.kind)]
        among += [True for each in self.refused if each.label == label and kind in (None, each.kind)]
        return Rate(sum(each == rejected for each in among), len(among))

    def _refuse(self, sample: Sample, error: ImageError) -> None:
        label: Literal["good", "defect"] = "good" if sample.label == "good" else "defect"
        self.refused.append(Refusal(sample.image_path, label, _kind(sample), str(error)))
        self.failures.append((sample.image_path, str(error)))

    def _record(
        self,
        sample: Sample,
        judgement: Judgement,
        picture: NDArray[Any],
        anomaly_map: NDArray[np.float32],
        truth: NDArray[np.uint8] | None,
        *,
        seen: NDArray[np.bool_] | None = None,
    ) -> None:
        outcome = Outcome(
            path=sample.image_path,
            label="good" if sample.label == "good" else "defect",
            kind=_kind(sample),
            score=judgement.score,
            p_value=judgement.p_value,
            rejected=judgement.rejected,
        )
        self.outcomes.append(outcome)
        self.n_unmarked += outcome.label == "defect" and truth is None
        pixels = self.pixels.setdefault(outcome.kind, PixelCurves())

        def pick(values: NDArray[Any]) -> NDArray[Any]:
            return values if seen is None else values[seen][np.newaxis]

        # Without a single mask the pixels of good images would be all there is.
        if self._has_masks and outcome.label == "good":
            pixels.add(pick(anomaly_map))
        elif truth is not None:
            pixels.add(pick(anomaly_map), pick(_regions(truth)))
        self.gallery.offer(
            outcome.path,
            outcome.kind,
            outcome.score,
            picture,
            anomaly_map,
            truth,
            rejected=outcome.rejected,
            p_value=outcome.p_value,
        )

    def _truth(
        self, sample: Sample, image_shape: tuple[int, ...], shrink: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
    ) -> NDArray[np.uint8] | None:
        """(H, W) uint8 of the map's size, 1 on defect; None where there is no defect or mask, or none to be used."""
        if sample.label == "good" or sample.mask_path is None:
            return None
        try:
            mask = read_mask(
                sample.mask_path,
                image=read_header(sample.image_path),
                max_pixels=max(MAX_PIXELS, image_shape[0] * image_shape[1]),
            )
        except ImageError as error:
            self.failures.append((sample.mask_path, str(error)))
            return None
        if mask.note:
            self.mask_notes.setdefault(mask.note, []).append(sample.mask_path)
        marked = mask.marked.astype(np.uint8)
        truth = shrink(marked)
        if not truth.any():  # all its pixels would count as good, those on the defect too
            self.blank_masks.append(sample.mask_path)
            return None
        return truth

    def _shrink(self, marked: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W) at the model's input size, each pixel that of the nearest, 0 where nothing is inspected."""
        seen = self._rules.layout.seen
        truth = np.asarray(cv2.resize(marked, seen.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
        truth[~seen] = 0
        return truth

    def _keep(self, image: NDArray[Any], score: float) -> None:
        room = _KEPT_BYTES - sum(kept.nbytes for kept in self.kept)
        if not self.kept or (len(self.kept) < _KEPT_IMAGES and image.nbytes <= room):
            self.kept.append(image)
            self.kept_scores.append(score)


def _decoded(samples: Sequence[Sample], workers: int) -> Iterator[tuple[Sample, NDArray[Any] | ImageError]]:
    images = decode_all((sample.image_path for sample in samples), workers=workers)
    for sample, (_, image) in zip(samples, images, strict=True):
        yield sample, image


def _measure_latency(
    inspector: Inspecting, images: Sequence[NDArray[Any]], scores: Sequence[float], progress: Progress | None
) -> Latency | None:
    if not images:
        return None
    parity = inspector.manifest.parity
    elapsed_ms = []
    started = perf_counter()
    for call in range(-_WARM_UP_CALLS, LATENCY_CALLS):
        turn = call % len(images)
        verdict = inspector.inspect(images[turn])
        if abs(verdict.score - scores[turn]) > parity.score_tolerance:
            raise ModelFolderError(
                f"the model gave one image the scores {scores[turn]:.9g} and {verdict.score:.9g}, further apart than "
                f"its tolerance of {parity.score_tolerance:.3g}: run `makel verify` on this machine"
            )
        if call >= 0:
            elapsed_ms.append(verdict.elapsed_ms)
        if progress is not None:
            progress("latency", call + _WARM_UP_CALLS + 1, LATENCY_CALLS + _WARM_UP_CALLS)
        if elapsed_ms and perf_counter() - started > LATENCY_LIMIT_S:
            break
    return _latency(elapsed_ms, min(len(images), len(elapsed_ms)))


def _latency(elapsed_ms: Sequence[float], n_images: int) -> Latency | None:
    if not elapsed_ms:
        return None
    p50, p95, p99 = np.percentile(elapsed_ms, [50, 95, 99]).tolist()
    return Latency(round(p50, 3), round(p95, 3), round(p99, 3), len(elapsed_ms), n_images)


def _regions(truth: NDArray[np.uint8]) -> NDArray[np.int32]:
    _, regions = cv2.connectedComponents(truth, connectivity=8, ltype=cv2.CV_32S)
    return np.asarray(regions, np.int32)


def _together(*parts: PixelCurves) -> PixelCurves:
    total = PixelCurves()
    for part in parts:
        total.include(part)
    return total


def _kind(sample: Sample) -> str:
    """A defect of no kind, or of one named "good", is of the kind "defect": it never mixes with good images."""
    if sample.label == "good":
        return "good"
    return sample.kind if sample.kind not in ("", "good") else "defect"


def _list(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else list(interval)


def figure(value: float | None, *, undefined: str = "undefined") -> str:
    """A metric in [0, 1] for a person: four digits, and only a perfect 1 reads as one."""
    if value is None:
        return undefined
    return f"{value if value == 1 else max(0.0, min(value, 0.9999)):.4f}"


def _rate(rate: Rate) -> str:
    if rate.value is None or rate.interval_95 is None:
        return "none"
    low, high = rate.interval_95
    return f"{rate.count} of {rate.of} ({100 * rate.value:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
