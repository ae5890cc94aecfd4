"""Pictures of a decision, as PNG."""

from __future__ import annotations

from typing import Literal

import cv2

from makel.images import decode
from makel.model import overlay
from makel.model.inspector import Inspector
from makel.types import Verdict

Picture = Literal["overlay", "mask"]


def draw(verdict: Verdict, inspector: Inspector, image: bytes, picture: Picture) -> bytes:
    """One picture of a verdict.

    Args:
        verdict: What was said of the image.
        inspector: What said it.
        image: The bytes of the image file.
        picture: "overlay", heat over the image with a caption; or "mask", 255 where the map is above the threshold.

    Returns:
        The bytes of a PNG file.

    Raises:
        ImageError: The image cannot be read.
    """
    threshold = inspector.calibration.pixel_threshold
    if picture == "mask":
        pixels = overlay.mask(verdict.anomaly_map, threshold, inspector.rules)
    else:
        white_level = inspector.manifest.preprocessing.white_level
        pixels = overlay.draw(decode(image), verdict, threshold, white_level=white_level, rules=inspector.rules)[
            ..., ::-1
        ]
    return cv2.imencode(".png", pixels)[1].tobytes()
