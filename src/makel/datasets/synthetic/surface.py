"""What a camera sees of a surface: relief, colour and gloss under a lamp, through a lens, onto a sensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[Any]
"""float32; the annotations of NumPy and OpenCV lose the type on the way."""

Mask = NDArray[np.bool_]

SUPERSAMPLING = 2
"""Surfaces are built at this multiple of the picture's size, so that edges come out antialiased."""

_LEVELS = 4095
_ENCODED = np.rint(255 * (np.arange(_LEVELS + 1) / _LEVELS) ** (1 / 2.2)).astype(np.uint8)
"""The sensor's 12 bits of light, as 8 bits of picture."""


@dataclass
class Surface:
    """A surface on a square grid of `SUPERSAMPLING` points a pixel. Defects change it in place.

    Attributes:
        relief: (S, S) height in grid steps, up is towards the camera.
        albedo: (S, S, 3) share of red, green and blue light that is thrown back, 0 to 1.
        gloss: (S, S) strength of the highlight, 0 for matt.
        grain: (S, S, 2) unit vectors along the machining marks, which stretch highlights across them; 0 for none.
        light: (S, S) share of the light that gets there, less than 1 in shade and in holes.
        part: (S, S) where the product is, and a defect may be.
        defect: (S, S) ground truth.
    """

    relief: Field
    albedo: Field
    gloss: Field
    grain: Field
    light: Field
    part: Mask
    defect: Mask

    @property
    def side(self) -> int:
        """Grid points along a side."""
        return len(self.relief)

    def window(self, where: tuple[slice, slice]) -> Surface:
        """Part of the surface; a change there is a change here."""
        return Surface(**{name: field[where] for name, field in vars(self).items()})


def photograph(surface: Surface, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture as a camera over the line takes it: lamp, exposure, focus and noise vary a little from part to part.

    Returns:
        (S / SUPERSAMPLING, S / SUPERSAMPLING, 3) uint8 RGB.
    """
    linear: Field = _shade(surface, lamp=(rng.normal(-1.1, 0.1), rng.normal(-1.3, 0.1), rng.normal(2.1, 0.1)))
    side = surface.side // SUPERSAMPLING
    linear = cv2.resize(linear, (side, side), interpolation=cv2.INTER_AREA)
    linear = cv2.GaussianBlur(linear, (0, 0), rng.uniform(0.45, 0.75))
    x, y = grid(side)
    off_x, off_y = rng.normal(0, 0.08), rng.normal(0, 0.08)
    exposure: Field = rng.normal(1, 0.035) * (1 - rng.uniform(0.08, 0.16) * ((x - off_x) ** 2 + (y - off_y) ** 2))
    linear *= exposure[..., None]
    linear *= (1 + 0.005 * rng.standard_normal(3)).astype(np.float32)  # white balance
    noise = rng.standard_normal(linear.shape, np.float32)
    linear += noise * np.sqrt(linear * 1.5e-4 + 2e-6)  # photons, and the sensor's own
    return _ENCODED[(np.clip(linear, 0, 1) * _LEVELS).astype(np.intp)]


def truth(surface: Surface) -> NDArray[np.uint8]:
    """The mask of the defect at the picture's size, 255 where it covers half a pixel or more."""
    side = surface.side // SUPERSAMPLING
    covered = cv2.resize(surface.defect.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    return np.where(covered >= 0.5, 255, 0).astype(np.uint8)


def grid(side: int) -> tuple[Field, Field]:
    """x and y of each point, -1 to 1."""
    axis = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    x, y = np.meshgrid(axis, axis)
    return x, y


def smooth_noise(side: int, feature: float, rng: np.random.Generator) -> Field:
    """(side, side) noise of zero mean and unit deviation.

    Args:
        side: Points along a side.
        feature: Size of its features as a share of the side.
        rng: Where it comes from.
    """
    coarse = max(4, round(2.5 / feature))
    # Cubic interpolation of a coarse lattice, with a margin so that the border looks like the inside.
    lattice = rng.standard_normal((coarse + 4, coarse + 4), np.float32)
    step = side / coarse
    big = cv2.resize(lattice, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    edge = round(1.5 * step)
    return _standard(big[edge : edge + side, edge : edge + side])


def fine_noise(side: int, width: float, rng: np.random.Generator) -> Field:
    """(side, side) noise of zero mean and unit deviation, with features a few times `width` grid steps wide."""
    return _standard(cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), width))


def streaks(side: int, length: float, width: float, rng: np.random.Generator) -> Field:
    """(side, side) horizontal noise of zero mean, unit deviation: `length` as a share of the side, `width` in steps."""
    noise: Field = rng.standard_normal((side, side), np.float32)
    for _ in range(2):  # a box twice is nearly a bell, at the same price for every length
        noise = cv2.blur(noise, (round(length * side / 2) | 1, 1))
    return _standard(cv2.GaussianBlur(noise, (1, 9), sigmaX=1, sigmaY=width))


def _standard(noise: Field) -> Field:
    centred: Field = noise - noise.mean()
    centred /= centred.std()
    return centred


def _shade(surface: Surface, lamp: tuple[float, float, float]) -> Field:
    """Light thrown back to a camera straight above, linear, (S, S, 3)."""
    x, y = grid(surface.side)
    slope_x = cv2.Sobel(surface.relief, cv2.CV_32F, 1, 0, ksize=1, scale=0.5)
    slope_y = cv2.Sobel(surface.relief, cv2.CV_32F, 0, 1, ksize=1, scale=0.5)
    normal = _unit(-slope_x, -slope_y, np.ones_like(x))
    towards_lamp = _unit(lamp[0] - x, lamp[1] - y, np.full_like(x, lamp[2]))
    halfway = _unit(towards_lamp[0], towards_lamp[1], towards_lamp[2] + 1)
    diffuse = np.maximum(_dot(normal, towards_lamp), 0)
    facing = np.maximum(_dot(normal, halfway), 0)
    broad = _squared(facing, 5)
    # Marks throw light to all sides across them and none along: Kajiya and Kay's highlight of a fibre, which draws the
    # bright fans on a turned face and the bright band on a brushed one.
    along_x, along_y = surface.grain[..., 0], surface.grain[..., 1]
    along = along_x * halfway[0] + along_y * halfway[1] - facing * (along_x * normal[0] + along_y * normal[1])
    fan = np.exp(-30 * along * along) * _squared(facing, 2)
    is_grained = (along_x != 0) | (along_y != 0)
    highlight = surface.gloss * np.where(is_grained, 0.5 * fan + 0.3 * broad, 0.6 * broad + 0.4 * _squared(broad, 2))
    sky = 0.5 + 0.5 * normal[2]  # a diffuse dome above the line
    seen: Field = surface.albedo * (surface.light * (0.2 * sky + 0.45 * diffuse + highlight))[..., None]
    return seen


def _squared(base: Field, times: int) -> Field:
    """`base` to the power of 2 ** times."""
    for _ in range(times):
        base = base * base
    return base


def _unit(x: Field, y: Field, z: Field) -> tuple[Field, Field, Field]:
    length = np.sqrt(x * x + y * y + z * z)
    return x / length, y / length, z / length


def _dot(first: tuple[Field, Field, Field], second: tuple[Field, Field, Field]) -> Field:
    product: Field = first[0] * second[0] + first[1] * second[1] + first[2] * second[2]
    return product
