#!/usr/bin/env python3
"""What each choice behind skip_ae's preset `fast` is worth: one row a category and change.

    python benchmarks/study_skip_ae.py ../shared/data/toothbrush ../shared/data/magnetic_tile \
        --turned ../shared/data/toothbrush [--seeds 0]

Test labels are looked at here, and only here: the study tells what to make the default, so its figures on these
categories flatter that default. Scores are taken in PyTorch from cached half-precision features, which moves them in
the fourth digit against `makel evaluate`; maps are compared at 256x256.
"""

import argparse
import csv
import os
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from makel.datasets import Dataset, load, split
from makel.evaluation.metrics import PixelCurves, rank_images
from makel.images import Preparation, decode_all, read
from makel.methods.skip_ae import Config, SkipAE
from makel.training.features import extract
from makel.training.fit import build_detector
from makel.training.loop import train

RESULTS = Path(__file__).parent / "results" / "study_skip_ae.csv"


class FeaturesAlone(SkipAE):
    """The same readings of the features themselves: what is left when the autoencoder is taken out."""

    def optimizers(self, steps: int) -> dict:  # noqa: ARG002
        return {}

    def training_step(self, features):  # noqa: ARG002
        yield from ()

    def residuals(self, features) -> list[Tensor]:
        return self._levels(features)


WIDE = {"widths": (64, 96, 128), "skips": (16, 32), "updates": 200}
WHERE = {"device": torch.device("cpu"), "progress": lambda *_: None}
VARIANTS = {
    # name: (detector, changes to the preset)
    "default": (SkipAE, {}),
    "Gaussians": (SkipAE, {"residual": "gaussian"}),
    "Gaussians, fine levels": (SkipAE, {"residual": "gaussian", "read": (0, 1)}),
    "Gaussians, coarse levels": (SkipAE, {"residual": "gaussian", "read": (1, 2)}),
    "nearest": (SkipAE, {"residual": "nearest"}),
    "nearest, fine levels": (SkipAE, {"residual": "nearest", "read": (0, 1)}),
    "nearest, coarse levels": (SkipAE, {"residual": "nearest", "read": (1, 2)}),
    "wholes and nearest": (SkipAE, {"residual": "whole"}),
    "wholes and nearest, fine levels": (SkipAE, {"residual": "whole", "read": (0, 1)}),
    "wholes and nearest, bank of 2048": (SkipAE, {"residual": "whole", "bank": 2048}),
    "equation 2 as it is": (SkipAE, {"residual": "l2"}),
    "no autoencoder": (FeaturesAlone, {"epochs": 1}),
    "no skips": (SkipAE, {"skips": (0, 0)}),
    "wide, both skips, 200 updates": (SkipAE, WIDE),
    "blocks 1-3": (SkipAE, {"blocks": (1, 2, 3)}),
}


def measure(labels: list[str], scores: np.ndarray, maps: Tensor, regions: list) -> dict[str, float]:
    defect = np.array([label == "defect" for label in labels])
    curves = PixelCurves()
    for index, found in enumerate(regions):
        if defect[index] and found is None:
            continue
        curves.add(np.ascontiguousarray(maps[index, 0].numpy()), found)
    image, pixel = rank_images(scores[~defect], scores[defect]), curves.results()
    return {"image_auroc": image.auroc, "pixel_auroc": pixel.auroc, "aupro_30": pixel.aupro_30}


def regions_of(dataset: Dataset) -> list:
    found = []
    for sample in dataset.test:
        mask = read(sample.mask_path) if sample.mask_path else np.zeros((1, 1), np.uint8)
        mask = (mask if mask.ndim == 2 else mask.max(-1)) > 0
        small = cv2.resize(mask.astype(np.uint8), (256, 256), interpolation=cv2.INTER_NEAREST_EXACT)
        found.append(cv2.connectedComponents(small, connectivity=8)[1] if small.any() else None)
    return found


def turned(category: Path, out: Path) -> Path:
    """A category whose part lies anywhere: every image turned by any angle and moved, four times each good one."""
    dataset, rng = load(category), np.random.default_rng(0)
    out = out / f"{category.name} turned"

    def write(path: Path, image: np.ndarray, turn: np.ndarray, *, mask: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = cv2.INTER_NEAREST if mask else cv2.INTER_LINEAR
        border = cv2.BORDER_CONSTANT if mask else cv2.BORDER_REPLICATE
        image = cv2.warpAffine(image, turn, image.shape[1::-1], flags=flags, borderMode=border)
        cv2.imwrite(str(path), image if image.ndim == 2 else image[..., ::-1])

    def turn_of(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(0, 360), 0.8)
        turn[:, 2] += rng.uniform(-0.04, 0.04, 2) * (width, height)
        return turn

    for sample in dataset.good:
        image = read(sample.image_path)
        for copy in range(4):
            write(out / "train" / "good" / f"{sample.image_path.stem}_{copy}.png", image, turn_of(image))
    for index, sample in enumerate(dataset.test):
        image = read(sample.image_path)
        turn = turn_of(image)
        write(out / "test" / sample.kind / f"{index:03d}.png", image, turn)
        if sample.mask_path:
            mask = read(sample.mask_path)
            mask = 255 * ((mask if mask.ndim == 2 else mask.max(-1)) > 0).astype(np.uint8)
            write(out / "ground_truth" / sample.kind / f"{index:03d}_mask.png", mask, turn, mask=True)
    return out


def study(category: Path, seed: int, folder: Path) -> list[dict[str, object]]:
    dataset = load(category)
    regions, labels = regions_of(dataset), [sample.label for sample in dataset.test]
    parts = split(dataset, seed=seed)
    preparation = Preparation.of(decode_all(sample.image_path for sample in parts.fit))
    rows = []
    extracted: dict[tuple[int, ...], list] = {}
    for name, (detector_class, changes) in VARIANTS.items():
        config = Config.preset("fast", **changes)
        detector = build_detector(detector_class, config, seed)
        if config.blocks not in extracted:
            extracted[config.blocks] = [
                extract(detector, [s.image_path for s in samples], preparation, **WHERE, folder=folder)
                for samples in (parts.fit, dataset.test)
            ]
        good, test = extracted[config.blocks]
        train(detector, good.cache, seed=seed, progress=WHERE["progress"])
        with torch.no_grad():
            scored = [detector.scores(features) for features in test.cache]
        scores, maps = torch.cat([each.image for each in scored]), torch.cat([each.anomaly_map for each in scored])
        measured = measure(labels, scores.numpy(), maps, regions)
        chosen = {"residual": detector.settled.residual, "read": " ".join(map(str, detector.settled.read))}
        figures = {key: round(value, 5) for key, value in measured.items()}
        rows.append({"category": category.name, "seed": seed, "variant": name, **chosen, **figures})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="*")
    parser.add_argument("--turned", type=Path, nargs="*", default=[], help="categories to turn and move first")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(2)
    facts = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": " ".join(f"{name} {version(name)}" for name in ("makel", "torch", "timm", "numpy")),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip(),
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {**row, **facts}
            for category in (*args.categories, *(turned(each, Path(folder)) for each in args.turned))
            for seed in args.seeds.split(",")
            for row in study(category, int(seed), Path(folder))
        ]
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
