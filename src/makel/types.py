"""Core types: the nouns every room of makel shares. All frozen; none knows about disks, networks or torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = TypeVar("Array")
"""`numpy.ndarray` on the inspecting side, `torch.Tensor` on the fitting side."""

Label = Literal["good", "defect"]

Result = Literal["pass", "reject"]
"""What is decided of an image, or of a zone of it."""

Shape = tuple[int, int]
"""Height and width, in pixels."""


def in_px(shape: Shape) -> str:
    """A height and width as people write a size, width x height: "416 x 160 px"."""
    height, width = shape
    return f"{width} x {height} px"


@dataclass(frozen=True)
class Sample:
    """One image on disk and what is known about it.

    Attributes:
        image_path: The image file.
        label: "good", "defect", or None where nobody said.
        kind: The defect kind as the dataset names it ("scratch"); "good" for good images, "" where unknown.
        mask_path: Ground-truth mask file of a defect (non-zero = defect), or None.
        group: The part, strip or lot it shows, where pictures share one: all of them go to one side of a split, and
            count once for the threshold. "" for a picture by itself.
    """

    image_path: Path
    label: Label | None = None
    kind: str = ""
    mask_path: Path | None = None
    group: str = ""


@dataclass(frozen=True)
class Split:
    """Images by use. `makel.datasets.split` builds it and refuses overlap and defects among the good.

    Attributes:
        fit: Good images the detector learns from.
        calibrate: Held-out good images the thresholds come from, one of each group.
        test: Labelled images, never seen by fitting or calibration.
        findings: What was found of images that are not independent of each other, one line each.
    """

    fit: tuple[Sample, ...]
    calibrate: tuple[Sample, ...]
    test: tuple[Sample, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores(Generic[Array]):
    """Raw scores of a batch: higher is worse; they depend on neither the batch nor any test set.

    Attributes:
        image: (N,) float32, one score an image.
        anomaly_map: (N, 1, H, W) float32, the score of each position.
    """

    image: Array
    anomaly_map: Array


@dataclass(frozen=True)
class Region:
    """One connected area of the thresholded anomaly map, in pixels of the original image.

    Attributes:
        box_px: x0, y0, x1, y1; x1 and y1 are exclusive.
        area_px: Number of pixels in the area.
        peak: Highest value of the anomaly map inside.
        zone: Name of the zone that most of it lies in, "" for none.
        area_mm2: The area in square millimetres, where the model has a scale.
    """

    box_px: tuple[int, int, int, int]
    area_px: int
    peak: float
    zone: str = ""
    area_mm2: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "box_px": list(self.box_px),
            "area_px": self.area_px,
            "peak": self.peak,
            "zone": self.zone,
            "area_mm2": self.area_mm2,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What `to_json` gave, now or before there were zones."""
        return cls(tuple(data["box_px"]), data["area_px"], data["peak"], data.get("zone", ""), data.get("area_mm2"))


@dataclass(frozen=True)
class ZoneVerdict:
    """What makel says of one zone that is judged by itself.

    Attributes:
        name: The zone.
        verdict: "pass" or "reject".
        score: Highest value of the anomaly map inside, at the model's input size.
        threshold: The zone is rejected when its score is above this.
        p_value: Share of good parts that would look at least this bad here, from the held-out good images.
    """

    name: str
    verdict: Result
    score: float
    threshold: float
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "verdict": self.verdict,
            "score": self.score,
            "threshold": self.threshold,
            "p_value": self.p_value,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        return cls(data["name"], data["verdict"], data["score"], data["threshold"], data["p_value"])


@dataclass(frozen=True)
class Verdict:
    """What makel says of one image.

    Attributes:
        verdict: "pass" or "reject".
        score: Raw image score, higher is worse. With zones that are judged by themselves, that of the worst part, in
            units of the image score: it is above `threshold` exactly if one part is above its own.
        threshold: An image is rejected when its score is above this; with a minimum area, only if a region is left.
        p_value: Share of good parts that would look at least this bad, from the held-out good images.
        regions: Where the anomaly map exceeds the pixel threshold, largest peak first.
        anomaly_map: (H, W) float32 at the image's own size; of a very large image read from a temporary file as it is
            looked at, and then read-only.
        model_id: The model that said it.
        elapsed_ms: Time from the decoded image to this verdict, in milliseconds; decoding is not inside.
        zones: One for each zone that is judged by itself.
    """

    verdict: Result
    score: float
    threshold: float
    p_value: float
    regions: tuple[Region, ...]
    anomaly_map: NDArray[np.float32] = field(repr=False)
    model_id: str
    elapsed_ms: float
    zones: tuple[ZoneVerdict, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The documented JSON keys of a verdict, without the map and the path."""
        return {
            "verdict": self.verdict,
            "score": self.score,
            "threshold": self.threshold,
            "p_value": self.p_value,
            "regions": [region.to_json() for region in self.regions],
            "zones": [zone.to_json() for zone in self.zones],
            "model_id": self.model_id,
            "elapsed_ms": round(self.elapsed_ms, 3),
        }
