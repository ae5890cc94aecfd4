"""GANomaly: an encoder-decoder-encoder trained adversarially; a defect shows as a distance between two codes.

Paper: Akcay, Atapour-Abarghouei, Breckon: GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training.
ACCV 2018, https://arxiv.org/abs/1805.06725. Official code: https://github.com/samet-akcay/ganomaly (MIT).

    codes              z = E1(x),  G(x) = De(z),  z' = E2(G(x))
    generator          L = 1 |f(x) - f(G(x))|^2  +  50 |x - G(x)|  +  1 |z - z'|^2      (all of them means)
    discriminator      L_D = (BCE(D(x), 1) + BCE(D(G(x)), 0)) / 2
    image score        A = mean over the code of (z - z')^2

f is the discriminator's last 4x4 map. At 256 px the preset `paper` has 143.9 M weights in the generator and 44.7 M in
the discriminator. It follows the official code, where that differs from the paper, except as follows.

 1. 256x256 images instead of 32x32, as the paper of makel's default method ran it on MVTec AD; the networks get three
    more stages, by the official code's own rule.
 2. The budget is counted in updates. 15 epochs of the 45,000 CIFAR images at batch 64 are 10,500; 15 epochs of an
    MVTec category would be 45. A set smaller than a batch is one batch, and the last batch is never dropped.
 3. BatchNorm is in eval mode at test. The official code never leaves train mode, so that its scores depend on what
    else is in the batch; `train_mode_norm` does the same at batch size one.
 4. The weights of the last epoch are kept. The official code keeps those with the best AUC on the test set.
 5. Scores are raw. The official code scales them to [0, 1] by the smallest and largest score of the test set.
 6. The score is the squared distance of the official code, where the paper writes an absolute one.
 7. The method has no anomaly map. Ours is the mean over the channels of |x - G(x)|, in units of the [-1, 1] scale.
 8. Cross entropies are computed from logits, which is the same and does not saturate.

As in the official code the discriminator begins again with new weights when its loss falls below 1e-5; that is logged
and reported. The preset `fast` is for two CPU cores:

 9. 128x128 images, a quarter of the channels, batch 8, 800 updates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makel.methods.gan_layers import (
    AdversarialConfig,
    AdversarialDetector,
    Decoder,
    Discriminator,
    Encoder,
    binary_cross_entropy,
    held,
    spread,
    to_signed,
)
from makel.training.detector import Features
from makel.types import Scores


@dataclass(frozen=True, kw_only=True)
class Config(AdversarialConfig):
    """Settings of GANomaly. The defaults are the preset `paper`.

    Attributes:
        w_adversarial: Weight of the discriminator features' distance.
        w_image: Weight of the images' distance.
        w_code: Weight of the codes' distance.
    """

    w_adversarial: float = 1.0
    w_image: float = 50.0
    w_code: float = 1.0

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {"size": 128, "width": 16, "batch_size": 8, "updates": 800},
        "paper": {},
    }


class Generator(nn.Module):
    """Encoder, decoder, encoder."""

    def __init__(self, size: int, latent: int, width: int) -> None:
        super().__init__()
        self.encoder = Encoder(size, latent, width)
        self.decoder = Decoder(size, latent, width)
        self.second_encoder = Encoder(size, latent, width)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, size, size) to the image's copy, its code (N, latent, 1, 1) and the copy's code."""
        code = self.encoder(image)
        fake = self.decoder(code)
        return fake, code, self.second_encoder(fake)


class Ganomaly(AdversarialDetector):
    """The detector."""

    config_class = Config
    config: Config

    def __init__(self, config: Config, backbone: None = None) -> None:
        super().__init__(config, backbone)
        self.generator = Generator(config.side, config.latent, config.width)
        self.discriminator = Discriminator(config.side, config.width)
        self._begin()

    def training_step(self, features: Features) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The generator, then the discriminator on the images the generator made before its update."""
        real = to_signed(features)
        fake, code, second_code = self.generator(real)
        with held(self.discriminator):
            with torch.no_grad():
                _, real_features = self.discriminator(real)
            _, fake_features = self.discriminator(fake)
        adversarial = F.mse_loss(fake_features, real_features)
        image = F.l1_loss(fake, real)
        distance = F.mse_loss(second_code, code)
        config = self.config
        loss = config.w_adversarial * adversarial + config.w_image * image + config.w_code * distance
        parts = {"loss": loss, "loss_adversarial": adversarial, "loss_image": image, "loss_code": distance}
        yield "generator", loss, {**parts, "spread": spread(fake, real)}

        real_logits, _ = self.discriminator(real)
        fake_logits, _ = self.discriminator(fake.detach())
        loss_d = 0.5 * (binary_cross_entropy(real_logits, True) + binary_cross_entropy(fake_logits, False))
        yield from self.discriminator_step(loss_d)

    def score(self, features: Features) -> Scores[Tensor]:
        """Distance of the codes, and the map of deviation 7."""
        real = to_signed(features)
        fake, code, second_code = self.generator(real)
        difference = (code - second_code).flatten(1)
        # x * x, since ONNX Runtime takes ten times as long for the Pow that square() becomes.
        return Scores(image=(difference * difference).mean(1), anomaly_map=(real - fake).abs().mean(1, keepdim=True))
