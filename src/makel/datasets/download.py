"""Whether a public dataset is all there: what a copy, a download cut short or an edited folder lacks."""

from __future__ import annotations

import os
from pathlib import Path

from makel.datasets import mvtec_ad
from makel.datasets.dataset import as_folder, listed, subfolders
from makel.errors import DatasetError

MVTEC_AD = {
    # category: images in train/good, in test/good, and of defects, each of which has a mask
    "bottle": (209, 20, 63),
    "cable": (224, 58, 92),
    "capsule": (219, 23, 109),
    "carpet": (280, 28, 89),
    "grid": (264, 21, 57),
    "hazelnut": (391, 40, 70),
    "leather": (245, 32, 92),
    "metal_nut": (220, 22, 93),
    "pill": (267, 26, 141),
    "screw": (320, 41, 119),
    "tile": (230, 33, 84),
    "toothbrush": (60, 12, 30),
    "transistor": (213, 60, 40),
    "wood": (247, 19, 60),
    "zipper": (240, 32, 119),
}
"""MVTec AD as published: Bergmann et al., CVPR 2019, table 1; 3629 images to train on and 1725 to test on."""


def is_mvtec_ad(root: Path) -> bool:
    """Whether a folder is meant to be the whole of MVTec AD: it holds more than half of the categories by name."""
    return 2 * sum((root / name).is_dir() for name in MVTEC_AD) > len(MVTEC_AD)


def check_mvtec_ad(data: str | os.PathLike[str]) -> tuple[str, ...]:
    """Compare a folder with MVTec AD as published.

    Whatever is found, what is there can be fitted on; only its figures do not compare with published ones.

    Args:
        data: The folder that holds the categories.

    Returns:
        What is missing or odd, one line each: absent categories, folders that are none, counts that differ, defects
        without a mask, and categories that cannot be read. Nothing where all is as published.

    Raises:
        DatasetError: There is no such folder.
    """
    found = {folder.name: folder for folder in subfolders(as_folder(data))}
    lines = []
    if absent := [name for name in MVTEC_AD if name not in found]:
        lines.append(f"{len(absent)} of {len(MVTEC_AD)} categories are absent: {', '.join(absent)}")
    if others := [folder for name, folder in found.items() if name not in MVTEC_AD]:
        lines.append(f"{len(others)} folders are no category of MVTec AD: {listed(others)}")
    for name, counts in MVTEC_AD.items():
        if name in found:
            lines += [f"{name}: {line}" for line in _check_category(found[name], counts)]
    return tuple(lines)


def _check_category(root: Path, published: tuple[int, int, int]) -> list[str]:
    try:
        dataset = mvtec_ad.read(root)
    except DatasetError as error:
        return [str(error)]
    defects = [sample for sample in dataset.test if sample.label == "defect"]
    counts = len(dataset.good), len(dataset.test) - len(defects), len(defects)
    lines = [
        f"{count} images {where}, {expected} were published"
        for where, count, expected in zip(
            ("in train/good", "in test/good", "of defects"), counts, published, strict=True
        )
        if count != expected
    ]
    if unmarked := [sample.image_path for sample in defects if sample.mask_path is None]:
        lines.append(f"{len(unmarked)} images of defects have no mask: {listed(unmarked)}")
    return lines
