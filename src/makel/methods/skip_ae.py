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

10. The image is brought to a standard brightness and contrast, and every channel to zero mean and unit variance.
11. Blocks 1 to 4, not resized to one grid: each block but the first, joined by the one before it averaged to its side,
    is a level of its own (strides 8, 16, 32). Blocks of more than 128 channels are first reduced by a fixed random
    orthonormal projection (Kim et al. 2021, https://arxiv.org/abs/2105.14737).
12. A narrow autoencoder, and only the deeper of its skips, compressed by a 1x1 convolution: what flows past the code
    reconstructs defects too.
13. AdamW with a one-cycle schedule, for 100 updates: trained longer it reconstructs defects better, not good parts.
14. The residual is not summed as it is, but measured against the residuals of good images, in one of two ways: a
    Mahalanobis distance at its position (`residual_layers.PositionGaussian`), of which equation 2 is the case of a unit
    covariance; or the distance to the most similar one anywhere (`residual_layers.NearestResidual`), for products that
    lie in another place in every image.
15. The map is the harmonic mean of the levels' maps: a position counts as far off where every level says so, which
    keeps the coarse levels from smearing it. The image score is the geometric mean over the levels of the mean of
    each one's highest 1 %: small defects show at the fine levels and large ones at the coarse.
16. Where most of what the finest level shows is where on the image it stands (`residual_layers.Alignment`), fine
    features have their place: Gaussians read the finest two levels. Else these are the surface's noise, and the
    coarsest two levels are read, or all, by Gaussians or by the nearest: by what tells good images best from the same
    with a made-up defect, every image judged by a reading that was fitted without it (`residual_layers.separation`,
    `makel.training.implants`). Levels that are not read because the product lies the same way are not computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makel.errors import UsageError
from makel.methods.layers import (
    ChannelNorm,
    Projection,
    SkipAutoencoder,
    finish_level_scores,
    level_score,
    standardise,
    to_side,
)
from makel.methods.residual_layers import (
    FOLDS,
    Alignment,
    NearestResidual,
    PositionGaussian,
    Reading,
    SharedGaussian,
    separation,
)
from makel.training.backbones import Backbone
from makel.training.detector import Batches, Detector, DetectorConfig, Features, Implant, Implanted
from makel.types import Scores


@dataclass(frozen=True, kw_only=True)
class Config(DetectorConfig):
    """Settings of the skip autoencoder. The defaults are the preset `fast`.

    Attributes:
        standardise: Bring every image to the same brightness and contrast first.
        normalise: Bring every feature channel to zero mean and unit variance over the good images.
        project: Reduce a level with more channels than this to this many; 0 for never.
        grid: Resize all levels to this side and concatenate them; 0 to keep every level at its own side.
        join: Without a grid, give every level but the first the one before as well, averaged to its side, and leave
            out the first.
        widths: Channels of the encoder stages.
        skips: Channels of the skips, fine to deep: 0 for none, -1 for uncompressed.
        residual: How the residual is read (deviation 14): "gaussian", "nearest", "auto" for the better of both
            (deviation 16), or "l2" for equation 2.
        read: The levels that are read, finest is 0; empty for those that "auto" chooses, or for all.
        shared_position: One Gaussian a level instead of one a position: for tiles, which stand anywhere.
        bank: Residuals of good images that "nearest" remembers at most, a level.
        top: Share of each level's map whose mean goes into the image score; 0 for the map's maximum.
        learning_rate: Peak learning rate.
        schedule: "onecycle" with AdamW, or "constant" with Adam.
    """

    blocks: tuple[int, ...] = (1, 2, 3, 4)
    updates: int = 100
    standardise: bool = True
    normalise: bool = True
    project: int = 128
    grid: int = 0
    join: bool = True
    widths: tuple[int, ...] = (32, 48, 64)
    skips: tuple[int, ...] = (0, 16)
    residual: Literal["auto", "gaussian", "nearest", "l2"] = "auto"
    read: tuple[int, ...] = ()
    shared_position: bool = False
    bank: int = 2048
    top: float = 0.01
    learning_rate: float = 3e-3
    schedule: Literal["onecycle", "constant"] = "onecycle"

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {},
        "paper": {
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
    for_tiles: ClassVar[dict[str, Any]] = {"shared_position": True, "standardise": False}


ALIGNED = 0.5
"""Share of the finest level's variance that lies between positions, from which on fine features have their place."""


class SkipAE(Detector):
    """The detector. Its levels are the backbone's blocks, or one concatenation of them (`config.grid`)."""

    config_class = Config
    config: Config
    backbone: Backbone
    norms: Sequence[ChannelNorm]

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        projections = [Projection(c, config.project) for c in backbone.channels]
        channels = [projection.channels for projection in projections]
        sides = [-(-config.size // stride) for stride in backbone.strides]
        if config.grid:
            channels, sides = [sum(channels)], [config.grid]
        elif config.join and len(channels) > 1:
            channels, sides = [fine + coarse for fine, coarse in pairwise(channels)], sides[1:]
        if sides[0] % 2 ** len(config.widths):
            raise UsageError(
                f"size {config.size} with blocks {config.blocks} gives a finest level of side {sides[0]}, which cannot "
                f"be halved {len(config.widths)} times: choose a size that is a multiple of "
                f"{2 ** len(config.widths) * config.size // sides[0]}, or fewer widths"
            )
        self.projections = nn.ModuleList(projections)
        norms = [ChannelNorm(c) for c in channels]
        self.norms = cast("Sequence[ChannelNorm]", nn.ModuleList(norms if config.normalise else []))
        self._shapes = list(zip(channels, sides, strict=True))
        self.autoencoder = self._make_autoencoder()
        if any(not 0 <= level < len(sides) for level in config.read):
            raise UsageError(f"read={config.read} names levels that are not there: there are 0 to {len(sides) - 1}")
        self.readings = nn.ModuleDict()
        self._aligned = False
        self._settled = config
        if config.residual in ("gaussian", "nearest"):
            self._settle(config.residual, self._make_readings(config.residual, config.read or range(len(sides))))
        self.register_load_state_dict_pre_hook(_settle_before_load)  # type: ignore[no-untyped-call]

    @property
    def settled(self) -> Config:
        """The settings with the reading and the levels that `finish` chose."""
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
        self._aligned = alignment.solve() > ALIGNED and not self.config.shared_position
        if self._aligned and self.config.residual != "l2":
            self._keep(len(self._runs()[-1]))

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

    def finish(self, good: Batches, implanted: Implant | None = None) -> None:
        """How the residuals of good images look, and which way and levels to read them by."""
        if self.config.residual != "l2":
            self._read(good, implanted)
        super().finish(good, implanted)

    def trained_state(self) -> dict[str, Tensor]:
        """The autoencoder and the channels' scales, without the readings, which are many times larger."""
        return {key: value for key, value in self.learned_state().items() if not key.startswith("readings.")}

    def residuals(self, features: Features) -> list[Tensor]:
        """FE(x) - AE(FE(x)) of every level, each (N, C, H, W)."""
        levels = self._levels(features)
        return [level - out for level, out in zip(levels, self.autoencoder(levels), strict=True)]

    def score(self, features: Features) -> Scores[Tensor]:
        """Equation 2, or its whitened form, over all levels."""
        residuals = self.residuals(features)
        if self.readings:
            maps = [reading(residuals[int(level)]) for level, reading in self.readings.items()]
        else:
            maps = [residual.square().sum(1, keepdim=True).sqrt() for residual in residuals]
        return finish_level_scores(maps, self.config.size, self.config.top, self.inspected)

    def _make_autoencoder(self) -> SkipAutoencoder:
        channels, sides = zip(*self._shapes, strict=True)
        halvings = [(sides[0] // side).bit_length() - 1 for side in sides[1:]]
        return SkipAutoencoder(channels, halvings, self.config.widths, self.config.skips)

    def _keep(self, count: int) -> None:
        """Go on with the finest levels alone, as if built for no others: what only the rest need costs time."""
        if count == len(self._shapes):
            return
        device = next(self.parameters()).device
        blocks = count + 1 if self.config.join else count
        self.backbone = self.backbone.first(blocks).to(device)
        self.projections = self.projections[:blocks]
        self.norms = self.norms[:count]
        self._shapes = self._shapes[:count]
        self.autoencoder = self._make_autoencoder().to(device)

    def _levels(self, features: Features) -> list[Tensor]:
        levels = self._align(features)
        return [norm(level) for norm, level in zip(self.norms, levels, strict=True)] if self.norms else levels

    def _align(self, features: Features) -> list[Tensor]:
        features = features[: len(self.projections)]  # those of `_keep`, of features that were computed before it
        if self.config.grid:
            return [torch.cat([to_side(level, self.config.grid) for level in features], 1)]
        if self.config.join and len(features) > 1:
            pairs = pairwise(features)
            return [torch.cat([to_side(fine, coarse.shape[-1]), coarse], 1) for fine, coarse in pairs]
        return list(features)

    def _settle(self, name: str, readings: Mapping[int, Reading]) -> None:
        """Read levels by these readings, of this name, from now on."""
        blocks = tuple(sorted(self.config.blocks)[: len(self.backbone.blocks)])
        self._settled = replace(self.config, blocks=blocks, residual=cast("Any", name), read=tuple(readings))
        self.readings = nn.ModuleDict({str(level): reading for level, reading in readings.items()})

    def _make_readings(self, name: str, levels: Iterable[int]) -> dict[int, Reading]:
        return {level: self._reading(name, level) for level in levels}

    def _reading(self, name: str, level: int) -> Reading:
        channels, side = self._shapes[level]
        if name == "nearest":
            return NearestResidual(channels, self.config.bank)
        return SharedGaussian(channels) if self.config.shared_position else PositionGaussian(channels, side)

    def _read(self, good: Batches, implant: Implant | None) -> None:
        device = next(self.parameters()).device
        made = None if self._aligned or self.config.residual != "auto" or implant is None else implant()
        implanted = made if made and len(set(made.sources)) >= 2 * FOLDS else None
        names = ("gaussian", "nearest") if implanted else (self._default,)
        runs = self._runs()
        levels = sorted({level for run in runs for level in run})
        readings = {(name, level): self._reading(name, level).to(device) for name, level in product(names, levels)}
        sources = set(implanted.sources) if implanted else set()
        clean: dict[int, list[Tensor]] = {}
        count = 0
        for features in good:
            residuals = self.residuals(features)
            for (_, level), reading in readings.items():
                reading.add(residuals[level], count)
            here = sources & set(range(count, count + len(features[0])))
            clean |= {source: [each[source - count] for each in residuals] for source in here}
            count += len(features[0])
        name, chosen = (names[0], runs[-1]) if implanted is None else self._choose(readings, runs, clean, implanted)
        self._settle(name, {level: readings[name, level] for level in chosen})
        for reading in cast("Sequence[Reading]", self.readings.values()):
            reading.solve()
            reading.release()

    @property
    def _default(self) -> str:
        return "gaussian" if self.config.residual == "auto" else self.config.residual

    def _choose(
        self,
        readings: dict[tuple[str, int], Reading],
        runs: list[tuple[int, ...]],
        clean: dict[int, list[Tensor]],
        implanted: Implanted,
    ) -> tuple[str, tuple[int, ...]]:
        """Reading and levels that tell implanted defects best, every image judged without its own fold."""
        parts = [self.residuals(features) for features in implanted.features]
        changed = [torch.cat(level) for level in zip(*parts, strict=True)]
        maps: dict[tuple[str, int], tuple[list[Tensor], list[Tensor]]] = {key: ([], []) for key in readings}
        for fold in range(FOLDS):
            good = [source for source in clean if source % FOLDS == fold]
            bad = [index for index, source in enumerate(implanted.sources) if source % FOLDS == fold]
            if not good or not bad:  # sources are spread evenly, and may all be of one fold
                continue
            for (name, level), reading in readings.items():
                reading.solve(without=fold)
                for into, residuals in zip(
                    maps[name, level], (torch.stack([clean[g][level] for g in good]), changed[level][bad]), strict=True
                ):
                    into.append(reading(residuals))

        def worth(candidate: tuple[str, tuple[int, ...]]) -> float:
            name, run = candidate
            good, bad = ([torch.cat(maps[name, level][side]) for level in run] for side in (0, 1))
            scores = (level_score(each, self.config.top, self.inspected).log() for each in (good, bad))
            return separation(*scores)

        names = dict.fromkeys(name for name, _ in readings)
        return max([(name, run) for name in names for run in runs], key=worth)

    def _runs(self) -> list[tuple[int, ...]]:
        """The sets of levels to choose from."""
        levels = self.config.read or tuple(range(len(self._shapes)))
        if self.config.read or len(levels) <= 2:
            return [levels]
        return [levels[:2]] if self._aligned else [levels[-2:], levels]


def _settle_before_load(detector: SkipAE, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make the readings of a state, which a fit may have chosen."""
    start = f"{prefix}readings."
    kinds = {key.removeprefix(start).split(".")[0]: "gaussian" for key in state if key.startswith(start)}
    kinds |= {level: "nearest" for level in kinds if f"{start}{level}.bank" in state}
    for name in set(kinds.values()):
        detector._settle(name, detector._make_readings(name, sorted(map(int, kinds))))
        detector.readings.to(next(detector.parameters()).device)
