"""Which part of the input counts: a part of the network, so that an exported model ignores what its zones ignore.

What is ignored is painted over before anything looks at the image. A feature sees far beyond its own position, and an
image is also read as a whole; weighing the map alone would let what is ignored into the score by either way. Painted
over, it cannot change a single bit of what the model gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from makel.errors import UsageError


class Inspected(nn.Module):
    """Two parts of the input: what is seen at all, and what the image score is taken from.

    Args:
        seen: (H, W) bool; the rest is painted over, and zero in the anomaly map.
        scored: (H, W) bool, within `seen`. The rest of `seen` is in the map and not in the image score.

    Raises:
        UsageError: The shapes differ, or nothing is scored.
    """

    mask: Tensor

    def __init__(self, seen: NDArray[np.bool_], scored: NDArray[np.bool_]) -> None:
        super().__init__()
        if seen.shape != scored.shape or seen.ndim != 2 or not (seen & scored).any():
            raise UsageError(
                f"seen {seen.shape} and scored {scored.shape} must be of one shape (H, W), with a pixel in both"
            )
        self._scored = (seen & scored).astype(np.float32)
        # Not in the weights: it follows from the zones in the manifest.
        self.register_buffer("mask", torch.from_numpy(seen.astype(np.float32))[None, None], persistent=False)

    def paint_over(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) with every channel's mean over what is seen in place of what is not.

        The image's own mean, so that light and contrast of the whole stay those of the part that counts.
        """
        mean = (image * self.mask).sum((2, 3), keepdim=True) / self.mask.sum()
        return image * self.mask + mean * (1 - self.mask)

    def positions(self, shape: Sequence[int]) -> Tensor:
        """Positions of a (rows, columns) map, flattened, at least in part on what is scored: (count,) int64."""
        # Worked out of the graph, where a number of positions that depends on data has no fixed shape.
        rows, columns = map(int, shape)  # tensors while the model is exported
        share = cv2.resize(self._scored, (columns, rows), interpolation=cv2.INTER_AREA)
        return torch.tensor(np.flatnonzero(share > 0).tolist(), dtype=torch.int64)
