"""Skip autoencoder over frozen CNN features: the method of the paper, and makel's default.

Paper: Tang, Hsu, Huang, Li: Industrial Anomaly Detection with Skip Autoencoder and Deep Feature Extractor.
Sensors 2022, 22, 9327, https://doi.org/10.3390/s22239327. No official code is known.

    features        FE(x): chosen blocks of a frozen CNN, resized and concatenated
    loss            L = E || AE(FE(x)) - FE(x) ||_2                       (equation 1)
    anomaly map     R = || AE(FE(x)) - FE(x) ||_2 over channels           (equation 2)

The preset `paper` is this. What the paper leaves open:

1. ResNeXt101 is torchvision's 32x8d with its first ImageNet weights; blocks 1, 2, 3 are the stages of strides 4, 8, 16
   after their last ReLU: 1792 channels. Input is 256x256 without a crop, and all blocks are resized (bilinear) to
   64x64, as in DFR, which the paper compares with. The features are not normalised.
2. The autoencoder follows the block rules of Skip-GANomaly, which the paper cites for its skips: 4x4 convolutions of
   stride 2 to 256, 512, 512, 512 channels, uncompressed skips at sides 32, 16, 8, and a linear output, since a tanh
   cannot reach features without bound.
3. Equation 1 is trained as the mean squared error and equation 2 as the root of the channel sum, as in DFR's code.
   Batch 8; the last epoch is kept, since the paper names no validation set.
4. The map is upsampled bilinearly without a blur, and the image score is its maximum, as in DFR.

The preset `fast` changes, for a small backbone on two CPU cores (docs/benchmarks has the measurements):

5. The input has the aspect of the good images and as many pixels as a square of 384. Blocks 2 and 3 stand on the finer
   one's grid, every channel with zero mean and unit variance. Blocks of more than 128 channels are first reduced by a
   fixed random orthonormal projection (Kim et al. 2021, https://arxiv.org/abs/2105.14737).
6. A smaller autoencoder with skips compressed by 1x1 convolutions, trained by AdamW with a one-cycle schedule for 800
   updates of 4 images, and no image seen more often than `most_epochs` says.
7. The residual is not summed as it is. Together with the features it comes from, averaged over 3x3 positions, it is
   one vector a position; a position is as far off as the nearest such vector of a good image, wherever that one stood
   (`good_layers.NearestGood`; PatchCore's idea, Roth et al. 2022, https://arxiv.org/abs/2106.08265).
8. So is the image as a whole: what the principal axes of good images, each one vector, leave of this one
   (`good_layers.WholeImages`; Ahuja et al. 2019, https://arxiv.org/abs/1909.11786). Tiles, which are parts of an image,
   are read by the nearest alone, at 256 x 256.
9. The map is the harmonic mean of the squares of both. The image score takes the highest 1 % of the nearest's map, and
   of the whole's its highest 5 % and all of it. Each is measured by what is usual among good images that nothing has
   learned from, in standard deviations of its logarithm; the score is the root mean square of those above the usual,
   and what is below counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from makel.errors import UsageError
from makel.methods.good_layers import NearestGood, WholeImages
from makel.methods.layers import (
    LEAST,
    FeatureGrid,
    SkipAutoencoder,
    finish_scores,
    level_shape,
    neighbourhoods,
    top_mean,
)
from makel.training.backbones import Backbone
from makel.training.detector import Batches, Detector, DetectorConfig, Features
from makel.types import Scores, Shape, in_px


@dataclass(frozen=True, kw_only=True)
class Config(DetectorConfig):
    """Settings of the skip autoencoder. The defaults are the preset `fast`.

    Attributes:
        normalise: Bring every feature channel to zero mean and unit variance over the good images.
        project: Reduce a block with more channels than this to this many; 0 for never.
        grid: Side of the grid that all blocks are resized to; 0 for that of the finest.
        widths: Channels of the encoder stages.
        skips: Channels of the skips, fine to deep: 0 for none, -1 for uncompressed.
        reading: How a residual becomes a map: "l2" is equation 2, "nearest" deviation 7, "both" deviations 7 and 8.
        bank: Vectors of good images that are remembered at most.
        learning_rate: Peak learning rate.
        schedule: "onecycle" with AdamW, or "constant" with Adam.
    """

    size: Shape = (384, 384)
    aspect: Literal["image", "square"] = "image"
    blocks: tuple[int, ...] = (2, 3)
    updates: int = 800
    most_epochs: int = 50
    batch_size: int = 4
    normalise: bool = True
    project: int = 128
    grid: int = 0
    widths: tuple[int, ...] = (128, 256, 256)
    skips: tuple[int, ...] = (16, 32)
    reading: Literal["both", "nearest", "l2"] = "both"
    bank: int = 1000
    learning_rate: float = 2e-3
    schedule: Literal["onecycle", "constant"] = "onecycle"

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {},
        "paper": {
            "size": (256, 256),
            "aspect": "square",
            "backbone": "resnext101",
            "blocks": (1, 2, 3),
            "epochs": 150,
            "batch_size": 8,
            "normalise": False,
            "project": 0,
            "grid": 64,
            "widths": (256, 512, 512, 512),
            "skips": (-1, -1, -1),
            "reading": "l2",
            "learning_rate": 1e-4,
            "schedule": "constant",
        },
    }
    for_tiles: ClassVar[dict[str, Any]] = {"reading": "nearest", "size": (256, 256)}


NEAREST_TOPS, WHOLE_TOPS = (0.01,), (0.05, 1.0)
"""Shares of either map whose mean says how far off an image is (deviation 9)."""

COUNTS = (2.0, 2.0, 1.0)
"""How much each of these counts in the image score."""

MOST_UNSEEN, FOLDS = 32, 4
"""Good images that the autoencoder is kept from, at most, a quarter of them where there are fewer; and parts that good
images fall into for wholes, each of which is read by what the others show."""

PRIOR_STD, PRIOR_IMAGES = 0.1, 1
"""What is supposed of the spread of good images before any is seen, and as how many images that counts."""


class SkipAE(Detector):
    """The detector.

    Attributes:
        usual: (3, 2) buffer, mean and standard deviation of what `_measures` gives of unseen good images.
        typical: (2,) buffer, the mean of both maps over those images.
    """

    config_class = Config
    config: Config
    backbone: Backbone
    usual: Tensor
    typical: Tensor

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape = (config.grid, config.grid) if config.grid else level_shape(config.size, backbone.strides[0])
        if min(shape) < 2 ** len(config.widths):
            raise UsageError(
                f"size {in_px(config.size)} with blocks {config.blocks} gives a finest level of {shape[1]} x "
                f"{shape[0]}, which cannot be halved {len(config.widths)} times: choose a larger size, or fewer widths"
            )
        self.grid = FeatureGrid(backbone.channels, shape, config.project, config.normalise)
        self.autoencoder = SkipAutoencoder(self.grid.channels, config.widths, config.skips)
        self.nearest = NearestGood(2 * self.grid.channels, config.bank)
        self.whole = WholeImages(self.grid.channels, shape)
        self.register_buffer("usual", torch.tensor([[0.0, 1.0]]).repeat(3, 1))
        self.register_buffer("typical", torch.ones(2))
        self._images = self._unseen = np.zeros(0, np.int64)

    def extract(self, image: Tensor) -> Features:
        """One (N, C, H, W) level a block, projected where it is wide."""
        return self.grid.project(self.backbone(image))

    def trained_on(self, images: NDArray[np.int64]) -> NDArray[np.bool_]:
        """All but a few images, which say in the end how good images differ that nothing has learned from."""
        every = np.unique(images)
        count = 0 if self.config.reading == "l2" else min(len(every) // 4, MOST_UNSEEN)
        spread = np.linspace(0, len(every) - 1, count + 2).round().astype(np.int64)[1:-1]
        self._images, self._unseen = images, every[spread]
        kept: NDArray[np.bool_] = ~np.isin(images, self._unseen)
        return kept

    def prepare(self, good: Batches) -> None:
        """Mean and standard deviation of every channel."""
        for features in good:
            self.grid.add(features)
        self.grid.solve()

    def optimizers(self, steps: int) -> dict[str, tuple[torch.optim.Optimizer, Any]]:
        """One optimiser, for the autoencoder."""
        parameters, rate = self.autoencoder.parameters(), self.config.learning_rate
        if self.config.schedule == "constant":
            return {"autoencoder": (torch.optim.Adam(parameters, rate), None)}
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=1e-4)
        return {"autoencoder": (optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps))}

    def training_step(self, features: Features) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Equation 1."""
        x = self.grid(features)
        loss = F.mse_loss(self.autoencoder(x), x)
        yield "autoencoder", loss, {"loss": loss}

    def finish(self, good: Batches) -> None:
        """What good images look like, and how unseen ones differ from that."""
        if self.config.reading != "l2":
            for value in self.autoencoder.parameters():
                value.copy_(value.half())  # half the size of the model folder; what follows knows it like this
            self._read(good)
        super().finish(good)

    def trained_state(self) -> dict[str, Tensor]:
        """The autoencoder and the channels' scales, without the readings, which are many times larger."""
        trained = {
            key: value for key, value in self.learned_state().items() if key.startswith(("autoencoder.", "grid."))
        }
        # The autoencoder is in half precision already, see `finish`; a float16 tensor loads into a float32 one.
        return {
            key: value.half() if key.startswith("autoencoder.") and value.ndim > 1 else value
            for key, value in trained.items()
        }

    def residual(self, features: Features) -> Tensor:
        """FE(x) - AE(FE(x)): (N, C, rows, columns)."""
        x = self.grid(features)
        difference: Tensor = x - self.autoencoder(x)
        return difference

    def score(self, features: Features) -> Scores[Tensor]:
        """Equation 2, or how far off every position and the whole image are from good ones."""
        if self.config.reading == "l2":
            anomaly_map = self.residual(features).square().sum(1, keepdim=True).sqrt()
            return finish_scores(anomaly_map, self.config.size, 0.0, self.inspected)
        maps = [self.nearest(self._described(features))]
        if self.config.reading == "both":
            maps.append(self.whole(self.grid(features)))
        measures = torch.cat([self._measures(each, index) for index, each in enumerate(maps)])
        mean, std = self.usual[: len(measures), :1], self.usual[: len(measures), 1:]
        # A soft zero below the usual: nothing makes up for what is too high elsewhere, and no two images get the same.
        above = F.softplus((measures - mean) / std)
        counts = above.new_tensor(COUNTS[: len(measures)])[:, None]
        score = ((counts * above * above).sum(0) / counts.sum()).sqrt()
        return Scores(image=score, anomaly_map=self._joined(maps))

    def _described(self, features: Features) -> Tensor:
        """Features and residual of every position, averaged over its neighbourhood: (N, 2C, rows, columns)."""
        shape = self.grid.shape
        return torch.cat([neighbourhoods(features, shape), neighbourhoods([self.residual(features)], shape)], 1)

    def _measures(self, distances: Tensor, index: int) -> Tensor:
        """(measures, N) logarithms of how far off images are, by (N, 1, h, w) distances of the nearest or the whole."""
        tops = [top_mean(distances, share, self.inspected) for share in (NEAREST_TOPS, WHOLE_TOPS)[index]]
        return torch.stack(tops).clamp_min(LEAST).log()

    def _joined(self, maps: list[Tensor]) -> Tensor:
        """The harmonic mean of the squares of (N, 1, h, w) maps, each over what is typical: its root, at full size."""
        size = self.config.size
        parts = [each / typical for each, typical in zip(maps, self.typical, strict=False)]
        parts = [F.interpolate(part, size, mode="bilinear", align_corners=False) for part in parts]
        squares = [part * part for part in parts]
        joined = squares[0] if len(squares) == 1 else 2 * squares[0] * squares[1] / (squares[0] + squares[1])
        root: Tensor = joined.sqrt()
        return root

    def _read(self, good: Batches) -> None:
        generator = torch.Generator().manual_seed(0)
        drawn, wholes = [], []
        for features in good:
            drawn.append(self.nearest.draw(self._described(features), len(self._images), generator))
            if self.config.reading == "both":
                wholes.append(self.whole.shrink(self.grid(features)))
        rows = torch.cat(drawn)
        per_image = len(rows) // len(self._images)
        seen = ~np.isin(self._images, self._unseen)
        self.nearest.learn(rows[torch.from_numpy(seen).repeat_interleave(per_image)])
        maps = [self._nearest_of(good, seen if seen.all() else ~seen)]  # so few images have only themselves
        self.nearest.learn(rows)
        if wholes:
            images = torch.cat(wholes)
            maps.append(self._left_out_wholes(images))
            self.whole.learn(images)
        self._set_usual(maps)

    def _nearest_of(self, good: Batches, chosen: NDArray[np.bool_]) -> Tensor:
        """The nearest's maps of the chosen good images."""
        maps, first = [], 0
        for features in good:
            wanted = torch.from_numpy(chosen[first : first + len(features[0])]).to(features[0].device)
            first += len(wanted)
            if wanted.any():
                maps.append(self.nearest(self._described(tuple(level[wanted] for level in features))))
        return torch.cat(maps)

    def _left_out_wholes(self, images: Tensor) -> Tensor:
        """The whole's maps of good images, each by the axes of others."""
        parts = np.unique(self._images, return_inverse=True)[1] % FOLDS
        maps = []
        for part in np.unique(parts):
            own = torch.from_numpy(parts == part)
            self.whole.learn(images[own if own.all() else ~own])  # a single image has only itself
            maps.append(self.whole.distance(images[own].float()))
        return torch.cat(maps)

    def _set_usual(self, maps: list[Tensor]) -> None:
        usual, typical = [], []
        for index, each in enumerate(maps):
            found = self._measures(each, index)
            squares = (found - found.mean(1, keepdim=True)).square().sum(1)
            variance = (squares + PRIOR_IMAGES * PRIOR_STD**2) / (found.shape[1] - 1 + PRIOR_IMAGES)
            usual.append(torch.stack([found.mean(1), variance.sqrt()], 1))
            typical.append(each.mean())
        self.usual[: sum(map(len, usual))] = torch.cat(usual)
        self.typical[: len(typical)] = torch.stack(typical).clamp_min(LEAST)
