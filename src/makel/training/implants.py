"""Made-up defects on good images: something to find while there is no defect, for choices that would else be guesses.

They look like no product's real defects and need not: a choice is between ways of reading the same features, and what
tells soft, sharp and misplaced from good on this product's own images is the better way for them. They are never used
for a threshold or a figure.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from makel.errors import ImageError
from makel.images import Preparation, decode_all
from makel.training.detector import Detector, Implanted
from makel.training.features import Extraction, FeatureCache
from makel.training.tiles import TilePlan

SOURCES = 48
"""Good images that get defects, spread over all."""

WANTED = 96
"""Images with a defect, several of each good image where there are few."""

_BATCH = 8
_VISIBLE = 0.02
_TRIES = 8


def implant_all(
    detector: Detector,
    extraction: Extraction,
    preparation: Preparation,
    *,
    tiles: TilePlan | None,
    seed: int,
    device: torch.device,
) -> Implanted:
    """Features of some of the good images, with a defect in each.

    Args:
        detector: Only its `features` are used, and which part of the input it inspects.
        extraction: The good images as they are fitted on.
        preparation: How they are prepared.
        tiles: The tiles they were cut into; None for whole images.
        seed: Draws the defects.
        device: Where to compute.
    """
    n = len(extraction.paths)
    chosen = np.unique(np.linspace(0, n - 1, min(SOURCES, n)).round().astype(int)).tolist()
    rng = np.random.default_rng(seed)
    allowed = None if detector.inspected is None else detector.inspected.mask[0, 0].bool().cpu().numpy()
    images: list[NDArray[np.float32]] = []
    sources: list[int] = []
    if tiles is None:
        decoded = decode_all([extraction.paths[index] for index in chosen], preparation=preparation)
    else:
        decoded = tiles.only(extraction.paths, chosen).prepared(preparation)
    for index, (_, image) in zip(chosen, decoded, strict=True):
        if isinstance(image, ImageError):
            raise image  # it could be read a moment ago
        for _ in range(-(-WANTED // len(chosen))):
            changed, mask = implant(image, rng, allowed)
            if mask.any():
                images.append(changed)
                sources.append(index)
    if not images:  # blank images, on which nothing shows
        return Implanted((), ())
    levels: list[list[NDArray[np.float16]]] = []
    for start in range(0, len(images), _BATCH):
        with torch.no_grad():
            features = detector.features(torch.from_numpy(np.stack(images[start : start + _BATCH])).to(device))
        levels.append([level.half().cpu().numpy() for level in features])
    rows = [np.concatenate(level) for level in zip(*levels, strict=True)]
    cache = FeatureCache(rows, device, rows=np.arange(len(images)))
    return Implanted(cache, tuple(sources))


def implant(
    image: NDArray[np.float32], rng: np.random.Generator, allowed: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """One defect on a prepared image: a soft or sharp spot, a scratch, or a part of the image in another place.

    Args:
        image: (3, S, S) float32 in [0, 1]; not changed.
        rng: Draws kind, place, size and contrast, from hardly visible to plain.
        allowed: (S, S) where its centre may lie; None for anywhere.

    Returns:
        The changed image, and (S, S) where it differs visibly; nowhere after several tries on an image so uniform that
        nothing shows.
    """
    changed = image
    mask: NDArray[np.bool_] = np.zeros(image.shape[1:], np.bool_)
    for _ in range(_TRIES):
        draw = (_spot, _scratch, _misplaced)[rng.integers(3)]
        changed = np.clip(draw(image, _centre(image.shape[1], rng, allowed), rng), 0, 1).astype(np.float32)
        mask = np.abs(changed - image).max(0) > _VISIBLE
        if mask.any():
            break
    return changed, mask


def _centre(side: int, rng: np.random.Generator, allowed: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """x, y in pixels, clear of the border where the product fills the image."""
    if allowed is None:
        return rng.uniform(0.15, 0.85, 2) * side
    y, x = divmod(int(rng.choice(np.flatnonzero(allowed))), side)
    return np.array([x, y], np.float64)


def _spot(image: NDArray[np.float32], centre: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    side = image.shape[1]
    axis = rng.uniform(0.03, 0.25) * side
    cover = np.zeros(image.shape[1:], np.float32)
    box = (tuple(centre.tolist()), (axis, axis * rng.uniform(0.3, 1)), rng.uniform(0, 180))
    cv2.ellipse(cover, box, 1.0, -1)
    soft = cv2.GaussianBlur(cover, (0, 0), max(0.8, axis * rng.uniform(0.02, 0.2)))
    return image + soft * np.float32(rng.choice([-1, 1]) * rng.uniform(0.05, 0.5))


def _scratch(image: NDArray[np.float32], centre: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float32]:
    side = image.shape[1]
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.3, 8))
    steps = np.stack([np.cos(headings), np.sin(headings)], 1) * side * rng.uniform(0.01, 0.05, (8, 1))
    cover = np.zeros(image.shape[1:], np.float32)
    points = np.rint(centre + np.cumsum(steps, 0)).astype(np.int32)
    width = max(1, round(side / 256 * int(rng.integers(1, 4))))
    cv2.polylines(cover, [points], isClosed=False, color=1.0, thickness=width, lineType=cv2.LINE_AA)
    return image + cover * np.float32(rng.choice([-1, 1]) * rng.uniform(0.1, 0.6))


def _misplaced(
    image: NDArray[np.float32], centre: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """CutPaste (Li et al. 2021, https://arxiv.org/abs/2104.04015): a part of the image, elsewhere and a little brighter
    or darker."""
    side = image.shape[1]
    height, width = (max(2, int(share * side)) for share in rng.uniform(0.05, 0.25, 2))
    x, y = np.clip(np.rint(centre - [width / 2, height / 2]), 0, [side - width, side - height]).astype(int).tolist()
    from_y, from_x = int(rng.integers(0, side - height + 1)), int(rng.integers(0, side - width + 1))
    part = image[:, from_y : from_y + height, from_x : from_x + width]
    changed = image.copy()
    changed[:, y : y + height, x : x + width] = (
        np.rot90(part, 2, (1, 2)) if rng.random() < 0.5 else part
    ) * np.float32(rng.uniform(0.8, 1.2))
    return changed
