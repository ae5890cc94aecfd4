import math

import numpy as np
import pytest
import torch

from makel.methods.anogan import AnoGan, Config


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return AnoGan(Config(size=32, width=2, latent=3, **changes))


@pytest.fixture
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def detector():
    """A generator with some contrast and a discriminator whose features matter, so that the search has work to do."""
    detector = build(search_steps=20, search_rate=0.1).eval()
    detector.generator.layers[-2].weight.data.mul_(50)
    detector.discriminator.features[0].weight.data.mul_(50)
    return detector


def residual_and_discrimination(detector, image, code):
    """Both sums of A for one (3, H, W) image in [-1, 1] and one code."""
    with torch.no_grad():
        fake = detector.generator(code)
        features = [detector.discriminator(each)[1].double().numpy() for each in (image[None], fake)]
    residual = np.abs((image[None] - fake).double().numpy()).sum()
    return residual, np.abs(features[0] - features[1]).sum()


def test_paper_is_the_papers_setting():
    config = Config.preset("paper")
    assert (config.search_steps, config.search_rate, config.score_feature) == (500, 0.02, 0.1)
    assert (config.side, config.latent, config.learning_rate) == (128, 100, 2e-4)


def test_losses_by_hand(steps, images):
    detector = build().train()
    detector.discriminator.head.weight.data.zero_()
    losses = steps(detector, images)
    assert losses["generator"][0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses["discriminator"][0] == pytest.approx(2 * math.log(2), rel=1e-5)


def test_losses_are_cross_entropies_of_the_discriminator(steps, images):
    detector = build().train()
    detector.discriminator.head.weight.data.mul_(50)
    torch.manual_seed(7)
    with torch.no_grad():
        fake_logits, _ = detector.discriminator(detector.generator(torch.randn(5, 3, 1, 1)))
        real_logits, _ = detector.discriminator(images * 2 - 1)
    torch.manual_seed(7)
    losses = steps(detector, images)
    as_fake = np.log1p(np.exp(fake_logits.double().numpy())).mean()
    as_real = [np.log1p(np.exp(-logits.double().numpy())).mean() for logits in (real_logits, fake_logits)]
    assert losses["generator"][0] == pytest.approx(as_real[1], rel=1e-4)
    assert losses["discriminator"][0] == pytest.approx(as_real[0] + as_fake, rel=1e-4)


def test_the_distance_is_nine_tenths_residual_and_one_tenth_discrimination(detector, images):
    real, codes = images * 2 - 1, torch.randn(5, 3, 1, 1)
    with torch.no_grad():
        distances, fake = detector.distance(real, detector.discriminator(real)[1], codes)
    assert torch.equal(fake, detector.generator(codes))
    for image, code, distance in zip(real, codes, distances, strict=True):
        residual, discrimination = residual_and_discrimination(detector, image, code[None])
        assert discrimination > 1
        assert distance.item() == pytest.approx(0.9 * residual + 0.1 * discrimination, rel=1e-5)


def test_the_score_is_the_distance_at_the_end_of_a_search_by_adam(detector, images):
    """Adam written out, for one image: the score is A where its last step ends, and the map the residual there."""
    detector = detector.requires_grad_(False)
    scores = detector.score((images[:1],))
    real = images[:1] * 2 - 1
    _, features = detector.discriminator(real)
    code, mean, square = detector.start.clone(), 0, 0
    for step in range(1, 21):
        leaf = code.clone().requires_grad_()
        distance, _ = detector.distance(real, features, leaf)
        (gradient,) = torch.autograd.grad(distance.sum(), leaf)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        code = code - 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    residual, discrimination = residual_and_discrimination(detector, real[0], code)
    assert scores.image.item() == pytest.approx(0.9 * residual + 0.1 * discrimination, rel=1e-4)
    assert scores.anomaly_map.sum().item() == pytest.approx(residual / 3, rel=1e-4)


def test_the_search_comes_nearer(detector, images):
    real = images * 2 - 1
    with torch.no_grad():
        before, _ = detector.distance(real, detector.discriminator(real)[1], detector.start.repeat(5, 1, 1, 1))
    assert (detector.score((images,)).image < before).all()


def test_the_same_image_has_the_same_score_whatever_is_in_the_batch(detector, images):
    alone = detector.score((images[2:3],))
    together = detector.score((images,))
    doubled = detector.score((images[[2, 2]],))
    torch.manual_seed(99)
    again = detector.score((images[2:3],))
    torch.testing.assert_close(together.image[2:3], alone.image, rtol=1e-5, atol=0)
    torch.testing.assert_close(together.anomaly_map[2:3], alone.anomaly_map, rtol=1e-4, atol=1e-4)
    assert torch.equal(doubled.image[0], doubled.image[1])
    assert torch.equal(again.image, alone.image)


def test_the_search_starts_from_a_code_of_the_fits_seed_that_is_kept_with_the_weights():
    assert torch.equal(build(seed=3).start, build(seed=3).start)
    assert not torch.equal(build(seed=3).start, build(seed=4).start)
    assert "start" in build().learned_state()


def test_a_score_leaves_no_gradients_in_the_networks(detector, images):
    with torch.no_grad():
        scores = detector.score((images,))
    assert not scores.image.requires_grad
    assert not scores.anomaly_map.requires_grad
    assert all(parameter.grad is None for parameter in detector.parameters())
