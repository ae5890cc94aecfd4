"""Skip autoencoder over frozen CNN features: the method of the paper, and makel's default.

Paper: Tang, Hsu, Huang, Li: Industrial Anomaly Detection with Skip Autoencoder and Deep Feature Extractor.
Sensors 2022, 22, 9327, https://doi.org/10.3390/s22239327. No official code is known.

    features        FE(x): chosen blocks of a frozen CNN, resized and concatenated
    loss            L = E || AE(FE(x)) - FE(x) ||_2                       (equation 1)
    anomaly map     R = || AE(FE(x)) - FE(x) ||_2 over channels           (equation 2)

The preset `paper` is this, with every choice the paper leaves open made as follows.

 1. ResNeXt101 is torchvision's 32x8d with its first ImageNet weights: the only 101-layer variant there was then.
 2. 256x256 input without a crop, as in DFR, which the paper compares with.
 3. Blocks 1, 2, 3 are the stages of strides 4, 8, 16 after their last ReLU: 256 + 512 + 1024 = 1792 channels.
 4. All blocks are resized (bilinear) to 64x64, block 1's own side and DFR's grid; single blocks too.
 5. The features are not normalised: neither the paper nor DFR names a normalisation.
 6. The autoencoder follows the block rules of Skip-GANomaly, which the paper cites for its skips: 4x4 convolutions of
    stride 2 to 256, 512, 512, 512 channels, uncompressed skips at sides 32, 16, 8, and a linear output, since a tanh
    cannot reach features without bound.
 7. Equation 1 is trained as the mean squared error and equation 2 as the root of the channel sum, as in DFR's code.
 8. Batch 8; the last epoch is kept, since the paper names no validation set.
 9. The map is upsampled bilinearly without a blur, and the image score is its maximum, as in DFR.

The preset `fast` changes, for a small backbone on two CPU cores (docs/benchmarks has the measurements):

10. The image keeps about its aspect (`aspect`). It is brought to a standard brightness and contrast, and every channel
    to zero mean and unit variance.
11. Blocks 1 to 3, not resized to one grid: each block but the first, joined by the one before it averaged to its side,
    is a level of its own (strides 8 and 16). Blocks of more than 128 channels are first reduced by a fixed random
    orthonormal projection (Kim et al. 2021, https://arxiv.org/abs/2105.14737).
12. A narrow autoencoder, and only the deeper of its skips, compressed by a 1x1 convolution: what flows past the code
    reconstructs defects too.
13. AdamW with a one-cycle schedule, for 100 updates, and no image more than 20 times: trained longer it reconstructs
    defects better, not good parts, and learns few images by heart, whose residuals then say nothing about others.
14. The residual is not summed as it is, but measured against the residuals of good images. Where the product lies the
    same in every image, by a Mahalanobis distance at its position (`residual_layers.PositionGaussian`), of which
    equation 2 is the case of a unit covariance. Where it does not, in two ways: by the distance to the most similar one
    anywhere (`residual_layers.NearestResidual`), of the finest level and of neighbourhoods of all levels together
    (PatchCore's idea, Roth et al. 2022, https://arxiv.org/abs/2106.08265), and by what good images as wholes cannot
    explain (`residual_layers.WholeMap`), since products of several kinds or lights differ everywhere at once. Tiles,
    which are parts of an image, are read by the nearest alone.
15. The product lies the same where most of what the finest level shows is where on the image it stands
    (`residual_layers.Alignment`).
16. The map is the harmonic mean of the maps: a position counts as far off where every one says so, which keeps the
    coarse ones from smearing it. The image score is taken from the mean of each one's highest 1 %, or three quarters
    for a map as a whole: small defects show at the fine levels and large ones at the coarse. It is their geometric
    mean. Where wholes are read, which good images differ in more than in small parts, each is first measured by how
    good images differ in it that it was not learned from (`SkipAE.usual`): the score is the root mean square of the
    standard deviations above what is usual, and what is below counts for nothing. The finest level alone is then there
    for the sharpness of the map: it differs too much between good images to say much of one.
17. The same good images say how much a map as a whole is worth. Axes explain what good images have shown, which is
    little where a part lies anywhere: the map then varies within each good image, and counts the less (`STEADY`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makel.errors import UsageError
from makel.images import in_px
from makel.methods.layers import (
    LEAST,
    ChannelNorm,
    Projection,
    SkipAutoencoder,
    finish_level_scores,
    level_shape,
    log_spreads,
    log_top_means,
    neighbourhoods,
    standardise,
    to_side,
)
from makel.methods.residual_layers import Alignment, NearestResidual, PositionGaussian, Reading, WholeMap
from makel.training.backbones import Backbone
from makel.training.detector import Batches, Detector, DetectorConfig, Features
from makel.types import Scores


@dataclass(frozen=True, kw_only=True)
class Config(DetectorConfig):
    """Settings of the skip autoencoder. The defaults are the preset `fast`.

    Attributes:
        standardise: Bring every image to the same brightness and contrast first.
        normalise: Bring every feature channel to zero mean and unit variance over the good images.
        project: Reduce a level with more channels than this to this many; 0 for never.
        grid: Resize all levels to a square of this side and concatenate them; 0 to keep every level at its own side.
        join: Without a grid, give every level but the first the one before as well, averaged to its side, and leave
            out the first.
        widths: Channels of the encoder stages.
        skips: Channels of the skips, fine to deep: 0 for none, -1 for uncompressed.
        residual: How the residual is read (deviation 14): "gaussian" at its position, "nearest" anywhere, "whole" for
            that and images as wholes, "auto" for the first or the last (deviation 15), or "l2" for equation 2.
        bank: Residuals of good images that "nearest" remembers at most, of each kind.
        top: Share of each level's map whose mean goes into the image score; 0 for the map's maximum.
        learning_rate: Peak learning rate.
        schedule: "onecycle" with AdamW, or "constant" with Adam.
    """

    aspect: Literal["image", "square"] = "image"
    blocks: tuple[int, ...] = (1, 2, 3)
    updates: int = 100
    most_epochs: int = 20
    standardise: bool = True
    normalise: bool = True
    project: int = 128
    grid: int = 0
    join: bool = True
    widths: tuple[int, ...] = (32, 48, 64)
    skips: tuple[int, ...] = (0, 16)
    residual: Literal["auto", "gaussian", "nearest", "whole", "l2"] = "auto"
    bank: int = 512
    top: float = 0.01
    learning_rate: float = 3e-3
    schedule: Literal["onecycle", "constant"] = "onecycle"

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {},
        "paper": {
            "aspect": "square",
            "backbone": "resnext101",
            "blocks": (1, 2, 3),
            "epochs": 150,
            "standardise": False,
            "normalise": False,
            "project": 0,
            "grid": 64,
            "widths": (256, 512, 512, 512),
            "skips": (-1, -1, -1),
            "residual": "l2",
            "top": 0.0,
            "learning_rate": 1e-4,
            "schedule": "constant",
        },
    }
    # A tile stands anywhere, and how bright it is says what is in it: a blank one would become all noise.
    for_tiles: ClassVar[dict[str, Any]] = {"residual": "nearest", "standardise": False}


ALIGNED = 0.5
"""Share of the finest level's variance that lies between positions, from which on fine features have their place."""

USUAL_IMAGES, USUAL_PRIOR = 256, 4
"""Good images that tell how much they differ, at most, and as how many more what readings have in common counts."""

STEADY, STEEP = 2.0, 8
"""A whole's map counts in full as long as within good images it varies less than this many times as much as the maps of
the nearest; beyond, less by this power of how many times as much."""

_COUNTS = {"whole": (3, 3), "nearest": (2, 2), "patch": (4, 2), "gaussian": (1, 1)}
"""How much a reading counts in the map and in the image score, beside the others."""

_Key = tuple[str, int]
"""A reading: its name, and the level whose side its map has."""


class SkipAE(Detector):
    """The detector. Its levels are the backbone's blocks, or one concatenation of them (`config.grid`).

    Attributes:
        readings: How residuals are read, by `NAME_LEVEL`; none for equation 2.
        weights: (2, readings) buffer, how much each one counts in map and image score; each row's sum is 1.
        usual: (readings, 2) buffer, mean and standard deviation of each one's `log_top_means` over good images that it
            was not learned from; zeros where the score does not need it.
    """

    config_class = Config
    config: Config
    backbone: Backbone
    norms: Sequence[ChannelNorm]

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        projections = [Projection(c, config.project) for c in backbone.channels]
        channels = [projection.channels for projection in projections]
        strides = backbone.strides
        if config.join and len(channels) > 1 and not config.grid:
            channels, strides = [fine + coarse for fine, coarse in pairwise(channels)], strides[1:]
        shapes = [level_shape(config.size, stride) for stride in strides]
        if config.grid:
            channels, shapes = [sum(channels)], [(config.grid, config.grid)]
        if min(shapes[0]) < 2 ** len(config.widths):
            raise UsageError(
                f"size {in_px(config.size)} with blocks {config.blocks} gives a finest level of {shapes[0][1]} x "
                f"{shapes[0][0]}, which cannot be halved {len(config.widths)} times: choose a larger size, or fewer "
                "widths"
            )
        self.projections = nn.ModuleList(projections)
        norms = [ChannelNorm(c) for c in channels]
        self.norms = cast("Sequence[ChannelNorm]", nn.ModuleList(norms if config.normalise else []))
        self._shapes = list(zip(channels, shapes, strict=True))
        halvings = [(stride // strides[0]).bit_length() - 1 for stride in strides[1 : len(shapes)]]
        self.autoencoder = SkipAutoencoder(channels, halvings, config.widths, config.skips)
        self.readings = nn.ModuleDict()
        self.weights: Tensor
        self.usual: Tensor
        self.register_buffer("weights", torch.zeros(2, 0))
        self.register_buffer("usual", torch.zeros(0, 2))
        self._aligned = False
        self._settled = config
        if config.residual in ("gaussian", "nearest", "whole"):
            self._settle(config.residual, self._make_readings(config.residual))
        self.register_load_state_dict_pre_hook(_settle_before_load)  # type: ignore[no-untyped-call]

    @property
    def settled(self) -> Config:
        """The settings with the reading that `finish` chose."""
        return self._settled

    def extract(self, image: Tensor) -> Features:
        """One (N, C, H, W) level a block, projected where it is wide."""
        levels = self.backbone(standardise(image) if self.config.standardise else image)
        return tuple(project(level) for project, level in zip(self.projections, levels, strict=True))

    def prepare(self, good: Batches) -> None:
        """Mean and standard deviation of every channel, and how alike the images are."""
        alignment = Alignment()
        for features in good:
            levels = self._align(features)
            alignment.add(levels[0])
            for norm, level in zip(self.norms, levels, strict=bool(self.norms)):
                norm.add(level)
        for norm in self.norms:
            norm.solve()
        self._aligned = alignment.solve() > ALIGNED

    def optimizers(self, steps: int) -> dict[str, tuple[torch.optim.Optimizer, Any]]:
        """One optimiser, for the autoencoder."""
        parameters, rate = self.autoencoder.parameters(), self.config.learning_rate
        if self.config.schedule == "constant":
            return {"autoencoder": (torch.optim.Adam(parameters, rate), None)}
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=1e-4)
        return {"autoencoder": (optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps))}

    def training_step(self, features: Features) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Equation 1, averaged over the levels."""
        levels = self._levels(features)
        losses = [F.mse_loss(out, level) for out, level in zip(self.autoencoder(levels), levels, strict=True)]
        loss = torch.stack(losses).mean()
        yield "autoencoder", loss, {"loss": loss}

    def finish(self, good: Batches) -> None:
        """How the residuals of good images look."""
        if self.config.residual != "l2":
            self._read(good)
        super().finish(good)

    def trained_state(self) -> dict[str, Tensor]:
        """The autoencoder and the channels' scales, without the readings, which are many times larger."""
        read = ("readings.", "weights", "usual")
        return {key: value for key, value in self.learned_state().items() if not key.startswith(read)}

    def residuals(self, features: Features) -> list[Tensor]:
        """FE(x) - AE(FE(x)) of every level, each (N, C, H, W)."""
        levels = self._levels(features)
        return [level - out for level, out in zip(levels, self.autoencoder(levels), strict=True)]

    def score(self, features: Features) -> Scores[Tensor]:
        """Equation 2, or its whitened form, over all levels."""
        residuals = self.residuals(features)
        if not self.readings:
            maps = [residual.square().sum(1, keepdim=True).sqrt() for residual in residuals]
            return finish_level_scores(maps, self.config.size, [self.config.top] * len(maps), self.inspected)
        readings = {_parse(key): cast("Reading", reading) for key, reading in self.readings.items()}
        maps = [reading(self._seen(key, residuals)) for key, reading in readings.items()]
        usual = self.usual if self._settled.residual == "whole" else None
        tops = self._tops(readings.values())
        return finish_level_scores(maps, self.config.size, tops, self.inspected, self.weights, usual)

    def _tops(self, readings: Iterable[Reading]) -> list[float]:
        return [self.config.top if reading.share is None else reading.share for reading in readings]

    def _levels(self, features: Features) -> list[Tensor]:
        levels = self._align(features)
        return [norm(level) for norm, level in zip(self.norms, levels, strict=True)] if self.norms else levels

    def _align(self, features: Features) -> list[Tensor]:
        if self.config.grid:
            return [torch.cat([to_side(level, (self.config.grid, self.config.grid)) for level in features], 1)]
        if self.config.join and len(features) > 1:
            pairs = pairwise(features)
            return [torch.cat([to_side(fine, coarse.shape[-2:]), coarse], 1) for fine, coarse in pairs]
        return list(features)

    def _settle(self, way: str, readings: Mapping[_Key, Reading]) -> None:
        """Read in the way of this name, by these readings from now on."""
        self._settled = replace(self.config, residual=cast("Any", way))
        self.readings = nn.ModuleDict({f"{name}_{level}": reading for (name, level), reading in readings.items()})
        counts = self.usual.new_tensor([_COUNTS[name] for name, _ in readings]).T
        if way != "gaussian" and len(self._shapes) > 1:  # the finest level is there for the map (deviation 16)
            counts[1, [level == 0 for _, level in readings]] = 0
        self.weights = counts / counts.sum(1, keepdim=True)
        self.usual = self.usual.new_zeros(len(readings), 2)

    def _make_readings(self, way: str) -> dict[_Key, Reading]:
        every = range(len(self._shapes))
        if way == "gaussian":
            keys = [("gaussian", level) for level in every]
        else:
            nearest = [("nearest", 0), ("patch", min(1, len(every) - 1))]
            keys = [*[("whole", level) for level in every if way == "whole"], *nearest]
        return {key: self._reading(*key) for key in keys}

    def _reading(self, name: str, level: int) -> Reading:
        channels, shape = self._shapes[level]
        if name == "patch":
            return NearestResidual(sum(channels for channels, _ in self._shapes), self.config.bank)
        if name == "nearest":
            return NearestResidual(channels, self.config.bank)
        return WholeMap(channels, shape) if name == "whole" else PositionGaussian(channels, shape)

    def _seen(self, key: _Key, residuals: Sequence[Tensor]) -> Tensor:
        """What a reading looks at."""
        name, level = key
        return neighbourhoods(residuals, self._shapes[level][1]) if name == "patch" else residuals[level]

    def _read(self, good: Batches) -> None:
        way: str = self.config.residual
        if way == "auto":
            way = "gaussian" if self._aligned else "whole"
        device = next(self.parameters()).device
        readings = {key: reading.to(device) for key, reading in self._make_readings(way).items()}
        count = 0
        for features in good:
            residuals = self.residuals(features)
            for key, reading in readings.items():
                reading.add(self._seen(key, residuals), count)
            count += len(features[0])
        for reading in readings.values():
            reading.solve()
            if way != "whole":
                reading.forget()
        self._settle(way, readings)
        if way == "whole":
            self._weigh(good, readings, count)
            for reading in readings.values():
                reading.forget()

    def _weigh(self, good: Batches, readings: Mapping[_Key, Reading], count: int) -> None:
        """What is usual in every reading and how much it counts, by good images it was not learned from."""
        tops, logs, spreads, first = self._tops(readings.values()), [], [], 0
        every = -(-count // USUAL_IMAGES)
        for index, features in enumerate(good):
            if index % every == 0:
                residuals = self.residuals(features)
                maps = [reading.left_out(self._seen(key, residuals), first) for key, reading in readings.items()]
                logs.append(log_top_means(maps, tops, self.inspected))
                spreads.append(log_spreads(maps, self.inspected))
            first += len(features[0])
        found = torch.cat(logs, 1)
        freedom = found.shape[1] - 1
        variance = found.var(1) if freedom else torch.ones_like(found[:, 0])
        # Few images tell a spread badly: what all readings have in common counts like some more.
        variance = (freedom * variance + USUAL_PRIOR * variance.mean()) / (freedom + USUAL_PRIOR)
        self.usual.copy_(torch.stack([found.mean(1), variance.sqrt().clamp_min(LEAST)], 1))
        spread = torch.cat(spreads, 1).mean(1).clamp_min(LEAST)
        steady = STEADY * spread[[name != "whole" for name, _ in readings]].mean()
        trusted = self.weights * (steady / spread).clamp_max(1) ** STEEP
        self.weights.copy_(trusted / trusted.sum(1, keepdim=True))


def _parse(key: str) -> _Key:
    """Name and level of a reading's key among `readings`."""
    name, level = key.split("_")
    return name, int(level)


def _settle_before_load(detector: SkipAE, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make the readings of a state, which a fit may have chosen."""
    start = f"{prefix}readings."
    found = {_parse(key.removeprefix(start).split(".")[0]) for key in state if key.startswith(start)}
    if found:
        names = {name for name, _ in found}
        way = next(way for way in ("whole", "nearest", "gaussian") if way in names)
        detector._settle(way, detector._make_readings(way))
        detector.readings.to(next(detector.parameters()).device)
