"""Is the line still the one the model was calibrated for? Tested on every 50 parts, with a stated rate of false alarms.

Each block of parts is compared with good parts the model knows: those its thresholds come from, and the first it judged
here. Three things are tested.

Scores of passing parts. If the line is what it was, a passing part is as likely to have each of the calibration's
ranks below the threshold: its p-value is uniform there. The test ranks the block's scores among the calibration scores
below the threshold (`rank_sum`), which is right for any number of calibration images: given the threshold, both are
samples of the same distribution, and neither is taken for exactly known.

Rejects. Given n calibration images of which m may be above, the rate of a line that did not change is Beta(m, n + 1 -
m) distributed (`makel.calibration`), so the rejects in a block are beta-binomial. More are defects, or drift.

Looks. Brightness, sharpness, position (`look`) against those of the same reference parts; `causes` says what it means.

Every block spends `BLOCK / EVERY` of chance on all of its tests together (Bonferroni). So a line on which nothing
changes has at most one false alarm in `EVERY` parts on average: the expectation of a sum needs no independence.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, lgamma
from pathlib import Path
from statistics import median
from typing import Any

from makel.evaluation.metrics import rate_interval
from makel.model.inspector import Inspector
from makel.station.causes import Explanation, Finding, Since, compare, explain
from makel.station.decisions import Decision, Recorded
from makel.station.filters import Filter
from makel.station.look import Observer
from makel.station.rank_sum import rank_sum
from makel.station.reference import N_START, Reference
from makel.station.station import Station

BLOCK = 50
"""Parts that are tested together."""

EVERY = 10_000
"""Parts among which a line that does not change has one false alarm, on average."""

_TESTS = 5
"""Scores against fit and start, rejects, looks against fit and start: each has this share of a block's chance."""

_FEWEST = 5
"""Scores on either side below which there is nothing to test."""

_RATE_OF = 200
_BLOCKS_KEPT = 60
_REREAD = 500

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class State:
    """How a line stands. Parts are those a model judged; fail-safe rejects say nothing about the parts.

    Attributes:
        model: The name it is served under.
        model_id: The version that judges.
        parts: Parts of this version that were taken into account.
        changed: Whether the last block differs.
        since: Number of the first decision of the blocks that differ without a break; None where the last does not.
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


class Watch:
    """Follows one version of a model from decision to decision. Not thread-safe."""

    def __init__(self, name: str, inspector: Inspector, *, block: int = BLOCK, start: Reference | None = None) -> None:
        """Begin with what the model knows of good parts.

        Args:
            name: What it is served under.
            inspector: The version.
            block: Parts that are tested together.
            start: The first parts it judged here, where they are known from an earlier run.
        """
        manifest = inspector.manifest
        calibration, zones = manifest.calibration, manifest.zones
        self.model_id = manifest.model_id
        self._name, self._block = name, block
        self.promised = zones.promise(calibration) if zones else calibration.promised_false_reject
        self._allowed = max(1, round(self.promised * (calibration.n + 1)))
        self._n = calibration.n
        # With zones a decision's score is that of the worst part, in units of its own threshold; and scores of cross-
        # fitted images are those of other models.
        comparable = calibration.scheme == "holdout" and not (zones and zones.judged)
        below = [score for score in calibration.image_scores if score < calibration.image_threshold]
        self._fit = Reference(below if comparable else [], list(Observer(inspector).golden))
        self.start = start or Reference()
        self._waiting: list[tuple[int, Decision]] = []
        self._latest: deque[bool] = deque(maxlen=_RATE_OF)
        self._blocks: deque[Block] = deque(maxlen=_BLOCKS_KEPT)
        self._parts = 0

    def add(self, number: int, decision: Decision) -> Block | None:
        """Take the next decision; gives the block it completes."""
        if decision.model_id != self.model_id or decision.score is None:
            return None
        self._parts += 1
        self._latest.append(decision.verdict == "reject")
        self._waiting.append((number, decision))
        if len(self._waiting) < self._block:
            return None
        waiting, self._waiting = self._waiting, []
        found = self._test(waiting)
        self._blocks.append(found)
        # What differs from the fit is no reference: once mended, the line would differ from it for ever.
        if not self.start.complete and not found.findings:
            decisions = [decision for _, decision in waiting]
            self.start.scores += _passing(decisions)
            self.start.looks += [each.look for each in decisions if each.verdict == "pass" and each.look is not None]
        return found

    def state(self) -> State:
        """How the line stands."""
        last = self._blocks[-1] if self._blocks else None
        findings = last.findings if last else ()
        causes = tuple(explain(findings))
        since = None
        for block in reversed(self._blocks):
            if not block.findings:
                break
            since = block.first
        rejects, of = sum(self._latest), len(self._latest)
        return State(
            model=self._name,
            model_id=self.model_id,
            parts=self._parts,
            changed=bool(findings),
            since=since,
            causes=causes,
            findings=findings,
            rejects=rejects,
            of=of,
            reject_rate=rejects / of if of else None,
            reject_interval_95=rate_interval(rejects, of),
            promised=self.promised,
            level=self._level,
            learning=max(0, N_START - len(self.start.scores)),
            blocks=tuple(self._blocks),
            words=self._words(causes, findings, since),
        )

    @property
    def _level(self) -> float:
        return self._block / EVERY

    def _test(self, waiting: list[tuple[int, Decision]]) -> Block:
        decisions = [decision for _, decision in waiting]
        level = self._level / _TESTS
        passed = _passing(decisions)
        looks = [each.look for each in decisions if each.look is not None]
        findings: list[Finding] = []
        p_scores = None
        against: tuple[tuple[Since, Reference], ...] = (("fit", self._fit), ("start", self.start))
        for since, reference in against:
            if since == "start" and not reference.complete:
                continue
            p_value, finding = _test_scores(reference.scores, passed, level, since)
            p_scores = p_value if since == "fit" else p_scores
            findings += [finding] if finding else []
            findings += compare(reference.looks, looks, level, since)
        rejects = sum(each.verdict == "reject" for each in decisions)
        p_rejects = at_least(rejects, len(decisions), self._allowed, self._n)
        if p_rejects <= level:
            findings.append(self._too_many(rejects, len(decisions), p_rejects))
        return Block(waiting[0][0], waiting[-1][0], p_scores, p_rejects, rejects, tuple(findings))

    def _too_many(self, rejects: int, of: int, p_value: float) -> Finding:
        words = f"{rejects} of {of} parts are rejected, and {100 * self.promised:.2g} % of good parts were promised"
        return Finding("rejects", "fit", p_value, self.promised, rejects / of, words)

    def _words(self, causes: tuple[Explanation, ...], findings: tuple[Finding, ...], since: int | None) -> str:
        if not self._blocks:
            return f"Nothing can be said yet: {self._block - len(self._waiting)} more parts are needed."
        if not findings:
            return "The line is what the model was calibrated for, as far as these numbers tell."
        verdicts = [finding.words for finding in findings if finding.what in ("score", "rejects")]
        felt = "; ".join(verdicts) if verdicts else "Scores and rejects are still what they were"
        named = " and ".join(cause.cause for cause in causes)
        return (
            f"{named.capitalize()} changed, since about part {since}. {' '.join(each.words for each in causes)} {felt}."
        )


class Drift:
    """Follows every model of a station as long as it runs. Thread-safe.

    The first parts of a version are kept in DIR/drift/NAME-MODEL_ID.json: a long record is not read from its beginning.
    """

    def __init__(self, station: Station) -> None:
        """Read the latest decisions, and hear of every further one."""
        self._station = station
        self._lock = threading.Lock()
        self._watches: dict[str, Watch] = {}
        self._last = 0
        station.warn_of(self._warnings)
        with self._lock:  # what is decided meanwhile waits for its turn
            station.listen(self._hear)
            for name in station.models():
                for recorded in reversed(station.store.find(Filter(model=name), limit=_REREAD)):
                    self._take(recorded)
                    self._last = max(self._last, recorded.number)

    def states(self) -> list[State]:
        """How each model's line stands, by name."""
        with self._lock:
            return [watch.state() for name in self._station.models() if (watch := self._watch(name))]

    def gauge(self, name: str) -> Mapping[str, float]:
        """The value of a number for Prometheus, by model: "makel_drift", "makel_drift_p_value", "makel_reject_rate"."""
        found: dict[str, float | None] = {}
        for state in self.states():
            last = state.blocks[-1] if state.blocks else None
            found[state.model] = {
                "makel_drift": float(state.changed),
                "makel_drift_p_value": last.p_scores if last else None,
                "makel_reject_rate": state.reject_rate,
            }[name]
        return {model: value for model, value in found.items() if value is not None}

    def _warnings(self) -> list[str]:
        return [f"{state.model}: {state.words}" for state in self.states() if state.changed]

    def _hear(self, recorded: Recorded) -> None:
        with self._lock:
            if recorded.number > self._last:
                self._take(recorded)

    def _take(self, recorded: Recorded) -> None:
        watch = self._watch(recorded.decision.model)
        if watch is None:
            return
        known = watch.start.complete
        watch.add(recorded.number, recorded.decision)
        if watch.start.complete and not known:
            try:
                watch.start.write(self._file(recorded.decision.model, watch.model_id))
            except OSError as error:  # it is known here; after a restart it would be learned anew
                _log.warning("%s cannot be written: %s", error.filename, error.strerror)

    def _watch(self, name: str) -> Watch | None:
        if name not in self._station.models():
            return None
        inspector = self._station.line(name).inspector
        watch = self._watches.get(name)
        if watch is None or watch.model_id != inspector.model_id:
            try:
                start = Reference.read(self._file(name, inspector.model_id))
            except (OSError, ValueError):  # not learned yet
                start = None
            watch = self._watches[name] = Watch(name, inspector, start=start)
        return watch

    def _file(self, name: str, model_id: str) -> Path:
        """Where the first parts that a version judged here are kept."""
        return self._station.folder / "drift" / f"{name}-{model_id}.json"


def _passing(decisions: Sequence[Decision]) -> list[float]:
    """The scores at or below the threshold; a minimum area lets parts above it pass as well."""
    return [
        each.score
        for each in decisions
        if each.verdict == "pass" and each.score is not None and each.threshold is not None
        if each.score <= each.threshold
    ]


def _test_scores(
    reference: Sequence[float], passed: Sequence[float], level: float, since: Since
) -> tuple[float | None, Finding | None]:
    """The p-value of passing scores beside those of the reference, and the finding where it is low."""
    if len(reference) < _FEWEST or len(passed) < _FEWEST:
        return None, None
    p_value = rank_sum(reference, passed)
    if p_value > level:
        return p_value, None
    was, is_ = median(reference), median(passed)
    words = f"Passing parts score {'higher' if is_ > was else 'lower'} than before ({is_:.3g}, was {was:.3g})"
    return p_value, Finding("score", since, p_value, was, is_, words)


def at_least(count: int, of: int, allowed: int, n: int) -> float:
    """P(at least `count` of `of` good parts are above the threshold), on the line the calibration was made on.

    Args:
        count: Rejects.
        of: Parts.
        allowed: How many of n + 1 parts the calibration lets above.
        n: Calibration images.
    """
    a, b = allowed, max(1, n + 1 - allowed)

    def log_beta(x: float, y: float) -> float:
        return lgamma(x) + lgamma(y) - lgamma(x + y)

    def log_choose(k: int) -> float:
        return lgamma(of + 1) - lgamma(k + 1) - lgamma(of - k + 1)

    terms = (exp(log_choose(k) + log_beta(a + k, b + of - k) - log_beta(a, b)) for k in range(count, of + 1))
    return min(1.0, sum(terms))
