import numpy as np
import pytest
import torch

from makel.methods.residual_layers import (
    FOLDS,
    Alignment,
    NearestResidual,
    PositionGaussian,
    SharedGaussian,
    separation,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_position_gaussian_is_the_mahalanobis_distance_at_its_position():
    x = torch.randn(7, 3, 2, 2) * torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
    gaussian = PositionGaussian(3, 2)
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
    gaussian = PositionGaussian(2, 2)
    gaussian.add(torch.randn(400, 2, 2, 2) * spread, 0)
    gaussian.solve()
    assert gaussian.shrinkage < 0.5
    far = gaussian(torch.ones(1, 2, 2, 2))[0, 0]
    assert far[0, 0] > far[0, 1] > far[1, 0] > far[1, 1]


def test_a_shared_gaussian_knows_no_positions():
    x = torch.randn(5, 3, 4, 2) * torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
    gaussian = SharedGaussian(3)
    gaussian.add(x[:3], 0)
    gaussian.add(x[3:], 3)
    gaussian.solve()
    rows = x.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    covariance = np.cov(rows.T, bias=True)
    covariance += 0.01 * np.diag(covariance).mean() * np.eye(3)
    centred = rows - rows.mean(0)
    expected = np.einsum("nc,cd,nd->n", centred, np.linalg.inv(covariance), centred) / 3
    np.testing.assert_allclose(gaussian(x).flatten(), expected, rtol=5e-3)
    np.testing.assert_allclose(gaussian(x.flip(2)), gaussian(x).flip(2), rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_how_images_are_batched_does_not_change_the_gaussian(batch):
    x = torch.randn(22, 3, 2, 2) * torch.tensor([1.0, 2.0, 3.0])[None, :, None, None]
    whole, parts = PositionGaussian(3, 2), PositionGaussian(3, 2)
    whole.add(x, 0)
    for first in range(0, 22, batch):
        parts.add(x[first : first + batch], first)
    whole.solve()
    parts.solve()
    assert parts.shrinkage == whole.shrinkage
    torch.testing.assert_close(parts(x), whole(x), rtol=2e-3, atol=2e-3)


def test_a_gaussian_without_a_fold_is_one_of_the_others():
    x = torch.randn(22, 3, 2, 2)
    without, others = PositionGaussian(3, 2), PositionGaussian(3, 2)
    without.add(x, 0)
    without.solve(without=1)
    others.add(x[torch.arange(22) % FOLDS != 1], 0)
    others.solve()
    torch.testing.assert_close(without.mean, others.mean)
    without.solve()
    torch.testing.assert_close(without.mean, x.mean(0))


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


def test_good_residuals_left_out_are_about_one_away():
    x = torch.randn(40, 4, 4, 4)
    reading = NearestResidual(4, most=256)
    reading.add(x, 0)
    reading.solve(without=2)
    own, others = reading(x[2::4]), reading(x[1::4])
    assert own.mean() == pytest.approx(1, abs=0.3)
    assert others.mean() < own.mean()  # some of them are in the bank


def test_a_bank_comes_back_from_its_state():
    reading, again = NearestResidual(3, most=10), NearestResidual(3, most=10)
    reading.add(torch.randn(4, 3, 4, 4), 0)
    reading.solve()
    again.load_state_dict(reading.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(again(x), reading(x))


def test_separation_counts_spreads_up_to_a_limit():
    good = torch.tensor([-1.0, 0.0, 1.0])  # a spread of one around zero
    assert separation(good, torch.tensor([2.0, 3.0])) == pytest.approx(2.5)
    assert separation(good, torch.tensor([3.0, 500.0])) == pytest.approx(3.5)
    assert separation(good, good) == pytest.approx(0)


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
