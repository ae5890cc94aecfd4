#!/usr/bin/env python3
"""makel beside Anomalib's models, on the same images of this machine in one run; a row each into results/peers.csv.

    python benchmarks/peers.py ../shared/data/toothbrush ../shared/data/magnetic_tile \
        --peer-script ../shared/peers/anomalib_run.py --peer-python ../peer/bin/python [--seeds 0,1,2]

The peer's script fits and scores one of its models on the features of the same EfficientNet-Lite0 at 256x256, with two
threads, and has its own Python; its docstring says how to install it. makel is used as a user does: `makel.fit` with
nothing but a seed, then the `Inspector` and `makel.evaluate`. Each runs in a process of its own. Ours and theirs take
turns, so that whatever else the machine does hits both; `load` says how busy it was before each.

fit_s is the call that fits, from files to what can inspect, without imports; ours holds the export, the calibration and
the parity gate too. ms is one decoded image to score and map, resize included; ours to the verdict with regions and a
map at the image's own size. Of the peers' milliseconds their script prints the median alone. Pixel AUROC is taken at
256x256 by both. A row that is there is not measured again: delete the file to begin anew.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from itertools import chain, zip_longest
from pathlib import Path
from time import perf_counter

from rows import RESULTS, THREADS, Done, Rows, facts, run

MODELS = ("patchcore", "padim", "stfpm", "supersimplenet", "dfm", "ganomaly")
TRAINED, EPOCHS = ("stfpm", "supersimplenet", "ganomaly"), 20
"""Those that make passes over the images, and as many as the peer's script makes unless told otherwise."""
FIGURES = ("fit_s", "ms_p50", "ms_p99", "image_auroc", "pixel_auroc")
_CALLS = 300
_WARM_UP = 5


def measure_ours(category: Path, seed: int) -> dict[str, object]:
    """What a user of makel gets, in this process."""
    import numpy as np
    import torch

    import makel
    from makel.datasets import load
    from makel.images import read
    from makel.training.torchvision_import import import_timm

    torch.set_num_threads(THREADS)
    fit = makel.fit
    import_timm()  # imports are in neither's seconds, and this one would be made inside of the call
    with tempfile.TemporaryDirectory() as folder:
        began = perf_counter()
        fitted = fit(category, f"{folder}/model", seed=seed)
        fit_s = perf_counter() - began
        inspector = makel.Inspector.load(fitted.path, threads=THREADS)
        paths = [sample.image_path for sample in load(category).test]
        elapsed_ms = []
        for call in range(-_WARM_UP, max(_CALLS, len(paths))):
            image = read(paths[call % len(paths)])
            began = perf_counter()
            inspector.inspect(image)
            if call >= 0:
                elapsed_ms.append(1000 * (perf_counter() - began))
        evaluation = makel.evaluate(inspector, category)
    p50, p99 = np.percentile(elapsed_ms, [50, 99]).tolist()
    return {
        "fit_s": round(fit_s, 1),
        "ms_p50": round(p50, 2),
        "ms_p99": round(p99, 2),
        "image_auroc": evaluation.image.auroc,
        "pixel_auroc": evaluation.pixel.auroc,
    }


def row_of(category: Path, who: str, seed: int, done: Done, versions: dict[str, str]) -> dict[str, object]:
    result = dict(done.result or {})
    result.setdefault("ms_p50", result.get("ms", ""))  # the peers' name for their median
    return {
        "category": category.name,
        "who": who,
        "seed": seed,
        **{key: result.get(key, "") for key in FIGURES},
        "process_s": done.seconds,
        "peak_mb": done.peak_mb,
        "load": done.load,
        "error": done.error,
        **facts(**versions),
    }


def named(model: str, epochs: int) -> str:
    """The peer's model as rows call it."""
    return f"anomalib {model}" + (f", {epochs} epochs" if model in TRAINED and epochs != EPOCHS else "")


def versions_of(python: Path) -> dict[str, str]:
    """The peer's versions, as columns of its rows."""
    code = (
        "import json; from importlib.metadata import version; "
        "print(json.dumps({'peer ' + name: version(name) for name in ('anomalib', 'torch', 'timm')}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{python} has no anomalib: install it as the peer's script says\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of ours")
    parser.add_argument("--models", default=",".join(MODELS), help="the peer's models; it has one seed, 0")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the peer's models that train")
    parser.add_argument("--peer-script", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.csv")
    parser.add_argument("--measure", type=int, metavar="SEED", help="measure ours once, here, and print it as JSON")
    args = parser.parse_args()
    if args.measure is not None:
        print(json.dumps(measure_ours(args.categories[0], args.measure)))
        return
    if args.models and not (args.peer_script and args.peer_python):
        parser.error("--peer-script and --peer-python say where the peer stands; --models '' leaves it out")
    theirs = versions_of(args.peer_python) if args.models else {}
    rows = Rows(args.out, ("category", "who", "seed"))
    for category in args.categories:
        ours = [("makel", int(seed), "") for seed in args.seeds.split(",")]
        peers = [(named(model, args.epochs), 0, model) for model in args.models.split(",") if model]
        for who, seed, model in filter(None, chain.from_iterable(zip_longest(ours, peers))):
            if rows.has(category=category.name, who=who, seed=seed):
                continue
            if model:
                done = run(args.peer_python, args.peer_script, model, category, "--epochs", str(args.epochs))
            else:
                done = run(sys.executable, __file__, category, "--measure", str(seed))
            rows.add(row_of(category, who, seed, done, theirs if model else {}))


if __name__ == "__main__":
    main()
