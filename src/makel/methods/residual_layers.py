"""How a residual is read: two ways to learn what those of good images look like, and to measure how far off one is.

    PositionGaussian    a Gaussian at every position; SharedGaussian, one for all
    NearestResidual     the distance to the most similar residual of a good image, wherever it stood

Both are fitted in one pass of sums over good images: `add` batches, then `solve`. Images fall into `FOLDS` in turn, and
`solve(without=fold)` gives the reading as it would be without that fold's images, so that their own distances are those
of images never seen.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from makel.methods.layers import (
    LEAST,
    Moments,
    choose_coreset,
    squared_distances,
)

FOLDS = 4
"""Parts the good images fall into, in turn."""

RIDGE, LEAST_VARIANCE = 0.01, 1e-3
"""What is added to every variance: a share of the mean one, or where that is less, a thousandth of what a normalised
channel has. Images that hardly differ would else be told apart by rounding, which every runtime does in its own way."""


class Reading(nn.Module, ABC):
    """What is learned from residuals of good images, as a distance."""

    @abstractmethod
    def add(self, x: Tensor, first: int) -> None:
        """Add (N, C, H, W) residuals of good images; `first` counts the images added before, and picks their folds."""

    @abstractmethod
    def solve(self, without: int | None = None) -> None:
        """Set the buffers from everything added, or from all but one fold. May be called again until `release`."""

    @abstractmethod
    def release(self) -> None:
        """Let go of the sums."""


@dataclass
class _Sums:
    """Of residuals by fold: how many (FOLDS,), their sums (FOLDS, P, C) and those of their outer products; and the
    shrinkage chosen from them."""

    count: list[int]
    total: Tensor
    square: Tensor
    weight: float | None = None

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
        channels, side: The level's shape.

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

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        triangle = channels * (channels + 1) // 2
        self.register_buffer("mean", torch.zeros(channels, side, side))
        self.register_buffer("whitener", torch.zeros(side * side, triangle, dtype=torch.float16))
        self.register_buffer("shrinkage", torch.zeros(()))
        self.channels = channels
        blocks = max(1, round(channels / self.BLOCK))
        self._edges = [channels * block // blocks for block in range(blocks + 1)]
        # Where each entry of the matrix stands in the packed row; what is above the diagonal, at the zero behind it.
        unpack = torch.full((channels, channels), triangle)
        unpack[tuple(torch.tril_indices(channels, channels))] = torch.arange(triangle)
        self.register_buffer("unpack", unpack, persistent=False)
        self._sums: _Sums | None = None

    def add(self, x: Tensor, first: int) -> None:
        """See `Reading.add`."""
        if self._sums is None:
            positions, channels = len(self.whitener), self.channels
            total = x.new_zeros(FOLDS, positions, channels)
            self._sums = _Sums([0] * FOLDS, total, x.new_zeros(*total.shape, channels))
        for fold in range(FOLDS):
            part = self._by_position(x[(fold - first) % FOLDS :: FOLDS])  # (positions, n, C)
            self._sums.count[fold] += part.shape[1]
            self._sums.total[fold] += part.sum(1)
            self._sums.square[fold].baddbmm_(part.transpose(1, 2), part)

    def solve(self, without: int | None = None) -> None:
        """See `Reading.solve`."""
        assert self._sums is not None, "nothing was added"
        weight = self._sums.weight = self._sums.weight or self._choose_shrinkage(self._sums)
        mean, scatter = self._sums.moments([fold for fold in range(FOLDS) if fold != without])
        factor = torch.linalg.cholesky(_shrink(scatter, scatter.mean(0), weight))
        eye = torch.eye(factor.shape[-1], device=factor.device).expand_as(factor)
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        rows, columns = torch.tril_indices(self.channels, self.channels, device=inverse.device)
        self.whitener.copy_(inverse[:, rows, columns])
        self.mean.copy_(mean.T.reshape(self.mean.shape))
        self.shrinkage.fill_(weight)

    def release(self) -> None:
        """See `Reading.release`."""
        self._sums = None

    def forward(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distance a channel, (N, 1, H, W), of (N, C, H, W) features: near 1 for good ones."""
        n, _, height, width = x.shape
        centred = (x - self.mean).flatten(2).permute(2, 0, 1)  # (HW, N, C)
        packed = torch.cat([self.whitener, torch.zeros_like(self.whitener[:, :1])], 1)
        white = []
        for start, stop in pairwise(self._edges):
            part = packed[:, self.unpack[start:stop, :stop].T.flatten()].float().reshape(-1, stop, stop - start)
            white.append(torch.bmm(centred[:, :, :stop], part))
        every = torch.cat(white, 2)  # (HW, N, C)
        # x * x, since ONNX Runtime takes ten times as long for the Pow that square() becomes.
        return (every * every).mean(2).T.reshape(n, 1, height, width)

    @staticmethod
    def _by_position(x: Tensor) -> Tensor:
        """(N, C, H, W) to (H*W, N, C)."""
        return x.flatten(2).permute(2, 0, 1)

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


class SharedGaussian(PositionGaussian):
    """One Gaussian for all positions of a level: tiles of a larger image stand anywhere, so positions mean nothing.

    Args:
        channels: The level's channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, side=1)

    def forward(self, x: Tensor) -> Tensor:
        """As `PositionGaussian.forward`, at any H and W."""
        n, channels, height, width = x.shape
        apart = x.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        return super().forward(apart).reshape(n, 1, height, width)

    @staticmethod
    def _by_position(x: Tensor) -> Tensor:
        """(N, C, H, W) to (1, N*H*W, C): all stand at one position."""
        return x.permute(0, 2, 3, 1).reshape(1, -1, x.shape[1])


@dataclass
class _Drawn:
    """A fair draw from all residuals, (K, C), with the fold of each, and the moments of all."""

    rows: Tensor
    folds: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    lots: Tensor = field(default_factory=lambda: torch.zeros(0))
    moments: Moments = field(default_factory=Moments)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    members: Tensor | None = None

    def add(self, x: Tensor, first: int, most: int) -> None:
        """Add (N, C, H, W) residuals; `most` are kept."""
        self.moments.add(x)
        rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
        folds = (torch.arange(len(x)) + first).remainder(FOLDS).repeat_interleave(x[0, 0].numel())
        # Whoever has drawn the smallest lots stays, which is fair however many are still to come.
        lots = torch.cat([self.lots, torch.rand(len(rows), generator=self.generator)])
        self.lots, kept = lots.topk(min(most, len(lots)), largest=False)
        self.rows = torch.cat([self.rows, rows])[kept.to(rows.device)]
        self.folds = torch.cat([self.folds, folds])[kept]


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
        self._drawn: _Drawn | None = None

    def add(self, x: Tensor, first: int) -> None:
        """See `Reading.add`."""
        if self._drawn is None:
            self._drawn = _Drawn(x.new_zeros(0, x.shape[1]))
        self._drawn.add(x, first, self.CANDIDATES)

    def solve(self, without: int | None = None) -> None:
        """See `Reading.solve`. Who is remembered is chosen once, from all; without a fold, its own are left out."""
        assert self._drawn is not None, "nothing was added"
        drawn = self._drawn
        if drawn.members is None:
            drawn.members = self._choose(drawn)
        members = drawn.members
        self.bank = drawn.rows[members if without is None else members[drawn.folds[members] != without]].half()

    def release(self) -> None:
        """See `Reading.release`."""
        self._drawn = None

    def forward(self, x: Tensor) -> Tensor:
        """Squared distance to the nearest of the bank, over its mean for good ones: (N, 1, H, W) of (N, C, H, W)."""
        n, channels, height, width = x.shape
        white = self._whiten(x.permute(0, 2, 3, 1).reshape(-1, channels))
        return (self._nearest(white, self.bank) / self.scale).reshape(n, 1, height, width)

    def _choose(self, drawn: _Drawn) -> Tensor:
        """Set whitener and scale, whiten the candidates, and give the places of the bank's members among them."""
        mean, covariance = drawn.moments.solve()
        self.mean.copy_(mean)
        self.whitener.copy_(torch.linalg.inv(torch.linalg.cholesky(covariance + _ridge(covariance))))
        drawn.rows = self._whiten(drawn.rows)
        members = choose_coreset(drawn.rows, min(self.most, len(drawn.rows)), project=64).cpu()
        distances = []
        for fold in range(FOLDS):
            others = members[drawn.folds[members] != fold]
            own = drawn.rows[drawn.folds == fold]
            if len(others) and len(own):
                distances.append(self._nearest(own, drawn.rows[others]))
        self.scale.fill_(float(torch.cat(distances).mean()) if distances else 1.0)
        return members

    def _whiten(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) @ self.whitener.T

    def _nearest(self, white: Tensor, bank: Tensor) -> Tensor:
        """(rows,) squared distance a channel."""
        parts = [squared_distances(white, part.float()).amin(1) for part in torch.split(bank, self.CHUNK)]
        return torch.stack(parts).amin(0).clamp_min(0) / white.shape[1]


ENOUGH = 4.0
"""Spreads beyond which a defect counts no more: it is found anyway, and the few plain ones would decide everything."""


def separation(good: Tensor, implanted: Tensor) -> float:
    """How many spreads of good images' scores those with an implanted defect lie above them, on average, up to a limit.

    Args:
        good: (N,) logarithms of scores.
        implanted: (M,) the same.
    """
    spreads = (implanted - good.mean()) / good.std().clamp_min(LEAST)
    return float(spreads.clamp(-ENOUGH, ENOUGH).mean())


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


def _resize_before_load(reading: NearestResidual, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make room for the bank of a state, whose size follows from the images it was fitted on."""
    if f"{prefix}bank" in state:
        reading.bank = torch.empty_like(state[f"{prefix}bank"], device=reading.bank.device)
