"""model.json: one way to write it, and nothing else is read."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from pydantic import ValidationError

import makel.methods
from makel.errors import ModelFolderError
from makel.model.manifest import Manifest, Method, method_names
from tiny_model import draft

FILES = {"model.onnx": "a" * 64, "golden/000.npz": "b" * 64}
PATH = Path("model") / "model.json"


@pytest.fixture
def manifest() -> Manifest:
    return Manifest.seal(draft(), FILES)


def test_round_trip_is_exact(manifest: Manifest) -> None:
    assert Manifest.from_bytes(manifest.to_bytes(), PATH) == manifest
    assert Manifest.from_bytes(manifest.to_bytes(), PATH).to_bytes() == manifest.to_bytes()


def test_bytes_are_canonical_json(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    raw = json.loads(data)
    assert data == (json.dumps(raw, sort_keys=True, indent=2, ensure_ascii=True) + "\n").encode("ascii")
    assert raw["files"] == FILES
    assert raw["schema_version"] == 1
    assert raw["method"]["config"] == {"size": 16, "blocks": [1, 2]}


def test_model_id_hashes_all_the_rest(manifest: Manifest) -> None:
    raw = json.loads(manifest.to_bytes())
    named = raw.pop("model_id")
    rest = (json.dumps(raw, sort_keys=True, indent=2) + "\n").encode()
    assert named == sha256(rest).hexdigest()[:16]


def test_any_other_content_is_another_model(manifest: Manifest) -> None:
    others = [
        Manifest.seal(draft(), {**FILES, "model.onnx": "c" * 64}),
        Manifest.seal(draft(false_reject=0.5), FILES),
        Manifest.seal(draft(backbone=None), FILES),
    ]
    assert len({manifest.model_id, *(other.model_id for other in others)}) == 4
    assert Manifest.seal(draft(), dict(reversed(FILES.items()))).model_id == manifest.model_id


def test_one_changed_byte_anywhere_is_refused_by_name(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    for position in range(len(data)):
        for flip in (0x01, 0x20):
            changed = bytearray(data)
            changed[position] ^= flip
            with pytest.raises(ModelFolderError, match=r"model\.json"):
                Manifest.from_bytes(bytes(changed), PATH)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: data[:-1],
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda _: b"[]",
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b'"seed": 0', b'"seed": 0,\n    "seed": 0'),
        lambda data: data.replace(b'"final_loss": 0.125', b'"final_loss": NaN'),
        lambda data: data.replace(b'"runtime": "onnx"', b'"runtime": "pickle"'),
        lambda data: data.replace(b'"epochs": 3', b'"epochs": 3,\n    "extra": 1'),
        lambda data: data.replace(b'"size": 16', b'"size": 16,\n    "extra": 1'),
    ],
)
def test_other_changes_are_refused(manifest: Manifest, change) -> None:
    changed = change(manifest.to_bytes())
    assert changed != manifest.to_bytes()
    with pytest.raises(ModelFolderError, match=r"model\.json"):
        Manifest.from_bytes(changed, PATH)


def test_a_signed_lie_is_refused(manifest: Manifest) -> None:
    """Whoever changes a threshold and signs again still has to make it follow from the scores."""
    loose = json.loads(manifest.to_bytes())
    loose["calibration"]["image_threshold"] = 99.0
    del loose["model_id"]
    loose["model_id"] = sha256((json.dumps(loose, sort_keys=True, indent=2) + "\n").encode()).hexdigest()[:16]
    with pytest.raises(ModelFolderError, match="do not follow"):
        Manifest.from_bytes((json.dumps(loose, sort_keys=True, indent=2) + "\n").encode(), PATH)


def test_another_schema_says_what_to_do(manifest: Manifest) -> None:
    newer = manifest.to_bytes().replace(b'"schema_version": 1', b'"schema_version": 2')
    with pytest.raises(
        ModelFolderError, match=r"schema version 2, this makel \(.+\) reads 1: use the makel that wrote"
    ):
        Manifest.from_bytes(newer, PATH)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../b", "C:/x", "a\\b", ".hidden", "a/.b", "a//b", "", "model.json", "é"]
)
def test_no_path_leads_out_of_the_folder(name: str) -> None:
    with pytest.raises(ValidationError):
        Manifest.seal(draft(), {**FILES, name: "c" * 64})


def test_a_manifest_without_a_model_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"model\.onnx"):
        Manifest.seal(draft(), {})


@pytest.mark.parametrize("name", ["os", "layers", "__init__", "../skip_ae", "", "pickle"])
def test_only_methods_of_makel_can_be_named(name: str) -> None:
    with pytest.raises(ValidationError, match="is none of"):
        Method(name=name, preset="fast", config={})


def test_every_method_can_be_named() -> None:
    assert method_names() == makel.methods.names() != ()
    for name in method_names():
        assert Method(name=name, preset="fast", config={}).name == name


def test_sections_are_frozen_and_closed(manifest: Manifest) -> None:
    with pytest.raises(ValidationError):
        manifest.model_id = "0"
    with pytest.raises(ValidationError, match="extra"):
        Method(name="skip_ae", preset="fast", config={}, extra=1)
    with pytest.raises(ValidationError):
        draft(fit={"seconds": {"train": float("nan")}})


def test_calibration_survives_to_the_last_bit() -> None:
    scores = (0.1, 1 / 3, 2**0.5)
    sealed = Manifest.seal(draft(image_scores=scores), FILES)
    read = Manifest.from_bytes(sealed.to_bytes(), PATH)
    assert read.calibration == sealed.calibration
    assert read.calibration.image_scores == scores
    assert read.calibration.explain() == replace(read.calibration).explain()
