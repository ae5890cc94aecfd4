"""How a residual is read: ways to learn what those of good images look like, and to measure how far off one is.

    PositionGaussian    a Gaussian at every position
    NearestResidual     the distance to the most similar residual of a good image, wherever it stood
    WholeMap            what good images as wholes leave unexplained: all positions together

All are fitted in one pass over good images: `add` batches, then `solve`. Images fall into `FOLDS` in turn, for what has
to be learned from images that were left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from makel.methods.layers import (
    LEAST,
    Moments,
    choose_coreset,
    to_side,
)

FOLDS = 4
"""Parts the good images fall into, in turn."""

RIDGE, LEAST_VARIANCE = 0.01, 1e-3
"""What is added to every variance: a share of the mean one, or where that is less, a thousandth of what a normalised
channel has. Images that hardly differ would else be told apart by rounding, which every runtime does in its own way."""


class Reading(nn.Module, ABC):
    """What is learned from residuals of good images, as a distance.

    Attributes:
        share: The share of its map whose mean says how far off the image is; None for a method's usual one.
    """

    share: ClassVar[float | None] = None

    @abstractmethod
    def add(self, x: Tensor, first: int) -> None:
        """Add (N, C, H, W) residuals of good images; `first` counts the images added before, and picks their folds."""

    @abstractmethod
    def solve(self) -> None:
        """Set the buffers from everything added."""

    @abstractmethod
    def of_fold(self, x: Tensor, fold: int) -> Tensor:
        """What `forward` gives for (N, C, H, W), without what images of this fold taught; until `forget`."""

    @abstractmethod
    def forget(self) -> None:
        """Let go of what was added and `of_fold` needs."""

    def left_out(self, x: Tensor, first: int) -> Tensor:
        """The maps of good images that were added, each by the folds that it is not in; `first` as in `add`."""
        folds = _folds(first, len(x))
        order = folds.argsort(stable=True)
        maps = torch.cat([self.of_fold(x[(folds == fold).to(x.device)], fold) for fold in sorted(set(folds.tolist()))])
        return maps[order.argsort().to(x.device)]


@dataclass
class _Sums:
    """Of residuals by fold: how many (FOLDS,), their sums (FOLDS, P, C) and those of their outer products."""

    count: list[int]
    total: Tensor
    square: Tensor

    def moments(self, folds: list[int]) -> tuple[Tensor, Tensor]:
        """Mean (P, C) and covariance (P, C, C) of some folds."""
        count = sum(self.count[fold] for fold in folds)
        mean = self.total[folds].sum(0) / count
        square = torch.stack([self.square[fold] for fold in folds]).sum(0) / count
        return mean, square - mean[:, :, None] * mean[:, None, :]


class PositionGaussian(Reading):
    """A Gaussian at every position of a feature level, learned from good images; its distance is an anomaly map.

    The covariance at a position is shrunk towards the one pooled over all positions,
    (1 - a) S_p + a S, plus a ridge. The weight a is the one under which good images left out of S_p and S are likeliest
    (folds of the fitted images), so that few images lean on the pooled one and many on their own.

    Args:
        channels, shape: The level's, rows and columns.

    Attributes:
        mean: (C, H, W) buffer.
        whitener: (H*W, C*(C+1)/2) half-precision buffer, the lower triangle of the inverse of the covariance's Cholesky
            factor, row by row.
        shrinkage: () buffer, the weight chosen.
    """

    SHRINKAGES = (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
    BLOCK = 40
    """Rows of the factor that are multiplied at a time: what is above the diagonal need not be read, and reading the
    factors is what takes the time."""
    JUDGED = 64
    """Positions the weight is chosen at, spread over the level: it is one number, and each costs 32 factorisations."""

    mean: Tensor
    whitener: Tensor
    shrinkage: Tensor
    unpack: Tensor

    def __init__(self, channels: int, shape: tuple[int, int]) -> None:
        super().__init__()
        triangle = channels * (channels + 1) // 2
        self.register_buffer("mean", torch.zeros(channels, *shape))
        self.register_buffer("whitener", torch.zeros(prod(shape), triangle, dtype=torch.float16))
        self.register_buffer("shrinkage", torch.zeros(()))
        self.channels = channels
        blocks = max(1, round(channels / self.BLOCK))
        self._edges = [channels * block // blocks for block in range(blocks + 1)]
        # Where each entry of the matrix stands in the packed row; what is above the diagonal, at the zero behind it.
        unpack = torch.full((channels, channels), triangle)
        unpack[tuple(torch.tril_indices(channels, channels))] = torch.arange(triangle)
        self.register_buffer("unpack", unpack, persistent=False)
        self._sums: _Sums | None = None
        self._others: dict[int, tuple[Tensor, Tensor]] = {}  # mean and whitener without each fold

    def add(self, x: Tensor, first: int) -> None:
        """See `Reading.add`."""
        if self._sums is None:
            positions, channels = len(self.whitener), self.channels
            total = x.new_zeros(FOLDS, positions, channels)
            self._sums = _Sums([0] * FOLDS, total, x.new_zeros(*total.shape, channels))
        for fold in range(FOLDS):
            part = x[(fold - first) % FOLDS :: FOLDS].flatten(2).permute(2, 0, 1)  # (positions, n, C)
            self._sums.count[fold] += part.shape[1]
            self._sums.total[fold] += part.sum(1)
            self._sums.square[fold].baddbmm_(part.transpose(1, 2), part)

    def solve(self) -> None:
        """See `Reading.solve`."""
        assert self._sums is not None, "nothing was added"
        self.shrinkage.fill_(self._choose_shrinkage(self._sums))
        mean, whitener = self._gaussian(list(range(FOLDS)))
        self.mean.copy_(mean)
        self.whitener.copy_(whitener)

    def forward(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance a channel, (N, 1, H, W), of (N, C, H, W) features: near 1 for good ones."""
        return self._distance(x, self.mean, self.whitener)

    def of_fold(self, x: Tensor, fold: int) -> Tensor:
        """See `Reading.of_fold`."""
        if fold not in self._others:
            assert self._sums is not None, "forgotten"
            folds = [other for other in range(FOLDS) if other != fold and self._sums.count[other]]
            self._others[fold] = self._gaussian(folds or [fold])  # a single image has only itself
        return self._distance(x, *self._others[fold])

    def forget(self) -> None:
        """See `Reading.forget`."""
        self._sums, self._others = None, {}

    def _gaussian(self, folds: list[int]) -> tuple[Tensor, Tensor]:
        """Mean and whitener of these folds."""
        assert self._sums is not None, "nothing was added"
        mean, scatter = self._sums.moments(folds)
        factor = torch.linalg.cholesky(_shrink(scatter, scatter.mean(0), float(self.shrinkage)))
        eye = torch.eye(factor.shape[-1], device=factor.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        rows, columns = torch.tril_indices(self.channels, self.channels, device=inverse.device)
        return mean.T.reshape(self.mean.shape), inverse[:, rows, columns].to(self.whitener.dtype)

    def _distance(self, x: Tensor, mean: Tensor, whitener: Tensor) -> Tensor:
        n, _, height, width = x.shape
        centred = (x - mean).flatten(2).permute(2, 0, 1)  # (HW, N, C)
        packed = torch.cat([whitener, torch.zeros_like(whitener[:, :1])], 1)
        white = []
        for start, stop in pairwise(self._edges):
            part = packed[:, self.unpack[start:stop, :stop].T.flatten()].float().reshape(-1, stop, stop - start)
            white.append(torch.bmm(centred[:, :, :stop], part))
        every = torch.cat(white, 2)  # (HW, N, C)
        # x * x, since ONNX Runtime takes ten times as long for the Pow that square() becomes.
        return (every * every).mean(2).T.reshape(n, 1, height, width)

    def _choose_shrinkage(self, sums: _Sums) -> float:
        if sum(sums.count) < 2 * FOLDS:
            return self.SHRINKAGES[-1]
        judged = slice(None, None, -(-len(self.whitener) // self.JUDGED))
        losses = torch.zeros(len(self.SHRINKAGES), dtype=torch.float64)
        for fold in range(FOLDS):
            mean, scatter = sums.moments([other for other in range(FOLDS) if other != fold])
            out_mean, out_scatter = sums.moments([fold])
            gap = out_mean - mean
            out_scatter = (out_scatter + gap[:, :, None] * gap[:, None, :])[judged]
            pooled, own = scatter.mean(0), scatter[judged]
            for index, weight in enumerate(self.SHRINKAGES):
                shrunk = _shrink(own, pooled, weight)
                losses[index] += _negative_log_likelihood(shrunk, out_scatter)
        return self.SHRINKAGES[int(losses.argmin())]


@dataclass
class _Draw:
    """A fair draw from everything added: `rows` (K, C), with the fold of each."""

    rows: Tensor
    folds: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    lots: Tensor = field(default_factory=lambda: torch.zeros(0))
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def add(self, rows: Tensor, folds: Tensor, most: int) -> None:
        """Add (N, C) with the folds (N,) of each; `most` are kept, in the order they came."""
        rows, folds = torch.cat([self.rows, rows.to(self.rows.dtype)]), torch.cat([self.folds, folds])
        # Whoever has drawn the smallest lots stays, which is fair however many are still to come.
        lots = torch.cat([self.lots, torch.rand(len(rows) - len(self.rows), generator=self.generator)])
        kept = lots.topk(min(most, len(lots)), largest=False).indices.sort().values
        self.rows, self.folds, self.lots = rows[kept.to(rows.device)], folds[kept], lots[kept]


def _folds(first: int, count: int) -> Tensor:
    """(count,) folds of the images after `first` others."""
    return (torch.arange(count) + first).remainder(FOLDS)


class NearestResidual(Reading):
    """The distance to the most similar residual of a good image, wherever on the image that one stood.

    A part that lies somewhere else in every image is not described by a Gaussian at a position. Here residuals are
    whitened by the covariance of all of them and compared with a bank of some: PatchCore's idea, see
    `makel.methods.nearest`, on residuals.

    Args:
        channels: The level's channels.
        most: Residuals remembered at most.

    Attributes:
        mean: (C,) buffer.
        whitener: (C, C) buffer, the inverse of the covariance's Cholesky factor.
        bank: (K, C) half-precision buffer, whitened residuals.
        scale: () buffer, the mean distance of good residuals, which all are divided by.
    """

    CANDIDATES = 8_000
    """Residuals the bank is chosen among, drawn from all."""
    CHUNK = 512
    """Members compared with at a time; bounds the memory a batch needs."""

    mean: Tensor
    whitener: Tensor
    bank: Tensor
    scale: Tensor

    def __init__(self, channels: int, most: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("whitener", torch.zeros(channels, channels))
        self.register_buffer("bank", torch.zeros(0, channels, dtype=torch.float16))
        self.register_buffer("scale", torch.ones(()))
        self.most = most
        self.register_load_state_dict_pre_hook(_resize_before_load)  # type: ignore[no-untyped-call]
        self._drawn: _Draw | None = None
        self._moments = Moments()
        self._others: list[Tensor] = []  # the bank without each fold

    def add(self, x: Tensor, first: int) -> None:
        """See `Reading.add`."""
        if self._drawn is None:
            self._drawn = _Draw(x.new_zeros(0, x.shape[1]))
        self._moments.add(x)
        folds = _folds(first, len(x)).repeat_interleave(x[0, 0].numel())
        self._drawn.add(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), folds, self.CANDIDATES)

    def solve(self) -> None:
        """See `Reading.solve`."""
        assert self._drawn is not None, "nothing was added"
        drawn, self._drawn = self._drawn, None
        mean, covariance = self._moments.solve()
        self.mean.copy_(mean)
        self.whitener.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance + _ridge(covariance))))
        rows = self._whiten(drawn.rows)
        members = choose_coreset(rows, min(self.most, len(rows)), project=64).cpu()
        self.bank = rows[members].half()
        folds = drawn.folds[members]
        if (folds == folds[0]).all():  # a single image has only itself, and tells no distance
            self._others = [self.bank] * FOLDS
            return
        self._others = [self.bank[folds != fold] for fold in range(FOLDS)]
        own = [rows[drawn.folds == fold] for fold in range(FOLDS)]
        self.scale.copy_(torch.cat([self._nearest(*each) for each in zip(own, self._others, strict=True)]).mean())

    def forward(self, x: Tensor) -> Tensor:
        """Squared distance to the nearest of the bank, over its mean for good ones: (N, 1, H, W) of (N, C, H, W)."""
        return self._distance(x, self.bank)

    def of_fold(self, x: Tensor, fold: int) -> Tensor:
        """See `Reading.of_fold`."""
        return self._distance(x, self._others[fold])

    def forget(self) -> None:
        """See `Reading.forget`."""
        self._others = []

    def _distance(self, x: Tensor, bank: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        white = self._whiten(x.permute(0, 2, 3, 1).reshape(-1, channels))
        return (self._nearest(white, bank) / self.scale).reshape(n, 1, height, width)

    def _whiten(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) @ self.whitener.T

    def _nearest(self, white: Tensor, bank: Tensor) -> Tensor:
        """(rows,) squared distance a channel."""
        # The row's own square is the same for the whole bank, and is added to the least alone.
        parts = [
            (part.square().sum(1) - 2 * (white @ part.T)).amin(1) for part in torch.split(bank.float(), self.CHUNK)
        ]
        return (torch.stack(parts).amin(0) + (white * white).sum(1)).clamp_min(0) / white.shape[1]


_Explained = tuple[Tensor, Tensor, Tensor]
"""Mean, axes and weights, as `WholeMap` has them."""


class WholeMap(Reading):
    """What all good images together cannot explain of this one: its map is looked at as a whole.

    Products of several kinds or lights differ in all positions at once, and in ways that good images have shown. The
    map of an image, averaged to a coarse grid, is one vector; the principal axes of those of good images explain a
    part of it (for distances, Ahuja et al. 2019, https://arxiv.org/abs/1909.11786, as features alone), and the rest is
    read by a Gaussian at every position. Axes explain the images they come from too well, so that Gaussian is learned
    from what axes of other images leave of them. Each coordinate is shrunk as probabilistic PCA has it (Tipping and
    Bishop 1999, https://doi.org/10.1111/1467-9868.00196), by the variance of the axes that are left out.

    Args:
        channels, shape: The level's, rows and columns.

    Attributes:
        mean: (D,) buffer, D being channels times the cells of the grid.
        axes: (K, D) half-precision buffer.
        weight: (K,) buffer, what is kept of each coordinate.
        rest: The Gaussian.
    """

    share = 0.75
    GRID = 8
    """Cells of the grid a side at most; a quarter of the level's where that is less."""
    EXPLAINED, MOST_AXES = 0.97, 384
    """Axes are taken until they explain this share of the variance, or there are so many."""
    MOST_IMAGES = 1024
    """Good images that axes are found from, drawn from all."""

    mean: Tensor
    axes: Tensor
    weight: Tensor

    def __init__(self, channels: int, shape: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = (max(1, min(self.GRID, side // 4)) for side in shape)
        self.grid = rows, columns
        size = channels * rows * columns
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("axes", torch.zeros(0, size, dtype=torch.float16))
        self.register_buffer("weight", torch.zeros(0))
        self.rest = PositionGaussian(channels, self.grid)
        self.register_load_state_dict_pre_hook(_resize_before_load)  # type: ignore[no-untyped-call]
        self._drawn: _Draw | None = None
        self._others: list[_Explained] = []  # without each fold

    def add(self, x: Tensor, first: int) -> None:
        """See `Reading.add`."""
        rows = to_side(x, self.grid).flatten(1)
        if self._drawn is None:
            self._drawn = _Draw(rows.new_zeros(0, rows.shape[1], dtype=torch.float16))
        self._drawn.add(rows, _folds(first, len(rows)), self.MOST_IMAGES)

    def solve(self) -> None:
        """See `Reading.solve`."""
        assert self._drawn is not None, "nothing was added"
        drawn, self._drawn = self._drawn, None
        self._others = []
        for fold in range(FOLDS):
            own = (drawn.folds == fold).to(drawn.rows.device)
            others = drawn.rows if own.all() else drawn.rows[~own]  # a single image has only itself
            self._others.append(self._explain(others.float()))
            for left in self._left(drawn.rows[own].float(), self._others[fold]):
                self.rest.add(left[None], fold)
        self.mean, self.axes, self.weight = self._explain(drawn.rows.float())
        self.rest.solve()

    def forward(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance a channel of what is left, (N, 1, *grid), of (N, C, H, W) residuals."""
        explained = self.mean, self.axes, self.weight
        distance: Tensor = self.rest(self._left(to_side(x, self.grid).flatten(1), explained))
        return distance

    def of_fold(self, x: Tensor, fold: int) -> Tensor:
        """See `Reading.of_fold`."""
        return self.rest.of_fold(self._left(to_side(x, self.grid).flatten(1), self._others[fold]), fold)

    def forget(self) -> None:
        """See `Reading.forget`."""
        self._others = []
        self.rest.forget()

    def _left(self, rows: Tensor, explained: _Explained) -> Tensor:
        """(N, C, *grid) of (N, D)."""
        mean, axes, weight = explained
        axes, centred = axes.float(), rows - mean
        left = centred - (centred @ axes.T * weight) @ axes
        return left.reshape(-1, self.rest.channels, *self.grid)

    def _explain(self, rows: Tensor) -> _Explained:
        """Mean, axes and weights of (N, D)."""
        mean = rows.mean(0)
        centred = rows - mean
        # There are more dimensions than images: the images' products with each other have the same axes, sooner.
        values, vectors = torch.linalg.eigh(centred @ centred.T)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        wanted = int((values.cumsum(0) < self.EXPLAINED * values.sum()).sum()) + 1
        count = min(wanted, self.MOST_AXES, len(rows) - 1)
        rest = values[count : len(rows) - 1]
        noise = rest.mean() if len(rest) else rest.new_zeros(())
        values = values[:count]
        axes = (vectors[:, :count].T @ centred) / values.sqrt().clamp_min(LEAST)[:, None]
        return mean, axes.half(), values / (values + noise).clamp_min(LEAST)


class Alignment:
    """How much of what features show is where on the image they stand: `add` good images, then `solve`.

    Near 1 for a product that lies the same in every image, near 0 for a texture and for a product that lies anywhere.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum = torch.zeros(())
        self._square = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Add (N, C, H, W) features."""
        self._count += len(x)
        self._sum = self._sum.to(x.device) + x.sum(0)
        self._square = self._square.to(x.device) + x.square().sum((0, 2, 3))

    def solve(self) -> float:
        """Share of the variance that lies between positions, mean over the channels; 0 for a single image."""
        if self._count < 2:
            return 0.0
        means = self._sum / self._count  # (C, H, W)
        variance = self._square / (self._count * means[0].numel()) - means.mean((1, 2)).square()
        within = (variance - means.flatten(1).var(1, correction=0)) * self._count / (self._count - 1)
        varied = variance > LEAST
        return float(1 - (within[varied] / variance[varied]).mean()) if varied.any() else 0.0


def _ridge(covariance: Tensor) -> Tensor:
    """(C, C) for a (C, C)."""
    least = (RIDGE * covariance.diagonal().mean()).clamp_min(LEAST_VARIANCE)
    return least * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)


def _shrink(scatter: Tensor, pooled: Tensor, weight: float) -> Tensor:
    """(P, C, C) shrunk towards a (C, C)."""
    return (1 - weight) * scatter + (weight * pooled + _ridge(pooled))


def _negative_log_likelihood(covariance: Tensor, scatter: Tensor) -> float:
    """Mean over positions of log det + trace of the scatter under the covariance, both (P, C, C)."""
    factor = torch.linalg.cholesky(covariance)
    log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
    trace = torch.cholesky_solve(scatter, factor).diagonal(dim1=1, dim2=2).sum(1)
    return float((log_det + trace).mean())


def _resize_before_load(reading: Reading, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make room for what of a state has a size that follows from the images it was fitted on."""
    for name, buffer in reading.named_buffers(recurse=False):
        if f"{prefix}{name}" in state:
            setattr(reading, name, torch.empty_like(state[f"{prefix}{name}"], device=buffer.device))
