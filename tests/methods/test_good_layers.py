import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from makel.methods.good_layers import NearestGood, WholeImages


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rows_of(x):
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def learned(x, most=10_000):
    nearest = NearestGood(x.shape[1], most)
    nearest.learn(nearest.draw(x, len(x), torch.Generator().manual_seed(0)))
    return nearest


def scaled(nearest, rows):
    return (rows - nearest.centre) / nearest.scale


@pytest.mark.parametrize("most", [60, 600])  # one chunk of the bank, and a second that is not full
def test_distances_are_those_of_scikit_learn(most):
    nearest = learned(torch.randn(10, 6, 8, 8) * torch.tensor([1.0, 2.0, 3.0, 0.1, 0.2, 0.3])[:, None, None], most)
    assert nearest.bank.shape == (most, 6)
    x = 2 * torch.randn(3, 6, 5, 7)
    found = nearest(x)
    assert found.shape == (3, 1, 5, 7)
    neighbours = NearestNeighbors(n_neighbors=1).fit(nearest.bank.double().numpy())
    expected, _ = neighbours.kneighbors(scaled(nearest, rows_of(x)).double().numpy())
    np.testing.assert_allclose(found.flatten(), expected.ravel(), rtol=1e-3)


def test_the_bank_is_of_good_vectors():
    x = torch.randn(10, 6, 8, 8)
    nearest = learned(x, 50)
    there = scaled(nearest, rows_of(x).half().float()).half()
    assert all((there == member).all(1).any() for member in nearest.bank)
    assert len(torch.unique(nearest.bank, dim=0)) == 50


def test_what_is_remembered_is_at_the_least_distance_wherever_it_stands():
    x = torch.randn(4, 6, 4, 4)
    nearest = learned(x)
    assert len(nearest.bank) == 64  # all there are
    torch.testing.assert_close(nearest(x), torch.full((4, 1, 4, 4), 0.01), rtol=0, atol=5e-3)  # in half precision
    moved = 3 * torch.randn(4, 6, 4, 4)
    assert torch.equal(nearest(moved.roll(1, 2)), nearest(moved).roll(1, 2))


def test_features_and_residuals_count_alike():
    spread = torch.tensor([100.0, 200.0, 300.0, 1.0, 2.0, 3.0])
    x = torch.randn(20, 6, 8, 8) * spread[:, None, None]
    nearest = learned(x)
    squares = scaled(nearest, rows_of(x)).square().mean(0)
    torch.testing.assert_close(squares[:3].sum(), torch.tensor(1.0), rtol=0.01, atol=0)
    torch.testing.assert_close(squares[3:].sum(), torch.tensor(1.0), rtol=0.01, atol=0)
    # Within a half, channels keep their proportions.
    torch.testing.assert_close(squares[2] / squares[0], torch.tensor(9.0), rtol=0.2, atol=0)


@pytest.mark.parametrize("constant", [slice(0, 6), slice(0, 3), slice(3, 6)])
def test_what_hardly_differs_is_not_told_apart_by_its_rounding(constant):
    x = torch.randn(6, 6, 4, 4)
    x[:, constant] = 7.0
    nearest = learned(x)
    rounded = x.clone()
    rounded[:, constant] += 1e-5 * torch.randn_like(rounded[:, constant])
    assert nearest(rounded).max() < 0.03
    changed = x.clone()
    changed[:, constant] += 0.1
    assert nearest(changed).min() > 0.5
    assert nearest(changed).isfinite().all()


def test_vectors_of_nothing_but_zeros_are_finite():
    nearest = learned(torch.zeros(2, 4, 4, 4))
    assert nearest(torch.zeros(1, 4, 2, 2)).flatten().tolist() == pytest.approx([0.01] * 4)
    assert nearest(torch.ones(1, 4, 2, 2)).isfinite().all()


def test_as_many_vectors_are_drawn_of_every_image(monkeypatch):
    monkeypatch.setattr(NearestGood, "CANDIDATES", 60)
    nearest = NearestGood(2, 10)
    x = torch.stack([torch.arange(7.0)[:, None].expand(7, 36), torch.arange(36.0).expand(7, 36)], 1).reshape(7, 2, 6, 6)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([nearest.draw(part, 7, generator) for part in x.split(3)]).int()
    assert drawn[:, 0].bincount().tolist() == [9] * 7  # a seventh of 60, and a part of one
    assert len(torch.unique(drawn, dim=0)) == 63  # no position twice
    assert drawn[:, 1].unique().numel() > 25  # nor the same of every image
    assert len(nearest.draw(x, 1, generator)) == 7 * 36  # all there are, where that is less


def test_a_bank_comes_back_from_its_state():
    nearest, again = learned(torch.randn(4, 6, 4, 4), 10), NearestGood(6, 10)
    again.load_state_dict(nearest.state_dict())
    x = torch.randn(2, 6, 4, 4)
    assert torch.equal(again(x), nearest(x))


def kinds_of(n, shape=(16, 16), noise=0.4):
    """(n, 3, *shape) of a product of two kinds that differ in every position at once, in any mixture."""
    pattern = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(5))
    pattern = F.interpolate(F.adaptive_avg_pool2d(pattern, 4), shape, mode="nearest") * 4
    x = torch.einsum("nk,kchw->nchw", torch.randn(n, 2), pattern)
    return x + noise * torch.randn(x.shape)


def whole_of(x):
    whole = WholeImages(x.shape[1], x.shape[2:])
    whole.learn(torch.cat([whole.shrink(part) for part in x.split(7)]))
    return whole


def test_a_whole_is_what_scikit_learns_principal_axes_leave():
    good, x = kinds_of(60, noise=1.5), kinds_of(5, noise=1.5)
    whole = whole_of(good)

    def cells_of(x):
        """Every channel by its own spread over images and cells."""
        return (F.avg_pool2d(x, 2).half().double() / std).flatten(1).numpy()

    std = F.avg_pool2d(good, 2).half().double().std((0, 2, 3), correction=0, keepdim=True)
    rows = cells_of(good)
    reference = PCA(0.97, svd_solver="full").fit(rows)
    assert len(whole.axes) == reference.n_components_
    assert 2 < len(whole.axes) < 59
    fresh = cells_of(x)
    left = fresh - reference.inverse_transform(reference.transform(fresh))
    expected = np.sqrt(np.mean(left.reshape(5, 3, 8, 8) ** 2, axis=1, keepdims=True))
    found = whole(x)
    np.testing.assert_allclose(found, expected, rtol=0.01, atol=2e-3)  # axes are kept in half precision
    assert torch.equal(found, whole.distance(F.avg_pool2d(x, 2).flatten(1)))


def test_what_good_images_have_shown_is_at_no_distance():
    whole = whole_of(kinds_of(40, noise=0))
    assert len(whole.axes) <= 2
    fresh = kinds_of(20, noise=0)
    assert whole(fresh).max() < 0.02
    assert whole(fresh).min() >= 1e-3 * 0.999  # its logarithm is taken
    strange = fresh.clone()
    strange[:, :, 4:8, 8:12] = fresh[:, :, 4:8, 8:12].roll(1, 0)  # each part good, of another image
    assert whole(strange)[:, 0, 2:4, 4:6].mean() > 10 * whole(fresh).max()


@pytest.mark.parametrize(
    ("shape", "cells", "pixel", "at"),
    [
        ((8, 20), (8, 8), (2, 16), (2, 6)),
        ((5, 48), (5, 8), (2, 12), (2, 2)),
        ((3, 3), (3, 3), (2, 2), (2, 2)),
        ((11, 30), (8, 8), (1, 16), (1, 4)),  # 5 of its 8 parts lie in row 1, and 3 in row 0
    ],
)
def test_wholes_take_levels_that_are_no_squares(shape, cells, pixel, at):
    whole = whole_of(kinds_of(24, shape))
    assert whole.cells == cells
    strange = kinds_of(1, shape, noise=0)
    strange[:, :, pixel[0], pixel[1]] += 50
    found = whole(strange)[0, 0]
    assert found.shape == cells
    assert divmod(int(found.argmax()), cells[1]) == at
    if shape == (11, 30):
        assert found[0, 4] / found[1, 4] == pytest.approx(3 / 5, abs=0.15)


def test_axes_are_no_more_than_explain_enough_nor_than_the_most(monkeypatch):
    x = torch.randn(30, 3, 16, 16)
    assert 20 < len(whole_of(x).axes) <= 29
    monkeypatch.setattr(WholeImages, "MOST_AXES", 4)
    assert len(whole_of(x).axes) == 4


def test_axes_are_found_from_images_spread_over_all(monkeypatch):
    monkeypatch.setattr(WholeImages, "MOST_IMAGES", 10)
    x = kinds_of(25)
    few, same = whole_of(x), whole_of(x[::3])  # nine; every second would be thirteen
    assert torch.equal(few.mean, same.mean)
    assert torch.equal(few.axes, same.axes)
    assert len(few.axes) <= 8


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("same", [False, True])
def test_wholes_of_few_images_are_finite(n, same):
    x = kinds_of(1).expand(n, -1, -1, -1) if same else kinds_of(n)
    whole = whole_of(x)
    assert whole(kinds_of(5)).isfinite().all()
    assert whole(x[:1]).isfinite().all()
    if same:
        assert whole(x).max() < 0.01


def test_a_whole_comes_back_from_its_state():
    whole, again = whole_of(kinds_of(20)), WholeImages(3, (16, 16))
    again.load_state_dict(whole.state_dict())
    x = kinds_of(4)
    assert torch.equal(again(x), whole(x))
