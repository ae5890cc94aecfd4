"""From the scores of a model to a verdict and its regions, zones and minimum area included.

Without zones an image is rejected if its score is above the image threshold. A zone that is judged by itself is another
part, with the highest value of the anomaly map inside as its score and a threshold at its own budget; the image score
then covers the rest. An image is rejected if any part is. What all parts together promise is the sum of what each does.

With a minimum area, a part is rejected only if it shows a region of at least that area as well. That can only turn
rejects into passes: false rejects stay within what was promised, and defects below the minimum are missed on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, nextafter

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.calibration import Calibration
from makel.model.layout import Layout, ModelLayout, place, place_on_input
from makel.model.manifest import Draft
from makel.model.region_stream import RegionStream
from makel.model.regions import find_regions
from makel.model.zones import Zones
from makel.types import Region, ZoneVerdict


@dataclass(frozen=True)
class Judgement:
    """What follows from a model's scores for one image; the fields are those of `Verdict`."""

    rejected: bool
    score: float
    p_value: float
    zones: tuple[ZoneVerdict, ...]


class Rules:
    """The calibration and zones of one model, and what follows from them. They may be shared by threads.

    Attributes:
        calibration: The thresholds of the image.
        zones: The model's zones; without any where it has none.
        layout: Where they lie on the model's input.
    """

    def __init__(self, manifest: Draft) -> None:
        self.calibration: Calibration = manifest.calibration
        self.zones = manifest.zones or Zones()
        self.layout: ModelLayout = place_on_input(self.zones, manifest.preprocessing.shape)
        self._place = lru_cache(maxsize=2)(self._layout_of)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the zones by label; "" for none."""
        return ("", *(zone.name for zone in self.zones.zones))

    def decide(
        self, score: float, small: NDArray[np.float32] | None, regions: Sequence[Region] | None = None
    ) -> Judgement:
        """The judgement of an image.

        Args:
            score: What the model gives.
            small: (height, width) float32 of the model's input, the map it gives; None of a model with tiles, which has
                no zones.
            regions: The regions of the image, none of them below the minimum area; looked at only where there is one.
        """
        parts = [("", score, self.calibration)]
        if self.zones.judged and small is not None:
            peaks = self.layout.peaks(small)[1:].tolist()
            parts += [
                (zone.name, peak, zone.calibration)
                for zone, peak in zip(self.zones.judged, peaks, strict=True)
                if zone.calibration
            ]
        own = {name for name, _, _ in parts}
        shown = {region.zone if region.zone in own else "" for region in regions or ()}
        rejected = [
            value > calibration.image_threshold and (self.zones.min_area_px is None or name in shown)
            for name, value, calibration in parts
        ]
        total = sum(calibration.promised_false_reject for _, _, calibration in parts)
        p_values = [calibration.p_value(value) for _, value, calibration in parts]
        # Bonferroni, weighted by the budgets: at most the total exactly where one part's is at most its own.
        p_value = min(
            p * (total / calibration.promised_false_reject)
            for p, (_, _, calibration) in zip(p_values, parts, strict=True)
        )
        return Judgement(
            rejected=any(rejected),
            score=max(self._in_units_of_score(value, calibration) for _, value, calibration in parts),
            p_value=min(1.0, p_value),
            zones=tuple(
                ZoneVerdict(name, "reject" if out else "pass", value, calibration.image_threshold, p)
                for (name, value, calibration), out, p in zip(parts[1:], rejected[1:], p_values[1:], strict=True)
            ),
        )

    def enlarge(self, small: NDArray[np.float32], width_px: int, height_px: int) -> NDArray[np.float32]:
        """The map at an image's own size, zero where nothing is inspected."""
        anomaly_map = np.asarray(cv2.resize(small, (width_px, height_px), interpolation=cv2.INTER_LINEAR), np.float32)
        if self.zones.zones:
            anomaly_map[self._place(width_px, height_px).ignored] = 0
        return anomaly_map

    def find(self, anomaly_map: NDArray[np.float32]) -> tuple[Region, ...]:
        """The regions of a map at the image's own size: above the threshold of their zone, of the minimum area."""
        height, width = anomaly_map.shape
        layout = self._place(width, height) if self.zones.zones else None
        regions = find_regions(
            anomaly_map,
            self.calibration.pixel_threshold if layout is None else self.thresholds(layout),
            min_area_px=self._min_area_px(width, height),
            labels=None if layout is None else layout.labels,
            names=self.names,
        )
        return self.measure(regions, width, height)

    def follow(self, width_px: int, height_px: int) -> RegionStream:
        """What finds the regions of a map that comes in bands; of a model with tiles, which has no zones."""
        scale = self.zones.pixels_per_reference(width_px, height_px)
        return RegionStream(
            self.calibration.pixel_threshold, min_area_px=max(1.0, (self.zones.min_area_px or 0) * scale)
        )

    def measure(self, regions: tuple[Region, ...], width_px: int, height_px: int) -> tuple[Region, ...]:
        """The regions of an image of this size with their areas in square millimetres, where a scale is given."""
        if self.zones.mm_per_px is None:
            return regions
        mm2 = self.zones.mm_per_px**2 / self.zones.pixels_per_reference(width_px, height_px)
        return tuple(replace(region, area_mm2=region.area_px * mm2) for region in regions)

    def judge(self, score: float, small: NDArray[np.float32], width_px: int, height_px: int) -> Judgement:
        """The judgement of an image of this size, where its regions are not wanted."""
        if self.zones.min_area_px is None:
            return self.decide(score, small)
        return self.decide(score, small, self.find(self.enlarge(small, width_px, height_px)))

    def mask(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(H, W) bool: the pixels of the regions that `find` gives for a map at the image's own size."""
        height, width = anomaly_map.shape
        layout = self._place(width, height) if self.zones.zones else None
        above = anomaly_map > (self.calibration.pixel_threshold if layout is None else self.thresholds(layout))
        if self.zones.min_area_px is None:
            return np.asarray(above)
        _, regions, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8, ltype=cv2.CV_32S)
        kept = stats[:, cv2.CC_STAT_AREA] >= self._min_area_px(width, height)
        kept[0] = False  # the background
        return np.asarray(kept[np.asarray(regions, np.int32)])

    def thresholds(self, layout: Layout) -> NDArray[np.float32]:
        """(h, w) float32: the level a pixel has to exceed; infinite where nothing is inspected."""
        levels = [self.calibration.pixel_threshold] + [
            (zone.calibration or self.calibration).pixel_threshold for zone in self.zones.zones
        ]
        found = np.array(levels, np.float32)[layout.labels]
        found[layout.ignored] = np.inf
        return np.asarray(found, np.float32)

    def _min_area_px(self, width_px: int, height_px: int) -> float:
        return (self.zones.min_area_px or 0) * self.zones.pixels_per_reference(width_px, height_px)

    def _layout_of(self, width_px: int, height_px: int) -> Layout:
        return place(self.zones, width_px, height_px)

    def _in_units_of_score(self, value: float, calibration: Calibration) -> float:
        """A part's score so scaled that its threshold becomes the image's; on the same side of it, rounding or not."""
        if calibration is self.calibration:
            return value
        ours, theirs = self.calibration.image_threshold, calibration.image_threshold
        # Where a threshold is not above zero no factor does it; then the two are brought together by a shift.
        factor = ours / theirs if min(ours, theirs) > 0 else 0.0
        scaled = value * factor if 0 < factor < inf else ours + (value - theirs)
        return max(scaled, nextafter(ours, inf)) if value > theirs else min(scaled, ours)
