"""From the scores of held-out good images to thresholds and p-values: split-conformal, no defect needed.

If the n held-out good images and a new good image are exchangeable (same line, same camera, none of them fitted on),
the new one's score is equally likely to take each of the n + 1 ranks. So with m = floor(budget * (n + 1)) and
the threshold at the (n + 1 - m)-th smallest held-out score,

    P(a good image scores above the threshold) <= m / (n + 1) <= budget,

for any n and any distribution of scores (Papadopoulos et al. 2002; Vovk, Gammerman, Shafer 2005). The probability is
over the held-out images as well as the new one. Given the ones at hand, the rate on the line is Beta(m, n + 1 - m)
distributed, or below that where scores tie; `Calibration.explain` says what that means in per cent.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import asdict, dataclass, fields
from itertools import count, pairwise
from math import ceil, exp, isfinite, lgamma, log, log1p
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from makel.errors import CalibrationError, UsageError

Scheme = Literal["holdout", "cross"]


@dataclass(frozen=True)
class Calibration:
    """Thresholds at a false-reject budget, and the scores they came from.

    An image is rejected when its score is above `image_threshold`, which is the same as its p-value being at most
    `promised_false_reject`.

    Attributes:
        requested_false_reject: The budget asked for, in (0, 1).
        promised_false_reject: What the number of images carries: at most the budget, or 1 / (n + 1) where that is more.
            With scheme "cross" it is the level aimed at, not a promise; `explain` says why.
        image_threshold: One of `image_scores`.
        pixel_threshold: One of `pixel_peaks`: a good image shows any region above it at most at the same rate.
        image_scores: Scores of the held-out good images, ascending.
        pixel_peaks: The highest value of each held-out good image's anomaly map, ascending.
        scheme: "holdout": images kept out of the fit; "cross": every good image, scored by a model of a fold
            that did not see it.
    """

    requested_false_reject: float
    promised_false_reject: float
    image_threshold: float
    pixel_threshold: float
    image_scores: tuple[float, ...]
    pixel_peaks: tuple[float, ...]
    scheme: Scheme = "holdout"

    def __post_init__(self) -> None:
        expected = _levels(self.image_scores, self.pixel_peaks, self.requested_false_reject)
        found = (self.promised_false_reject, self.image_threshold, self.pixel_threshold)
        if found != expected:
            raise CalibrationError(
                f"thresholds {found} do not follow from the calibration scores, which give {expected}: calibrate again"
            )

    @property
    def n(self) -> int:
        """Number of held-out good images."""
        return len(self.image_scores)

    def p_value(self, score: float) -> float:
        """Share of good images that would score at least this high: (1 + #{held-out >= score}) / (n + 1).

        Args:
            score: Raw image score.

        Returns:
            A number in [1 / (n + 1), 1].

        Raises:
            CalibrationError: The score is NaN.
        """
        if score != score:
            raise CalibrationError("a score that is NaN has no p-value: the model or its input is broken")
        return (1 + self.n - bisect_left(self.image_scores, score)) / (self.n + 1)

    def contradicted_by(self, n_above: int, n: int) -> bool:
        """Whether more of `n` new good images score above the threshold than luck explains.

        So many that even the rate which the line stays below with 95 % confidence would hardly ever (once in a
        thousand times) let them happen.
        """
        if n_above == 0:
            return False
        return _beta_quantile(0.001, n_above, n + 1 - n_above) > self._rate_bound

    def threshold_for(self, false_reject: float) -> float:
        """The image threshold at another budget, from the same held-out scores.

        Args:
            false_reject: The budget, in (0, 1).

        Returns:
            The smallest held-out score that keeps the budget; reject above it.

        Raises:
            CalibrationError: The images are too few for this budget.
            UsageError: The budget is not in (0, 1).
        """
        allowed = _allowed(false_reject, self.n)
        if allowed == 0:
            raise CalibrationError(
                f"{self._images()} can promise a false-reject rate of {_percent(1 / (self.n + 1))} at best, "
                f"not {_percent(false_reject)}: {images_needed(false_reject)} are needed, or a higher rate"
            )
        return self.image_scores[self.n - allowed]

    def explain(self) -> str:
        """What these images can and cannot promise, in plain words for whoever answers for the rejects."""
        above = self.n - bisect_right(self.image_scores, self.image_threshold)
        asked = _percent(self.requested_false_reject)
        rate = f"{_percent(self.promised_false_reject)} ({self._n_allowed} in {self.n + 1})"
        verb = "promise" if self.scheme == "holdout" else "aim at"
        if self.promised_false_reject > self.requested_false_reject:
            if asked == _percent(self.promised_false_reject):  # they differ by less than is shown
                rate = f"{100 * self.promised_false_reject:.3g} % ({self._n_allowed} in {self.n + 1})"
            text = (
                f"{self._images()} can {verb} a false-reject rate of {rate} at best, not the {asked} asked for: "
                f"{images_needed(self.requested_false_reject)} are needed. "
                "Until then the threshold is the highest score among them."
            )
        else:
            text = (
                f"{self._images()} {verb} a false-reject rate of at most {rate}; {asked} was asked for. "
                f"{above} of them score above the threshold."
            )
        if self.scheme == "cross":
            return (
                f"{text} That is no guarantee: each of these scores comes from a model that never saw its image, but "
                "new images are scored by one model that saw them all, so it holds as far as leaving a few images out "
                "hardly changes the model. Even the strict form of this scheme (CV+, Barber et al. 2021) guarantees "
                f"only twice the rate, {_percent(min(1.0, 2 * self.promised_false_reject))}, plus a small term. "
                "Hold images out where you can spare them."
            )
        return (
            f"{text} That is the average over the luck of which images were held out; with these, the rate on the line "
            f"stays below {_percent(self._rate_bound)} with 95 % confidence. It holds for parts and pictures like "
            "those held out; a new camera, light or supplier needs a new calibration. It says nothing of how many "
            "defects are missed."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; `from_json` reads them back exactly."""
        return {**asdict(self), "image_scores": list(self.image_scores), "pixel_peaks": list(self.pixel_peaks)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """A calibration from what `to_json` gave.

        Raises:
            CalibrationError: A key is missing or unknown, or thresholds and scores contradict each other.
        """
        known = {item.name for item in fields(cls)}
        if set(data) != known:
            raise CalibrationError(f"calibration has the keys {sorted(data)}, expected {sorted(known)}")
        scores = {key: tuple(data[key]) for key in ("image_scores", "pixel_peaks")}
        return cls(**{**data, **scores})

    @property
    def _n_allowed(self) -> int:
        """Of n + 1 good images, how many may score above the threshold."""
        return max(1, _allowed(self.requested_false_reject, self.n))

    @property
    def _rate_bound(self) -> float:
        """What the false-reject rate on the line stays below with 95 % confidence."""
        return _beta_quantile(0.95, self._n_allowed, self.n + 1 - self._n_allowed)

    def _images(self) -> str:
        kind = "held-out" if self.scheme == "holdout" else "cross-fitted"
        return f"{self.n} {kind} good image{'' if self.n == 1 else 's'}"


def calibrate(
    image_scores: ArrayLike, map_peaks: ArrayLike, *, false_reject: float = 0.01, scheme: Scheme = "holdout"
) -> Calibration:
    """Thresholds for images and pixels from held-out good images.

    A budget that the images cannot carry is not an error here: the thresholds are then the highest scores,
    `promised_false_reject` says what that promises, and `explain` says how many images are needed.

    Args:
        image_scores: (n,) raw scores of good images the model was not fitted on.
        map_peaks: (n,) highest value of each of these images' anomaly maps.
        false_reject: Share of good parts that may be rejected, in (0, 1).
        scheme: "holdout" or "cross", see `Calibration`.

    Returns:
        The calibration.

    Raises:
        CalibrationError: No images, numbers that do not match, or a score that is not finite.
        UsageError: `false_reject` is not in (0, 1).
    """
    scores, peaks = _ascending(image_scores), _ascending(map_peaks)
    promised, image_threshold, pixel_threshold = _levels(scores, peaks, false_reject)
    return Calibration(float(false_reject), promised, image_threshold, pixel_threshold, scores, peaks, scheme)


def images_needed(false_reject: float) -> int:
    """The fewest held-out good images that can promise this rate: the smallest n with 1 / (n + 1) <= false_reject."""
    _check_budget(false_reject)
    return next(n for n in count(max(1, ceil(1 / false_reject) - 2)) if 1 / (n + 1) <= false_reject)


def _ascending(values: ArrayLike) -> tuple[float, ...]:
    return tuple(np.sort(np.asarray(values, dtype=np.float64).ravel()).tolist())


def _levels(scores: tuple[float, ...], peaks: tuple[float, ...], false_reject: float) -> tuple[float, float, float]:
    """Promised rate, image threshold and pixel threshold that follow from ascending scores."""
    n = len(scores)
    if n == 0 or n != len(peaks):
        raise CalibrationError(
            f"calibration got {n} image scores and {len(peaks)} map peaks: one of each is needed for every image, "
            "and at least one held-out good image"
        )
    for name, values in (("image scores", scores), ("map peaks", peaks)):
        if not all(map(isfinite, values)):
            raise CalibrationError(f"the {name} of held-out good images are not all finite: the fit is broken")
        if any(later < earlier for earlier, later in pairwise(values)):
            raise CalibrationError(f"the {name} of a calibration must ascend")
    rejects = max(1, _allowed(false_reject, n))
    return rejects / (n + 1), scores[n - rejects], peaks[n - rejects]


def _allowed(false_reject: float, n: int) -> int:
    """How many of n + 1 exchangeable good images the budget lets above the threshold; 0 where n is too small."""
    _check_budget(false_reject)
    # In binary 0.29 * 100 falls short of 29, but 29 / 100 is 0.29: only the quotient can be trusted at the edge.
    most = int(false_reject * (n + 1)) + 1
    return next(m for m in (most, most - 1, most - 2) if m / (n + 1) <= false_reject)


def _check_budget(false_reject: float) -> None:
    if not 0 < false_reject < 1:
        raise UsageError(
            f"a false-reject budget of {false_reject} cannot be kept: give a share between 0 and 1, such as 0.01"
        )


def _beta_quantile(level: float, a: int, b: int) -> float:
    """Quantile of Beta(a, b) for whole a, b >= 1: P(Beta(a, b) > x) = P(Binomial(a + b - 1, x) < a), bisected."""
    n = a + b - 1
    choose = [lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in range(a)]

    def tail(x: float) -> float:
        return sum(exp(c + i * log(x) + (n - i) * log1p(-x)) for i, c in enumerate(choose))

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) > 1 - level else (low, middle)
    return high


def _percent(rate: float) -> str:
    """0.066 %, 0.66 %, 1.0 %, 9.1 %, 50.0 %: never a small rate rounded to nothing."""
    percent = 100 * rate
    return f"{percent:.1f} %" if percent >= 0.95 or percent == 0 else f"{percent:.2g} %"
