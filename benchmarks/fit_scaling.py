#!/usr/bin/env python3
"""What fitting costs as images grow in number: seconds by stage and peak memory; rows into results/fit_scaling.csv.

    python benchmarks/fit_scaling.py [--counts 60,320,1000,4000] [--seeds 0]

Images are 1024x1024 PNG of a made-up part: so many different pictures, and copies of them with a few pixels changed, so
that no two files are the same and nothing that is computed by content can be used twice. Each fit is a process of its
own, and so is the floor beside it, without which seconds say little: decoding the same files alone, and a bare pass of
the default's backbone over as many images of 256x256 in batches of eight, both on two threads. 4,000 files take about
7 GB below --folder. A row that is there is not measured again.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
from rows import RESULTS, THREADS, Rows, facts, run

COUNTS = (60, 320, 1000, 4000)


def draw(index: int, size_px: int) -> np.ndarray:
    """A picture: drawn small, since a model sees it no larger, and enlarged, with noise for the decoder to work on."""
    from makel.datasets import synthetic

    rng = np.random.default_rng([7, index])
    small, _ = synthetic.render("flange", rng, size_px=max(64, size_px // 4))
    large = cv2.resize(small, (size_px, size_px), interpolation=cv2.INTER_LINEAR)
    return np.clip(large + rng.integers(-3, 4, large.shape), 0, 255).astype(np.uint8)


def write_pictures(folder: Path, count: int, n_different: int, size_px: int) -> None:
    """`count` PNG files in `folder`, no two with the same pixels."""
    different = [draw(index, size_px) for index in range(min(count, n_different))]
    for index in range(count):
        picture = different[index % len(different)].copy()
        rng = np.random.default_rng([8, index])
        picture[rng.integers(0, size_px, 5), rng.integers(0, size_px, 5)] = rng.integers(0, 256, (5, 3))
        _, encoded = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
        (folder / f"{index:05}.png").write_bytes(encoded.tobytes())


def measure_fit(folder: Path, count: int, seed: int) -> dict[str, object]:
    import torch

    import makel
    from makel.datasets import load

    torch.set_num_threads(THREADS)
    dataset = load(folder)
    with tempfile.TemporaryDirectory() as out:
        fitted = makel.fit(replace(dataset, good=dataset.good[:count]), f"{out}/model", seed=seed)
        model_mb = sum(path.stat().st_size for path in fitted.path.rglob("*") if path.is_file()) / 1e6
    provenance, seconds = fitted.manifest.provenance, dict(fitted.manifest.fit.seconds)
    return {
        "n_fit": provenance.n_fit,
        "n_calibrate": provenance.n_calibrate,
        "fit_s": seconds.pop("total"),
        "stages_s": json.dumps(seconds),
        "model_mb": round(model_mb, 1),
    }


def measure_floor(folder: Path, count: int) -> dict[str, object]:
    import torch

    from makel.images import decode_all, find
    from makel.training.backbones import BLOCKS, build

    torch.set_num_threads(THREADS)
    began = perf_counter()
    for _ in decode_all(find(folder)[:count], workers=THREADS):
        pass
    decode_s = perf_counter() - began
    backbone = build("efficientnet_lite0", BLOCKS)
    batch = torch.rand(8, 3, 256, 256)
    with torch.no_grad():
        backbone(batch)
        began = perf_counter()
        for start in range(0, count, 8):
            backbone(batch[: min(8, count - start)])
    return {"decode_s": round(decode_s, 2), "backbone_s": round(perf_counter() - began, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--different", type=int, default=200, help="pictures that are drawn anew")
    parser.add_argument("--size", type=int, default=1024, help="side of the pictures in pixels")
    parser.add_argument("--folder", type=Path, help="where the temporary folder of pictures is made")
    parser.add_argument("--out", type=Path, default=RESULTS / "fit_scaling.csv")
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "COUNT", "SEED"), help="one fit, here, as JSON")
    parser.add_argument("--floor", nargs=2, metavar=("FOLDER", "COUNT"), help="one floor, here, as JSON")
    args = parser.parse_args()
    if args.measure:
        folder, count, seed = args.measure
        print(json.dumps(measure_fit(Path(folder), int(count), int(seed))))
        return
    if args.floor:
        print(json.dumps(measure_floor(Path(args.floor[0]), int(args.floor[1]))))
        return
    rows = Rows(args.out, ("n_images", "size_px", "seed"))
    counts = sorted(map(int, args.counts.split(",")))
    wanted = [
        (count, int(seed))
        for count in counts
        for seed in args.seeds.split(",")
        if not rows.has(n_images=count, size_px=args.size, seed=seed)
    ]
    if not wanted:
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write_pictures(Path(folder), max(count for count, _ in wanted), args.different, args.size)
        for count, seed in wanted:
            floor = run(sys.executable, __file__, "--floor", folder, str(count))
            done = run(sys.executable, __file__, "--measure", folder, str(count), str(seed))
            if done.result is None or floor.result is None:
                sys.exit(f"{count} images: {done.error or floor.error}")
            rows.add(
                {
                    "n_images": count,
                    "size_px": args.size,
                    "seed": seed,
                    **done.result,
                    "peak_mb": done.peak_mb,
                    **floor.result,
                    "load": done.load,
                    **facts(),
                }
            )


if __name__ == "__main__":
    main()
