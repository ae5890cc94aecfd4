"""From decoded pixels to what a model takes: colour, size and scale, settled once by the images it is fitted on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import ImageError
from makel.types import Shape

_GREY_TOLERANCE = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 0, np.dtype(np.float32): 8 / 255}
"""How far the channels of a grey image saved in colour may lie apart: JPEG and WebP, of 8 bits, round them."""

_WHITE_LEVELS = (1023, 4095, 16383, 65535)
"""Full scale of 10-, 12-, 14- and 16-bit cameras, which all write 16-bit files."""


@dataclass(frozen=True)
class Preparation:
    """What makes every image the same to a model. It is stored with the model.

    Attributes:
        height: Height of the input the model takes, in pixels.
        width: Its width, in pixels.
        colour: What the good images were: "grey" (also where saved in colour), "rgb", or "any" for both.
        white_level: The value of 16-bit images that becomes 1.0; None where the good images were 8-bit.
    """

    height: int
    width: int
    colour: Literal["rgb", "grey", "any"]
    white_level: int | None = None

    @property
    def shape(self) -> Shape:
        """Height and width of the input, in pixels."""
        return self.height, self.width

    @classmethod
    def of(cls, images: Iterable[tuple[str | os.PathLike[str], NDArray[Any] | ImageError]], *, shape: Shape) -> Self:
        """Learn colour and white level from the good images.

        Args:
            images: Name and pixels of each, as `decode_all` yields them; errors are passed over.
            shape: Height and width of the input the model takes, in pixels.

        Raises:
            ImageError: No image could be decoded, or some have 8 bits and some 16: their brightness cannot be compared.
        """
        grey_files = colour_files = False
        real_colour = False
        first: tuple[str, np.dtype[Any]] | None = None
        brightest = 0
        for path, image in images:
            if isinstance(image, ImageError):
                continue
            name = os.fsdecode(path)
            first = first or (name, image.dtype)
            if image.dtype != first[1]:
                raise ImageError(
                    f"{name} is {image.dtype} and {first[0]} is {first[1]}: one model needs images of one bit depth, "
                    "convert the ones or the others"
                )
            if image.dtype == np.uint16:
                brightest = max(brightest, int(image.max()))
            grey_files |= image.ndim == 2
            colour_files |= image.ndim == 3
            real_colour = real_colour or (image.ndim == 3 and not _is_grey(_resize(image, shape)))
        if first is None:
            raise ImageError("no good image could be decoded: a model needs at least one")
        white_level = next(level for level in _WHITE_LEVELS if level >= brightest) if first[1] == np.uint16 else None
        return cls(*shape, ("any" if grey_files else "rgb") if real_colour else "grey", white_level)


def prepare(image: NDArray[Any], preparation: Preparation, *, name: str = "image") -> NDArray[np.float32]:
    """Bring pixels to the colour, size and scale a model was fitted on.

    An axis that shrinks is averaged over the area of each new pixel, so that fine texture does not alias; an axis that
    grows is interpolated linearly. The aspect is not kept. Values above the white level become 1.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) RGB; uint8, uint16, or float32 in [0, 1]. Not changed.
        preparation: What the model was fitted on.
        name: What to call the image in an error.

    Returns:
        (3, height, width) float32 RGB in [0, 1], C-contiguous. Grey images have three equal channels.

    Raises:
        ImageError: The pixels have another shape, type or range, or a colour or bit depth the model was not fitted on.
    """
    _check(image, preparation, name)
    pixels = _resize(image, preparation.shape)
    if pixels.ndim == 3 and preparation.colour == "grey":
        if not _is_grey(pixels):
            raise ImageError(
                f"{name} is {_size(image)} RGB; this model was fitted on grey. Convert it, or fit again on RGB images"
            )
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    prepared = np.empty((3, *preparation.shape), np.float32)
    prepared[:] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    prepared /= np.float32(_full_scale(image.dtype, preparation.white_level))
    return np.minimum(prepared, np.float32(1), out=prepared)


def check_pixels(image: NDArray[Any], name: str) -> None:
    """Refuse what is no image by its shape or type.

    Raises:
        ImageError: It is neither (H, W), (H, W, 1) nor (H, W, 3), empty, or of a type that is not read.
    """
    shape, dtype = image.shape, image.dtype
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)) or 0 in shape:
        raise ImageError(
            f"{name} has shape {shape}; (H, W), (H, W, 1) or (H, W, 3) with at least one pixel was expected, "
            "without alpha"
        )
    if dtype not in (np.uint8, np.uint16, np.float32):
        raise ImageError(f"{name} is {dtype}; uint8, uint16, or float32 in [0, 1] was expected")


def _check(image: NDArray[Any], preparation: Preparation, name: str) -> None:
    check_pixels(image, name)
    shape, dtype = image.shape, image.dtype
    # A comparison with NaN is false, so this refuses NaN as well.
    if dtype == np.float32 and not (image.min() >= 0 and image.max() <= 1):
        raise ImageError(f"{name} has values from {image.min()} to {image.max()}; float32 must lie in [0, 1]")
    if preparation.colour == "rgb" and (len(shape) == 2 or shape[2] == 1):
        raise ImageError(
            f"{name} is {_size(image)} grey; this model was fitted on RGB. Convert it, or fit again on grey images"
        )
    fitted = np.uint8 if preparation.white_level is None else np.uint16
    if dtype not in (fitted, np.float32):
        raise ImageError(
            f"{name} is {8 * dtype.itemsize}-bit; this model was fitted on {8 * np.dtype(fitted).itemsize}-bit images. "
            "Set the camera to the same, or fit again"
        )


def _resize(image: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """(H, W, ...) to (*shape, ...) in the same type, each axis in the way that suits it."""
    height, width = image.shape[:2]
    high, wide = shape
    pixels = image if image.ndim == 2 or image.shape[2] == 3 else image[..., 0]
    # The same average, but for rounding, in a quarter of the time: OpenCV is quick at halving.
    while width % (2 * wide) == 0 and height % (2 * high) == 0:
        width, height = width // 2, height // 2
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    # OpenCV turns area averaging off for both axes when one of them grows: shrink first.
    smaller = (min(width, wide), min(height, high))
    if smaller != (width, height):
        pixels = cv2.resize(pixels, smaller, interpolation=cv2.INTER_AREA)
    if smaller != (wide, high):
        pixels = cv2.resize(pixels, (wide, high), interpolation=cv2.INTER_LINEAR)
    return pixels


def _is_grey(pixels: NDArray[Any]) -> bool:
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    return bool(spread.max() <= _GREY_TOLERANCE[pixels.dtype])


def _full_scale(dtype: np.dtype[Any], white_level: int | None) -> int:
    return {np.dtype(np.uint8): 255, np.dtype(np.uint16): white_level or 1}.get(dtype, 1)


def _size(image: NDArray[Any]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
