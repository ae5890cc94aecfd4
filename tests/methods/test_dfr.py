import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from makel.errors import UsageError
from makel.methods.dfr import DFR, Autoencoder, Config, RegionalAverage
from makel.training.backbones import dense_architecture
from makel.training.facts import facts_of

TINY_PAPER = {"size": 32, "epochs": 2}


@pytest.fixture
def paper(shaped_backbone):
    torch.manual_seed(0)
    return DFR(Config.preset("paper", **TINY_PAPER), shaped_backbone((3, 4), (1, 2)))


def features_of_rank(rank, n, *, channels=7, side=8, scale=1.0):
    """(n, channels, side, side) whose vectors vary alike in so many directions, and next to nothing in the others."""
    generator = np.random.default_rng(rank)
    axes = np.linalg.qr(generator.normal(size=(channels, channels)))[0][:, :rank]
    values = generator.normal(size=(n, side, side, rank)) @ axes.T * scale
    return torch.from_numpy(values.transpose(0, 3, 1, 2).astype(np.float32))


def test_paper_is_the_papers_setting():
    config = Config.preset("paper")
    assert (config.backbone, config.blocks, config.size, config.region) == ("vgg19_dfr", (1, 2, 3, 4), (256, 256), 4)
    assert (config.epochs, config.batch_size, config.learning_rate, config.variance) == (700, 4, 1e-4, 0.9)
    assert (config.align_corners, config.normalise, config.top) == (True, False, 0.0)


@pytest.mark.parametrize(("blocks", "channels", "layers"), [((1, 2, 3, 4), 3456, 12), ((1, 2, 3, 4, 5), 5504, 16)])
def test_vgg19_gives_as_many_channels_as_in_the_paper(blocks, channels, layers):
    network, found, strides = dense_architecture(facts_of("vgg19_dfr"), blocks)
    assert sum(found) == channels
    assert strides == (1, 2, 4, 8, 16)[: len(blocks)]
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == layers
    assert all(layer.padding_mode == "reflect" for layer in convolutions)


def test_the_autoencoder_narrows_as_the_official_code_does():
    with torch.device("meta"):
        layers = Autoencoder(3456, 398, batch_norm=True)
    widths = [(layer.in_channels, layer.out_channels) for layer in layers if isinstance(layer, nn.Conv2d)]
    assert widths == [(3456, 2126), (2126, 796), (796, 398), (398, 796), (796, 2126), (2126, 3456)]
    assert "".join(type(layer).__name__[0] for layer in layers) == "CBRCBRCCBRCBRC"  # latent and output are linear
    with torch.device("meta"):
        plain = Autoencoder(3456, 398, batch_norm=False)
    assert "".join(type(layer).__name__[0] for layer in plain) == "CRCRCCRCRC"


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("side", "region"), [(32, 4), (16, 4), (4, 4), (5, 8), (1, 2)])
def test_the_regional_average_is_a_resize_and_a_mean(side, region, align_corners):
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = F.avg_pool2d(F.interpolate(x, (32, 32), mode="bilinear", align_corners=align_corners), region)
    torch.testing.assert_close(RegionalAverage((side, side), (32, 32), region, align_corners)(x), expected)


def test_the_regional_average_keeps_rows_and_columns_apart():
    x = torch.rand(2, 3, 4, 12, generator=torch.Generator().manual_seed(0))
    expected = F.avg_pool2d(F.interpolate(x, (16, 48), mode="bilinear", align_corners=False), 8)
    torch.testing.assert_close(RegionalAverage((4, 12), (16, 48), 8, False)(x), expected)


def test_levels_are_aligned_one_by_one_and_concatenated(paper):
    fine, coarse = torch.rand(2, 3, 32, 32), torch.rand(2, 4, 16, 16)
    paper.backbone.network = _Fixed(fine, coarse)
    (features,) = paper.extract(torch.rand(2, 3, 32, 32))
    resized = F.interpolate(coarse, (32, 32), mode="bilinear", align_corners=True)
    torch.testing.assert_close(features, F.avg_pool2d(torch.cat([fine, resized], 1), 4))


class _Fixed(nn.Module):
    def __init__(self, *features):
        super().__init__()
        self.features = features

    def forward(self, image):
        return self.features


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.99])
def test_the_latent_has_as_many_channels_as_numpy_counts_components(shaped_backbone, as_cache, variance):
    generator = torch.Generator().manual_seed(0)
    decay = 0.7 ** torch.arange(12.0)
    cache, (seen,) = as_cache(torch.randn(6, 12, 8, 8, generator=generator) * decay[None, :, None, None])
    detector = DFR(Config.preset("paper", **TINY_PAPER, variance=variance), shaped_backbone((12,), (1,)))
    detector.prepare(cache)
    rows = seen.permute(0, 2, 3, 1).reshape(-1, 12).double().numpy()
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    shares = np.cumsum(singular**2) / np.sum(singular**2)
    assert int(detector.latent) == np.argmax(shares > variance) + 1
    assert detector.autoencoder[6].out_channels == int(detector.latent)


def test_the_latent_is_of_the_first_ten_images(paper, as_cache):
    few, many = features_of_rank(2, 10), features_of_rank(7, 6, scale=100.0)
    paper.prepare(as_cache(torch.cat([few, many]))[0])
    assert int(paper.latent) == 2
    paper.prepare(as_cache(torch.cat([few[:9], many]))[0])
    assert int(paper.latent) > 2


def test_the_loss_is_the_mean_square_over_everything(paper, steps):
    features = torch.rand(2, 7, 8, 8)
    paper.build(2)
    _reconstruct_constant(paper, 0.25)
    loss, _ = steps(paper, features)["autoencoder"]
    assert loss == pytest.approx(np.mean((features.double().numpy() - 0.25) ** 2), rel=1e-5)


def test_the_map_is_the_mean_square_over_channels_and_the_score_its_maximum(paper):
    features = torch.rand(2, 7, 8, 8)
    paper.build(2)
    _reconstruct_constant(paper.eval(), 0.25)
    with torch.no_grad():
        scores = paper.score((features,))
    error = torch.from_numpy(np.mean((features.numpy() - 0.25) ** 2, axis=1, keepdims=True))
    expected = F.interpolate(error, (32, 32), mode="bilinear", align_corners=True)
    torch.testing.assert_close(scores.anomaly_map, expected)
    assert torch.equal(scores.image, scores.anomaly_map.amax((1, 2, 3)))
    # Aligned corners: the grid's corners are the map's.
    torch.testing.assert_close(scores.anomaly_map[..., ::31, ::31], error[..., ::7, ::7])


def _reconstruct_constant(detector, value):
    detector.autoencoder[-1].weight.data.zero_()
    detector.autoencoder[-1].bias.data.fill_(value)


def test_a_size_that_cannot_be_cut_into_regions_is_refused(shaped_backbone):
    with pytest.raises(UsageError, match="size 250 x 250 px cannot be cut into regions of 4 px"):
        DFR(Config.preset("paper", size=250), shaped_backbone((3,), (1,)))
