"""Features of the frozen part, computed once for every image and trained on from a cache.

That alone turns hours into a minute on a CPU. The cache holds half precision, in memory up to `MEMORY_LIMIT_BYTES` and
in a memory-mapped file beside the model folder beyond that. Fits that differ in seed or method alone can share one, in
a folder of their own.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from makel.datasets import Snapshot, distinct, hashes
from makel.errors import DatasetError, ImageError, TrainingError
from makel.evaluation.held_out import checked
from makel.images import Preparation, decode_all
from makel.training.augment import COPIES, with_copies
from makel.training.detector import Detector, Features
from makel.training.tiles import TilePlan
from makel.types import Sample

MEMORY_LIMIT_BYTES = 1 << 29

EXTRACT_BATCH = 8

Progress = Callable[[str, int, int], None]
"""Called with the stage, how much of it is done, and how much there is."""


@dataclass
class FeatureCache:
    """Features of a list of images, in their order.

    Attributes:
        levels: One (N, C, H, W) float16 array a level.
        device: Where batches are wanted.
        rows: Of the arrays, the rows that are in the list.
        image_of: (rows of the arrays,) the image that each row is of; each an image of its own where it is empty.
    """

    levels: list[NDArray[np.float16]]
    device: torch.device
    batch_size: int = EXTRACT_BATCH
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    image_of: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Features]:
        """All features in order, batch by batch; may be iterated as often as needed."""
        for start in range(0, len(self), self.batch_size):
            yield self.batch(range(start, min(start + self.batch_size, len(self))))

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Features:
        """Features of some images: one (len(indices), C, H, W) float32 tensor a level."""
        rows = self.rows[np.asarray(indices)]
        found = tuple(torch.from_numpy(level[rows]).to(self.device).float() for level in self.levels)
        _let_go(self.levels)
        return found

    @property
    def images(self) -> NDArray[np.int64]:
        """(N,) the image that each of the list is of."""
        return self.image_of[self.rows] if len(self.image_of) else self.rows

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> FeatureCache:
        """Some of the images, without a copy."""
        return FeatureCache(self.levels, self.device, self.batch_size, self.rows[np.asarray(indices)], self.image_of)


@dataclass(frozen=True)
class Extraction:
    """What became of a list of images.

    Attributes:
        cache: The features of those that could be read.
        paths: Their files, in the cache's order; with tiles or copies, the file of each.
        unreadable: One error for each of the others.
    """

    cache: FeatureCache
    paths: tuple[Path, ...]
    unreadable: tuple[ImageError, ...]


def extract(
    detector: Detector,
    paths: Sequence[Path],
    preparation: Preparation,
    *,
    device: torch.device,
    folder: Path,
    progress: Progress,
    memory_limit: int = MEMORY_LIMIT_BYTES,
    tiles: TilePlan | None = None,
    copies_seed: int | None = None,
    check: Callable[[Path], None] = lambda _path: None,
) -> Extraction:
    """Run the frozen part of a detector over images, decoding in parallel with it.

    Args:
        detector: Only its `features` are used.
        paths: The images.
        preparation: How they are prepared.
        device: Where to compute.
        folder: Where a cache too large for memory is mapped.
        progress: Called as images are done.
        memory_limit: Bytes beyond which the cache is mapped.
        tiles: Take these tiles of the images, in place of the images; each is one row of the cache.
        copies_seed: Add jittered copies of every image, drawn by this seed; each is one row of the cache, after its
            image's own.
        check: Raises an ImageError for a file that is no longer what it was; called after each was read.

    Raises:
        DatasetError: None of the images can be read.
        TrainingError: Features are not finite in half precision.
    """
    total = tiles.count if tiles else len(paths)
    images = tiles.prepared(preparation) if tiles else decode_all(paths, preparation=preparation)
    if copies_seed is not None:
        total *= 1 + COPIES
        images = with_copies(images, copies_seed)
    levels: list[NDArray[np.float16]] = []
    done: list[Path] = []
    unreadable: list[ImageError] = []
    pending: list[NDArray[np.float32]] = []

    def flush() -> None:
        if not pending:
            return
        with torch.no_grad():
            features = detector.features(torch.from_numpy(np.stack(pending)).to(device))
        if not levels:
            levels.extend(_allocate(features, total, folder, memory_limit))
        stop = len(done)
        for level, values in zip(levels, features, strict=True):
            half = values.half()
            if not torch.isfinite(half).all():
                raise TrainingError(
                    f"the features of {done[stop - len(pending)]} or one of the {len(pending) - 1} images after it are "
                    "not finite in half precision: look at the image, or choose another backbone"
                )
            level[stop - len(pending) : stop] = half.cpu().numpy()
        _let_go(levels)
        pending.clear()
        progress("features", stop, total)

    for path, image in images:
        if not isinstance(image, ImageError):
            image = checked(path, image, check)
        if isinstance(image, ImageError):
            unreadable.append(image)
            continue
        done.append(path)
        pending.append(image)
        if len(pending) == EXTRACT_BATCH:
            flush()
    flush()
    if not done:
        raise DatasetError(f"none of {len(paths)} images can be read; the first says: {unreadable[0]}")
    numbers = {path: number for number, path in enumerate(dict.fromkeys(done))}
    image_of = np.array([numbers[path] for path in done], np.int64)
    cache = FeatureCache(levels, device, rows=np.arange(len(done)), image_of=image_of)
    return Extraction(cache, tuple(done), tuple(unreadable))


def extract_shared(
    detector: Detector,
    samples: Sequence[Sample],
    good: Sequence[Sample],
    preparation: Preparation,
    *,
    device: torch.device,
    folder: Path,
    progress: Progress,
) -> Extraction:
    """What `extract` gives, out of features of all good images of a dataset that several fits share.

    They are computed by whoever needs them first, and depend on the bytes of the images, the preparation and the frozen
    part of the detector, which tells itself by what it makes of a fixed probe: detectors that agree there share,
    whatever their method or seed. They stand in a folder of their own below `folder`, which appears whole or not at
    all and is only read from then on, also by several processes at once; any of them may be renamed and removed.

    Args:
        detector: Only its `features` are used.
        samples: The images wanted, among `good`.
        good: All good images of the dataset.
        preparation: How they are prepared.
        device: Where to compute, and where batches are wanted.
        folder: Where shared features stand; it is made where absent.
        progress: Called as images are done.

    Raises:
        DatasetError: None of the images can be read.
        TrainingError: Features are not finite in half precision.
        OSError: The folder cannot be written.
    """
    everyone = distinct(good)
    place = folder / _shared_key(detector, hashes(everyone), preparation, device)
    found = _open_shared(place)
    if found is None:
        _write_shared(detector, everyone, preparation, device, place, progress)
        found = _open_shared(place)
    if found is None:
        raise TrainingError(f"the shared features in {place} vanished while they were opened: allow them more room")
    levels, row_of = found
    wanted = hashes(samples)
    readable = [(sample.image_path, row_of[key]) for sample, key in zip(samples, wanted, strict=True) if key in row_of]
    others = [sample.image_path for sample, key in zip(samples, wanted, strict=True) if key not in row_of]
    errors = [image for _, image in decode_all(others, preparation=preparation) if isinstance(image, ImageError)]
    if not readable:
        raise DatasetError(f"none of {len(samples)} images can be read; the first says: {errors[0]}")
    progress("features", len(readable), len(readable))
    cache = FeatureCache(levels, device, rows=np.array([row for _, row in readable], np.int64))
    return Extraction(cache, tuple(path for path, _ in readable), tuple(errors))


def _shared_key(detector: Detector, image_hashes: Sequence[str], preparation: Preparation, device: torch.device) -> str:
    probe = torch.from_numpy(np.random.default_rng(0).random((2, 3, *preparation.shape), np.float32))
    key = sha256(json.dumps([sorted(image_hashes), asdict(preparation), device.type]).encode())
    with torch.no_grad():
        for level in detector.features(probe.to(device)):
            key.update(str(tuple(level.shape)).encode() + level.half().cpu().numpy().tobytes())
    return key.hexdigest()[:32]


def _open_shared(place: Path) -> tuple[list[NDArray[np.float16]], dict[str, int]] | None:
    """The levels, mapped, and the row of each image by the hash of its bytes; None where nobody has computed them."""
    try:
        index = json.loads((place / "index.json").read_text(encoding="utf-8"))
        levels = [np.load(place / f"{level}.npy", mmap_mode="r") for level in range(index["levels"])]
        (place / "index.json").touch()  # says when it was last of use
    except FileNotFoundError:
        return None
    return levels, index["rows"]


def _write_shared(
    detector: Detector,
    good: Sequence[Sample],
    preparation: Preparation,
    device: torch.device,
    place: Path,
    progress: Progress,
) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as name:
        work, whole = Path(name), Path(name) / "whole"
        whole.mkdir()
        paths = [sample.image_path for sample in good]
        snapshot = Snapshot.of(good)
        done = extract(
            detector, paths, preparation, device=device, folder=work, progress=progress, check=snapshot.check
        )
        for number, level in enumerate(done.cache.levels):
            np.save(whole / f"{number}.npy", level[: len(done.paths)])
        rows = {snapshot.hashes[path]: row for row, path in enumerate(done.paths)}
        index = {"levels": len(done.cache.levels), "rows": rows}
        (whole / "index.json").write_text(json.dumps(index), encoding="utf-8")
        try:
            whole.rename(place)
        except OSError:
            if not place.is_dir():  # else somebody else was first, and has the same
                raise


def _allocate(features: Sequence[Tensor], n: int, folder: Path, memory_limit: int) -> Iterator[NDArray[np.float16]]:
    shapes = [(n, *level.shape[1:]) for level in features]
    if sum(2 * int(np.prod(shape)) for shape in shapes) <= memory_limit:
        yield from (np.empty(shape, np.float16) for shape in shapes)
        return
    for index, shape in enumerate(shapes):
        path = folder / f"features-{index}.f16"
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):  # a page that finds no room when it is written ends the process
                os.posix_fallocate(file.fileno(), 0, 2 * int(np.prod(shape)))
        yield np.memmap(path, np.float16, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)


def _let_go(levels: Sequence[NDArray[np.float16]]) -> None:
    """Leave what is mapped to the system, which keeps it at hand as long as nobody else needs the memory."""
    for level in levels:
        if isinstance(level, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            level._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
