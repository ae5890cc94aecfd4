"""From a model folder and an image to a verdict: the only way to one, on the line as in every measurement."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from makel.calibration import Calibration
from makel.errors import ImageError, MakelError, ModelFolderError, UsageError
from makel.images import DecodedRows, Rows, decode_all, open_rows, prepare, read, shown
from makel.model.folder import ModelFolder, faults_of, open_folder
from makel.model.manifest import Manifest
from makel.model.map_store import MapStore
from makel.model.rules import Judgement, Rules
from makel.model.scan import Scan
from makel.model.session import Runner, open_session
from makel.model.tiling import Tiling
from makel.types import Region, Scores, Verdict

Image = str | os.PathLike[str] | NDArray[Any]
"""A file, or (H, W), (H, W, 1) or (H, W, 3) RGB pixels: uint8, uint16, or float32 in [0, 1]."""


@dataclass(frozen=True)
class Prepared:
    """An image as the model takes it, and what the verdict needs of the original, which need not be kept.

    For a model with tiles `image` is the original.
    """

    image: NDArray[Any]
    height_px: int
    width_px: int
    name: str
    prepare_s: float


class Inspector:
    """Inspects images with one model. It keeps nothing between calls, so several threads may share it.

        inspector = makel.Inspector.load("models/toothbrush")
        verdict = inspector.inspect("part.png")

    Attributes:
        folder: The model folder it was loaded from.
        rules: What makes verdicts of scores: thresholds and zones.
    """

    def __init__(self, folder: ModelFolder, runner: Runner) -> None:
        """Use `load`; this takes a folder that is already open and what runs its model."""
        self.folder = folder
        with faults_of(folder.path):
            try:
                self.rules = Rules(folder.manifest)
            except UsageError as error:
                raise ModelFolderError(f"{folder.path} has zones that cannot be used: {error}. Fit again") from error
        self._runner = runner

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, threads: int | None = None, provider: str = "cpu", verify: bool = True
    ) -> Self:
        """Open a model folder.

        Args:
            folder: What `makel fit` wrote.
            threads: Threads an inspection uses at most; None for the cores this process may use, at most 4.
            provider: "cpu", "cuda", "tensorrt" or "openvino".
            verify: Hash every file first. Without it only the manifest and the model itself are checked.

        Raises:
            ModelFolderError: The folder is not a model folder, or something in it is not as it was written.
            UsageError: The provider is not installed or does not start.
        """
        opened = open_folder(folder, verify=verify)
        return cls(opened, open_session(opened, threads=threads, provider=provider))

    @property
    def manifest(self) -> Manifest:
        """Everything known about the model."""
        return self.folder.manifest

    @property
    def model_id(self) -> str:
        """Which model this is; the same in every verdict."""
        return self.manifest.model_id

    @property
    def calibration(self) -> Calibration:
        """The thresholds, and what they promise."""
        return self.manifest.calibration

    def inspect(self, image: Image) -> Verdict:
        """The verdict on one image.

        Args:
            image: A file or its pixels, of any size. A file is turned upright as its EXIF orientation says, and boxes
                and map are in the pixels of the upright image.

        Returns:
            The verdict. Without zones and a minimum area it rests on the score alone: regions come from the pixel
            threshold, so a passed image may show one and a rejected image none.

        Raises:
            ImageError: The image cannot be read, or is not of the kind the model was fitted on.
            ModelFolderError: The model gives a number that is not finite.
        """
        if (tiling := self.manifest.tiling) is not None:
            return self._inspect_tiles(image, tiling)
        if isinstance(image, (str, os.PathLike)):
            prepared = self.prepare(read(image), shown(image))
        else:
            prepared = self.prepare(image, "image")
        return self.judge([prepared])[0]

    def inspect_all(
        self, paths: Iterable[str | os.PathLike[str]], *, batch: int = 1, workers: int = 2
    ) -> Iterator[tuple[Path, Verdict | MakelError]]:
        """Verdicts on many files, in their order, decoding the next ones while the model runs.

        Args:
            paths: Image files.
            batch: Images the model takes at once. Scores do not depend on it beyond `manifest.parity.score_tolerance`.
            workers: Threads that decode.

        A model with tiles reads one image at a time as it goes through them; there is nothing to set.

        Returns:
            Each path with its verdict, or with the error that keeps this one image from having one. `elapsed_ms` of a
            verdict holds its share of the batch.

        Raises:
            UsageError: `batch` or `workers` is below one.
            ModelFolderError: The model gives a number that is not finite.
        """
        if batch < 1 or workers < 1:
            raise UsageError(f"batch={batch} and workers={workers} must both be at least 1")
        if (tiling := self.manifest.tiling) is not None:
            return self._inspect_all_tiles(map(Path, paths), tiling)
        return self._inspect_all(map(Path, paths), batch, workers)

    def prepare(self, pixels: NDArray[Any], name: str = "image") -> Prepared:
        """An image as the model takes it: the part of `inspect` that other threads can do ahead of the model.

        Args:
            pixels: (H, W), (H, W, 1) or (H, W, 3) RGB; uint8, uint16, or float32 in [0, 1]. Kept only for a model with
                tiles.
            name: What to call the image in an error.

        Raises:
            ImageError: The image is not of the kind the model was fitted on, or not of the aspect of its zones.
        """
        started = perf_counter()
        self.rules.zones.check_aspect(pixels.shape[1], pixels.shape[0], name)
        image: NDArray[Any] = prepare(pixels, self.manifest.preprocessing, name=name)
        if self.manifest.tiling is not None:
            image = pixels  # of the kind the model was fitted on, as is known now
        return Prepared(image, pixels.shape[0], pixels.shape[1], name, perf_counter() - started)

    def judge(self, batch: Sequence[Prepared]) -> list[Verdict]:
        """The verdicts on images that `prepare` of this inspector gave, in their order, in one run of the model.

        Raises:
            ModelFolderError: The model gives a number that is not finite.
        """
        if not batch:
            return []
        if (tiling := self.manifest.tiling) is not None:
            return [self._scan(DecodedRows(each.image), tiling, each.name, each.prepare_s) for each in batch]
        started = perf_counter()
        scores = self._runner.run(np.stack([prepared.image for prepared in batch]))
        run_s = (perf_counter() - started) / len(batch)
        return [
            self._verdict(prepared, run_s, float(score), anomaly_map[0])
            for prepared, score, anomaly_map in zip(batch, scores.image, scores.anomaly_map, strict=True)
        ]

    def scores(self, images: NDArray[np.float32]) -> Scores[NDArray[np.float32]]:
        """Raw scores of prepared images, for measurements at the model's own size; of a model with tiles, of tiles.

        Args:
            images: (N, 3, H, W) float32 RGB in [0, 1] from `makel.images.prepare`.

        Returns:
            image (N,) and anomaly_map (N, 1, H, W), float32.
        """
        return self._runner.run(images)

    def _inspect_all(
        self, paths: Iterator[Path], batch: int, workers: int
    ) -> Iterator[tuple[Path, Verdict | MakelError]]:
        waiting: list[tuple[Path, Prepared | MakelError]] = []
        for path, pixels in decode_all(paths, workers=workers, ahead=workers + batch):
            waiting.append((path, self._prepare_or_error(pixels, shown(path))))
            if sum(isinstance(item, Prepared) for _, item in waiting) == batch:
                yield from self._judge_or_error(waiting)
                waiting = []
        yield from self._judge_or_error(waiting)

    def _prepare_or_error(self, pixels: NDArray[Any] | ImageError, name: str) -> Prepared | MakelError:
        if isinstance(pixels, ImageError):
            return pixels
        try:
            return self.prepare(pixels, name)
        except ImageError as error:
            return error

    def _judge_or_error(
        self, waiting: list[tuple[Path, Prepared | MakelError]]
    ) -> Iterator[tuple[Path, Verdict | MakelError]]:
        verdicts = iter(self.judge([item for _, item in waiting if isinstance(item, Prepared)]))
        for path, item in waiting:
            yield path, item if isinstance(item, MakelError) else next(verdicts)

    def _verdict(self, prepared: Prepared, run_s: float, score: float, small: NDArray[np.float32]) -> Verdict:
        started = perf_counter()
        # NaN is not above any threshold: it would pass.
        if not (np.isfinite(score) and np.isfinite(small).all()):
            raise ModelFolderError(
                f"{self.folder.path} gives {prepared.name} a score or map that is not finite: its network is broken, "
                "fit again"
            )
        anomaly_map = self.rules.enlarge(small, prepared.width_px, prepared.height_px)
        regions = self.rules.find(anomaly_map)
        judgement = self.rules.decide(score, small, regions)
        return self._say(judgement, regions, anomaly_map, prepared.prepare_s + run_s + perf_counter() - started)

    def _inspect_all_tiles(self, paths: Iterator[Path], tiling: Tiling) -> Iterator[tuple[Path, Verdict | MakelError]]:
        for path in paths:
            try:
                result: Verdict | MakelError = self._inspect_tiles(path, tiling)
            except ImageError as error:
                result = error
            yield path, result

    def _inspect_tiles(self, image: Image, tiling: Tiling) -> Verdict:
        if isinstance(image, (str, os.PathLike)):
            with open_rows(image) as rows:
                return self._scan(rows, tiling, shown(image))
        return self._scan(DecodedRows(image), tiling, "image")

    def _scan(self, rows: Rows, tiling: Tiling, name: str, prepare_s: float = 0.0) -> Verdict:
        started = perf_counter()
        height_px, width_px = rows.shape[:2]
        scan = Scan(rows, tiling, self.manifest.preprocessing, self._runner.run, name=name)
        anomaly_map, stream = MapStore(height_px, width_px), self.rules.follow(width_px, height_px)
        for band in scan.bands():
            anomaly_map.add(band)
            stream.add(band)
        regions = self.rules.measure(stream.finish(), width_px, height_px)
        judgement = self.rules.decide(scan.score, None, regions)
        elapsed_s = prepare_s + perf_counter() - started - scan.reading_s
        return self._say(judgement, regions, anomaly_map.finish(), elapsed_s)

    def _say(
        self,
        judgement: Judgement,
        regions: tuple[Region, ...],
        anomaly_map: NDArray[np.float32],
        elapsed_s: float,
    ) -> Verdict:
        return Verdict(
            verdict="reject" if judgement.rejected else "pass",
            score=judgement.score,
            threshold=self.calibration.image_threshold,
            p_value=judgement.p_value,
            regions=regions,
            anomaly_map=anomaly_map,
            model_id=self.model_id,
            elapsed_ms=1000 * elapsed_s,
            zones=judgement.zones,
        )
