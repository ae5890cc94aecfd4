#!/usr/bin/env python3
"""The paper's own system on the embedded backbone: a row a category and method into results/paper_embedded.csv.

    python benchmarks/paper_embedded.py ../shared/data/screw ../shared/data/pill [--minutes 30] [--methods skip_ae,dfr]

The preset `paper`, of `skip_ae` and of `dfr`, with blocks 1, 2 and 3 of EfficientNet-Lite0 in place of a backbone whose
weights have to be fetched, at 256x256. Networks so wide take hours on a processor: a fit of one epoch says how long an
epoch takes (`epoch_s`), and then there are 150, as the paper has, or as many as `--minutes` hold. The row says how
many, and what the paper's Table 2 prints for the category and the method with its own backbone. A row that is there is
not measured again.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from rows import RESULTS, THREADS, Rows, facts

import makel
from makel.bench import paper

BACKBONE, BLOCKS, SIDE = "efficientnet_lite0", (1, 2, 3), 256
EPOCHS = 150
"""Those of the paper."""
METRICS = ("image_auroc", "pixel_auroc", "aupro_30")


def epochs_in(minutes: float, epoch_s: float, most: int = EPOCHS) -> int:
    """How many epochs these minutes hold, one at least."""
    return max(1, min(most, int(60 * minutes / epoch_s)))


def printed(category: str, method: str) -> float | str:
    """What the paper's Table 2 says, or nothing."""
    by_name = {paper.same_name(name): values for name, values in paper.table("2").items()}
    return by_name.get(paper.same_name(category), {}).get(method, "")


def measure(category: Path, method: str, seed: int, minutes: float, most: int, threads: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:

        def fit(epochs: int) -> Path:
            return makel.fit(
                category,
                f"{folder}/model",
                method=method,
                preset="paper",
                backbone=BACKBONE,
                blocks=BLOCKS,
                size=SIDE,
                epochs=epochs,
                seed=seed,
                device="cpu",
                features=f"{folder}/features",
            ).path

        epoch_s = seconds_of_epochs(fit(1))[0]
        epochs = epochs_in(minutes, epoch_s, most)
        model = fit(epochs)
        trained_s = sum(seconds_of_epochs(model))
        said = makel.evaluate(makel.Inspector.load(model, threads=threads), category).to_json()
    return {
        **{name: "" if said[name] is None else said[name] for name in METRICS},
        "epochs": epochs,
        "epoch_s": round(epoch_s, 2),
        "training_s": round(trained_s, 1),
        "paper": printed(category.name, method),
        **facts(threads),
    }


def seconds_of_epochs(model: Path) -> list[float]:
    """What the training log of a model folder says."""
    return [json.loads(line)["seconds"] for line in (model / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="+")
    parser.add_argument("--methods", default="skip_ae,dfr")
    parser.add_argument("--minutes", type=float, default=30, help="of training, at most")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="at most")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--out", type=Path, default=RESULTS / "paper_embedded.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = Rows(args.out, ("category", "method", "seed"))
    for category in args.categories:
        for seed in map(int, args.seeds.split(",")):
            for method in args.methods.split(","):
                key = {"category": category.name, "method": method, "seed": seed}
                if not rows.has(**key):
                    rows.add({**key, **measure(category, method, seed, args.minutes, args.epochs, args.threads)})


if __name__ == "__main__":
    main()
