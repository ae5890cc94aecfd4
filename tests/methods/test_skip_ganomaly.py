import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from makel.methods.skip_ganomaly import Config, Discriminator, SkipGanomaly, UNet


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return SkipGanomaly(Config(size=32, width=2, latent=3))


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_the_generator_at_256_px_has_54_million_weights():
    with torch.device("meta"):
        generator = UNet(256, 64)
        assert generator(torch.empty(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    assert sum(parameter.numel() for parameter in generator.parameters()) == pytest.approx(54.4e6, rel=1e-3)
    assert [layer.out_channels for layer in generator.down] == [64, 128, 256, 512, 512, 512, 512, 512]
    # Upwards every input is twice as wide, but the innermost, which has no skip beside it.
    assert [layer.in_channels for layer in generator.up] == [128, 256, 512, 1024, 1024, 1024, 1024, 512]
    norms = [module.num_features for module in generator.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == [128, 256, 512, 512, 512, 512, 64, 128, 256, 512, 512, 512, 512]


def recurse(generator, x, stage=0):
    """pix2pix's own way to write a U-Net, from the outside in: down, the rest inside, up, and both joined."""
    innermost = stage == len(generator.down) - 1
    y = generator.down[stage](x if stage == 0 else F.leaky_relu(x, 0.2))
    if stage > 0 and not innermost:
        y = generator.down_norm[stage - 1](y)
    if not innermost:
        y = recurse(generator, y, stage + 1)
    y = generator.up[stage](F.relu(y))
    if stage == 0:
        return y.tanh()
    return torch.cat([x, generator.up_norm[stage - 1](y)], 1)


def test_the_generator_is_pix2pixs_block_in_block():
    torch.manual_seed(0)
    generator, image = UNet(32, 2).train(), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(generator(image), recurse(generator, image))


def test_the_generator_has_no_skip_at_the_images_own_side():
    """With nothing but zeros coming up from the outermost skip and from below, the image cannot get through."""
    torch.manual_seed(0)
    generator, image = UNet(32, 2).eval(), torch.rand(1, 3, 32, 32)
    generator.up[0].weight.data.zero_()
    assert not generator(image).any()


def test_the_discriminator_ends_in_a_feature_of_100_numbers():
    with torch.device("meta"):
        logits, features = Discriminator(256, 100, 64)(torch.empty(2, 3, 256, 256))
    assert logits.shape == (2,)
    assert features.shape == (2, 100)


def test_paper_is_the_official_setting():
    config = Config.preset("paper")
    assert (config.w_adversarial, config.w_image, config.w_feature, config.score_feature) == (1, 50, 1, 0.1)
    assert (config.side, config.latent, config.train_mode_norm) == (256, 100, False)


def test_losses_by_hand(detector, steps):
    """G(x) = 0, features 0, and a discriminator that cannot tell."""
    detector.generator.up[0].weight.data.zero_()
    detector.discriminator.encoder.head.weight.data.zero_()
    images = torch.cat([torch.full((2, 3, 32, 32), 0.75), torch.full((1, 3, 32, 32), 0.4)])  # 0.5, 0.5, -0.2 signed
    losses = steps(detector.train(), images)
    assert losses["generator"][0] == pytest.approx(math.log(2) + 50 * 0.4, rel=1e-5)
    assert losses["discriminator"][0] == pytest.approx(2 * math.log(2), rel=1e-5)


def test_losses_are_those_of_the_paper(detector, images, steps):
    detector.train()
    detector.discriminator.encoder.head.weight.data.mul_(50)  # or the feature would be too small to matter
    real = images * 2 - 1
    with torch.no_grad():
        fake = detector.generator(real)
        of_real, of_fake = detector.discriminator(real), detector.discriminator(fake)
    real_logits, real_features = (each.double().numpy() for each in of_real)
    fake_logits, fake_features = (each.double().numpy() for each in of_fake)
    image = np.mean(np.abs((real - fake).double().numpy()))
    distance = np.mean((real_features - fake_features) ** 2)
    assert distance > 0.01
    losses = steps(detector, images)
    generator = np.log1p(np.exp(-fake_logits)).mean() + 50 * image + distance
    assert losses["generator"][0] == pytest.approx(generator, rel=1e-5)
    told_apart = np.log1p(np.exp(-real_logits)).mean() + np.log1p(np.exp(fake_logits)).mean()
    assert losses["discriminator"][0] == pytest.approx(told_apart + distance, rel=1e-5)


def test_the_score_is_nine_tenths_image_and_one_tenth_feature(detector, images):
    detector.eval().discriminator.encoder.head.weight.data.mul_(1e4)
    real = images * 2 - 1
    with torch.no_grad():
        scores = detector.score((images,))
        fake = detector.generator(real)
        features = [detector.discriminator(each)[1].double().numpy() for each in (real, fake)]
    of_image = np.mean((real - fake).double().numpy() ** 2, axis=(1, 2, 3))
    of_feature = np.mean((features[0] - features[1]) ** 2, axis=1)
    assert of_feature.min() > 0.01
    np.testing.assert_allclose(scores.image, 0.9 * of_image + 0.1 * of_feature, rtol=1e-5)
    np.testing.assert_allclose(scores.anomaly_map.mean((1, 2, 3)), of_image, rtol=1e-5)
