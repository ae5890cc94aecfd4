#!/usr/bin/env python3
"""The protocol by which choices of skip_ae's preset `fast` are made: one row a category, candidate and seed.

    python benchmarks/study_skip_ae.py ../shared/data/toothbrush ../shared/data/screw \
        [--turned ../shared/data/toothbrush] [--crops ../shared/data/toothbrush] [--textures brick.png grass.png] \
        [--seeds 0,1,2] [--only "default" "no skips"] [--curve]
    python benchmarks/study_skip_ae.py --leave-one-out

Nothing is chosen on the set that it is reported on. A candidate is a named change to the preset. `--leave-one-out`
reads the rows and measures nothing: for each set left out in turn it asks whether the default is the best of all
candidates on the mean of the other sets, and what was lost on the one left out; see `leave_one_out.py`. More sets are
made of the categories, and of pictures of surfaces, by `made_sets.py`. `--curve` measures how many updates are worth
it, for the default and for equation 2, with no limit on how often an image is seen.

A row that is there is not measured again. Features are extracted once for all candidates of a category with the same
blocks and size (`features_s`); `fit_s` is all the rest of a fit, up to what can score. Scores are taken in PyTorch from
cached half-precision features, which moves them in the fourth digit against `makel evaluate`; what they are worth is
computed as in `peers.py`: maps at 256x256, and a threshold from the good images that `makel.fit` holds out. In sets
made by turning or cropping several images come of one good image, and those held out are not new: a promise made there
is none.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from leave_one_out import text
from made_sets import add_arguments, make_all
from peers import MAP_SIDE, regions_of, worth
from rows import RESULTS, THREADS, Rows, facts
from torch import Tensor

from makel.datasets import distinct, load, split
from makel.images import Preparation, decode_all
from makel.methods.layers import neighbourhoods
from makel.methods.skip_ae import COUNTS, Config, SkipAE
from makel.training.detector import Detector
from makel.training.features import FeatureCache, extract
from makel.training.fit import build_detector
from makel.training.loop import train
from makel.training.shape import image_sizes, input_shape
from makel.types import Scores, in_px

FIGURES = ("image_auroc", "pixel_auroc", "aupro_30", "promise", "miss_5", "false_reject_5")


class Untrained(SkipAE):
    """Nothing is trained: with `updates` 0 the autoencoder stays as it was drawn."""

    def optimizers(self, steps: int) -> dict:  # noqa: ARG002
        return {}


class FeaturesAlone(Untrained):
    """Features by the nearest, and wholes: what is left when the autoencoder is taken out."""

    def _described(self, features):
        described = neighbourhoods(features, self.grid.shape)
        return torch.cat([described, torch.zeros_like(described)], 1)


class ResidualAlone(SkipAE):
    """Residuals by the nearest, without the features that they come from, and wholes."""

    def _described(self, features):
        described = neighbourhoods([self.residual(features)], self.grid.shape)
        return torch.cat([torch.zeros_like(described), described], 1)


class WholesAlone(Untrained):
    """Whole images, without the nearest."""

    def score(self, features) -> Scores[Tensor]:
        distances = self.whole(self.grid(features))
        found = self._measures(distances, 1)
        above = F.softplus((found - self.usual[:2, :1]) / self.usual[:2, 1:])
        counts = above.new_tensor(COUNTS[1:])[:, None]
        return Scores(
            image=((counts * above * above).sum(0) / counts.sum()).sqrt(), anomaly_map=self._joined([distances])
        )

    def _measures(self, distances: Tensor, index: int) -> Tensor:  # noqa: ARG002
        return super()._measures(distances, 1)

    def _read(self, good) -> None:
        images = torch.cat([self.whole.shrink(self.grid(features)) for features in good])
        maps = self._left_out_wholes(images)
        self.whole.learn(images)
        self._set_usual([maps])


class SeenByAll(SkipAE):
    """Nothing is kept out: what is usual is taken from images that the autoencoder and the bank saw."""

    def trained_on(self, images):
        super().trained_on(images)
        self._unseen = self._unseen[:0]
        return np.ones(len(images), np.bool_)


@dataclass(frozen=True)
class Candidate:
    """A change to the preset `fast`.

    Attributes:
        changes: Of its settings.
        detector: What fits and scores in place of the method itself.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    detector: type[SkipAE] = SkipAE


def after(updates: int, **changes: Any) -> Candidate:
    """So many updates, however often that shows an image."""
    detector = SkipAE if updates else Untrained
    return Candidate({"updates": updates, "most_epochs": 0, **changes}, detector)


CHOICES = {
    "default": Candidate(),
    "no autoencoder": Candidate({"updates": 0}, FeaturesAlone),
    "residual alone": Candidate({}, ResidualAlone),
    "nearest alone": Candidate({"reading": "nearest"}),
    "wholes alone": Candidate({"updates": 0}, WholesAlone),
    "equation 2": Candidate({"reading": "l2"}),
    "seen by all": Candidate({}, SeenByAll),
    "no skips": Candidate({"skips": (0, 0)}),
    "size 256": Candidate({"size": (256, 256)}),
    "bank of 3000": Candidate({"bank": 3000}),
    **{f"{updates} updates": after(updates) for updates in (100, 200, 400, 1600, 3200)},
}
"""What is measured unless told otherwise."""

CURVE_UPDATES = (0, 100, 200, 400, 800, 1600, 3200)
CURVE = {
    **{f"{updates} updates": after(updates) for updates in CURVE_UPDATES},
    **{f"equation 2, {updates} updates": after(updates, reading="l2") for updates in CURVE_UPDATES},
}
"""What `--curve` measures."""

CANDIDATES = {**CHOICES, **CURVE}


class Category:
    """A set, and features of its images that candidates share.

    Args:
        path: Where it stands.
        folder: Where features too large for memory go.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.dataset, self.folder = load(path), folder
        self.good = [sample.image_path for sample in distinct(self.dataset.good)]
        self.test = [sample.image_path for sample in self.dataset.test]
        self.sizes = image_sizes(self.good)
        self.regions = regions_of(self.dataset)
        self._extracted: dict[tuple[object, ...], tuple[FeatureCache, FeatureCache, float]] = {}

    def config(self, candidate: Candidate) -> Config:
        """The settings of a candidate with the input's shape, as `makel.fit` chooses it."""
        config = Config.preset("fast", **candidate.changes)
        return replace(config, size=input_shape(self.sizes, config.size[0]))

    def features(self, detector: Detector, config: Config) -> tuple[FeatureCache, FeatureCache, float]:
        """Of all good images and of the test images, and the seconds that the good ones took."""
        key = (config.size, config.backbone, config.blocks, config.project)
        if key not in self._extracted:
            preparation = Preparation.of(decode_all(self.good), shape=config.size)
            began = perf_counter()
            good = self._extract(detector, self.good, preparation)
            seconds = perf_counter() - began
            self._extracted[key] = (good, self._extract(detector, self.test, preparation), seconds)
        return self._extracted[key]

    def _extract(self, detector: Detector, paths: list[Path], preparation: Preparation) -> FeatureCache:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        done = extract(detector, paths, preparation, device=torch.device("cpu"), folder=folder, progress=silent)
        if done.unreadable:
            sys.exit(f"{self.dataset.name} holds an image that cannot be read: {done.unreadable[0]}")
        return done.cache


def silent(*_: object) -> None:
    """Progress that nobody hears of."""


def measure(category: Category, candidate: Candidate, seed: int) -> dict[str, object]:
    """The figures of a candidate."""
    config = category.config(candidate)
    detector = build_detector(candidate.detector, config, seed)
    good, test, features_s = category.features(detector, config)
    parts = split(category.dataset, seed=seed)
    place = {path: index for index, path in enumerate(category.good)}
    fit, held_out = (
        good.subset([place[sample.image_path] for sample in samples]) for samples in (parts.fit, parts.calibrate)
    )
    began = perf_counter()
    train(detector, fit, seed=seed, progress=silent)
    fit_s = perf_counter() - began
    kept, _ = scored(detector, held_out)
    scores, maps = scored(detector, test)
    found = worth(category.dataset, kept, scores, maps, category.regions)
    return {
        "input": in_px(config.size),
        **{key: "" if (value := found[key]) is None else round(value, 5) for key in FIGURES},
        "features_s": round(features_s, 2),
        "fit_s": round(fit_s, 2),
    }


def scored(detector: Detector, cache: FeatureCache) -> tuple[np.ndarray, list[np.ndarray]]:
    """The scores of cached images, and their maps at 256x256."""
    scores, maps = [], []
    with torch.no_grad():
        for features in cache:
            found = detector.scores(features)
            scores.append(found.image.numpy())
            maps += [
                cv2.resize(each, (MAP_SIDE, MAP_SIDE), interpolation=cv2.INTER_LINEAR)
                for each in found.anomaly_map[:, 0].numpy()
            ]
    return np.concatenate(scores), maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("categories", type=Path, nargs="*")
    add_arguments(parser)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these candidates alone")
    parser.add_argument("--curve", action="store_true", help="measure the candidates of the curve of updates alone")
    parser.add_argument("--leave-one-out", action="store_true", help="measure nothing; say what the rows decide")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--out", type=Path, default=RESULTS / "study_skip_ae.csv")
    parser.add_argument(
        "--peers", type=Path, default=RESULTS / "peers.csv", help="with --leave-one-out: the peers' rows"
    )
    args = parser.parse_args()
    rows = Rows(args.out, ("category", "candidate", "seed"))
    if args.leave_one_out:
        print(text(rows.rows, Rows(args.peers, ("category",)).rows))
        return
    if unknown := set(args.only or ()) - set(CANDIDATES):
        parser.error(f"there is no candidate called {min(unknown)!r}: --only takes some of {', '.join(CANDIDATES)}")
    chosen = args.only or list(CURVE if args.curve else CHOICES)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as made:
        for path in (*args.categories, *make_all(args, Path(made))):
            keys = [
                {"category": path.name, "candidate": name, "seed": int(seed)}
                for seed in args.seeds.split(",")
                for name in chosen
            ]
            pending = [key for key in keys if not rows.has(**key)]
            if not pending:
                continue
            with tempfile.TemporaryDirectory() as folder:
                category = Category(path, Path(folder))
                for key in pending:
                    measured = measure(category, CANDIDATES[key["candidate"]], key["seed"])
                    rows.add({**key, **measured, **facts(args.threads)})


if __name__ == "__main__":
    main()
