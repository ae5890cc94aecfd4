"""Which pictures show the same thing once more: re-saved, converted, or frames of one part that did not move.

Two of those are not two parts. One in the fit and the other among the held-out images would promise more than new parts
keep, since the threshold then rests on scores of what was learned by heart.

Each picture becomes a thumbnail of 64 x 64, blurred so that compression and the camera's noise hardly show. One is
explained by the other as far as a shift of a pixel or so, a little turn, brightness and uneven light can (a linear
fit); they are alike where

- nowhere in the thumbnail is more left than `MOST_LEFT` of 255 grey levels: a part differs from its neighbour in some
  place, however still both lie, and
- what is left is at most `MOST_SHARE` of what is left between a picture and the closest quarter of the others: where
  parts are so plain that all look alike, being alike says nothing, and no two of them are; unless they are equal.

Where the numbers come from: of seven real sets of parts that were taken once, the closest two leave 1.5 (solar cells),
of the others 6.8 and more; JPEG down to quality 60 leaves 1.0 at most, noise of 6 grey levels 0.8, a frame of 512 px
that moved by one pixel 1.2. What moved further, or was lit differently from place to place, is told apart: naming the
part is for those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import ImageError
from makel.images.reading import read, read_header, work_ahead
from makel.images.rows import read_reduced

SIDE_PX = 64
MOST_LEFT = 1.25
MOST_SHARE = 0.4

_BLUR_PX = 1.4
_LARGE_PX = 1 << 24
"""Pixels above which an image is read reduced, to save memory."""

_NEIGHBOURS = 8
"""Closest others, by the cosine of the thumbnails, that each picture is compared with."""

_SAMPLE = 64
"""Others, at most, that tell how far apart pictures of a set are."""

_NOTHING = 0.08
"""Grey levels below which what is usually left is noise and rounding: parts too plain to be told apart."""

_EDGE_PX = 4
"""Cells at the edge that do not count: what a shift brings in is in one picture alone."""

_STEP_PX = 256
"""Images are first averaged to this side in their own type, which is quick."""

_ROWS = 1024
_COLUMNS = 16
_BLACK = 4

Thumbnail = NDArray[np.float32]
"""(64, 64, 3) RGB, in 0 to 255 of an 8-bit image, or 0 to 65535 of a 16-bit one."""


def thumbnails(paths: Iterable[Path]) -> list[Thumbnail | None]:
    """The thumbnail of each image, None where it cannot be read: whoever needs its pixels says why."""

    def work(path: Path) -> Thumbnail | None:
        try:
            status = path.stat()
            return _thumbnail(path, status.st_size, status.st_mtime_ns)
        except (ImageError, OSError):
            return None

    return [found for _, found in work_ahead(work, paths, workers=2, ahead=8)]


@lru_cache(maxsize=4096)
def _thumbnail(path: Path, _size: int, _mtime_ns: int) -> Thumbnail:
    """Remembered as long as size and time stay: loading and splitting both ask."""
    header = read_header(path)
    large = header.width_px * header.height_px > _LARGE_PX
    return shrink(read_reduced(path, 16 * SIDE_PX) if large else read(path))


def shrink(pixels: NDArray[Any]) -> Thumbnail:
    """(H, W) or (H, W, 3) pixels to a thumbnail; an axis is averaged, or interpolated where it has fewer pixels."""
    height, width = pixels.shape[:2]
    small = cv2.resize(pixels, (min(width, _STEP_PX), min(height, _STEP_PX)), interpolation=cv2.INTER_AREA)
    small = np.asarray(small, np.float32)  # rounded once, where 64 of them are averaged below
    small = cv2.resize(small, (min(width, SIDE_PX), min(height, SIDE_PX)), interpolation=cv2.INTER_AREA)
    small = cv2.resize(small, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_LINEAR)
    return np.asarray(small if small.ndim == 3 else np.repeat(small[..., None], 3, axis=2), np.float32)


def groups(found: Sequence[Thumbnail | None], n_known: int = 0) -> NDArray[np.intp]:
    """Number the pictures so that those that are alike, directly or through others, have the same number.

    Args:
        found: Their thumbnails; one that is None is like no other.
        n_known: So many of the first are not compared among each other.

    Returns:
        (N,) numbers from 0, in the order in which they first appear.
    """
    numbers = list(range(len(found)))
    there = [index for index, each in enumerate(found) if each is not None]
    pictures = [each for each in found if each is not None]
    for one, other in _pairs(pictures, sum(index < n_known for index in there)):
        first, last = sorted((numbers[there[one]], numbers[there[other]]))
        numbers = [first if number == last else number for number in numbers]
    return np.unique(numbers, return_inverse=True)[1].astype(np.intp)


def pack(found: Sequence[Thumbnail | None], white_level: int | None) -> bytes:
    """Thumbnails as one JPEG, `_COLUMNS` side by side; black for one that is None, and to fill the last row.

    Args:
        found: The thumbnails.
        white_level: The value of 16-bit images that becomes 255; None for 8-bit images.
    """
    rows = -(-len(found) // _COLUMNS)
    every = np.zeros((rows * _COLUMNS, SIDE_PX, SIDE_PX, 3), np.float32)
    for place, each in zip(every, found, strict=False):
        place[:] = 0 if each is None else each * np.float32(255 / (white_level or 255))
    pixels = np.clip(np.rint(every), 0, 255).astype(np.uint8)
    page = pixels.reshape(rows, _COLUMNS, SIDE_PX, SIDE_PX, 3).swapaxes(1, 2)
    whole = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    quality = (cv2.IMWRITE_JPEG_QUALITY, 95)
    _, data = cv2.imencode(".jpg", page.reshape(rows * SIDE_PX, _COLUMNS * SIDE_PX, 3), [*quality, *whole])
    return data.tobytes()


def unpack(data: bytes) -> list[Thumbnail | None]:
    """What `pack` wrote: thumbnails in 0 to 255, about as they were; None where it is black."""
    page = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), np.float32)
    pictures = page.reshape(-1, SIDE_PX, _COLUMNS, SIDE_PX, 3).swapaxes(1, 2).reshape(-1, SIDE_PX, SIDE_PX, 3)
    return [each if each.max() > _BLACK else None for each in pictures]


def _pairs(found: Sequence[Thumbnail], n_known: int) -> list[tuple[int, int]]:
    """The pairs that are alike, among each picture's closest."""
    if len(found) < 3:  # nothing tells how far apart two pictures of this product are
        return [(0, 1)] if len(found) == 2 and n_known < 2 and np.array_equal(found[0], found[1]) else []
    compared = _Compared(found)
    pairs = []
    for one, other in sorted({(min(pair), max(pair)) for pair in _closest(compared.pictures)}):
        if other < n_known:
            continue
        if compared.alike(one, other):
            pairs.append((one, other))
    return pairs


class _Compared:
    """Pictures of one set, compared as far as anybody asks."""

    def __init__(self, found: Sequence[Thumbnail]) -> None:
        self.pictures = _levelled(np.stack(found))  # (N, S, S, 3)
        self._left: dict[tuple[int, int], tuple[float, float]] = {}
        self._usual: dict[int, float] = {}

    def alike(self, one: int, other: int) -> bool:
        """Whether two show the same."""
        if np.array_equal(self.pictures[one], self.pictures[other]):
            return True
        pairs = (one, other), (other, one)
        if any(self.left(*pair)[0] > MOST_LEFT for pair in pairs):
            return False
        left = max(self.left(*pair)[1] for pair in pairs)
        typical = min(self._typical(one), self._typical(other))
        return typical > _NOTHING and left <= MOST_SHARE * typical

    def left(self, one: int, other: int) -> tuple[float, float]:
        """What of one the other does not explain: the largest value, and the root mean square."""
        if (one, other) not in self._left:
            rest = _unexplained(self.pictures[one], self.pictures[other])
            self._left[one, other] = float(np.abs(rest).max()), float(np.sqrt((rest**2).mean()))
        return self._left[one, other]

    def _typical(self, one: int) -> float:
        """The root mean square of what is left between a picture and the closest quarter of the others."""
        if one not in self._usual:
            others = [other for other in range(len(self.pictures)) if other != one]
            others = others[:: -(-len(others) // _SAMPLE)]
            self._usual[one] = sorted(self.left(one, other)[1] for other in others)[len(others) // 4]
        return self._usual[one]


def _levelled(found: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, S, S, 3) thumbnails as luminance and halved chrominance in 0 to 255, blurred: JPEG keeps colour coarsely."""
    if (brightest := found.max()) > 255:  # 16-bit, of which a camera may fill 10 or 12
        found = found * np.float32(255 / brightest)
    pictures = np.empty_like(found)
    for index, each in enumerate(found):
        picture = cv2.cvtColor(each, cv2.COLOR_RGB2YCrCb)
        picture[..., 1:] *= 0.5
        pictures[index] = cv2.GaussianBlur(picture, (0, 0), _BLUR_PX)
    return pictures


_AXIS = np.linspace(-1, 1, SIDE_PX, dtype=np.float32)
_Y, _X = np.meshgrid(_AXIS, _AXIS, indexing="ij")
_LIGHT = np.stack([np.ones_like(_X), _X, _Y, _X * _X, _X * _Y, _Y * _Y])
"""(6, S, S): a light that changes slowly from place to place."""


def _unexplained(picture: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is left of one (S, S, 3) picture after a linear fit of the other, shifted, turned, lit and scaled."""
    down, along = np.gradient(other, axis=(0, 1))
    turned = _X[..., None] * down - _Y[..., None] * along
    grown = _X[..., None] * along + _Y[..., None] * down
    terms = np.zeros((5 + len(_LIGHT), *other.shape), np.float32)
    terms[:5] = other, down, along, turned, grown
    terms[5:, ..., 0] = _LIGHT
    inside = (slice(_EDGE_PX, -_EDGE_PX, 2),) * 2
    basis = terms[(slice(None), *inside)].reshape(len(terms), -1)
    wanted = picture[inside].ravel()
    gram = (basis @ basis.T).astype(np.float64)
    weights = np.linalg.lstsq(gram, (basis @ wanted).astype(np.float64), rcond=1e-9)[0]
    return np.asarray(wanted - weights.astype(np.float32) @ basis, np.float32)


def _closest(pictures: NDArray[np.float32]) -> Iterator[tuple[int, int]]:
    """Each picture with its few closest others, by the cosine of their luminance without the slow light."""
    flat = pictures[..., 0].reshape(len(pictures), -1)
    slow = np.linalg.qr(_LIGHT.reshape(len(_LIGHT), -1).T)[0]
    flat = flat - (flat @ slow) @ slow.T
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.float32(1e-6))
    count = min(_NEIGHBOURS, len(flat) - 1)
    for start in range(0, len(flat), _ROWS):
        cosines = flat[start : start + _ROWS] @ flat.T
        cosines[np.arange(len(cosines)), np.arange(start, start + len(cosines))] = -np.inf
        for row, nearest in enumerate(np.argpartition(-cosines, count - 1, axis=1)[:, :count], start=start):
            yield from ((row, int(other)) for other in nearest)
