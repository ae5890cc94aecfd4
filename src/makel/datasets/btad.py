"""BTAD (Mishra et al., VT-ADL, ISIE 2021), the folder `BTech_Dataset_transformed` as it unpacks.

    01/train/ok/*.bmp    01/test/ok/*    01/test/ko/*    01/ground_truth/ko/*.png
    02/train/ok/*.png    02/test/ok/*    02/test/ko/*    02/ground_truth/ko/*.png
    03/train/ok/*.bmp    03/test/ok/*    03/test/ko/*    03/ground_truth/ko/*.bmp

It is the layout of MVTec AD with other words, and read as that: ok is good, ko the one kind of defect, and masks pair
by name whatever their endings. Only the names of its categories are too bare for a table, so they get the dataset's in
front.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from makel.datasets import mvtec_ad
from makel.datasets.dataset import Dataset

CATEGORIES = ("01", "02", "03")


def is_category(root: Path) -> bool:
    """Whether a folder is one category of BTAD."""
    return root.name in CATEGORIES and (root / "train" / "ok").is_dir() and (root / "test" / "ko").is_dir()


def read(root: Path) -> Dataset:
    """One category, called btad_01, btad_02 or btad_03.

    Raises:
        DatasetError: As `makel.datasets.mvtec_ad.read`.
    """
    return replace(mvtec_ad.read(root), name=f"btad_{root.name}")
