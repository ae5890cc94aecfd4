#!/usr/bin/env python3
"""Sets made of others, in MVTec layout: what the default is decided on must not be two categories alone.

    python benchmarks/made_sets.py OUT --turned ../shared/data/toothbrush \
        --crops ../shared/data/toothbrush ../shared/data/magnetic_tile --textures brick.png grass.png gravel.png

    turned      a part that lies anywhere: every image turned by any angle and moved
    crops       half to six tenths of every image, taken anywhere, so that nothing lies alike
    textures    crops of one picture of a surface, with made-up defects of five kinds; good ones to test on come from
                another part of the picture than those to learn from

All draw from one seed (`--seed`). The study of skip_ae makes them for itself; written out, `peers.py` takes them too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from makel.datasets import load
from makel.images import read

TURNS, CROPS = 4, 4
"""Images made of each good one of a category of few."""
MANY = 200
"""A category of so many good images gives one crop of each."""
SIDE = 256


def turned(category: Path, out: Path, seed: int = 0) -> Path:
    """A category whose part lies anywhere, four images made of each good one."""
    dataset, rng = load(category), np.random.default_rng(seed)
    out = out / f"{category.name}, turned"

    def turn_of(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(0, 360), 0.8)
        turn[:, 2] += rng.uniform(-0.04, 0.04, 2) * (width, height)
        return turn

    def turn(image: np.ndarray, by: np.ndarray, *, mask: bool = False) -> np.ndarray:
        flags = cv2.INTER_NEAREST if mask else cv2.INTER_LINEAR
        border = cv2.BORDER_CONSTANT if mask else cv2.BORDER_REPLICATE
        return cv2.warpAffine(image, by, image.shape[1::-1], flags=flags, borderMode=border)

    for sample in dataset.good:
        image = read(sample.image_path)
        for copy in range(TURNS):
            _write(out / "train" / "good" / f"{sample.image_path.stem}_{copy}.png", turn(image, turn_of(image)))
    for index, sample in enumerate(dataset.test):
        image = read(sample.image_path)
        by = turn_of(image)
        _write(out / "test" / sample.kind / f"{index:03d}.png", turn(image, by))
        if sample.mask_path:
            mask = turn(read_mask(sample.mask_path), by, mask=True)
            _write(out / "ground_truth" / sample.kind / f"{index:03d}_mask.png", mask)
    return out


def crops(category: Path, out: Path, seed: int = 0) -> Path:
    """Parts of images; of a defective one a part that holds at least half of the defect."""
    dataset, rng = load(category), np.random.default_rng(seed)
    out = out / f"{category.name}, crops"

    def part(image: np.ndarray) -> tuple[slice, slice]:
        share = rng.uniform(0.5, 0.6)
        sides = [int(side * share) for side in image.shape[:2]]
        starts = [rng.integers(0, whole - side + 1) for whole, side in zip(image.shape[:2], sides, strict=True)]
        rows, columns = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
        return rows, columns

    for sample in dataset.good:
        image = read(sample.image_path)
        for copy in range(1 if len(dataset.good) >= MANY else CROPS):
            _write(out / "train" / "good" / f"{sample.image_path.stem}_{copy}.png", image[part(image)])
    for index, sample in enumerate(dataset.test):
        image = read(sample.image_path)
        mask = read_mask(sample.mask_path) if sample.mask_path else None
        if sample.label == "defect" and (mask is None or not mask.any()):
            continue
        parts = (part(image) for _ in range(200))
        taken = next((each for each in parts if mask is None or 2 * mask[each].sum() >= mask.sum()), None)
        if taken is None:  # a defect that no such part holds
            continue
        _write(out / "test" / sample.kind / f"{index:03d}.png", image[taken])
        if mask is not None:
            _write(out / "ground_truth" / sample.kind / f"{index:03d}_mask.png", mask[taken])
    return out


def texture(picture: Path, other: Path, out: Path, seed: int = 0) -> Path:
    """A surface: 100 good crops to learn from, 40 to test on, and 20 of each kind of defect; `other` gives patches."""
    rng = np.random.default_rng(seed)
    surface, strange = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in (picture, other))
    out = out / f"{picture.stem}, crops"
    side = 11 * surface.shape[0] // 32

    def crop(of: np.ndarray, first: float, last: float) -> np.ndarray:
        """From between these shares of the width, mirrored or not, a little lighter or darker."""
        x = rng.integers(int(first * of.shape[1]), int(last * of.shape[1]) - side + 1)
        y = rng.integers(0, of.shape[0] - side + 1)
        taken = np.ascontiguousarray(of[y : y + side, x : x + side][:, :: rng.choice([-1, 1])])
        taken = cv2.resize(taken, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        return taken * rng.normal(1, 0.03) + rng.normal(0, 3)

    def save(path: str, image: np.ndarray) -> None:
        _write(out / path, np.clip(image + rng.normal(0, 1.5, image.shape), 0, 255).astype(np.uint8))

    for index in range(100):
        save(f"train/good/{index:03d}.png", crop(surface, 0, 0.645))
    for index in range(40):
        save(f"test/good/{index:03d}.png", crop(surface, 0.625, 1))
    for kind in ("scratch", "spot", "stain", "patch", "smear"):
        for index in range(20):
            image, mask = _spoil(crop(surface, 0.625, 1), kind, crop(strange, 0, 1), rng)
            save(f"test/{kind}/{index:03d}.png", image)
            _write(out / "ground_truth" / kind / f"{index:03d}_mask.png", mask)
    return out


def _spoil(
    image: np.ndarray, kind: str, strange: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An image with a defect of a kind, and its mask."""
    mask = np.zeros(image.shape, np.uint8)
    at = rng.integers(40, SIDE - 40, 2)

    def ellipse(least: int, most: int) -> None:
        cv2.ellipse(mask, at.tolist(), rng.integers(least, most, 2).tolist(), rng.uniform(0, 180), 0, 360, 1, -1)

    def soft(blur: float) -> np.ndarray:
        return cv2.GaussianBlur(mask.astype(np.float32), (0, 0), blur)

    if kind == "scratch":
        for _ in range(3):
            to = np.clip(at + rng.integers(-25, 26, 2), 5, SIDE - 6)
            cv2.line(mask, at.tolist(), to.tolist(), 1, int(rng.integers(2, 4)))
            at = to
        weight, new = soft(0.7), image.mean() + rng.choice([-60, 60])
    elif kind == "spot":
        cv2.circle(mask, at.tolist(), int(rng.integers(4, 9)), 1, -1)
        weight, new = 0.8 * soft(1), image.mean() + rng.choice([-50, 50])
    elif kind == "stain":
        ellipse(18, 45)
        weight, new = 0.25 * soft(5), 0.0
    elif kind == "patch":
        ellipse(10, 22)
        weight, new = soft(1.5), (strange - strange.mean()) / strange.std() * image.std() + image.mean()
    else:
        ellipse(14, 28)
        weight, new = soft(2), cv2.GaussianBlur(image, (0, 0), 4)
    return image * (1 - weight) + weight * new, 255 * mask


def read_mask(path: Path) -> np.ndarray:
    """(H, W) uint8, 255 on the defect."""
    mask = read(path)
    return 255 * ((mask if mask.ndim == 2 else mask.max(-1)) > 0).astype(np.uint8)


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What sets are made of."""
    parser.add_argument("--turned", type=Path, nargs="*", default=[], help="categories whose images are turned")
    parser.add_argument("--crops", type=Path, nargs="*", default=[], help="categories that crops are taken of")
    parser.add_argument("--textures", type=Path, nargs="*", default=[], help="pictures of surfaces, two at least")


def make_all(args: argparse.Namespace, out: Path, seed: int = 0) -> list[Path]:
    """The folders of all sets asked for."""
    return [
        *(turned(each, out, seed) for each in args.turned),
        *(crops(each, out, seed) for each in args.crops),
        *(texture(each, args.textures[index - 1], out, seed) for index, each in enumerate(args.textures)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="what is drawn")
    args = parser.parse_args()
    for made in make_all(args, args.out, args.seed):
        print(made)


if __name__ == "__main__":
    main()
