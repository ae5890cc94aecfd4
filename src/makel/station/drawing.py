"""Pictures of a decision, as PNG or JPEG."""

from __future__ import annotations

from typing import Any, Literal

import cv2
from numpy.typing import NDArray

from makel.model import overlay
from makel.model.inspector import Inspector
from makel.types import Verdict

Picture = Literal["overlay", "mask"]


def draw(verdict: Verdict, inspector: Inspector, image: NDArray[Any], picture: Picture) -> bytes:
    """One picture of a verdict.

    Args:
        verdict: What was said of the image.
        inspector: What said it.
        image: As `images.decode` gives it.
        picture: "overlay", heat over the image with a caption; or "mask", 255 where the map is above the threshold.

    Returns:
        The bytes of a PNG file.
    """
    threshold = inspector.calibration.pixel_threshold
    if picture == "mask":
        pixels = overlay.mask(verdict.anomaly_map, threshold, inspector.rules)
    else:
        white_level = inspector.manifest.preprocessing.white_level
        drawn = overlay.draw(image, verdict, threshold, white_level=white_level, rules=inspector.rules)
        pixels = drawn[..., ::-1]
    return png(pixels)


def heat(verdict: Verdict, inspector: Inspector) -> bytes:
    """The heat of a verdict as a PNG to lay over the image: clear where nothing is."""
    pixels = overlay.heat(verdict.anomaly_map, inspector.calibration.pixel_threshold)
    return png(cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))


def view(image: NDArray[Any], *, longest_px: int, white_level: int | None = None) -> bytes:
    """An image as every browser can show it, as JPEG.

    Args:
        image: As `images.decode` gives it.
        longest_px: The longer side is brought below this.
        white_level: The value to show as white, see `overlay.plain`.
    """
    pixels = overlay.plain(image, white_level=white_level, longest_px=(1, longest_px))
    return cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def png(pixels: NDArray[Any]) -> bytes:
    """Pixels in OpenCV's order of channels as PNG."""
    return cv2.imencode(".png", pixels)[1].tobytes()
