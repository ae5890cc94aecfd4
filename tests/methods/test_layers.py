import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from makel.methods.layers import (
    ChannelNorm,
    Moments,
    Projection,
    SkipAutoencoder,
    finish_scores,
    neighbourhoods,
    principal_axes,
    to_side,
    top_mean,
)
from makel.training.inspected import Inspected


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_to_side_averages_where_it_shrinks_and_is_bilinear_where_it_grows():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert to_side(x, (4, 4)) is x
    assert to_side(x, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    row = torch.tensor([[0.0, 4.0], [0.0, 4.0]]).view(1, 1, 2, 2)
    assert to_side(row, (4, 4))[0, 0, 0].tolist() == [0.0, 1.0, 3.0, 4.0]


def test_channel_norm_is_a_standard_scaler_over_images_and_positions():
    x = torch.randn(5, 3, 4, 7) * torch.tensor([1.0, 10.0, 0.0])[None, :, None, None] + 2
    norm = ChannelNorm(3)
    for part in x.split(2):
        norm.add(part)
    norm.solve()
    rows = x.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    expected = StandardScaler().fit_transform(rows.astype(np.float64))
    np.testing.assert_allclose(norm(x).permute(0, 2, 3, 1).reshape(-1, 3), expected, atol=1e-5)
    assert norm.std.flatten()[2] == 1  # a channel that never changes is left at its scale


def test_projection_is_orthonormal_and_always_the_same():
    project, x = Projection(7, 3), torch.randn(2, 7, 2, 5)
    torch.testing.assert_close(project.matrix @ project.matrix.T, torch.eye(3))
    torch.testing.assert_close(project(x), torch.einsum("pc,nchw->nphw", project.matrix, x))
    torch.manual_seed(5)
    assert torch.equal(Projection(7, 3).matrix, project.matrix)


@pytest.mark.parametrize("most", [0, 7, 8])
def test_projection_of_few_channels_is_the_identity(most):
    x = torch.randn(2, 7, 2, 5)
    assert Projection(7, most)(x) is x


def test_moments_and_principal_axes_are_numpys():
    x = torch.randn(4, 5, 3, 2) * torch.tensor([5.0, 3.0, 1.0, 0.5, 0.1])[None, :, None, None]
    moments = Moments()
    for part in x.split(3):
        moments.add(part)
    mean, covariance = moments.solve()
    rows = x.double().permute(0, 2, 3, 1).reshape(-1, 5).numpy()
    np.testing.assert_allclose(mean, rows.mean(0))
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True))
    assert principal_axes(torch.diag(torch.tensor([1.0, 6.0, 3.0])), 0.5).abs().tolist() == [[0.0], [1.0], [0.0]]
    # 6 of 10 is not more than 0.6 of it
    assert principal_axes(torch.diag(torch.tensor([1.0, 6.0, 3.0])), 0.6).shape == (3, 2)


def test_to_side_keeps_rows_and_columns_apart():
    x = torch.arange(2 * 8.0).reshape(1, 1, 2, 8)
    assert to_side(x, (1, 2))[0, 0].tolist() == [[5.5, 9.5]]
    assert to_side(x, (2, 1))[0, 0].tolist() == [[3.5], [11.5]]
    assert to_side(x, (4, 16)).shape == (1, 1, 4, 16)
    # Where a cell ends within a position, both neighbours have their share of it.
    assert to_side(torch.tensor([[[[3.0, 6.0, 9.0]]]]), (1, 2))[0, 0].tolist() == [[4.0, 8.0]]


@pytest.mark.parametrize("shape", [(8, 8), (12, 9), (5, 7), (11, 30), (16, 4)])
def test_an_autoencoder_takes_sides_that_cannot_be_halved(shape):
    network = SkipAutoencoder(3, (4, 4), (2,)).eval()
    x = torch.rand(2, 3, *shape)
    assert network(x).shape == x.shape


def test_a_missing_last_row_or_column_is_the_one_before_again():
    network = SkipAutoencoder(2, (4,), ()).eval()
    out = network(torch.rand(1, 2, 5, 7))
    assert torch.equal(out[:, :, 4], out[:, :, 3])
    assert torch.equal(out[..., 6], out[..., 5])
    assert not torch.equal(out[:, :, 3], out[:, :, 2])


def test_neighbourhoods_are_means_with_zeros_beyond_the_border():
    fine, coarse = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
    joined = neighbourhoods([fine, coarse], (4, 4))
    assert joined.shape == (2, 8, 4, 4)
    torch.testing.assert_close(joined[:, 3:, 2, 1], coarse[:, :, 1:4, 0:3].mean((2, 3)))
    torch.testing.assert_close(joined[:, 3:, 0, 0], coarse[:, :, :2, :2].sum((2, 3)) / 9)
    means = [fine[:, :, row : row + 3, column : column + 3].mean((2, 3)) for row in (1, 2) for column in (3, 4)]
    torch.testing.assert_close(joined[:, :3, 1, 2], torch.stack(means).mean(0))


def test_top_mean_is_the_mean_of_the_highest():
    maps = torch.rand(3, 1, 5, 8)
    expected = np.sort(maps.flatten(1).numpy(), axis=1)
    np.testing.assert_allclose(top_mean(maps, 0.1), expected[:, -4:].mean(1), rtol=1e-6)
    assert torch.equal(top_mean(maps, 0.0), maps.amax((1, 2, 3)))


def test_the_image_score_is_of_the_grid_or_the_maximum_of_the_full_map():
    grid = torch.rand(2, 1, 4, 4)
    of_top, of_all = finish_scores(grid, (16, 16), 0.25), finish_scores(grid, (16, 16), 0.0)
    assert of_top.anomaly_map.shape == (2, 1, 16, 16)
    assert torch.equal(of_top.image, top_mean(grid, 0.25))
    assert torch.equal(of_all.image, of_all.anomaly_map.amax((1, 2, 3)))


def test_the_skip_autoencoder_of_the_paper_has_49_million_weights():
    with torch.device("meta"):
        network = SkipAutoencoder(1792, (256, 512, 512, 512), (-1, -1, -1))
        out = network(torch.empty(1, 1792, 64, 64))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == pytest.approx(49.3e6, rel=2e-3)
    assert out.shape == (1, 1792, 64, 64)
    assert network.skipped == [256, 512, 512, 0]  # at sides 32, 16 and 8; none at 64, none at 4


def test_what_the_paper_network_carries_past_its_input_is_a_seventeenth_of_it():
    with torch.device("meta"):
        network = SkipAutoencoder(1792, (256, 512, 512, 512), (-1, -1, -1))
        x, carried = torch.empty(1, 1792, 64, 64), 0
        for down in network.down:
            x = down(x)
            carried += x.numel()
    assert carried / (1792 * 64 * 64) == pytest.approx(0.059, abs=5e-4)


def test_a_skip_of_zero_channels_carries_nothing():
    x = torch.randn(1, 5, 8, 8)
    with_skip, without = (SkipAutoencoder(5, (6, 8), (skip,)).eval() for skip in (-1, 0))
    for network in (with_skip, without):
        network.up[1].weight.data.zero_()  # nothing comes up from the innermost map
        network.up[1].bias.data.zero_()
    assert torch.equal(without(x), without(torch.randn(1, 5, 8, 8)))
    assert not torch.equal(with_skip(x), with_skip(torch.randn(1, 5, 8, 8)))


def test_the_image_score_is_taken_from_what_is_inspected():
    scored = np.zeros((8, 8), bool)
    scored[:4, :5] = True  # of a 4 x 4 map: two rows of two positions, and the halves of two more
    inspected = Inspected(np.ones((8, 8), bool), scored)
    assert inspected.positions((4, 4)).tolist() == [0, 1, 2, 4, 5, 6]
    anomaly_map = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert finish_scores(anomaly_map, (8, 8), 0.5, inspected).image.item() == 5.0  # of six, the three highest: 6, 5, 4
    assert finish_scores(anomaly_map, (8, 8), 0.5).image.item() == 11.5
