import numpy as np
import pytest
import torch

from makel.methods.residual_layers import Alignment, NearestResidual, PositionGaussian, WholeMap


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_position_gaussian_is_the_mahalanobis_distance_at_its_position():
    x = torch.randn(7, 3, 2, 2) * torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
    gaussian = PositionGaussian(3, (2, 2))
    gaussian.add(x[:4], 0)
    gaussian.add(x[4:], 4)
    gaussian.solve()
    # Seven images are too few to choose a shrinkage by: one covariance for all positions, each with its own mean.
    assert gaussian.shrinkage == 1
    values = x.double().numpy()
    centred = values - values.mean(0)
    covariance = np.mean([np.cov(values[:, :, i, j].T, bias=True) for i in (0, 1) for j in (0, 1)], axis=0)
    covariance += 0.01 * np.diag(covariance).mean() * np.eye(3)
    expected = np.einsum("ncij,cd,ndij->nij", centred, np.linalg.inv(covariance), centred) / 3
    np.testing.assert_allclose(gaussian(x)[:, 0], expected, rtol=5e-3)  # the factor is kept in half precision


def test_many_images_rely_on_their_own_positions():
    spread = torch.tensor([[0.1, 1.0], [3.0, 10.0]])
    gaussian = PositionGaussian(2, (2, 2))
    gaussian.add(torch.randn(400, 2, 2, 2) * spread, 0)
    gaussian.solve()
    assert gaussian.shrinkage < 0.5
    far = gaussian(torch.ones(1, 2, 2, 2))[0, 0]
    assert far[0, 0] > far[0, 1] > far[1, 0] > far[1, 1]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_how_images_are_batched_does_not_change_the_gaussian(batch):
    x = torch.randn(22, 3, 2, 2) * torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
    whole, parts = PositionGaussian(3, (2, 2)), PositionGaussian(3, (2, 2))
    whole.add(x, 0)
    for first in range(0, 22, batch):
        parts.add(x[first : first + batch], first)
    whole.solve()
    parts.solve()
    assert parts.shrinkage == whole.shrinkage
    torch.testing.assert_close(parts(x), whole(x), rtol=2e-3, atol=2e-3)


def whitened(x):
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).double()
    covariance = torch.cov(rows.T, correction=0)
    covariance += 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
    return (rows - rows.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(covariance)).T


def test_nearest_residual_is_the_distance_to_a_good_one_anywhere():
    x = torch.randn(6, 3, 4, 4) * torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
    reading = NearestResidual(3, most=1000)
    reading.add(x[:2], 0)
    reading.add(x[2:], 2)
    reading.solve()
    assert len(reading.bank) == 96  # all there are
    assert reading(x).max() < 1e-3  # they are remembered, in half precision
    assert torch.equal(reading(x.roll(1, 2)), reading(x).roll(1, 2))
    rows = whitened(x)
    far = torch.full((1, 3, 1, 1), 9.0)
    white = (
        far.flatten().double() - x.permute(0, 2, 3, 1).reshape(-1, 3).double().mean(0)
    ) @ reading.whitener.T.double()
    expected = (rows - white).square().sum(1).min() / 3
    assert reading(far).item() * reading.scale.item() == pytest.approx(expected.item(), rel=1e-2)


def test_good_residuals_never_seen_are_about_one_away():
    x = torch.randn(80, 4, 4, 4)
    reading = NearestResidual(4, most=256)
    reading.add(x[:40], 0)
    reading.solve()
    assert reading(x[40:]).mean() == pytest.approx(1, abs=0.3)


def test_a_bank_comes_back_from_its_state():
    reading, again = NearestResidual(3, most=10), NearestResidual(3, most=10)
    reading.add(torch.randn(4, 3, 4, 4), 0)
    reading.solve()
    again.load_state_dict(reading.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(again(x), reading(x))


def kinds_of(n, generator=None):
    """Maps (n, 3, 16, 16) of a product of two kinds that differ in every position at once, in any mixture."""
    pattern = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5)).repeat_interleave(4, 2)
    pattern = pattern.repeat_interleave(4, 3)
    x = torch.einsum("nk,kchw->nchw", torch.randn(n, 2, generator=generator), pattern)
    return x + 0.4 * torch.randn(x.shape, generator=generator)


def whole_of(x, batch=8):
    reading = WholeMap(3, (16, 16))
    for first in range(0, len(x), batch):
        reading.add(x[first : first + batch], first)
    reading.solve()
    return reading


def test_readings_take_levels_that_are_no_squares():
    x = torch.randn(24, 3, 8, 20, generator=torch.Generator().manual_seed(1))
    strange = x[:1].clone()
    strange[:, :, 2, 17] += 20
    whole, gaussian = WholeMap(3, (8, 20)), PositionGaussian(3, (8, 20))
    assert whole.grid == (2, 5)
    for reading, peak in ((gaussian, (2, 17)), (whole, (0, 4))):
        reading.add(x, 0)
        reading.solve()
        found = reading(strange)[0, 0]
        assert divmod(int(found.argmax()), found.shape[1]) == peak


def test_a_whole_map_explains_what_good_images_have_in_common():
    reading = whole_of(kinds_of(60))
    assert reading.grid == (4, 4)
    fresh = reading(kinds_of(40))
    assert fresh.shape == (40, 1, 4, 4)
    # Images that no axis comes from are as far off as those that the Gaussian was learned from.
    assert fresh.mean() == pytest.approx(1, abs=0.3)
    strange = kinds_of(40)
    strange[:, :, 4:8, 8:12] = strange[:, :, 4:8, 8:12].roll(1, 0)  # each part good, of another image
    found = reading(strange)[:, 0].mean(0)
    assert found[1, 2] > 10 * fresh.mean()
    # To a Gaussian at every position all of this is good.
    gaussian = PositionGaussian(3, (16, 16))
    gaussian.add(kinds_of(60), 0)
    gaussian.solve()
    assert gaussian(strange)[:, 0, 4:8, 8:12].mean() < 2


def test_a_whole_map_is_what_the_principal_axes_leave():
    x = kinds_of(30)
    reading = whole_of(x)
    rows = torch.nn.functional.avg_pool2d(x, 4).flatten(1).double()
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    values, vectors = values.flip(0), vectors.flip(1)
    count = len(reading.weight)
    assert values[:count].sum() >= 0.97 * values.sum() > values[: count - 1].sum()
    noise = values[count:29].mean()
    kept = vectors[:, :count] * (values[:count] / (values[:count] + noise)) @ vectors[:, :count].T
    left = reading._left(rows.float(), (reading.mean, reading.axes, reading.weight)).flatten(1)
    torch.testing.assert_close(left.double(), centred - centred @ kept, atol=5e-3, rtol=0)  # axes in half precision


def test_how_images_are_batched_does_not_change_a_whole_map():
    x = kinds_of(30)
    torch.testing.assert_close(whole_of(x, 7)(x), whole_of(x, 30)(x), rtol=1e-3, atol=1e-3)


def test_a_whole_map_keeps_a_fair_draw_of_many_images(monkeypatch):
    monkeypatch.setattr(WholeMap, "MOST_IMAGES", 40)
    reading = WholeMap(3, (16, 16))
    for first in range(0, 200, 10):
        reading.add(kinds_of(10), first)
        assert len(reading._drawn.rows) <= 40
    assert len(set(reading._drawn.folds.tolist())) == 4
    reading.solve()
    assert reading(kinds_of(40)).mean() == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_whole_map_of_few_images_is_finite(n):
    assert torch.isfinite(whole_of(kinds_of(n))(kinds_of(5))).all()


def test_a_whole_map_comes_back_from_its_state():
    reading, again = whole_of(kinds_of(20)), WholeMap(3, (16, 16))
    again.load_state_dict(reading.state_dict())
    x = kinds_of(4)
    assert torch.equal(again(x), reading(x))


READINGS = {
    "gaussian": lambda: PositionGaussian(3, (16, 16)),
    "nearest": lambda: NearestResidual(3, most=400),
    "whole": lambda: WholeMap(3, (16, 16)),
}


@pytest.mark.parametrize("kind", READINGS)
def test_left_out_images_look_as_new_ones_do(kind):
    draw = kinds_of if kind == "whole" else (lambda n: torch.randn(n, 3, 16, 16))
    reading, x = READINGS[kind](), draw(200)
    for first in range(0, 200, 8):
        reading.add(x[first : first + 8], first)
    reading.solve()
    parts = [reading.left_out(x[first : first + 7], first) for first in range(0, 200, 7)]  # however they are batched
    left_out, new, seen = torch.cat(parts), reading(draw(200)), reading(x)
    torch.testing.assert_close(left_out, reading.left_out(x, 0), rtol=1e-3, atol=1e-3)
    assert left_out.shape == seen.shape
    # In three dimensions a quarter fewer neighbours are (4/3) ** (2/3) as far away, squared.
    assert 0.9 < left_out.median() / new.median() < (1.35 if kind == "nearest" else 1.1)
    assert seen.mean() < left_out.mean()
    # A fold is read by what the others taught: as by a reading of those alone, or with none of its own in the bank.
    own, others = x[1::4], READINGS[kind]()
    for index in set(range(200)) - set(range(1, 200, 4)):
        others.add(x[index : index + 1], index)
    others.solve()
    if kind == "nearest":
        assert reading(own).min() < 1e-6 < reading.of_fold(own, 1).min()
    else:
        assert torch.corrcoef(torch.stack([others(own).flatten(), left_out[1::4].flatten()]))[0, 1] > 0.8
    reading.forget()
    assert torch.equal(reading(x), seen)


@pytest.mark.parametrize("kind", READINGS)
@pytest.mark.parametrize("n", [1, 2])
def test_few_images_are_left_out_of_what_there_is(kind, n):
    reading, x = READINGS[kind](), kinds_of(n)
    reading.add(x, 0)
    reading.solve()
    assert torch.isfinite(reading.left_out(x, 0)).all()
    assert torch.isfinite(reading(kinds_of(3))).all()


def test_the_nearest_of_a_single_image_keeps_its_distances_as_they_are():
    reading = NearestResidual(3, most=400)
    reading.add(kinds_of(1), 0)
    reading.solve()
    assert reading.scale == 1


def test_alignment_is_the_share_of_variance_between_positions():
    place, noise = 3 * torch.randn(1, 4, 8, 8), torch.randn(50, 4, 8, 8)

    def alignment(x):
        measured = Alignment()
        measured.add(x[:20])
        measured.add(x[20:])
        return measured.solve()

    assert alignment(noise) == pytest.approx(0, abs=0.02)
    assert alignment(place + noise) == pytest.approx(0.9, abs=0.03)  # 9 of 9 + 1
    assert alignment(place.expand(50, -1, -1, -1)) == pytest.approx(1)
    assert alignment(torch.ones(50, 4, 8, 8)) == 0
