"""Folders as people have them: good images, optionally beside folders of defects.

    DATA/*                           good images, nothing to test on
    DATA/good/*                      the same; also called ok, io, gut, normal or pass
    DATA/KIND/*                      beside either: defects, to test on
    DATA/ground_truth/KIND/NAME_mask.png           masks, as in the MVTec AD layout
    DATA/good/* with DATA/test/...   good images to fit on, and a test folder as in the MVTec AD layout

A test needs good images as well as defects, and they must not be the ones that are fitted on. Where defects lie beside
the good images and nobody made a test folder, a fifth of the good images is therefore kept for testing. Which ones
depends on nothing but the images' bytes: it is the same for every command, new images do not move old ones, and copies
of an image, also those that merely look alike (`makel.images.likeness`), fall on the same side.
"""

from __future__ import annotations

from pathlib import Path

from makel.datasets.contents import hashes
from makel.datasets.dataset import (
    GOOD_NAMES,
    MASK_FOLDERS,
    Dataset,
    content,
    is_good_name,
    refuse_masks,
    samples_in,
    subfolders,
)
from makel.datasets.mvtec_ad import read_test, with_masks
from makel.errors import DatasetError
from makel.images import SUFFIXES, find, likeness, shown
from makel.types import Sample

TEST_SHARE = 0.2
"""Share of the good images kept for testing where defects lie beside them."""


def read(root: Path, *, nested: bool = False) -> Dataset:
    """Good images, with the defects beside them.

    Args:
        root: The folder.
        nested: Whether folders inside that of the good images count as well.

    Raises:
        DatasetError: There are no good images, or two folders of them, or masks among them.
    """
    folders = [folder for folder in subfolders(root) if folder.name.lower() not in MASK_FOLDERS]
    good_folders = [folder for folder in folders if is_good_name(folder.name)]
    sources = good_folders + ([root] if find(root) else [])
    if len(sources) > 1:
        raise DatasetError(
            f"good images lie in {' and in '.join(map(shown, sources))}: keep them in one place, or give one of the two"
        )
    if not sources:
        raise DatasetError(
            f"{shown(root)} holds {content(root)}; expected were images ({', '.join(SUFFIXES)}), a folder called "
            f"{', '.join(GOOD_NAMES)}, or train/good as in MVTec AD"
        )
    if sources == [root]:
        good = tuple(Sample(path, "good", "good") for path in find(root))
        refuse_masks(good)
    else:
        good = samples_in(sources[0], "good", "good", nested=nested)
    if not good:
        raise DatasetError(
            f"{shown(sources[0])} holds {content(sources[0])}; expected were images ({', '.join(SUFFIXES)})"
        )
    if (test := root / "test").is_dir():
        return Dataset(root.name, root, good, read_test(test, root))
    kinds = [folder for folder in folders if folder not in good_folders]
    defects = tuple(sample for folder in kinds for sample in samples_in(folder, "defect", folder.name))
    if not defects:
        return Dataset(root.name, root, good)
    fit, kept = _keep_for_test(good)
    return Dataset(root.name, root, fit, with_masks(kept + defects, root))


def _keep_for_test(good: tuple[Sample, ...]) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Those to fit on, and those to test on: by the first bytes of their hash, the lowest one at least.

    Of images that are alike, the first by name decides for all.
    """
    content_hashes = hashes(good)
    alike = likeness.groups(likeness.thumbnails(sample.image_path for sample in good)).tolist()
    deciding = [content_hashes[alike.index(number)] for number in alike]
    bar = max(int(TEST_SHARE * 2**32), int(min(deciding)[:8], 16))
    kept = [int(content_hash[:8], 16) <= bar for content_hash in deciding]
    fit = tuple(sample for sample, is_kept in zip(good, kept, strict=True) if not is_kept)
    return fit, tuple(sample for sample, is_kept in zip(good, kept, strict=True) if is_kept)
