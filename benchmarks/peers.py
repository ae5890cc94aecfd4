#!/usr/bin/env python3
"""makel beside Anomalib's models, on the same images of this machine in one run; a row each into results/peers.csv.

    python benchmarks/peers.py ../shared/data/toothbrush ../shared/data/screw --peer-python ../peer/bin/python \
        --peer-script ../shared/peers/anomalib_run.py [--size 256] [--seeds 0,1,2] [--ours-size 384]

`anomalib_peer.py` fits and scores one of the peer's models at `--size` and has its own Python; the docstring of the
peer's script says how to install it. makel is used as a user does who asks for 5 % of false rejects: `makel.fit` with
nothing else but a seed, then the `Inspector`. Each runs in a process of its own. Ours and theirs take turns, so that
whatever else the machine does hits both; `load` says how busy it was before each.

Accuracy is computed here, for both alike, from raw scores and maps. The good images that `makel.fit` holds out with a
seed are held out of the peer's fit too, whose seed is 0, and makel's own calibration makes a threshold of their scores:
`promise` is the rate it then promises, more than 5 % where fewer than 19 images are held out. `miss_5` is the share of
the test's defects that pass at this threshold, `false_reject_5` that of its good images which do not. Pixels count at
256x256: maps are resized to it linearly, masks to the nearest pixel.

fit_s is the call that fits, from files to what can inspect, without imports; ours holds the export, the calibration and
the parity gate too, theirs the fit alone. ms is one decoded image to score and map, resize included; ours to the
verdict with regions and a map at the image's own size. With `--accuracy-only` these stay empty, and a later run without
it measures such rows anew, times and all. Any other row that is there is not measured again: delete the file to begin
anew.
"""

import argparse
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from math import prod
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
from anomalib_peer import MAP_SIDE, MODELS
from rows import RESULTS, THREADS, Done, Rows, facts, run

import makel
from makel.calibration import calibrate
from makel.datasets import Dataset, load, split
from makel.evaluation.metrics import PixelCurves, rank_images
from makel.images import prepare, read
from makel.methods import load as load_method
from makel.types import Sample

BUDGET = 0.05
"""The share of good parts that may be rejected, as a user asks for it."""
TIMES = ("fit_s", "ms_p50", "ms_p99")
FIGURES = ("image_auroc", "pixel_auroc", "aupro_30", "promise", "miss_5", "false_reject_5")
_CALLS = 300
_WARM_UP = 5
_PEER = Path(__file__).with_name("anomalib_peer.py")


def held_out(dataset: Dataset, seed: int) -> list[str]:
    """The good images that a fit of this seed does not see, relative to the category: held out, or copies of others."""
    fitted = {sample.image_path for sample in split(dataset, seed=seed).fit}
    return [each for each in _names(dataset, dataset.good) if dataset.root / each not in fitted]


def judged(dataset: Dataset, seed: int) -> list[str]:
    """Those of them that the threshold comes from: one picture of a part."""
    return _names(dataset, split(dataset, seed=seed).calibrate)


def _names(dataset: Dataset, samples: Sequence[Sample]) -> list[str]:
    return [sample.image_path.relative_to(dataset.root).as_posix() for sample in samples]


def figures(dataset: Dataset, scores: Path, seed: int | None = None) -> dict[str, float | None]:
    """What a file of scores and maps is worth, whoever gave them; None where it cannot be said.

    The threshold comes from all scores held out, or from those that `judged` names for a seed.
    """
    with np.load(scores) as found:
        kept, paths, of_test = found["held_out_scores"], found["test"].tolist(), found["test_scores"]
        if seed is not None:
            kept = kept[np.isin(found["held_out"], judged(dataset, seed))]
        maps = found.get("maps")
    place = {path: index for index, path in enumerate(paths)}
    at = [place[sample.image_path.relative_to(dataset.root).as_posix()] for sample in dataset.test]
    if maps is None:
        return worth(dataset, kept, of_test[at])
    return worth(dataset, kept, of_test[at], [maps[index] for index in at], regions_of(dataset))


def worth(
    dataset: Dataset,
    kept: np.ndarray,
    of_test: np.ndarray,
    maps: Sequence[np.ndarray] | None = None,
    regions: Sequence[np.ndarray | None] = (),
) -> dict[str, float | None]:
    """What scores of images held out and scores and maps of the test images are worth; None where it cannot be said.

    Args:
        dataset: Its test images say what is good.
        kept: Scores of good images held out.
        of_test: Scores of the test images, in the dataset's order.
        maps: (256, 256) maps of these.
        regions: What `regions_of` gives.
    """
    is_good = np.array([sample.label == "good" for sample in dataset.test])
    good, defects = of_test[is_good], of_test[~is_good]
    calibration = calibrate(kept, kept, false_reject=BUDGET)
    pixel = None
    if maps is not None and any(each is not None for each in regions):
        curves = PixelCurves()
        for is_part_good, anomaly_map, found in zip(is_good, maps, regions, strict=True):
            if is_part_good:
                curves.add(anomaly_map)
            elif found is not None and found.any():
                curves.add(anomaly_map, found)
        pixel = curves.results()
    return {
        "image_auroc": rank_images(good, defects).auroc,
        "pixel_auroc": pixel and pixel.auroc,
        "aupro_30": pixel and pixel.aupro_30,
        "promise": calibration.promised_false_reject,
        "miss_5": float(np.mean(defects <= calibration.image_threshold)),
        "false_reject_5": float(np.mean(good > calibration.image_threshold)),
    }


def regions_of(dataset: Dataset) -> list[np.ndarray | None]:
    """What `marked` gives of each test image's mask; None where it has none."""
    return [marked(sample.mask_path) if sample.mask_path else None for sample in dataset.test]


def marked(mask: Path) -> np.ndarray:
    """(256, 256) the regions of a mask, numbered."""
    pixels = read(mask)
    is_marked = np.asarray(pixels.reshape(*pixels.shape[:2], -1).max(axis=2) > 0, np.uint8)
    at_side = cv2.resize(is_marked, (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_NEAREST_EXACT)
    return cv2.connectedComponents(at_side, connectivity=8, ltype=cv2.CV_32S)[1]


def measure_ours(
    category: Path, seed: int, size: int | None, threads: int, scores: Path, *, timed: bool, **more: object
) -> dict[str, object]:
    """What a user of makel gets, in this process: scores into a file as the peer's, and times; `more` is asked of the
    fit."""
    import torch

    from makel.training.torchvision_import import import_timm

    torch.set_num_threads(threads)
    fit = makel.fit
    import_timm()  # imports are in neither's seconds, and this one would be made inside of the call
    dataset = load(category)
    with tempfile.TemporaryDirectory() as folder:
        sized = {} if size is None else {"size": size}
        began = perf_counter()
        fitted = fit(category, f"{folder}/model", seed=seed, false_reject=BUDGET, **sized, **more)
        fit_s = perf_counter() - began
        inspector = makel.Inspector.load(fitted.path, threads=threads)
        times = {"fit_s": round(fit_s, 1)}
        if timed:
            times |= milliseconds(inspector, [sample.image_path for sample in dataset.test])
        kept, test = judged(dataset, seed), [sample.image_path for sample in dataset.test]
        if (n := inspector.calibration.n) != len(kept):
            sys.exit(f"makel.fit held out {n} images, not the {len(kept)} of makel.datasets.split")
        of_held_out = [scored(inspector, dataset.root / path)[0] for path in kept]
        of_test, maps = zip(*(scored(inspector, path) for path in test), strict=True)
        size = round(prod(inspector.manifest.preprocessing.shape) ** 0.5)
    has_masks = any(sample.mask_path for sample in dataset.test)
    np.savez(
        scores,
        held_out=kept,
        held_out_scores=np.array(of_held_out),
        test=[path.relative_to(dataset.root).as_posix() for path in test],
        test_scores=np.array(of_test),
        **({"maps": np.stack(maps)} if has_masks else {}),
    )
    return {"size": size, **times}


def milliseconds(inspector: makel.Inspector, paths: list[Path]) -> dict[str, float]:
    """Of one decoded image to its verdict."""
    elapsed_ms = []
    for call in range(-_WARM_UP, max(_CALLS, len(paths))):
        image = read(paths[call % len(paths)])
        began = perf_counter()
        inspector.inspect(image)
        if call >= 0:
            elapsed_ms.append(1000 * (perf_counter() - began))
    p50, p99 = np.percentile(elapsed_ms, [50, 99]).tolist()
    return {"ms_p50": round(p50, 2), "ms_p99": round(p99, 2)}


def scored(inspector: makel.Inspector, path: Path) -> tuple[float, np.ndarray]:
    """The raw score of an image, and its map at 256x256."""
    scores = inspector.scores(prepare(read(path), inspector.manifest.preprocessing, name=path.name)[np.newaxis])
    at_side = cv2.resize(scores.anomaly_map[0, 0], (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_LINEAR)
    return float(scores.image[0]), at_side


def default_size() -> int:
    """The side of a square of as many pixels as a model of `makel.fit` sees when nobody says."""
    given = inspect.signature(makel.fit).parameters
    return load_method(given["method"].default).config_class.preset(given["preset"].default).size[0]


def row_of(
    category: str,
    who: str,
    size: int,
    seed: int,
    done: Done,
    found: dict[str, float | None],
    *,
    timed: bool,
    threads: int,
    versions: dict[str, str],
) -> dict[str, object]:
    """A row of the results; what is not known is left empty."""
    times = (done.result or {}) if timed else {}
    return {
        "category": category,
        "who": who,
        "size": size,
        "seed": seed,
        **{key: times.get(key, "") for key in TIMES},
        **{key: "" if (value := found.get(key)) is None else value for key in FIGURES},
        "process_s": done.seconds,
        "peak_mb": done.peak_mb,
        "load": done.load,
        "error": done.error,
        **facts(threads, **versions),
    }


def is_measured(row: dict[str, str] | None, *, timed: bool) -> bool:
    """Whether a row has what is asked for; one that failed has what can be had."""
    return row is not None and bool(row["error"] or row["fit_s"] or not timed)


def command_of_peer(
    python: Path, script: Path, model: str, category: Path, listing: Path, scores: Path, size: int, threads: int
) -> list[str | Path | int]:
    """What fits and scores one of the peer's models, with the images in `listing` held out."""
    command = [python, _PEER, model, category, "--peer-script", script, "--held-out", listing, "--size", size]
    return [*command, "--scores", scores, "--threads", threads]


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


def turns(seeds: list[int], models: list[str]) -> Iterator[tuple[str, int]]:
    """A peer's model and its seed, or "" and a seed of ours, one after the other."""
    pairs = zip_longest((("", seed) for seed in seeds), ((model, 0) for model in models))
    return (each for each in chain.from_iterable(pairs) if each is not None)


def listed(text: str) -> list[str]:
    return [each for each in text.split(",") if each]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of ours; '' leaves it out")
    parser.add_argument(
        "--ours-size", type=int, help="side of a square of as many pixels as our model takes; unset, the default's"
    )
    parser.add_argument("--models", default=",".join(MODELS), help="the peer's models; it has one seed, 0")
    parser.add_argument("--size", type=int, default=256, help="side of the image that the peer's models take")
    parser.add_argument("--peer-script", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--accuracy-only", action="store_true", help="leave times empty, for a later run to measure")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.csv")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the files of scores and maps here")
    parser.add_argument("--measure", nargs=2, metavar=("SEED", "NPZ"), help="measure ours once, here; print its times")
    args = parser.parse_args()
    timed = not args.accuracy_only
    if args.measure is not None:
        seed, scores = int(args.measure[0]), Path(args.measure[1])
        measured = measure_ours(args.categories[0], seed, args.ours_size, args.threads, scores, timed=timed)
        print(json.dumps(measured))
        return
    models, seeds = listed(args.models), [int(seed) for seed in listed(args.seeds)]
    if unknown := set(models) - set(MODELS):
        parser.error(f"there is no peer called {min(unknown)}: --models takes some of {', '.join(MODELS)}")
    if models and not (args.peer_script and args.peer_python):
        parser.error("--peer-script and --peer-python say where the peer stands; --models '' leaves it out")
    theirs = versions_of(args.peer_python) if models else {}
    ours_size = args.ours_size or default_size()
    rows = Rows(args.out, ("category", "who", "size", "seed"))
    for category in args.categories:
        dataset = load(category)
        for model, seed in turns(seeds, models):
            who, size = (f"anomalib {model}", args.size) if model else ("makel", ours_size)
            key = {"category": category.name, "who": who, "size": size, "seed": seed}
            if is_measured(rows.get(**key), timed=timed):
                continue
            with tempfile.TemporaryDirectory() as folder:
                if args.keep:
                    args.keep.mkdir(parents=True, exist_ok=True)
                scores = (args.keep or Path(folder)) / f"{category.name} {who} {size} {seed}.npz"
                if model:
                    listing = Path(folder) / "held_out.txt"
                    listing.write_text("\n".join(held_out(dataset, seed)), encoding="utf-8")
                    command = command_of_peer(
                        args.peer_python, args.peer_script, model, category, listing, scores, args.size, args.threads
                    )
                    command += ["--calls", _CALLS if timed else 0]
                else:
                    command = [sys.executable, __file__, category, "--measure", seed, scores]
                    command += ["--threads", args.threads, *(["--accuracy-only"] if args.accuracy_only else [])]
                    command += ["--ours-size", args.ours_size] if args.ours_size else []
                done = run(*command, threads=args.threads)
                found = {} if done.result is None else figures(dataset, scores, seed)
            said = theirs if model else {}
            row = row_of(category.name, who, size, seed, done, found, timed=timed, threads=args.threads, versions=said)
            rows.put(row)


if __name__ == "__main__":
    main()
