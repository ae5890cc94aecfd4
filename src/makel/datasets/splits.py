"""Which images are fitted on, which set the thresholds, which test: never one image twice, by path or by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from makel.datasets.contents import hashes
from makel.datasets.dataset import Dataset
from makel.errors import DatasetError, UsageError
from makel.images import shown
from makel.types import Sample, Split


def split(dataset: Dataset, *, holdout: float = 0.2, seed: int = 0) -> Split:
    """Hold out part of the good images for calibration.

    Copies, files of the same bytes under two names, count once: the first by name stays, the others are used for
    nothing. A copy teaches nothing, and counted twice in calibration it would promise more than the images can.

    Args:
        dataset: As `load` gives it.
        holdout: Share of the good images to hold out, at least one of them; 0 for cross-calibration, where `folds`
            holds out each in turn.
        seed: Same seed, same images, same split.

    Returns:
        The images by use, each in the dataset's order.

    Raises:
        DatasetError: Too few good images, a defect among them, or an image of one use among those of another.
        UsageError: `holdout` is not in [0, 1).
    """
    if not 0 <= holdout < 1:
        raise UsageError(f"holdout={holdout}; a share from 0 to below 1 was expected")
    refuse_defects(dataset.good)
    refuse_overlap(dataset.good, dataset.test)
    good = distinct(dataset.good)
    count = max(1, round(holdout * len(good))) if holdout else 0
    if len(good) - count < 1 or not good:
        raise DatasetError(
            f"{shown(dataset.root)} holds {len(good)} different good image{'' if len(good) == 1 else 's'} to fit on"
            f"{_test_alone(dataset)}; at least 2 are needed, one to fit on and one held out for calibration"
        )
    held_out = set(np.random.default_rng(seed).permutation(len(good))[:count].tolist())
    return Split(
        fit=tuple(sample for index, sample in enumerate(good) if index not in held_out),
        calibrate=tuple(sample for index, sample in enumerate(good) if index in held_out),
        test=dataset.test,
    )


def _test_alone(dataset: Dataset) -> str:
    """What is there instead, where all images are for testing: an images' folder that happens to be called `test`."""
    if dataset.good or not dataset.test:
        return ""
    return f", only {len(dataset.test)} to test on, since a folder called test is for that: rename it if it is not"


def folds(samples: Sequence[Sample], count: int, seed: int = 0) -> list[NDArray[np.intp]]:
    """Share samples out so that each can be held out once; copies of an image stay together.

    Args:
        samples: The good images.
        count: Number of folds, at least 2.
        seed: Same seed, same samples, same folds.

    Returns:
        The sorted indices held out in each fold: disjoint, together all of `samples`, none empty.

    Raises:
        DatasetError: There are fewer different images than folds.
        UsageError: `count` is below 2.
    """
    if count < 2:
        raise UsageError(f"{count} folds; at least 2 were expected")
    _, image_of = np.unique(hashes(samples), return_inverse=True)  # numbers the different images
    n_images = int(image_of.max(initial=-1)) + 1
    if n_images < count:
        raise DatasetError(f"{n_images} different good images cannot make {count} folds: ask for at most {n_images}")
    fold_of_image = np.random.default_rng(seed).permutation(n_images) % count
    return [np.flatnonzero(fold_of_image[image_of] == fold) for fold in range(count)]


def distinct(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples without copies: the first of each content stays."""
    firsts: dict[str, Sample] = {}
    for content_hash, sample in zip(hashes(samples), samples, strict=True):
        firsts.setdefault(content_hash, sample)
    return tuple(firsts.values())


def refuse_defects(good: Sequence[Sample]) -> None:
    """Only good images may be fitted on or calibrate.

    Raises:
        DatasetError: One is not labelled good.
    """
    for sample in good:
        if sample.label != "good":
            raise DatasetError(
                f"{shown(sample.image_path)} is labelled {sample.label or 'nothing'} but given as a good image: only "
                "good images may be fitted on or calibrate, take it out"
            )


def refuse_overlap(good: Sequence[Sample], test: Sequence[Sample]) -> None:
    """No image may be fitted on or calibrate and test as well, nor be good and a defect.

    Raises:
        DatasetError: Two files are the same file or hold the same bytes.
    """
    seen = {content_hash: (sample, "good") for content_hash, sample in zip(hashes(good), good, strict=True)}
    for content_hash, sample in zip(hashes(test), test, strict=True):
        twin, use = seen.setdefault(content_hash, (sample, "test"))
        if use == "good":
            raise DatasetError(
                f"{_pair(twin.image_path, sample.image_path)}: an image that is fitted on cannot test, take one out"
            )
        if twin.label != sample.label:
            raise DatasetError(
                f"{_pair(twin.image_path, sample.image_path)}, labelled {twin.label} and {sample.label}: take one out"
            )


def _pair(first: Path, second: Path) -> str:
    return f"{shown(first)} and {shown(second)} are the same image, byte for byte"
