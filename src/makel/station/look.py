"""What an image looks like, in a few numbers: how bright, how sharp, where the part lies, and whether it is that part.

Measured on every image while it is decided, from what the model sees of it, in under a millisecond. They judge no part;
they are what `drift` explains a change with.
"""

from __future__ import annotations

import logging
from dataclasses import astuple, dataclass
from math import isfinite
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import MakelError
from makel.model.golden import images
from makel.model.inspector import Inspector, Prepared

_SIDE_PX = 64
"""Position and likeness are taken at this size: a shift shows to about a tenth of a pixel of it."""

_REACH_PX = 10
"""A shift is looked for up to this, 16 % of the side."""

_WHOLE_PX = 256
"""An image in tiles is looked at whole, its longer side brought to this."""

_FLAT = 1e-4
"""Standard deviation, of a white of 1, below which an image shows nothing that could be aligned."""

_DIGITS = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What an image looks like.

    Attributes:
        brightness: Mean grey value, 0 to 1.
        contrast: Standard deviation of the grey values over their mean: a dimmer lamp alone does not change it.
        sharpness: Variance of the Laplacian over the variance of the grey values: how much of what there is to see is
            fine detail. Likewise.
        shift_x: How far the part lies to the right of where it lies on the model's good images, as a share of the
            image's width. None of a model with tiles, whose good images are not kept whole.
        shift_y: How far it lies below, as a share of the height; None likewise.
        match: Correlation with the mean of these good images once both lie one on the other, -1 to 1; None likewise.
    """

    brightness: float
    contrast: float
    sharpness: float
    shift_x: float | None = None
    shift_y: float | None = None
    match: float | None = None

    def to_json(self) -> list[float | None]:
        """The numbers in the order of the attributes."""
        return list(astuple(self))

    @classmethod
    def from_json(cls, numbers: list[float | None]) -> Look:
        """What `to_json` gave.

        Raises:
            ValueError: Not six numbers, or one that is not finite.
        """
        if len(numbers) != 6:
            raise ValueError(f"a look is {len(numbers)} numbers: it has six")
        brightness, contrast, sharpness, *others = numbers
        if brightness is None or contrast is None or sharpness is None:
            raise ValueError("a look without brightness, contrast or sharpness")
        if not all(isfinite(number) for number in numbers if number is not None):
            raise ValueError("a look that is not finite")
        return cls(brightness, contrast, sharpness, *others)


class Observer:
    """Looks at the images of one model. Thread-safe.

    Attributes:
        golden: How the model's own good images look; none of a model with tiles.
    """

    def __init__(self, inspector: Inspector) -> None:
        """Take the model's golden images as what a good part looks like."""
        self._white_level = inspector.manifest.preprocessing.white_level
        self._mean: NDArray[np.float32] | None = None
        self.golden: tuple[Look, ...] = ()
        if inspector.manifest.tiling is not None:
            return  # its golden images are tiles
        try:
            greys = [_grey(image) / np.float32(255) for image in golden_images(inspector)]
        except MakelError as error:  # the model goes on from memory; so does this, without knowing where parts lie
            _log.warning("looks are taken without position: %s", error)
            return
        smalls = [_small(grey) for grey in greys]
        total = np.sum(smalls, axis=0, dtype=np.float32)
        self._mean = np.asarray(total / len(smalls), np.float32)
        # Each beside the mean of the others: with itself in the mean it would match better than any new part can.
        self.golden = tuple(
            self._look(grey, np.asarray((total - small) / (len(smalls) - 1), np.float32))
            for grey, small in zip(greys, smalls, strict=True)
            if len(smalls) > 1
        )

    def look(self, prepared: Prepared) -> Look:
        """What an image looks like that `Inspector.prepare` gave."""
        image = prepared.image
        if image.ndim == 3 and image.shape[0] == 3 and image.dtype == np.float32 and self._mean is not None:
            return self._look(_grey(image.transpose(1, 2, 0)), self._mean)
        scale = min(1.0, _WHOLE_PX / max(image.shape[:2]))
        size = (max(1, round(scale * image.shape[1])), max(1, round(scale * image.shape[0])))
        if image.dtype == np.float32 and image.shape[0] == 3:
            grey = _grey(image.transpose(1, 2, 0))
        else:
            white = {np.dtype(np.uint8): 255, np.dtype(np.uint16): self._white_level or 1}.get(image.dtype, 1)
            grey = _grey(cv2.resize(image, size, interpolation=cv2.INTER_AREA)) / np.float32(white)
        return self._look(grey, None)

    def _look(self, grey: NDArray[np.float32], mean: NDArray[np.float32] | None) -> Look:
        level, spread = (float(value[0, 0]) for value in cv2.meanStdDev(grey))
        detail = float(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))[1][0, 0])
        flat = spread < _FLAT
        numbers = [level, spread / max(level, _FLAT), 0.0 if flat else (detail / spread) ** 2]
        if mean is not None:
            numbers += self._place(_small(grey), mean)
        return Look(*(round(number, _DIGITS) for number in numbers))

    def _place(self, small: NDArray[np.float32], mean: NDArray[np.float32]) -> list[float]:
        """Shift to the right and down as shares of the side, and the correlation there.

        Not phase correlation, which weighs every frequency alike: noise and gloss then decide on a part like a ring.
        """
        template = mean[_REACH_PX:-_REACH_PX, _REACH_PX:-_REACH_PX]
        if min(float(small.std()), float(template.std())) < _FLAT:
            return [0.0, 0.0, 0.0]
        matched = np.asarray(cv2.matchTemplate(small, template, cv2.TM_CCOEFF_NORMED), np.float32)
        found = np.nan_to_num(matched, posinf=0.0, neginf=0.0)
        _, match, _, (x, y) = cv2.minMaxLoc(found)
        shifts = (x + _vertex(found[y], x) - _REACH_PX, y + _vertex(found[:, x], y) - _REACH_PX)
        return [shifts[0] / _SIDE_PX, shifts[1] / _SIDE_PX, min(1.0, match)]


def golden_images(inspector: Inspector) -> list[NDArray[np.uint8]]:
    """The golden images of a model: (H, W, 3) uint8 RGB each, as they went into it.

    Raises:
        ModelFolderError: The folder is no longer what was loaded.
    """
    return [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images(inspector.folder)]


def _grey(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """(H, W) or (H, W, C) to (H, W) float32: the mean of the channels."""
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=2, dtype=np.float32)
    return np.ascontiguousarray(grey, np.float32)


def _small(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(grey, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA), np.float32)


def _vertex(values: NDArray[np.float32], peak: int) -> float:
    """Where between the values, counted from the highest, the parabola through it and its neighbours is highest."""
    if not 0 < peak < len(values) - 1:
        return 0.0
    before, at, after = (float(value) for value in values[peak - 1 : peak + 2])
    bend = before - 2 * at + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0
