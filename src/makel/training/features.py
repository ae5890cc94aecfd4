"""Features of the frozen part, computed once for every image and trained on from a cache.

That alone turns hours into a minute on a CPU. The cache holds half precision, in memory up to `MEMORY_LIMIT_BYTES` and
in a memory-mapped file beside the model folder beyond that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from makel.errors import DatasetError, ImageError, TrainingError
from makel.images import Preparation, decode_all
from makel.training.detector import Detector, Features

MEMORY_LIMIT_BYTES = 1 << 30

EXTRACT_BATCH = 8

Progress = Callable[[str, int, int], None]
"""Called with the stage, how much of it is done, and how much there is."""


@dataclass
class FeatureCache:
    """Features of a list of images, in their order.

    Attributes:
        levels: One (N, C, H, W) float16 array a level.
        device: Where batches are wanted.
    """

    levels: list[NDArray[np.float16]]
    device: torch.device
    batch_size: int = EXTRACT_BATCH
    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Features]:
        """All features in order, batch by batch; may be iterated as often as needed."""
        for start in range(0, len(self), self.batch_size):
            yield self.batch(range(start, min(start + self.batch_size, len(self))))

    def batch(self, indices: Sequence[int]) -> Features:
        """Features of some images: one (len(indices), C, H, W) float32 tensor a level."""
        rows = self.rows[np.asarray(indices)]
        return tuple(torch.from_numpy(level[rows]).to(self.device).float() for level in self.levels)

    def subset(self, indices: Sequence[int] | NDArray[np.int64]) -> FeatureCache:
        """Some of the images, without a copy."""
        return FeatureCache(self.levels, self.device, self.batch_size, self.rows[np.asarray(indices)])


@dataclass(frozen=True)
class Extraction:
    """What became of a list of images.

    Attributes:
        cache: The features of those that could be read.
        paths: Their files, in the cache's order.
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
) -> Extraction:
    """Run the frozen part of a detector over images, decoding in parallel with it.

    Args:
        detector: Only its `extract` is used.
        paths: The images.
        preparation: How they are prepared.
        device: Where to compute.
        folder: Where a cache too large for memory is mapped.
        progress: Called as images are done.
        memory_limit: Bytes beyond which the cache is mapped.

    Raises:
        DatasetError: None of the images can be read.
        TrainingError: Features are not finite in half precision.
    """
    levels: list[NDArray[np.float16]] = []
    done: list[Path] = []
    unreadable: list[ImageError] = []
    pending: list[NDArray[np.float32]] = []

    def flush() -> None:
        if not pending:
            return
        with torch.no_grad():
            features = detector.extract(torch.from_numpy(np.stack(pending)).to(device))
        if not levels:
            levels.extend(_allocate(features, len(paths), folder, memory_limit))
        stop = len(done)
        for level, values in zip(levels, features, strict=True):
            half = values.half()
            if not torch.isfinite(half).all():
                raise TrainingError(
                    f"the features of {done[stop - len(pending)]} or one of the {len(pending) - 1} images after it are "
                    "not finite in half precision: look at the image, or choose another backbone"
                )
            level[stop - len(pending) : stop] = half.cpu().numpy()
        pending.clear()
        progress("features", stop, len(paths))

    for path, image in decode_all(paths, preparation=preparation):
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
    cache = FeatureCache(levels, device, rows=np.arange(len(done)))
    return Extraction(cache, tuple(done), tuple(unreadable))


def _allocate(features: Sequence[Tensor], n: int, folder: Path, memory_limit: int) -> Iterator[NDArray[np.float16]]:
    shapes = [(n, *level.shape[1:]) for level in features]
    if sum(2 * int(np.prod(shape)) for shape in shapes) <= memory_limit:
        yield from (np.empty(shape, np.float16) for shape in shapes)
        return
    for index, shape in enumerate(shapes):
        yield np.memmap(folder / f"features-{index}.f16", np.float16, "w+", shape=shape)
