"""Products made up for the demonstration and the tests: seeded, with labelled defects and exact masks.

surface    relief, colour and gloss of a surface, and the picture a camera takes of it
products   the surfaces without a fault
defects    what happens to them
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.datasets import mvtec_ad
from makel.datasets.dataset import Dataset
from makel.datasets.synthetic import defects, products
from makel.datasets.synthetic.surface import SUPERSAMPLING, Surface, photograph, truth
from makel.errors import DatasetError, UsageError
from makel.images import shown

PRODUCTS = {
    # product: the kinds of defect it can have
    "flange": ("scratch", "hole", "stain", "dent", "missing"),
    "brushed_metal": ("scratch", "hole", "stain", "dent", "missing"),
    "weave": ("hole", "stain", "missing"),
}
_MIN_SIZE_PX = 64
_DEFECTS: dict[str, Callable[[Surface, np.random.Generator, float], None]] = {
    "scratch": defects.scratch,
    "hole": defects.hole,
    "stain": defects.stain,
    "dent": defects.dent,
}
_FIT, _TEST = 0, 1


def write(
    root: str | os.PathLike[str],
    *,
    product: str = "flange",
    n_fit: int = 40,
    n_good: int = 10,
    n_defect: int = 20,
    size_px: int = 256,
    seed: int = 0,
) -> Dataset:
    """Make up one product and write it in the MVTec AD layout, as PNG.

    Args:
        root: The folder to write; it is made, and must be empty if it is there.
        product: "flange", "brushed_metal" or "weave".
        n_fit: Good images to fit on.
        n_good: Good images to test on.
        n_defect: Images of defects to test on, shared out evenly over the kinds in `PRODUCTS`, and within a kind spread
            from faint to plain.
        size_px: Side of the images in pixels, at least 64.
        seed: Same arguments, same pictures. A longer series begins with the same good pictures as a shorter one.

    Returns:
        What was written, as `makel.datasets.load` reads it.

    Raises:
        UsageError: An unknown product, a negative number, or a size below 64.
        DatasetError: `root` holds something already.
    """
    if product not in PRODUCTS:
        raise UsageError(f"product {product!r} is unknown; it can be {', '.join(PRODUCTS)}")
    if min(n_fit, n_good, n_defect) < 0 or size_px < _MIN_SIZE_PX:
        raise UsageError(
            f"n_fit={n_fit}, n_good={n_good}, n_defect={n_defect}, size_px={size_px}; numbers from 0 and a size of at "
            f"least {_MIN_SIZE_PX} were expected"
        )
    folder = Path(root)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{shown(folder)} is there already: give a new or empty folder, nothing is overwritten")
    (folder / "train" / "good").mkdir(parents=True)
    for index in range(n_fit):
        picture, _ = render(product, np.random.default_rng([seed, _FIT, index]), size_px=size_px)
        _save(folder / "train" / "good" / f"{index:03}.png", picture)
    for index in range(n_good):
        picture, _ = render(product, np.random.default_rng([seed, _TEST, index]), size_px=size_px)
        _save(folder / "test" / "good" / f"{index:03}.png", picture)
    kinds = PRODUCTS[product]
    for index in range(n_defect):
        turn, which = divmod(index, len(kinds))
        n_of_kind = len(range(which, n_defect, len(kinds)))
        rng = np.random.default_rng([seed, _TEST, index, which])
        severity = (turn + 0.5) / n_of_kind
        picture, mask = render(product, rng, kind=kinds[which], severity=severity, size_px=size_px)
        _save(folder / "test" / kinds[which] / f"{turn:03}.png", picture)
        _save(folder / "ground_truth" / kinds[which] / f"{turn:03}_mask.png", mask)
    return mvtec_ad.read(folder)


def render(
    product: str, rng: np.random.Generator, *, kind: str = "good", severity: float = 1.0, size_px: int = 256
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One picture and its mask.

    Args:
        product: One of `PRODUCTS`.
        rng: What makes this part differ from the next.
        kind: "good", or one of the product's kinds of defect.
        severity: From 0, faint, to 1, plain. A missing feature is plain in any case.
        size_px: Side of the picture in pixels.

    Returns:
        (size_px, size_px, 3) uint8 RGB, and (size_px, size_px) uint8, 255 where the defect is.
    """
    build = {"flange": products.flange, "brushed_metal": products.brushed_metal, "weave": products.weave}[product]
    surface = build(SUPERSAMPLING * size_px, rng, missing=kind == "missing")
    if kind in _DEFECTS:
        _DEFECTS[kind](surface, rng, severity)
    return photograph(surface, rng), truth(surface)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    path.write_bytes(encoded.tobytes())  # not imwrite, which fails on names outside the code page on Windows
