"""What every layout is read into."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

from makel.errors import DatasetError
from makel.images import find, shown
from makel.types import Label, Sample

GOOD_NAMES = ("good", "ok", "io", "gut", "normal", "pass")
"""Names of a folder of good images, in any case. Every other folder of images is a kind of defect."""

MASK_FOLDERS = ("ground_truth", "masks")
"""Folders of ground-truth masks, never of images to inspect; in any case."""

_NETWORKS = ("model.onnx", "weights.safetensors")

_MASK_STEM = re.compile(r"(.+)[-_. ](mask|gt|label)", re.IGNORECASE)
"""What the names of masks that lie beside their images have in addition, in datasets seen so far."""


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
    """The folders in a folder, sorted, without hidden ones and models, which hold pictures too."""
    folders = (entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted(folder for folder in folders if not is_model(folder))


def is_model(folder: Path) -> bool:
    """Whether a folder is a model that was written beside its images."""
    return (folder / "model.json").is_file() and any((folder / name).is_file() for name in _NETWORKS)


def mask_folders(root: Path) -> list[Path]:
    """The folders of masks beside the images, sorted."""
    return [folder for folder in subfolders(root) if folder.name.lower() in MASK_FOLDERS]


def refuse_masks(samples: Iterable[Sample]) -> None:
    """No image may lie beside its mask: the mask is no image, and among good ones the image may be a defect.

    Raises:
        DatasetError: One is called like another with an ending such as `_mask`.
    """
    paths = {normalize("NFC", sample.image_path.stem): sample.image_path for sample in samples}
    for stem, path in paths.items():
        if (named := _MASK_STEM.fullmatch(stem)) and named[1] in paths:
            raise DatasetError(
                f"{shown(path)} looks like a mask beside its image: keep masks in ground_truth/KIND, and only images "
                "to judge here"
            )


def samples_in(folder: Path, label: Label, kind: str, *, nested: bool = False) -> tuple[Sample, ...]:
    """One sample for each image in a folder.

    Args:
        folder: The folder.
        label: What the images are.
        kind: Their kind.
        nested: Whether to take those of folders inside as well.

    Raises:
        DatasetError: A folder inside holds images too, which would be left out without a word; or a mask lies beside
            its image.
    """
    found = tuple(Sample(path, label, kind) for path in find(folder))
    refuse_masks(found)
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
