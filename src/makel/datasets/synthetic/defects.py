"""Faults as they happen to a surface: they change relief, colour and gloss, and the light does the rest.

Each function changes a surface in place, marks what it changed as the defect, and takes a severity from 0, for which an
inspector looks twice, to 1, which nobody misses. `missing` features are left out when a product is built.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from makel.datasets.synthetic.surface import Field, Surface, smooth_noise


def scratch(surface: Surface, rng: np.random.Generator, severity: float) -> None:
    """A slightly bent groove with a raised burr on both sides; the bare material in it is brighter."""
    length = surface.side * (0.14 + 0.24 * severity) * rng.uniform(0.85, 1.15)
    patch, dx, dy = _patch(surface, rng, reach=0.6 * length, margin=0.03)
    steps = np.linspace(-0.5, 0.5, 64)
    heading = rng.uniform(0, 2 * math.pi) + rng.normal(0, 0.6) * steps
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * length / len(steps)
    points -= points[len(points) // 2]
    canvas = np.full(dx.shape, 255, np.uint8)
    on_canvas = np.rint((points - [dx[0, 0], dy[0, 0]]) * 16).astype(np.int32)
    cv2.polylines(canvas, [on_canvas], isClosed=False, color=0, thickness=1, shift=4)
    distance = cv2.distanceTransform(canvas, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ends = [np.sqrt((dx - x) ** 2 + (dy - y) ** 2) for x, y in points[[0, -1]].tolist()]
    set_down_and_lifted = np.clip(np.minimum(*ends) / (0.3 * length) + 0.25, 0, 1)
    chatter = np.clip(1 + 0.35 * smooth_noise(max(dx.shape), 0.1, rng)[: dx.shape[0], : dx.shape[1]], 0.2, 1.3)
    pressure = set_down_and_lifted * chatter * patch.part
    width = surface.side / 512 * (0.9 + 0.8 * severity)
    groove, burr = pressure * np.exp(-((distance / width) ** 2)), pressure * np.exp(-((distance / width - 1.8) ** 2))
    patch.relief += (0.8 + 1.4 * severity) * surface.side / 512 * (0.3 * burr - groove)
    patch.grain *= (1 - np.clip(groove, 0, 1))[..., None]
    patch.albedo += ((0.3 + 0.3 * severity) * np.clip(groove, 0, 1))[..., None] * (0.95 - patch.albedo)
    patch.light *= 1 + (0.45 + 0.5 * severity) * groove  # fresh metal glints
    patch.defect |= (distance < max(2.2 * width, 2)) & patch.part


def hole(surface: Surface, rng: np.random.Generator, severity: float) -> None:
    """A pore or puncture: a ragged, steep pit that little light gets into."""
    radius = surface.side * (0.010 + 0.020 * severity) * rng.uniform(0.9, 1.1)
    patch, dx, dy = _patch(surface, rng, reach=2 * radius, margin=0.03)
    depth = _blob(dx, dy, radius, rng, raggedness=0.3)
    pit = np.clip(depth / (0.3 * radius) + 0.3, 0, 1)
    patch.relief -= 0.8 * radius * pit
    patch.light *= 1 - 0.85 * pit
    patch.gloss *= 1 - pit
    patch.defect |= depth > -0.09 * radius


def stain(surface: Surface, rng: np.random.Generator, severity: float) -> None:
    """Oil or rust: an uneven film with a darker rim, which tints the colour and takes the shine off."""
    radius = surface.side * (0.035 + 0.05 * severity) * rng.uniform(0.9, 1.15)
    patch, dx, dy = _patch(surface, rng, reach=2.2 * radius, margin=0.03)
    depth = _blob(dx, dy, radius, rng, raggedness=0.55) / radius
    film = np.clip(depth / 0.18, 0, 1)
    rim = np.exp(-(((depth - 0.13) / 0.09) ** 2))
    uneven = np.clip(1 + 0.3 * smooth_noise(max(dx.shape), 0.12, rng)[: dx.shape[0], : dx.shape[1]], 0.3, 1.6)
    strength = (0.25 + 0.4 * severity) * film * np.clip(0.75 * uneven + 0.5 * rim, 0, 1.3) * patch.part
    rust, oil = (0.72, 0.40, 0.17), (0.30, 0.26, 0.20)
    tint = np.array(rust if rng.random() < 0.5 else oil, np.float32)
    patch.albedo *= 1 - strength[..., None] * (1 - tint)
    patch.gloss *= 1 - strength
    patch.defect |= (film > 0.15) & patch.part


def dent(surface: Surface, rng: np.random.Generator, severity: float) -> None:
    """A blow: the surface, marks and all, is pushed in, and bulges a little around it."""
    radius = surface.side * (0.04 + 0.035 * severity) * rng.uniform(0.9, 1.2)
    patch, dx, dy = _patch(surface, rng, reach=2 * radius, margin=0.04)
    turn, flat = rng.uniform(0, math.pi), rng.uniform(0.65, 1)
    along, across = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
    r = np.sqrt(along**2 + (across / flat) ** 2) / radius
    bowl = np.clip(1 - r * r, 0, 1) ** 2
    bulge = np.exp(-(((r - 1.05) / 0.2) ** 2))
    patch.relief -= (0.12 + 0.16 * severity) * radius * (bowl - 0.1 * bulge) * patch.part
    patch.defect |= (r < 1.05) & patch.part


def _patch(surface: Surface, rng: np.random.Generator, *, reach: float, margin: float) -> tuple[Surface, Field, Field]:
    """A window on the surface around a point drawn from the part, and each point's way from there in grid steps.

    Args:
        surface: What the window looks at; a change in the window is a change there.
        rng: Draws the point.
        reach: Half the window's side in grid steps; the surface's border may cut it off.
        margin: How far inside the part the point lies, as a share of the side.
    """
    quarter = np.pad(surface.part[::4, ::4].astype(np.uint8), 1)
    depth = cv2.distanceTransform(quarter, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    row, column = divmod(int(rng.choice(np.flatnonzero(depth >= margin * surface.side / 4))), depth.shape[1])
    y, x = 4 * row, 4 * column
    top, left = max(0, int(y - reach)), max(0, int(x - reach))
    window = np.s_[top : int(y + reach) + 1, left : int(x + reach) + 1]
    dy, dx = np.indices(surface.relief[window].shape, np.float32)
    return surface.window(window), dx + (left - x), dy + (top - y)


def _blob(dx: Field, dy: Field, radius: float, rng: np.random.Generator, raggedness: float) -> Field:
    """How deep each point lies inside an irregular patch, in grid steps; negative outside."""
    side = max(dx.shape)
    noise = smooth_noise(side, 0.35, rng) + 0.4 * smooth_noise(side, 0.1, rng)
    away = np.sqrt(dx * dx + dy * dy)
    depth: Field = radius - away + 0.5 * raggedness * radius * noise[: dx.shape[0], : dx.shape[1]]
    return depth
