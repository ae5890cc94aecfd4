"""Masks as people and programs draw them, read as what they mean, or refused with the reason.

What is black, 0, is background, what is not is marked. Beyond that:

- in a palette of colours the numbers count, not the colours: 0 is background, 255 the border that PASCAL VOC draws
  around objects and counts for nothing. A palette of greys counts as those greys;
- where part of it is transparent, what is opaque is marked, unless there is black in it as well;
- labels without a 0 have their lowest as background, if it covers most of the mask;
- soft edges, of an anti-aliased or resized mask or of a JPEG, are cut at half the brightest value; greys that are more
  than an edge are no mask;
- a mask that marks most of the image is refused: more likely it is inverted.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from makel.errors import ImageError
from makel.images.containers import Header
from makel.images.reading import MAX_PIXELS, read, read_header, shown, turn_upright

MOST_MARKED = 0.6
"""Share of an image above which what a mask marks is hardly a defect."""

_VOID = 255
_MOST_LABELS = 32
"""Labels beyond this many in one mask are greys."""

_MOST_TOLD = 8
"""Values beyond this many in a mask whose dim ones lie beside bright ones are those of an edge, not labels."""

_EDGE = np.ones((5, 5), np.uint8)
_LOSSY = ("JPEG", "WebP")


@dataclass(frozen=True)
class Mask:
    """What a mask marks.

    Attributes:
        marked: (H, W) bool.
        note: How it was read, where that is not plain; "" where it is.
    """

    marked: NDArray[np.bool_]
    note: str = ""


def read_mask(
    path: str | os.PathLike[str],
    *,
    image: Header | None = None,
    most_marked: float = MOST_MARKED,
    max_pixels: int = MAX_PIXELS,
) -> Mask:
    """Read a mask.

    Args:
        path: The file.
        image: The header of the image it belongs to, whose upright size it must have; None for any size.
        most_marked: Share of the mask that may be marked at most.
        max_pixels: As `read` takes it.

    Raises:
        ImageError: It cannot be read, has another size than its image, or its meaning is not certain.
    """
    pixels, header = read(path, max_pixels=max_pixels), read_header(path)
    try:
        orientation = 1 if image is None else _orientation(pixels, header, image)
        mask = _marked(path, pixels, header)
        if orientation != 1:
            upright = np.ascontiguousarray(turn_upright(mask.marked, orientation))
            mask = Mask(upright, "drawn on the stored pixels of an image that its EXIF turns: turned with it")
        share = float(mask.marked.mean())
        if share > most_marked:
            raise _Unclear(
                f"marks {100 * share:.0f} % of its image: it is inverted, or its background is not 0; what is marked "
                "must be bright on black"
            )
    except _Unclear as error:
        raise ImageError(f"{shown(path)} {error}") from error
    return mask


class _Unclear(Exception):  # noqa: N818, it is a finding, and becomes an ImageError with the path
    """Why a mask is not used, to be said behind its name."""


def _marked(path: str | os.PathLike[str], pixels: NDArray[Any], header: Header) -> Mask:
    labels, alpha = _stored(path) if header.format in ("PNG", "BMP", "TIFF", "WebP") else (None, None)
    if alpha is not None:
        return _opaque(pixels, turn_upright(alpha, header.orientation))
    if labels is not None:
        found = _numbers(turn_upright(labels, header.orientation))
        return Mask(found.marked, found.note or "of a palette: numbers other than 0 are marked")
    values = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    lossy = header.format == "JPEG" or (header.format in _LOSSY and len(np.unique(values)) > 2)
    return _greys(values) if lossy else _numbers(values)


def _stored(path: str | os.PathLike[str]) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    """The numbers of a mask with a palette of colours, and alpha where it says anything: what `read` leaves out."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:  # of large ones, which were read
            labels = None
            colours = file.getpalette() if file.mode == "P" else None
            if colours and not colours[0::3] == colours[1::3] == colours[2::3]:
                labels = np.asarray(file, np.uint8)
            if not file.has_transparency_data:
                return labels, None
            alpha = np.asarray(file.convert("RGBA"), np.uint8)[..., 3]
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # a kind that Pillow does not open; the pixels were read
        return None, None
    # Labels of which number 0 is transparent say the same twice, and more exactly.
    says = labels is None and alpha.min() < 128 <= alpha.max()
    return labels, alpha if says else None


def _opaque(pixels: NDArray[Any], alpha: NDArray[np.uint8]) -> Mask:
    opaque = alpha >= 128
    bright = (pixels if pixels.ndim == 2 else pixels.max(axis=2)) > 0
    painted = bright[opaque]
    marked = opaque & bright if painted.any() and not painted.all() else opaque
    return Mask(marked, "partly transparent: what is opaque is marked")


def _numbers(values: NDArray[Any]) -> Mask:
    """The mask of values that were stored without loss: two values, labels, or soft edges."""
    found, counts = np.unique(values, return_counts=True)
    if len(found) <= 2 and found[0] == 0:
        return Mask(values > 0)
    if len(found) > _MOST_LABELS or _has_soft_edges(values):
        return _greys(values)
    note = ""
    if found[-1] == _VOID and len(found) > 2 and found[-2] <= _MOST_LABELS:
        values = np.where(values == _VOID, found[0], values)
        note = "255 is the border around labels, and counts for nothing"
    if found[0] == 0:
        labels = ", ".join(str(value) for value in found[1:] if value != _VOID or not note)
        return Mask(values > 0, note or f"labels {labels} are all marked")
    if len(found) == 1 or counts[0] / counts.sum() < 0.5:
        raise _Unclear(
            f"has the values {', '.join(map(str, found[:4]))}, none of them 0: it is not certain which one is the "
            "background; make that 0"
        )
    return Mask(values > found[0], note or f"the lowest label, {found[0]}, is the background")


def _greys(values: NDArray[Any]) -> Mask:
    """The mask of values with soft edges, cut at half the brightest."""
    brightest = int(values.max())
    if brightest < 128:
        raise _Unclear(f"has soft values up to {brightest}: store labels without loss, as PNG, or 255 on black")
    if not _is_thin(_between(values)):
        raise _Unclear(
            f"holds greys between 0 and {brightest} that are more than an edge: it is no mask, or a soft one; cut it "
            "at the value that counts as defect"
        )
    return Mask(values >= (brightest + 1) // 2, f"soft edges are cut at half of {brightest}")


def _has_soft_edges(values: NDArray[Any]) -> bool:
    """Whether what is neither dark nor bright is an edge: narrow, and beside what is bright."""
    between = _between(values)
    bright = np.asarray(values >= 3 * int(values.max()) / 4, np.uint8)
    near = cv2.dilate(bright, np.ones((9, 9), np.uint8)) > 0
    lit = values > values.min()
    smooth = bool(between.any()) or len(np.unique(values)) > _MOST_TOLD
    return values.max() >= 128 and smooth and _is_thin(between) and bool(near[lit].all())


def _between(values: NDArray[Any]) -> NDArray[np.bool_]:
    brightest = int(values.max())
    return np.asarray((values > brightest / 4) & (values < 3 * brightest / 4))


def _is_thin(area: NDArray[np.bool_]) -> bool:
    """Whether nowhere in an area there is room for 5 x 5 pixels."""
    inner = cv2.erode(area.astype(np.uint8), _EDGE, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return not inner.any()


def _orientation(pixels: NDArray[Any], header: Header, image: Header) -> int:
    """How a mask has to be turned to lie on its upright image: 1 where it lies already."""
    height, width = pixels.shape[:2]
    wanted = (image.height_px, image.width_px)
    turned = image.orientation != 1 and header.orientation == 1
    lying = image.orientation >= 5 and wanted != wanted[::-1] and (height, width) == wanted[::-1]
    if turned and lying:
        return image.orientation
    if (height, width) != wanted:
        raise _Unclear(
            f"is {width}x{height} and its image {image.width_px}x{image.height_px}: a mask must have its image's size"
        )
    if turned and pixels.any() and (image.orientation < 5 or height == width):
        raise _Unclear(
            "has no orientation and its image is turned by its EXIF: it is not certain on which of the two it was "
            "drawn; store the image upright"
        )
    return 1
