"""Products without a fault: a turned flange, a brushed sheet and a woven cloth, each part a little different."""

from __future__ import annotations

import math

import cv2
import numpy as np

from makel.datasets.synthetic.surface import Field, Mask, Surface, fine_noise, grid, smooth_noise, streaks

_RIM, _HUB, _BORE, _BOLT_CIRCLE, _BOLT = 0.80, 0.43, 0.24, 0.615, 0.082
"""Radii of the flange, where the picture reaches from -1 to 1."""

_N_BOLT_HOLES = 6
_CHAMFER = 0.03
_THICKNESS = 0.16
_STEEL = np.array([0.60, 0.605, 0.62], np.float32)
_N_THREADS = 40
"""Threads across a picture of cloth."""


def flange(side: int, rng: np.random.Generator, *, missing: bool = False) -> Surface:
    """A turned steel flange with hub, bore and six bolt holes on a rubber belt, as it comes along: turned and shifted.

    Args:
        side: Grid points along a side.
        rng: What makes this part differ from the next.
        missing: Leave out one bolt hole, and mark it as the defect.
    """
    x, y = grid(side)
    turn, scale = rng.uniform(-0.14, 0.14), rng.uniform(0.98, 1.02)
    x, y = (x - rng.uniform(-0.035, 0.035)) / scale, (y - rng.uniform(-0.035, 0.035)) / scale
    r = np.sqrt(x * x + y * y) + np.float32(1e-6)
    edge = np.float32(3 / side)  # walls are a step and a half wide, which keeps them smooth

    relief: Field = _THICKNESS * _inside(_RIM - r, edge) - 0.5 * _inside(_BORE - r, edge)
    relief += _chamfer(_RIM - r) + 1.6 * _chamfer(_HUB - r) - 2 * _chamfer(_BORE + _CHAMFER - r)
    metal = _inside(_RIM - r, edge) * _inside(r - _BORE, edge)
    light = 1 - 0.65 * _inside(_BORE - r, edge)
    defect = np.zeros((side, side), bool)
    left_out = int(rng.integers(_N_BOLT_HOLES)) if missing else -1
    for index in range(_N_BOLT_HOLES):
        angle = turn + 2 * math.pi * index / _N_BOLT_HOLES
        hole_x, hole_y = _BOLT_CIRCLE * math.cos(angle), _BOLT_CIRCLE * math.sin(angle)
        from_centre = np.sqrt((x - hole_x) ** 2 + (y - hole_y) ** 2)
        if index == left_out:
            defect = from_centre < _BOLT + 0.8 * _CHAMFER
            continue
        inside = _inside(_BOLT - from_centre, edge)
        relief -= 1.2 * _chamfer(_BOLT + 0.8 * _CHAMFER - from_centre) + 0.4 * inside
        # The lamp reaches down the wall that faces it.
        light -= inside * (0.9 - 0.5 * np.clip((x + y - hole_x - hole_y) / _BOLT - 0.35, 0, 1))
        metal *= 1 - 0.6 * inside
    part = metal > 0.5
    relief += part * _turning_marks(r, rng)
    relief = cv2.GaussianBlur(relief * np.float32(side / 2), (0, 0), 0.8)

    belt = 0.045 * (1 + 0.10 * fine_noise(side, 1.2, rng) + 0.12 * smooth_noise(side, 0.2, rng))
    belt = belt[..., None] * np.array([0.95, 1, 1.08], np.float32)
    steel = (1 + 0.02 * smooth_noise(side, 0.3, rng))[..., None] * _STEEL
    albedo = belt + metal[..., None] * (steel - belt)
    grain = part[..., None] * np.stack([-y, x], axis=2) / r[..., None]
    return _surface(relief, albedo, 0.05 + 0.8 * metal, grain, light * _shadow(metal, side), part, defect)


def brushed_metal(side: int, rng: np.random.Generator, *, missing: bool = False) -> Surface:
    """A sheet of brushed stainless steel that fills the picture.

    Args:
        side: Grid points along a side.
        rng: What makes this sheet differ from the next.
        missing: Leave a patch unbrushed, and mark it as the defect.
    """
    tilt = rng.normal(0, 0.012)
    lines: Field = (
        0.5 * streaks(side, 0.25, 0.7, rng) + 0.3 * streaks(side, 0.08, 0.9, rng) + 0.35 * streaks(side, 0.6, 1.4, rng)
    )
    turn = cv2.getRotationMatrix2D((side / 2, side / 2), math.degrees(tilt), 1.03)
    lines = cv2.warpAffine(lines, turn, (side, side), borderMode=cv2.BORDER_REFLECT)
    brushed, defect = np.ones((side, side), np.float32), np.zeros((side, side), bool)
    if missing:
        x, y = grid(side)
        wide, high = rng.uniform(0.12, 0.25), rng.uniform(0.06, 0.12)
        x, y = (x - rng.uniform(-0.7, 0.7)) / wide, (y - rng.uniform(-0.8, 0.8)) / high
        inside = 1 - np.sqrt(x * x + y * y) + 0.12 * smooth_noise(side, 0.06, rng)
        brushed, defect = np.clip(1 - 5 * inside, 0, 1), inside > 0.1
    lines = brushed * lines + (1 - brushed) * (0.5 * fine_noise(side, 2.5, rng))
    relief = 0.16 * lines + 0.0012 * side * smooth_noise(side, 0.8, rng)
    brightness = 0.92 * (1 + 0.07 * lines + 0.012 * smooth_noise(side, 0.35, rng))
    grain = brushed[..., None] * np.array([math.cos(tilt), -math.sin(tilt)], np.float32)
    everywhere = np.ones((side, side), bool)
    gloss = np.full((side, side), 0.5)
    return _surface(relief, brightness[..., None] * _STEEL, gloss, grain, everywhere, everywhere, defect)


def weave(side: int, rng: np.random.Generator, *, missing: bool = False) -> Surface:
    """Plain-woven cloth, blue across white, pulled a little out of true.

    Args:
        side: Grid points along a side.
        rng: What makes this piece differ from the next.
        missing: Leave out a stretch of one thread, and mark it as the defect.
    """
    x, y = grid(side)
    pitch = _N_THREADS / 2
    u = (x + 0.012 * smooth_noise(side, 0.5, rng)) * pitch + rng.uniform(0, 2)
    v = (y + 0.012 * smooth_noise(side, 0.5, rng)) * pitch + rng.uniform(0, 2)
    warp, weft = _thread(u, v, rng, 0.0), _thread(v, u, rng, 1.0)
    defect = np.zeros((side, side), bool)
    if missing:
        thread = int(np.floor(rng.uniform(-0.6, 0.6) * pitch + u.mean()))
        middle, half = rng.uniform(-0.5, 0.5) * pitch + v.mean(), rng.uniform(3, 8)
        gap = (np.floor(u) == thread) & (np.abs(v - middle) < half)
        warp = (np.where(gap, np.float32(-0.9), warp[0]), warp[1])
        defect = gap
    on_top = warp[0] > weft[0]
    height = np.maximum(warp[0], weft[0])
    blue, white = np.array([0.13, 0.21, 0.40]), np.array([0.66, 0.64, 0.58])
    albedo = np.where(on_top[..., None], warp[1][..., None] * blue, weft[1][..., None] * white)
    hollow = np.clip(0.45 + 0.75 * (height + 0.55), 0.12, 1)  # little light gets between the threads
    relief = cv2.GaussianBlur((height * 0.42 * side / _N_THREADS).astype(np.float32), (0, 0), 0.9)
    everywhere = np.ones((side, side), bool)
    return _surface(relief, albedo, np.full((side, side), 0.05), np.zeros((side, side, 2)), hollow, everywhere, defect)


def _thread(across: Field, along: Field, rng: np.random.Generator, phase: float) -> tuple[Field, Field]:
    """Height, -1 to 1, and brightness of threads that run along one coordinate and count up with the other."""
    index = np.floor(across)
    place = across - index - 0.5
    number = (index - index.min()).astype(np.intp)
    width = 0.47 + 0.02 * rng.standard_normal(number.max() + 1)[number]
    shade = 1 + 0.05 * rng.standard_normal(number.max() + 1)[number]
    round_ = np.sqrt(np.clip(1 - (place / width) ** 2, 0, 1))
    over_under = np.cos(np.pi * (along - 0.5 + index + phase))
    twist = np.sin(2 * np.pi * (1.9 * along + 1.6 * place) + 3 * shade)
    height = np.where(np.abs(place) < width, 0.55 * over_under + 0.45 * round_ - 0.1, -1)
    return height.astype(np.float32), (shade * (1 + 0.09 * twist)).astype(np.float32)


def _chamfer(depth: Field) -> Field:
    """A chamfer of 45 degrees: rises with the depth inside, then stays."""
    return np.clip(depth, 0, _CHAMFER)


def _inside(depth: Field, edge: np.float32) -> Field:
    """1 inside, 0 outside, and a straight slope between them of the width `edge`."""
    return np.clip(depth / edge + np.float32(0.5), 0, 1)


def _turning_marks(r: Field, rng: np.random.Generator) -> Field:
    """The tool's feed: fine rings, no two parts alike."""
    radii = np.linspace(0, 1.5, 700)
    profile = cv2.GaussianBlur(rng.standard_normal((1, 700)), (0, 0), 1.1)[0] / 0.5
    feed = np.sin(2 * np.pi * radii / 0.017 + rng.uniform(0, 2 * np.pi))
    marks: Field = np.interp(r, radii, 0.00045 * profile + 0.00025 * feed).astype(np.float32)
    return marks


def _shadow(metal: Field, side: int) -> Field:
    """Light left where the part keeps the lamp from the belt, and all of it on the part."""
    shift = 0.05 * side
    moved = np.array([[1, 0, shift * 0.8], [0, 1, shift]], np.float32)
    dark = cv2.warpAffine(metal, moved, (side, side))
    dark = cv2.GaussianBlur(dark, (0, 0), 0.014 * side)
    light: Field = 1 - 0.65 * dark * (1 - metal)
    return light


def _surface(
    relief: Field, albedo: Field, gloss: Field, grain: Field, light: Field, part: Mask, defect: Mask
) -> Surface:
    relief, albedo, gloss, grain, light = (
        np.array(field, np.float32, order="C") for field in (relief, albedo, gloss, grain, light)
    )
    return Surface(relief, albedo, gloss, grain, light, part, defect)
