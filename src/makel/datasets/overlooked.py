"""What lies in a dataset's folder and is neither fitted on, nor tested on, nor a mask: so that somebody says so."""

from __future__ import annotations

from makel.datasets.dataset import MASK_FOLDERS, Dataset
from makel.images import misnamed, passed_over


def overlooked(dataset: Dataset) -> tuple[str, ...]:
    """Lines about files and folders that were passed over, and about names that disagree with what the files hold.

    Images beside some that are used are left out by a layout on purpose, and masks of good images are not needed.
    """
    samples = [*dataset.good, *dataset.test]
    images = [sample.image_path for sample in samples]
    masks = [sample.mask_path for sample in samples if sample.mask_path]
    found = passed_over(
        dataset.root,
        [*images, *masks],
        advice="move them to where the layout has images, or away",
        skip=MASK_FOLDERS,
        mixed=False,
    )
    return (*found.lines, *filter(None, (misnamed(images),)))
