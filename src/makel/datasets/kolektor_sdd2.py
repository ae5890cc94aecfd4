"""KolektorSDD2 (Božič, Tabernik, Skočaj, Computers in Industry 2021) as it unpacks.

    ROOT/train/10000.png  10000_GT.png  ...      2085 good images, 246 with defects
    ROOT/test/20000.png   20000_GT.png  ...       894 good images, 110 with defects

An image has a defect where its mask has any pixel that is not zero. The good images of `train` are fitted on, its
defects are used for nothing, and `test` tests as published. The archive holds one pair twice, `10301 (copy).png` and
`10301_GT (copy).png`: names with "(copy)" are left out, or the second, a mask, would pass for an image.
"""

from __future__ import annotations

from pathlib import Path

from makel.datasets.dataset import Dataset
from makel.datasets.kolektor_sdd import labelled, pairs
from makel.images import find
from makel.types import Sample

_MASK = "_GT"


def is_category(root: Path) -> bool:
    """Whether a folder holds `train` or `test` with masks beside the images."""
    return any(next((root / part).glob(f"*{_MASK}.png"), None) is not None for part in ("train", "test"))


def read(root: Path) -> Dataset:
    """The dataset, split as published.

    Raises:
        DatasetError: An image has no mask or a mask no image, or a mask cannot be read.
    """
    good = tuple(sample for sample in _read_part(root / "train") if sample.label == "good")
    return Dataset(root.name, root, good, _read_part(root / "test"))


def _read_part(folder: Path) -> tuple[Sample, ...]:
    if not folder.is_dir():
        return ()
    copies = [path.stem for path in find(folder) if "(copy)" in path.stem]
    return labelled(pairs(folder, _MASK, left_out=copies))
