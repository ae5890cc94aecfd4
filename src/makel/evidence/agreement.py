"""How far inspectors, machines and people, agree with a reference, with themselves and with each other.

An attribute agreement study presents every part several times to every inspector, who says pass or reject without
knowing the reference. The measures are those of AIAG, Measurement Systems Analysis, 4th edition (2010), chapter III C;
kappa is Cohen's (1960) of two, and Fleiss' (1971) of any number of judgements.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from makel.errors import UsageError
from makel.evaluation.protocol import Rate

AT_LEAST_PARTS, AT_LEAST_TRIALS = 50, 2
"""What AIAG's manual has in its study: fewer say little, and the report says so."""


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float | None:
    """Agreement of two inspectors beyond what chance alone would give.

    Args:
        first: (N,) judgements of the first, of any values that compare.
        second: (N,) of the second, on the same presentations.

    Returns:
        1 for full agreement, 0 for that of chance; None where both said the same one thing throughout, since chance
        explains all of that.

    Raises:
        UsageError: There are none, or not as many of each.
    """
    one, other = np.asarray(first), np.asarray(second)
    if one.shape != other.shape or one.ndim != 1 or one.size == 0:
        raise UsageError(f"kappa takes two equally long rows of judgements, got shapes {one.shape} and {other.shape}")
    categories = np.unique(np.concatenate([one, other]))
    observed = float((one == other).mean())
    by_chance = sum(float((one == each).mean()) * float((other == each).mean()) for each in categories)
    return _beyond_chance(observed, by_chance)


def fleiss_kappa(counts: ArrayLike) -> float | None:
    """Agreement of many judgements of each part beyond what chance alone would give.

    Args:
        counts: (parts, categories) how many judgements of a part fell into a category; as many of each part.

    Returns:
        As `cohen_kappa`.

    Raises:
        UsageError: There is no part, fewer than two judgements of one, or not as many of each.
    """
    table = np.asarray(counts, np.float64)
    if table.ndim != 2 or table.size == 0:
        raise UsageError(f"kappa takes a table of parts and categories, got shape {table.shape}")
    judged = table.sum(1)
    if judged[0] < 2 or (judged != judged[0]).any():
        raise UsageError("kappa takes at least two judgements of each part, and as many of each")
    pairs = (table * (table - 1)).sum(1) / (judged[0] * (judged[0] - 1))
    shares = table.sum(0) / table.sum()
    return _beyond_chance(float(pairs.mean()), float((shares * shares).sum()))


def _beyond_chance(observed: float, by_chance: float) -> float | None:
    return None if by_chance > 1 - 1e-12 else (observed - by_chance) / (1 - by_chance)


@dataclass(frozen=True)
class Limits:
    """What an inspector has to reach, as shares; AIAG's manual calls these acceptable unless a customer asks for more.

    Attributes:
        effectiveness: Parts judged rightly every time, at least.
        miss_rate: Presentations of a defective part that pass, at most.
        false_alarm_rate: Presentations of a good part that are rejected, at most.
    """

    effectiveness: float = 0.9
    miss_rate: float = 0.02
    false_alarm_rate: float = 0.05

    def __post_init__(self) -> None:
        if not all(0 <= each <= 1 for each in (self.effectiveness, self.miss_rate, self.false_alarm_rate)):
            raise UsageError(f"limits are shares between 0 and 1, got {self.in_words()}")

    def in_words(self) -> str:
        """For people."""
        return (
            f"effectiveness at least {100 * self.effectiveness:.4g} %, misses at most {100 * self.miss_rate:.4g} %, "
            f"false alarms at most {100 * self.false_alarm_rate:.4g} %"
        )

    def met(self, result: Agreement) -> bool:
        """Whether a result is within all three; what was not measured is not met."""
        rates = (result.effectiveness.value, result.miss_rate.value, result.false_alarm_rate.value)
        if None in rates:
            return False
        effectiveness, miss, alarm = (float(rate or 0.0) for rate in rates)
        # Shares of counts: a limit of 0.9 is met by 45 of 50, whatever the rounding.
        return (
            effectiveness >= self.effectiveness - 1e-12
            and miss <= self.miss_rate + 1e-12
            and alarm <= self.false_alarm_rate + 1e-12
        )


MARGINAL = Limits(0.8, 0.05, 0.1)
"""Within these AIAG's manual calls an inspector marginal: it may need improvement."""


@dataclass(frozen=True)
class Agreement:
    """One inspector.

    Attributes:
        name: Who.
        effectiveness: Parts on which every judgement was that of the reference, of all parts.
        miss_rate: Presentations of defective parts that passed, of all presentations of defective parts.
        false_alarm_rate: Presentations of good parts that were rejected, of all presentations of good parts.
        repeatability: Parts that were judged the same every time, right or wrong, of all parts.
        kappa_reference: Cohen's, of every presentation against the reference.
        kappa_within: Fleiss', of the judgements of each part among themselves.
        missed: The defective parts that passed at least once.
        alarmed: The good parts that were rejected at least once.
        unsteady: The parts that were not judged the same every time.
    """

    name: str
    effectiveness: Rate
    miss_rate: Rate
    false_alarm_rate: Rate
    repeatability: Rate
    kappa_reference: float | None
    kappa_within: float | None
    missed: tuple[str, ...] = ()
    alarmed: tuple[str, ...] = ()
    unsteady: tuple[str, ...] = ()

    def grade(self, limits: Limits, marginal: Limits) -> str:
        """ "acceptable", "marginal" or "unacceptable"."""
        return "acceptable" if limits.met(self) else "marginal" if marginal.met(self) else "unacceptable"


@dataclass(frozen=True)
class Between:
    """Inspectors among each other.

    Attributes:
        kappa: Fleiss', of all judgements of all of them.
        all_agree: Parts on which all of them said the same every time, of all parts.
        all_right: Parts on which all of them were right every time, of all parts.
        pairs: Cohen's kappa of two inspectors, trial by trial; where one has fewer trials, of those that both have.
    """

    kappa: float | None
    all_agree: Rate
    all_right: Rate
    pairs: tuple[tuple[str, str, float | None], ...]


def agree(name: str, parts: Sequence[str], defective: ArrayLike, rejected: ArrayLike) -> Agreement:
    """Compare one inspector with the reference and with itself.

    Args:
        name: Who.
        parts: (P,) names.
        defective: (P,) bool, what the reference says.
        rejected: (P, T) bool, the judgements of each part.

    Raises:
        UsageError: Shapes do not fit, or a part was presented only once.
    """
    truth, said = _checked(name, parts, defective, rejected)
    right, steady = said == truth[:, None], (said == said[:, :1]).all(1)
    counts = np.stack([said.sum(1), (~said).sum(1)], 1)
    of_defects, of_good = said[truth], said[~truth]

    def named(chosen: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(part for part, one in zip(parts, chosen, strict=True) if one)

    return Agreement(
        name,
        effectiveness=Rate(int(right.all(1).sum()), len(parts)),
        miss_rate=Rate(int((~of_defects).sum()), of_defects.size),
        false_alarm_rate=Rate(int(of_good.sum()), of_good.size),
        repeatability=Rate(int(steady.sum()), len(parts)),
        kappa_reference=cohen_kappa(said.ravel(), np.repeat(truth, said.shape[1])),
        kappa_within=fleiss_kappa(counts),
        missed=named(truth & ~said.all(1)),
        alarmed=named(~truth & said.any(1)),
        unsteady=named(~steady),
    )


def compare(parts: Sequence[str], defective: ArrayLike, rejected: Mapping[str, ArrayLike]) -> Between | None:
    """Compare inspectors with each other; None where there is one alone.

    Args:
        parts: (P,) names.
        defective: (P,) bool, what the reference says.
        rejected: Inspector → (P, T) bool; T may differ between them.
    """
    if len(rejected) < 2:
        return None
    said = {name: _checked(name, parts, defective, each)[1] for name, each in rejected.items()}
    truth = np.asarray(defective, np.bool_)
    together = np.concatenate(list(said.values()), 1)
    pairs = []
    for one, other in combinations(said, 2):
        trials = min(said[one].shape[1], said[other].shape[1])
        kappa = cohen_kappa(said[one][:, :trials].ravel(), said[other][:, :trials].ravel())
        pairs.append((one, other, kappa))
    return Between(
        fleiss_kappa(np.stack([together.sum(1), (~together).sum(1)], 1)),
        all_agree=Rate(int((together == together[:, :1]).all(1).sum()), len(parts)),
        all_right=Rate(int((together == truth[:, None]).all(1).sum()), len(parts)),
        pairs=tuple(pairs),
    )


def _checked(
    name: str, parts: Sequence[str], defective: ArrayLike, rejected: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    truth, said = np.asarray(defective, np.bool_), np.asarray(rejected, np.bool_)
    if said.ndim != 2 or truth.shape != (len(parts),) or said.shape[0] != len(parts):
        raise UsageError(
            f"{name}: expected a row of judgements for each of {len(parts)} parts, got shape {said.shape} and "
            f"{truth.shape} references"
        )
    if said.shape[1] < AT_LEAST_TRIALS:
        raise UsageError(
            f"{name} judged each part {said.shape[1]} times: present every part at least {AT_LEAST_TRIALS} times, "
            "moved or photographed anew, since repeatability is half of what is asked"
        )
    return truth, said
