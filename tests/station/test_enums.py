"""Every value that an answer or a parameter may have stands in the description: clients are generated from it."""

from typing import get_args

import pytest

from makel.station.access import Access, Tokens
from makel.station.bodies import FindingBody
from makel.station.causes import LOOKS
from makel.station.service import create_app

RESULT, LABEL = {"pass", "reject"}, {"good", "defect"}
CANDIDATE = {"recalibrate", "refit", "budget"}
EXPECTED = {
    "/inspect post picture": {"overlay", "mask"},
    "/inspect post source": {"http", "manual"},
    "/history get source": {"line", "manual"},
    "/jobs post preset": {"fast", "paper"},
    "/jobs post calibrate": {"holdout", "cross"},
    "/history get verdict": RESULT,
    "/history get answer": LABEL | {"none"},
    "AdviceBody kind": CANDIDATE,
    "AliveBody alive": {True},
    "AnswerBody answer": LABEL,
    "CandidateBody kind": CANDIDATE,
    "CandidateBody state": {"making", "testing", "ready", "refused", "failed", "active"},
    "CandidateRequestBody kind": CANDIDATE,
    "CauseBody cause": {"light", "focus", "position", "product"},
    "DecisionBody verdict": RESULT,
    "DecisionBody answer": LABEL,
    "FindingBody what": {"score", "rejects", *LOOKS},
    "FindingBody since": {"fit", "start"},
    "FlipBody answer": LABEL,
    "FlipBody before": RESULT,
    "FlipBody after": RESULT,
    "InspectedBody verdict": RESULT,
    "InspectedBody answer": LABEL,
    "JobBody state": {"fitting", "done", "failed", "cancelled"},
    "SessionBody role": {"operator", "engineer"},
    "ThresholdsBody scheme": {"holdout", "cross"},
    "TriedBody verdict": RESULT,
    "ZoneBody verdict": RESULT,
}


@pytest.fixture
def described(station):
    return create_app(station, Access(Tokens(station.folder / "tokens.json"))).openapi()


def values(schema):
    """What a schema allows, where it names its values; None where it does not."""
    if "enum" in schema or "const" in schema:
        return set(schema.get("enum", [schema.get("const")]))
    parts = [values(part) for part in (*schema.get("anyOf", ()), schema.get("items", {})) if part]
    return next((part for part in parts if part is not None), None)


def test_they_are_those_that_there_are(described):
    found = {
        f"{path} {method} {parameter['name']}": values(parameter["schema"])
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
        for parameter in operation.get("parameters", ())
    } | {
        f"{name} {key}": values(schema)
        for name, body in described["components"]["schemas"].items()
        for key, schema in body.get("properties", {}).items()
    }
    assert {key: each for key, each in found.items() if each is not None} == EXPECTED


def test_what_drift_may_find_is_all_that_it_looks_at():
    assert get_args(FindingBody.model_fields["what"].annotation) == ("score", "rejects", *LOOKS)
