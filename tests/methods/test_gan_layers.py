import math

import numpy as np
import pytest
import torch

from makel import methods
from makel.errors import UsageError
from makel.methods.gan_layers import Decoder, Discriminator, Encoder, Norm, binary_cross_entropy, initialise, spread
from makel.training import loop

ADVERSARIAL = ("anogan", "ganomaly", "skip_ganomaly")
TINY = {"size": 32, "width": 2, "latent": 3, "batch_size": 4}

every_adversarial = pytest.mark.parametrize("name", ADVERSARIAL)


def build(name, **changes):
    """A detector of 32 px and two channels; those of AnoGAN search for three steps."""
    detector_class = methods.load(name)
    search = {"search_steps": 3} if name == "anogan" else {}
    torch.manual_seed(0)
    return detector_class(detector_class.config_class.preset("fast", **{**TINY, **search, **changes}))


@pytest.fixture
def images():
    return torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_cross_entropy_is_the_log_of_the_probability():
    logits = torch.tensor([0.0, 2.0])
    p = 1 / (1 + np.exp(-logits.double().numpy()))
    assert binary_cross_entropy(logits, True).item() == pytest.approx(-np.log(p).mean(), rel=1e-6)
    assert binary_cross_entropy(logits, False).item() == pytest.approx(-np.log(1 - p).mean(), rel=1e-6)
    assert binary_cross_entropy(torch.tensor([-200.0]), True).item() == 200.0  # does not saturate


def test_spread_compares_how_much_images_differ():
    real = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    assert spread(0.25 * real, real).item() == pytest.approx(0.25, rel=1e-2)
    assert spread(torch.zeros_like(real), real).item() < 1e-3
    assert spread(real[:1], real[:1]).item() == 1


def test_the_networks_at_256_have_the_channels_of_the_official_code():
    with torch.device("meta"):
        encoder, decoder, discriminator = Encoder(256, 100, 64), Decoder(256, 100, 64), Discriminator(256, 64)
        logits, features = discriminator(torch.empty(2, 3, 256, 256))
        assert encoder(torch.empty(2, 3, 256, 256)).shape == (2, 100, 1, 1)
        assert decoder(torch.empty(2, 100, 1, 1)).shape == (2, 3, 256, 256)
    widths = [layer.out_channels for layer in encoder.features if isinstance(layer, torch.nn.Conv2d)]
    assert widths == [64, 128, 256, 512, 1024, 2048]
    assert logits.shape == (2,)
    assert features.shape == (2, 2048, 4, 4)
    convolutions = [layer for layer in encoder.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convolutions) == 7
    assert all(layer.bias is None for layer in convolutions)


def test_initial_weights_are_dcgans():
    torch.manual_seed(0)
    encoder = Encoder(64, 20, 16)
    initialise(encoder)
    weights = torch.cat([m.weight.flatten() for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)])
    gains = torch.cat([m.weight for m in encoder.modules() if isinstance(m, Norm)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert weights.mean().abs() < 1e-3
    assert gains.mean().item() == pytest.approx(1, abs=0.01)
    assert gains.std().item() == pytest.approx(0.02, rel=0.3)


@every_adversarial
@pytest.mark.parametrize(("n_batches", "expected"), [(1, 100), (7, 15), (100, 1), (500, 1)])
def test_the_budget_is_counted_in_updates(name, n_batches, expected):
    config_class = methods.load(name).config_class
    assert config_class(updates=100).epochs_for(n_batches) == expected
    assert config_class(updates=100, epochs=3).epochs_for(n_batches) == 3


@pytest.mark.parametrize(
    ("name", "updates"),
    # 15 epochs of 45,000 images at batch 64, 25 of the same, and 50 of 10,000 patches.
    [("ganomaly", 15 * 45_000 / 64), ("skip_ganomaly", 25 * 45_000 / 64), ("anogan", 50 * 10_000 / 64)],
)
def test_the_papers_budget_in_updates(name, updates):
    config = methods.load(name).config_class.preset("paper")
    assert config.updates == pytest.approx(updates, rel=0.005)
    assert (config.batch_size, config.learning_rate, config.latent, config.width) == (64, 2e-4, 100, 64)


@every_adversarial
@pytest.mark.parametrize(("batch_size", "expected"), [(4, [4, 5]), (64, [9]), (7, [7, 2])])
def test_the_last_batch_is_not_dropped(name, images, as_cache, seen_batches, batch_size, expected):
    detector = build(name, epochs=2, batch_size=batch_size)
    sizes = seen_batches(detector)
    loop.train(detector, as_cache(images)[0], seed=0, progress=lambda *_: None)
    assert sizes == 2 * expected


@every_adversarial
def test_adam_has_the_papers_betas_for_both_networks(name):
    optimizers = build(name).optimizers(10)
    assert set(optimizers) == {"generator", "discriminator"}
    for network, (optimizer, scheduler) in optimizers.items():
        (group,) = optimizer.param_groups
        assert isinstance(optimizer, torch.optim.Adam)
        assert (group["lr"], group["betas"], scheduler) == (2e-4, (0.5, 0.999), None)
        assert len(group["params"]) == len(list(getattr(build(name), network).parameters()))


@every_adversarial
def test_each_step_leaves_the_other_network_alone(name, images):
    detector = build(name).train()
    optimizers = detector.optimizers(1)
    for trained, loss, _ in detector.training_step((images,)):
        before = {key: value.clone() for key, value in detector.named_parameters()}
        detector.zero_grad(set_to_none=True)
        loss.backward()
        reached = {key.partition(".")[0] for key, value in detector.named_parameters() if value.grad is not None}
        assert reached == {trained}
        optimizers[trained][0].step()
        changed = {key.partition(".")[0] for key, value in detector.named_parameters() if not value.equal(before[key])}
        assert changed == {trained}
        assert all(parameter.requires_grad for parameter in detector.parameters())


@every_adversarial
def test_train_mode_norm_changes_scores_which_still_do_not_depend_on_the_batch(name, images, as_cache):
    cache, (seen,) = as_cache(images)
    plain, switched = (build(name, epochs=3, train_mode_norm=on) for on in (False, True))
    for detector in (plain, switched):
        loop.train(detector, cache, seed=0, progress=lambda *_: None)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), switched.parameters(), strict=True))
    with torch.no_grad():
        of_plain, of_switched = plain.score((seen,)), switched.score((seen,))
        alone = torch.cat([switched.score((image[None],)).image for image in seen])
    assert not torch.allclose(of_plain.image, of_switched.image, rtol=1e-3)
    torch.testing.assert_close(alone, of_switched.image, rtol=1e-3, atol=1e-7)


def test_norm_per_image_is_batchnorm_in_train_mode_at_batch_size_one():
    x, norm = torch.randn(3, 4, 5, 5), Norm(4)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = torch.cat([norm.train()(image[None]) for image in x])
    norm.per_image = True
    torch.testing.assert_close(norm.eval()(x), expected)


def log(n=20, **end):
    """Epochs of a training that went well, but for the values given, which its last tenth has."""
    well = {"loss": 2.0, "loss_d": 0.7, "spread": 0.9, "restarts": 0.0}
    return [well] * (n - 2) + [{**well, **end}] * 2


@every_adversarial
@pytest.mark.parametrize(
    ("end", "said"),
    [
        ({"loss_d": 5e-4}, "the discriminator won: its loss ended at 5.0e-04"),
        ({"spread": 0.02}, "the generator collapsed: its images ended with 2.0% of the spread"),
        ({"loss": 50.0}, "the generator's loss ended at 50, 25 times its lowest"),
        ({"restarts": 0.5}, "the discriminator won and began again with new weights in 2 of 20 epochs"),
    ],
)
def test_the_watch_reports_what_collapsed(name, end, said):
    detector = build(name)
    (line,) = detector.warnings(log(**end))
    assert line.startswith(said)
    assert detector.warnings(log()) == ()
    assert detector.warnings([]) == ()


def test_the_watch_asks_how_it_ended_not_how_it_began():
    detector = build("anogan")
    epochs = [{"loss": 2.0, "loss_d": 1e-6, "spread": 0.01}] * 10 + [{"loss": 2.0, "loss_d": 0.7, "spread": 0.9}] * 10
    assert detector.warnings(epochs) == ()


@pytest.mark.parametrize("name", ["ganomaly", "skip_ganomaly"])
def test_a_discriminator_that_won_begins_again(name):
    detector = build(name)
    detector.discriminator.requires_grad_(False)
    weights = [parameter for parameter in detector.discriminator.parameters() if parameter.dim() > 1]
    before = [weight.clone() for weight in weights]

    def run(loss):
        (step,) = list(detector.discriminator_step(torch.tensor(loss)))
        return step[2]["restarts"].item()

    assert run(2e-5) == 0
    assert all(torch.equal(old, now) for old, now in zip(before, weights, strict=True))
    assert run(5e-6) == 1
    assert not any(torch.equal(old, now) for old, now in zip(before, weights, strict=True))


@every_adversarial
@pytest.mark.parametrize("size", [16, 96, 200])
def test_a_size_the_networks_cannot_halve_is_refused(name, size):
    with pytest.raises(UsageError, match=f"size {size} cannot be halved"):
        methods.load(name).config_class(size=size)


@every_adversarial
def test_a_backbone_is_refused(name):
    with pytest.raises(UsageError, match="this method takes raw pixels: leave out backbone 'resnext101'"):
        methods.load(name).config_class(backbone="resnext101")


def test_ln_2_is_what_an_undecided_discriminator_costs():
    assert binary_cross_entropy(torch.zeros(5), True).item() == pytest.approx(math.log(2))
