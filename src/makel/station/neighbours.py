"""The good picture that looks most like another one: what a person holds beside a reject.

Candidates are pictures of the same model that are still kept: parts a person called good, and the latest parts that
passed and nobody called a defect. Where none is kept, the golden images of the model stand in, which are good images
of its fit at the size the model sees. Nearest is the smallest mean absolute difference at 48 x 48 pixels, on a common
brightness scale: coarse enough that texture and noise do not decide, fine enough that position and variant do.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import MakelError, NotFoundError
from makel.model import overlay
from makel.station.decisions import Recorded
from makel.station.filters import Filter
from makel.station.look import golden_images
from makel.station.station import Station

_SIDE_PX = 48
_PASSED, _ANSWERED = 24, 24
"""Each of them is decoded once, which on a line with large images is what this costs."""

_KEPT = 2048


@dataclass(frozen=True)
class Neighbour:
    """A good picture.

    Attributes:
        number: Of its decision; None for a golden image.
        golden: Its index among the golden images of the model; None for a decision.
        difference: Mean absolute difference, 0 for the same picture, 1 for black beside white.
        n_compared: Pictures that were looked at.
    """

    number: int | None
    golden: int | None
    difference: float
    n_compared: int


class Neighbours:
    """Looks for them, and remembers what pictures look like. Thread-safe."""

    def __init__(self, station: Station) -> None:
        """Look among the pictures of a station."""
        self._station = station
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def nearest(self, recorded: Recorded) -> Neighbour:
        """The good picture most like this one, other than itself.

        Raises:
            NotFoundError: The picture is not kept any more, or there is no good one to compare with.
            ImageError: The picture cannot be decoded.
        """
        decision = recorded.decision
        white_level = self._white_level(recorded)
        wanted = self._look(recorded, white_level)
        distances: list[tuple[float, int]] = []
        for other in self._candidates(recorded):
            try:
                seen = self._look(other, white_level)
            except MakelError:
                continue  # dropped meanwhile
            distances.append((_difference(wanted, seen), other.number))
        if distances:
            difference, number = min(distances)
            return Neighbour(number, None, difference, len(distances))
        golden = golden_images(self._station.inspector_of(decision))
        if not golden:
            raise NotFoundError(f"no good picture of {decision.model} is kept to compare with")
        differences = [_difference(wanted, _small(image)) for image in golden]
        best = int(np.argmin(differences))
        return Neighbour(None, best, differences[best], len(golden))

    def _candidates(self, recorded: Recorded) -> list[Recorded]:
        find, decision = self._station.store.find, recorded.decision
        answered = find(Filter(model=decision.model, answer="good"), limit=_ANSWERED)
        passed = find(Filter(model=decision.model, verdict="pass", answer="none", of_the_line=True), limit=_PASSED)
        unique = {each.decision.image_sha256: each for each in (*passed, *answered)}
        unique.pop(decision.image_sha256, None)
        unique.pop("", None)
        return [each for sha, each in unique.items() if sha in self._station.pictures]

    def _white_level(self, recorded: Recorded) -> int | None:
        try:
            return self._station.inspector_of(recorded.decision).manifest.preprocessing.white_level
        except MakelError:
            return None

    def _look(self, recorded: Recorded, white_level: int | None) -> NDArray[np.float32]:
        image_sha256 = recorded.decision.image_sha256
        with self._lock:
            if image_sha256 in self._seen:
                self._seen.move_to_end(image_sha256)
                return self._seen[image_sha256]
        pixels = self._station.decode(self._station.picture(recorded))
        small = _small(overlay.plain(pixels, white_level=white_level, longest_px=(1, 512)))
        with self._lock:
            self._seen[image_sha256] = small
            while len(self._seen) > _KEPT:
                self._seen.popitem(last=False)
        return small


def _small(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(48, 48, 3) float32 in [0, 1]."""
    resized = cv2.resize(pixels, (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.float32) / np.float32(255)


def _difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.abs(one - other).mean())
