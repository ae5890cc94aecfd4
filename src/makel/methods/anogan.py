"""AnoGAN: a generator of good images alone; a defect is what its nearest image, found by a search, does not have.

Paper: Schlegl, Seeboeck, Waldstein, Schmidt-Erfurth, Langs: Unsupervised Anomaly Detection with Generative Adversarial
Networks to Guide Marker Discovery. IPMI 2017, https://arxiv.org/abs/1703.05921. No code by its authors is known; the
search settings are those of its MVTec AD benchmark (Bergmann et al., CVPR 2019).

    generator          L = BCE(D(G(z)), 1),  z ~ N(0, 1)
    discriminator      L_D = BCE(D(x), 1) + BCE(D(G(z)), 0)
    search             z* = argmin A(x, z), by gradient descent
    image score        A(x, z) = 0.9 sum |x - G(z)|  +  0.1 sum |f(x) - f(G(z))|

f is the discriminator's last 4x4 map. The preset `paper` makes the paper's open or unfit choices as follows.

 1. 128x128 colour images as in the benchmark, instead of 64x64 grey patches: DCGAN with one stage more. The map has
    that side. Textures are not cut into patches.
 2. A code of 100 numbers, DCGAN's, where the benchmark has 64.
 3. The budget is counted in updates: the benchmark's 50 epochs of 10,000 patches at batch 64 are 7,850. The good images
    are used as they are, not augmented to 10,000.
 4. 500 search steps, the paper's number (the benchmark has 300), of Adam with the benchmark's rate 0.02.
 5. BatchNorm is in eval mode in the search; `train_mode_norm` is for studies.
 6. Every search starts from one code, drawn with the fit's seed and kept with the weights, instead of one drawn anew:
    the luck of the draw would make one of two equal parts worse. The losses of a batch are summed and not averaged,
    so each search is the same alone as in company.
 7. The last step counts, not the best on the way.
 8. The anomaly map is the mean over the channels of |x - G(z*)|, in units of the [-1, 1] scale: the paper's residual
    image.
 9. Cross entropies are computed from logits, which is the same and does not saturate.

A score needs gradients, so there is no ONNX file: the model runs in PyTorch, and its model folder says so. A search
adds up rounding over all its steps, so another device or another number of threads may give another score.

The preset `fast` is for two CPU cores:

10. 64x64 images, a quarter of the channels, batch 16, 1,500 updates, 100 search steps of twice the rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from makel.methods.gan_layers import (
    AdversarialConfig,
    AdversarialDetector,
    Decoder,
    Discriminator,
    binary_cross_entropy,
    held,
    spread,
    to_signed,
)
from makel.training.detector import Features
from makel.types import Scores, Shape


@dataclass(frozen=True, kw_only=True)
class Config(AdversarialConfig):
    """Settings of AnoGAN. The defaults are the preset `paper`.

    Attributes:
        search_steps: Steps of the search for an image's code.
        search_rate: Adam's learning rate in the search.
        score_feature: Share of the discriminator features' distance in the score (lambda); the rest is the images'.
    """

    size: Shape = (128, 128)
    updates: int = 7_850
    search_steps: int = 500
    search_rate: float = 0.02
    score_feature: float = 0.1

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {
            "size": 64,
            "width": 16,
            "batch_size": 16,
            "updates": 1_500,
            "search_steps": 100,
            "search_rate": 0.04,
        },
        "paper": {},
    }


class AnoGan(AdversarialDetector):
    """The detector.

    Attributes:
        start: (1, latent, 1, 1) buffer, the code every search starts from.
    """

    config_class = Config
    config: Config
    exports: ClassVar[bool] = False
    start: Tensor

    def __init__(self, config: Config, backbone: None = None) -> None:
        super().__init__(config, backbone)
        self.generator = Decoder(config.side, config.latent, config.width)
        self.discriminator = Discriminator(config.side, config.width)
        self.register_buffer("start", torch.randn(1, config.latent, 1, 1))
        self._begin()

    def training_step(self, features: Features) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The generator, then the discriminator on the images the generator made before its update."""
        real = to_signed(features)
        fake = self.generator(torch.randn(len(real), self.config.latent, 1, 1, device=real.device))
        with held(self.discriminator):
            fake_logits, _ = self.discriminator(fake)
        loss = binary_cross_entropy(fake_logits, True)
        yield "generator", loss, {"loss": loss, "spread": spread(fake, real)}

        real_logits, _ = self.discriminator(real)
        fake_logits, _ = self.discriminator(fake.detach())
        loss_d = binary_cross_entropy(real_logits, True) + binary_cross_entropy(fake_logits, False)
        yield "discriminator", loss_d, {"loss_d": loss_d}

    def score(self, features: Features) -> Scores[Tensor]:
        """Search, then A and the map of deviation 8. Gradients are taken in here even under `torch.no_grad`."""
        real = to_signed(features)
        with torch.no_grad():
            _, real_features = self.discriminator(real)
        code = self.start.repeat(len(real), 1, 1, 1).requires_grad_()
        search = torch.optim.Adam([code], self.config.search_rate)
        with torch.enable_grad():
            for _ in range(self.config.search_steps):
                distance, _ = self.distance(real, real_features, code)
                (code.grad,) = torch.autograd.grad(distance.sum(), code)
                search.step()
        with torch.no_grad():
            distance, fake = self.distance(real, real_features, code)
        return Scores(image=distance, anomaly_map=(real - fake).abs().mean(1, keepdim=True))

    def distance(self, real: Tensor, real_features: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        """A (N,) between images (N, 3, H, W), whose features are given, and the images G(z) of codes, given too."""
        fake = self.generator(code)
        _, fake_features = self.discriminator(fake)
        of_image = (real - fake).abs().sum((1, 2, 3))
        of_features = (real_features - fake_features).abs().sum((1, 2, 3))
        share = self.config.score_feature
        return (1 - share) * of_image + share * of_features, fake
