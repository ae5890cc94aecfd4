"""Jittered copies of good images, for those who have few: a part lies and is lit a little differently every time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import ImageError

COPIES = 3
"""Copies of each image, beside itself."""

BLOCK = 4
"""Images that are held at a time: first each of them, then a copy of each, and so on."""

TURN_DEGREES, SHIFT, GAIN = 2.0, 0.015, 0.04
"""Most that a copy is turned, shifted (share of the side) and made brighter or darker (share)."""


def with_copies(
    images: Iterable[tuple[Path, NDArray[np.float32] | ImageError]], seed: int
) -> Iterator[tuple[Path, NDArray[np.float32] | ImageError]]:
    """Every prepared image and then its copies, a block of images at a time; errors are passed on.

    Args:
        images: (3, H, W) float32 in [0, 1] each.
        seed: Draws the copies.
    """
    rng = np.random.default_rng(seed)
    block: list[tuple[Path, NDArray[np.float32]]] = []

    def copies() -> Iterator[tuple[Path, NDArray[np.float32]]]:
        yield from block
        for _ in range(COPIES):
            yield from ((path, jitter(image, rng)) for path, image in block)
        block.clear()

    for path, image in images:
        if isinstance(image, ImageError):
            yield path, image
            continue
        block.append((path, image))
        if len(block) == BLOCK:
            yield from copies()
    yield from copies()


def jitter(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """(3, H, W) in [0, 1], turned, shifted and lit a little differently; what comes in at the border is its mirror."""
    _, height, width = image.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-TURN_DEGREES, TURN_DEGREES), 1.0)
    turn[:, 2] += rng.uniform(-SHIFT, SHIFT, 2) * np.array([width, height])
    moved = cv2.warpAffine(
        np.ascontiguousarray(image.transpose(1, 2, 0)),
        turn,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    lit = np.clip(moved * np.float32(1 + rng.uniform(-GAIN, GAIN)), 0, 1)
    return np.ascontiguousarray(lit.transpose(2, 0, 1), np.float32)
