"""What good images look like, and how far off another one is: by position and as a whole.

NearestGood     the distance to the most similar vector of a good image, wherever it stood
WholeImages     what the principal axes of good images leave of an image: all positions together
"""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from makel.methods.layers import LEAST, choose_coreset, to_side

LEAST_STD = 1e-3
"""A standard deviation below this is taken for this: what hardly differs would else be told apart by rounding, which
every runtime does in its own way."""


class NearestGood(nn.Module):
    """A bank of vectors of good images, each half of their channels on one scale.

    Args:
        channels: Channels of a vector, C.
        most: Vectors remembered at most.

    Attributes:
        centre: (C,) buffer, subtracted from every vector; distances do not need it, their rounding does.
        scale: (C,) buffer, one value for each half: features and residuals count alike, and among features each channel
            as it varies.
        bank: (K, C) half-precision buffer.
    """

    CANDIDATES = 60_000
    """Vectors the bank is chosen among, as many of every image."""
    CHUNK = 512
    """Members compared with at a time; bounds the memory a batch needs."""
    LEAST_SQUARE = 1e-4
    """A squared distance below this is taken for this; vectors have a mean square of 2."""

    centre: Tensor
    scale: Tensor
    bank: Tensor

    def __init__(self, channels: int, most: int) -> None:
        super().__init__()
        self.most = most
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("bank", torch.zeros(0, channels, dtype=torch.float16))
        self.register_load_state_dict_pre_hook(_resize_before_load)  # type: ignore[no-untyped-call]

    def draw(self, x: Tensor, n_images: int, generator: torch.Generator) -> Tensor:
        """(K, C) half-precision candidates of (N, C, h, w), as many of every one of `n_images` images."""
        rows = x.flatten(2).transpose(1, 2)  # (N, positions, C)
        count = min(rows.shape[1], ceil(self.CANDIDATES / n_images))
        kept = [torch.randperm(rows.shape[1], generator=generator)[:count].to(x.device) for _ in rows]
        return torch.cat([row[index] for row, index in zip(rows, kept, strict=True)]).half()

    def learn(self, rows: Tensor) -> None:
        """Set the buffers from (M, C) candidates."""
        rows = rows.float()
        self.centre.copy_(rows.mean(0))
        centred = rows - self.centre
        halves = centred.square().mean(0).reshape(2, -1).sum(1).sqrt()
        halves = halves.clamp_min(LEAST_STD * rows.square().sum(1).mean().sqrt()).clamp_min(LEAST)
        self.scale.copy_(halves.repeat_interleave(rows.shape[1] // 2))
        scaled = centred / self.scale
        self.bank = scaled[choose_coreset(scaled, min(self.most, len(scaled)), project=64)].half()

    def forward(self, x: Tensor) -> Tensor:
        """Distance to the nearest of the bank, (N, 1, h, w) of (N, C, h, w)."""
        n, channels, height, width = x.shape
        rows = (x.permute(0, 2, 3, 1).reshape(-1, channels) - self.centre) / self.scale
        # The row's own square is the same for the whole bank, and is added to the least alone.
        # x * x, since ONNX Runtime takes ten times as long for the Pow that square() becomes.
        parts = [
            ((part * part).sum(1) - 2 * (rows @ part.T)).amin(1) for part in torch.split(self.bank.float(), self.CHUNK)
        ]
        least = torch.stack(parts).amin(0) + (rows * rows).sum(1)
        return least.clamp_min(self.LEAST_SQUARE).sqrt().reshape(n, 1, height, width)


class WholeImages(nn.Module):
    """The linear autoencoder of whole images: good ones, each one vector, and the axes along which they differ.

    Products of several kinds or lights differ in all positions at once, and in ways that good images have shown.

    Args:
        channels: Channels of the features, C.
        shape: Their rows and columns.

    Attributes:
        mean: (D,) buffer, D being C times the cells of the grid.
        std: (D,) buffer, one value for all cells of a channel.
        axes: (K, D) half-precision buffer, orthonormal.
    """

    GRID = 8
    """Cells of the grid a side, at most."""
    EXPLAINED, MOST_AXES = 0.97, 256
    """Axes are taken until they explain this share of the variance, or there are so many."""
    MOST_IMAGES = 1024
    """Good images that axes are found from, at most, spread over all."""

    mean: Tensor
    std: Tensor
    axes: Tensor

    def __init__(self, channels: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.channels = channels
        self.cells = (min(self.GRID, shape[0]), min(self.GRID, shape[1]))
        size = channels * self.cells[0] * self.cells[1]
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("axes", torch.zeros(0, size, dtype=torch.float16))
        self.register_load_state_dict_pre_hook(_resize_before_load)  # type: ignore[no-untyped-call]

    def shrink(self, x: Tensor) -> Tensor:
        """(N, D) half-precision vectors of (N, C, h, w) features."""
        return to_side(x, self.cells).flatten(1).half()

    def learn(self, images: Tensor) -> None:
        """Set the buffers from (M, D) vectors of good images."""
        rows = images[:: ceil(len(images) / self.MOST_IMAGES)].float()
        self.mean.copy_(rows.mean(0))
        std = rows.reshape(len(rows), self.channels, -1).std((0, 2), correction=0)
        self.std.copy_(std.clamp_min(LEAST_STD).repeat_interleave(rows.shape[1] // self.channels))
        centred = (rows - self.mean) / self.std
        # There are more dimensions than images: the images' products with each other have the same axes, sooner.
        values, vectors = torch.linalg.eigh((centred @ centred.T).double())
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        wanted = int((values.cumsum(0) < self.EXPLAINED * values.sum()).sum()) + 1
        count = min(wanted, self.MOST_AXES, len(rows) - 1)
        scaled = vectors[:, :count] / values[:count].sqrt().clamp_min(LEAST)
        self.axes = (scaled.T.float() @ centred).half()

    def forward(self, x: Tensor) -> Tensor:
        """What `distance` gives of (N, C, h, w) features."""
        return self.distance(to_side(x, self.cells).flatten(1))

    def distance(self, images: Tensor) -> Tensor:
        """Root mean square over the channels of what is left of (N, D): (N, 1, rows, columns) of the grid."""
        vectors, axes = (images - self.mean) / self.std, self.axes.float()
        left = (vectors - (vectors @ axes.T) @ axes).reshape(-1, self.channels, *self.cells)
        distance: Tensor = (left * left).mean(1, keepdim=True).clamp_min(LEAST).sqrt()
        return distance


def _resize_before_load(reading: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Make room for what of a state has a size that follows from the images it was fitted on."""
    for name, buffer in reading.named_buffers(recurse=False):
        if f"{prefix}{name}" in state:
            setattr(reading, name, torch.empty_like(state[f"{prefix}{name}"], device=buffer.device))
