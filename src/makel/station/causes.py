"""From what differs to what changed: light, focus, position or product, in words for whoever stands at the line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, pstdev
from typing import Literal

from makel.station.look import Look
from makel.station.rank_sum import rank_sum

Since = Literal["fit", "start"]
"""Compared with the good images of the model, or with the first parts it judged here."""

Cause = Literal["light", "focus", "position", "product"]

_CHANGE = {"brightness": 0.05, "contrast": 0.1, "sharpness": 0.25}
"""Smallest change worth a word, as a share of what it was. A test finds smaller ones on a line that runs well."""

_SHIFT = 0.01
_MATCH = 0.15
_KNOWN_PLACE = (0.6, 0.05)
"""A part has a place that can be told where it matches at least so well and its shift varies at most so much."""

_WAS = {"fit": "on the model's good images", "start": "when this version began to judge here"}


@dataclass(frozen=True)
class Finding:
    """Something that is not what it was.

    Attributes:
        what: "score", "rejects", or an attribute of `Look`.
        since: What it was compared with.
        p_value: Of the hypothesis that nothing changed.
        before: What it was: a median, or for rejects the share that was promised.
        now: What it is.
        words: The same for people.
    """

    what: str
    since: Since
    p_value: float
    before: float
    now: float
    words: str


@dataclass(frozen=True)
class Explanation:
    """What most likely changed.

    Attributes:
        cause: Which of the four.
        words: What to look at, and the numbers it rests on.
    """

    cause: Cause
    words: str


LOOKS = tuple(Look.__dataclass_fields__)


def compare(reference: Sequence[Look], looks: Sequence[Look], level: float, since: Since) -> list[Finding]:
    """What of the looks changed by more than chance at this level, and by more than is worth a word.

    Args:
        reference: How good parts looked.
        looks: How parts look now.
        level: Chance of any finding at all where nothing changed; shared out evenly.
        since: What the reference is.
    """
    found = []
    for what in LOOKS:
        before = [value for look in reference if (value := getattr(look, what)) is not None]
        now = [value for look in looks if (value := getattr(look, what)) is not None]
        if not before or not now or not _matters(what, before, now):
            continue
        if what.startswith("shift") and not _has_place(reference, before):
            continue
        p_value = rank_sum(before, now)
        if p_value <= level / len(LOOKS):
            was, is_ = median(before), median(now)
            words = f"{_say(what, was, is_)} than {_WAS[since]}"
            found.append(Finding(what, since, p_value, was, is_, words))
    return found


def explain(findings: Sequence[Finding]) -> list[Explanation]:
    """Which causes explain the findings, the most telling first.

    Another product looks different in every way, so where the picture no longer matches nothing else is named. Scores
    that changed while light, focus and position did not are the parts' own.
    """
    by_what: dict[str, Finding] = {}
    for finding in findings:
        by_what.setdefault(finding.what, finding)
    seen = [finding for finding in by_what.values() if finding.what in LOOKS]
    numbers = "; ".join(finding.words for finding in seen)
    if "match" in by_what:
        return [
            Explanation(
                "product",
                "The picture is no longer that of the parts the model knows: another product or variant, another side "
                f"up, or a camera that looks elsewhere. {numbers}.",
            )
        ]
    found: list[Explanation] = []
    # What is out of focus loses contrast as well; the lamps have no part in that.
    blurred = all(what in by_what and by_what[what].now < by_what[what].before for what in ("sharpness", "contrast"))
    kinds: tuple[tuple[Cause, tuple[str, ...], str], ...] = (
        (
            "light",
            ("brightness",) if blurred else ("brightness", "contrast"),
            "Look at lamps, exposure and stray light.",
        ),
        ("focus", ("sharpness", "contrast") if blurred else ("sharpness",), "Look at focus, lens and vibration."),
        ("position", ("shift_x", "shift_y"), "Look at camera mount, stop and trigger."),
    )
    for cause, whats, advice in kinds:
        mine = [by_what[what].words for what in whats if what in by_what]
        if mine:
            found.append(Explanation(cause, f"{'; '.join(mine)}. {advice}"))
    if found:
        return found
    if "score" in by_what:
        return [
            Explanation(
                "product",
                "Light, focus and position are what they were, so the parts themselves differ (material, supplier, "
                "tool wear), or the camera sees something these numbers do not.",
            )
        ]
    if "rejects" in by_what:
        return [
            Explanation(
                "product",
                "The parts that pass are what they were, so most likely more parts are defective: look at the rejects.",
            )
        ]
    return []


def _matters(what: str, before: Sequence[float], now: Sequence[float]) -> bool:
    was, is_ = median(before), median(now)
    if what in _CHANGE:
        return abs(is_ - was) >= _CHANGE[what] * max(abs(was), 1e-6)
    return was - is_ >= _MATCH if what == "match" else abs(is_ - was) >= _SHIFT


def _has_place(reference: Sequence[Look], shifts: Sequence[float]) -> bool:
    match = median(look.match for look in reference if look.match is not None)
    return match >= _KNOWN_PLACE[0] and pstdev(shifts) <= _KNOWN_PLACE[1]


def _say(what: str, was: float, is_: float) -> str:
    """ "The images are 15 % darker (0.356, was 0.419)", so that "than ..." can follow."""
    values = f"({is_:.3g}, was {was:.3g})"
    change = f"{100 * abs(is_ - was) / max(abs(was), 1e-6):.0f} %"
    up = is_ > was
    return {
        "brightness": f"The images are {change} {'brighter' if up else 'darker'} {values}",
        "contrast": f"Contrast is {change} {'higher' if up else 'lower'} {values}",
        "sharpness": f"There is {change} {'more fine detail or noise' if up else 'less fine detail'} {values}",
        "shift_x": f"Parts lie {100 * abs(is_ - was):.1f} % of the width further {'right' if up else 'left'}",
        "shift_y": f"Parts lie {100 * abs(is_ - was):.1f} % of the height further {'down' if up else 'up'}",
        "match": f"The picture matches less well {values}",
    }[what]
