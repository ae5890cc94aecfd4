"""Pictures of a verdict: the heat over the image for people, and the mask for machines.

An overlay is at most 2048 px a side, whatever the image's size; a mask has the image's own. Of an image too large for
memory the mask is a TIFF, written in bands, and the overlay is of the image and the peaks of its map, reduced alike.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.images import reduction
from makel.model import map_store
from makel.model.layout import outline, place
from makel.model.map_store import reduce_peaks
from makel.model.rules import Rules
from makel.model.zones import Zone, Zones
from makel.types import Verdict

LONGEST_PX = 2048
_SIDE_PX = (512, LONGEST_PX)
"""The longer side of an overlay is brought into this range: lines and letters stay readable, files stay small."""

_LONGEST_NAME = 255 - len("_overlay.png")
"""Bytes of a file's name on the file systems in use."""

_CAPTION_PX = 320
"""Below this width a caption cannot be read; a narrower picture gets a black margin."""

_CLEAR, _FULL = 0.6, 6.0
"""Heat starts at 60 % of the way from the image's background to the pixel threshold, and is full at six times it."""

_STRIP_ROWS = 64
"""Rows of a strip in the mask of a very large image."""

_OPACITY = 0.5
_SHADES = (0.3, 0.9)
"""The part of the colour map in use: its near-black start would darken, its pale end would hide what lies below."""

_OUTLINE = (255, 255, 255)
_COLOURS = {"pass": (46, 125, 50), "reject": (198, 40, 40)}
_ZONE_COLOURS = {"ignore": (190, 190, 190), "include": (90, 220, 130), "inspect": (90, 180, 255)}
_IGNORED = 0.45
"""What is left of the brightness of what is ignored."""


def draw(
    image: NDArray[Any],
    verdict: Verdict,
    pixel_threshold: float,
    *,
    white_level: int | None = None,
    rules: Rules | None = None,
) -> NDArray[np.uint8]:
    """The image with heat where the map comes near the pixel threshold or above, outlined regions, and a caption.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) RGB; uint8, uint16, or float32 in [0, 1]. Not changed.
        verdict: What was said of this image.
        pixel_threshold: The level its regions exceed: `calibration.pixel_threshold`.
        white_level: The value of `image` to show as white; None for 255, the brightest pixel of a 16-bit image, or 1.0.
        rules: The model's, `inspector.rules`, whose zones are drawn, and whose thresholds and minimum area tell what
            is outlined; None for one threshold everywhere.

    Returns:
        (h, w, 3) uint8 RGB, not larger than 2048 px, with the caption below the picture.
    """
    shown = plain(image, white_level=white_level).astype(np.float32)
    size = (shown.shape[1], shown.shape[0])
    # By peaks, so that no region gets lost on the way down.
    reduced = reduce_peaks(verdict.anomaly_map, reduction(verdict.anomaly_map.shape, LONGEST_PX))
    anomaly_map = np.asarray(cv2.resize(reduced, size, interpolation=cv2.INTER_LINEAR), np.float32)
    colours, strength = _heat(anomaly_map, pixel_threshold)
    opacity = _OPACITY * strength[..., None]
    picture = np.rint(shown * (1 - opacity) + colours * opacity).astype(np.uint8)
    if map_store.is_in_file(verdict.anomaly_map):
        above = _in_boxes(mask(anomaly_map, pixel_threshold), verdict, factor=verdict.anomaly_map.shape[1] / size[0])
    elif rules is None or rules.zones == Zones():
        above = mask(anomaly_map, pixel_threshold)
    else:
        picture = draw_zones(picture, rules.zones)
        above = _resize_mask(mask(verdict.anomaly_map, pixel_threshold, rules), size)
    outlines, _ = cv2.findContours(above, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    width_px = max(1, round(max(size) / 500))
    cv2.drawContours(picture, outlines, -1, (0, 0, 0), width_px + 2, cv2.LINE_AA)
    cv2.drawContours(picture, outlines, -1, _OUTLINE, width_px, cv2.LINE_AA)
    caption = _caption(verdict, max(size[0], _CAPTION_PX))
    return np.concatenate([np.pad(picture, ((0, 0), (0, caption.shape[1] - size[0]), (0, 0))), caption])


def plain(
    image: NDArray[Any], *, white_level: int | None = None, longest_px: tuple[int, int] = _SIDE_PX
) -> NDArray[np.uint8]:
    """The image as a screen can show it.

    Args:
        image: See `draw`.
        white_level: See `draw`.
        longest_px: The longer side is brought into this range.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    longest = max(image.shape[:2])
    scale = min(max(longest, longest_px[0]), longest_px[1]) / longest
    if scale != 1:
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        # Enlarged without smoothing: a person should see the pixels that the camera gave.
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    if white_level is None:
        white_level = 255 if image.dtype == np.uint8 else max(1, int(image.max()))
    grey = image.reshape(*image.shape[:2], -1).astype(np.float32) * (255 / white_level)
    rounded = np.rint(np.clip(grey, 0, 255)).astype(np.uint8)
    return np.asarray(np.broadcast_to(rounded, (*image.shape[:2], 3)))


def heat(anomaly_map: NDArray[np.float32], pixel_threshold: float, *, longest_px: int = 512) -> NDArray[np.uint8]:
    """The heat alone, to lay over the image: clear where nothing is, opaque where it is full.

    Args:
        anomaly_map: (H, W) raw values.
        pixel_threshold: See `draw`.
        longest_px: The longer side is brought below this; heat has no finer detail.

    Returns:
        (h, w, 4) uint8 RGBA.
    """
    smaller = reduce_peaks(anomaly_map, reduction(anomaly_map.shape, longest_px))
    colours, strength = _heat(np.asarray(smaller, np.float32), pixel_threshold)
    return np.dstack([colours, np.rint(255 * strength).astype(np.uint8)])


def mask(anomaly_map: NDArray[np.float32], pixel_threshold: float, rules: Rules | None = None) -> NDArray[np.uint8]:
    """(H, W) uint8: 255 where the map exceeds the threshold, or is in a region by the model's rules; 0 elsewhere."""
    above = anomaly_map > pixel_threshold if rules is None else rules.mask(anomaly_map)
    return np.where(above, np.uint8(255), np.uint8(0))


def write(
    out: Path,
    name: str,
    image: NDArray[Any],
    verdict: Verdict,
    pixel_threshold: float,
    *,
    white_level: int | None = None,
    rules: Rules | None = None,
) -> tuple[Path, Path]:
    """Write `NAME_overlay.png`, and `NAME_mask.png` at the image's own size, or `NAME_mask.tif` of a very large one.

    Args:
        out: Folder; made where absent.
        name: From `names`; may hold folders.
        image: See `draw`; of a large image it may be reduced already.
        verdict: See `draw`.
        pixel_threshold: See `draw`.
        white_level: See `draw`.
        rules: See `draw`.

    Returns:
        The paths of overlay and mask.

    Raises:
        OSError: The files cannot be written.
    """
    large = map_store.is_in_file(verdict.anomaly_map)
    paths = (out / f"{name}_overlay.png", out / f"{name}_mask.{'tif' if large else 'png'}")
    overlay = draw(image, verdict, pixel_threshold, white_level=white_level, rules=rules)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    try:
        _write_png(paths[0], overlay[..., ::-1])
        if large:
            _write_large_mask(paths[1], verdict, pixel_threshold)
        else:
            _write_png(paths[1], mask(verdict.anomaly_map, pixel_threshold, rules))
    except OSError as error:
        for path in paths:  # of a full disk, rather nothing than a part
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, error.filename or os.fspath(paths[0])) from error
    return paths


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    # Encoded first: cv2.imwrite takes no non-ASCII path on Windows, and only returns False when it fails.
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def _write_large_mask(path: Path, verdict: Verdict, pixel_threshold: float) -> None:
    """A mask as TIFF in Deflate strips, of a map that is not to be in memory."""
    import tifffile

    tops = range(0, len(verdict.anomaly_map), _STRIP_ROWS)
    bands = map_store.bands(verdict.anomaly_map, _STRIP_ROWS)
    strips = (
        zlib.compress(_in_boxes(mask(band, pixel_threshold), verdict, top).tobytes(), 1)
        for top, band in zip(tops, bands, strict=True)
    )
    tifffile.imwrite(
        path,
        strips,
        shape=verdict.anomaly_map.shape,
        dtype=np.uint8,
        photometric="minisblack",
        rowsperstrip=_STRIP_ROWS,
        compression="zlib",
        metadata=None,
    )


def _in_boxes(marked: NDArray[np.uint8], verdict: Verdict, top: int = 0, factor: float = 1.0) -> NDArray[np.uint8]:
    """What of a mask is inside the box of a region, so that what is below the minimum area does not show.

    Args:
        marked: (h, w), rows of a mask.
        verdict: Has the regions, in pixels of the image.
        top: The first of the rows.
        factor: How many pixels of the image one of the mask is.
    """
    kept = np.zeros_like(marked)
    for region in verdict.regions:
        x0, y0, x1, y1 = (round(edge / factor) for edge in region.box_px)
        box = np.s_[max(0, y0 - top) : max(0, y1 - top + (factor > 1)), x0 : x1 + (factor > 1)]
        kept[box] = marked[box]
    return kept


def draw_zones(picture: NDArray[np.uint8], zones: Zones, *, name: bool = True) -> NDArray[np.uint8]:
    """A picture with every zone in a thin outline, and what is ignored darkened.

    Args:
        picture: (h, w, 3) uint8 RGB of a whole image, in any size. Not changed.
        zones: The zones; without any, the picture comes back as it is.
        name: Whether to write the zones' names.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    if not zones.zones:
        return picture
    height, width = picture.shape[:2]
    dark = place(zones, width, height).ignored[..., None]
    drawn = np.where(dark, np.rint(picture * _IGNORED), picture).astype(np.uint8)
    corners = []
    for zone in zones.zones:
        inside = outline(zones, zone, width, height).astype(np.uint8)
        outlines, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(drawn, outlines, -1, _ZONE_COLOURS[zone.kind], max(1, round(max(width, height) / 800)))
        if outlines:
            x, y, _, _ = cv2.boundingRect(np.concatenate(outlines))
            corners.append((x, y, zone))
    return _write_names(drawn, corners) if name else drawn


def names(paths: Sequence[Path]) -> list[str]:
    """A name for the pictures of each path, without suffix; different files never share one.

    It is the path below the folder that all have in common, so that "a/1.png" and "b/1.png" stay apart. Where that is
    not enough ("1.png" beside "1.jpg"; "A.png" beside "a.png", which some disks cannot tell apart), the suffix stays,
    and then a number is added. What would be longer than a file system takes ends in a part of its own SHA-256.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - resolve() would rename links
    folders = zip(*(path.parts[:-1] for path in absolute), strict=False)
    common = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, folders))
    given: dict[Path, str] = {}
    taken: set[str] = set()
    for path in absolute:
        if path in given:
            continue
        folder = "/".join(part.strip(":/\\") for part in path.parts[common:-1])
        start = f"{folder}/" if folder else ""
        ends = (path.stem, path.name, *(f"{path.name}-{i}" for i in range(2, len(absolute) + 2)))
        candidates = (start + _short(end) for end in ends)
        given[path] = next(name for name in candidates if name.casefold() not in taken)
        taken.add(given[path].casefold())
    return [given[path] for path in absolute]


def _short(name: str) -> str:
    """A name that is not too long with `_overlay.png` behind it: bytes count, and letters may take four."""
    spelled = os.fsencode(name)
    if len(spelled) <= _LONGEST_NAME:
        return name
    mark = f"-{hashlib.sha256(spelled).hexdigest()[:12]}"
    # Cut within a letter, the rest of it is left out.
    return spelled[: _LONGEST_NAME - len(mark)].decode(errors="ignore") + mark


def _heat(anomaly_map: NDArray[np.float32], pixel_threshold: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """(H, W, 3) uint8 RGB, and (H, W) float32 in [0, 1], how much of it is seen."""
    level = _level(anomaly_map, pixel_threshold)
    # Inferno is perceptually uniform: equal steps of heat look like equal steps.
    index = np.rint(255 * (_SHADES[0] + (_SHADES[1] - _SHADES[0]) * level)).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(index, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.asarray(colours, np.uint8), np.sqrt(level)


def _level(anomaly_map: NDArray[np.float32], pixel_threshold: float) -> NDArray[np.float32]:
    """Heat in [0, 1]: 0 on the background, rising through the pixel threshold with the logarithm of the excess."""
    # Scores have no natural zero, so the image's median stands for the background.
    background = float(np.median(anomaly_map))
    if background >= pixel_threshold:
        return (anomaly_map > pixel_threshold).astype(np.float32)  # no background left to be relative to
    progress = (anomaly_map - background) / (pixel_threshold - background)
    level = np.log(np.maximum(progress, _CLEAR) / _CLEAR) / np.log(_FULL / _CLEAR)
    return np.asarray(np.clip(level, 0, 1), np.float32)


def _resize_mask(marked: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask in another size (width, height): no mark vanishes where it shrinks, none has steps where it grows."""
    shrinks = size[0] < marked.shape[1]
    resized = cv2.resize(marked, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.where(resized > (0 if shrinks else 127), np.uint8(255), np.uint8(0))


def _write_names(picture: NDArray[np.uint8], corners: Sequence[tuple[int, int, Zone]]) -> NDArray[np.uint8]:
    """The picture with the name of each zone at the corner (x, y) of its box."""
    from PIL import Image, ImageDraw, ImageFont

    canvas = Image.fromarray(picture)
    pen, font_px = ImageDraw.Draw(canvas), max(10, max(picture.shape) // 45)
    font = ImageFont.load_default(font_px)
    for x, y, zone in corners:
        left, top, right, bottom = pen.textbbox((x + 3, y + 2), zone.name, font=font)
        # Moved inside where it would be cut off.
        by = min(0, picture.shape[1] - 2 - right), min(0, picture.shape[0] - 2 - bottom)
        box = (left + by[0] - 2, top + by[1] - 1, right + by[0] + 2, bottom + by[1] + 1)
        pen.rectangle(box, fill=(20, 20, 20))
        pen.text((x + 3 + by[0], y + 2 + by[1]), zone.name, fill=_ZONE_COLOURS[zone.kind], font=font)
    return np.array(canvas)


def _caption(verdict: Verdict, width_px: int) -> NDArray[np.uint8]:
    """(h, width_px, 3) uint8: the verdict and its numbers in a band."""
    from PIL import Image, ImageDraw, ImageFont

    text = (
        f"{verdict.verdict.upper()}   score {verdict.score:.4g}   threshold {verdict.threshold:.4g}   "
        f"p = {verdict.p_value:.3g}"
    )
    font_px = max(10, width_px // 36)
    font = ImageFont.load_default(font_px)
    fits = (width_px - 2 * font_px) / font.getlength(text)
    if fits < 1:
        font = ImageFont.load_default(font_px * fits)
    band = Image.new("RGB", (width_px, 2 * font_px), _COLOURS[verdict.verdict])
    ImageDraw.Draw(band).text((font_px, font_px), text, fill="white", font=font, anchor="lm")
    return np.asarray(band)
