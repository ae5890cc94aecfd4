#!/usr/bin/env python3
"""What each choice behind skip_ae's preset `fast` is worth: one row a category and change.

    python benchmarks/study_skip_ae.py ../shared/data/toothbrush ../shared/data/magnetic_tile \
        --turned ../shared/data/toothbrush --crops ../shared/data/toothbrush ../shared/data/magnetic_tile \
        --textures brick.png grass.png gravel.png [--seeds 0]

Two categories are few to decide by, so more sets are made of them and of pictures of surfaces, see `made_sets.py`.
Those measured here are brick, grass and gravel, `skimage/data` of scikit-image's wheel.

Test labels are looked at here, and only here: the study tells what to make the default, so its figures on these sets
flatter that default. Scores are taken in PyTorch from cached half-precision features, which moves them in the fourth
digit against `makel evaluate`; maps are compared at 256x256.
"""

import argparse
import csv
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from made_sets import add_arguments, make_all, read_mask
from torch import Tensor

from makel.datasets import Dataset, load, split
from makel.evaluation.metrics import PixelCurves, rank_images
from makel.images import Preparation, decode_all
from makel.methods.layers import to_side
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


class GeometricMean(SkipAE):
    """Scores that are not measured by how good images differ: the geometric mean of those of the maps."""

    def score(self, features):
        usual, self.usual = self.usual, None
        scores = super().score(features)
        self.usual = usual
        return scores


class Unpadded(SkipAE):
    """Neighbourhoods at the border are means of what there is."""

    @staticmethod
    def mean(residual: Tensor) -> Tensor:
        return F.avg_pool2d(residual, 3, 1, 1, count_include_pad=False)

    def _seen(self, key, residuals):
        if key[0] != "patch":
            return super()._seen(key, residuals)
        return torch.cat([to_side(self.mean(residual), self._shapes[key[1]][1]) for residual in residuals], 1)


class SinglePositions(Unpadded):
    """Levels are joined as they are, not averaged over neighbourhoods."""

    @staticmethod
    def mean(residual: Tensor) -> Tensor:
        return residual


class Alike(SkipAE):
    """Wholes count as much as the nearest, however much they vary within good images."""

    def _weigh(self, *args) -> None:
        alike = self.weights.clone()
        super()._weigh(*args)
        self.weights.copy_(alike)


WIDE = {"widths": (64, 96, 128), "skips": (16, 32), "updates": 200, "most_epochs": 0}
WHERE = {"device": torch.device("cpu"), "progress": lambda *_: None}
VARIANTS = {
    # name: (detector, changes to the preset)
    "default": (SkipAE, {}),
    "Gaussians": (SkipAE, {"residual": "gaussian"}),
    "Gaussians, blocks 2-4": (SkipAE, {"residual": "gaussian", "blocks": (2, 3, 4)}),
    "Gaussians, blocks 1-4": (SkipAE, {"residual": "gaussian", "blocks": (1, 2, 3, 4)}),
    "nearest": (SkipAE, {"residual": "nearest"}),
    "wholes and nearest": (SkipAE, {"residual": "whole"}),
    "wholes and nearest, blocks 1-4": (SkipAE, {"residual": "whole", "blocks": (1, 2, 3, 4)}),
    "wholes and nearest, no zeros at borders": (Unpadded, {"residual": "whole"}),
    "wholes and nearest, single positions": (SinglePositions, {"residual": "whole"}),
    "wholes and nearest, geometric mean": (GeometricMean, {"residual": "whole"}),
    "wholes and nearest, alike": (Alike, {"residual": "whole"}),
    "wholes and nearest, bank of 2048": (SkipAE, {"residual": "whole", "bank": 2048}),
    "equation 2 as it is": (SkipAE, {"residual": "l2"}),
    "no autoencoder": (FeaturesAlone, {"epochs": 1}),
    "no skips": (SkipAE, {"skips": (0, 0)}),
    "wide, both skips, 200 updates": (SkipAE, WIDE),
}

DECIDED_BY = (
    "default",
    "Gaussians",
    "nearest",
    "wholes and nearest, no zeros at borders",
    "wholes and nearest, single positions",
    "wholes and nearest, geometric mean",
    "wholes and nearest, alike",
)
"""What is measured on sets that were made: the ways to read."""


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
        mask = read_mask(sample.mask_path) if sample.mask_path else np.zeros((1, 1), np.uint8)
        small = cv2.resize(mask, (256, 256), interpolation=cv2.INTER_NEAREST_EXACT)
        found.append(cv2.connectedComponents(small, connectivity=8)[1] if small.any() else None)
    return found


def study(category: Path, seed: int, folder: Path, variants: Iterable[str] = VARIANTS) -> list[dict[str, object]]:
    dataset = load(category)
    regions, labels = regions_of(dataset), [sample.label for sample in dataset.test]
    parts = split(dataset, seed=seed)
    preparation = Preparation.of(decode_all(sample.image_path for sample in parts.fit), shape=(256, 256))
    rows = []
    extracted: dict[tuple[int, ...], list] = {}
    for name in variants:
        detector_class, changes = VARIANTS[name]
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
        chosen = {"residual": detector.settled.residual}
        figures = {key: round(value, 5) for key, value in measured.items()}
        rows.append({"category": category.name, "seed": seed, "variant": name, **chosen, **figures})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="*")
    add_arguments(parser)
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
        made = make_all(args, Path(folder))
        rows = [
            {**row, **facts}
            for category in (*args.categories, *made)
            for seed in args.seeds.split(",")
            for row in study(category, int(seed), Path(folder), DECIDED_BY if category in made else VARIANTS)
        ]
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
