"""Which images a report shows, and how: picture, truth and anomaly map side by side, all maps in the same colours."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

PICTURE_PX = 224
"""Longer side of a picture in a report: about 10 kB each."""

Group = Literal["missed", "false reject", "barely caught", "nearly rejected", "clearly caught"]

_LIMITS: dict[Group, int] = {
    # in the order of the report: first what went wrong, then what nearly did
    "missed": 6,
    "false reject": 6,
    "barely caught": 3,
    "nearly rejected": 3,
    "clearly caught": 3,
}
_AT_THRESHOLD = 0.5
"""Colours in [0, 1]: 0 is the level of a typical good image, this the pixel threshold, 1 the hottest shown."""

_OUTLINE = (255, 255, 255)
_JPEG_QUALITY = 82


@dataclass(frozen=True)
class Exhibit:
    """One image worth showing.

    Attributes:
        group: Why it is shown.
        path: The image file.
        kind: The defect kind; "good" for good images.
        score: Raw image score.
        p_value: Share of good parts that would look at least this bad.
        image: (h, w, 3) uint8 RGB, at most `PICTURE_PX`.
        truth: (H, W) uint8, 1 on defect, at the map's size; None for good images and where nobody marked the defect.
        anomaly_map: (H, W) float32 at the model's input size.
    """

    group: Group
    path: Path
    kind: str
    score: float
    p_value: float
    image: NDArray[np.uint8] = field(repr=False)
    truth: NDArray[np.uint8] | None = field(repr=False)
    anomaly_map: NDArray[np.float32] = field(repr=False)


class Gallery:
    """Keeps the few most telling of any number of images: every miss and false reject there is room for, first."""

    def __init__(self, *, white_level: int | None) -> None:
        """Start empty.

        Args:
            white_level: The value of 16-bit images that is shown white; None for the brightest pixel of each.
        """
        self._white_level = white_level
        self._kept: dict[Group, list[Exhibit]] = {group: [] for group in _LIMITS}

    def offer(
        self,
        path: Path,
        kind: str,
        score: float,
        image: NDArray[Any],
        anomaly_map: NDArray[np.float32],
        truth: NDArray[np.uint8] | None,
        *,
        rejected: bool,
        p_value: float,
    ) -> None:
        """Keep an image where it is more telling than one that is kept.

        Args:
            path: The image file.
            kind: The defect kind; "good" for good images.
            score: Raw image score.
            image: Decoded pixels, any size.
            anomaly_map: (H, W) float32.
            truth: (H, W) uint8, 1 on defect, or None.
            rejected: The verdict.
            p_value: Share of good parts that would look at least this bad.
        """
        groups: tuple[Group, ...]
        if kind == "good":
            groups = ("false reject",) if rejected else ("nearly rejected",)
        else:
            groups = ("barely caught", "clearly caught") if rejected else ("missed",)
        for group in groups:
            kept = self._kept[group]
            if len(kept) == _LIMITS[group] and _order(group, score) >= _order(group, kept[-1].score):
                continue
            picture = thumbnail(image, white_level=self._white_level)
            kept.append(Exhibit(group, path, kind, score, p_value, picture, truth, anomaly_map.copy()))
            kept.sort(key=lambda exhibit: _order(exhibit.group, exhibit.score))
            del kept[_LIMITS[group] :]

    def exhibits(self) -> tuple[Exhibit, ...]:
        """What was kept, group by group, the most telling of each first; no image twice."""
        seen: set[Path] = set()
        chosen = []
        for kept in self._kept.values():
            for exhibit in kept:
                if exhibit.path not in seen:
                    seen.add(exhibit.path)
                    chosen.append(exhibit)
        return tuple(chosen)


@dataclass(frozen=True)
class Heat:
    """One colour scale for all maps of a report, so that equal colours mean equal scores.

    Attributes:
        typical: Score of an unremarkable pixel.
        threshold: The pixel threshold.
        hottest: The highest score shown.
    """

    typical: float
    threshold: float
    hottest: float

    @classmethod
    def over(cls, maps: Sequence[NDArray[np.float32]], pixel_threshold: float) -> Heat:
        """The scale for these maps; the median of their medians stands for the unremarkable pixel."""
        if not maps:
            return cls(pixel_threshold, pixel_threshold, pixel_threshold)
        typical = float(np.median([np.median(each) for each in maps]))
        return cls(typical, pixel_threshold, max(float(each.max()) for each in maps))

    @property
    def end(self) -> float:
        """The score of the last colour: the hottest, yet at least as far above the threshold as typical is below."""
        return max(self.hottest, 2 * self.threshold - self.typical)

    def level(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.float64]:
        """Colours in [0, 1]: linear up to the threshold, with the logarithm of the excess above it."""
        span = self.threshold - self.typical
        if span <= 0:  # half of all pixels are above the threshold: only above and below are left to tell apart
            return (anomaly_map > self.threshold).astype(np.float64)
        excess = (anomaly_map.astype(np.float64) - self.typical) / span
        top = (self.end - self.typical) / span
        above = _AT_THRESHOLD + (1 - _AT_THRESHOLD) * np.log(np.maximum(excess, 1)) / np.log(top)
        return np.clip(np.where(excess > 1, above, _AT_THRESHOLD * excess), 0, 1)

    def draw(self, anomaly_map: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB of the given size: the map in colours, outlined where it exceeds the threshold."""
        size = (shape[1], shape[0])
        resized = np.asarray(cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR), np.float32)
        picture = colours(self.level(resized))
        return _outlined(picture, (resized > self.threshold).astype(np.uint8))


def thumbnail(image: NDArray[Any], *, white_level: int | None = None, side_px: int = PICTURE_PX) -> NDArray[np.uint8]:
    """A small picture for people.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) RGB; uint8, uint16, or float32 in [0, 1].
        white_level: The value of 16-bit images that is shown white; None for the brightest pixel.
        side_px: The longer side of the picture.

    Returns:
        (h, w, 3) uint8 RGB with the image's aspect.
    """
    scale = side_px / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    if image.dtype == np.uint16:
        white = white_level or max(1, int(image.max()))
    else:
        white = 255 if image.dtype == np.uint8 else 1
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    small = np.clip(small.astype(np.float32).reshape(size[1], size[0], -1) * (255 / white), 0, 255)
    return np.ascontiguousarray(np.broadcast_to(np.rint(small), (size[1], size[0], 3)), np.uint8)


def outline_truth(image: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 RGB: the picture, darkened but for the marked defect, which is outlined."""
    size = (image.shape[1], image.shape[0])
    marked = np.asarray(cv2.resize(truth, size, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    dimmed = np.where(marked[..., None] > 0, image, image // 2).astype(np.uint8)
    return _outlined(dimmed, marked)


def colours(level: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(..., 3) uint8 RGB of levels in [0, 1]. Inferno is perceptually uniform and keeps its order without colour."""
    index = np.rint(255 * np.atleast_2d(level)).astype(np.uint8)
    rgb = cv2.cvtColor(cv2.applyColorMap(index, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.asarray(rgb, np.uint8).reshape(*np.shape(level), 3)


def data_uri(picture: NDArray[np.uint8]) -> str:
    """(h, w, 3) uint8 RGB as a JPEG that stands in the page itself."""
    _, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _order(group: Group, score: float) -> float:
    """Ascending from the most telling: of misses and near misses the lowest score, of everything else the highest."""
    return score if group in ("missed", "barely caught") else -score


def _outlined(picture: NDArray[np.uint8], inside: NDArray[np.uint8]) -> NDArray[np.uint8]:
    # Around the region, not on its rim: a region of one pixel stays visible.
    # And with a dark seam, or white vanishes on white.
    for width_px, colour in ((2, (0, 0, 0)), (1, _OUTLINE)):
        grown = cv2.dilate(inside, np.ones((2 * width_px + 1, 2 * width_px + 1), np.uint8))
        picture[(grown > 0) & (inside == 0)] = colour
    return picture
