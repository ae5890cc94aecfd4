"""The layout of MVTec AD (Bergmann et al., CVPR 2019), which many other datasets share.

    CATEGORY/train/good/*            to fit on
    CATEGORY/test/good/*             to test on
    CATEGORY/test/KIND/*
    CATEGORY/ground_truth/KIND/NAME_mask.png       also NAME.png; non-zero is defect

`train` or `test` may be missing. A folder that is itself called `test` is read as one, without anything to fit on.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unicodedata import normalize

from makel.datasets.dataset import (
    GOOD_NAMES,
    Dataset,
    content,
    is_good_name,
    listed,
    mask_folders,
    samples_in,
    subfolders,
)
from makel.errors import DatasetError
from makel.images import SUFFIXES, find, shown
from makel.types import Sample


def is_category(root: Path) -> bool:
    """Whether a folder is one category, or the test folder of one."""
    if (root / "train").is_dir():
        return True
    if find(root) or any(is_good_name(folder.name) for folder in subfolders(root)):
        return root.name == "test" and not find(root)
    return (root / "test").is_dir()


def read(root: Path, *, nested: bool = False) -> Dataset:
    """One category.

    Args:
        root: Its folder.
        nested: Whether folders inside that of the good images count as well.

    Raises:
        DatasetError: A folder is not where the layout has it, there is no image, or a mask belongs to no image.
    """
    if root.name == "test" and not (root / "test").is_dir():
        category = root.parent
        return Dataset(category.name, root, (), read_test(root, category))
    good = _read_train(root / "train", nested=nested) if (root / "train").is_dir() else ()
    test = read_test(root / "test", root) if (root / "test").is_dir() else ()
    return Dataset(root.name, root, good, test)


def read_test(folder: Path, masks_root: Path) -> tuple[Sample, ...]:
    """The labelled images in the folders of a test folder, each with the mask of its name where there is one.

    Args:
        folder: Holds one folder for each kind.
        masks_root: Holds the folder of masks, if any.

    Raises:
        DatasetError: There is no image, images lie outside a folder of a kind, or a mask belongs to no image.
    """
    if loose := find(folder):
        raise DatasetError(
            f"{shown(folder)} holds images that no folder labels ({listed(loose)}): move them into "
            f"{folder.name}/good or {folder.name}/KIND"
        )
    kinds = subfolders(folder)
    samples = [sample for kind in kinds for sample in _read_kind(kind)]
    if not samples:
        raise DatasetError(f"{shown(folder)} holds no labelled images but {content(folder)}: expected good/ and KIND/")
    return with_masks(tuple(samples), masks_root)


def with_masks(samples: tuple[Sample, ...], root: Path) -> tuple[Sample, ...]:
    """Pair defects with the masks in `root`'s folders of masks: by kind and file name, never by position.

    Names count as they read, however they are spelled in Unicode. A defect without a mask stays without. Masks of good
    images are not needed and not read.

    Raises:
        DatasetError: A mask belongs to no image or to two, or an image has two.
    """
    masks: dict[tuple[str, str], Path] = {}
    for kind in [kind for folder in mask_folders(root) for kind in subfolders(folder)]:
        for path in [] if is_good_name(kind.name) else find(kind):
            key = _key(kind.name, path.stem.removesuffix("_mask"))
            if key in masks:
                raise DatasetError(f"{shown(path)} and {shown(masks[key])} are masks of one image: keep one")
            masks[key] = path
    images: dict[tuple[str, str], Path] = {}
    for sample in samples:
        key = _key(sample.kind, sample.image_path.stem)
        if (twin := images.setdefault(key, sample.image_path)) != sample.image_path and key in masks:
            raise DatasetError(
                f"{shown(masks[key])} would be the mask of {shown(twin)} and of {shown(sample.image_path)}: give one "
                "of the two another name"
            )
    paired = tuple(
        replace(sample, mask_path=masks.get(_key(sample.kind, sample.image_path.stem))) for sample in samples
    )
    if strays := set(masks.values()) - {sample.mask_path for sample in paired}:
        raise DatasetError(
            f"{len(strays)} masks belong to no image ({listed(sorted(strays))}): a mask is called like its image, with "
            "or without _mask, in a folder of the same kind"
        )
    return paired


def _key(kind: str, stem: str) -> tuple[str, str]:
    return normalize("NFC", kind), normalize("NFC", stem)


def _read_train(folder: Path, *, nested: bool) -> tuple[Sample, ...]:
    kinds = [kind for kind in subfolders(folder) if find(kind) or (nested and is_good_name(kind.name))]
    good = [kind for kind in kinds if is_good_name(kind.name)]
    defects = [kind for kind in kinds if not is_good_name(kind.name)]
    if defects:
        raise DatasetError(
            f"{shown(defects[0])} holds images that are not called good, and only good ones are fitted on: move it to "
            "test/"
        )
    empty = [kind for kind in subfolders(folder) if is_good_name(kind.name)]
    if not good and len(empty) == 1 and not find(folder):
        raise DatasetError(f"{shown(empty[0])} holds {content(empty[0])}; expected were images ({', '.join(SUFFIXES)})")
    if len(good) != 1 or find(folder):
        raise DatasetError(
            f"{shown(folder)} holds {content(folder)}; one folder of good images was expected there: train/good "
            f"(or {', '.join(GOOD_NAMES[1:])})"
        )
    return samples_in(good[0], "good", "good", nested=nested)


def _read_kind(folder: Path) -> tuple[Sample, ...]:
    if is_good_name(folder.name):
        return samples_in(folder, "good", "good")
    return samples_in(folder, "defect", folder.name)
