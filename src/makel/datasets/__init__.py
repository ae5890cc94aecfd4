"""Datasets: folders of images, read as labelled samples, and split so that no image is used twice.

mvtec_ad, folder   one file per layout
synthetic          products made up for the demonstration and the tests
splits, contents   who is fitted on, who calibrates; the same bytes are the same image
"""

from __future__ import annotations

import os
from pathlib import Path

from makel.datasets import folder, mvtec_ad
from makel.datasets.contents import digest, hashes
from makel.datasets.dataset import Dataset, subfolders
from makel.datasets.splits import distinct, folds, refuse_defects, refuse_overlap, split
from makel.errors import DatasetError
from makel.images import shown

__all__ = [
    "Dataset",
    "digest",
    "distinct",
    "folds",
    "hashes",
    "load",
    "load_all",
    "refuse_defects",
    "refuse_overlap",
    "split",
]


def load(data: str | os.PathLike[str]) -> Dataset:
    """Read one product's images, in whichever layout they lie.

    Args:
        data: A category in the MVTec AD layout (`makel.datasets.mvtec_ad`), or a folder of good images, optionally
            beside folders of defects (`makel.datasets.folder`).

    Raises:
        DatasetError: There is no such folder, or it is in neither layout.
    """
    root = _root(data)
    try:
        if mvtec_ad.is_category(root):
            return mvtec_ad.read(root)
        if categories := _categories(root):
            raise DatasetError(
                f"{shown(root)} holds {len(categories)} categories ({', '.join(path.name for path in categories)}): "
                "give one of them"
            )
        return folder.read(root)
    except OSError as error:
        raise DatasetError(f"{shown(root)} cannot be read: {error.strerror}") from error


def load_all(data: str | os.PathLike[str]) -> list[Dataset]:
    """Read every category of a folder of categories, sorted; any other folder is one dataset.

    Raises:
        DatasetError: As `load`.
    """
    root = _root(data)
    try:
        return [mvtec_ad.read(category) for category in _categories(root)] or [load(root)]
    except OSError as error:
        raise DatasetError(f"{shown(root)} cannot be read: {error.strerror}") from error


def _root(data: str | os.PathLike[str]) -> Path:
    root = Path(os.path.abspath(data))  # noqa: PTH100, `resolve` would replace a link's name by its target's
    if not root.is_dir():
        raise DatasetError(
            f"{shown(data)} is {'a file' if root.exists() else 'not there'}; a folder of images was expected"
        )
    return root


def _categories(root: Path) -> list[Path]:
    if mvtec_ad.is_category(root):
        return []
    return [path for path in subfolders(root) if (path / "train" / "good").is_dir() or (path / "test").is_dir()]
