"""Parts that methods share: the skip autoencoder's network, and the Gaussian that learns how residuals usually look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makel.training.inspected import Inspected
from makel.types import Scores

Levels = Sequence[Tensor]
"""One (N, C, H, W) tensor a level, finest first; each level has half the side of the one before."""

LEAST = 1e-6
"""A distance below this is taken for this: the means over levels divide by distances."""


def standardise(image: Tensor, mean: float = 0.5, std: float = 0.25, floor: float = 0.02) -> Tensor:
    """Every image brought to the same brightness and contrast, over all its pixels and channels together.

    Args:
        image: (N, 3, H, W) in [0, 1].
        mean: Brightness after.
        std: Contrast (standard deviation) after.
        floor: Least standard deviation divided by, so that a blank image stays finite.
    """
    centre = image.flatten(1).mean(1)[:, None, None, None]
    centred = image - centre
    # x * x, since ONNX Runtime takes ten times as long for the Pow that square() becomes.
    spread = (centred * centred).flatten(1).mean(1).sqrt().clamp_min(floor)[:, None, None, None]
    return centred * (std / spread) + mean


def to_side(x: Tensor, side: int) -> Tensor:
    """(N, C, h, w) resized to (N, C, side, side): averaged where it shrinks, bilinear where it grows."""
    if x.shape[-1] == side:
        return x
    if x.shape[-1] % side == 0:
        return F.avg_pool2d(x, x.shape[-1] // side)
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)


class SkipAutoencoder(nn.Module):
    """U-Net autoencoder over a feature pyramid, after the generator of Skip-GANomaly (a pix2pix U-Net).

    Encoder stage k halves the side (4x4 convolution, stride 2; LeakyReLU 0.2 before it and BatchNorm after it in all
    but the first). The finest level enters at the top, every coarser one through a 1x1 convolution, added to the stage
    output of its own side. The decoder mirrors it (ReLU, 4x4 transposed convolution, BatchNorm) and concatenates each
    stage output again on its way up: the skip connections. There is none at the finest level's own side, where it
    would be an identity. Outputs are linear, since features have no bound.

    With one level and uncompressed skips this is the network proposed for the paper in docs/methods.

    Args:
        channels: Channels of each level.
        halvings: How often the finest level's side is halved to make each other level's: (1, 2) for three levels of
            sides 32, 16 and 8.
        widths: Channels of each encoder stage; at least as many stages as the last of `halvings`.
        skips: Channels each skip is compressed to by a 1x1 convolution, one for every stage but the deepest, from fine
            to deep; 0 for no skip, -1 for an uncompressed one.
    """

    def __init__(
        self, channels: Sequence[int], halvings: Sequence[int], widths: Sequence[int], skips: Sequence[int]
    ) -> None:
        super().__init__()
        self.level_at = {halving - 1: level for level, halving in enumerate(halvings, start=1)}
        self.skipped = [width if skip < 0 else skip for width, skip in zip(widths, skips, strict=False)] + [0]
        self.down = nn.ModuleList(
            nn.Conv2d(channels[0] if k == 0 else widths[k - 1], width, 4, 2, 1) for k, width in enumerate(widths)
        )
        self.down_norm = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.lateral = nn.ModuleDict(
            {str(k): nn.Conv2d(channels[level], widths[k], 1) for k, level in self.level_at.items()}
        )
        self.skip = nn.ModuleList(
            nn.Conv2d(width, skip, 1) if skip > 0 else nn.Identity() for width, skip in zip(widths, skips, strict=False)
        )
        # Decoder stage k takes what stands at the side of encoder stage k, skip included, to the side above it.
        inner = [width + skipped for width, skipped in zip(widths, self.skipped, strict=True)]
        outer = [channels[0], *widths[:-1]]
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in zip(inner, outer, strict=True))
        self.up_norm = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])
        self.head = nn.ModuleDict(
            {str(k): nn.Conv2d(inner[k], channels[level], 1) for k, level in self.level_at.items()}
        )

    def forward(self, levels: Levels) -> list[Tensor]:
        """Reconstructions, one a level, of the same shapes."""
        encoded: list[Tensor] = []
        x = levels[0]
        for k, down in enumerate(self.down):
            x = down(x) if k == 0 else self.down_norm[k - 1](down(F.leaky_relu(x, 0.2)))
            if k in self.level_at:
                x = x + self.lateral[str(k)](levels[self.level_at[k]])
            encoded.append(x)
        outputs = list(levels)
        for k in reversed(range(len(self.up))):
            if k < len(self.up_norm):
                x = self.up_norm[k](x)
            if self.skipped[k]:
                x = torch.cat([x, self.skip[k](encoded[k])], 1)
            x = F.relu(x)
            if k in self.level_at:
                outputs[self.level_at[k]] = self.head[str(k)](x)
            x = self.up[k](x)
        outputs[0] = x
        return outputs


class Projection(nn.Module):
    """A fixed random orthonormal map from C to fewer channels; the identity where C is not more.

    Args:
        channels: C.
        most: Channels wanted at most; 0 for no limit.
    """

    matrix: Tensor

    def __init__(self, channels: int, most: int) -> None:
        super().__init__()
        self.channels = min(channels, most) if most else channels
        self.active = self.channels < channels
        # One seed for all models: the projection is part of the method, not of the fit.
        noise = torch.randn(channels, self.channels, generator=torch.Generator().manual_seed(0))
        self.register_buffer("matrix", torch.linalg.qr(noise).Q.T.contiguous() if self.active else torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, channels, H, W)."""
        return F.conv2d(x, self.matrix[:, :, None, None]) if self.active else x


class ChannelNorm(nn.Module):
    """Zero mean and unit variance for every channel over all positions of good images: `add` them, then `solve`."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        self._sums = torch.zeros(3, channels, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Add (N, C, H, W) features of good images."""
        x = x.detach().double().cpu() if x.device.type == "mps" else x.detach().double()  # MPS has no float64
        ones = torch.full((x.shape[1],), x[:, 0].numel(), dtype=torch.float64)
        self._sums += torch.stack([ones, x.sum((0, 2, 3)).cpu(), x.square().sum((0, 2, 3)).cpu()])

    def solve(self) -> None:
        """Set the buffers."""
        count, total, square = self._sums
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0).sqrt()
        self.mean.copy_(mean.view(1, -1, 1, 1))
        # A channel that never changes says nothing; dividing by next to nothing would make it say everything.
        self.std.copy_(torch.where(std > 1e-6, std, 1.0).view(1, -1, 1, 1))
        self._sums.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Normalised features, same shape."""
        return (x - self.mean) / self.std


class PositionGaussian(nn.Module):
    """A Gaussian at every position of a feature level, learned from good images; its distance is an anomaly map.

    The covariance at a position is shrunk towards the one pooled over all positions,
    (1 - a) S_p + a S, plus a ridge. The weight a is the one under which good images left out of S_p and S are likeliest
    (folds of the fitted images), so that few images lean on the pooled one and many on their own.

    The sums that all of it needs are taken in one pass: `add` batches, then `solve`.

    Args:
        channels, side: The level's shape.

    Attributes:
        mean: (C, H, W) buffer.
        whitener: (H*W, C, C) half-precision buffer, the inverse of the covariance's Cholesky factor.
        shrinkage: () buffer, the weight chosen.
    """

    FOLDS = 4
    SHRINKAGES = (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
    RIDGE = 0.01

    mean: Tensor
    whitener: Tensor
    shrinkage: Tensor

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, side, side))
        self.register_buffer("whitener", torch.zeros(side * side, channels, channels, dtype=torch.float16))
        self.register_buffer("shrinkage", torch.zeros(()))
        self._count = [0] * self.FOLDS
        self._sum: list[Tensor] = []
        self._square: list[Tensor] = []

    def add(self, x: Tensor, first: int) -> None:
        """Add (N, C, H, W) features of good images; `first` counts the images added before, and picks their folds."""
        if not self._sum:
            positions, channels, _ = self.whitener.shape
            self._sum = list(x.new_zeros(self.FOLDS, positions, channels))
            self._square = list(x.new_zeros(self.FOLDS, positions, channels, channels))
        by_position = x.flatten(2).permute(2, 0, 1)  # (HW, N, C)
        for fold in range(self.FOLDS):
            part = by_position[:, (fold - first) % self.FOLDS :: self.FOLDS]
            self._count[fold] += part.shape[1]
            self._sum[fold] += part.sum(1)
            self._square[fold].baddbmm_(part.transpose(1, 2), part)

    def solve(self) -> None:
        """Choose the shrinkage and set the buffers from everything added."""
        count, total, square = sum(self._count), torch.stack(self._sum).sum(0), torch.stack(self._square).sum(0)
        best = self.SHRINKAGES[-1]
        if count >= 2 * self.FOLDS:
            losses = torch.zeros(len(self.SHRINKAGES), dtype=torch.float64)
            for fold in range(self.FOLDS):
                rest = count - self._count[fold]
                mean, scatter = _moments(rest, total - self._sum[fold], square - self._square[fold])
                out_mean, out_scatter = _moments(self._count[fold], self._sum[fold], self._square[fold])
                gap = out_mean - mean
                out_scatter += gap[:, :, None] * gap[:, None, :]
                for index, weight in enumerate(self.SHRINKAGES):
                    losses[index] += _negative_log_likelihood(self._shrink(scatter, weight), out_scatter)
            best = self.SHRINKAGES[int(losses.argmin())]
        mean, scatter = _moments(count, total, square)
        factor = torch.linalg.cholesky(self._shrink(scatter, best))
        eye = torch.eye(factor.shape[-1], device=factor.device).expand_as(factor)
        self.whitener.copy_(torch.linalg.solve_triangular(factor, eye, upper=False))
        self.mean.copy_(mean.T.reshape(self.mean.shape))
        self.shrinkage.fill_(best)
        self._sum, self._square, self._count = [], [], [0] * self.FOLDS

    def forward(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance a channel, (N, 1, H, W), of (N, C, H, W) features: near 1 for good ones."""
        n, _, height, width = x.shape
        centred = (x - self.mean).flatten(2).permute(2, 1, 0)  # (HW, C, N)
        white = torch.bmm(self.whitener.float(), centred)  # (HW, C, N)
        # x * x, since ONNX Runtime takes ten times as long for the Pow that square() becomes.
        return (white * white).mean(1).T.reshape(n, 1, height, width)

    def _shrink(self, scatter: Tensor, weight: float) -> Tensor:
        pooled = scatter.mean(0)
        ridge = self.RIDGE * pooled.diagonal().mean() * torch.eye(len(pooled), device=pooled.device)
        return (1 - weight) * scatter + (weight * pooled + ridge)


class SharedGaussian(PositionGaussian):
    """One Gaussian for all positions of a level: tiles of a larger image stand anywhere, so positions mean nothing.

    Args:
        channels: The level's channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, side=1)

    def add(self, x: Tensor, first: int) -> None:
        """Add every position of (N, C, H, W) features as an image of its own."""
        super().add(self._apart(x), first * x.shape[2] * x.shape[3])

    def forward(self, x: Tensor) -> Tensor:
        """As `PositionGaussian.forward`, at any H and W."""
        n, _, height, width = x.shape
        return super().forward(self._apart(x)).reshape(n, 1, height, width)

    @staticmethod
    def _apart(x: Tensor) -> Tensor:
        """(N, C, H, W) to (N*H*W, C, 1, 1)."""
        return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1], 1, 1)


def _moments(count: int, total: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (P, C) and covariance (P, C, C) from sums."""
    mean = total / count
    return mean, square / count - mean[:, :, None] * mean[:, None, :]


def _negative_log_likelihood(covariance: Tensor, scatter: Tensor) -> float:
    """Mean over positions of log det + trace of the scatter under the covariance, both (P, C, C)."""
    factor = torch.linalg.cholesky(covariance)
    log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    trace = torch.cholesky_solve(scatter, factor).diagonal(dim1=1, dim2=2).sum(1)
    return float((log_det + trace).mean())


def top_mean(anomaly_map: Tensor, share: float, inspected: Inspected | None = None) -> Tensor:
    """(N,) mean of the highest `share` of each (N, 1, H, W) map; of its maximum where that is less than a position.

    With `inspected`, of the positions that it scores.
    """
    flat = anomaly_map.flatten(1)
    if inspected is not None:
        flat = flat[:, inspected.positions(anomaly_map.shape[-1])]
    return flat.topk(max(1, int(share * flat.shape[1])), 1).values.mean(1)


class FeatureGrid(nn.Module):
    """Levels of a backbone as one vector a position of the finest level, every channel on the same scale.

    The frozen half (`project`) is part of `extract`; the other half is learned: `add` good images, then `solve`.

    Args:
        channels: Channels of each level of the backbone.
        side: Side of the grid.
        project: Reduce a level with more channels than this to this many; 0 for never.
        normalise: Bring every channel to zero mean and unit variance over the good images.

    Attributes:
        channels: Channels of a vector.
    """

    def __init__(self, channels: Sequence[int], side: int, project: int, normalise: bool) -> None:
        super().__init__()
        self.side = side
        projections = [Projection(each, project) for each in channels]
        self.projections = nn.ModuleList(projections)
        self.channels = sum(projection.channels for projection in projections)
        self.norm = ChannelNorm(self.channels) if normalise else None

    def project(self, levels: Levels) -> tuple[Tensor, ...]:
        """The levels at their own sides, wide ones reduced."""
        return tuple(project(level) for project, level in zip(self.projections, levels, strict=True))

    def add(self, levels: Levels) -> None:
        """Add projected levels of good images."""
        if self.norm:
            self.norm.add(self._join(levels))

    def solve(self) -> None:
        """Set the scale of every channel from everything added."""
        if self.norm:
            self.norm.solve()

    def forward(self, levels: Levels) -> Tensor:
        """(N, channels, side, side) of projected levels."""
        x = self._join(levels)
        normalised: Tensor = self.norm(x) if self.norm else x
        return normalised

    def _join(self, levels: Levels) -> Tensor:
        return torch.cat([to_side(level, self.side) for level in levels], 1)


class Moments:
    """Mean and covariance of the vectors at all positions of feature maps: `add` batches, then `solve`."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = torch.zeros(())
        self._square = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Add (N, C, H, W) features."""
        x = x.detach().cpu() if x.device.type == "mps" else x.detach()  # MPS has no float64
        for image in x:  # one by one: DFR's 3456 channels on 64x64 are 113 MB in float64
            rows = image.double().flatten(1)  # (C, HW)
            self._count += rows.shape[1]
            self._sum = self._sum.to(rows) + rows.sum(1)
            self._square = self._square.to(rows) + rows @ rows.T

    def solve(self) -> tuple[Tensor, Tensor]:
        """Mean (C,) and covariance (C, C), both float64 on the CPU."""
        mean: Tensor = (self._sum / self._count).cpu()
        square: Tensor = (self._square / self._count).cpu()
        return mean, square - mean[:, None] * mean


def principal_axes(covariance: Tensor, variance: float) -> Tensor:
    """The fewest principal axes that keep more than a share of the variance, as the columns of (C, components).

    Args:
        covariance: (C, C).
        variance: The share, in [0, 1).
    """
    values, vectors = torch.linalg.eigh(covariance)
    kept = values.flip(0).clamp_min(0).cumsum(0)
    count = int((kept <= variance * kept[-1]).sum()) + 1
    axes: Tensor = vectors.flip(1)[:, :count]
    return axes


def finish_scores(
    anomaly_map: Tensor, size: int, top: float, inspected: Inspected | None = None, *, align_corners: bool = False
) -> Scores[Tensor]:
    """A (N, 1, h, w) map brought to the input's size, and the image scores that follow from it.

    Args:
        anomaly_map: The map on the feature grid.
        size: Side of the input, in pixels.
        top: Share of the grid whose mean is the image score; 0 for the maximum of the full-size map.
        inspected: What the image score is taken from; None for everything.
        align_corners: How the bilinear resize places its samples.
    """
    upsampled = F.interpolate(anomaly_map, (size, size), mode="bilinear", align_corners=align_corners)
    return Scores(image=top_mean(anomaly_map if top else upsampled, top, inspected), anomaly_map=upsampled)


def finish_level_scores(maps: Levels, size: int, top: float, inspected: Inspected | None = None) -> Scores[Tensor]:
    """What `finish_scores` gives, from one map a level.

    The map is the harmonic mean of the levels' maps, high where every level is; the image score is the geometric mean
    of their top means, to which each level gives its share whatever the others say.

    Args:
        maps: (N, 1, h, w) of each level, finest first, not negative.
        size: Side of the input, in pixels.
        top: Share of each level's map whose mean goes into the image score; 0 for the maximum of the full-size map.
        inspected: What the image score is taken from; None for everything.
    """
    joined = finish_scores(_harmonic_mean(maps), size, top, inspected)
    if len(maps) == 1 or not top:
        return joined
    tops = torch.stack([top_mean(each, top, inspected) for each in maps])
    return replace(joined, image=tops.clamp_min(LEAST).log().mean(0).exp())


def _harmonic_mean(maps: Levels) -> Tensor:
    """(N, 1, h, w) at the finest side; the map itself where there is only one."""
    if len(maps) == 1:
        return maps[0]
    sides = [to_side(each, maps[0].shape[-1]) for each in maps]
    return 1 / torch.stack([1 / each.clamp_min(LEAST) for each in sides]).mean(0)
