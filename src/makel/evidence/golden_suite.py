"""The golden suite of a model: images with all that makel makes of them, step by step, in files any language reads.

Another reader of the model folder, or another machine or provider, is right if it comes to the same. The format stands
in docs/evidence/golden.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, nextafter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from makel import __version__
from makel.errors import UsageError
from makel.images import prepare
from makel.model import golden
from makel.model.inspector import Inspector
from makel.model.layout import outline
from makel.model.zones import same_aspect
from makel.types import Shape

FORMAT = "makel golden suite"
FORMAT_VERSION = 1
SUITE_NAME = "suite.json"

LEVELS = 2.0
"""How far a prepared value may be off, in levels of the image's full scale: OpenCV rounds 16 bits in two ways, and a
colour freed of its tint holds two rounded numbers."""

LEVELS_SHARE = 0.05
"""Share of an image's prepared values that may be off at all."""

ENLARGING = 1e-5
"""How far an enlarged map may be off, as a share of its highest value: float32, in another order."""

_MOST_ZONES = 6


@dataclass(frozen=True)
class _Case:
    """An image to be made: its size in pixels, its channels, and what is done to a good image."""

    name: str
    shape: Shape
    channels: int = 3
    look: str = "clean"
    zone: int = -1


def export(inspector: Inspector, folder: Path, *, seed: int = 0) -> dict[str, Any]:
    """Write the suite of a model.

    Args:
        inspector: The model.
        folder: Where to; it must not exist, or be empty.
        seed: What positions and noise are drawn with.

    Returns:
        What `suite.json` holds.

    Raises:
        UsageError: The folder holds something.
        OSError: A file cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} holds something already: name a folder that does not exist, or an empty one")
    folder.mkdir(parents=True, exist_ok=True)
    made = _Pixels(inspector, np.random.default_rng(seed))
    cases = [_write_case(inspector, folder, case, made.draw(case)) for case in _cases(inspector)]
    parity = inspector.manifest.parity
    suite = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model_id": inspector.model_id,
        "makel_version": __version__,
        "versions": {"onnxruntime": onnxruntime.__version__, "opencv": cv2.__version__, "numpy": np.__version__},
        "seed": seed,
        "tolerances": {
            "prepared_levels": LEVELS,
            "prepared_share": LEVELS_SHARE,
            "score": parity.score_tolerance,
            "map": parity.map_tolerance,
            "enlarged_map": ENLARGING,
        },
        "decisions": list(_decisions(inspector)),
        "cases": cases,
    }
    # Last, so that a suite that broke off is none.
    (folder / SUITE_NAME).write_text(json.dumps(suite, indent=1) + "\n", encoding="utf-8")
    return suite


def _decisions(inspector: Inspector) -> Iterator[dict[str, Any]]:
    """What follows from scores at which it matters what equal means; of no zone and no region."""
    calibration = inspector.calibration
    threshold, held_out = calibration.image_threshold, calibration.image_scores
    for score in (held_out[0], threshold, nextafter(threshold, inf), held_out[-1], nextafter(held_out[-1], inf)):
        judgement = inspector.rules.decide(score, None)
        yield {"score": score, "verdict": "reject" if judgement.rejected else "pass", "p_value": judgement.p_value}


def _cases(inspector: Inspector) -> Iterator[_Case]:
    """What there is to show of this model, each way through the preparation once."""
    manifest = inspector.manifest
    if manifest.tiling is not None:
        tile = manifest.tiling.tile_px
        # Three tiles, the one in the middle between two pixels: halves are rounded to even.
        step = tile - manifest.tiling.overlap_px
        thrice = tile + 4 * ((2 * step - 3) // 4) + 3
        yield _Case("one_tile", (tile, tile))
        yield _Case("grid", (thrice, _times(1.6, tile)), look="block")
        yield _Case("strip", (_times(2.3, tile), _times(0.7, tile)), look="specks")
        yield _Case("smaller_than_a_tile", (_times(0.6, tile), _times(0.4, tile)), look="block")
        yield _Case("grey_grid", (_times(1.3, tile), tile), channels=1, look="block")
    else:
        yield from _whole(inspector)
    shape = _shown_at(inspector)
    for look in ("tinted", "coloured") if manifest.preprocessing.colour == "grey" else ():
        yield _Case(look, shape, look=look)
    if (manifest.preprocessing.white_level or 65535) < 65535:
        yield _Case("above_white", shape, look="above_white")
    for number, zone in enumerate(inspector.rules.zones.zones[:_MOST_ZONES]):
        yield _Case(f"in_zone_{number}_{zone.kind}", shape, look="zone", zone=number)
    if inspector.rules.zones.zones:
        yield _Case("across_zones", shape, look="large")


def _whole(inspector: Inspector) -> Iterator[_Case]:
    high, wide = inspector.manifest.preprocessing.shape
    larger, smaller = (_times(1.37, high) | 1, _times(1.61, wide) | 1), (_times(0.61, high), _times(0.43, wide))
    cases = [
        _Case("as_it_is", (high, wide)),
        _Case("shrinks", larger, look="block"),
        _Case("shrinks_by_3", (3 * high, 3 * wide)),
        _Case("shrinks_on_one_axis", (2 * high, wide), look="specks"),
        _Case("halves", (2 * high, 2 * wide), look="block"),
        _Case("halves_twice_grey", (4 * high, 4 * wide), channels=1),
        _Case("halves_then_shrinks", (6 * high, 6 * wide), channels=1, look="block"),
        _Case("grows", smaller, look="block"),
        _Case("grows_to_double", (-(-high // 2), -(-wide // 2)), look="specks"),
        _Case("shrinks_and_grows", (larger[0], smaller[1])),
        _Case("grows_and_shrinks", (smaller[0], larger[1]), look="specks"),
        _Case("shrinks_grey", larger, channels=1, look="block"),
        _Case("grows_grey", smaller, channels=1),
    ]
    if (size := _reference(inspector)) is None:
        yield from cases
        return
    width, height = size
    down, across = high / height, wide / width
    factors = {
        "reference": 1.0,
        "zoned_shrinks": 1.37 * max(down, across),
        "zoned_grows": 0.61 * min(down, across),
        "zoned_between": (down * across) ** 0.5,  # one axis shrinks and the other grows, where the aspects differ
    }
    cases += [
        _Case(name, (_times(each, height), _times(each, width)), look="block" if index % 2 else "clean")
        for index, (name, each) in enumerate(factors.items())
    ]
    yield from (case for case in cases if same_aspect((case.shape[1], case.shape[0]), size))


def _times(factor: float, length_px: int) -> int:
    return max(1, round(factor * length_px))


def _reference(inspector: Inspector) -> tuple[int, int] | None:
    """Width and height that images must have the aspect of; None where any will do."""
    zones = inspector.rules.zones
    return zones.image_size_px if zones.zones else None


def _shown_at(inspector: Inspector) -> Shape:
    """A size for what is not about sizes."""
    if size := _reference(inspector):
        return size[1], size[0]
    tiling = inspector.manifest.tiling
    return (tiling.tile_px, tiling.tile_px) if tiling else inspector.manifest.preprocessing.shape


class _Pixels:
    """Makes images of a model's golden images, or where it has none of a soft random texture."""

    def __init__(self, inspector: Inspector, rng: np.random.Generator) -> None:
        self._inspector, self._rng = inspector, rng
        self._white = inspector.manifest.preprocessing.white_level
        found = [image.transpose(1, 2, 0) for image in golden.images(inspector.folder)]
        self._bases = found or [np.asarray(cv2.resize(rng.integers(60, 200, (6, 6, 3), np.uint8), (64, 64)), np.uint8)]
        self._drawn = 0

    def draw(self, case: _Case) -> NDArray[Any]:
        """(H, W, 3) or (H, W), uint8 or uint16 as the model takes it."""
        base = self._bases[self._drawn % len(self._bases)]
        self._drawn += 1
        image = np.asarray(self._spread(base, case.shape) / np.float32(255), np.float32)
        # Less than half a level of 8 bits, so that only 16 bits hold more than the base does.
        image += self._rng.uniform(-0.4 / 255, 0.4 / 255, image.shape).astype(np.float32)
        self._mark(image, case)
        if case.channels == 1:
            image = image[..., 1]
        white, dtype = (255, np.uint8) if self._white is None else (self._white, np.uint16)
        top = 65535 if case.look == "above_white" else white
        return np.rint(image * white).clip(0, top).astype(dtype)

    def _spread(self, base: NDArray[Any], shape: Shape) -> NDArray[Any]:
        """A base at a size: of a model with tiles each tile shows it whole, so that good stays good."""
        tiling = self._inspector.manifest.tiling
        if tiling is None:
            return np.asarray(cv2.resize(base, shape[::-1], interpolation=cv2.INTER_AREA))
        tile = cv2.resize(base, (tiling.tile_px, tiling.tile_px), interpolation=cv2.INTER_AREA)
        more = [(0, max(0, length - tiling.tile_px)) for length in shape]
        return np.pad(tile, [*more, (0, 0)], mode="symmetric")[: shape[0], : shape[1]]

    def _mark(self, image: NDArray[np.float32], case: _Case) -> None:
        """Do to an image in [0, 1], in place, what a case asks for."""
        height, width = case.shape
        if case.look == "above_white":
            image[: -(-height // 3)] = 1.5
        elif case.look == "coloured":
            image[: -(-height // 3)] *= np.array([1.0, 0.6, 0.3], np.float32)
        elif case.look == "block":
            high, wide = -(-height // 5), -(-width // 5)
            y, x = self._rng.integers(0, height - high + 1), self._rng.integers(0, width - wide + 1)
            _stain(image, np.s_[y : y + high, x : x + wide])
        elif case.look == "large":
            _stain(image, np.s_[height // 8 : height - height // 8, width // 8 : width - width // 8])
        elif case.look == "specks":
            for _ in range(5):
                y, x = self._rng.integers(0, height), self._rng.integers(0, width)
                _stain(image, np.s_[y : y + 2, x : x + 2])
        elif case.look == "tinted":
            image[:] = image.mean(axis=2, keepdims=True) * np.array([1.01, 1.0, 0.99], np.float32)
        elif case.look == "zone":
            zones = self._inspector.rules.zones
            _stain(image, outline(zones, zones.zones[case.zone], width, height))


def _stain(image: NDArray[np.float32], where: Any) -> None:
    """Make a part of an image black or white, whichever is further from what it is."""
    if image[where].size:
        image[where] = 1 if image[where].mean() < 0.5 else 0


def steps(inspector: Inspector, pixels: NDArray[Any]) -> tuple[NDArray[np.float32], list[tuple[int, int]] | None]:
    """What the network is given of an image.

    Args:
        inspector: The model.
        pixels: (H, W), (H, W, 1) or (H, W, 3).

    Returns:
        (N, 3, height, width) float32, and row and column where each of the N tiles begins; None of a model without.

    Raises:
        ImageError: The pixels are not of the kind the model takes.
    """
    tiling, preparation = inspector.manifest.tiling, inspector.manifest.preprocessing
    if tiling is None:
        return inspector.prepare(pixels).image[np.newaxis], None
    tiles = tiling.boxes(pixels.shape)
    high, wide = tiling.cut(pixels.shape[0]).side_px, tiling.cut(pixels.shape[1]).side_px
    return np.stack([prepare(pixels[y : y + high, x : x + wide], preparation) for y, x in tiles]), tiles


def _write_case(inspector: Inspector, folder: Path, case: _Case, pixels: NDArray[Any]) -> dict[str, Any]:
    prepared, tiles = steps(inspector, pixels)
    scores = [inspector.scores(each[np.newaxis]) for each in prepared]
    verdict = inspector.inspect(pixels)
    (folder / case.name).mkdir()
    arrays = {
        "pixels": pixels.reshape(*case.shape, case.channels),
        "prepared": prepared,
        "network_scores": np.concatenate([each.image for each in scores]),
        "network_maps": np.concatenate([each.anomaly_map for each in scores]),
        "anomaly_map": verdict.anomaly_map,
    }
    said = verdict.to_json()
    del said["elapsed_ms"]
    return {
        "name": case.name,
        "look": case.look,
        "tiles_px": tiles,
        **{key: _write_array(folder, f"{case.name}/{key}.bin", array) for key, array in arrays.items()},
        "verdict": said,
    }


def _write_array(folder: Path, name: str, array: NDArray[Any]) -> dict[str, Any]:
    """Write numbers alone, row by row, little-endian; what they are is returned."""
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    (folder / name).write_bytes(data)
    shape = list(array.shape)
    return {"file": name, "dtype": array.dtype.name, "shape": shape, "sha256": hashlib.sha256(data).hexdigest()}
