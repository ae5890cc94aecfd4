import numpy as np
import pytest
import torch
import torch.nn.functional as F

from makel.errors import UsageError
from makel.methods.layers import neighbourhoods
from makel.methods.residual_layers import Reading
from makel.methods.skip_ae import Config, SkipAE
from makel.training import loop

CHANNELS, STRIDES = (2, 3, 5), (4, 8, 16)
TINY_PAPER = {"size": 32, "grid": 8, "widths": (4, 4), "skips": (-1,)}


def train(detector, cache, seed=0):
    return loop.train(detector, cache, seed=seed, progress=lambda *_: None)


@pytest.fixture
def paper(shaped_backbone):
    """The preset `paper` in small: 32 px, a grid of 8, two stages."""
    torch.manual_seed(0)
    return SkipAE(Config.preset("paper", **TINY_PAPER), shaped_backbone(CHANNELS, STRIDES))


@pytest.fixture
def levels():
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.rand(10, c, 32 // s, 32 // s, generator=generator) for c, s in zip(CHANNELS, STRIDES, strict=True)
    )


def concatenated(levels):
    """FE(x) on the grid of 8: resized bilinearly and concatenated."""
    fine, *coarse = levels
    return torch.cat([fine, *(F.interpolate(level, (8, 8), mode="bilinear") for level in coarse)], 1)


def reconstruct_constant(detector, value):
    """Make AE(x) the same everywhere, so that equations can be worked out without a network."""
    detector.autoencoder.up[0].weight.data.zero_()
    detector.autoencoder.up[0].bias.data.fill_(value)


def test_paper_is_the_papers_setting():
    config = Config.preset("paper")
    assert (config.backbone, config.blocks, config.grid, config.size) == ("resnext101", (1, 2, 3), 64, (256, 256))
    assert (config.epochs, config.learning_rate, config.batch_size) == (150, 1e-4, 8)
    assert (config.residual, config.top, config.normalise, config.standardise) == ("l2", 0.0, False, False)


def test_the_paper_preset_adds_no_gaussian_and_no_scale(paper, levels):
    assert not len(paper.readings)
    assert not len(paper.norms)
    assert all(not projection.active for projection in paper.projections)
    assert isinstance(paper.optimizers(1)["autoencoder"][0], torch.optim.Adam)


def test_equation_1(paper, levels, steps):
    features = concatenated(levels).double().numpy()
    reconstruct_constant(paper, 0.25)
    loss, _ = steps(paper.train(), *levels)["autoencoder"]
    assert loss == pytest.approx(np.mean((0.25 - features) ** 2), rel=1e-5)


def test_equation_1_compares_with_what_the_autoencoder_makes(paper, levels, steps):
    features = concatenated(levels)
    with torch.no_grad():
        (out,) = paper.train().autoencoder([features])
    loss, _ = steps(paper, *levels)["autoencoder"]
    assert loss == pytest.approx(np.mean((out - features).double().numpy() ** 2), rel=1e-5)


def test_equation_2(paper, levels):
    features = concatenated(levels)
    reconstruct_constant(paper, 0.25)
    with torch.no_grad():
        scores = paper.eval().score(levels)
    residual = torch.from_numpy(np.sqrt(np.sum((0.25 - features.numpy()) ** 2, axis=1, keepdims=True)))
    expected = F.interpolate(residual, (32, 32), mode="bilinear")
    torch.testing.assert_close(scores.anomaly_map, expected)
    assert torch.equal(scores.image, scores.anomaly_map.amax((1, 2, 3)))


def test_equation_2_by_hand(shaped_backbone):
    config = Config.preset("paper", size=8, grid=8, blocks=(1,), widths=(4, 4), skips=(-1,))
    detector = SkipAE(config, shaped_backbone((2,), (1,))).eval()
    reconstruct_constant(detector, 1.0)
    features = torch.ones(1, 2, 8, 8)
    features[0, :, 3, 5] = torch.tensor([4.0, -3.0])  # 3 and 4 away: 5 in all
    with torch.no_grad():
        scores = detector.score((features,))
    assert scores.image.tolist() == [5.0]
    assert scores.anomaly_map.sum() == 5
    assert scores.anomaly_map[0, 0, 3, 5] == 5


@pytest.fixture
def trained(shaped_backbone, as_cache, levels):
    """The small paper preset after twenty fast epochs, and the features as it saw them."""
    torch.manual_seed(0)
    config = Config.preset("paper", **TINY_PAPER, epochs=20, learning_rate=1e-2)
    detector = SkipAE(config, shaped_backbone(CHANNELS, STRIDES))
    cache, seen = as_cache(*levels)
    train(detector, cache)
    return detector, seen


def test_batchnorm_is_in_eval_mode_at_test(trained):
    detector, seen = trained
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    outlier = tuple(torch.cat([level[:1], 1e3 * level[1:2]]) for level in seen)
    with torch.no_grad():
        alone, in_company = detector.score(tuple(level[:1] for level in seen)), detector.score(outlier)
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(torch.equal(old, norm.running_mean) for old, norm in zip(before, norms, strict=True))
    torch.testing.assert_close(alone.image, in_company.image[:1], rtol=1e-5, atol=0)
    with torch.no_grad():
        of_batch_statistics = detector.train().score(outlier)
    assert (of_batch_statistics.image[0] / alone.image[0] - 1).abs() > 0.01


@pytest.mark.parametrize(
    ("n", "batch_size", "expected"), [(10, 4, [4, 4, 2]), (10, 64, [10]), (9, 8, [9]), (10, 5, [5, 5])]
)
def test_the_last_batch_is_not_dropped(shaped_backbone, as_cache, levels, seen_batches, n, batch_size, expected):
    config = Config.preset("paper", **TINY_PAPER, epochs=2, batch_size=batch_size)
    detector = SkipAE(config, shaped_backbone(CHANNELS, STRIDES))
    sizes = seen_batches(detector)
    train(detector, as_cache(*(level[:n] for level in levels))[0])
    assert sizes == expected * 2


@pytest.mark.parametrize(("n_batches", "expected"), [(1, 200), (7, 29), (200, 1), (500, 1)])
def test_the_budget_is_counted_in_updates(n_batches, expected):
    assert Config(updates=200, most_epochs=0).epochs_for(n_batches) == expected


@pytest.mark.parametrize(("n_batches", "expected"), [(1, 20), (5, 20), (6, 17), (500, 1)])
def test_few_images_are_not_learned_by_heart(n_batches, expected):
    assert Config.preset("fast").epochs_for(n_batches) == expected
    assert Config.preset("fast", epochs=30).epochs_for(n_batches) == 30


def test_the_paper_preset_counts_epochs():
    assert Config.preset("paper").epochs_for(7) == 150


def test_the_learning_rate_peaks_and_ends_near_zero(shaped_backbone):
    config = Config(widths=(4,), skips=(), learning_rate=3e-3)
    optimizer, scheduler = SkipAE(config, shaped_backbone(CHANNELS, STRIDES)).optimizers(50)["autoencoder"]
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(3e-3, rel=0.02)
    assert rates[-1] < 1e-6


def test_whitened_with_a_unit_covariance_is_equation_2_squared_a_channel(shaped_backbone):
    backbone = shaped_backbone((3,), (1,))
    settings = {"size": 8, "blocks": (1,), "widths": (4, 4), "skips": (-1,), "normalise": False, "top": 0.0}
    whitened, plain = (SkipAE(Config(**settings, residual=name), backbone) for name in ("gaussian", "l2"))
    for detector in (whitened, plain):
        reconstruct_constant(detector.eval(), 0.5)
    rows, columns = torch.tril_indices(3, 3)
    whitened.readings["gaussian_0"].whitener.copy_((rows == columns).half().expand(64, 6))
    features = (torch.rand(2, 3, 8, 8),)
    with torch.no_grad():
        torch.testing.assert_close(3 * whitened.score(features).image, plain.score(features).image.square())


def test_a_size_that_cannot_be_halved_says_which_can(shaped_backbone):
    config = Config.preset("paper", size=96, grid=7, widths=(4, 4, 4), skips=())
    with pytest.raises(UsageError, match="finest level of 7 x 7, which cannot be halved 3 times"):
        SkipAE(config, shaped_backbone(CHANNELS, STRIDES))


def test_tiles_are_read_by_the_nearest_wherever_they_stand(shaped_backbone, as_cache):
    settings = {"size": 16, "blocks": (1, 2), "widths": (4, 4), "skips": (0,), "epochs": 1, **Config.for_tiles}
    detector = SkipAE(Config(**settings), shaped_backbone((3, 5), (1, 2)))
    cache, _ = as_cache(torch.randn(12, 3, 16, 16), torch.randn(12, 5, 8, 8))
    train(detector, cache)
    assert detector.settled.residual == "nearest"
    assert list(detector.readings) == ["nearest_0", "patch_0"]


OBJECT = torch.tensor([2.0, -1.0, 1.0])[:, None, None]


def product_of(kind, n, generator):
    """Levels of an object that lies at the same place in every image, or anywhere, on whole cells of every level."""
    x = 0.1 * torch.randn(n, 3, 16, 16, generator=generator)
    for index in range(n):
        row, column = (4, 4) if kind == "fixed" else (4 * torch.randint(0, 3, (2,), generator=generator)).tolist()
        x[index, :, row : row + 8, column : column + 8] += OBJECT
    return x, torch.nn.functional.avg_pool2d(x, 2)


ANYWHERE = {"size": 16, "blocks": (1, 2), "widths": (4, 4), "skips": (0,), "epochs": 1, "join": False}


@pytest.mark.parametrize("kind", ["fixed", "anywhere"])
def test_how_the_product_lies_says_how_it_is_read(shaped_backbone, as_cache, kind):
    generator = torch.Generator().manual_seed(3)
    levels = product_of(kind, 48, generator)
    changed = [level.clone() for level in levels]
    for index in range(48):
        row, column = (4 * torch.randint(0, 4, (2,), generator=generator)).tolist()
        # In place: the object's own surface where it does not belong. Anywhere: a surface that is nowhere good.
        changed[0][index, :, row : row + 4, column : column + 4] = (1.0 if kind == "fixed" else 0.5) * OBJECT
    changed[1] = torch.nn.functional.avg_pool2d(changed[0], 2)
    detector = SkipAE(Config(**ANYWHERE), shaped_backbone((3, 3), (1, 2)))
    cache, good = as_cache(*levels)
    _, seen = as_cache(*changed)
    train(detector, cache)
    settled = detector.settled
    in_place, anywhere = ["gaussian_0", "gaussian_1"], ["whole_0", "whole_1", "nearest_0", "patch_1"]
    assert settled.residual == ("gaussian" if kind == "fixed" else "whole")
    assert list(detector.readings) == (in_place if kind == "fixed" else anywhere)
    again = SkipAE(settled, shaped_backbone((3, 3), (1, 2)))
    again.load_state_dict(detector.state_dict())
    assert again.settled == settled
    with torch.no_grad():
        assert torch.equal(again.eval().score(seen).image, detector.score(seen).image)
        assert detector.score(seen).image.mean() > 1.2 * detector.score(good).image.mean()


def test_readings_count_by_their_weights(shaped_backbone, as_cache):
    levels = product_of("anywhere", 24, torch.Generator().manual_seed(3))
    detector = SkipAE(Config(**ANYWHERE, residual="whole"), shaped_backbone((3, 3), (1, 2)))
    cache, seen = as_cache(*levels)
    train(detector, cache)
    with torch.no_grad():
        residuals = detector.residuals(seen)
        wholes = [detector.readings[f"whole_{level}"](residuals[level]) for level in (0, 1)]
        patches = neighbourhoods(residuals, (8, 8))
        nearest = [detector.readings["nearest_0"](residuals[0]), detector.readings["patch_1"](patches)]
        # Three quarters of 16 and of 4 positions, and 1 % of 256 and 64.
        counts = zip((*wholes, *nearest), (12, 3, 2, 1), strict=True)
        tops = [each.flatten(1).topk(count).values.mean(1).log() for each, count in counts]
        above = F.softplus((torch.stack(tops) - detector.usual[:, :1]) / detector.usual[:, 1:])
        scores, weights = detector.score(seen), detector.weights
        torch.testing.assert_close(weights.sum(1), torch.ones(2))
        assert weights[1, 0] == weights[1, 2] == 0  # the finest level says nothing of an image as such
        torch.testing.assert_close(scores.image, (weights[1, :, None] * above.square()).sum(0).sqrt())
        parts = zip([1 / each.clamp_min(1e-6) for each in (*wholes, *nearest)], weights[0], strict=True)
        enlarged = [weight * F.interpolate(each, (16, 16), mode="bilinear") for each, weight in parts]
        torch.testing.assert_close(scores.anomaly_map, 1 / sum(enlarged))


class Varying(Reading):
    """Maps of good images whose logarithms have a given standard deviation."""

    def __init__(self, spread):
        super().__init__()
        self.spread = spread

    def left_out(self, x, first):
        return torch.exp(self.spread * torch.randn(len(x), 1, 64, 64))

    add = solve = of_fold = forget = None


def test_wholes_count_less_where_they_vary_within_good_images(shaped_backbone, as_cache):
    torch.manual_seed(3)
    detector = SkipAE(Config(**ANYWHERE, residual="whole"), shaped_backbone((3, 3), (1, 2)))
    cache, _ = as_cache(torch.randn(8, 3, 16, 16), torch.randn(8, 3, 8, 8))
    spreads = {("whole", 0): 0.5, ("whole", 1): 0.35, ("nearest", 0): 0.25, ("patch", 1): 0.15}
    readings = {key: Varying(spread) for key, spread in spreads.items()}
    detector._settle("whole", readings)
    detector._weigh(cache, readings, 8)
    # Twice what the nearest vary on average is 0.4: five quarters of it are too much.
    expected = torch.tensor([[3 * 0.8**8, 3, 2, 4], [0, 3, 0, 2]])
    torch.testing.assert_close(detector.weights, expected / expected.sum(1, keepdim=True), rtol=0.05, atol=0)


def test_what_is_usual_is_learned_from_images_left_out(shaped_backbone, as_cache):
    generator = torch.Generator().manual_seed(3)
    detector = SkipAE(Config(**ANYWHERE, residual="whole"), shaped_backbone((3, 3), (1, 2)))
    cache, seen = as_cache(*product_of("anywhere", 64, generator))
    train(detector, cache)
    _, new = as_cache(*product_of("anywhere", 64, generator))
    with torch.no_grad():
        of_seen, of_new = detector.score(seen).image, detector.score(new).image
    assert detector.usual.shape == (4, 2)
    # A good one has 0.69 by its mean, and more by its spread; those that were learned from look better than they are.
    assert 0.5 < of_new.median() < 1.5
    assert of_seen.median() < of_new.median()
