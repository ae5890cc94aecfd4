"""Which images are fitted on, which set the thresholds, which test: what shows one part is never on two sides.

Two files of the same bytes are one image. Pictures that are alike (`makel.images.likeness`), and those that somebody
says to show one part, strip or lot (`Sample.group`), are a group: it is fitted on or held out as a whole, and has one
say in the threshold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from makel.datasets.contents import hashes
from makel.datasets.dataset import Dataset
from makel.errors import DatasetError, UsageError
from makel.images import likeness, shown
from makel.types import Sample, Split


def split(dataset: Dataset, *, holdout: float = 0.2, seed: int = 0) -> Split:
    """Hold out part of the good images for calibration.

    Copies, files of the same bytes under two names, count once: the first by name stays, the others are used for
    nothing. A copy teaches nothing, and counted twice in calibration it would promise more than the images can. Of a
    group, all images are fitted on, or one of them, drawn by the seed, calibrates and the others are used for nothing.
    Good images to test on that show what is among the good ones are left out of the test.

    Args:
        dataset: As `load` gives it.
        holdout: Share of the good images to hold out, or of the groups where there are any, at least one of them; 0
            for cross-calibration, where `folds` holds out each in turn.
        seed: Same seed, same images, same split.

    Returns:
        The images by use, each in the dataset's order; those of a group of several have its name.

    Raises:
        DatasetError: Too few good images, a defect among them, or an image that is good and a defect.
        UsageError: `holdout` is not in [0, 1).
    """
    if not 0 <= holdout < 1:
        raise UsageError(f"holdout={holdout}; a share from 0 to below 1 was expected")
    refuse_defects(dataset.good)
    refuse_contradictions(dataset.good, dataset.test)
    good = grouped(distinct(dataset.good))
    test = without_shared(dataset.good, dataset.test)
    group_of = _numbers(good)
    n_groups = int(group_of.max(initial=-1)) + 1
    count = max(1, round(holdout * n_groups)) if holdout else 0
    if n_groups - count < 1 or not good:
        raise DatasetError(
            f"{shown(dataset.root)} holds {n_groups} different good image{'' if n_groups == 1 else 's'} to fit on"
            f"{_test_alone(dataset)}{_once(len(dataset.good), n_groups)}; at least 2 are needed, one to fit on and one "
            "held out for calibration"
        )
    out = np.isin(group_of, np.random.default_rng(seed).permutation(n_groups)[:count])
    speaking = {index for index in representatives(good, seed) if out[index]}
    return Split(
        fit=tuple(sample for sample, is_out in zip(good, out, strict=True) if not is_out),
        calibrate=tuple(sample for index, sample in enumerate(good) if index in speaking),
        test=test,
        findings=_findings(dataset, good, test, int(out.sum()) - len(speaking)),
    )


def name_groups(dataset: Dataset, pattern: str) -> Dataset:
    """A dataset whose images know their group by their path.

    Args:
        dataset: As `load` gives it.
        pattern: A regular expression, searched in each image's path below the dataset's folder, with forward slashes.
            Its first group in parentheses, or else all it matches, names the image's group.

    Raises:
        UsageError: It is no regular expression, or an image to fit on does not match.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise UsageError(f"group {pattern!r} is no regular expression: {error}") from error

    def named(sample: Sample, *, needed: bool) -> Sample:
        path = sample.image_path
        inside = path.relative_to(dataset.root).as_posix() if path.is_relative_to(dataset.root) else path.name
        found = search(inside)
        name = (found[1] if found.re.groups else found[0]) if found else ""
        if needed and not name:
            raise UsageError(
                f"group {pattern!r} names no part in {shown(inside)}: give an expression that finds one in the path of "
                r"every good image, such as '(part\d+)_', or '([^/]+)/[^/]+$' for the folder it lies in"
            )
        return replace(sample, group=name or "")

    good = tuple(named(sample, needed=True) for sample in dataset.good)
    return replace(dataset, good=good, test=tuple(named(sample, needed=False) for sample in dataset.test))


def grouped(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """The samples, those that are alike or share a group with one another under one name; the others under none."""
    numbers = likeness.groups(likeness.thumbnails(sample.image_path for sample in samples)).tolist()
    by_name: dict[str, int] = {}
    for sample, number in zip(samples, list(numbers), strict=True):
        if sample.group and (first := by_name.setdefault(sample.group, number)) != number:
            numbers = [first if each == number else each for each in numbers]
            by_name = {name: first if each == number else each for name, each in by_name.items()}
    names, sizes = dict[int, str](), Counter(numbers)
    for sample, number in zip(samples, numbers, strict=True):
        names.setdefault(number, sample.group or sample.image_path.name)
    return tuple(
        replace(sample, group=names[number] if sizes[number] > 1 else "")
        for sample, number in zip(samples, numbers, strict=True)
    )


def representatives(samples: Sequence[Sample], seed: int) -> list[int]:
    """The index of one image of each group, drawn by the seed, ascending; an image by itself speaks for itself."""
    draw = np.random.default_rng((seed, 1))
    numbers = _numbers(samples)
    return sorted(int(draw.choice(np.flatnonzero(numbers == number))) for number in np.unique(numbers))


def without_shared(good: Sequence[Sample], test: Sequence[Sample]) -> tuple[Sample, ...]:
    """The images to test on, without good ones that show what one of `good` shows, by bytes, likeness or group."""
    candidates = [sample for sample in test if sample.label == "good"]
    if not good or not candidates:
        return tuple(test)
    everyone = [*good, *candidates]
    numbers = likeness.groups(likeness.thumbnails(sample.image_path for sample in everyone))
    seen = {*numbers[: len(good)].tolist(), *hashes(good), *(sample.group for sample in good if sample.group)}
    keys = zip(candidates, numbers[len(good) :].tolist(), hashes(candidates), strict=True)
    shared = {sample.image_path for sample, *known in keys if seen & {*known, sample.group}}
    return tuple(sample for sample in test if sample.label != "good" or sample.image_path not in shared)


def _numbers(samples: Sequence[Sample]) -> NDArray[np.intp]:
    """(N,) the number of each sample's group, in the order in which they first appear."""
    first: dict[object, int] = {}
    keys: Iterable[object] = ((sample.group,) if sample.group else sample.image_path for sample in samples)
    return np.array([first.setdefault(key, len(first)) for key in keys], np.intp)


def _findings(dataset: Dataset, good: Sequence[Sample], test: Sequence[Sample], n_unused: int) -> tuple[str, ...]:
    found = []
    if copies := len(dataset.good) - len(good):
        found.append(f"{_images(copies)} of {len(dataset.good)} {_are(copies)} copied, byte for byte: each counts once")
    members: dict[str, list[Sample]] = {}
    for sample in good:
        if sample.group:
            members.setdefault(sample.group, []).append(sample)
    if members:
        n, first = sum(map(len, members.values())), next(iter(members.values()))
        found.append(
            f"{_images(n)} of {len(good)} show {len(members)} part{'' if len(members) == 1 else 's'} in all, such as "
            f"{shown(first[0].image_path.name)} and {shown(first[1].image_path.name)}: those of one part stay together "
            f"and count once for the threshold"
            + (f"; {n_unused} held out beside are used for nothing" * (n_unused > 0))
        )
    if len({sample.group for sample in dataset.good} - {""}) == len(dataset.good):
        alone = dataset.good[0]
        found.append(
            f"each of {len(dataset.good)} good images is a group of its own, such as {alone.group!r} of "
            f"{shown(alone.image_path.name)}: nothing is held together by name. Name what several of them show"
        )
    left = set(test)
    if shared := [sample for sample in dataset.test if sample not in left]:
        found.append(
            f"{_images(len(shared))} to test on, such as {shown(shared[0].image_path)}, {_are(len(shared), 'show')} "
            "what is among the good ones: the test goes without"
        )
    return (*found, *doubtful_labels(dataset.good, dataset.test))


def doubtful_labels(good: Sequence[Sample], test: Sequence[Sample]) -> tuple[str, ...]:
    """One line about defects that look like good images, to fit on or to test on; none as a rule."""
    goods = [*good, *(sample for sample in test if sample.label == "good")]
    defects = [sample for sample in test if sample.label == "defect"]
    if not goods or not defects:
        return ()
    looks = likeness.thumbnails(sample.image_path for sample in (*goods, *defects))
    numbers = likeness.groups(looks, n_known=len(goods)).tolist()
    known = dict(zip(numbers[: len(goods)], goods, strict=True))
    compared = zip(defects, numbers[len(goods) :], strict=True)
    doubtful = [(sample, known[number]) for sample, number in compared if number in known]
    if not doubtful:
        return ()
    sample, twin = doubtful[0]
    return (
        f"{len(doubtful)} of {len(defects)} defects {_are(len(doubtful), 'look')} like good images, such as "
        f"{shown(sample.image_path)} like {shown(twin.image_path)}: one picture under two "
        "labels, or a defect too faint for a small view of it. Look at them",
    )


def repeated(test: Sequence[Sample]) -> tuple[str, ...]:
    """One line about images to test on that show once more what another of the same label does; none as a rule."""
    numbers = likeness.groups(likeness.thumbnails(sample.image_path for sample in test)).tolist()
    first: dict[object, Sample] = {}
    pairs = [(each, first.setdefault((each.label, number), each)) for each, number in zip(test, numbers, strict=True)]
    again = [(sample, twin) for sample, twin in pairs if sample is not twin]
    if not again:
        return ()
    return (
        f"{len(again)} of {len(test)} images to test on {_are(len(again), 'show')} what another does, such as "
        f"{shown(again[0][0].image_path)} and {shown(again[0][1].image_path)}: each counts, and the intervals of the "
        "rates are narrower than they should be",
    )


def _images(n: int) -> str:
    return f"{n} good image{'' if n == 1 else 's'}"


def _are(n: int, verb: str = "") -> str:
    return (f"{verb}s" if n == 1 else verb) if verb else ("is" if n == 1 else "are")


def _once(n: int, n_groups: int) -> str:
    return f" (of {n} files; those of one part count once)" if n_groups < n else ""


def _test_alone(dataset: Dataset) -> str:
    """What is there instead, where all images are for testing: an images' folder that happens to be called `test`."""
    if dataset.good or not dataset.test:
        return ""
    return f", only {len(dataset.test)} to test on, since a folder called test is for that: rename it if it is not"


def folds(samples: Sequence[Sample], count: int, seed: int = 0) -> list[NDArray[np.intp]]:
    """Share samples out so that each can be held out once; copies and the images of a group stay together.

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
    keys = [
        f"group {sample.group}" if sample.group else each for sample, each in zip(samples, hashes(samples), strict=True)
    ]
    _, image_of = np.unique(keys, return_inverse=True)  # numbers the different images
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


def refuse_contradictions(good: Sequence[Sample], test: Sequence[Sample]) -> None:
    """No image may be good and a defect.

    Raises:
        DatasetError: Two files hold the same bytes, or are the same file, and are labelled differently.
    """
    seen: dict[str, Sample] = {}
    samples = (*good, *test)
    for content_hash, sample in zip(hashes(samples), samples, strict=True):
        twin = seen.setdefault(content_hash, sample)
        if twin.label != sample.label:
            raise DatasetError(
                f"{shown(twin.image_path)} and {shown(sample.image_path)} are the same image, byte for byte, labelled "
                f"{twin.label} and {sample.label}: take one out"
            )
