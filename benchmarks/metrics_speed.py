#!/usr/bin/env python3
"""Pixel metrics against scikit-learn: seconds, memory and the last digits, one row a run into a results file.

    python benchmarks/metrics_speed.py [--maps 1725] [--seeds 0]

As many maps of 256x256 as MVTec AD has test images, 467 of them good, are made one by one from a seed: smooth float32
fields, bilinear from 32x32, raised on a few connected regions that take about 3 % of a map. Two processes see the same
maps:

- ours is handed each map with its numbered regions, as a model would give them, three times over from the start; the
  median counts, from the first `add` to the `results`, making the maps not inside;
- scikit-learn's roc_auc_score gets all pixels in one array, and gives one of our five numbers.

The second process also works out all five from a full sort and every single threshold, which shares no line with what
is measured; `error` is the largest difference. CPU seconds stand beside wall seconds, since other work on the machine
stretches the latter. Memory is a process's peak resident size: ours holds one map at a time, scikit-learn's all pixels.
"""

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from makel.evaluation.metrics import AUPRO_LIMIT, AUPRO_STRICT_LIMIT, PixelCurves

RESULTS = Path(__file__).parent / "results" / "metrics_speed.csv"
SIZE, FIELD = 256, 32
GOOD_SHARE = 467 / 1725  # of the test images of MVTec AD
NUMBERS = ("auroc", "ap", "f1_max", "aupro_30", "aupro_05")
REPEATS = 3
CHUNK = 1 << 22


def maps(n: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """(H, W) float32 scores and (H, W) int32 regions, None on a good map."""
    rng = np.random.default_rng(seed)
    good = rng.permutation(n) < round(n * GOOD_SHARE)
    for index in range(n):
        field = cv2.GaussianBlur(rng.gamma(4, 0.08, (FIELD, FIELD)), (0, 0), 1.0)
        regions = None
        if not good[index]:
            mask = np.zeros((SIZE, SIZE), np.uint8)
            for _ in range(rng.integers(1, 5)):
                centre, axes = rng.integers(20, SIZE - 20, 2).tolist(), rng.integers(5, 26, 2).tolist()
                cv2.ellipse(mask, centre, axes, rng.uniform(0, 180), 0, 360, 1, -1)
            field += rng.gamma(3, 0.2) * cv2.resize(mask.astype(float), (FIELD, FIELD), interpolation=cv2.INTER_AREA)
            regions = cv2.connectedComponents(mask, connectivity=8, ltype=cv2.CV_32S)[1]
        yield cv2.resize(np.float32(field), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR), regions


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def ours(n: int, seed: int) -> dict[str, float]:
    wall, cpu = [], []
    for _ in range(REPEATS):
        curves = PixelCurves()
        wall.append(0.0)
        cpu.append(0.0)
        for scores, regions in maps(n, seed):
            began, began_cpu = time.perf_counter(), time.process_time()
            curves.add(scores, regions)
            cpu[-1] += time.process_time() - began_cpu
            wall[-1] += time.perf_counter() - began
        began, began_cpu = time.perf_counter(), time.process_time()
        found = curves.results()
        cpu[-1] += time.process_time() - began_cpu
        wall[-1] += time.perf_counter() - began
    return {
        **{name: getattr(found, name) for name in NUMBERS},
        "n_good": found.n_good,
        "n_defect": found.n_defect,
        "n_regions": found.n_regions,
        "exact": found.exact,
        "s": median(wall),
        "cpu_s": median(cpu),
        "peak_mb": round(peak_mb()),
    }


def theirs(n: int, seed: int) -> dict[str, float]:
    from sklearn.metrics import roc_auc_score

    scores = np.empty(n * SIZE * SIZE, np.float32)
    areas_px = np.zeros(n * SIZE * SIZE, np.int32)  # of the region that a pixel belongs to
    for index, (anomaly_map, regions) in enumerate(maps(n, seed)):
        part = slice(index * SIZE * SIZE, (index + 1) * SIZE * SIZE)
        scores[part] = anomaly_map.ravel()
        if regions is not None:
            areas_px[part] = np.where(regions, np.bincount(regions.ravel())[regions], 0).ravel()
    labels = (areas_px > 0).astype(np.uint8)
    began, began_cpu = time.perf_counter(), time.process_time()
    auroc = float(roc_auc_score(labels, scores))
    cpu_s, wall_s = time.process_time() - began_cpu, time.perf_counter() - began
    peak = peak_mb()
    return {"auroc": auroc, "s": wall_s, "cpu_s": cpu_s, "peak_mb": round(peak)} | {
        f"exact_{name}": value for name, value in every_threshold(scores, areas_px).items()
    }


def every_threshold(scores: np.ndarray, areas_px: np.ndarray) -> dict[str, float]:
    """The five numbers from the full curves, every different score of every pixel a threshold."""
    n_good, n_defect = np.count_nonzero(areas_px == 0), np.count_nonzero(areas_px)
    n_regions = sum(
        float(np.sum(1 / part[part > 0])) for part in np.split(areas_px, range(CHUNK, areas_px.size, CHUNK))
    )
    order = np.argsort(-scores)
    totals = dict.fromkeys(NUMBERS, 0.0)
    last = np.zeros((3, 2))  # good pixels, defect pixels and regions, up to the last threshold and up to the last pixel
    for start in range(0, order.size, CHUNK):
        ahead = scores[order[start : start + CHUNK + 1]]
        areas = areas_px[order[start : start + CHUNK]]
        steps = np.stack([areas == 0, areas > 0, np.divide(1, areas, out=np.zeros(areas.size), where=areas > 0)])
        sums = last[:, -1:] + np.cumsum(steps, axis=1)
        ends = np.ones(areas.size, bool)  # where the next score differs
        ends[: ahead.size - 1] = ahead[1:] != ahead[:-1]
        points = np.concatenate([last[:, :1], sums[:, ends]], axis=1)
        fpr, tpr, overlap = points / [[n_good], [n_defect], [n_regions]]
        precision = points[1, 1:] / (points[0, 1:] + points[1, 1:])
        totals["auroc"] += float(np.trapezoid(tpr, fpr))
        totals["ap"] += float(np.sum(np.diff(tpr) * precision))
        f1 = 2 * points[1, 1:] / (points[0, 1:] + points[1, 1:] + n_defect)
        totals["f1_max"] = max(totals["f1_max"], float(f1.max(initial=0)))
        for name, limit in (("aupro_30", AUPRO_LIMIT), ("aupro_05", AUPRO_STRICT_LIMIT)):
            end = int(np.searchsorted(fpr, limit))
            totals[name] += float(np.trapezoid(overlap[:end], fpr[:end])) / limit
            if 0 < end < fpr.size:  # the limit lies between two points
                share = (limit - fpr[end - 1]) / (fpr[end] - fpr[end - 1])
                rise = overlap[end] - overlap[end - 1]
                totals[name] += (limit - fpr[end - 1]) * (overlap[end - 1] + share * rise / 2) / limit
        last = np.stack([points[:, -1], sums[:, -1]], axis=1)
    return totals


def measure(n: int, seed: int) -> dict[str, object]:
    results = []
    for job in (ours, theirs):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # a fresh process has its own peak
            results.append(pool.submit(job, n, seed).result())
    our, their = results
    return {
        "maps": n,
        "pixels": n * SIZE * SIZE,
        "seed": seed,
        **{key: our[key] for key in ("n_good", "n_defect", "n_regions", *NUMBERS, "exact")},
        "error": float(max(abs(our[name] - their[f"exact_{name}"]) for name in NUMBERS)),
        "error_of_sklearn": abs(their["auroc"] - their["exact_auroc"]),
        **{f"{key}": round(our[key], 3) for key in ("s", "cpu_s", "peak_mb")},
        **{f"sklearn_{key}": round(their[key], 3) for key in ("s", "cpu_s", "peak_mb")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": json.dumps({name: version(name) for name in ("makel", "numpy", "scikit-learn")}),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", default="1725", help="numbers of maps, such as 100,1725")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = [measure(int(n), int(seed)) for n in args.maps.split(",") for seed in args.seeds.split(",")]
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print({key: row[key] for key in ("pixels", "error", "s", "cpu_s", "sklearn_s", "sklearn_cpu_s", "peak_mb")})


if __name__ == "__main__":
    main()
