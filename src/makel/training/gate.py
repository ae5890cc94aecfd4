"""The gate at the end of a fit: the exported file must score real images as the trained network does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from makel.errors import ParityError
from makel.model.manifest import Parity
from makel.model.session import Runner
from makel.training.export import BATCH
from makel.types import Scores

RELATIVE_TOLERANCE = 1e-3
"""Allowed difference of a score between torch and ONNX Runtime, as a share of the highest good score. Sums over
thousands of products in another order differ by about 1e-5; a wrong resize, pad or normalisation by far more."""

_NUDGE, _ROUNDING = 2.0**-20, 4
"""What a millionth of full scale added to pixels does to a score is rounding, and so is four times as much.

Good images that are all but equal leave scores of little else than rounding, of which a share means nothing."""

FLIP_TOLERANCE = RELATIVE_TOLERANCE / 10
"""How far from the threshold, as a share of the same, a score may lie whose verdict the export turns round. The
threshold is itself the score of a held-out image, so at that image the two disagree wherever they round differently."""


def nudged(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 3, H, W) prepared images, each value a millionth of full scale up or down."""
    up = np.random.default_rng(0).random(images.shape[1:]) < 0.5
    moved = images + np.where(up, np.float32(_NUDGE), np.float32(-_NUDGE))
    return np.asarray(np.clip(moved, 0, 1), np.float32)


def check_parity(
    images: NDArray[np.float32],
    names: Sequence[str],
    trained: Scores[NDArray[np.float32]],
    exported: Runner,
    threshold: float,
    *,
    of_nudged: Scores[NDArray[np.float32]] | None = None,
) -> Parity:
    """The gate: the exported model must score held-out real images as the trained one does.

    Images go through the exported model one by one and several at once, so that a fixed batch size cannot pass. Nor may
    the verdict on any of them turn round, but where the trained score lies so close to the threshold that rounding
    alone decides: a tenth of what a score may differ by, so a flip can fail where nothing else does.

    Args:
        images: (N, 3, H, W) float32 prepared images.
        names: What to call each in a message.
        trained: What torch gives for them.
        exported: What runs the exported file.
        threshold: The calibrated image threshold.
        of_nudged: What torch gives for `nudged(images)`; None where no score is near rounding.

    Returns:
        The tolerances and the worst differences found.

    Raises:
        ParityError: A score or a map differs by more than the tolerance, or a verdict turns round.
    """
    found: list[list[tuple[np.float32, NDArray[np.float32]]]] = [[], []]
    for size, each in zip((1, BATCH), found, strict=True):
        for start in range(0, len(images), size):
            out = exported.run(images[start : start + size])
            each += zip(out.image, out.anomaly_map, strict=True)
    highest = max(float(np.abs(trained.image).max()), 1e-6)
    score_tolerance, flip_tolerance = RELATIVE_TOLERANCE * highest, FLIP_TOLERANCE * highest
    map_tolerance = 10 * RELATIVE_TOLERANCE * max(float(np.abs(trained.anomaly_map).mean()), 1e-6)
    if of_nudged is not None:
        rounding = (
            np.abs(of_nudged.image - trained.image).max(),
            np.abs(of_nudged.anomaly_map - trained.anomaly_map).max(),
        )
        score_tolerance = max(score_tolerance, _ROUNDING * float(rounding[0]))
        flip_tolerance = max(flip_tolerance, _ROUNDING * float(rounding[0]))
        map_tolerance = max(map_tolerance, _ROUNDING * float(rounding[1]))
    worst_score = worst_map = 0.0
    for index, name in enumerate(names):
        for got_score, got_map in (each[index] for each in found):
            score = float(trained.image[index])
            off, map_off = abs(float(got_score) - score), float(np.abs(got_map - trained.anomaly_map[index]).max())
            turned = (float(got_score) > threshold) != (score > threshold)
            flipped = turned and abs(score - threshold) > flip_tolerance
            # Written so that NaN fails.
            if flipped or not (off <= score_tolerance and map_off <= map_tolerance):
                raise ParityError(
                    f"the exported model scores {name} {float(got_score):.6g}, the trained one {score:.6g}, and their "
                    f"maps differ by {map_off:.3g} (allowed: {score_tolerance:.3g} and {map_tolerance:.3g}"
                    f"{', verdict flipped' if flipped else ''}): nothing was written. Report this with the versions "
                    "of torch and onnxruntime"
                )
            worst_score, worst_map = max(worst_score, off), max(worst_map, map_off)
    return Parity(
        score_tolerance=score_tolerance,
        map_tolerance=map_tolerance,
        worst_score_difference=worst_score,
        worst_map_difference=worst_map,
        n_images=len(names),
    )
