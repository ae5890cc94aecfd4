"""What lies in a dataset's folder and is neither fitted on, nor tested on, nor a mask: so that somebody says so."""

from __future__ import annotations

import re

from makel.datasets.dataset import GOOD_NAMES, Dataset, is_good_name, is_model, mask_folders, subfolders
from makel.images import misnamed, passed_over, shown

_SAYS_GOOD = re.compile(
    rf"({'|'.join(GOOD_NAMES)}|okay|goods|i\.?o\.?|non?[-_ ]?defects?|non[-_ ]?defective|(defect|fault)[-_ ]?free|free)"
    r"([-_ .]*(parts?|images?|imgs?|pictures?|samples?|test|new|old|\d+))*",
    re.IGNORECASE,
)
"""Names of kinds of defect that seem to say the opposite."""


def overlooked(dataset: Dataset) -> tuple[str, ...]:
    """Lines about files and folders that were passed over, kinds of defect called good, and names that are wrong.

    Images beside some that are used are left out by a layout on purpose. Masks of good images are not needed.
    """
    samples = [*dataset.good, *dataset.test]
    images = [sample.image_path for sample in samples]
    masks_of_good = [
        kind for folder in mask_folders(dataset.root) for kind in subfolders(folder) if is_good_name(kind.name)
    ]
    models = [folder for folder in dataset.root.iterdir() if is_model(folder)]
    kinds = dict.fromkeys(sample.kind for sample in dataset.test if sample.label == "defect")
    masks = [sample.mask_path for sample in samples if sample.mask_path]
    found = passed_over(
        dataset.root,
        [*images, *masks],
        advice="move them to where the layout has images or masks, or away",
        skip=[*masks_of_good, *models],
        mixed=False,
    )
    said = [
        f"{shown(kind)}/ is read as a kind of defect by its name: call it good if it holds good images"
        for kind in kinds
        if _SAYS_GOOD.fullmatch(kind)
    ]
    return (*found.lines, *said, *filter(None, (misnamed(images),)))
