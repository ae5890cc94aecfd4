"""What `makel.evaluate` and `makel.recalibrate` do: a model and images by path, to measurements or thresholds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from makel.datasets import (
    doubtful_labels,
    load,
    overlooked,
    refuse_contradictions,
    refuse_defects,
    repeated,
    without_shared,
)
from makel.errors import DatasetError
from makel.evaluation.protocol import Evaluation, Progress
from makel.evaluation.protocol import evaluate as evaluate_samples
from makel.evaluation.recalibration import Recalibrated
from makel.evaluation.recalibration import recalibrate as recalibrate_on
from makel.model.folder import open_folder
from makel.model.inspector import Inspector
from makel.model.session import open_session


def evaluate(
    model: str | os.PathLike[str] | Inspector, data: str | os.PathLike[str], *, progress: Progress | None = None
) -> Evaluation:
    """Measure a model on labelled images it was not fitted on.

    Good images to test on that show what one of the dataset's images to fit on shows, by their bytes or their looks,
    are left out and counted.

    Args:
        model: A model folder, or an inspector that is already loaded.
        data: A dataset with labelled test images: a category of the MVTec AD layout, or a folder of good images beside
            folders of defects.
        progress: Called with (stage, done, total).

    Returns:
        The measurements.

    Raises:
        DatasetError: The data cannot be read, holds no labelled test images, or one image as good and as a defect.
        ModelFolderError: The model folder is damaged or changed.
    """
    inspector = model if isinstance(model, Inspector) else Inspector.load(model)
    dataset = load(Path(data))
    if not dataset.test:
        raise DatasetError(
            f"{data} holds no labelled test images: give a folder with test/good and test/<defect kind> (MVTec AD "
            "layout), or defect folders beside the good one"
        )
    refuse_contradictions(dataset.good, dataset.test)
    test = without_shared(dataset.good, dataset.test)
    return replace(
        evaluate_samples(inspector, test, progress=progress),
        n_shared=len(dataset.test) - len(test),
        notes=(*overlooked(dataset), *doubtful_labels(dataset.good, test), *repeated(test)),
    )


def recalibrate(
    model: str | os.PathLike[str],
    good_images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    false_reject: float | None = None,
    join: bool = False,
    threads: int | None = None,
    provider: str = "cpu",
    progress: Progress | None = None,
) -> Recalibrated:
    """Give a model new thresholds from fresh good images, without fitting; the model itself stays as it is.

    Args:
        model: A model folder.
        good_images: Good images that it was not fitted on: a folder, or a category of the MVTec AD layout, whose
            train/good is taken.
        out: The model folder to write.
        false_reject: Share of good parts that may be rejected; None for the model's own.
        join: Keep the scores that the present thresholds come from, beside those of the fresh images.
        threads: Threads to use at most.
        provider: What the model runs on.
        progress: Called with (stage, done, total).

    Returns:
        What was done, with the manifest of the new model folder.

    Raises:
        DatasetError: The images cannot be used, or are those the model was fitted on.
        UsageError: The budget is not in (0, 1).
        CalibrationError: The scores carry no threshold.
        ModelFolderError: A model folder is damaged, computes something else here, or cannot be written.
    """
    folder, dataset = open_folder(model), load(Path(good_images))
    refuse_defects(dataset.good)
    done = recalibrate_on(
        folder,
        open_session(folder, threads=threads, provider=provider),
        [sample.image_path for sample in dataset.good],
        out,
        data_name=dataset.name,
        false_reject=false_reject,
        join=join,
        progress=progress,
    )
    return replace(done, notes=overlooked(dataset))
