import numpy as np
import pytest
import torch
import torch.nn.functional as F

from makel.errors import UsageError
from makel.methods.skip_ae import Config, SkipAE
from makel.training import loop
from makel.training.features import FeatureCache

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
    assert (config.reading, config.normalise, config.project, config.aspect) == ("l2", False, 0, "square")


def test_the_paper_preset_adds_no_reading_and_no_scale(paper, levels, as_cache):
    assert paper.grid.norm is None
    assert all(not projection.active for projection in paper.grid.projections)
    assert paper.trained_on(np.arange(10)).all()
    paper.finish(as_cache(*levels)[0])
    assert (len(paper.nearest.bank), len(paper.whole.axes)) == (0, 0)
    assert isinstance(paper.optimizers(1)["autoencoder"][0], torch.optim.Adam)


def test_equation_1(paper, levels, steps):
    features = concatenated(levels).double().numpy()
    reconstruct_constant(paper, 0.25)
    loss, _ = steps(paper.train(), *levels)["autoencoder"]
    assert loss == pytest.approx(np.mean((0.25 - features) ** 2), rel=1e-5)


def test_equation_1_compares_with_what_the_autoencoder_makes(paper, levels, steps):
    features = concatenated(levels)
    with torch.no_grad():
        out = paper.train().autoencoder(features)
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


@pytest.mark.parametrize(("n_batches", "expected"), [(1, 50), (16, 50), (17, 48), (500, 2)])
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


def test_a_size_that_cannot_be_halved_says_which_can(shaped_backbone):
    config = Config.preset("paper", size=96, grid=7, widths=(4, 4, 4), skips=())
    with pytest.raises(UsageError, match="finest level of 7 x 7, which cannot be halved 3 times"):
        SkipAE(config, shaped_backbone(CHANNELS, STRIDES))


SMALL = {"size": 32, "blocks": (1, 2), "widths": (4, 4), "skips": (2,), "epochs": 2}
"""The preset `fast` in small: a grid of 16, of which the second block has every other position."""


def small(shaped_backbone, **changes):
    torch.manual_seed(0)
    return SkipAE(Config(**{**SMALL, **changes}), shaped_backbone((3, 5), (2, 4)))


def product(n, seed, side=16):
    """Levels of good images, which differ as a whole and in their noise."""
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(9))
    x = torch.einsum("nk,kchw->nchw", torch.randn(n, 2, generator=generator), pattern)
    x = x + 0.5 * torch.randn(x.shape, generator=generator)
    return x, torch.cat([F.avg_pool2d(x, 2), F.max_pool2d(x[:, :2], 2)], 1)


@pytest.fixture
def fitted(shaped_backbone, as_cache):
    """The small `fast` after a fit on 24 images."""
    detector = small(shaped_backbone)
    train(detector, as_cache(*product(24, 1))[0])
    return detector


def top(maps, count):
    return maps.flatten(1).sort(1).values[:, -count:].mean(1)


def worked_out(detector, levels, share=1.0):
    """Image score and map of `fast`, from nothing but what was learned; the score from a share of the rows."""
    fine, coarse = levels
    x = torch.cat([fine, F.interpolate(coarse, (16, 16), mode="bilinear")], 1)
    x = (x - detector.grid.norm.mean) / detector.grid.norm.std
    residual = x - detector.autoencoder(x)
    near = [F.avg_pool2d(fine, 3, 1, 1), F.interpolate(F.avg_pool2d(coarse, 3, 1, 1), (16, 16), mode="bilinear")]
    vectors = torch.cat([*near, F.avg_pool2d(residual, 3, 1, 1)], 1).permute(0, 2, 3, 1)
    vectors = (vectors - detector.nearest.centre) / detector.nearest.scale
    nearest = torch.cdist(vectors.flatten(0, 2), detector.nearest.bank.float()).amin(1).reshape(-1, 1, 16, 16)
    whole = (F.avg_pool2d(x, 2).flatten(1) - detector.whole.mean) / detector.whole.std
    axes = detector.whole.axes.float()
    whole = (whole - whole @ axes.T @ axes).reshape(-1, 8, 8, 8).square().mean(1, keepdim=True).sqrt()
    of_near, of_whole = nearest[:, :, : int(16 * share)], whole[:, :, : int(8 * share)]
    measures = [
        top(of_near, max(1, of_near[0].numel() // 100)),
        top(of_whole, max(1, of_whole[0].numel() // 20)),
        of_whole.mean((1, 2, 3)),
    ]
    pairs = zip(measures, detector.usual, strict=True)
    one, two, three = (torch.log1p(torch.exp((each.log() - mean) / std)) for each, (mean, std) in pairs)
    parts = zip((nearest, whole), detector.typical, strict=True)
    p, q = (F.interpolate(each / typical, (32, 32), mode="bilinear").square() for each, typical in parts)
    return ((2 * one**2 + 2 * two**2 + three**2) / 5).sqrt(), (2 / (1 / p + 1 / q)).sqrt()


def test_the_score_worked_out_by_hand(fitted):
    levels = product(5, 2)
    levels[0][3, :, 4:7, 9:12] += 2  # one a little beyond the usual: far beyond, log1p(exp(z)) has no end
    with torch.no_grad():
        found, (score, anomaly_map) = fitted.score(levels), worked_out(fitted, levels)
    assert found.anomaly_map.shape == (5, 1, 32, 32)
    torch.testing.assert_close(found.image, score, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.anomaly_map, anomaly_map, rtol=1e-3, atol=1e-4)
    assert found.image.argmax() == 3


def test_zones_are_respected_by_score_and_map(fitted):
    seen = np.ones((32, 32), bool)
    seen[28:] = False
    scored = seen.copy()
    scored[8:] = False  # the first quarter of the rows
    levels = product(5, 2)
    with torch.no_grad():
        everywhere = worked_out(fitted, levels)
        at_top, _ = worked_out(fitted, levels, 0.25)
        fitted.restrict(seen, scored)
        found = fitted.scores(levels)
    assert not torch.allclose(at_top, everywhere[0], rtol=0.05)
    torch.testing.assert_close(found.image, at_top, rtol=1e-3, atol=1e-4)
    assert (found.anomaly_map[:, :, 28:] == 0).all()
    torch.testing.assert_close(found.anomaly_map[:, :, :28], everywhere[1][:, :, :28], rtol=1e-3, atol=1e-4)


def test_what_is_usual_is_learned_of_the_scored_part_alone(shaped_backbone):
    detector = small(shaped_backbone, reading="nearest")
    scored = np.zeros((32, 32), bool)
    scored[:8] = True
    detector.restrict(np.ones((32, 32), bool), scored)
    maps = torch.ones(5, 1, 16, 16)
    maps[:, :, 4:] = 100
    detector._set_usual([maps])
    assert detector.usual[0, 0] == 0


def of_images(cache, image_of):
    """A cache whose rows are tiles or copies of images."""
    return FeatureCache(cache.levels, cache.device, rows=cache.rows, image_of=np.asarray(image_of))


def fit_and_watch(detector, cache, levels):
    """Train, and say which rows the steps saw; rows are told apart by their first value."""
    known, seen, step = levels[0][:, 0, 0, 0].tolist(), set(), detector.training_step

    def training_step(features):
        seen.update(known.index(value) for value in features[0][:, 0, 0, 0].tolist())
        return step(features)

    detector.training_step = training_step
    train(detector, cache)
    return seen


def copies_in_turn(n, times):
    """Images of rows that are as those of `augment`: each of four images, then a copy of each, and so on."""
    return np.concatenate([np.tile(np.arange(first, min(first + 4, n)), times) for first in range(0, n, 4)])


@pytest.mark.parametrize(
    ("image_of", "n_unseen"),
    [
        (np.arange(24), 6),
        (np.arange(12).repeat(2), 3),  # tiles
        (copies_in_turn(6, 4), 1),
        (np.random.default_rng(0).permutation(8).repeat(3), 2),
        (np.arange(3).repeat(8), 0),  # so few that none can be spared
    ],
)
def test_no_step_sees_an_image_that_is_kept_out_nor_a_tile_or_copy_of_it(shaped_backbone, as_cache, image_of, n_unseen):
    cache, levels = as_cache(*product(24, 1))
    image_of = 100 + 7 * image_of  # their numbers say nothing
    detector = small(shaped_backbone, epochs=1)
    seen_rows = fit_and_watch(detector, of_images(cache, image_of), levels)
    seen = set(image_of[sorted(seen_rows)])
    unseen = set(image_of) - seen
    assert len(unseen) == n_unseen
    assert seen_rows == {row for row in range(24) if image_of[row] in seen}  # all of what is not kept out


def test_images_kept_out_are_spread_over_all_and_no_more_than_enough(shaped_backbone):
    detector = small(shaped_backbone)
    kept = detector.trained_on(np.arange(500))
    out = np.flatnonzero(~kept)
    assert len(out) == 32
    assert np.diff([0, *out, 499]).min() > 10
    assert small(shaped_backbone, reading="l2").trained_on(np.arange(500)).all()


@pytest.mark.parametrize("image_of", [np.arange(24), np.arange(12).repeat(2)], ids=["images", "copies"])
def test_what_is_usual_is_learned_from_images_that_nothing_has_seen(shaped_backbone, as_cache, image_of):
    # Everything is remembered and every axis counts, so that what has been seen is known very well.
    levels = product(24, 1)
    first = np.unique(image_of, return_index=True)[1][image_of]  # copies are equal here
    levels = tuple(level[first] for level in levels)
    detector = small(shaped_backbone, bank=20_000)
    cache, seen = as_cache(*levels)
    train(detector, of_images(cache, image_of))
    _, new = as_cache(*product(60, 2))
    mean, std = detector.usual[:, :1], detector.usual[:, 1:]
    with torch.no_grad():
        near = detector.nearest(detector._described(new)), detector.nearest(detector._described(seen))
        whole = detector.whole(detector.grid(new)), detector.whole(detector.grid(seen))
        of_new, of_seen = (torch.cat([detector._measures(near[i], 0), detector._measures(whole[i], 1)]) for i in (0, 1))
    # New images are as the usual says, and learned ones are closer than it says.
    z_new, z_seen = (of_new - mean) / std, (of_seen - mean) / std
    assert z_new.mean(1).abs().max() < 2
    assert z_seen.mean(1).max() < -3
    # So a new good one has 0.69 by its mean, and more by its spread.
    with torch.no_grad():
        assert 0.3 < detector.score(new).image.median() < 2


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_images_can_be_fitted_on(shaped_backbone, as_cache, n):
    detector = small(shaped_backbone)
    cache, seen = as_cache(*product(n, 1))
    train(detector, cache)
    assert detector.usual.isfinite().all()
    assert (detector.usual[:, 1] > 0).all()
    with torch.no_grad():
        for levels in (seen, product(7, 2)):
            scores = detector.score(levels)
            assert scores.image.isfinite().all()
            assert scores.anomaly_map.isfinite().all()


def test_the_spread_of_few_images_is_between_theirs_and_what_is_supposed(shaped_backbone):
    detector = small(shaped_backbone, reading="nearest")
    maps = torch.tensor([1.0, 2.0]).log().exp()[:, None, None, None].expand(2, 1, 16, 16)
    detector._set_usual([maps[:1]])
    assert detector.usual[0].tolist() == pytest.approx([0.0, 0.1])  # one image: what is supposed
    detector._set_usual([maps])
    log_2 = np.log(2)
    assert detector.usual[0].tolist() == pytest.approx([log_2 / 2, np.sqrt((log_2**2 / 2 + 0.01) / 2)])
    assert detector.typical[0] == 1.5


def test_sheets_without_any_texture_are_fitted(shaped_backbone, as_cache):
    fine, coarse = torch.ones(12, 3, 16, 16), 2 * torch.ones(12, 5, 8, 8)
    detector = small(shaped_backbone)
    train(detector, as_cache(fine, coarse)[0])
    spot = fine[:2].clone()
    spot[1, :, 4:7, 4:7] = 2
    with torch.no_grad():
        scores = detector.score((spot, coarse[:2]))
    assert scores.image.isfinite().all()
    assert scores.anomaly_map.isfinite().all()
    assert scores.image[1] > 5 * scores.image[0]
    assert divmod(int(scores.anomaly_map[1].argmax()), 32)[0] in range(6, 16)


def test_a_fitted_state_gives_the_same_scores_again(fitted, shaped_backbone):
    again = small(shaped_backbone).eval()
    again.load_state_dict(fitted.state_dict())
    levels = product(5, 2)
    with torch.no_grad():
        found, expected = again.score(levels), fitted.score(levels)
    assert torch.equal(found.image, expected.image)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)


def test_a_model_folder_keeps_what_was_trained_without_the_readings(fitted):
    kept = fitted.trained_state()
    assert {key.split(".")[0] for key in kept} == {"autoencoder", "grid"}
    assert {key for key in fitted.learned_state() if key.startswith("autoencoder.")} <= kept.keys()
    assert all(value.dtype == torch.float16 for key, value in kept.items() if key.endswith("weight") and value.ndim > 1)
    # Nothing is lost by that: what is fitted is in half precision already.
    assert all(torch.equal(value.float(), fitted.learned_state()[key].float()) for key, value in kept.items())


def test_tiles_are_read_by_the_nearest_alone(shaped_backbone, as_cache):
    detector = small(shaped_backbone, **{**Config.for_tiles, "size": 32})
    assert detector.config.reading == "nearest"
    cache, _ = as_cache(*product(24, 1))
    train(detector, of_images(cache, np.arange(6).repeat(4)))
    assert len(detector.whole.axes) == 0
    levels = product(5, 2)
    with torch.no_grad():
        scores, distances = detector.score(levels), detector.nearest(detector._described(levels))
    mean, std = detector.usual[0]
    z = (top(distances, 2).log() - mean) / std
    torch.testing.assert_close(scores.image, torch.log1p(torch.exp(z)))
    enlarged = F.interpolate(distances, (32, 32), mode="bilinear") / detector.typical[0]
    torch.testing.assert_close(scores.anomaly_map, enlarged)


def test_planted_defects_are_ranked_first_of_surfaces_and_of_wholes(fitted):
    levels = product(40, 2)
    surface, mixed = (tuple(level.clone() for level in levels) for _ in range(2))
    surface[0][:, :, 4:7, 9:12] += 4.0
    for level in mixed:  # each half good, of another image
        level[:, :, :, level.shape[3] // 2 :] = level[:, :, :, level.shape[3] // 2 :].roll(1, 0)
    with torch.no_grad():
        good, of_surface, of_mixed = (fitted.score(each).image for each in (levels, surface, mixed))
    assert (of_surface[:, None] > good).float().mean() > 0.95
    assert (of_mixed[:, None] > good).float().mean() > 0.9
