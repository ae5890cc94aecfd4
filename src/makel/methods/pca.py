"""PCA: what a linear map can reconstruct. The control that tells what an autoencoder's non-linearity buys.

No paper of its own; subspace reconstruction error as a novelty measure is older than deep features. On features of a
frozen CNN it is the closed-form optimum of a linear autoencoder with one code a position:

    x               the features of a position: chosen blocks of a frozen CNN, resized and concatenated, C channels
    V               the fewest principal axes that keep a share of the variance of x over good images
    reconstruction  m + V V^T (x - m)                                   m: the mean of x
    anomaly map     || (I - V V^T) (x - m) ||_2

Both presets take the features of the preset of the same name of skip_ae, so that only the reconstruction differs:

1. `fast` concatenates all levels on the finest level's grid, since a linear map a position has no other way to relate
   them; it keeps 99 % of the variance, and its image score is the mean of the map's highest 1 %.
2. `paper` keeps 90 %, the share from which DFR takes the size of its latent; its image score is the map's maximum.
3. The residual is not weighed by the variance it has on good images, as equation 2 of the paper does not either.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from makel.methods.layers import FeatureGrid, Moments, finish_scores, level_shape, principal_axes
from makel.training.backbones import Backbone
from makel.training.detector import Batches, Detector, DetectorConfig, Features
from makel.types import Scores, Shape


@dataclass(frozen=True, kw_only=True)
class Config(DetectorConfig):
    """Settings of the linear reconstruction. The defaults are the preset `fast`.

    Attributes:
        normalise: Bring every feature channel to zero mean and unit variance over the good images.
        project: Reduce a level with more channels than this to this many; 0 for never.
        variance: Share of the variance the principal axes keep.
        top: Share of the map whose mean is the image score; 0 for its maximum.
    """

    size: Shape = (384, 384)
    aspect: Literal["image", "square"] = "image"
    blocks: tuple[int, ...] = (2, 3)
    normalise: bool = True
    project: int = 100
    variance: float = 0.99
    top: float = 0.01

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {},
        "paper": {
            "size": (256, 256),
            "aspect": "square",
            "backbone": "resnext101",
            "blocks": (1, 2, 3),
            "normalise": False,
            "project": 0,
            "variance": 0.9,
            "top": 0.0,
        },
    }


class PCA(Detector):
    """The detector.

    Attributes:
        mean: (C,) buffer, m.
        complement: (C, C) buffer, I - V V^T.
        components: () int64 buffer, the number of principal axes kept.
    """

    config_class = Config
    config: Config
    backbone: Backbone
    mean: Tensor
    complement: Tensor
    components: Tensor

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape = level_shape(config.size, backbone.strides[0])
        self.grid = FeatureGrid(backbone.channels, shape, config.project, config.normalise)
        channels = self.grid.channels
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("complement", torch.zeros(channels, channels))
        self.register_buffer("components", torch.zeros((), dtype=torch.int64))

    def extract(self, image: Tensor) -> Features:
        """One (N, C, H, W) level a block, projected where it is wide."""
        return self.grid.project(self.backbone(image))

    def prepare(self, good: Batches) -> None:
        """The scale of every channel."""
        for features in good:
            self.grid.add(features)
        self.grid.solve()

    def finish(self, good: Batches) -> None:
        """The principal axes."""
        moments = Moments()
        for features in good:
            moments.add(self.grid(features))
        mean, covariance = moments.solve()
        axes = principal_axes(covariance, self.config.variance)
        self.mean.copy_(mean)
        self.complement.copy_(torch.eye(len(mean), dtype=axes.dtype) - axes @ axes.T)
        self.components.fill_(axes.shape[1])
        super().finish(good)

    def score(self, features: Features) -> Scores[Tensor]:
        """The length of what the principal axes leave over."""
        centred = self.grid(features) - self.mean[:, None, None]
        residual = F.conv2d(centred, self.complement[:, :, None, None])
        anomaly_map = residual.square().sum(1, keepdim=True).sqrt()
        return finish_scores(anomaly_map, self.config.size, self.config.top, self.inspected)
