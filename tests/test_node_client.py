"""The golden suite, and the reader in JavaScript that has to pass it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import tiny_model
from makel import Inspector
from makel.calibration import Calibration, calibrate
from makel.evidence.golden_suite import export
from makel.images import Preparation
from makel.model.tiling import Tiling
from makel.model.zones import Zone, Zones, _encode

CLIENT = Path(__file__).resolve().parent.parent / "clients" / "node"
SIZE = (16, 24)


def calibrated(*scores: float) -> Calibration:
    return calibrate(scores, scores, false_reject=0.25)


def zones() -> Zones:
    """One of each kind, in the aspect of the input; a mask that is no whole number of bytes wide."""
    mask = np.zeros((40, 60), np.uint8)
    mask[15:35, 9:31] = 255
    return Zones(
        image_size_px=(72, 48),
        mm_per_px=0.5,
        min_area_px=3,
        zones=(
            Zone(name="clamp", kind="ignore", polygon=((0, 0), (43, 0), (0, 37))),
            Zone(
                name="bore",
                kind="inspect",
                mask_png=_encode(mask),
                false_reject=0.25,
                calibration=calibrated(0.2, 0.3, 0.35),
            ),
            Zone(
                name="rim",
                kind="inspect",
                polygon=((40, 5), (70, 5), (70, 40)),
                false_reject=0.25,
                calibration=calibrated(0.1, 0.2, 0.25),
            ),
            Zone(name="all", kind="include", polygon=((0, 0), (72, 0), (72, 45), (0, 45))),
        ),
    )


MODELS = {
    "whole": {},
    "grey": {"colour": "grey"},
    "deep": {"preprocessing": Preparation(*SIZE, "rgb", 4095)},
    "deep_grey": {"preprocessing": Preparation(*SIZE, "grey", 65535)},
    "zoned": {"zones": zones()},
    "zoned_across": {
        "zones": Zones(
            image_size_px=(48, 72),
            zones=(Zone(name="clamp", kind="ignore", polygon=((0, 0), (48, 0), (20, 30), (48, 60))),),
        ),
        "image_scores": (0.2, 0.3, 0.42),
    },
    # Its zone is one row, on whose lower border the centre of a row of the input lies.
    "tied": {
        "size": (27, 18),
        "zones": Zones(
            image_size_px=(67, 46),
            zones=(
                Zone(
                    name="seam",
                    kind="inspect",
                    polygon=((0, 22), (67, 22), (67, 23), (0, 23)),
                    false_reject=0.25,
                    calibration=calibrated(0.2, 0.3, 0.4),
                ),
            ),
        ),
    },
    "tiled": {
        "tiling": Tiling(40, 12),
        "zones": Zones(min_area_px=4, mm_per_px=0.1),
        "image_scores": (0.25, 0.3, 0.355),
    },
}


@pytest.fixture(scope="module")
def suites(tmp_path_factory):
    """`suites / NAME` holds `model` and its `suite`, for each of MODELS."""
    root = tmp_path_factory.mktemp("suites")
    for name, changes in MODELS.items():
        tiny_model.write(root / name / "model", **{"size": SIZE, "image_scores": (0.2, 0.3, 0.42), **changes})
        export(Inspector.load(root / name / "model", threads=1), root / name / "suite")
    return root


def suite_of(folder):
    return json.loads((folder / "suite" / "suite.json").read_text(encoding="utf-8"))


def array(folder, described):
    data = (folder / "suite" / described["file"]).read_bytes()
    return np.frombuffer(data, described["dtype"]).reshape(described["shape"])


def test_a_suite_holds_what_makel_makes_of_each_image(suites):
    for name in MODELS:
        suite, inspector = suite_of(suites / name), Inspector.load(suites / name / "model", threads=1)
        assert suite["model_id"] == inspector.model_id
        for case in suite["cases"]:
            verdict = inspector.inspect(array(suites / name, case["pixels"]))
            said = {key: value for key, value in verdict.to_json().items() if key != "elapsed_ms"}
            assert json.loads(json.dumps(said)) == case["verdict"], (name, case["name"])
            np.testing.assert_array_equal(array(suites / name, case["anomaly_map"]), verdict.anomaly_map)
            found = inspector.scores(array(suites / name, case["prepared"]))
            np.testing.assert_allclose(found.image, array(suites / name, case["network_scores"]), atol=1e-6)
            if case["tiles_px"] is None:
                assert found.image.shape == (1,)
            else:
                assert len(case["tiles_px"]) == len(found.image)


def test_the_suites_show_both_verdicts_each_zone_and_each_way_of_preparing(suites):
    cases = {name: suite_of(suites / name)["cases"] for name in MODELS}
    for name, of in cases.items():
        assert {case["verdict"]["verdict"] for case in of} == {"pass", "reject"}, name
        assert {case["pixels"]["dtype"] for case in of} == {"uint16" if name.startswith("deep") else "uint8"}
        assert {case["pixels"]["shape"][2] for case in of} >= ({3} if name in ("zoned_across", "tied") else {1, 3}), (
            name
        )
    high, wide = SIZE
    sizes = {tuple(case["pixels"]["shape"][:2]) for case in cases["whole"]}
    assert {(h > high, w > wide) for h, w in sizes} == {(True, True), (True, False), (False, True), (False, False)}
    assert {(2 * high, 2 * wide), (4 * high, 4 * wide), (6 * high, 6 * wide)} < sizes
    assert any(h > high and w < wide for h, w in {tuple(c["pixels"]["shape"][:2]) for c in cases["zoned_across"]})
    shown = {(zone["name"], zone["verdict"]) for case in cases["zoned"] for zone in case["verdict"]["zones"]}
    assert shown == {(name, verdict) for name in ("bore", "rim") for verdict in ("pass", "reject")}
    assert max(len(case["tiles_px"]) for case in cases["tiled"]) >= 6
    assert any(len(case["verdict"]["regions"]) > 1 for case in cases["tiled"])
    # Beyond the white level of a camera, and a colour that a grey model lets through.
    assert max(array(suites / "deep", case["pixels"]).max() for case in cases["deep"]) > 4095
    channels = array(suites / "grey", next(c for c in cases["grey"] if c["name"] == "coloured")["prepared"])[0]
    assert (channels[0] != channels[1]).any()


def test_the_command_exports_and_checks(suites, tmp_path, makel_says):
    model = suites / "tiled" / "model"
    code, out, err = makel_says("golden", "export", model, "--out", tmp_path / "new", "--json")
    assert (code, err, json.loads(out)["n_cases"]) == (0, "", len(suite_of(suites / "tiled")["cases"]))
    # The same seed makes the same bytes.
    assert (tmp_path / "new" / "suite.json").read_bytes() == (suites / "tiled" / "suite" / "suite.json").read_bytes()
    assert makel_says("golden", "export", model, "--out", tmp_path / "new")[0] == 2
    code, out, err = makel_says("golden", "check", model, tmp_path / "new", "--json")
    assert (code, json.loads(out)["worst"]["score"]) == (0, 0.0)
    assert makel_says("golden", "check", suites / "whole" / "model", tmp_path / "new")[0] == 2


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("prepared", lambda array: array + np.float32(3 / 255), "prepared levels differs by 3"),
        ("network_scores", lambda array: array + np.float32(0.01), "score differs by 0.01"),
        ("network_maps", lambda array: array * np.float32(1.1), "map differs by 0.0"),
    ],
)
def test_a_step_that_differs_is_named(suites, tmp_path, makel_says, key, change, said):
    folder = tmp_path / "suite"
    shutil.copytree(suites / "whole" / "suite", folder)
    suite = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    described = suite["cases"][1][key]
    changed = change(np.frombuffer((folder / described["file"]).read_bytes(), np.float32))
    (folder / described["file"]).write_bytes(changed.tobytes())
    code, _, err = makel_says("golden", "check", suites / "whole" / "model", folder)
    assert (code, "is not what the suite was exported with" in err) == (2, True)
    described["sha256"] = hashlib.sha256(changed.tobytes()).hexdigest()
    (folder / "suite.json").write_text(json.dumps(suite), encoding="utf-8")
    code, _, err = makel_says("golden", "check", suites / "whole" / "model", folder)
    assert (code, said in err) == (8, True), err


def test_the_reader_has_at_most_400_lines_of_code():
    lines = [line for path in CLIENT.glob("*.mjs") for line in path.read_text(encoding="utf-8").splitlines()]
    assert len([line for line in lines if not re.fullmatch(r"\s*(//.*|/?\*.*)?", line)]) <= 400


def test_the_reader_in_javascript_passes_every_suite(suites):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if int(subprocess.run([node, "--version"], capture_output=True, text=True).stdout[1:].partition(".")[0]) < 20:
        pytest.skip("node is older than version 20")
    if not (CLIENT / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip(f"onnxruntime-node is not installed: run npm install in {CLIENT}")
    environment = {**os.environ, "MAKEL_SUITES": os.pathsep.join(str(suites / name) for name in MODELS)}
    if platform.machine() in ("x86_64", "AMD64"):
        environment["MAKEL_EXACT"] = "1"  # OpenCV for other processors may round bytes in ways of its own
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", "test/"], cwd=CLIENT, env=environment, capture_output=True, text=True
    )
    n_cases = sum(len(suite_of(suites / name)["cases"]) for name in MODELS)
    assert done.returncode == 0, done.stdout[-8000:]
    assert f"# pass {n_cases + len(MODELS) + 1}\n" in done.stdout
