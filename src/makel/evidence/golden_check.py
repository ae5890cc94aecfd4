"""Runs a golden suite again, here: another machine, provider or version of what makel stands on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from makel.errors import ModelFolderError, UsageError
from makel.evidence.golden_suite import FORMAT, FORMAT_VERSION, SUITE_NAME, steps
from makel.model.inspector import Inspector


@dataclass(frozen=True)
class Worst:
    """How far a model is here from its suite, at worst.

    Attributes:
        prepared_levels: Of a prepared value, in levels of the image's full scale.
        prepared_share: Of the prepared values of an image, those that differ.
        score: Of what the network gives for a stored prepared image.
        map: Of a value of its map, likewise.
    """

    prepared_levels: float = 0.0
    prepared_share: float = 0.0
    score: float = 0.0
    map: float = 0.0


@dataclass(frozen=True)
class Checked:
    """What became of a suite.

    Attributes:
        model_id: The model.
        n_cases: Images in the suite.
        worst: How far they were off.
        tolerances: What was allowed.
    """

    model_id: str
    n_cases: int
    worst: Worst
    tolerances: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def check(inspector: Inspector, folder: Path) -> Checked:
    """Compare every image of a suite, step by step, with what this makel makes of it here.

    Args:
        inspector: The model the suite is of.
        folder: What `golden_suite.export` wrote.

    Raises:
        UsageError: The folder holds no suite, a file of it was changed, or it is of another model.
        ModelFolderError: A step differs by more than the suite allows, or a verdict turned round.
    """
    suite = _read_suite(folder)
    if suite["model_id"] != inspector.model_id:
        raise UsageError(
            f"{folder} is the suite of model {suite['model_id']}, and {inspector.folder.path} is model "
            f"{inspector.model_id}: give the model it was exported from"
        )
    allowed = suite["tolerances"]
    found = [_check_case(inspector, folder, case, allowed) for case in suite["cases"]]
    worst = Worst(*(max(values) for values in zip(*(vars(each).values() for each in found), strict=True)))
    return Checked(inspector.model_id, len(found), worst, allowed)


def _read_suite(folder: Path) -> dict[str, Any]:
    path = folder / SUITE_NAME
    try:
        suite = json.loads(path.read_text(encoding="utf-8"))
        known = suite["format"] == FORMAT and suite["format_version"] == FORMAT_VERSION and suite["cases"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no golden suite: give a folder that `makel golden export` wrote") from error
    if not known:
        raise UsageError(f"{path} is no golden suite of version {FORMAT_VERSION}: export it again with this makel")
    return dict(suite)


def _check_case(inspector: Inspector, folder: Path, case: dict[str, Any], allowed: dict[str, float]) -> Worst:
    pixels, stored = _read_array(folder, case["pixels"]), _read_array(folder, case["prepared"])
    prepared, _ = steps(inspector, pixels)
    apart = np.abs(prepared - stored)
    scores = [inspector.scores(each[np.newaxis]) for each in stored]
    white = inspector.manifest.preprocessing.white_level or 255
    found = Worst(
        prepared_levels=float(apart.max()) * white,
        prepared_share=float((apart > 0).mean()),
        score=_apart([each.image for each in scores], _read_array(folder, case["network_scores"])),
        map=_apart([each.anomaly_map for each in scores], _read_array(folder, case["network_maps"])),
    )
    for what, value in vars(found).items():
        # Written so that NaN fails; a level is a fraction of a float32.
        if not value <= allowed[what] * (1 + 1e-3):
            raise ModelFolderError(
                f"{folder / case['name']}: {what.replace('_', ' ')} differs by {value:.3g} here, and "
                f"{allowed[what]:.3g} is allowed: use another provider, or another version of ONNX Runtime or OpenCV"
            )
    then = case["verdict"]
    verdict = inspector.inspect(pixels).verdict
    # At the threshold rounding alone decides.
    if verdict != then["verdict"] and abs(then["score"] - then["threshold"]) > allowed["score"]:
        raise ModelFolderError(
            f"{folder / case['name']} is {verdict} here and was {then['verdict']} where the suite was exported: use "
            "another version of makel or OpenCV"
        )
    return found


def _apart(found: list[NDArray[np.float32]], stored: NDArray[Any]) -> float:
    return float(np.abs(np.concatenate(found) - stored).max())


def _read_array(folder: Path, described: dict[str, Any]) -> NDArray[Any]:
    path = folder / described["file"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): copy the suite again, as a whole") from error
    if hashlib.sha256(data).hexdigest() != described["sha256"]:
        raise UsageError(f"{path} is not what the suite was exported with: copy the suite again, as a whole")
    return np.frombuffer(data, np.dtype(described["dtype"]).newbyteorder("<")).reshape(described["shape"])
