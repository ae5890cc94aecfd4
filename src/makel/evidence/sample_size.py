"""How many parts a claim about a rate takes, by exact binomial probabilities (Clopper and Pearson 1934)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from makel.errors import UsageError

MOST_PARTS = 10_000_000
"""A claim that takes more is none that anybody will test."""


@dataclass(frozen=True)
class Plan:
    """Parts for one claim.

    Attributes:
        rate: The claim: the true rate of wrong verdicts is at most this.
        confidence: How sure that shall be.
        allowed: Wrong verdicts that the test may have.
        parts: How many parts it takes then.
    """

    rate: float
    confidence: float
    allowed: int
    parts: int

    def chance(self, true_rate: float) -> float:
        """The probability that a system whose true rate is this passes the test."""
        return at_most(self.allowed, self.parts, true_rate)


def plan(rate: float, *, confidence: float = 0.95, allowed: int = 0) -> Plan:
    """The fewest parts with which a rate can be claimed.

    Args:
        rate: Of wrong verdicts, in (0, 1).
        confidence: In (0, 1).
        allowed: Wrong verdicts that the test may have; more of them take more parts, and let a good system pass more
            surely.

    Returns:
        If no more than `allowed` verdicts of the parts are wrong, the one-sided upper bound of the rate is at most
        `rate`.

    Raises:
        UsageError: A share is not within (0, 1), `allowed` is negative, or no test of a possible size would do.
    """
    for what, share in (("a rate", rate), ("a confidence", confidence)):
        if not 0 < share < 1:
            raise UsageError(f"{what} of {share} cannot be claimed: give a share between 0 and 1, such as 0.02 or 2%")
    if allowed < 0:
        raise UsageError(f"{allowed} wrong verdicts cannot be allowed: give 0 or more")
    doubt = 1 - confidence
    low, high = allowed, allowed + 1
    while at_most(allowed, high, rate) > doubt:
        low, high = high, 2 * high
        if low > MOST_PARTS:
            raise UsageError(f"a rate of {rate:g} takes more than {MOST_PARTS:,} parts: claim less")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at_most(allowed, middle, rate) > doubt else (low, middle)
    return Plan(rate, confidence, allowed, high)


def upper_bound(count: int, of: int, *, confidence: float = 0.95) -> float:
    """The rate that is not exceeded, with this confidence, after `count` wrong verdicts `of` so many; exact.

    Raises:
        UsageError: The count is not within 0 and `of`.
    """
    if not 0 <= count <= of or of == 0:
        raise UsageError(f"{count} of {of} is no rate: give a count between 0 and the number of parts")
    if count == of:
        return 1.0
    low, high = count / of, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(count, of, middle) > 1 - confidence else (low, middle)
    return high


def at_most(count: int, of: int, rate: float) -> float:
    """The probability of no more than `count` events among `of` parts when each has them at `rate`."""
    if rate <= 0 or count >= of:
        return 1.0
    if rate >= 1:
        return 0.0
    log_rate, log_rest = math.log(rate), math.log1p(-rate)
    terms = (
        math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * log_rate + (of - k) * log_rest
        for k in range(count + 1)
    )
    return min(1.0, math.fsum(map(math.exp, terms)))
