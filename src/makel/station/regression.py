"""What a candidate says of parts whose truth is known, beside what the model says that judges now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from makel.errors import MakelError
from makel.model.inspector import Inspector
from makel.model.zones import Zones
from makel.station.decisions import Recorded
from makel.station.filters import Filter
from makel.station.station import Station
from makel.types import Label, Result

_ANSWERED = 1000
_UNANSWERED = 100


@dataclass(frozen=True)
class Flip:
    """A part of which the candidate says something else.

    Attributes:
        number: Of its decision.
        name: The caller's name for it.
        answer: What a person said of it; None where nobody did.
        before: What the model says that judges now.
        after: What the candidate says.
        score_before: And at which score.
        threshold_before: Above this it rejects.
        score_after: Likewise of the candidate.
        threshold_after: Likewise.
    """

    number: int
    name: str
    answer: Label | None
    before: Result
    after: Result
    score_before: float
    threshold_before: float
    score_after: float
    threshold_after: float


@dataclass(frozen=True)
class Regression:
    """What was compared, and what came of it.

    Attributes:
        known_good: Parts a person called good whose pictures are kept.
        good_passed_before: How many of them pass now.
        good_passed: How many pass with the candidate.
        known_defects: Parts a person called a defect whose pictures are kept.
        defects_rejected_before: How many of them are rejected now.
        defects_rejected: How many are rejected by the candidate.
        unanswered: Further parts, the latest nobody spoke of; they decide nothing.
        not_compared: Parts whose pictures could not be read, or that one of the two cannot judge.
        promised_before: Share of good parts that may be rejected now.
        promised: The same of the candidate.
        golden: Golden images that were replayed: a candidate that computes something else on this machine has none.
        flips: Every part of which the candidate says something else, those with an answer first.
        problems: Why the candidate must not judge; empty where it may.
        warnings: What this could not show.
    """

    known_good: int
    good_passed_before: int
    good_passed: int
    known_defects: int
    defects_rejected_before: int
    defects_rejected: int
    unanswered: int
    not_compared: int
    promised_before: float
    promised: float
    golden: int
    flips: tuple[Flip, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def regress(
    station: Station,
    model: str,
    before: Inspector,
    after: Inspector,
    *,
    asked: float,
    progress: Callable[[str, int, int], None],
) -> Regression:
    """Judge every kept picture with an answer, and some without, with both models.

    Args:
        station: Where the pictures are.
        model: The name the model is served under.
        before: What judges now.
        after: The candidate, whose golden images were replayed.
        asked: The false-reject budget the candidate was made for.
        progress: Called with (stage, done, total).

    Raises:
        StoreError: The record cannot be read now.
    """
    find = station.store.find
    defects_first = [
        *find(Filter(model=model, answer="defect"), limit=_ANSWERED),
        *find(Filter(model=model, answer="good"), limit=_ANSWERED),
        *find(Filter(model=model, answer="none"), limit=_UNANSWERED),
    ]
    parts = [each for each in defects_first if each.decision.image_sha256 in station.pictures]
    parts = list({each.decision.image_sha256: each for each in reversed(parts)}.values())[::-1]  # each picture once
    said: list[tuple[Recorded, Result, Result]] = []
    flips: list[Flip] = []
    progress("comparing", 0, len(parts))
    for done, part in enumerate(parts, start=1):
        try:
            pixels = station.decode(station.picture(part))
            one, other = before.inspect(pixels), after.inspect(pixels)
            del pixels  # a large one's room is needed for the next
        except MakelError:
            progress("comparing", done, len(parts))
            continue
        said.append((part, one.verdict, other.verdict))
        if one.verdict != other.verdict:
            flips.append(
                Flip(
                    part.number,
                    part.decision.name,
                    part.answer,
                    one.verdict,
                    other.verdict,
                    one.score,
                    one.threshold,
                    other.score,
                    other.threshold,
                )
            )
        progress("comparing", done, len(parts))
    good = [(one, other) for part, one, other in said if part.answer == "good"]
    defects = [(one, other) for part, one, other in said if part.answer == "defect"]
    missed = [flip for flip in flips if flip.answer == "defect" and flip.after == "pass"]
    passed_before, passed = (sum(pair[which] == "pass" for pair in good) for which in (0, 1))
    promised_before, promised = _promise(before), _promise(after)
    problems = []
    if missed:
        numbers = ", ".join(str(flip.number) for flip in missed[:10])
        problems.append(f"{_count(len(missed), 'known defect')} would pass that are rejected now: part {numbers}")
    if passed < passed_before:
        problems.append(f"only {passed} of {_count(len(good), 'known good part')} would pass, {passed_before} do now")
    if promised > max(promised_before, asked):
        problems.append(
            f"it can promise a false-reject rate of {promised:.2%} at best, {asked:.2%} was asked for and "
            f"{promised_before:.2%} is promised now: more good pictures are needed"
        )
    warnings = []
    if not defects:
        warnings.append("no picture of a known defect is kept: nothing here shows that defects are still rejected")
    if not good:
        warnings.append("no picture of a known good part is kept: nothing here shows that good parts pass")
    return Regression(
        known_good=len(good),
        good_passed_before=passed_before,
        good_passed=passed,
        known_defects=len(defects),
        defects_rejected_before=sum(one == "reject" for one, _ in defects),
        defects_rejected=sum(other == "reject" for _, other in defects),
        unanswered=len(said) - len(good) - len(defects),
        not_compared=len(parts) - len(said),
        promised_before=promised_before,
        promised=promised,
        golden=sum(name.startswith("golden/") for name in after.manifest.files),
        flips=tuple(sorted(flips, key=lambda flip: (flip.answer is None, -flip.number))),
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _promise(inspector: Inspector) -> float:
    return (inspector.manifest.zones or Zones()).promise(inspector.calibration)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
