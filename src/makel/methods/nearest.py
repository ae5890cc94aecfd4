"""Nearest neighbour: the distance to the most similar feature vector ever seen on a good image.

Paper: Roth, Pemula, Zepeda, Schölkopf, Brox, Gehler: Towards Total Recall in Industrial Anomaly Detection (PatchCore).
CVPR 2022, https://arxiv.org/abs/2106.08265. Official code: https://github.com/amazon-science/patchcore-inspection,
Apache-2.0; read at commit 8a7748c, none of it used.

    x               the features of a position, averaged over its 3x3 neighbourhood: chosen blocks of a frozen CNN,
                    resized to the finest level's grid and concatenated
    bank M          a part of all x of the good images, chosen so that every other x has one near: greedy k-centre,
                    which takes the vector farthest from all taken so far, again and again
    anomaly map     min over m in M of || x - m ||_2

Here it is a control without reconstruction, not a reproduction of PatchCore. Both presets take the features of the
preset of the same name of skip_ae (PatchCore's own are backbone "wide_resnet50_2.tv_in1k" with blocks 2 and 3):

1. The bank holds 10 % of the vectors, as in PatchCore, but 3,000 at most, so that size and time have a bound.
2. It is chosen among at most 60,000 of the vectors, drawn at random, since each of its members costs a pass over them.
   As in the code, distances for the choice are taken after a random projection to 128 channels; the first member is
   the vector farthest from the mean.
3. Channels are pooled, not averaged into 1024 groups. Beyond the border there are zeros, as in the code. Channels keep
   the scale they come with, as in PatchCore.
4. The image score is not re-weighted by the neighbour's neighbourhood; nor is it in the official code. It is the mean
   of the map's highest 1 % in `fast`, and the maximum of the map in `paper`.
5. The map is the distance where the code takes its square, and is not blurred.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from makel.methods.layers import (
    FeatureGrid,
    choose_coreset,
    finish_scores,
    level_shape,
    squared_distances,
)
from makel.training.backbones import Backbone
from makel.training.detector import Batches, Detector, DetectorConfig, Features
from makel.types import Scores, Shape


@dataclass(frozen=True, kw_only=True)
class Config(DetectorConfig):
    """Settings of the memory bank. The defaults are the preset `fast`.

    Attributes:
        normalise: Bring every feature channel to zero mean and unit variance over the good images.
        project: Reduce a level with more channels than this to this many; 0 for never.
        pool: Side of the neighbourhood features are averaged over, odd; 1 for none.
        share: Share of the good images' vectors the bank holds.
        bank: Vectors the bank holds at most.
        candidates: Vectors the bank is chosen among at most.
        chunk: Vectors compared at a time; bounds the memory scoring needs.
        top: Share of the map whose mean is the image score; 0 for its maximum.
    """

    size: Shape = (384, 384)
    aspect: Literal["image", "square"] = "image"
    blocks: tuple[int, ...] = (2, 3)
    normalise: bool = False
    project: int = 100
    pool: int = 3
    share: float = 0.1
    bank: int = 3_000
    candidates: int = 60_000
    chunk: int = 1_000
    top: float = 0.01

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {},
        "paper": {
            "size": (256, 256),
            "aspect": "square",
            "backbone": "resnext101",
            "blocks": (1, 2, 3),
            "project": 0,
            "top": 0.0,
        },
    }


class Nearest(Detector):
    """The detector.

    Attributes:
        bank: (M, C) buffer, the vectors that are remembered; empty before fitting.
    """

    config_class = Config
    config: Config
    backbone: Backbone
    bank: Tensor

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape = level_shape(config.size, backbone.strides[0])
        self.grid = FeatureGrid(backbone.channels, shape, config.project, config.normalise)
        self.register_buffer("bank", torch.zeros(0, self.grid.channels))
        self.register_load_state_dict_pre_hook(_resize_before_load)  # type: ignore[no-untyped-call]

    def extract(self, image: Tensor) -> Features:
        """One pooled (N, C, H, W) level a block, projected where it is wide."""
        levels = self.grid.project(self.backbone(image))
        pool = self.config.pool
        return tuple(F.avg_pool2d(level, pool, 1, pool // 2) for level in levels)

    def prepare(self, good: Batches) -> None:
        """The scale of every channel."""
        for features in good:
            self.grid.add(features)
        self.grid.solve()

    def finish(self, good: Batches) -> None:
        """The bank."""
        positions = prod(self.grid.shape)
        total = positions * sum(len(features[0]) for features in good)
        drawn = torch.randperm(total)[: self.config.candidates].sort().values
        parts, first = [], 0
        for features in good:
            rows = _rows(self.grid(features))
            inside = drawn[(drawn >= first) & (drawn < first + len(rows))] - first
            parts.append(rows[inside.to(rows.device)])
            first += len(rows)
        candidates = torch.cat(parts)
        count = min(ceil(self.config.share * total), self.config.bank, len(candidates))
        self.bank = candidates[choose_coreset(candidates, count)]
        super().finish(good)

    def score(self, features: Features) -> Scores[Tensor]:
        """The distance to the nearest vector of the bank."""
        x = self.grid(features)
        rows = _rows(x)
        parts = torch.split(self.bank, self.config.chunk)
        nearest = torch.stack([squared_distances(rows, part).amin(1) for part in parts])  # (parts, N * H * W)
        anomaly_map = nearest.amin(0).clamp_min(0).sqrt().reshape(-1, 1, *x.shape[2:])
        return finish_scores(anomaly_map, self.config.size, self.config.top, self.inspected)


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _resize_before_load(detector: Nearest, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make room for the bank of a state, whose size follows from the images it was fitted on."""
    if f"{prefix}bank" in state:
        detector.bank = torch.empty_like(state[f"{prefix}bank"], device=detector.bank.device)
