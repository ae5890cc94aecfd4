import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import nn

from makel.methods.layers import Projection
from makel.methods.nearest import Config, Nearest, choose_coreset


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def brute_force(points, count):
    """Greedy k-centre with nothing clever: every distance, every time."""
    points = points.double().numpy()
    chosen = [int(np.argmax(np.linalg.norm(points - points.mean(0), axis=1)))]
    while len(chosen) < count:
        to_chosen = np.linalg.norm(points[:, None] - points[None, chosen], axis=2).min(1)
        to_chosen[chosen] = -1
        chosen.append(int(np.argmax(to_chosen)))
    return chosen


def test_the_coreset_is_the_brute_force_one():
    points = torch.randn(120, 5)
    assert choose_coreset(points, 40, project=0).tolist() == brute_force(points, 40)


def test_the_coreset_of_wide_vectors_is_chosen_after_a_projection():
    points = torch.randn(60, 150)
    flat = Projection(150, 128)(points[:, :, None, None]).flatten(1)
    found = choose_coreset(points, 20)
    assert found.tolist() == brute_force(flat, 20)
    assert found.tolist() != brute_force(points, 20)


def test_the_coreset_by_hand():
    points = torch.tensor([[0.0], [1.0], [4.0], [10.0], [10.5]])
    # Mean 5.1: 10.5 and then 0 are farthest; 4 is 4 from 0; then 1 is 1 from 0, and 10 is 0.5 from 10.5.
    assert choose_coreset(points, 5, project=0).tolist() == [4, 0, 2, 1, 3]


def test_equal_points_are_chosen_once_each():
    assert sorted(choose_coreset(torch.ones(6, 3), 6, project=0).tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.fixture
def fitted(shaped_backbone, as_cache):
    """On features of the input's own side, so that the map is not resized."""
    config = Config(size=8, blocks=(1,), project=0, bank=70, candidates=10_000, chunk=32, top=0.0)
    detector = Nearest(config, shaped_backbone((5,), (1,)))
    cache, (seen,) = as_cache(torch.randn(20, 5, 8, 8))
    detector.finish(cache)
    return detector.eval(), seen


def test_the_bank_is_part_of_the_good_images_vectors(fitted):
    detector, seen = fitted
    rows = seen.permute(0, 2, 3, 1).reshape(-1, 5)
    assert detector.bank.shape == (70, 5)  # a tenth of 20 * 64 would be 128
    assert all((rows == member).all(1).any() for member in detector.bank)
    assert len(torch.unique(detector.bank, dim=0)) == 70


def test_distances_are_those_of_scikit_learn(fitted):
    detector, _ = fitted
    features = torch.randn(3, 5, 8, 8)
    scores = detector.score((features,))
    rows = features.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    distances, _ = NearestNeighbors(n_neighbors=1).fit(detector.bank.numpy()).kneighbors(rows)
    np.testing.assert_allclose(scores.anomaly_map.flatten(), distances.ravel(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores.image, distances.reshape(3, 64).max(1), rtol=1e-4)


def test_what_is_in_the_bank_is_at_no_distance(fitted):
    detector, _ = fitted
    features = detector.bank[:64].T.reshape(1, 5, 8, 8)
    assert detector.score((features,)).anomaly_map.max() < 2e-3


@pytest.mark.parametrize(("share", "bank", "expected"), [(0.1, 8_000, 128), (0.1, 50, 50), (0.5, 8_000, 200)])
def test_the_bank_is_bounded_by_share_bank_and_candidates(shaped_backbone, as_cache, share, bank, expected):
    config = Config(size=8, blocks=(1,), share=share, bank=bank, candidates=200)
    detector = Nearest(config, shaped_backbone((5,), (1,)))
    cache, _ = as_cache(torch.randn(20, 5, 8, 8))
    detector.prepare(cache)
    detector.finish(cache)
    assert len(detector.bank) == expected


def test_the_neighbourhood_mean_counts_zeros_beyond_the_border(shaped_backbone):
    detector = Nearest(Config(size=4, blocks=(1,)), shaped_backbone((3,), (1,)))
    detector.backbone.network = _AsOneLevel()
    image = torch.rand(1, 3, 4, 4)
    (level,) = detector.extract(image)
    torch.testing.assert_close(level[:, :, 0, 0], image[:, :, :2, :2].sum((2, 3)) / 9)
    torch.testing.assert_close(level[:, :, 0, 2], image[:, :, :2, 1:].sum((2, 3)) / 9)
    torch.testing.assert_close(level[:, :, 1, 2], image[:, :, :3, 1:].mean((2, 3)))


def test_channels_keep_their_scale_in_fast(shaped_backbone, as_cache):
    detector = Nearest(Config.preset("fast", size=8, blocks=(1,)), shaped_backbone((2,), (1,)))
    cache, (good,) = as_cache(torch.randn(4, 2, 8, 8) * torch.tensor([1.0, 10.0])[:, None, None])
    detector.prepare(cache)
    detector.finish(cache)
    rows = good.permute(0, 2, 3, 1).reshape(-1, 2)
    assert all((rows == member).all(1).any() for member in detector.bank)


class _AsOneLevel(nn.Module):
    def forward(self, image):
        return [image]
