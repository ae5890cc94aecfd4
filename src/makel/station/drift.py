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

A change stands until a block shows that it is gone: a restart, or another version that judges, does not end it, and
does not move the part it began with.

Every block spends `BLOCK / EVERY` of chance on all of its tests together (Bonferroni). So a line on which nothing
changes has at most one false alarm in `EVERY` parts on average: the expectation of a sum needs no independence.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import exp, lgamma
from pathlib import Path
from statistics import median
from typing import Any

from makel.errors import NotFoundError, StoreError
from makel.evaluation.metrics import rate_interval
from makel.model.inspector import Inspector
from makel.station.blocks import BLOCK, EVERY, Block, Change, State
from makel.station.causes import Explanation, Finding, Since, compare, explain
from makel.station.decisions import Decision, Recorded
from makel.station.filters import Filter
from makel.station.look import Observer
from makel.station.rank_sum import rank_sum
from makel.station.reference import N_START, Reference
from makel.station.station import Changed, Station

_TESTS = 5
"""Scores against fit and start, rejects, looks against fit and start: each has this share of a block's chance."""

_FEWEST = 5
"""Scores on either side below which there is nothing to test."""

_RATE_OF = 200
_BLOCKS_KEPT = 60
_REREAD = 500

_log = logging.getLogger(__name__)


class Watch:
    """Follows one version of a model from decision to decision. Not thread-safe.

    Attributes:
        model_id: The version.
        promised: The share of good parts that may be rejected.
        start: The first parts it judged here.
        inherited: What stood when this version began to judge, or judges again, until a block of its own says more.
        last: Number and hash of the last decision it took; (0, "") before.
    """

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
        self.inherited: Change | None = None
        self.last = (0, "")
        self._since: int | None = None
        self._waiting: list[tuple[int, Decision]] = []
        self._latest: deque[bool] = deque(maxlen=_RATE_OF)
        self._blocks: deque[Block] = deque(maxlen=_BLOCKS_KEPT)
        self._parts = 0

    def add(self, number: int, decision: Decision) -> Block | None:
        """Take the next decision; gives the block it completes."""
        if decision.model_id != self.model_id or decision.score is None or not decision.of_the_line:
            return None
        self._parts += 1
        self._latest.append(decision.verdict == "reject")
        self._waiting.append((number, decision))
        if len(self._waiting) < self._block:
            return None
        waiting, self._waiting = self._waiting, []
        found = self._test(waiting)
        self._blocks.append(found)
        self.inherited = None
        self._since = (self._since or found.first) if found.findings else None
        # What differs from the fit is no reference: once mended, the line would differ from it for ever.
        if not self.start.complete and not found.findings:
            decisions = [decision for _, decision in waiting]
            self.start.scores += _passing(decisions)
            self.start.looks += [each.look for each in decisions if each.verdict == "pass" and each.look is not None]
        return found

    @property
    def change(self) -> Change | None:
        """What stands: of its own last block, else what was inherited."""
        return Change(self._since, self._blocks[-1].findings) if self._since else self.inherited

    def memory(self) -> dict[str, Any]:
        """Plain values for JSON, from which `recall` goes on as if nothing had been between."""
        return {
            **self.start.to_json(),
            "inherited": asdict(self.inherited) if self.inherited else None,
            "last": self.last,
            "since": self._since,
            "parts": self._parts,
            "latest": list(self._latest),
            "blocks": [asdict(block) for block in self._blocks],
            "waiting": [number for number, _ in self._waiting],
        }

    def recall(self, memory: Mapping[str, Any], waiting: Iterable[Recorded]) -> None:
        """Go on from what `memory` gave; `waiting` are the decisions it names.

        Raises:
            KeyError: It is something else.
            TypeError: Likewise.
            ValueError: Likewise.
        """
        inherited = Change.from_json(memory["inherited"]) if memory["inherited"] else None
        blocks = [Block.from_json(block) for block in memory["blocks"]]
        latest = [bool(is_reject) for is_reject in memory["latest"]]
        number, entry_hash = memory["last"]
        self.last, self._since, self._parts = (int(number), str(entry_hash)), memory["since"], int(memory["parts"])
        self.inherited, self._waiting = inherited, [(each.number, each.decision) for each in waiting]
        self._latest.extend(latest)
        self._blocks.extend(blocks)

    def state(self) -> State:
        """How the line stands."""
        change = self.change
        findings = change.findings if change else ()
        causes = tuple(explain(findings))
        rejects, of = sum(self._latest), len(self._latest)
        return State(
            model=self._name,
            model_id=self.model_id,
            parts=self._parts,
            changed=bool(findings),
            since=change.since if change else None,
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
            words=self._words(change, causes),
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

    def _words(self, change: Change | None, causes: tuple[Explanation, ...]) -> str:
        needed = f"{self._block - len(self._waiting)} more parts are needed"
        if change is None:
            if not self._blocks:
                return f"Nothing can be said yet: {needed}."
            return "The line is what the model was calibrated for, as far as these numbers tell."
        verdicts = [finding.words for finding in change.findings if finding.what in ("score", "rejects")]
        felt = "; ".join(verdicts) if verdicts else "Scores and rejects are still what they were"
        named = " and ".join(cause.cause for cause in causes).capitalize()
        why = " ".join(each.words for each in causes)
        by = f" So said another version; {needed} for this one to tell." if change is self.inherited else ""
        return f"{named} changed, since about part {change.since}. {why} {felt}.{by}"


class Drift:
    """Follows every model of a station as long as it runs. Thread-safe.

    What is known of a version is kept in DIR/drift/NAME-MODEL_ID.json, with each block, with the number and the hash of
    the decision it goes up to: after a restart the record is read from there on, not from its beginning.
    """

    def __init__(self, station: Station) -> None:
        """Go on where an earlier run ended, and hear of every further decision."""
        self._station = station
        self._lock = threading.Lock()
        self._watches: dict[tuple[str, str], Watch] = {}
        self._judges: dict[str, Watch] = {}
        station.warn_of(self._warnings)
        with self._lock:  # what is decided meanwhile waits for its turn
            station.follow(self._hear)
            for name in station.models():
                self._watch(name)

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

    def _hear(self, told: Recorded | Changed) -> None:
        if isinstance(told, Changed):
            self.states()  # where another version judges now, what stood with the one before is handed on at once
            return
        with self._lock:
            name, model_id = told.decision.model, told.decision.model_id
            self._watch(name)
            # One that judges no more still decides what was under way.
            if watch := self._watches.get((name, model_id)):
                self._take(name, watch, told)

    def _take(self, name: str, watch: Watch, recorded: Recorded) -> None:
        if recorded.number <= watch.last[0] or recorded.decision.model_id != watch.model_id:
            return
        watch.last = (recorded.number, recorded.hash)
        if watch.add(recorded.number, recorded.decision):
            self._keep(name, watch)

    def _watch(self, name: str) -> Watch | None:
        """What follows the version that judges, or None where none does."""
        if name not in self._station.models():
            return None
        inspector = self._station.line(name).inspector
        before, key = self._judges.get(name), (name, inspector.model_id)
        if before and before.model_id == inspector.model_id:
            return before
        watch = self._watches.get(key) or Watch(name, inspector)
        if key not in self._watches:
            try:
                self._recall(name, watch)
            except StoreError as error:  # tried again with the next look
                _log.warning("what is known of %s cannot be read: %s", name, error)
                return watch
            self._watches[key] = watch
        if before:
            watch.inherited = before.change
            self._keep(name, before)
            self._keep(name, watch)
        self._judges[name] = watch
        return watch

    def _recall(self, name: str, watch: Watch) -> None:
        """Let a watch go on where an earlier run ended, and take what the record has since.

        Raises:
            StoreError: The record cannot be read now.
        """
        find, path = self._station.store.find, self._file(name, watch.model_id)
        try:
            memory = json.loads(path.read_bytes())
            watch.start = Reference.from_json(memory)
            if "last" in memory and self._is_in_record(*memory["last"]):
                watch.recall(memory, [self._station.store.get(number) for number in memory["waiting"]])
        except FileNotFoundError:
            pass  # nothing known yet
        except (OSError, ValueError, TypeError, KeyError, NotFoundError) as error:
            _log.warning("%s is damaged, and what it knew is learnt anew: %r", path, error)
        for recorded in reversed(find(Filter(model=name), limit=_REREAD)):
            self._take(name, watch, recorded)

    def _is_in_record(self, number: int, entry_hash: str) -> bool:
        """Whether the record is the one that a memory is of, and not an older copy or a new one."""
        try:
            return not number or self._station.store.get(number).hash == entry_hash
        except NotFoundError:
            return False

    def _keep(self, name: str, watch: Watch) -> None:
        path = self._file(name, watch.model_id)
        partial = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(exist_ok=True)
            partial.write_text(json.dumps(watch.memory()), encoding="utf-8")
            partial.replace(path)
        except OSError as error:  # it is known here; after a restart it would be learnt anew
            _log.warning("%s cannot be written: %s", path, error.strerror)

    def _file(self, name: str, model_id: str) -> Path:
        """Where what is known of a version is kept."""
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
