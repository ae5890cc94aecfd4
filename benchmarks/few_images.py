#!/usr/bin/env python3
"""How many good images are enough: methods fitted on 5, 10, 20 and 50 of them; rows into results/few_images.csv.

    python benchmarks/few_images.py ../shared/data/toothbrush ../shared/data/screw [--seeds 0,1,2] \
        [--methods skip_ae,dfr] [--augment off] \
        [--models padim,patchcore --peer-python ../peer/bin/python --peer-script ../shared/peers/anomalib_run.py]

A subset is drawn at random: the beginning of one seeded order of the good images, so that a larger one holds the
smaller; a fifth of it is held out for the threshold, as `makel fit` does. Where a category has fewer images, all are
taken, and the row says how many. With `--augment on` the images are augmented in fitting. The peer's models are
fitted on the same images and have the same ones held out, by `anomalib_peer.py`; their own seed is 0.

Accuracy and times are those of `peers.py`, for all alike. A row that is there is not measured again: delete the file to
begin anew.
"""

import argparse
import inspect
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from anomalib_peer import MODELS
from peers import FIGURES, command_of_peer, default_size, figures, held_out, listed, measure_ours, versions_of
from rows import RESULTS, THREADS, Rows, facts, run

import makel
from makel.datasets import Dataset, distinct, load
from makel.methods import load as load_method

COUNTS = (5, 10, 20, 50)
TIMES = ("fit_s", "ms_p50")


def subset(dataset: Dataset, count: int, seed: int) -> Dataset:
    """The first `count` of a seeded order of the good images."""
    good = distinct(dataset.good)
    order = np.random.default_rng(seed).permutation(len(good))[:count]
    return replace(dataset, good=tuple(good[index] for index in sorted(order)))


def laid_out(dataset: Dataset, root: Path) -> Path:
    """A folder of a subset in MVTec layout, of links: what any program can be pointed at."""
    folder = root / dataset.name
    (folder / "train" / "good").mkdir(parents=True)
    for sample in dataset.good:
        (folder / "train" / "good" / sample.image_path.name).symlink_to(sample.image_path.resolve())
    for part in ("test", "ground_truth"):
        if (dataset.root / part).is_dir():
            (folder / part).symlink_to((dataset.root / part).resolve(), target_is_directory=True)
    return folder


def row_of(
    key: dict[str, object], found: dict[str, float | None], times: dict[str, object], error: str, **versions: str
) -> dict[str, object]:
    """A row of the results; what is not known is left empty."""
    return {
        **key,
        **{name: "" if (value := found.get(name)) is None else value for name in FIGURES},
        **{name: times.get(name, "") for name in TIMES},
        "error": error,
        **facts(**versions),
    }


def ours(folder: Path, key: dict[str, object], method: str, scores: Path) -> dict[str, object]:
    """The row of one of makel's methods."""
    more = {"augment": True} if key["augment"] == "on" else {}
    times = measure_ours(folder, key["seed"], None, THREADS, scores, timed=True, method=method, **more)
    return row_of(key, figures(load(folder), scores, key["seed"]), times, "")


def theirs(
    folder: Path, key: dict[str, object], model: str, scores: Path, args: argparse.Namespace
) -> dict[str, object]:
    """The row of one of the peer's models."""
    listing = scores.with_name("held_out.txt")
    listing.write_text("\n".join(held_out(load(folder), key["seed"])), encoding="utf-8")
    command = command_of_peer(args.peer_python, args.peer_script, model, folder, listing, scores, args.size, THREADS)
    done = run(*command)
    found = {} if done.result is None else figures(load(folder), scores, key["seed"])
    return row_of(key, found, done.result or {}, done.error, **versions_of(args.peer_python))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="skip_ae", help="makel's; '' leaves them out")
    parser.add_argument("--augment", choices=("off", "on", "both"), default="both", help="of makel's default method")
    parser.add_argument("--models", default="padim,patchcore", help="the peer's; '' leaves them out")
    parser.add_argument("--size", type=int, default=256, help="side of the image that the peer's models take")
    parser.add_argument("--peer-script", type=Path)
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "few_images.csv")
    args = parser.parse_args()
    modes = {"off": ("off",), "on": ("on",), "both": ("off", "on")}[args.augment]
    if "on" in modes and "augment" not in inspect.signature(makel.fit).parameters:
        sys.exit("this makel.fit takes no `augment`: measure with --augment off")
    models, methods = listed(args.models), listed(args.methods)
    if unknown := set(models) - set(MODELS):
        parser.error(f"there is no peer called {min(unknown)}: --models takes some of {', '.join(MODELS)}")
    if models and not (args.peer_script and args.peer_python):
        parser.error("--peer-script and --peer-python say where the peer stands; --models '' leaves it out")
    candidates = [(method, "", mode) for method in methods for mode in (modes if method == "skip_ae" else ("off",))]
    candidates += [("", model, "off") for model in models]
    rows = Rows(args.out, ("category", "who", "size", "n_images", "augment", "seed"))
    for category in args.categories:
        there = len(distinct(load(category).good))
        for seed in map(int, args.seeds.split(",")):
            for count in sorted({min(int(count), there) for count in args.counts.split(",")}):
                for method, model, mode in candidates:
                    key = {
                        "category": category.name,
                        "who": named(method, model),
                        "size": args.size if model else size_of(method),
                        "n_images": count,
                        "augment": mode,
                        "seed": seed,
                    }
                    if rows.has(**key):
                        continue
                    with tempfile.TemporaryDirectory() as work:
                        folder = laid_out(subset(load(category), count, seed), Path(work))
                        scores = Path(work) / "scores.npz"
                        row = theirs(folder, key, model, scores, args) if model else ours(folder, key, method, scores)
                    rows.add(row)


def named(method: str, model: str) -> str:
    """Who is measured: the default method is makel, as in `peers.py`."""
    return f"anomalib {model}" if model else "makel" if method == "skip_ae" else f"makel {method}"


def size_of(method: str) -> int:
    """The side of a square of as many pixels as a method sees when nobody says."""
    return default_size() if method == "skip_ae" else load_method(method).config_class.preset("fast").size[0]


if __name__ == "__main__":
    main()
