import numpy as np
import pytest
import torch
from sklearn import decomposition
from sklearn.preprocessing import StandardScaler

from makel.methods.pca import PCA, Config

CHANNELS, SIDE = 12, 8


@pytest.fixture
def features():
    """Correlated channels whose variances fall off."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(CHANNELS, CHANNELS, generator=generator) * 0.6 ** torch.arange(float(CHANNELS))
    return torch.einsum("dc,nchw->ndhw", mix, torch.randn(7, CHANNELS, SIDE, SIDE, generator=generator)) + 1


def fit(backbone, cache, **settings):
    detector = PCA(Config(size=SIDE, blocks=(1,), project=0, top=0.0, **settings), backbone)
    detector.prepare(cache)
    detector.finish(cache)
    return detector.eval()


def rows_of(x):
    return x.permute(0, 2, 3, 1).reshape(-1, CHANNELS).double().numpy()


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_the_residual_is_that_of_scikit_learns_reconstruction(shaped_backbone, as_cache, features, variance, normalise):
    cache, (good,) = as_cache(features)
    detector = fit(shaped_backbone((CHANNELS,), (1,)), cache, variance=variance, normalise=normalise)
    scale = StandardScaler(with_mean=normalise, with_std=normalise).fit(rows_of(good))
    reference = decomposition.PCA(variance, svd_solver="full").fit(scale.transform(rows_of(good)))
    assert int(detector.components) == reference.n_components_

    x = torch.randn(3, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    rows = scale.transform(rows_of(x))
    residual = rows - reference.inverse_transform(reference.transform(rows))
    expected = np.linalg.norm(residual, axis=1).reshape(3, 1, SIDE, SIDE)
    scores = detector.score((x,))
    np.testing.assert_allclose(scores.anomaly_map, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(scores.image, expected.max((1, 2, 3)), rtol=1e-3)


def test_what_good_images_can_look_like_has_no_residual(shaped_backbone, as_cache):
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(CHANNELS, 2, generator=generator)).Q

    def in_plane(n):
        return torch.einsum("ck,nkhw->nchw", plane, torch.randn(n, 2, SIDE, SIDE, generator=generator))

    detector = fit(shaped_backbone((CHANNELS,), (1,)), as_cache(in_plane(6))[0], variance=0.99, normalise=False)
    assert int(detector.components) == 2
    out_of_plane = torch.linalg.svd(plane.T).Vh[-1]
    moved = in_plane(1) + 0.5 * out_of_plane[None, :, None, None]
    assert detector.score((in_plane(2),)).anomaly_map.max() < 0.01  # what half precision leaves
    np.testing.assert_allclose(detector.score((moved,)).anomaly_map, 0.5, atol=0.01)
