"""Skip-GANomaly: a U-Net trained adversarially; a defect is what it cannot copy.

Paper: Akcay, Atapour-Abarghouei, Breckon: Skip-GANomaly: Skip Connected and Adversarially Trained Encoder-Decoder
Anomaly Detection. IJCNN 2019, https://arxiv.org/abs/1901.08954. Official code:
https://github.com/samet-akcay/skip-ganomaly (MIT).

    generator          L = 1 BCE(D(G(x)), 1)  +  50 |x - G(x)|  +  1 |f(x) - f(G(x))|^2     (all of them means)
    discriminator      L_D = BCE(D(x), 1) + BCE(D(G(x)), 0) + |f(x) - f(G(x))|^2
    image score        A = 0.9 mean (x - G(x))^2  +  0.1 mean (f(x) - f(G(x)))^2

G is the U-Net of pix2pix down to 1x1 (8 halvings and 54.4 M weights at 256 px), f the 100 numbers that the
discriminator's encoder ends in. The preset `paper` follows the official code except as follows.

 1. 256x256 images instead of 32x32, as the paper of makel's default method ran it on MVTec AD; both networks get three
    more stages, by the official code's own rule.
 2. The image term weighs 50, as in the code. The article has another weight, and the code's AUC is not reproduced
    with either (issue 12 there).
 3. The budget is counted in updates. 25 epochs of the 45,000 CIFAR images at batch 64 are 17,600. A set smaller than
    a batch is one batch, and the last batch is never dropped: the official loader leaves a set of 60 images none.
 4. No noise is added to the input. The official code adds a tensor that is never filled.
 5. The learning rate is constant. The official code makes a schedule and never steps it.
 6. BatchNorm is in eval mode at test; `train_mode_norm` does what the official code does, at batch size one.
 7. The weights of the last epoch are kept, not those with the best AUC on the test set.
 8. Scores are raw. The official code scales them to [0, 1] by the smallest and largest score of the test set.
 9. The method has no anomaly map. Ours is the first part of the score before its mean over the positions: the mean
    over the channels of (x - G(x))^2, on the [-1, 1] scale. The feature has no positions.
10. Cross entropies are computed from logits, which is the same and does not saturate.

That a skip carries the activated or the plain tensor, which in-place operations decide in the official code, makes no
difference: every joined tensor goes through a ReLU next, and ReLU(LeakyReLU(x)) = ReLU(x).

As in the official code the discriminator begins again with new weights when its loss falls below 1e-5; that is logged
and reported. The preset `fast` is for two CPU cores:

11. 128x128 images, a quarter of the channels, batch 8, 800 updates.
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
    Encoder,
    Norm,
    binary_cross_entropy,
    held,
    spread,
    to_signed,
)
from makel.training.detector import Features
from makel.types import Scores


@dataclass(frozen=True, kw_only=True)
class Config(AdversarialConfig):
    """Settings of Skip-GANomaly. The defaults are the preset `paper`.

    Attributes:
        w_adversarial: Weight of the generator's cross entropy.
        w_image: Weight of the images' distance.
        w_feature: Weight of the features' distance in the generator's loss.
        score_feature: Share of the features' distance in the score; the rest is the images'.
    """

    updates: int = 17_600
    w_adversarial: float = 1.0
    w_image: float = 50.0
    w_feature: float = 1.0
    score_feature: float = 0.1

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "fast": {"size": 128, "width": 16, "batch_size": 8, "updates": 800},
        "paper": {},
    }


class UNet(nn.Module):
    """The generator of pix2pix: halvings down to 1x1, and back with the tensor of every side joined to what comes up.

    Down: LeakyReLU 0.2, 4x4 convolution of stride 2, BatchNorm (the first has the convolution alone, the last no
    BatchNorm). Up: ReLU, 4x4 transposed convolution, BatchNorm (tanh instead in the last). No biases, and no skip at
    the image's own side.

    Args:
        size: Side of the image, a power of two.
        width: Channels after the first convolution; they double three times.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        stages = size.bit_length() - 1
        widths = [width * min(2**k, 8) for k in range(stages)]
        self.down = nn.ModuleList(
            nn.Conv2d(i, o, 4, 2, 1, bias=False) for i, o in zip([3, *widths], widths, strict=False)
        )
        self.down_norm = nn.ModuleList(Norm(channels) for channels in widths[1:-1])
        # Stage k goes up from the side of down stage k, where all but the innermost meet a skip.
        inner = [2 * channels for channels in widths[:-1]] + widths[-1:]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 4, 2, 1, bias=False) for i, o in zip(inner, [3, *widths], strict=False)
        )
        self.up_norm = nn.ModuleList(Norm(channels) for channels in widths[:-1])

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, size, size) to a copy of it in [-1, 1]."""
        encoded = [self.down[0](image)]
        for k, down in enumerate(self.down[1:]):
            x = down(F.leaky_relu(encoded[-1], 0.2))
            encoded.append(self.down_norm[k](x) if k < len(self.down_norm) else x)
        x = encoded.pop()
        for k in reversed(range(1, len(self.up))):
            x = torch.cat([encoded.pop(), self.up_norm[k - 1](self.up[k](F.relu(x)))], 1)
        return self.up[0](F.relu(x)).tanh()  # type: ignore[no-any-return]


class Discriminator(nn.Module):
    """GANomaly's encoder to a code, the feature, and a 3x3 convolution from it to one number."""

    def __init__(self, size: int, latent: int, width: int) -> None:
        super().__init__()
        self.encoder = Encoder(size, latent, width)
        # Of the 3x3 window over a 1x1 map only the centre sees more than padding; so it is in the official code.
        self.head = nn.Conv2d(latent, 1, 3, 1, 1, bias=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, size, size) to logits (N,), high for real, and features (N, latent)."""
        features = self.encoder(image)
        return self.head(features).flatten(), features.flatten(1)


class SkipGanomaly(AdversarialDetector):
    """The detector."""

    config_class = Config
    config: Config

    def __init__(self, config: Config, backbone: None = None) -> None:
        super().__init__(config, backbone)
        self.generator = UNet(config.side, config.width)
        self.discriminator = Discriminator(config.side, config.latent, config.width)
        self._begin()

    def training_step(self, features: Features) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The generator, then the discriminator on the images the generator made before its update."""
        real = to_signed(features)
        fake = self.generator(real)
        with held(self.discriminator):
            with torch.no_grad():
                _, real_features = self.discriminator(real)
            fake_logits, fake_features = self.discriminator(fake)
        adversarial = binary_cross_entropy(fake_logits, True)
        image = F.l1_loss(fake, real)
        distance = F.mse_loss(fake_features, real_features)
        config = self.config
        loss = config.w_adversarial * adversarial + config.w_image * image + config.w_feature * distance
        parts = {"loss": loss, "loss_adversarial": adversarial, "loss_image": image, "loss_feature": distance}
        yield "generator", loss, {**parts, "spread": spread(fake, real)}

        real_logits, real_features = self.discriminator(real)
        fake_logits, fake_features = self.discriminator(fake.detach())
        told_apart = binary_cross_entropy(real_logits, True) + binary_cross_entropy(fake_logits, False)
        yield from self.discriminator_step(told_apart + F.mse_loss(fake_features, real_features))

    def score(self, features: Features) -> Scores[Tensor]:
        """Both distances, and the map of deviation 9."""
        real = to_signed(features)
        fake = self.generator(real)
        _, real_features = self.discriminator(real)
        _, fake_features = self.discriminator(fake)
        # x * x, since ONNX Runtime takes ten times as long for the Pow that square() becomes.
        of_image, of_feature = real - fake, real_features - fake_features
        anomaly_map = (of_image * of_image).mean(1, keepdim=True)
        share = self.config.score_feature
        score = (1 - share) * anomaly_map.mean((1, 2, 3)) + share * (of_feature * of_feature).mean(1)
        return Scores(image=score, anomaly_map=anomaly_map)
