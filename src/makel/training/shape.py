"""What shape a model's input has: as large as was asked for, and with the aspect of the good images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import sqrt
from pathlib import Path
from statistics import median

from makel.errors import ImageError
from makel.images import read_header
from makel.types import Shape

STEP_PX, LEAST_PX = 32, 64
"""Sides are multiples of the first, which is what backbones come down to, and no smaller than the second."""


def input_shape(sizes: Sequence[tuple[int, int]], size: int) -> Shape:
    """Height and width, in pixels, of an input for images of these sizes.

    It has about the median aspect of the images, and about as many pixels as a square of `size`; where the images have
    fewer, about as many as the median one. Both sides are multiples of 32 and at least 64: the other side of a long
    strip then gives way, so that there are not many more pixels than was asked for.

    Args:
        sizes: Height and width of each image, in pixels; at least one.
        size: Side of a square of as many pixels as wanted.
    """
    aspect = median(width / height for height, width in sizes)
    wanted = min(size * size, median(height * width for height, width in sizes))
    most = size * size / LEAST_PX
    return _side(min(sqrt(wanted / aspect), most)), _side(min(sqrt(wanted * aspect), most))


def image_sizes(paths: Iterable[Path]) -> list[tuple[int, int]]:
    """Height and width of each image as it stands upright, by its header; without those whose header cannot be read."""
    sizes = []
    for path in paths:
        try:
            header = read_header(path)
        except ImageError:  # whoever decodes it says why
            continue
        sizes.append((header.height_px, header.width_px))
    return sizes


def _side(length_px: float) -> int:
    return max(LEAST_PX, STEP_PX * int(length_px / STEP_PX + 0.5))
