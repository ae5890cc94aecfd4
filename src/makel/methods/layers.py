"""Parts that methods share: the skip autoencoder's network, projections and norms, and how a map becomes scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from makel.training.inspected import Inspected
from makel.types import Scores

Levels = Sequence[Tensor]
"""One (N, C, H, W) tensor a level, finest first; each level has half the sides of the one before."""

LEAST = 1e-6
"""A distance or a scale below this is taken for this, where it is divided by or its logarithm taken."""


def level_shape(size: Sequence[int], stride: int) -> tuple[int, int]:
    """Rows and columns of a level of this stride, of an input of this height and width."""
    rows, columns = (-(-side // stride) for side in size)
    return rows, columns


def to_side(x: Tensor, shape: Sequence[int]) -> Tensor:
    """(N, C, h, w) resized to (N, C, rows, columns): averaged where it shrinks, bilinear where it grows."""
    (height, width), (rows, columns) = map(int, x.shape[-2:]), map(int, shape)  # tensors while a model is exported
    if (height, width) == (rows, columns):
        return x
    if height % rows == 0 and width % columns == 0:
        return F.avg_pool2d(x, (height // rows, width // columns))
    if height >= rows and width >= columns:
        return _shares(height, rows).to(x) @ x @ _shares(width, columns).to(x).T
    return F.interpolate(x, (rows, columns), mode="bilinear", align_corners=False)


def _shares(before: int, after: int) -> Tensor:
    """(after, before), each row a mean over its share of a line of `before`, what it has but a part of included."""
    edges = [index * before / after for index in range(after + 1)]
    inside = [[max(0.0, min(stop, i + 1) - max(start, i)) for i in range(before)] for start, stop in pairwise(edges)]
    return torch.tensor(inside) * (after / before)


def neighbourhoods(levels: Levels, shape: Sequence[int]) -> Tensor:
    """(N, channels of all, rows, columns): 3x3 means of each (N, C, h, w) level, brought to one shape.

    Beyond the border there are zeros. A normalised level is distorted there by the backbone's own padding; with the
    zeros a border position is a third nearer to the mean, and its distances are not larger than elsewhere.
    """
    return torch.cat([to_side(F.avg_pool2d(level, 3, 1, 1), shape) for level in levels], 1)


class SkipAutoencoder(nn.Module):
    """U-Net autoencoder over features, after the generator of Skip-GANomaly (a pix2pix U-Net).

    Encoder stage k halves the sides (4x4 convolution, stride 2; LeakyReLU 0.2 before it and BatchNorm after it in all
    but the first). The decoder mirrors it (ReLU, 4x4 transposed convolution, BatchNorm) and concatenates each stage
    output again on its way up: the skip connections. There is none at the input's own side, where it would be an
    identity. The output is linear, since features have no bound.

    Args:
        channels: Channels of the features.
        widths: Channels of each encoder stage.
        skips: Channels each skip is compressed to by a 1x1 convolution, one for every stage but the deepest, from fine
            to deep; 0 for no skip, -1 for an uncompressed one.
    """

    def __init__(self, channels: int, widths: Sequence[int], skips: Sequence[int]) -> None:
        super().__init__()
        outer = [channels, *widths[:-1]]
        self.skipped = [width if skip < 0 else skip for width, skip in zip(widths, skips, strict=False)] + [0]
        self.down = nn.ModuleList(nn.Conv2d(i, o, 4, 2, 1) for i, o in zip(outer, widths, strict=True))
        self.down_norm = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[1:])
        self.skip = nn.ModuleList(
            nn.Conv2d(width, skip, 1) if skip > 0 else nn.Identity() for width, skip in zip(widths, skips, strict=False)
        )
        # Decoder stage k takes what stands at the side of encoder stage k, skip included, to the side above it.
        inner = [width + skipped for width, skipped in zip(widths, self.skipped, strict=True)]
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in zip(inner, outer, strict=True))
        self.up_norm = nn.ModuleList(nn.BatchNorm2d(width) for width in widths[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """The reconstruction of (N, C, h, w), of the same shape."""
        x, encoded = features, []
        for k, down in enumerate(self.down):
            x = down(x) if k == 0 else self.down_norm[k - 1](down(F.leaky_relu(x, 0.2)))
            encoded.append(x)
        for k in reversed(range(len(self.up))):
            if k < len(self.up_norm):
                x = self.up_norm[k](x)
            if self.skipped[k]:
                x = torch.cat([x, self.skip[k](encoded[k])], 1)
            x = _fitted(self.up[k](F.relu(x)), encoded[k - 1] if k else features)
        return x


def _fitted(x: Tensor, like: Tensor) -> Tensor:
    """(N, C, h, w) at the height and width of `like`, which are larger by one where an odd side was halved.

    The row or column that is missing is the last one again.
    """
    high, wide = map(int, like.shape[-2:])  # tensors while a model is exported
    x = x if int(x.shape[2]) == high else torch.cat([x, x[:, :, -1:]], 2)
    return x if int(x.shape[3]) == wide else torch.cat([x, x[..., -1:]], 3)


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


def top_mean(anomaly_map: Tensor, share: float, inspected: Inspected | None = None) -> Tensor:
    """(N,) mean of the highest `share` of each (N, 1, H, W) map; of its maximum where that is less than a position.

    With `inspected`, of the positions that it scores.
    """
    flat = _scored(anomaly_map, inspected)
    return flat.topk(max(1, int(share * flat.shape[1])), 1).values.mean(1)


def choose_coreset(points: Tensor, count: int, project: int = 128) -> Tensor:
    """Greedy k-centre: the point farthest from the mean, then always the one farthest from all chosen.

    Args:
        points: (M, C).
        count: How many to choose, M at most.
        project: Distances are taken in this many channels after a random projection; 0 for in all.

    Returns:
        (count,) int64, different indices into `points`, in the order they were chosen.
    """
    flat = Projection(points.shape[1], project).to(points.device)(points[:, :, None, None]).flatten(1)
    flat = flat - flat.mean(0)
    squares = flat.square().sum(1)
    index = squares.argmax()
    farthest = torch.full_like(squares, torch.inf)
    chosen = []
    for _ in range(count):
        chosen.append(index)
        torch.minimum(farthest, squares - 2 * (flat @ flat[index]) + squares[index], out=farthest)
        farthest[index] = -torch.inf  # never twice, not even among equal points
        index = farthest.argmax()
    return torch.stack(chosen)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(A, C) and (B, C) to (A, B), by one matrix product; rounding may leave a zero slightly negative."""
    return x.square().sum(1, keepdim=True) - 2 * (x @ y.T) + y.square().sum(1)


class FeatureGrid(nn.Module):
    """Levels of a backbone as one vector a position of the finest level, every channel on the same scale.

    The frozen half (`project`) is part of `extract`; the other half is learned: `add` good images, then `solve`.

    Args:
        channels: Channels of each level of the backbone.
        shape: Rows and columns of the grid.
        project: Reduce a level with more channels than this to this many; 0 for never.
        normalise: Bring every channel to zero mean and unit variance over the good images.

    Attributes:
        channels: Channels of a vector.
    """

    def __init__(self, channels: Sequence[int], shape: tuple[int, int], project: int, normalise: bool) -> None:
        super().__init__()
        self.shape = shape
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
        """(N, channels, rows, columns) of projected levels."""
        x = self._join(levels)
        normalised: Tensor = self.norm(x) if self.norm else x
        return normalised

    def _join(self, levels: Levels) -> Tensor:
        return torch.cat([to_side(level, self.shape) for level in levels], 1)


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
    anomaly_map: Tensor,
    size: tuple[int, int],
    top: float,
    inspected: Inspected | None = None,
    *,
    align_corners: bool = False,
) -> Scores[Tensor]:
    """A (N, 1, h, w) map brought to the input's size, and the image scores that follow from it.

    Args:
        anomaly_map: The map on the feature grid.
        size: Height and width of the input, in pixels.
        top: Share of the grid whose mean is the image score; 0 for the maximum of the full-size map.
        inspected: What the image score is taken from; None for everything.
        align_corners: How the bilinear resize places its samples.
    """
    upsampled = F.interpolate(anomaly_map, size, mode="bilinear", align_corners=align_corners)
    return Scores(image=top_mean(anomaly_map if top else upsampled, top, inspected), anomaly_map=upsampled)


def _scored(anomaly_map: Tensor, inspected: Inspected | None) -> Tensor:
    """(N, positions) of a (N, 1, h, w) map: all, or those that the image score is taken from."""
    flat = anomaly_map.flatten(1)
    return flat if inspected is None else flat[:, inspected.positions(anomaly_map.shape[-2:])]
