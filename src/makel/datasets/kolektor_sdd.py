"""KolektorSDD (Tabernik et al., J. Intell. Manuf. 2019, doi 10.1007/s10845-019-01476-x) as it unpacks.

    ROOT/kos01/Part0.jpg  Part0_label.bmp  ...  Part7.jpg  Part7_label.bmp        the surfaces of one commutator
    ...
    ROOT/kos50/...

A surface has a defect where its label has any pixel that is not zero: 52 of 399 do. Nobody published a split with only
good images to fit on. The paper tests in three folds, with all surfaces of a commutator in one of them, and so does
this: commutator n tests in fold (n - 1) mod 3; the good surfaces of the others are fitted on, and their defects are
used for nothing, since a commutator must not be on both sides. The paper's own lists of folds are pickles, which makel
never opens, so figures compare with it only roughly. kos21/Part7 is left out, as in the authors' own code
(vicoslab/mixed-segdec-net-comind2021, data/input_ksdd.py). The later release with boxes instead of outlines unpacks
alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from unicodedata import normalize

from makel.datasets.dataset import Dataset, listed, subfolders
from makel.errors import DatasetError, ImageError, UsageError
from makel.images import decode_all, find, shown
from makel.types import Sample

FOLDS = 3
LEFT_OUT = (("kos21", "Part7"),)
"""Item and part that do not count."""

_ITEM = re.compile(r"kos(\d+)")
_LABEL = "_label"


def is_category(root: Path) -> bool:
    """Whether a folder holds commutators."""
    return any(next(item.glob(f"Part*{_LABEL}.bmp"), None) is not None for item in _items(root).values())


def read(root: Path, fold: int = 0) -> Dataset:
    """The dataset in one of its folds; `makel.datasets.load` takes the first.

    Args:
        root: Holds kos01, kos02, ...
        fold: Which third of the commutators tests: 0, 1 or 2.

    Raises:
        DatasetError: An image has no label or a label no image, or a label cannot be read.
        UsageError: There is no such fold.
    """
    if fold not in range(FOLDS):
        raise UsageError(f"fold={fold}; a number from 0 to {FOLDS - 1} was expected")
    good: tuple[Sample, ...] = ()
    test: tuple[Sample, ...] = ()
    for number, item in sorted(_items(root).items()):
        samples = labelled(pairs(item, _LABEL, left_out=[part for name, part in LEFT_OUT if name == item.name]))
        if (number - 1) % FOLDS == fold:
            test += samples
        else:
            good += tuple(sample for sample in samples if sample.label == "good")
    return Dataset(root.name, root, good, test)


def pairs(folder: Path, ending: str, left_out: list[str]) -> dict[Path, Path]:
    """Each image of a folder with its mask, which lies beside it and is called like it, with an ending.

    Args:
        folder: The folder.
        ending: What a mask's name has in addition, before its suffix.
        left_out: Names of images, without suffix, that do not count.

    Raises:
        DatasetError: An image has no mask, or a mask no image.
    """
    files = find(folder)
    stems = {path: normalize("NFC", path.stem) for path in files}
    masks = {stem.removesuffix(ending): path for path, stem in stems.items() if stem.endswith(ending)}
    images = {stem: path for path, stem in stems.items() if not stem.endswith(ending)}
    if alone := (images.keys() ^ masks.keys()) - set(left_out):
        paths = [(images | masks)[name] for name in sorted(alone)]
        raise DatasetError(
            f"{len(alone)} files are an image without its mask or a mask without its image ({listed(paths)}): expected "
            f"was NAME beside NAME{ending}; unpack the download again"
        )
    return {images[name]: masks[name] for name in images if name not in left_out}


def labelled(masks: Mapping[Path, Path]) -> tuple[Sample, ...]:
    """One sample for each image: a defect where its mask has any pixel that is not zero, else good.

    Args:
        masks: Image file to mask file.

    Raises:
        DatasetError: A mask cannot be read.
    """
    samples = []
    for (image, mask), (_, pixels) in zip(masks.items(), decode_all(masks.values()), strict=True):
        if isinstance(pixels, ImageError):
            raise DatasetError(f"{pixels} (it says whether {shown(image)} is good)") from pixels
        samples.append(Sample(image, "defect", "defect", mask) if pixels.any() else Sample(image, "good", "good"))
    return tuple(samples)


def _items(root: Path) -> dict[int, Path]:
    """The folders of commutators by their numbers."""
    matches = ((_ITEM.fullmatch(folder.name), folder) for folder in subfolders(root))
    return {int(match[1]): folder for match, folder in matches if match}
