"""What is found of a line, block by block, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from makel.station.causes import Explanation, Finding

BLOCK = 50
"""Parts that are tested together."""

EVERY = 10_000
"""Parts among which a line that does not change has one false alarm, on average."""


@dataclass(frozen=True)
class Block:
    """A block of parts, tested.

    Attributes:
        first: Number of its first decision.
        last: Number of its last.
        p_scores: Of the hypothesis that passing parts score as the calibration images do; None where it cannot be
            tested: too few passed, or zones make the scores another quantity.
        p_rejects: Of the hypothesis that its rejects are good parts within the promise.
        rejects: How many of it were rejected.
        findings: What is not what it was.
    """

    first: int
    last: int
    p_scores: float | None
    p_rejects: float
    rejects: int
    findings: tuple[Finding, ...]

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Block:
        """What `asdict` made of one."""
        return cls(**{**known, "findings": tuple(Finding(**finding) for finding in known["findings"])})


@dataclass(frozen=True)
class State:
    """How a line stands. Parts are those of the line that a model judged: neither fail-safe rejects, which say nothing
    about the parts, nor what people try by hand.

    Attributes:
        model: The name it is served under.
        model_id: The version that judges.
        parts: Parts of this version that were taken into account.
        changed: Whether the last block differs; before the first block since this version judges, whether the last of
            the version before it did.
        since: Number of the first decision of the blocks that differ without a break; None where none does.
        causes: What most likely changed.
        findings: What it rests on.
        rejects: Rejects among the latest parts.
        of: How many parts these are.
        reject_rate: Their share; None before the first.
        reject_interval_95: Its Wilson interval.
        promised: The share of good parts that may be rejected.
        level: Chance that a block of an unchanged line shows anything.
        learning: Parts still to come until the first parts here are known well enough to compare with.
        blocks: The latest blocks, oldest first.
        words: All of it in one paragraph.
    """

    model: str
    model_id: str
    parts: int
    changed: bool
    since: int | None
    causes: tuple[Explanation, ...]
    findings: tuple[Finding, ...]
    rejects: int
    of: int
    reject_rate: float | None
    reject_interval_95: tuple[float, float] | None
    promised: float
    level: float
    learning: int
    blocks: tuple[Block, ...]
    words: str

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "block": BLOCK, "false_alarm_every": EVERY}


@dataclass(frozen=True)
class Change:
    """A line that is not what it was.

    Attributes:
        since: Number of the first decision of the blocks that differ without a break.
        findings: What the last of them rests on.
    """

    since: int
    findings: tuple[Finding, ...]

    @classmethod
    def from_json(cls, known: Mapping[str, Any]) -> Change:
        """What `asdict` made of one."""
        return cls(int(known["since"]), tuple(Finding(**finding) for finding in known["findings"]))
