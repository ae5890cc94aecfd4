import math

import numpy as np
import pytest
import torch

from makel.methods.gan_layers import Discriminator
from makel.methods.ganomaly import Config, Ganomaly, Generator


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return Ganomaly(Config(size=32, width=2, latent=3))


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_weights_at_256_px_are_144_and_45_million():
    with torch.device("meta"):
        generator, discriminator = Generator(256, 100, 64), Discriminator(256, 64)
    assert count(generator) == pytest.approx(143.9e6, rel=1e-3)
    assert count(discriminator) == pytest.approx(44.7e6, rel=1e-3)


def test_paper_is_the_official_setting():
    config = Config.preset("paper")
    assert (config.w_adversarial, config.w_image, config.w_code) == (1, 50, 1)
    assert (config.side, config.latent, config.train_mode_norm) == (256, 100, False)


def test_losses_by_hand(detector, steps):
    """G(x) = 0, both codes 0, and a discriminator that cannot tell."""
    for layer in (detector.generator.decoder.layers[-2], detector.discriminator.head):
        layer.weight.data.zero_()
    for encoder in (detector.generator.encoder, detector.generator.second_encoder):
        encoder.head.weight.data.zero_()
    detector.discriminator.features[0].weight.data.zero_()
    images = torch.cat([torch.full((2, 3, 32, 32), 0.75), torch.full((1, 3, 32, 32), 0.4)])  # 0.5, 0.5, -0.2 signed
    losses = steps(detector.train(), images)
    loss, parts = losses["generator"]
    assert loss == pytest.approx(50 * 0.4, rel=1e-5)
    assert parts["loss_image"].item() == pytest.approx(0.4, rel=1e-5)
    assert parts["loss_code"].item() == parts["loss_adversarial"].item() == 0
    assert losses["discriminator"][0] == pytest.approx(math.log(2), rel=1e-5)


def test_losses_are_those_of_the_paper(detector, images, steps):
    detector.train()
    real = images * 2 - 1
    with torch.no_grad():
        fake, code, second_code = detector.generator(real)
        of_real, of_fake = detector.discriminator(real), detector.discriminator(fake)
    fake, code, second_code, real = (each.double().numpy() for each in (fake, code, second_code, real))
    real_logits, real_features = (each.double().numpy() for each in of_real)
    fake_logits, fake_features = (each.double().numpy() for each in of_fake)
    adversarial = np.mean((real_features - fake_features) ** 2)
    image = np.mean(np.abs(real - fake))
    distance = np.mean((code - second_code) ** 2)
    losses = steps(detector, images)
    assert losses["generator"][0] == pytest.approx(adversarial + 50 * image + distance, rel=1e-5)
    log_real, log_fake = np.log1p(np.exp(-real_logits)), np.log1p(np.exp(fake_logits))
    assert losses["discriminator"][0] == pytest.approx((log_real.mean() + log_fake.mean()) / 2, rel=1e-5)


def test_the_score_is_the_mean_square_between_the_codes(detector, images):
    with torch.no_grad():
        scores = detector.eval().score((images,))
        fake, code, second_code = detector.generator(images * 2 - 1)
    expected = np.mean((code - second_code).flatten(1).double().numpy() ** 2, axis=1)
    np.testing.assert_allclose(scores.image, expected, rtol=1e-5)
    difference = np.abs((images * 2 - 1 - fake).numpy())
    np.testing.assert_allclose(scores.anomaly_map, difference.mean(1, keepdims=True), rtol=1e-5, atol=1e-7)
