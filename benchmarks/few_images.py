#!/usr/bin/env python3
"""How many good images are enough: the default fitted on 5, 10, 20 and 50 of them; rows into results/few_images.csv.

    python benchmarks/few_images.py ../shared/data/toothbrush ../shared/data/magnetic_tile [--seeds 0,1,2]

A subset is the beginning of one seeded order of the good images, so that a larger one holds the smaller; a fifth of it
is held out for the threshold, as `makel fit` does. Where a category has fewer images, all of them are taken, and the
row says how many. With `--augment on` the images are augmented in fitting; both are measured unless told otherwise. A
row that is there is not measured again.
"""

import argparse
import inspect
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rows import RESULTS, THREADS, Rows, facts

import makel
from makel.datasets import Dataset, distinct, load

COUNTS = (5, 10, 20, 50)


def subset(dataset: Dataset, count: int, seed: int) -> Dataset:
    """The first `count` of a seeded order of the good images."""
    good = distinct(dataset.good)
    order = np.random.default_rng(seed).permutation(len(good))[:count]
    return replace(dataset, good=tuple(good[index] for index in sorted(order)))


def measure(category: Path, count: int, seed: int, augment: bool) -> dict[str, object]:
    dataset = subset(load(category), count, seed)
    with tempfile.TemporaryDirectory() as folder:
        fitted = makel.fit(dataset, f"{folder}/model", seed=seed, **({"augment": True} if augment else {}))
        evaluation = makel.evaluate(makel.Inspector.load(fitted.path, threads=THREADS), category)
    said = evaluation.to_json()
    return {
        "category": category.name,
        "n_images": len(dataset.good),
        "augment": "on" if augment else "off",
        "seed": seed,
        **{key: said[key] for key in ("image_auroc", "pixel_auroc", "aupro_30", "false_reject_rate", "miss_rate")},
        "p95_ms": said["latency_ms"]["p95"],
        "fit_s": fitted.manifest.fit.seconds["total"],
        "promised_false_reject": fitted.manifest.calibration.promised_false_reject,
        **facts(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--augment", choices=("off", "on", "both"), default="both")
    parser.add_argument("--out", type=Path, default=RESULTS / "few_images.csv")
    args = parser.parse_args()
    modes = {"off": (False,), "on": (True,), "both": (False, True)}[args.augment]
    if True in modes and "augment" not in inspect.signature(makel.fit).parameters:
        sys.exit("this makel.fit takes no `augment`: measure with --augment off")
    torch.set_num_threads(THREADS)
    rows = Rows(args.out, ("category", "n_images", "augment", "seed"))
    for category in args.categories:
        there = len(distinct(load(category).good))
        for seed in map(int, args.seeds.split(",")):
            for count in sorted({min(int(count), there) for count in args.counts.split(",")}):
                for augment in modes:
                    key = {"n_images": count, "augment": "on" if augment else "off", "seed": seed}
                    if not rows.has(category=category.name, **key):
                        rows.add(measure(category, count, seed, augment))


if __name__ == "__main__":
    main()
