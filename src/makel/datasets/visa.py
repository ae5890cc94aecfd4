"""VisA (Zou et al., ECCV 2022, arXiv 2207.14315) as its download unpacks: twelve categories and their splits.

    VISA/CATEGORY/Data/Images/Normal/*.JPG       good
    VISA/CATEGORY/Data/Images/Anomaly/*.JPG      defects
    VISA/CATEGORY/Data/Masks/Anomaly/*.png       masks; non-zero is defect, and the values are as small as 1
    VISA/split_csv/1cls.csv                      object,split,label,image,mask: the published one-class split

The split file decides: its training images, all good, are fitted on; its test images test. Its paths start at VISA, and
it names each of the 10,821 images. The two-class splits beside it put defects into training and are not read. The copy
that the authors' `prepare_data.py` writes is in the layout of MVTec AD, and is read as that. Source:
github.com/amazon-science/spot-diff, README.md and split_csv.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from makel.datasets.dataset import Dataset, listed
from makel.errors import DatasetError
from makel.images import find, shown
from makel.types import Label, Sample

SPLIT_FILE = Path("split_csv", "1cls.csv")
"""The one-class split, from the folder that holds the categories."""

_COLUMNS = ["object", "split", "label", "image", "mask"]
_LABELS: dict[str, Label] = {"normal": "good", "anomaly": "defect"}


def is_category(root: Path) -> bool:
    """Whether a folder is one category of VisA."""
    return (root / "Data" / "Images" / "Normal").is_dir()


def read(root: Path) -> Dataset:
    """One category, split as published.

    Raises:
        DatasetError: The split file is missing or odd, or does not agree with the files that are there.
    """
    images = {path for kind in ("Normal", "Anomaly") for path in _files(root / "Data" / "Images" / kind)}
    masks = set(_files(root / "Data" / "Masks" / "Anomaly"))
    use: dict[str, list[Sample]] = {"train": [], "test": []}
    for split, sample in _rows(root):
        use[split].append(sample)
    samples = use["train"] + use["test"]
    named = {sample.image_path for sample in samples}
    if len(named) < len(samples):
        raise DatasetError(f"{shown(_split_file(root))} names an image of {root.name} twice: download it again")
    missing = named - images | {sample.mask_path for sample in samples if sample.mask_path} - masks
    if missing:
        raise DatasetError(
            f"{shown(_split_file(root))} names {len(missing)} files that are not in {shown(root)} "
            f"({listed(sorted(missing))}): unpack the download again"
        )
    if strays := images - named | masks - {sample.mask_path for sample in samples}:
        raise DatasetError(
            f"{shown(root)} holds {len(strays)} files that {SPLIT_FILE} does not name ({listed(sorted(strays))}): take "
            "them out"
        )
    for sample in use["train"]:
        if sample.label != "good":
            raise DatasetError(
                f"{shown(_split_file(root))} trains on the defect {shown(sample.image_path)}, and only good images are "
                "fitted on: use the published 1cls.csv"
            )
    good, test = (tuple(sorted(use[split], key=lambda sample: sample.image_path)) for split in ("train", "test"))
    return Dataset(root.name, root, good, test)


def _rows(root: Path) -> Iterator[tuple[str, Sample]]:
    """Use and sample of each line about this category."""
    path = _split_file(root)
    if not path.is_file():
        raise DatasetError(
            f"{shown(root)} is a category of VisA, but {shown(path)}, which says what tests, is not there: keep it "
            "beside the categories; to split the images in makel's way, give the category's Data/Images"
        )
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            if reader.fieldnames != _COLUMNS:
                raise DatasetError(f"{shown(path)} has columns {reader.fieldnames}; expected were {','.join(_COLUMNS)}")
            for row in reader:
                if row["object"] != root.name:
                    continue
                label = _LABELS.get(row["label"])
                if label is None or row["split"] not in ("train", "test"):
                    raise DatasetError(
                        f"{shown(path)}, line {reader.line_num}: {row['split']}, {row['label']}; expected were train "
                        "or test, normal or anomaly"
                    )
                mask = root.parent / row["mask"] if row["mask"] else None
                kind = "good" if label == "good" else row["label"]
                yield row["split"], Sample(root.parent / row["image"], label, kind, mask)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{shown(path)} is not a table of text: {error}; download it again") from error


def _split_file(root: Path) -> Path:
    return root.parent / SPLIT_FILE


def _files(folder: Path) -> list[Path]:
    return find(folder) if folder.is_dir() else []
