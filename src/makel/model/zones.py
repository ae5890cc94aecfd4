"""Zones: which parts of an image count, which have a budget of their own, and how large a defect must be.

They are given to `makel fit` as a TOML file and become part of the model:

image_size_px = [1024, 768]           # what polygons and areas refer to; images of another size are scaled
mm_per_px = 0.05
min_area_mm2 = 0.2                    # or min_area_px

[[zone]]
name = "clamp"
kind = "ignore"                       # or "include": everything outside all of these is ignored
polygon = [[0, 0], [200, 0], [200, 90], [0, 90]]

[[zone]]
name = "sealing edge"
kind = "inspect"                      # judged by itself, with a false-reject budget of its own
mask = "edge.png"                     # non-zero is inside; relative to the file
false_reject = 0.02
"""

from __future__ import annotations

import base64
import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from unicodedata import normalize

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from makel.calibration import Calibration
from makel.errors import CalibrationError, ImageError, UsageError
from makel.images import MAX_PIXELS, read_mask, shown

ASPECT_TOLERANCE = 0.01
"""How far the aspect of an image may be from the one its zones were drawn on: rounding of a resize, no more."""

MOST_IN_ZONE = 0.9
"""Share of the image above which a mask of what is ignored, or judged by itself, is rather an inverted one."""

_MOST = 200
"""Zones at most; labels are bytes."""

_PNG = b"\x89PNG\r\n\x1a\n"

Point = tuple[float, float]
Name = Annotated[str, Field(min_length=1, max_length=40)]
Positive = Annotated[float, Field(gt=0)]


def _readable(size: tuple[int, int]) -> tuple[int, int]:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{size[0]}x{size[1]} is more than the {MAX_PIXELS} pixels of the largest image")
    return size


Size = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_readable)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Zone(_Table):
    """A part of the image.

    Attributes:
        name: What people call it; no other zone has the same.
        kind: "ignore": as if it were not there. "include": whatever is outside all of these is ignored. "inspect":
            judged by itself. What is ignored is ignored, whatever other zone it lies in.
        polygon: Its corners (x, y), in pixels of the reference image: (0, 0) is the corner of the first pixel, not its
            centre. None where a mask says where it is.
        mask_png: A PNG in base64, non-zero inside, stretched over the image. None where a polygon says where it is.
        false_reject: Share of good parts that this zone may reject; only where it is judged by itself.
        calibration: Its threshold, on the highest value of the anomaly map inside; None before fitting, and for zones
            that are not judged by themselves.
    """

    name: Name
    kind: Literal["ignore", "include", "inspect"]
    polygon: tuple[Point, ...] | None = None
    mask_png: str | None = None
    false_reject: float | None = None
    calibration: Calibration | None = None

    @field_validator("mask_png")
    @classmethod
    def _must_be_a_picture(cls, mask_png: str | None) -> str | None:
        if mask_png is not None:
            # Of what `_encode` writes width and height stand at bytes 16 to 24, before anything of their size is made.
            head = base64.b64decode(mask_png[:32], validate=True)
            if head[:8] != _PNG or head[12:16] != b"IHDR":
                raise ValueError("it is no PNG")
            _readable((int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")))
        return mask_png

    @property
    def mask(self) -> NDArray[np.uint8] | None:
        """(h, w) uint8, non-zero inside, of its own size; None where a polygon says where it is."""
        return None if self.mask_png is None else _decode(self.mask_png)


class Zones(_Table):
    """The zones of a model, and how large a defect must be.

    Attributes:
        image_size_px: Width and height of the reference image; None where nothing refers to it.
        mm_per_px: Side of a pixel of the reference image; None where nobody said.
        min_area_px: Regions below this many pixels of the reference image are dropped; None for no such limit.
        zones: In the order of the file. Where zones that are inspected overlap, the first has the pixel.
    """

    image_size_px: Size | None = None
    mm_per_px: Positive | None = None
    min_area_px: Positive | None = None
    zones: tuple[Zone, ...] = Field((), max_length=_MOST)

    @property
    def judged(self) -> tuple[Zone, ...]:
        """The zones that are judged by themselves."""
        return tuple(zone for zone in self.zones if zone.kind == "inspect")

    def pixels_per_reference(self, width_px: int, height_px: int) -> float:
        """How many pixels of an image of this size lie on one of the reference image."""
        if self.image_size_px is None:
            return 1.0
        return width_px * height_px / (self.image_size_px[0] * self.image_size_px[1])

    def check_aspect(self, width_px: int, height_px: int, name: str) -> None:
        """Refuse an image on which the zones would lie elsewhere.

        Raises:
            ImageError: Its aspect is another than the reference image's.
        """
        if self.zones and self.image_size_px and not same_aspect((width_px, height_px), self.image_size_px):
            width, height = self.image_size_px
            raise ImageError(
                f"{name} is {width_px}x{height_px}; the zones of this model were drawn on {width}x{height}, and on "
                "another aspect they would lie elsewhere: give images like those, or draw the zones again and fit again"
            )

    def calibrated(self, calibration: Calibration, own: Mapping[str, Calibration]) -> Self:
        """The zones with a threshold for each that is judged by itself.

        Args:
            calibration: The calibration of the rest of the image.
            own: That of each zone that is judged by itself, by name.

        Raises:
            CalibrationError: A threshold is zero: the map says nothing in that zone, or in the rest.
        """
        for name, found in own.items():
            if not min(found.image_threshold, calibration.image_threshold) > 0:
                raise CalibrationError(
                    f"the scores of good images are zero in zone {name!r} or in the rest: no threshold follows from "
                    "them, leave the zone out or draw it larger"
                )
        zones = tuple(zone.model_copy(update={"calibration": own.get(zone.name)}) for zone in self.zones)
        return self.model_copy(update={"zones": zones})

    def promise(self, calibration: Calibration) -> float:
        """What all parts together promise: the sum, since different parts may reject different good images."""
        own = (zone.calibration.promised_false_reject for zone in self.judged if zone.calibration)
        return min(1.0, calibration.promised_false_reject + sum(own))

    def lines(self, calibration: Calibration) -> list[str]:
        """What the zones mean, one line each, for a person."""
        said = []
        for zone in self.zones:
            if zone.calibration:
                rate = f"{100 * zone.calibration.promised_false_reject:.2g} %"
                verb = "promises" if calibration.scheme == "holdout" else "aims at"
                said.append(
                    f"{zone.name} is judged by itself above {zone.calibration.image_threshold:.4g} and {verb} at most "
                    f"{rate} false rejects"
                )
            elif zone.kind == "inspect":
                said.append(f"{zone.name} is judged by itself")
            else:
                said.append(f"{zone.name} is {'ignored' if zone.kind == 'ignore' else 'included'}")
        if self.judged:
            said.append(f"all parts together: at most {100 * self.promise(calibration):.2g} % false rejects")
        if self.min_area_px is not None:
            mm2 = "" if self.mm_per_px is None else f" ({self.min_area_px * self.mm_per_px**2:.3g} mm²)"
            said.append(f"regions below {self.min_area_px:.4g} px{mm2} are dropped, and reject nothing")
        return said


class _ZoneInFile(_Table):
    name: Name
    kind: Literal["ignore", "include", "inspect"]
    polygon: tuple[Point, ...] | None = None
    mask: str | None = None
    false_reject: float | None = None


class _File(_Table):
    image_size_px: Size | None = None
    mm_per_px: Positive | None = None
    min_area_px: Positive | None = None
    min_area_mm2: Positive | None = None
    zone: tuple[_ZoneInFile, ...] = ()


def read(path: str | os.PathLike[str]) -> Zones:
    """Read a zones file, and the masks it names.

    Args:
        path: The TOML file.

    Returns:
        The zones, not calibrated yet.

    Raises:
        UsageError: The file or a mask cannot be read, a key is unknown, a value cannot be used, or a zone is empty.
    """
    file = Path(path)
    try:
        raw = _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{shown(file)} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown(file)} is not TOML: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{shown(file)}: {_explain(error)}") from error
    try:
        return _resolve(raw, file.resolve().parent)
    except UsageError as error:
        raise UsageError(f"{shown(file)}: {error}") from error


def same_aspect(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes (width, height) have the same aspect, to within `ASPECT_TOLERANCE`."""
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= ASPECT_TOLERANCE


def _resolve(raw: _File, folder: Path) -> Zones:
    if raw.min_area_px is not None and raw.min_area_mm2 is not None:
        raise UsageError("min_area_px and min_area_mm2 are both given: give the smallest defect in one unit")
    if raw.min_area_mm2 is not None and raw.mm_per_px is None:
        raise UsageError("min_area_mm2 needs a scale: give mm_per_px as well, or min_area_px")
    if not raw.zone and raw.min_area_px is None and raw.min_area_mm2 is None and raw.mm_per_px is None:
        raise UsageError("it says nothing: give at least one [[zone]], or a minimum area")
    if len(raw.zone) > _MOST:
        raise UsageError(f"it has {len(raw.zone)} zones, {_MOST} are possible: draw several parts into one mask")
    names = [zone.name for zone in raw.zone]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two zones have the name {twice!r}: give each its own")
    for zone in raw.zone:
        _check(zone, raw.image_size_px)
    masks = {zone.name: _read_mask(zone, folder) for zone in raw.zone if zone.mask is not None}
    size = raw.image_size_px or max(
        (_size(mask) for mask in masks.values()), key=lambda each: each[0] * each[1], default=None
    )
    for name, mask in masks.items():
        if size and not same_aspect(_size(mask), size):
            raise UsageError(
                f"the mask of zone {name!r} is {mask.shape[1]}x{mask.shape[0]} and the reference image "
                f"{size[0]}x{size[1]}: a mask must have the aspect of the image it is laid over"
            )
    min_area_px = raw.min_area_px
    if raw.min_area_mm2 is not None and raw.mm_per_px is not None:
        min_area_px = raw.min_area_mm2 / raw.mm_per_px**2
    return Zones(
        image_size_px=size,
        mm_per_px=raw.mm_per_px,
        min_area_px=min_area_px,
        zones=tuple(
            Zone(
                name=zone.name,
                kind=zone.kind,
                polygon=zone.polygon,
                mask_png=_encode(masks[zone.name]) if zone.name in masks else None,
                false_reject=zone.false_reject,
            )
            for zone in raw.zone
        ),
    )


def _check(zone: _ZoneInFile, size: tuple[int, int] | None) -> None:
    where = f"zone {zone.name!r}"
    if (zone.polygon is None) == (zone.mask is None):
        raise UsageError(f"{where} needs a polygon or a mask, and not both")
    if zone.kind == "inspect" and zone.false_reject is None:
        raise UsageError(f"{where} is inspected by itself: give its false_reject, such as 0.01")
    if zone.kind != "inspect" and zone.false_reject is not None:
        raise UsageError(f"{where} has a false_reject and is of kind {zone.kind!r}: only 'inspect' has its own budget")
    if zone.false_reject is not None and not 0 < zone.false_reject < 1:
        raise UsageError(f"{where}: false_reject {zone.false_reject:g} cannot be kept: give a share between 0 and 1")
    if zone.polygon is None:
        return
    if size is None:
        raise UsageError(f"{where} has a polygon: say what image it was drawn on, image_size_px = [width, height]")
    if len(zone.polygon) < 3:
        raise UsageError(f"{where} has {len(zone.polygon)} corners: a polygon needs at least 3")
    for x, y in zone.polygon:
        if not (0 <= x <= size[0] and 0 <= y <= size[1]):
            raise UsageError(
                f"{where} has a corner at {x:g}, {y:g}, outside the image of {size[0]}x{size[1]} px that "
                "image_size_px states: corners are [x, y] in its pixels"
            )
    ring = (*zone.polygon, zone.polygon[0])
    if sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) == 0:
        raise UsageError(f"{where} encloses nothing: its corners lie on one line")


def _read_mask(zone: _ZoneInFile, folder: Path) -> NDArray[np.uint8]:
    try:
        mask = read_mask(_in_folder(folder, zone.mask or ""), most_marked=1.0)
    except ImageError as error:
        raise UsageError(f"the mask of zone {zone.name!r} cannot be used: {error}") from error
    inside = mask.marked.astype(np.uint8)
    most = 0.999 if zone.kind == "include" else MOST_IN_ZONE
    if (share := float(inside.mean())) > most:
        raise UsageError(
            f"the mask of zone {zone.name!r} marks {100 * share:.0f} % of the image: it is inverted, or its background "
            "is not 0; what is inside must be bright on black"
        )
    if not inside.any():
        raise UsageError(f"the mask of zone {zone.name!r} marks nothing: non-zero pixels are inside")
    return inside * np.uint8(255)


def _in_folder(folder: Path, name: str) -> Path:
    """A file by its name, also where the folder spells it with other code points, as macOS spells an umlaut."""
    path = folder / name
    if path.exists() or not path.parent.is_dir():
        return path
    wanted = normalize("NFC", path.name)
    return next((each for each in path.parent.iterdir() if normalize("NFC", each.name) == wanted), path)


def _size(mask: NDArray[np.uint8]) -> tuple[int, int]:
    return mask.shape[1], mask.shape[0]


def _encode(mask: NDArray[np.uint8]) -> str:
    _, encoded = cv2.imencode(".png", mask, [cv2.IMWRITE_PNG_BILEVEL, 1])
    return base64.b64encode(encoded.tobytes()).decode("ascii")


@lru_cache(maxsize=64)
def _decode(mask_png: str) -> NDArray[np.uint8]:
    mask = cv2.imdecode(np.frombuffer(base64.b64decode(mask_png), np.uint8), cv2.IMREAD_GRAYSCALE)
    return np.asarray(mask, np.uint8)


def _explain(error: ValidationError) -> str:
    first: Any = error.errors(include_url=False)[0]
    *where, last = first["loc"]
    inside = f" of zone {int(where[1]) + 1}" if len(where) >= 2 else ""
    if first["type"] == "extra_forbidden":
        known = list((_ZoneInFile if where else _File).model_fields)
        near = get_close_matches(str(last), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"key {last!r}{inside} is not known: {hint}"
    name = ".".join(str(part) for part in (first["loc"][2:] if inside else first["loc"]))
    return f"{name}{inside}: {first['msg'][0].lower()}{first['msg'][1:]}, but got {first['input']!r}"
