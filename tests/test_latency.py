"""`--latency-budget`: what is preferred, measured and promised, and what happens where nothing is fast enough."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

import makel
from makel.errors import DatasetError, UsageError
from makel.model.folder import open_folder
from makel.training.fit import fit
from makel.training.latency import BACKBONES, HEADROOM, SIZES, Timing, backbones_for, search, sizes_for

SQUARES = tuple((size, size) for size in SIZES)
FIXED = {"method": "ganomaly", "size": 32, "epochs": 1, "false_reject": 0.5}  # exports in the least time


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Good images of 96 x 80 pixels and noise."""
    root = tmp_path_factory.mktemp("line")
    rng = np.random.default_rng(0)
    (root / "good").mkdir()
    for index in range(6):
        cv2.imwrite(str(root / "good" / f"{index}.png"), rng.integers(60, 200, (80, 96, 3), np.uint8))
    return root


class Machine:
    """A machine whose time an image is the pixels times a factor of the backbone; it counts what it is asked."""

    def __init__(self, ms_at_256: float):
        self.ms_at_256 = ms_at_256
        self.asked = []

    def p99_ms(self, size, backbone):
        return self.ms_at_256 * (size[0] * size[1] / 256**2) * (1, 1.5, 2)[BACKBONES.index(backbone)]

    def measure(self, size, backbone):
        self.asked.append((size, backbone))
        return Timing(1.0, self.p99_ms(size, backbone), 200)


@pytest.mark.parametrize("ms_at_256", [1.0, 9.0, 12.0, 16.0, 25.0, 35.0, 60.0])
def test_the_choice_is_the_largest_size_and_there_the_largest_backbone_that_keep_the_budget(ms_at_256):
    machine = Machine(ms_at_256)
    choice = search(SQUARES, BACKBONES, 20, machine.measure)
    kept = [(size, name) for size in SQUARES for name in BACKBONES if machine.p99_ms(size, name) <= 20 * HEADROOM]
    assert (choice.size, choice.backbone) == max(kept)
    assert len(machine.asked) <= len(SIZES).bit_length() + len(BACKBONES) - 1
    assert [(each.size, each.backbone) for each in choice.tried] == machine.asked


def test_where_nothing_keeps_the_budget_the_fastest_is_named():
    message = (
        r"a latency budget of 5 ms cannot be kept on this machine: the fastest there is, efficientnet_lite0 at "
        r"128 x 128 px, takes 15\.0 ms at the 99th percentile .* Give 17 ms or more"
    )
    with pytest.raises(UsageError, match=message):
        search(SQUARES, BACKBONES, 5, Machine(60.0).measure)
    assert search(SQUARES, BACKBONES, 17, Machine(60.0).measure).size == (128, 128)  # what the message says is true


@pytest.mark.parametrize(
    ("size", "longest_px", "expected"),
    [
        (256, 5000, (128, 192, 224, 256, 320, 384)),
        (256, 300, (128, 192, 224, 256, 320)),
        (256, 80, (128, 192, 224, 256)),
        (300, 240, (128, 192, 224, 256, 300)),
        (64, 80, (64, 128)),
    ],
)
def test_no_size_is_larger_than_the_images_can_fill(size, longest_px, expected):
    assert sizes_for(size, longest_px) == expected


def test_only_the_embedded_family_takes_part_in_the_choice():
    assert backbones_for("tf_efficientnet_lite0", fixed=False)[0] == "efficientnet_lite0"
    assert backbones_for("efficientnet_lite0", fixed=True) == ("efficientnet_lite0",)
    assert backbones_for("resnext101", fixed=False) == ("resnext101",)
    assert backbones_for("", fixed=False) == ("",)


@pytest.fixture(scope="module")
def promised(line, tmp_path_factory):
    return fit(line, tmp_path_factory.mktemp("models") / "model", latency_budget=5000, **FIXED)


def test_the_manifest_holds_what_was_promised_and_what_the_finished_model_takes(promised):
    manifest = open_folder(promised.path).manifest
    latency = manifest.latency
    assert latency.kept
    assert latency.budget_ms == 5000
    assert 0 < latency.p50_ms <= latency.p99_ms < 5000
    assert latency.decode_p99_ms > 0
    assert latency.image_px == (96, 80)
    assert (
        [(each.size, each.backbone) for each in latency.tried]
        == [(manifest.preprocessing.shape, "")]
        == [((32, 32), "")]
    )
    assert manifest.fit.seconds["latency"] > 0
    assert makel.Inspector.load(promised.path).inspect(np.zeros((80, 96, 3), np.uint8)).score >= 0


def test_the_summary_and_info_say_whether_the_promise_is_kept(promised, makel_says):
    said = next(line for line in promised.lines() if line.startswith("latency"))
    assert said.startswith("latency    kept: ")
    assert "5000 promised" in said
    assert "from a decoded image (96 x 80 px) to its verdict" in said
    assert "Decoding a file takes " in said
    assert promised.to_json()["latency"]["kept"] is True
    json.dumps(promised.to_json())
    assert said in makel_says("info", promised.path)[1]
    broken = promised.manifest.latency.model_copy(update={"budget_ms": promised.manifest.latency.p99_ms / 2})
    assert broken.explain().startswith("NOT KEPT: ")


def test_a_budget_that_cannot_be_kept_ends_before_the_fit_and_writes_nothing(line, tmp_path, makel_says):
    options = ("--method", "ganomaly", "--size", "32", "--quiet")
    out = tmp_path / "out" / "model"
    code, _, said = makel_says("fit", line, "--out", out, "--latency-budget", "0.01", *options)
    assert code == 2
    assert "the fastest there is, 32 x 32 px, takes " in said
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("budget", [0, -1, float("nan"), float("inf")])
def test_a_budget_must_be_a_time(line, tmp_path, budget):
    with pytest.raises(UsageError, match="give milliseconds above 0"):
        fit(line, tmp_path / "model", latency_budget=budget, **FIXED)


def test_a_size_the_method_cannot_take_is_still_refused_as_such(line, tmp_path):
    with pytest.raises(UsageError, match="cannot be halved"):
        fit(line, tmp_path / "model", size=(24, 64), latency_budget=100)


def test_images_that_cannot_be_read_are_said(tmp_path):
    (tmp_path / "good").mkdir()
    for index in range(3):
        (tmp_path / "good" / f"{index}.png").write_bytes(b"no image %d" % index)
    with pytest.raises(DatasetError, match="none of the first 3 good images can be read"):
        fit(tmp_path, tmp_path / "model", latency_budget=100, **FIXED)
