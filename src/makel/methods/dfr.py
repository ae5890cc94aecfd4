"""DFR: a 1x1-convolution autoencoder over many aligned layers of a frozen VGG19.

Paper: Yang, Shi, Qi: DFR: Deep Feature Reconstruction for Unsupervised Anomaly Segmentation. 2020,
https://arxiv.org/abs/2012.07122. Official code: https://github.com/YoungGod/DFR, without a licence; only facts about
its behaviour (commit f2e2d4e) are used here.

    regional features   f(x) = [A_1(phi_1(x)), ..., A_L(phi_L(x))]      phi_l: layer l of a frozen CNN, resized to the
                        input's size; A_l: mean over 4x4 windows, stride 4
    loss                L = E mean (CAE(f(x)) - f(x))^2
    anomaly map         mean over channels of (CAE(f(x)) - f(x))^2, resized to the input's size
    image score         the map's maximum

The autoencoder is C -> (C + 2d)/2 -> 2d -> d -> 2d -> (C + 2d)/2 -> C, where d is the number of principal components
that keep 90 % of the variance of the features of the first ten images. So its size depends on the product: with the 12
layers relu1_1 to relu4_4 (C = 3456) d lies between 128 and 669 on the categories of MVTec AD, 398 on average, as an
independent rerun reports (github.com/sun-cn-pirate/DFR-8-16).

The preset `paper` is this on 256x256 with `vgg19_dfr`, whose padding is by reflection; blocks 1 to 4 are those 12
layers, blocks 1 to 5 all 16 (C = 5504). Where paper and code disagree, and where they leave things open:

 1. Resizing is bilinear with aligned corners, and the autoencoder has BatchNorm and widths (C + 2d)/2, as in the code.
    The paper says nearest neighbour, no BatchNorm and (C + d)/2, but the numbers come from the code.
 2. 700 epochs, as in the paper; the code's default is 150.
 3. Every layer is aligned alike. In the code all but the last of each stage are resized with the next convolution's
    padding still on, which shifts layers against each other by up to a pixel.
 4. Images are resized by antialiased averaging, not nearest neighbour, which aliases fine textures.
 5. Resizing and averaging are one linear map, applied to a layer's rows and then to its columns, so the 256x256x3456
    tensor of the code (900 MB an image) is never built.
 6. The first ten images are those of the good images fitted on, in their order.
 7. No threshold is taken from the images fitted on; makel calibrates on others.

The preset `fast` puts the same autoencoder on the small backbone that skip_ae's preset `fast` uses:

 8. Images are brought to a standard brightness and contrast, and every channel to zero mean and unit variance; wide
    levels are first reduced by a fixed random orthonormal projection.
 9. Images keep about their aspect (`aspect`). 8x8 windows, the finest level's own grid, and corners not aligned.
10. AdamW with a one-cycle schedule over 300 updates, however many images there are.
11. The image score is the mean of the map's highest 1 %.

Any other backbone can take either preset's place in front (`backbone`, `blocks`): that tells what is owed to the
autoencoder and what to VGG19.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makel.errors import UsageError
from makel.methods.layers import (
    ChannelNorm,
    Moments,
    Projection,
    finish_scores,
    level_shape,
    principal_axes,
)
from makel.training.backbones import Backbone
from makel.training.detector import Batches, Detector, DetectorConfig, Features
from makel.types import Scores, Shape, in_px


@dataclass(frozen=True, kw_only=True)
class Config(DetectorConfig):
    """Settings of DFR. The defaults are the preset `fast`.

    Attributes:
        normalise: Bring every feature channel to zero mean and unit variance over the good images.
        project: Reduce a level with more channels than this to this many; 0 for never.
        region: Side and stride of the windows features are averaged over, in pixels; both sides of the input
            are multiples.
        align_corners: How bilinear resizes place their samples.
        variance: Share of the features' variance the latent's components keep.
        latent_images: Images that share is measured on.
        batch_norm: BatchNorm before every ReLU.
        top: Share of the map whose mean is the image score; 0 for its maximum.
        learning_rate: Peak learning rate.
        schedule: "onecycle" with AdamW, or "constant" with Adam.
    """

    size: Shape = (384, 384)
    aspect: Literal["image", "square"] = "image"
    blocks: tuple[int, ...] = (2, 3)
    updates: int = 300
    normalise: bool = True
    project: int = 100
    region: int = 8
    align_corners: bool = False
    variance: float = 0.9
    latent_images: int = 10
    batch_norm: bool = True
    top: float = 0.01
    learning_rate: float = 2e-3
    schedule: Literal["onecycle", "constant"] = "onecycle"

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {},
        "paper": {
            "size": (256, 256),
            "aspect": "square",
            "backbone": "vgg19_dfr",
            "blocks": (1, 2, 3, 4),
            "epochs": 700,
            "batch_size": 4,
            "normalise": False,
            "project": 0,
            "region": 4,
            "align_corners": True,
            "top": 0.0,
            "learning_rate": 1e-4,
            "schedule": "constant",
        },
    }


class RegionalAverage(nn.Module):
    """A level resized to the input's size, then averaged over windows: (N, C, h, w) to (N, C, rows, columns).

    Both steps are linear and treat rows and columns by themselves, so together they are one small matrix for each.

    Args:
        shape: The level's rows and columns.
        size: Height and width of the input, in pixels.
        project: Reduce a level with more channels than this to this many; 0 for never.
        region: Side and stride of the windows, in pixels.
        align_corners: How the bilinear resize places its samples.
    """

    down: Tensor
    across: Tensor

    def __init__(self, shape: Shape, size: Shape, region: int, align_corners: bool) -> None:
        super().__init__()
        for name, side, length_px in zip(("down", "across"), shape, size, strict=True):
            every = torch.eye(side)[None]  # each row of it one unit impulse
            resized = F.interpolate(every, length_px, mode="linear", align_corners=align_corners)
            matrix = F.avg_pool1d(resized, region)[0].T.contiguous()  # (rows, h) or (columns, w)
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The regional features of a level."""
        return self.down @ x @ self.across.T


class Autoencoder(nn.Sequential):
    """Six 1x1 convolutions; the latent and the output are linear.

    Args:
        channels: Channels in and out, C.
        latent: Channels of the latent, d.
        batch_norm: BatchNorm before every ReLU.
    """

    def __init__(self, channels: int, latent: int, batch_norm: bool) -> None:
        narrowing = [channels, (channels + 2 * latent) // 2, 2 * latent, latent]
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(pairwise([*narrowing, *narrowing[-2::-1]])):
            layers.append(nn.Conv2d(before, after, 1))
            if index not in (2, 5):
                layers += [nn.BatchNorm2d(after), nn.ReLU()] if batch_norm else [nn.ReLU()]
        super().__init__(*layers)


class DFR(Detector):
    """The detector. Its autoencoder is built in `prepare`, or when a fitted state is loaded.

    Attributes:
        latent: () int64 buffer, the latent's channels d; 0 before it is known.
    """

    config_class = Config
    config: Config
    backbone: Backbone
    latent: Tensor

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        if any(side % config.region for side in config.size):
            raise UsageError(
                f"size {in_px(config.size)} cannot be cut into regions of {config.region} px: choose multiples of it"
            )
        projections = [Projection(channels, config.project) for channels in backbone.channels]
        self.projections = nn.ModuleList(projections)
        self.channels = sum(projection.channels for projection in projections)
        self.averages = nn.ModuleList(
            RegionalAverage(level_shape(config.size, stride), config.size, config.region, config.align_corners)
            for stride in backbone.strides
        )
        self.norm = ChannelNorm(self.channels) if config.normalise else nn.Identity()
        self.autoencoder = nn.Sequential()
        self.register_buffer("latent", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_build_before_load)  # type: ignore[no-untyped-call]

    def extract(self, image: Tensor) -> Features:
        """One (N, C, rows, columns) level: all of the backbone's, aligned, averaged and concatenated."""
        levels = self.backbone(image)
        steps = zip(self.averages, self.projections, levels, strict=True)
        return (torch.cat([average(project(level)) for average, project, level in steps], 1),)

    def prepare(self, good: Batches) -> None:
        """The scale of every channel, and the autoencoder with as many latent channels as the features need."""
        if isinstance(self.norm, ChannelNorm):
            for (features,) in good:
                self.norm.add(features)
            self.norm.solve()
        moments, left = Moments(), self.config.latent_images
        for (features,) in good:
            moments.add(self.norm(features[:left]))
            left -= len(features)
            if left <= 0:
                break
        self.build(principal_axes(moments.solve()[1], self.config.variance).shape[1])

    def build(self, latent: int) -> None:
        """A new autoencoder with so many latent channels."""
        self.latent.fill_(latent)
        self.autoencoder = Autoencoder(self.channels, latent, self.config.batch_norm).to(self.latent.device)
        self.autoencoder.train(self.training)

    def optimizers(self, steps: int) -> dict[str, tuple[torch.optim.Optimizer, Any]]:
        """One optimiser, for the autoencoder."""
        parameters, rate = self.autoencoder.parameters(), self.config.learning_rate
        if self.config.schedule == "constant":
            return {"autoencoder": (torch.optim.Adam(parameters, rate), None)}
        optimizer = torch.optim.AdamW(parameters, rate, weight_decay=1e-4)
        return {"autoencoder": (optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps))}

    def training_step(self, features: Features) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The mean squared error over everything."""
        x = self.norm(features[0])
        loss = F.mse_loss(self.autoencoder(x), x)
        yield "autoencoder", loss, {"loss": loss}

    def score(self, features: Features) -> Scores[Tensor]:
        """The squared error's mean over channels."""
        x = self.norm(features[0])
        error = (self.autoencoder(x) - x).square().mean(1, keepdim=True)
        return finish_scores(
            error, self.config.size, self.config.top, self.inspected, align_corners=self.config.align_corners
        )


def _build_before_load(detector: DFR, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Build the autoencoder a state is of. One that fits stays, since an optimiser may hold its parameters."""
    latent = int(state.get(f"{prefix}latent", detector.latent))
    if latent and latent != int(detector.latent):
        detector.build(latent)
