"""What the good images are, before anything is learnt from them: one line for each thing a person should know.

Everything here is about the images as a set: nothing is left out on its account, and nothing here is an error.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from makel.datasets import Dataset
from makel.errors import ImageError
from makel.images import Kind, coloured, read, read_header, read_reduced, shown, work_ahead
from makel.model.manifest import GoodImages
from makel.training.shape import image_sizes
from makel.training.tiles import TilePlan
from makel.types import Shape

_PRINT_PX = 16
"""A picture's print: its grey values at this size."""

_PATCH_PX = 48
"""And so many pixels from its middle as they are, with their noise: no two shots of a camera share it."""

_REDUCED_PX = 2048
"""An image fitted on in tiles is looked at no larger."""

_SAME_PRINT, _SAME_NOISE = 0.75 / 255, 0.3
"""Two pictures are one shot where nine tenths of their prints differ by no more than the first, and their finest
detail, noise that is, correlates by at least the second. Of eight real sets no two prints come below 1.3 / 255."""

_BLANK = 0.2 / 255
"""Standard deviation of the finest detail below which a patch is blank, as an even background is."""

_BLACK, _WHITE = 10 / 255, 245 / 255
"""An image with hardly a pixel above the first, or below the second, shows nothing."""

_EVEN = 1 / 255
"""Nor does one whose pixels, but for a few, lie no further apart than this."""

_FEW = 1e-3
"""Share of the pixels, at either end, that these do not count."""

_HIDDEN = 1e-3
"""Share of transparent pixels from which alpha is worth a word."""

_MOST_ALPHA_PIXELS = 64_000_000
"""Of a larger image alpha is not looked at: Pillow would warn of it."""

_NO_KINDS = re.compile(
    "previews?|thumb(nail)?s?|icons?|cache|backup|bak|te?mp|exports?|outputs?|results?|overlays?|heatmaps?|masks?|"
    "labels?|annotations?|gt",
    re.IGNORECASE,
)
"""Names of folders beside images that hold no defects; masks lie in ground_truth or masks."""

_ASPECT = 1.1
"""Images whose aspects differ by less are stretched by less than anybody sees."""


@dataclass(frozen=True)
class Picture:
    """One good image.

    Attributes:
        path: Its file.
        kind: What it is, as far as it decides how images are read.
        size_px: Width and height, upright.
        lowest: The value that a thousandth of its pixels stays below, of a white of 1.
        highest: The value that a thousandth of them is above.
        print_: (16, 16) float32, its grey values at that size, of a white of 1.
        patch: (h, w) float32, at most 48 px a side, the pixels in its middle, of a white of 1.
        hidden: Share of its pixels that its alpha makes transparent.
    """

    path: Path
    kind: Kind
    size_px: tuple[int, int]
    lowest: float
    highest: float
    print_: NDArray[np.float32] = field(repr=False)
    patch: NDArray[np.float32] = field(repr=False)
    hidden: float

    @classmethod
    def of(cls, path: Path, image: NDArray[Any], size_px: tuple[int, int], shape: Shape) -> Self:
        """Look at the pixels of a file, (H, W) or (H, W, 3), uint8 or uint16; and at its alpha, which they lack."""
        kind = Kind.of(path, image, shape)
        grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        grey = np.asarray(grey, np.float32) / np.float32(kind.white)
        lowest, highest = np.quantile(grey[:: max(1, len(grey) // 512)], [_FEW, 1 - _FEW]).tolist()
        top, left = (max(0, (side - _PATCH_PX) // 2) for side in grey.shape)
        small = cv2.resize(grey, (_PRINT_PX, _PRINT_PX), interpolation=cv2.INTER_AREA)
        patch = grey[top : top + _PATCH_PX, left : left + _PATCH_PX].copy()
        hidden = hidden_share(path) if size_px[0] * size_px[1] <= _MOST_ALPHA_PIXELS else 0.0
        return cls(path, kind, size_px, lowest, highest, np.asarray(small, np.float32), patch, hidden)

    @property
    def nothing(self) -> str:
        """In what way it shows nothing: "black", "white", "even"; "" where it shows something."""
        if self.highest <= _BLACK:
            return "black"
        if self.lowest >= _WHITE:
            return "white"
        return "even" if self.highest - self.lowest <= _EVEN else ""

    def repeats(self, other: Picture) -> bool:
        """Whether both are one shot of the camera, however each was saved; its noise tells one from the next."""
        if self.patch.shape != other.patch.shape or self.size_px != other.size_px:
            return False
        # A clock that is written into the picture goes on.
        if np.quantile(np.abs(self.print_ - other.print_), 0.9) > _SAME_PRINT:
            return False
        mine, others = _detail(self.patch), _detail(other.patch)
        if min(float(mine.std()), float(others.std())) < _BLANK:  # no noise to tell them by
            return bool(np.array_equal(self.print_, other.print_))
        return float((mine * others).mean() / (mine.std() * others.std())) >= _SAME_NOISE


def look(paths: Sequence[Path], shape: Shape, *, tiles: TilePlan | None = None) -> list[Picture]:
    """Look at every image that can be read, in their order.

    Args:
        paths: The images.
        shape: Height and width of the input the model takes, in pixels.
        tiles: The tiles that are fitted on, where images may be too large for memory. Each is then reduced to 2048 px
            as it is read, and what its tiles show of colour and brightness counts besides.
    """

    def work(path: Path) -> Picture | ImageError:
        try:
            header = read_header(path)
            image = read_reduced(path, _REDUCED_PX) if tiles else read(path)
        except ImageError as error:
            return error
        return Picture.of(path, image, (header.width_px, header.height_px), shape)

    found = work_ahead(work, paths, workers=2, ahead=8)
    pictures = {path: picture for path, picture in found if isinstance(picture, Picture)}
    for path, tile in tiles.pixels() if tiles else ():
        if path in pictures and not isinstance(tile, ImageError):
            picture = pictures[path]
            pictures[path] = replace(picture, kind=picture.kind.beside(Kind.of(path, tile, shape)))
    return list(pictures.values())


def hidden_share(path: Path) -> float:
    """Share of an image's pixels whose alpha is below a half; 0 for one without alpha."""
    try:
        with Image.open(path, formats=("PNG", "TIFF", "WEBP", "BMP", "JPEG2000")) as image:
            if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
                return 0.0
            alpha = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
            return float((np.asarray(alpha.getchannel("A")) < 128).mean())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0.0  # an image that Pillow does not take, and `read` did


def summary(pictures: Sequence[Picture]) -> GoodImages | None:
    """The same images in a few numbers; None where none could be read."""
    if not pictures:
        return None
    sizes = sorted({picture.size_px for picture in pictures}, key=lambda size: size[0] * size[1])
    return GoodImages(
        n=len(pictures),
        n_grey_files=sum(picture.kind.is_grey_file for picture in pictures),
        n_coloured=len(coloured(picture.kind for picture in pictures)),
        n_sizes=len(sizes),
        smallest_px=sizes[0],
        largest_px=sizes[-1],
    )


def test_kinds(dataset: Dataset) -> dict[str, int]:
    """How many images of each kind are kept for testing: good ones first."""
    counts = Counter("good" if sample.label == "good" else sample.kind or "defect" for sample in dataset.test)
    return dict(sorted(counts.items(), key=lambda item: (item[0] != "good", item[0])))


def warnings(pictures: Sequence[Picture], colour: str, dataset: Dataset) -> tuple[str, ...]:
    """One line for each thing that is odd about the images as a set.

    Args:
        pictures: From `look`.
        colour: How they are read: `Preparation.colour`.
        dataset: Where they come from.
    """
    found = (
        *_sizes(pictures),
        *_aspects(pictures),
        *_colours(pictures, colour),
        *_empty(pictures),
        *_frozen(pictures),
        *_transparent(pictures),
        *_no_kinds(pictures, dataset),
    )
    return tuple(found)


def _sizes(pictures: Sequence[Picture]) -> Iterable[str]:
    """Odd is what deviates; where every image has a size of its own, as cut-outs have, that is how they come."""
    counts = Counter(picture.size_px for picture in pictures)
    if len(counts) > 1 and _is_rule(counts, len(pictures)):
        listed = ", ".join(f"{n} of {width}x{height}" for (width, height), n in counts.most_common(4))
        more = f" and {len(counts) - 4} more sizes" if len(counts) > 4 else ""
        yield (
            f"good images of {len(counts)} sizes: {listed}{more}. All are brought to one size, so a defect of one size "
            "looks larger in some than in others: give images of one size, or fit each kind by itself"
        )


def _is_rule(counts: Counter[Any], n: int) -> bool:
    """Whether there is a size that images have as a rule: half of them share it, or few sizes cover all."""
    most = counts.most_common(1)[0][1]
    return most > 1 and (2 * most >= n or n >= 3 * len(counts))


def _aspects(pictures: Sequence[Picture]) -> Iterable[str]:
    aspects = [width / height for width, height in (picture.size_px for picture in pictures)]
    middle = median(aspects) if aspects else 1.0
    compared = zip(pictures, aspects, strict=True)
    off = [picture for picture, aspect in compared if not 1 / _ASPECT < aspect / middle < _ASPECT]
    near = sum(0.98 < aspect / middle < 1.02 for aspect in aspects)
    if off and 2 * near >= len(pictures):
        yield (
            f"{_told(off, pictures, 'has', 'have')} another aspect than the rest{_such_as(off)}: it is not kept, so "
            "these are stretched. Cut them like the others, or fit them by themselves"
        )


def _colours(pictures: Sequence[Picture], colour: str) -> Iterable[str]:
    names = {*coloured(picture.kind for picture in pictures)}
    with_colour = [picture for picture in pictures if picture.kind.name in names]
    without = [picture for picture in pictures if picture.kind.name not in names]
    if colour == "grey" and with_colour:
        yield (
            f"{_told(with_colour, pictures, 'shows', 'show')} colour{_such_as(with_colour)}, and the product is read "
            "as grey: look whether these are good"
        )
    if colour != "grey" and without:
        n_files = sum(picture.kind.is_grey_file for picture in without)
        files = f", {n_files} of them as grey files" if n_files else ""
        yield (
            f"{_told(without, pictures, 'shows', 'show')} no colour{files}{_such_as(without)}, and the product has "
            "some: a change of it cannot be seen in such images. Set the camera to colour"
        )


def _empty(pictures: Sequence[Picture]) -> Iterable[str]:
    for nothing in ("black", "white", "even"):
        found = [picture for picture in pictures if picture.nothing == nothing]
        # Where most are of one level, that is what the product looks like; black is no product.
        if found and (nothing == "black" or 2 * len(found) <= len(pictures)):
            told = {"even": "of one level all over"}.get(nothing, f"{nothing} all over")
            yield f"{_told(found, pictures, 'is', 'are')} {told}{_such_as(found)}: take out what shows no part"


def _frozen(pictures: Sequence[Picture]) -> Iterable[str]:
    showing = sorted((each for each in pictures if not each.nothing), key=lambda each: float(each.print_.mean()))
    levels = np.array([picture.print_.mean() for picture in showing])
    again: dict[Path, Path] = {}
    for index, picture in enumerate(showing):
        for other in showing[index + 1 : int(np.searchsorted(levels, levels[index] + _SAME_PRINT, "right"))]:
            if other.path not in again and picture.repeats(other):
                again[other.path] = picture.path
    if again:
        second, first = next(iter(again.items()))
        repeat = "repeats" if len(again) == 1 else "repeat"
        yield (
            f"{len(again)} of {len(pictures)} good images {repeat} the very shot of another, as "
            f"{shown(second.name)} does that of {shown(first.name)}: a camera that hangs, a line that "
            "stood still, or copies. They teach nothing, and held out they promise too much: take them out"
        )


def _transparent(pictures: Sequence[Picture]) -> Iterable[str]:
    found = [picture for picture in pictures if picture.hidden > _HIDDEN]
    if found:
        share = median(picture.hidden for picture in found)
        yield (
            f"{_told(found, pictures, 'has', 'have')} transparent pixels, {100 * share:.2g} % of them"
            f"{_such_as(found)}: alpha is left out, and what lies beneath it is learnt and judged. Paint over what "
            "does not count, or draw a zone that is ignored"
        )


def _no_kinds(pictures: Sequence[Picture], dataset: Dataset) -> Iterable[str]:
    """Folders that are read as kinds of defect and hold something else, such as thumbnails."""
    kinds: dict[str, list[Path]] = {}
    for sample in dataset.test:
        if sample.label == "defect":
            kinds.setdefault(sample.kind, []).append(sample.image_path)
    kept = sum(sample.label == "good" for sample in dataset.test)
    for kind, paths in kinds.items():
        if why := _why_no_kind(kind, paths, pictures):
            yield (
                f"{shown(kind)}/ holds {len(paths)} image{'' if len(paths) == 1 else 's'} and is read as a kind of "
                f"defect, but {why}; {kept} good images are kept to test against defects. Move it elsewhere if it is "
                "none"
            )


def _why_no_kind(kind: str, paths: Sequence[Path], pictures: Sequence[Picture]) -> str:
    if _NO_KINDS.fullmatch(kind):
        return "its name is not one of a defect"
    smallest = min((picture.size_px for picture in pictures), key=lambda size: size[0] * size[1], default=(0, 0))
    sizes = [(width, height) for height, width in image_sizes(paths)]
    small = [size for size in sizes if 2 * size[0] <= smallest[0] and 2 * size[1] <= smallest[1]]
    if small and 2 * len(small) >= len(sizes):
        width, height = small[0]
        return f"{len(small)} of them, {width}x{height} and the like, are at most half as large as any good image"
    return ""


def _detail(patch: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is finer than 3 pixels, of mean 0."""
    fine = patch - cv2.blur(patch, (3, 3))
    return np.asarray(fine - fine.mean(), np.float32)


def _told(some: Sequence[Picture], of: Sequence[Picture], verb: str, verbs: str) -> str:
    return f"{len(some)} of {len(of)} good images {verb if len(some) == 1 else verbs}"


def _such_as(some: Sequence[Picture]) -> str:
    return f", such as {shown(some[0].path.name)}"
