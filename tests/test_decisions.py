import hashlib
import json
from dataclasses import replace

import pytest

from makel.errors import UsageError
from makel.station.decisions import START, Answer, Audit, Decision, Recorded, canonical, instant, link, now
from makel.station.look import Look
from record import DECISION


def test_a_decision_survives_json():
    assert Decision.from_json(DECISION.to_json()) == DECISION
    failed = replace(DECISION, score=None, threshold=None, p_value=None, regions=(), reason="no decision in 200 ms")
    assert Decision.from_json(failed.to_json() | {"number": 3}) == failed


def test_a_look_survives_json_and_older_records_have_none():
    seen = replace(DECISION, look=Look(0.4, 0.5, 0.1, 0.01, -0.02, 0.9))
    assert seen.to_json()["look"] == [0.4, 0.5, 0.1, 0.01, -0.02, 0.9]
    assert Decision.from_json(json.loads(json.dumps(seen.to_json()))) == seen
    older = DECISION.to_json()
    del older["look"]
    assert Decision.from_json(older) == DECISION


def test_what_is_recorded_says_number_answer_and_hash():
    said = Recorded(7, DECISION, "ff", "good").to_json()
    assert said == {"number": 7, "answer": "good", "hash": "ff", **DECISION.to_json()}
    assert said["regions"] == [{"box_px": [1, 2, 5, 7], "area_px": 13, "peak": 2.5, "zone": "", "area_mm2": None}]
    assert Answer(7, "good", "eva", DECISION.at).to_json() == {
        "number": 7,
        "answer": "good",
        "by": "eva",
        "at": DECISION.at,
    }
    assert Audit("eva", "engineer", "activate", {"version": 3}, DECISION.at).to_json()["detail"] == {"version": 3}


@pytest.mark.parametrize("name", ["score", "threshold", "p_value", "latency_ms"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(name, value):
    with pytest.raises(UsageError, match=rf"^{name} is (nan|inf): a decision holds finite numbers"):
        replace(DECISION, **{name: value})


def test_a_verdict_is_pass_or_reject():
    with pytest.raises(UsageError, match="verdict is 'maybe': it is 'pass' or 'reject'"):
        replace(DECISION, verdict="maybe")


@pytest.mark.parametrize("at", ["2026-11-25T14:30:00", "2026-11-25T15:30:00.000001+01:00"])
def test_the_time_of_a_decision_has_one_form(at):
    with pytest.raises(UsageError, match="a decision's time is UTC with microseconds: 2026-11-25T14:30:00"):
        replace(DECISION, at=at)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2026-11-25", "2026-11-25T00:00:00.000000+00:00"),
        ("2026-11-25T14:30:00Z", "2026-11-25T14:30:00.000000+00:00"),
        ("2026-11-25T14:30:00.5+02:00", "2026-11-25T12:30:00.500000+00:00"),
    ],
)
def test_moments_come_to_one_form(text, meant):
    assert instant(text) == meant == instant(meant)


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "0001-01-01T00:00:00+05:00"])
def test_what_is_no_moment_is_refused(text):
    with pytest.raises(UsageError, match="is not a time: write it as"):
        instant(text)


def test_now_is_in_that_form():
    moment = now()
    assert instant(moment) == moment <= now()


def test_canonical_json_has_one_spelling():
    assert canonical({"b": 0.1, "a": ["ü", None, True, 1.0]}) == '{"a":["\\u00fc",null,true,1.0],"b":0.1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": float("nan")})


def test_a_hash_covers_what_came_before():
    assert START == "0" * 64
    assert link(START, "{}") == hashlib.sha256(b"0" * 64 + b"{}").hexdigest()
    assert link(link(START, "{}"), "{}") != link(START, "{}")
