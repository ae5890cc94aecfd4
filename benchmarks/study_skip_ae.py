#!/usr/bin/env python3
"""What each choice behind skip_ae's preset `fast` is worth: one row a category, autoencoder and way to join levels.

    python benchmarks/study_skip_ae.py ../shared/data/toothbrush ../shared/data/magnetic_tile [--seeds 0]

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
import torch.nn.functional as F
from torch import Tensor

from makel.datasets import Dataset, load, split
from makel.evaluation.metrics import PixelCurves, rank_images
from makel.images import Preparation, decode_all, read
from makel.methods.layers import to_side, top_mean
from makel.methods.skip_ae import Config, SkipAE
from makel.training.features import FeatureCache, extract
from makel.training.fit import build_detector
from makel.training.loop import train

RESULTS = Path(__file__).parent / "results" / "study_skip_ae.csv"


class FeaturesAlone(SkipAE):
    """The same Gaussians over the features themselves: what is left when the autoencoder is taken out."""

    def optimizers(self, steps: int) -> dict:  # noqa: ARG002
        return {}

    def training_step(self, features):  # noqa: ARG002
        yield from ()

    def residuals(self, features) -> list[Tensor]:
        return self._levels(features)


WIDE = {"widths": (64, 96, 128), "skips": (16, 32), "updates": 200}
VARIANTS = {
    # name: (detector, changes to the preset)
    "default": (SkipAE, {}),
    "no autoencoder": (FeaturesAlone, {"epochs": 1}),
    "no skips": (SkipAE, {"skips": (0, 0)}),
    "both skips": (SkipAE, {"skips": (16, 16)}),
    "wide, both skips, 200 updates": (SkipAE, WIDE),
    "blocks 1-3": (SkipAE, {"blocks": (1, 2, 3)}),
    "residual not whitened": (SkipAE, {"residual": "l2"}),
}
JOINS = {
    # name: levels' maps (L, N, 1, S, S) to one
    "arithmetic": lambda maps: maps.mean(0),
    "geometric": lambda maps: maps.clamp_min(1e-6).log().mean(0).exp(),
    "harmonic": lambda maps: 1 / (1 / maps.clamp_min(1e-6)).mean(0),
}


def measure(labels: list[str], scores: np.ndarray, maps: Tensor, regions: list) -> dict[str, float]:
    defect = np.array([label == "defect" for label in labels])
    curves = PixelCurves()
    for index, found in enumerate(regions):
        if defect[index] and found is None:
            continue
        full = F.interpolate(maps[index : index + 1], (256, 256), mode="bilinear")[0, 0].numpy()
        curves.add(np.ascontiguousarray(full), found)
    image, pixel = rank_images(scores[~defect], scores[defect]), curves.results()
    return {"image_auroc": image.auroc, "pixel_auroc": pixel.auroc, "aupro_30": pixel.aupro_30}


def level_maps(detector: SkipAE, cache: FeatureCache) -> list[Tensor]:
    parts = []
    with torch.no_grad():
        for features in cache:
            residuals = detector.residuals(features)
            if detector.gaussians:
                parts.append([gaussian(each) for gaussian, each in zip(detector.gaussians, residuals, strict=True)])
            else:
                parts.append([each.square().sum(1, keepdim=True).sqrt() for each in residuals])
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def regions_of(dataset: Dataset) -> list:
    found = []
    for sample in dataset.test:
        mask = read(sample.mask_path) if sample.mask_path else np.zeros((1, 1), np.uint8)
        mask = (mask if mask.ndim == 2 else mask.max(-1)) > 0
        small = cv2.resize(mask.astype(np.uint8), (256, 256), interpolation=cv2.INTER_NEAREST_EXACT)
        found.append(cv2.connectedComponents(small, connectivity=8)[1] if small.any() else None)
    return found


def study(category: Path, seed: int, folder: Path) -> list[dict[str, object]]:
    dataset = load(category)
    regions, labels = regions_of(dataset), [sample.label for sample in dataset.test]
    parts = split(dataset, seed=seed)
    paths = [sample.image_path for sample in (*parts.fit, *dataset.test)]
    caches: dict[tuple[int, ...], FeatureCache] = {}
    rows = []
    for name, (detector_class, changes) in VARIANTS.items():
        config = Config.preset("fast", **changes)
        detector = build_detector(detector_class, config, seed)
        if config.blocks not in caches:
            preparation = Preparation.of(decode_all(paths[: len(parts.fit)]), size=config.size)
            caches[config.blocks] = extract(
                detector, paths, preparation, device=torch.device("cpu"), folder=folder, progress=lambda *_: None
            ).cache
        cache, n_fit = caches[config.blocks], len(parts.fit)
        train(detector, cache.subset(range(n_fit)), seed=seed, progress=lambda *_: None)
        maps = level_maps(detector, cache.subset(range(n_fit, len(cache))))
        stacked = torch.stack([to_side(each, maps[0].shape[-1]) for each in maps])
        tops = torch.stack([top_mean(each, config.top) for each in maps])
        levels = tops.clamp_min(1e-6).log().mean(0).exp()
        # Ways to join the levels are compared on the default alone.
        for join in JOINS if name == "default" else ("harmonic",):
            joined = JOINS[join](stacked)
            scores = {"geometric mean of levels": levels}
            if name == "default":
                scores["joined map"] = top_mean(joined, config.top)
            for pooled, score in scores.items():
                measured = measure(labels, score.numpy(), joined, regions)
                rows.append(
                    {
                        "category": category.name,
                        "seed": seed,
                        "variant": name,
                        "map": join,
                        "score": pooled,
                        **{key: round(value, 5) for key, value in measured.items()},
                    }
                )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+")
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
            for category in args.categories
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
