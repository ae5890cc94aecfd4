#!/usr/bin/env python3
"""Fit, evaluate and cold-start the default model on real categories; one row a category and seed into a results file.

    python benchmarks/first_model.py ../shared/data/toothbrush ../shared/data/magnetic_tile [--seeds 0,1,2]

Every step is the command a user would type, in a process of its own. Seconds are wall time with decoding inside, memory
is the peak resident size of the process, latency is one decoded image to its verdict, decoding not inside:
`latency_*` of the images as they are, by `makel evaluate`, `latency_own_*` of the same ones at the model's own size.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

CALLS = 300
RESULTS = Path(__file__).parent / "results" / "first_model.csv"
METRICS = (
    "image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05",
    "false_reject_rate", "miss_rate", "n_good", "n_defect",
)  # fmt: skip


def run(*command: str) -> tuple[str, float, float]:
    """Output, wall seconds and peak resident megabytes of `python -m makel ...`."""
    with tempfile.TemporaryFile("w+") as out:
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "makel", *command], stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        out.seek(0)
        text = out.read()
    if status:
        sys.exit(f"makel {' '.join(command)} failed with status {status}")
    return text, seconds, usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def latency_own(model: str, category: Path) -> dict[str, float]:
    """Milliseconds from a decoded image of the model's own size to its verdict, on two threads, in this process."""
    import cv2
    import numpy as np

    import makel
    from makel.datasets import load
    from makel.images import read

    inspector = makel.Inspector.load(model, threads=2)
    height, width = inspector.manifest.preprocessing.shape
    images = [
        cv2.resize(read(sample.image_path), (width, height), interpolation=cv2.INTER_AREA)
        for sample in load(category).test[:CALLS]
    ]
    elapsed_ms = []
    for call in range(-10, CALLS):
        began = time.perf_counter()
        inspector.inspect(images[call % len(images)])
        if call >= 0:
            elapsed_ms.append(1000 * (time.perf_counter() - began))
    return {f"latency_own_p{rank}_ms": round(float(np.percentile(elapsed_ms, rank)), 3) for rank in (50, 95, 99)}


def measure(category: Path, seed: int, options: list[str]) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        fitted, fit_s, fit_mb = run(
            "fit", str(category), "--out", model, "--seed", str(seed), "--json", "--quiet", *options
        )
        summary = json.loads(fitted)
        evaluated, _, _ = run("evaluate", model, str(category), "--json", "--out", f"{folder}/evaluation")
        result = json.loads(evaluated)
        image = next((category / "test" / "good").iterdir())
        cold = sorted(run("inspect", model, str(image), "--json")[1:] for _ in range(5))[2]
        command = [sys.executable, __file__, str(category), "--latency", model]
        latency = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        size_mb = sum(path.stat().st_size for path in Path(model).rglob("*") if path.is_file()) / 1e6
    return {
        "category": category.name,
        "seed": seed,
        "options": " ".join(options),
        **{key: result[key] for key in METRICS},
        **{f"latency_{key}_ms": value for key, value in result["latency_ms"].items() if key.startswith("p")},
        **latency,
        "n_fit": summary["n_fit"],
        "n_calibrate": summary["n_calibrate"],
        "promised_false_reject": summary["promised_false_reject"],
        "fit_s": round(fit_s, 2),
        "fit_peak_mb": round(fit_mb),
        "stages_s": json.dumps(summary["seconds"]),
        "cold_inspect_s": round(cold[0], 2),
        "cold_inspect_peak_mb": round(cold[1]),
        "model_mb": round(size_mb, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": json.dumps({name: version(name) for name in ("makel", "torch", "onnxruntime", "timm", "numpy")}),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--options", default="", help="further options of makel fit, such as '--epochs 20'")
    parser.add_argument("--latency", metavar="MODEL", help="time a model on images of its own size, here, as JSON")
    args = parser.parse_args()
    if args.latency:
        print(json.dumps(latency_own(args.latency, args.categories[0])))
        return
    rows = [
        measure(category, int(seed), args.options.split())
        for category in args.categories
        for seed in args.seeds.split(",")
    ]
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print({key: row[key] for key in ("category", "seed", "image_auroc", "pixel_auroc", "aupro_30", "fit_s")})


if __name__ == "__main__":
    main()
