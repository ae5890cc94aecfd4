"""Datasets: folders of images, read as labelled samples, and split so that no image is used twice.

mvtec_ad, visa, btad, kolektor_sdd, kolektor_sdd2, folder   one file per layout
download                                                     whether a public dataset is all there
synthetic                                                    products made up for the demonstration and the tests
overlooked                                                   what lies there and is not used
splits, contents                                             who is fitted on, who calibrates; the same picture once
                                                             more is no second one
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Protocol

from makel.datasets import btad, folder, kolektor_sdd, kolektor_sdd2, mvtec_ad, visa
from makel.datasets.contents import Snapshot, digest, hashes
from makel.datasets.dataset import Dataset, as_folder, subfolders
from makel.datasets.download import check_mvtec_ad, is_mvtec_ad
from makel.datasets.overlooked import overlooked
from makel.datasets.splits import (
    distinct,
    doubtful_labels,
    folds,
    name_groups,
    refuse_contradictions,
    refuse_defects,
    repeated,
    representatives,
    split,
    without_shared,
)
from makel.errors import DatasetError
from makel.images import shown

__all__ = [
    "Dataset",
    "Snapshot",
    "check_mvtec_ad",
    "digest",
    "distinct",
    "doubtful_labels",
    "folds",
    "hashes",
    "load",
    "load_all",
    "name_groups",
    "overlooked",
    "refuse_contradictions",
    "refuse_defects",
    "repeated",
    "representatives",
    "split",
    "without_shared",
]


class _Layout(Protocol):
    """What the module of a layout offers."""

    def is_category(self, root: Path) -> bool: ...

    def read(self, root: Path) -> Dataset: ...


# The first that fits: a layout that looks like a wider one stands before it.
_LAYOUTS: tuple[_Layout, ...] = (kolektor_sdd2, btad, mvtec_ad, visa, kolektor_sdd)

_log = logging.getLogger(__name__)


def load(data: str | os.PathLike[str], *, nested: bool = False) -> Dataset:
    """Read one product's images, in whichever layout they lie: the folder itself says which.

    Args:
        data: A category in the layout of MVTec AD (`makel.datasets.mvtec_ad`) or BTAD (`makel.datasets.btad`); a
            category inside the unpacked VisA (`makel.datasets.visa`); the whole of KolektorSDD, in its first fold
            (`makel.datasets.kolektor_sdd`), or of KolektorSDD2 (`makel.datasets.kolektor_sdd2`); else a folder of good
            images, optionally beside folders of defects (`makel.datasets.folder`).
        nested: Take the images of folders inside the folder of good images as well, which are refused otherwise: for
            folders by part, strip or lot. Layouts of public datasets have none.

    Raises:
        DatasetError: There is no such folder, or it is in none of these layouts.
    """
    root = as_folder(data)
    try:
        if layout := _layout(root):
            return mvtec_ad.read(root, nested=nested) if layout is mvtec_ad else layout.read(root)
        if categories := _categories(root):
            raise DatasetError(
                f"{shown(root)} holds {len(categories)} categories ({', '.join(path.name for path in categories)}): "
                "give one of them"
            )
        return folder.read(root, nested=nested)
    except OSError as error:
        raise DatasetError(f"{shown(root)} cannot be read: {error.strerror}") from error


def load_all(data: str | os.PathLike[str]) -> list[Dataset]:
    """Read every category of a folder of categories, sorted; any other folder is one dataset.

    What `check_mvtec_ad` finds of a folder that is meant to be the whole of MVTec AD is logged as warnings.

    Raises:
        DatasetError: As `load`.
    """
    root = as_folder(data)
    try:
        categories = _categories(root)
        for finding in check_mvtec_ad(root) if is_mvtec_ad(root) else ():
            _log.warning("%s: %s", shown(root), finding)
    except OSError as error:
        raise DatasetError(f"{shown(root)} cannot be read: {error.strerror}") from error
    return [load(category) for category in categories or [root]]


def _layout(root: Path) -> _Layout | None:
    return next((layout for layout in _LAYOUTS if layout.is_category(root)), None)


def _categories(root: Path) -> list[Path]:
    if _layout(root):
        return []
    # A folder called test is part of a category, even where it could be read by itself.
    return [path for path in subfolders(root) if path.name != "test" and (_layout(path) or (path / "test").is_dir())]
