"""From decoded pixels to what a model takes: colour, size and scale, settled once by the images it is fitted on."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import ImageError
from makel.types import Shape

_ROUNDING = 8 / 255
"""How far the channels of a grey image saved in colour may lie apart, of a white of 1: JPEG and WebP round them."""

_WHITE_BALANCE = 0.03
"""How far they may lie apart besides, as a share of the brightest of them: a white balance is off by a factor."""

_COLOURED_PIXELS = 0.001
"""Share of its pixels, at the model's input size, from which an image shows colour: neither a hot pixel nor an edge."""

_COLOURED_IMAGES = 0.25
"""Share of the good images that have to show colour for the product to be read in colour; more than it."""

_WHITE_LEVELS = (1023, 4095, 16383, 65535)
"""Full scale of 10-, 12-, 14- and 16-bit cameras, which all write 16-bit files."""


@dataclass(frozen=True)
class Preparation:
    """What makes every image the same to a model. It is stored with the model.

    Attributes:
        height: Height of the input the model takes, in pixels.
        width: Its width, in pixels.
        colour: What the good images show. "rgb": colour. "any": colour, with grey files among them. "grey": none, also
            where they are saved in colour; of an RGB image the tint that a grey one may have is then taken out, and
            colour beyond it goes into the model. Every model takes both kinds of image.
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
            ImageError: As `settle`.
        """
        return cls.settle(
            [Kind.of(path, image, shape) for path, image in images if not isinstance(image, ImageError)], shape=shape
        )

    @classmethod
    def settle(cls, kinds: Sequence[Kind], *, shape: Shape) -> Self:
        """Decide from what all good images are: the same for everyone, whatever a single one of them is.

        Args:
            kinds: What each is; several of one name are parts of one image.
            shape: Height and width of the input the model takes, in pixels.

        Raises:
            ImageError: There are none, or some have 8 bits and some 16: their brightness cannot be compared.
        """
        if not kinds:
            raise ImageError("no good image could be decoded: a model needs at least one")
        first = kinds[0]
        for kind in kinds:
            if kind.bit_depth != first.bit_depth:
                raise ImageError(
                    f"{kind.name} has {kind.bit_depth} bits and {first.name} {first.bit_depth}: one model needs images "
                    "of one bit depth, convert the ones or the others"
                )
        colour: Literal["rgb", "grey", "any"] = "grey"
        n_coloured, n_images = len(coloured(kinds)), len({kind.name for kind in kinds})
        if n_coloured > _COLOURED_IMAGES * n_images:
            colour = "any" if any(kind.is_grey_file for kind in kinds) else "rgb"
        white_level = max(kind.white for kind in kinds) if first.bit_depth == 16 else None
        return cls(*shape, colour, white_level)


@dataclass(frozen=True)
class Kind:
    """What a good image is, as far as all of them together decide how every image is read.

    Attributes:
        name: Its file.
        bit_depth: 8, 16, or 32 of pixels in [0, 1].
        is_grey_file: Whether it has one channel.
        brightest: Its highest value.
        shows_colour: Whether more than single pixels of it are coloured, beyond what rounding and white balance do.
    """

    name: str
    bit_depth: int
    is_grey_file: bool
    brightest: float
    shows_colour: bool

    @classmethod
    def of(cls, name: str | os.PathLike[str], image: NDArray[Any], shape: Shape) -> Self:
        """Look at an image, or a tile of one.

        Args:
            name: Its file.
            image: (H, W), (H, W, 1) or (H, W, 3) RGB; uint8, uint16, or float32 in [0, 1].
            shape: Height and width of the input the model takes, in pixels.
        """
        is_grey_file = image.ndim == 2 or image.shape[2] == 1
        kind = cls(os.fsdecode(name), 8 * image.dtype.itemsize, is_grey_file, float(image.max()), shows_colour=False)
        if is_grey_file:
            return kind
        spread, allowed = _spreads(_resize(image, shape), kind.white)
        share = float((spread > allowed).mean())
        return replace(kind, shows_colour=share > _COLOURED_PIXELS)

    def beside(self, other: Kind) -> Self:
        """What an image is of which these are two parts."""
        return replace(
            self,
            brightest=max(self.brightest, other.brightest),
            shows_colour=self.shows_colour or other.shows_colour,
        )

    @property
    def white(self) -> int:
        """The value that is white in it: 255, 1 of pixels in [0, 1], or the full scale of the camera by its looks."""
        if self.bit_depth == 16:
            return next(level for level in _WHITE_LEVELS if level >= self.brightest)
        return 255 if self.bit_depth == 8 else 1


def coloured(kinds: Iterable[Kind]) -> list[str]:
    """The names of the images that show colour, each once, in their order."""
    return list(dict.fromkeys(kind.name for kind in kinds if kind.shows_colour))


def prepare(image: NDArray[Any], preparation: Preparation, *, name: str = "image") -> NDArray[np.float32]:
    """Bring pixels to the colour, size and scale a model was fitted on.

    An axis that shrinks is averaged over the area of each new pixel, so that fine texture does not alias; an axis that
    grows is interpolated linearly. The aspect is not kept. Values above the white level become 1.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) RGB; uint8, uint16, or float32 in [0, 1]. Not changed.
        preparation: What the model was fitted on.
        name: What to call the image in an error.

    Returns:
        (3, height, width) float32 RGB in [0, 1], C-contiguous. Grey images have three equal channels; so has an RGB
        image of a model fitted on grey, but where it is coloured beyond what rounding and white balance do.

    Raises:
        ImageError: The pixels have another shape, type or range, or a bit depth the model was not fitted on.
    """
    _check(image, preparation, name)
    pixels = _resize(image, preparation.shape)
    white = _full_scale(image.dtype, preparation.white_level)
    if pixels.ndim == 3 and preparation.colour == "grey":
        pixels = _without_tint(pixels, white)
    prepared = np.empty((3, *preparation.shape), np.float32)
    prepared[:] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    prepared /= np.float32(white)
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
    dtype = image.dtype
    # A comparison with NaN is false, so this refuses NaN as well.
    if dtype == np.float32 and not (image.min() >= 0 and image.max() <= 1):
        raise ImageError(f"{name} has values from {image.min()} to {image.max()}; float32 must lie in [0, 1]")
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


def _without_tint(pixels: NDArray[Any], white: float) -> NDArray[Any]:
    """What a model fitted on grey takes of (H, W, 3) RGB, in the same units.

    (H, W) where no pixel is coloured. Else (H, W, 3) float32: the colour of each pixel less what is allowed, so that
    a tint that grows shows ever more and nothing turns on one grey level.
    """
    grey = np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    spread, allowed = _spreads(pixels, white)
    if not (spread > allowed).any():
        return grey
    kept = 1 - allowed / np.maximum(spread, allowed)
    flat = grey.astype(np.float32)
    found = np.empty(pixels.shape, np.float32)
    for channel in range(3):
        found[..., channel] = flat + kept * (pixels[..., channel] - flat)
    return found


def _spreads(pixels: NDArray[Any], white: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How far the channels of (H, W, 3) lie apart, and how far they may in a picture without colour; (H, W) each."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    highest = np.maximum(np.maximum(red, green), blue)
    spread = highest - np.minimum(np.minimum(red, green), blue)
    allowed = np.float32(_ROUNDING * white) + np.float32(_WHITE_BALANCE) * highest
    return np.asarray(spread, np.float32), np.asarray(allowed, np.float32)


def _full_scale(dtype: np.dtype[Any], white_level: int | None) -> int:
    return {np.dtype(np.uint8): 255, np.dtype(np.uint16): white_level or 1}.get(dtype, 1)
