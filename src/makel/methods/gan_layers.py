"""What the adversarial methods share: DCGAN networks, a budget counted in updates, and a watch over the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from statistics import fmean
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makel.errors import UsageError
from makel.training.detector import Detector, DetectorConfig, Features
from makel.types import in_px


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(DetectorConfig):
    """Settings of every adversarial method. They take raw pixels, so there is no backbone.

    Attributes:
        size: Height and width of the input image in pixels: a square, its side a power of two from 32 on.
        updates: Updates of each network. Sets of 50 and of 50,000 images are then trained equally long.
        batch_size: Images an update; all of them where there are fewer.
        width: Channels after the first convolution.
        latent: Length of the latent code.
        learning_rate: Adam's, for both networks.
        train_mode_norm: For studies: at test, BatchNorm uses the statistics of the image itself, as it does in train
            mode at batch size one, instead of those of the training.
    """

    backbone: str = ""
    blocks: tuple[int, ...] = ()
    batch_size: int = 64
    updates: int = 10_500
    width: int = 64
    latent: int = 100
    learning_rate: float = 2e-4
    train_mode_norm: bool = False

    @property
    def side(self) -> int:
        """Side of the square input image, in pixels."""
        return self.size[0]

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = self.size
        if height != width or self.aspect == "image":
            found = in_px(self.size) if height != width else "with aspect 'image'"
            raise UsageError(f"size {found}: this method takes square images alone, give the side of a square")
        if self.side < 32 or self.side & (self.side - 1):
            raise UsageError(
                f"size {self.side} cannot be halved down to the networks' innermost map: choose 32, 64, 128, 256 or 512"
            )
        if self.backbone or self.blocks:
            raise UsageError(
                f"this method takes raw pixels: leave out backbone {self.backbone!r}, blocks {self.blocks}"
            )


class Norm(nn.BatchNorm2d):
    """BatchNorm, with the switch of `AdversarialConfig.train_mode_norm`.

    Attributes:
        per_image: In eval mode, normalise each image by its own statistics. That is BatchNorm in train mode at batch
            size one, as the official GANomaly and Skip-GANomaly test, and scores still do not depend on the batch.
    """

    per_image = False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W), normalised."""
        if self.per_image and not self.training:
            return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
        return super().forward(x)


class Encoder(nn.Module):
    """DCGAN's discriminator without its sigmoid: 4x4 convolutions of stride 2 down to a 4x4 map, and one over that.

    Channels double from `width`; BatchNorm everywhere but after the first convolution; LeakyReLU 0.2; no biases.

    Args:
        size: Side of the input.
        outputs: Channels of the output.
        width: Channels after the first convolution.
    """

    def __init__(self, size: int, outputs: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        side = size // 2
        while side > 4:
            layers += [nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False), Norm(2 * width), nn.LeakyReLU(0.2)]
            width, side = 2 * width, side // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, outputs, 4, 1, 0, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, size, size) to (N, outputs, 1, 1)."""
        return self.head(self.features(image))  # type: ignore[no-any-return]


class Discriminator(Encoder):
    """An encoder to one number, which also gives its last 4x4 map: the features that are matched."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__(size, 1, width)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(N, 3, size, size) to logits (N,), high for real, and features (N, C, 4, 4)."""
        features = self.features(image)
        return self.head(features).flatten(), features


class Decoder(nn.Module):
    """DCGAN's generator, the mirror of `Encoder`: transposed convolutions, BatchNorm and ReLU, tanh at the end.

    Args:
        size: Side of the output.
        latent: Channels of the input.
        width: Channels before the last convolution.
    """

    def __init__(self, size: int, latent: int, width: int) -> None:
        super().__init__()
        channels = width * size // 8
        layers: list[nn.Module] = [nn.ConvTranspose2d(latent, channels, 4, 1, 0, bias=False), Norm(channels), nn.ReLU()]
        while channels > width:
            layers += [nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False), Norm(channels // 2), nn.ReLU()]
            channels //= 2
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, 3, 4, 2, 1, bias=False), nn.Tanh())

    def forward(self, code: Tensor) -> Tensor:
        """(N, latent, 1, 1) to (N, 3, size, size) in [-1, 1]."""
        return self.layers(code)  # type: ignore[no-any-return]


def initialise(network: nn.Module) -> None:
    """DCGAN's weights: N(0, 0.02) for convolutions, N(1, 0.02) for the gains of BatchNorm, and no biases."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
        elif isinstance(module, Norm):
            nn.init.normal_(module.weight, 1.0, 0.02)
            nn.init.zeros_(module.bias)


def binary_cross_entropy(logits: Tensor, real: bool) -> Tensor:
    """Mean of -log p(real) or -log p(fake)."""
    return F.softplus(-logits if real else logits).mean()


@contextmanager
def held(network: nn.Module) -> Iterator[None]:
    """Gradients flow through the network to its input, and none are computed for its weights."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


class AdversarialDetector(Detector):
    """Base of the adversarial methods: pixels as features, Adam for two networks, and the watch.

    A subclass builds `generator` and `discriminator` and calls `_begin` last in its `__init__`. The watch reads what it
    logs: "loss" (generator), "loss_d" (discriminator), "spread" (see `spread`) and, where the method has them,
    "restarts" (1 where the discriminator began again, else 0).

    The feature cache then holds the images themselves in half precision: they are trained on with an error of up to
    a sixteenth of an 8-bit grey level. Scoring takes them as they are.
    """

    config: AdversarialConfig
    generator: nn.Module
    discriminator: nn.Module

    RESTART_BELOW: ClassVar[float] = 1e-5
    """Discriminator loss of a batch below which the official code gives the discriminator new weights."""
    WON_BELOW: ClassVar[float] = 1e-3
    """Mean discriminator loss below which it teaches nothing: it is right with p > 0.999."""
    COLLAPSED_BELOW: ClassVar[float] = 0.1
    """Spread of the generator's images over a batch, as a share of the real images', below which they are one."""
    EXPLODED_ABOVE: ClassVar[float] = 10.0
    """Generator loss at the end, as a multiple of its lowest, above which the training diverged."""

    def _begin(self) -> None:
        initialise(self)
        for module in self.modules():
            if isinstance(module, Norm):
                module.per_image = self.config.train_mode_norm

    def extract(self, image: Tensor) -> Features:
        """The image itself: one (N, 3, size, size) level in [0, 1]."""
        return (image,)

    def optimizers(self, steps: int) -> dict[str, tuple[torch.optim.Optimizer, Any]]:  # noqa: ARG002
        """Adam with betas 0.5 and 0.999 and a constant rate, for each network."""
        networks = {"generator": self.generator, "discriminator": self.discriminator}
        rate = self.config.learning_rate
        return {
            name: (torch.optim.Adam(network.parameters(), rate, betas=(0.5, 0.999)), None)
            for name, network in networks.items()
        }

    def discriminator_step(self, loss: Tensor) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The discriminator's yield of a training step; new weights after it where the loss was next to nothing."""
        won = loss.detach() < self.RESTART_BELOW
        yield "discriminator", loss, {"loss_d": loss, "restarts": won.float()}
        if won:
            initialise(self.discriminator)

    def warnings(self, epochs: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
        """What collapsed in training, from its log; the last tenth of the epochs counts as its end."""
        if not epochs:
            return ()
        end = epochs[-ceil(len(epochs) / 10) :]
        loss, loss_d, spread = (fmean(epoch[key] for epoch in end) for key in ("loss", "loss_d", "spread"))
        lowest = min(epoch["loss"] for epoch in epochs)
        restarts = sum(epoch.get("restarts", 0) > 0 for epoch in epochs)
        found = {
            f"the discriminator won and began again with new weights in {restarts} of {len(epochs)} epochs": restarts,
            f"the discriminator won: its loss ended at {loss_d:.1e}, so it taught the generator nothing any more": (
                loss_d < self.WON_BELOW
            ),
            f"the generator collapsed: its images ended with {spread:.1%} of the spread of the real ones": (
                spread < self.COLLAPSED_BELOW
            ),
            f"the generator's loss ended at {loss:.3g}, {loss / max(lowest, 1e-12):.0f} times its lowest": (
                loss > self.EXPLODED_ABOVE * max(lowest, 1e-12)
            ),
        }
        return tuple(text for text, is_so in found.items() if is_so)


def to_signed(features: Features) -> Tensor:
    """The images scaled from [0, 1] to [-1, 1], the range of tanh."""
    return features[0] * 2 - 1


def spread(fake: Tensor, real: Tensor) -> Tensor:
    """How much (N, 3, H, W) images differ among each other: mean standard deviation over the batch, fake over real."""
    # The constant makes it 1 where nothing can differ: one image, or equal ones.
    of_fake, of_real = (images.detach().float().std(0, correction=0).mean() + 1e-4 for images in (fake, real))
    return of_fake / of_real
