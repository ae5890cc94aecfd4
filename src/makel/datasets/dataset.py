"""What every layout is read into."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from makel.errors import DatasetError
from makel.images import find, shown
from makel.types import Label, Sample

GOOD_NAMES = ("good", "ok", "io", "gut", "normal", "pass")
"""Names of a folder of good images, in any case. Every other folder of images is a kind of defect."""

MASK_FOLDERS = ("ground_truth", "masks")
"""Folders of ground-truth masks, never of images to inspect."""


@dataclass(frozen=True)
class Dataset:
    """Images of one product.

    Attributes:
        name: What tables call it: the folder's name, or one that says more.
        root: The folder.
        good: Good images to fit on, sorted; none of them is in `test`.
        test: Labelled images to test on, sorted; may be empty.
    """

    name: str
    root: Path
    good: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()


def as_folder(data: str | os.PathLike[str]) -> Path:
    """The absolute path of a folder that was named.

    Raises:
        DatasetError: There is no such folder.
    """
    root = Path(os.path.abspath(data))  # noqa: PTH100, `resolve` would replace a link's name by its target's
    if not root.is_dir():
        raise DatasetError(
            f"{shown(data)} is {'a file' if root.exists() else 'not there'}; a folder of images was expected"
        )
    return root


def is_good_name(name: str) -> bool:
    """Whether a folder of this name holds good images."""
    return name.lower() in GOOD_NAMES


def subfolders(root: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def samples_in(folder: Path, label: Label, kind: str, *, nested: bool = False) -> tuple[Sample, ...]:
    """One sample for each image in a folder.

    Args:
        folder: The folder.
        label: What the images are.
        kind: Their kind.
        nested: Whether to take those of folders inside as well.

    Raises:
        DatasetError: A folder inside holds images too, which would be left out without a word.
    """
    found = tuple(Sample(path, label, kind) for path in find(folder))
    for inner in subfolders(folder):
        if nested:
            found += samples_in(inner, label, kind, nested=True)
        elif find(inner):
            raise DatasetError(
                f"{shown(inner)} holds images that would be left out: move them up to {shown(folder)}, or, where the "
                r"folder is a part or a lot, fit with --group '([^/]+)/[^/]+$'"
            )
    return found


def content(root: Path, most: int = 8) -> str:
    """What a folder holds, in words, for errors."""
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in sorted(root.iterdir())]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more if names else "nothing"


def listed(paths: Iterable[Path], most: int = 3) -> str:
    """A few paths in words, for errors."""
    names = [shown(path) for path in paths]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
