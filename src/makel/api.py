"""What `makel.evaluate` does: a model and labelled images, given by path, to measurements."""

from __future__ import annotations

import os
from pathlib import Path

from makel.datasets import load
from makel.errors import DatasetError
from makel.evaluation.protocol import Evaluation, Progress
from makel.evaluation.protocol import evaluate as evaluate_samples
from makel.model.inspector import Inspector


def evaluate(
    model: str | os.PathLike[str] | Inspector, data: str | os.PathLike[str], *, progress: Progress | None = None
) -> Evaluation:
    """Measure a model on labelled images it was not fitted on.

    Args:
        model: A model folder, or an inspector that is already loaded.
        data: A dataset with labelled test images: a category of the MVTec AD layout, or a folder of good images beside
            folders of defects.
        progress: Called with (stage, done, total).

    Returns:
        The measurements.

    Raises:
        DatasetError: The data cannot be read, or holds no labelled test images.
        ModelFolderError: The model folder is damaged or changed.
    """
    inspector = model if isinstance(model, Inspector) else Inspector.load(model)
    dataset = load(Path(data))
    if not dataset.test:
        raise DatasetError(
            f"{data} holds no labelled test images: give a folder with test/good and test/<defect kind> (MVTec AD "
            "layout), or defect folders beside the good one"
        )
    return evaluate_samples(inspector, dataset.test, progress=progress)
