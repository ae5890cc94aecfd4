"""From a folder of good images to a verified model folder."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from makel.calibration import calibrate as fit_calibration
from makel.calibration import images_needed
from makel.datasets import Dataset, Snapshot, folds, load, name_groups, overlooked, representatives, split
from makel.errors import DatasetError, ImageError, ModelFolderError, UsageError
from makel.evaluation.held_out import HeldOut, scan_image, score_held_out
from makel.evaluation.report import find_doubtful, write_fit_report
from makel.images import Preparation, likeness, read_header, shown
from makel.methods import load as load_method
from makel.model import cards, golden
from makel.model import folder as model_folder
from makel.model import zones as zones_file
from makel.model.layout import ModelLayout, place_on_input
from makel.model.manifest import (
    ONNX_NAME,
    REPORT_NAME,
    SEEN_NAME,
    WEIGHTS_NAME,
    Backbone,
    Draft,
    Fit,
    Method,
    Provenance,
    short_hash,
)
from makel.model.session import Runner, Session
from makel.model.tiling import Tiling
from makel.model.zones import Zones
from makel.training import backbones, latency, survey
from makel.training.augment import COPIES
from makel.training.detector import Detector, DetectorConfig, as_shape
from makel.training.export import export_onnx, torch_scores
from makel.training.features import Extraction, Progress, extract, extract_shared
from makel.training.gate import check_parity, nudged
from makel.training.loop import Checkpoint, train
from makel.training.mixture import second_product
from makel.training.shape import image_sizes, input_shape
from makel.training.summary import FitSummary
from makel.training.tiles import TilePlan
from makel.training.torch_session import TorchSession
from makel.types import Sample, Shape, in_px

N_GOLDEN = 4
N_PARITY = 32
"""Held-out images the gate compares at most."""

N_FOLDS = 5

_WORK_FILE = re.compile(r"checkpoint\.(pt|tmp)|features-\d+\.f16")

Scheme = Literal["holdout", "cross"]


class Stopwatch:
    """Wall time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    @contextmanager
    def stage(self, name: str, progress: Progress | None = None) -> Iterator[None]:
        """Time a block, added to what the stage took before. `progress` hears of it where nothing inside tells more."""
        progress = progress or (lambda _stage, _done, _total: None)
        progress(name, 0, 1)
        began = time.perf_counter()
        yield
        progress(name, 1, 1)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def total(self) -> dict[str, float]:
        """Seconds a stage and in all, to the millisecond."""
        every = {**self.seconds, "total": time.perf_counter() - self._began}
        return {name: round(value, 3) for name, value in every.items()}


def fit(
    data: str | os.PathLike[str] | Dataset,
    out: str | os.PathLike[str],
    *,
    method: str = "skip_ae",
    preset: str = "fast",
    backbone: str | None = None,
    blocks: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
    augment: bool = False,
    tile: int | None = None,
    overlap: str | int = "auto",
    false_reject: float = 0.01,
    calibrate: Scheme = "holdout",
    holdout: float = 0.2,
    latency_budget: float | None = None,
    zones: str | os.PathLike[str] | Zones | None = None,
    group: str | None = None,
    seed: int = 0,
    device: str = "auto",
    resume: bool = False,
    features: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FitSummary:
    """Learn from good images what a product looks like, and write a model folder.

    Args:
        data: A category in MVTec AD layout, any folder of good images, or a loaded dataset.
        out: The model folder to write. An existing model folder is replaced, at the very end and in one step.
        method: A name in `makel.methods.names()`.
        preset: "fast" or "paper".
        backbone: Overrides the preset's.
        blocks: Overrides the preset's backbone blocks.
        size: Overrides how much the model sees of an image, in pixels: the height and width of its input; or as one
            number the side of a square, of which a method whose `aspect` is "image" takes the pixels alone and the
            images' own aspect (`makel.training.shape.input_shape`).
        epochs: Overrides the preset's passes over the images.
        batch_size: Overrides the preset's images a training step.
        settings: Overrides any other settings of the method's `Config`.
        augment: Fit on jittered copies of every image as well (`makel.training.augment`), where there are few.
        tile: Cut images into squares of this many of their own pixels, each of which the model takes as an image; None
            to take images whole.
        overlap: Pixels that neighbouring tiles share at least, or "auto" for a quarter of the tile.
        false_reject: Share of good parts that may be rejected; the summary says whether the images can promise it.
        calibrate: "holdout": thresholds from images kept out of the fit; "cross": from every image, each scored by a
            model of a fold that did not see it, and the final model is fitted on all.
        holdout: Share of the good images to hold out.
        latency_budget: Milliseconds from a decoded image to its verdict at the 99th percentile on this machine, for
            which size and backbone are chosen where they are not given; see `makel.training.latency`.
        zones: A zones file, or what `makel.model.zones.read` made of one; None for the whole image as one.
        group: A regular expression that finds, in the path of each image below the dataset's folder, the part, strip or
            lot it shows (`makel.datasets.name_groups`): images of one are held out together and count once for the
            threshold. Folders inside the folder of good images are read too. Samples of a loaded dataset may also
            carry a `group` of their own. None where every image is one of a part by itself, but for those that look
            alike, which are found in any case.
        seed: Seed of everything random.
        device: "auto", "cpu", "cuda" or "mps".
        resume: Go on with an interrupted fit of the same images and settings.
        features: A folder where fits share features (`makel.training.features.extract_shared`); None to share none.
        progress: Called with (stage, done, total).

    Returns:
        What was done, with the manifest of the model folder.

    Raises:
        UsageError: A setting cannot be used, or nothing keeps the latency budget.
        DatasetError: The images cannot be used.
        ImageError: The zones were drawn on an image of another aspect.
        WeightsError: The backbone's weights are missing.
        TrainingError: A loss turned NaN.
        ParityError: The exported model disagrees with the trained one; nothing was written.
        ModelFolderError: `out` cannot be written.
    """
    progress = progress or (lambda _stage, _done, _total: None)
    watch = Stopwatch()
    target = Path(out).resolve()
    detector_class = load_method(method)
    given = {"backbone": backbone, "blocks": tuple(blocks) if blocks else None, "size": size, "epochs": epochs}
    changes = {key: value for key, value in {**given, "batch_size": batch_size}.items() if value is not None}
    changes = {**(settings or {}), **changes}
    tiling = None if tile is None else Tiling.of(tile, overlap)
    if tiling is None and overlap != "auto":
        raise UsageError(f"an overlap of {overlap} px is one of tiles: give the tile's side too, or leave it out")
    if tiling and latency_budget is not None:
        raise UsageError(
            "a latency budget is for images taken whole: in tiles the time grows with the image. Leave one of them out"
        )
    if tiling and features is not None:
        raise UsageError("features of tiles cannot be shared between fits: leave the folder for them, or --tile, out")
    if augment and (tiling or features is not None):
        raise UsageError(
            "copies are made of images taken whole, for one fit: leave --augment, or --tile or features, out"
        )
    if tiling:
        changes = {**detector_class.config_class.for_tiles, **changes}
    config = detector_class.config_class.preset(preset, **changes)
    if config.epochs and not detector_class.config_class.preset(preset).epochs_for(1):
        raise UsageError(
            f"{method} is solved in one go, without passes over the images: leave epochs={config.epochs} out"
        )
    where = choose_device(device)
    images_needed(false_reject)  # refuses a budget that is none, before anything is spent
    if latency_budget is not None:
        latency.check_budget(latency_budget)
    given_zones = zones if zones is None or isinstance(zones, Zones) else zones_file.read(zones)
    if tiling and given_zones and given_zones.zones:
        raise UsageError(
            f"zone {given_zones.zones[0].name!r} is a part of an image taken whole: leave --tile or the zones out; a "
            "minimum area and a scale work with tiles too"
        )

    with model_folder.staging(target) as stage, _work_folder(target, resume) as work:
        with watch.stage("data", progress):
            dataset = data if isinstance(data, Dataset) else load(Path(data), nested=group is not None)
            if group is not None:
                dataset = name_groups(dataset, group)
        shape_of = _shapes(config, changes.get("size"), dataset, tiling)
        choice = None
        if latency_budget is not None:
            with watch.stage("latency"):
                choice = latency.choose(
                    latency_budget,
                    dataset,
                    config,
                    given=changes.keys(),
                    shape_of=shape_of,
                    build=lambda changed: build_detector(detector_class, changed, seed),
                    # Everything that decides the shape of the network, and nothing that decides how well it learns.
                    fit=partial(
                        fit,
                        method=method,
                        preset=preset,
                        blocks=blocks,
                        batch_size=batch_size,
                        settings=settings,
                        zones=given_zones,
                        epochs=1 if config.epochs_for(1) else None,
                        false_reject=0.5,
                        seed=seed,
                        device=device,
                    ),
                    progress=progress,
                )
            config = replace(config, size=choice.size, backbone=choice.backbone)
        else:
            config = replace(config, size=shape_of(config.size[0]))
        with watch.stage("data", progress):
            parts = split(dataset, holdout=0.0 if calibrate == "cross" else holdout, seed=seed)
            to_fit = parts.fit
            snapshot = Snapshot.of((*parts.fit, *parts.calibrate))
            good = [sample.image_path for sample in (*parts.fit, *parts.calibrate)]
            looks = dict(zip(good, likeness.thumbnails(good), strict=True))
            layout = place_on_input(given_zones or Zones(), config.size)
            if given_zones:
                _check_aspects(given_zones, (*to_fit, *parts.calibrate))
            tiles = TilePlan.of([sample.image_path for sample in to_fit], tiling, seed=seed) if tiling else None
            if tiles:
                tiles.check()
            pictures = survey.look(good, config.size, tiles=tiles)
            preparation = Preparation.settle([picture.kind for picture in pictures], shape=config.size)
            odd = survey.warnings(pictures, preparation.colour, dataset)
        with watch.stage("backbone", progress):
            detector = build_detector(detector_class, config, seed, layout).to(where)
        with watch.stage("features"):
            if features is None:
                extraction = extract(
                    detector,
                    [sample.image_path for sample in to_fit],
                    preparation,
                    device=where,
                    folder=work,
                    progress=progress,
                    tiles=tiles,
                    copies_seed=seed if augment else None,
                    check=snapshot.check,
                )
            else:
                extraction = extract_shared(
                    detector, to_fit, dataset.good, preparation, device=where, folder=Path(features), progress=progress
                )
            fitted = set(extraction.paths)
            to_fit = tuple(sample for sample in to_fit if sample.image_path in fitted)
            odd = (*odd, *_second_product(detector, extraction))
        with watch.stage("training"):
            key = _key(method, config, tiling, augment, seed, snapshot.digest(extraction.paths), given_zones)
            checkpoint = Checkpoint(work / "checkpoint.pt", key)
            history = train(
                detector,
                extraction.cache,
                seed=seed,
                progress=progress,
                checkpoint=checkpoint,
                resume=resume,
            )
        with watch.stage("export", progress):
            # Not `save_file`, which leaves a file that only its owner can read.
            (stage / WEIGHTS_NAME).write_bytes(save(_contiguous(detector.trained_state())))
            method_section = Method(name=method, preset=preset, config=asdict(detector.settled))
            backbone_section = Backbone(**detector.backbone.to_json()) if detector.backbone else None
            session = open_written(detector, method_section, backbone_section, stage, layout)
        with watch.stage("calibration", progress):
            scored = to_fit[:N_PARITY] if calibrate == "cross" else parts.calibrate
            held_out = score_held_out(
                session.run,
                [sample.image_path for sample in scored],
                preparation,
                layout,
                tiling,
                keep=N_PARITY,
                check=snapshot.check,
            )
            if not held_out.paths:
                first = held_out.unreadable[0]
                raise DatasetError(f"none of the {len(scored)} held-out good images can be read: {first}")
            if calibrate == "cross":
                scores, peaks = cross_scores(
                    detector_class,
                    detector.settled,
                    extraction,
                    to_fit,
                    seed,
                    progress,
                    layout,
                    preparation=preparation,
                    tiling=tiling,
                )
                speaking = representatives(to_fit, seed)
                scores, peaks = scores[speaking], peaks[speaking]
            else:
                scores, peaks = held_out.scores, held_out.peaks
            calibration = fit_calibration(scores, peaks[:, 0], false_reject=false_reject, scheme=calibrate)
            zone_peaks = zip(given_zones.judged if given_zones else (), peaks.T[1:], strict=True)
            own = {
                zone.name: fit_calibration(each, each, false_reject=zone.false_reject or 0.0, scheme=calibrate)
                for zone, each in zone_peaks
            }
            calibrated_zones = given_zones and given_zones.calibrated(calibration, own)
        with watch.stage("gate", progress):
            images, names = _parity_images(held_out, preparation, tiling)
            parity = check_parity(
                images,
                names,
                torch_scores(detector, images),
                session,
                calibration.image_threshold,
                of_nudged=torch_scores(detector, nudged(images)),
            )
            quantised = golden.quantise(images[:N_GOLDEN])
            golden.write(stage, quantised, session.run(golden.restore(quantised)))
        seen = [sample.image_path for sample in to_fit]
        seen += [path for path in held_out.paths if path not in fitted]
        (stage / SEEN_NAME).write_bytes(likeness.pack([looks[path] for path in seen], preparation.white_level))
        (stage / "log.jsonl").write_text(history.to_jsonl(), encoding="utf-8")
        draft = Draft(
            method=method_section,
            preprocessing=preparation,
            backbone=backbone_section,
            calibration=calibration,
            provenance=Provenance(
                data_name=dataset.name,
                data_digest=snapshot.digest(seen),
                n_fit=len(to_fit),
                n_calibrate=calibration.n,
                n_tiles=len(extraction.cache) if tiling else 0,
                n_copies=COPIES if augment else 0,
                seed=seed,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                machine=f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores, {where.type}",
                versions=_versions(),
                fit_hashes=tuple(short_hash(snapshot.hashes[path]) for path in seen[: len(to_fit)]),
                calibrate_hashes=tuple(short_hash(snapshot.hashes[path]) for path in seen[len(to_fit) :]),
                holdout=() if calibrate == "cross" else tuple(_relative(path, dataset.root) for path in held_out.paths),
            ),
            fit=Fit(
                seconds=watch.total(),
                epochs=len(history.epochs),
                final_loss=history.final_loss,
                warnings=(*parts.findings, *odd, *detector.warnings(history.epochs)),
                images=survey.summary(pictures),
            ),
            parity=parity,
            zones=calibrated_zones,
            runtime="onnx" if detector.exports else "torch",
            tiling=tiling,
        )
        if choice is not None and latency_budget is not None:
            with watch.stage("latency"):
                kept = latency.keep_promise(choice, latency_budget, draft, stage, held_out.paths)
            spent = draft.fit.model_copy(update={"seconds": watch.total()})
            draft = draft.model_copy(update={"latency": kept, "fit": spent})
        unreadable = tuple(str(error) for error in (*extraction.unreadable, *held_out.unreadable))
        write_fit_report(
            stage / REPORT_NAME,
            draft,
            losses=[epoch["loss"] for epoch in history.epochs],
            doubtful=find_doubtful(
                [to_fit[index].image_path for index in speaking] if calibrate == "cross" else held_out.paths,
                scores,
                session.run,
                preparation,
                tiling=tiling,
            ),
            unreadable=unreadable,
        )
        cards.write(stage, draft)
        manifest = model_folder.write(target, stage, draft)
        clear_work(work)
    notes = () if isinstance(data, Dataset) else overlooked(dataset)
    n_tiles = tiles.n_available if tiles else 0
    return FitSummary(target, manifest, unreadable, n_tiles, notes, survey.test_kinds(dataset))


def choose_device(name: str) -> torch.device:
    """The device of a name: "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: It is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(key for key in ("cuda", "mps", "cpu") if there[key]))
    if not there.get(name, False):
        found = ", ".join(key for key, here in there.items() if here)
        raise UsageError(f"device {name!r} is not on this machine: choose auto, or one of {found}")
    return torch.device(name)


def _shapes(config: DetectorConfig, given: object, dataset: Dataset, tiling: Tiling | None) -> Callable[[int], Shape]:
    """What tells the height and width of the input for as many pixels as a square of so many a side has.

    Args:
        config: The settings.
        given: The size that somebody gave, if anybody did: both sides are taken as they are.
        dataset: The good images.
        tiling: How images are cut; a tile is a square.

    Raises:
        UsageError: Tiles are to be brought to what is no square.
    """
    height, width = config.size
    if tiling and height != width:
        raise UsageError(f"a tile is a square and cannot be seen at {in_px(config.size)}: give one number as size")
    if given is not None and not isinstance(given, int):
        return lambda _: config.size
    if config.aspect == "square" or tiling:
        return as_shape
    sizes = image_sizes(sample.image_path for sample in dataset.good)
    return partial(input_shape, sizes) if sizes else as_shape  # that none can be read is said when they are decoded


def build_detector(
    detector_class: type[Detector], config: DetectorConfig, seed: int, layout: ModelLayout | None = None
) -> Detector:
    """An unfitted detector with its frozen backbone; its trainable weights follow from the seed alone.

    Args:
        detector_class: The method.
        config: Its settings.
        seed: Seed of its weights.
        layout: Which part of the input counts; None for all.
    """
    backbone = backbones.build(config.backbone, config.blocks) if config.backbone else None
    torch.manual_seed(seed)
    detector = detector_class(config, backbone)
    if layout is not None:
        detector.restrict(layout.seen, layout.scored)
    return detector


def open_written(
    detector: Detector, method: Method, backbone: Backbone | None, stage: Path, layout: ModelLayout
) -> Runner:
    """What will run the model of a folder, opened from what the folder is to hold.

    Args:
        detector: Fitted. If it exports, the ONNX file is written first; else its weights must be there.
        method: Its name and settings as recorded.
        backbone: Its backbone as recorded.
        stage: The staging folder.
        layout: Which part of the input counts.
    """
    if not detector.exports:
        weights, device = stage / WEIGHTS_NAME, next(detector.parameters()).device
        return TorchSession.rebuild(method, backbone, weights.read_bytes(), layout, name=str(weights), device=device)
    export_onnx(detector, stage / ONNX_NAME)
    return Session((stage / ONNX_NAME).read_bytes(), threads=torch.get_num_threads())


def _parity_images(
    held_out: HeldOut, preparation: Preparation, tiling: Tiling | None
) -> tuple[NDArray[np.float32], list[str]]:
    """At most `N_PARITY` prepared images, (n, 3, H, W), and the file each is of: held-out images, or tiles of them."""
    images, names = list(held_out.images), [path.name for path in held_out.paths[: len(held_out.images)]]
    if tiling and len(images) < N_PARITY:
        plan = TilePlan.of(held_out.paths, tiling, seed=0, limit=N_PARITY)
        for path, tile in plan.prepared(preparation):
            if isinstance(tile, ImageError):
                raise tile  # it could be read a moment ago
            images.append(tile)
            names.append(path.name)
    return np.stack(images[:N_PARITY]), names[:N_PARITY]


def cross_scores(
    detector_class: type[Detector],
    config: DetectorConfig,
    extraction: Extraction,
    samples: Sequence[Sample],
    seed: int,
    progress: Progress,
    layout: ModelLayout,
    *,
    preparation: Preparation,
    tiling: Tiling | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Image scores (N,) and map peaks (N, parts) of all images, each from a model of a fold that did not see it.

    Images in tiles are read again to be scored whole, and no tile of theirs was seen either.

    Raises:
        DatasetError: There are fewer than two images.
    """
    cache, n = extraction.cache, len(samples)
    if n < 2:
        raise DatasetError("cross calibration of one image is impossible: give at least 2 good images")
    count = min(N_FOLDS, n)
    index_of = {sample.image_path: index for index, sample in enumerate(samples)}
    image_of = np.array([index_of[path] for path in extraction.paths], np.int64)
    scores, peaks = np.empty(n, np.float32), [np.empty(0, np.float32)] * n
    for number, left_out in enumerate(folds(samples, count, seed)):
        detector = build_detector(detector_class, config, seed, layout).to(cache.device)
        rest = np.flatnonzero(~np.isin(image_of, left_out))
        train(detector, cache.subset(rest), seed=seed, progress=lambda *_: None)
        for index in left_out:
            if tiling:
                run = partial(torch_scores, detector)
                scored = scan_image(run, samples[index].image_path, preparation, tiling)
                scores[index], peaks[index] = scored.score, scored.peaks
                continue
            with torch.no_grad():
                out = detector.scores(cache.batch(np.flatnonzero(image_of == index)[:1]))  # not its copies
            scores[index] = float(out.image)
            peaks[index] = layout.peaks(out.anomaly_map[0, 0].float().cpu().numpy())
        progress("cross-calibration", number + 1, count)
    return scores, np.stack(peaks)


def _second_product(detector: Detector, extraction: Extraction) -> tuple[str, ...]:
    """A line on images that look like another product; only a backbone's features tell."""
    others = {*second_product(extraction.cache).tolist()} if detector.backbone else set()
    images = extraction.cache.images.tolist()
    names = list(dict.fromkeys(path for path, image in zip(extraction.paths, images, strict=True) if image in others))
    if not names:
        return ()
    listed = ", ".join(shown(path.name) for path in names[:3])
    return (
        f"{len(names)} of {len(set(images))} images fitted on look like another product than the rest, such as "
        f"{listed}: too few to learn it from, and its good parts may all be rejected. Fit each product by itself, or "
        "give many more of these",
    )


def _check_aspects(zones: Zones, samples: Sequence[Sample]) -> None:
    """Refuse good images on which the zones would lie elsewhere; what cannot be read is told later."""
    for sample in samples:
        try:
            header = read_header(sample.image_path)
        except ImageError:
            continue
        zones.check_aspect(header.width_px, header.height_px, shown(sample.image_path))


@contextmanager
def _work_folder(target: Path, resume: bool) -> Iterator[Path]:
    """Where a fit keeps its checkpoint and a mapped cache until it is done: beside the model folder."""
    work = target.with_name(f".{target.name}.resume")
    if work.exists() and not resume:
        clear_work(work)
    work.mkdir(exist_ok=True)
    try:
        yield work
    finally:
        if work.exists() and not any(work.iterdir()):
            work.rmdir()


def clear_work(work: Path) -> None:
    """Delete what a fit left in its work folder.

    Raises:
        ModelFolderError: The folder holds something else.
    """
    for path in sorted(work.iterdir()):
        if path.is_dir() or not _WORK_FILE.fullmatch(path.name):
            raise ModelFolderError(
                f"{path} is nothing that a fit writes, in a folder that a fit would delete: move it away"
            )
    shutil.rmtree(work)


def _key(
    method: str,
    config: DetectorConfig,
    tiling: Tiling | None,
    augment: bool,
    seed: int,
    data_digest: str,
    zones: Zones | None,
) -> str:
    cut, drawn = asdict(tiling) if tiling else None, zones and zones.model_dump(mode="json")
    facts = json.dumps([method, asdict(config), cut, augment, seed, data_digest, drawn], sort_keys=True)
    return sha256(facts.encode()).hexdigest()


def _contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.cpu().contiguous() for key, value in state.items()}


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _versions() -> dict[str, str]:
    names = ("makel", "torch", "timm", "onnx", "onnxruntime", "numpy", "opencv-python-headless", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
