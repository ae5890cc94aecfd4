"""Fitting as a user does it, with the embedded backbone on images small enough for a test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

import makel
from makel.datasets import load, split
from makel.errors import DatasetError, ModelFolderError, ParityError, TrainingError, UsageError
from makel.model.folder import staging
from makel.model.manifest import short_hash
from makel.model.session import Session
from makel.training.export import torch_scores
from makel.training.features import FeatureCache, extract
from makel.training.fit import build_detector, choose_device, fit
from makel.training.gate import RELATIVE_TOLERANCE, check_parity, nudged
from makel.training.loop import Checkpoint, train
from makel.training.summary import FitSummary
from makel.types import Scores

SETTINGS = {"size": 64, "epochs": 2}


def write_line(root: Path, n_good: int = 12, n_defect: int = 4) -> Path:
    """A striped product with noise, and the same with a dark blot, in MVTec AD layout."""
    rng = np.random.default_rng(0)
    stripes = 120 + 60 * np.sin(np.arange(96) / 5)[:, None, None]

    def part() -> np.ndarray:
        return stripes + rng.normal(0, 6, (96, 80, 1)) + np.array([10.0, 0, -10])

    def write(path: Path, image: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8))

    for index in range(n_good):
        write(root / "train" / "good" / f"{index:03d}.png", part())
    for index in range(n_defect):
        write(root / "test" / "good" / f"{index:03d}.png", part())
        image, mask = part(), np.zeros((96, 80), np.uint8)
        cv2.circle(mask, (40, 48), 12, 255, -1)
        image[mask > 0] = 5
        write(root / "test" / "blot" / f"{index:03d}.png", image)
        write(root / "ground_truth" / "blot" / f"{index:03d}_mask.png", mask)
    return root


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    return write_line(tmp_path_factory.mktemp("line"))


@pytest.fixture(scope="module")
def fitted(line, tmp_path_factory) -> FitSummary:
    return fit(line, tmp_path_factory.mktemp("models") / "model", **SETTINGS)


def test_the_model_folder_holds_what_was_promised(fitted):
    names = {path.relative_to(fitted.path).as_posix() for path in fitted.path.rglob("*") if path.is_file()}
    assert {"model.onnx", "model.json", "weights.safetensors", "log.jsonl", "report.html", "golden/000.npz"} <= names
    assert (
        len({path.stat().st_mode for path in fitted.path.iterdir() if path.is_file()}) == 1
    )  # all for the same readers
    manifest = fitted.manifest
    assert manifest.provenance.n_fit == 10
    assert manifest.provenance.n_calibrate == 2
    assert len(manifest.provenance.holdout) == 2
    assert manifest.method.config["size"] == [64, 64]
    assert manifest.backbone is not None
    assert manifest.backbone.licence == "apache-2.0"
    assert manifest.calibration.promised_false_reject == pytest.approx(1 / 3)
    assert len((fitted.path / "log.jsonl").read_text().splitlines()) == 2


def test_the_summary_says_what_is_promised_and_how_long_each_stage_took(fitted):
    text = "\n".join(fitted.lines())
    assert "2 held-out good images can promise a false-reject rate of 33.3 % (1 in 3) at best" in text
    assert set(fitted.to_json()["seconds"]) >= {"data", "features", "training", "export", "calibration", "gate"}
    json.dumps(fitted.to_json())


def test_a_defect_scores_above_every_good_image(fitted, line):
    inspector = makel.Inspector.load(fitted.path)
    scores = {sample.image_path: inspector.inspect(sample.image_path) for sample in load(line).test}
    good = [verdict.score for path, verdict in scores.items() if path.parent.name == "good"]
    defect = [verdict for path, verdict in scores.items() if path.parent.name == "blot"]
    assert min(verdict.score for verdict in defect) > max(good)
    assert all(verdict.verdict == "reject" for verdict in defect)
    for verdict in defect:
        y, x = np.unravel_index(verdict.anomaly_map.argmax(), verdict.anomaly_map.shape)
        assert np.hypot(y - 48, x - 40) < 20


def test_the_same_fit_twice_gives_identical_weights_and_scores(fitted, line, tmp_path):
    again = fit(line, tmp_path / "again", **SETTINGS)
    first, second = (load_file(summary.path / "weights.safetensors") for summary in (fitted, again))
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)
    assert again.manifest.calibration == fitted.manifest.calibration


def test_another_seed_gives_another_model(fitted, line, tmp_path):
    other = fit(line, tmp_path / "other", seed=1, **SETTINGS)
    assert other.manifest.provenance.holdout != fitted.manifest.provenance.holdout


def test_batch_size_and_order_do_not_change_scores(fitted, line):
    inspector = makel.Inspector.load(fitted.path)
    paths = [sample.image_path for sample in load(line).test]
    one = {path: verdict.score for path, verdict in inspector.inspect_all(paths)}
    eight = {path: verdict.score for path, verdict in inspector.inspect_all(paths[::-1], batch=8)}
    tolerance = fitted.manifest.parity.score_tolerance
    assert max(abs(one[path] - eight[path]) for path in paths) <= tolerance


def test_cross_calibration_scores_every_image_by_a_model_that_did_not_see_it(line, tmp_path):
    summary = fit(line, tmp_path / "cross", calibrate="cross", **SETTINGS)
    assert summary.manifest.calibration.scheme == "cross"
    assert summary.manifest.calibration.n == summary.manifest.provenance.n_fit == 12


def test_unreadable_good_images_are_named_and_left_out(tmp_path):
    root = write_line(tmp_path / "line")
    (root / "train" / "good" / "003.png").write_bytes(b"")
    summary = fit(root, tmp_path / "model", **SETTINGS)
    assert summary.manifest.provenance.n_fit + summary.manifest.provenance.n_calibrate == 11
    assert [line for line in summary.unreadable if "003.png" in line]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "nope"}, "method 'nope'"),
        ({"preset": "slow"}, "preset 'slow'"),
        ({"size": 0}, "size 0 is no size of an image"),
        ({"size": (64, 64, 3)}, "is no size of an image"),
        ({"size": (32, 64)}, "size 64 x 32 px .* cannot be halved 3 times"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"blocks": (9,)}, "blocks 9"),
        ({"false_reject": 1.5}, "1.5"),
        ({"method": "pca"}, "pca is solved in one go.* leave epochs=2 out"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_and_nothing_is_left(line, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        fit(line, tmp_path / "model", **{**SETTINGS, **changes})
    assert list(tmp_path.iterdir()) == []


def test_one_image_is_too_few(tmp_path):
    root = write_line(tmp_path / "line", n_good=1)
    with pytest.raises(DatasetError, match="at least 2"):
        fit(root, tmp_path / "model", **SETTINGS)


def test_auto_device_is_one_that_is_there():
    assert choose_device("auto").type in ("cuda", "mps", "cpu")


@pytest.fixture(scope="module")
def trained(fitted, line, tmp_path_factory):
    config = makel.methods.load("skip_ae").config_class.preset("fast", **SETTINGS)
    detector = build_detector(makel.methods.load("skip_ae"), config, 0)
    # Once more as `fit` did it, since the folder keeps only what was trained.
    samples = split(load(line), seed=0).fit
    preparation = fitted.manifest.preprocessing
    paths = [sample.image_path for sample in samples]
    cpu, quiet = torch.device("cpu"), lambda *_: None
    found = extract(
        detector, paths, preparation, device=cpu, folder=tmp_path_factory.mktemp("features"), progress=quiet
    )
    train(detector, found.cache, seed=0, progress=quiet)
    for key, value in load_file(fitted.path / "weights.safetensors").items():
        np.testing.assert_array_equal(detector.state_dict()[key].numpy(), value)
    paths = [sample.image_path for sample in load(line).good[:3]]
    images = np.stack([image for _, image in makel.images.decode_all(paths, preparation=fitted.manifest.preprocessing)])
    return images, [path.name for path in paths], torch_scores(detector, images)


class TestGate:
    """A file that computes something else than what was trained must not become a model."""

    def test_the_shipped_file_passes(self, fitted, trained):
        images, names, scores = trained
        session = Session((fitted.path / "model.onnx").read_bytes(), threads=1)
        parity = check_parity(images, names, scores, session, fitted.manifest.calibration.image_threshold)
        assert parity.worst_score_difference < parity.score_tolerance / 10

    def test_rounding_does_not_widen_the_tolerance_of_an_ordinary_product(self, fitted):
        scores, parity = fitted.manifest.calibration.image_scores, fitted.manifest.parity
        assert parity.score_tolerance == pytest.approx(RELATIVE_TOLERANCE * max(scores), rel=1e-3)

    def test_what_a_millionth_of_full_scale_does_is_no_difference(self, trained):
        images, names, scores = trained
        rounding = Scores(scores.image + np.float32(0.5), scores.anomaly_map + np.float32(0.25))

        class Off:
            def __init__(self, off):
                self.off = off

            def run(self, batch):
                of = [index for index, image in enumerate(images) for each in batch if np.array_equal(each, image)]
                return Scores(scores.image[of] + np.float32(self.off), scores.anomaly_map[of])

        parity = check_parity(images, names, scores, Off(1.9), 1e9, of_nudged=rounding)
        assert (parity.score_tolerance, parity.map_tolerance) == pytest.approx((2, 1), rel=1e-3)
        with pytest.raises(ParityError, match="nothing was written"):
            check_parity(images, names, scores, Off(2.1), 1e9, of_nudged=rounding)
        moved = nudged(images)
        assert moved.dtype == np.float32
        assert 0 <= moved.min() <= moved.max() <= 1
        assert 0 < np.abs(moved - images).max() <= 2.0**-19

    @pytest.mark.parametrize("kind", ["bias", "resize", "weight"])
    def test_a_tampered_graph_fails(self, fitted, trained, kind):
        images, names, scores = trained
        model = onnx.load_from_string((fitted.path / "model.onnx").read_bytes())
        tensors = {item.name: item for item in model.graph.initializer}
        if kind == "resize":
            node = next(node for node in model.graph.node if node.op_type == "Resize")
            next(item for item in node.attribute if item.name == "mode").s = b"nearest"
        else:
            bias = next(name for name in tensors if name.endswith("autoencoder.up.0.bias"))
            weight = next(name for name, item in tensors.items() if len(item.dims) == 4 and ".weight" in name)
            tensor = tensors[bias if kind == "bias" else weight]
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values * 1.05 + 0.1).astype(values.dtype), tensor.name))
        session = Session(model.SerializeToString(), threads=1)
        with pytest.raises(ParityError, match="nothing was written"):
            check_parity(images, names, scores, session, fitted.manifest.calibration.image_threshold)

    def test_a_flipped_verdict_fails_even_within_the_tolerance_of_the_score(self, fitted, trained):
        images, names, scores = trained
        model = onnx.load_from_string((fitted.path / "model.onnx").read_bytes())
        node = next(node for node in model.graph.node if "score" in node.output)
        node.output[:] = ["own"]
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1.0005), "higher"))
        model.graph.node.append(helper.make_node("Mul", ["own", "higher"], ["score"]))
        session, highest = Session(model.SerializeToString(), threads=1), float(scores.image.max())
        check_parity(images, names, scores, session, 2 * highest)  # half of the tolerance: by itself that passes
        with pytest.raises(ParityError, match="verdict flipped"):
            check_parity(images, names, scores, session, 1.0003 * highest)


class TestLoop:
    def make(self, line):
        detector_class = makel.methods.load("skip_ae")
        config = detector_class.config_class.preset("fast", size=64, epochs=4)
        detector = build_detector(detector_class, config, 0)
        paths = [sample.image_path for sample in load(line).good]
        preparation = makel.images.Preparation.of(makel.images.decode_all(paths), shape=(64, 64))
        return detector, paths, preparation

    def extract(self, detector, paths, preparation, folder, **more) -> FeatureCache:
        cpu = torch.device("cpu")
        return extract(detector, paths, preparation, device=cpu, folder=folder, progress=lambda *_: None, **more).cache

    def test_a_mapped_cache_holds_what_one_in_memory_holds(self, line, tmp_path):
        made = self.make(line)
        small, large = self.extract(*made, tmp_path), self.extract(*made, tmp_path, memory_limit=0)
        assert isinstance(large.levels[0], np.memmap)
        for one, other in zip(small, large, strict=True):
            for first, second in zip(one, other, strict=True):
                assert torch.equal(first, second)

    def test_a_resumed_fit_ends_with_the_weights_of_one_never_stopped(self, line, tmp_path, monkeypatch):
        monkeypatch.setattr("makel.training.loop.SAVE_EVERY_S", 0.0)
        whole, paths, preparation = self.make(line)
        cache = self.extract(whole, paths, preparation, tmp_path)
        train(whole, cache, seed=3, progress=lambda *_: None)

        class StoppedError(Exception):
            pass

        def stop_after_two(_stage, done, _total):
            if done == 3:
                raise StoppedError

        checkpoint = Checkpoint(tmp_path / "checkpoint.pt", "key")
        with pytest.raises(StoppedError):
            train(self.make(line)[0], cache, seed=3, progress=stop_after_two, checkpoint=checkpoint)
        resumed = self.make(line)[0]
        seen = []
        train(
            resumed, cache, seed=3, progress=lambda _s, done, _t: seen.append(done), checkpoint=checkpoint, resume=True
        )
        assert seen == [3, 4]
        state = resumed.learned_state()
        for key, value in whole.learned_state().items():
            assert torch.equal(value, state[key]), key

    def test_a_checkpoint_of_another_fit_is_refused(self, tmp_path):
        Checkpoint(tmp_path / "checkpoint.pt", "one").save({"history": []})
        with pytest.raises(TrainingError, match="other images or settings"):
            Checkpoint(tmp_path / "checkpoint.pt", "other").load()

    def test_a_torn_checkpoint_is_refused(self, tmp_path):
        (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 torn")
        with pytest.raises(TrainingError, match="cannot be read"):
            Checkpoint(tmp_path / "checkpoint.pt", "one").load()

    def test_a_loss_that_turns_nan_stops_with_a_reason(self, line, tmp_path):
        detector, paths, preparation = self.make(line)
        cache = self.extract(detector, paths, preparation, tmp_path)
        cache.levels[0][0, 0, 0, 0] = np.nan
        with pytest.raises(TrainingError, match="became nan in epoch 1"):
            train(detector, cache, seed=0, progress=lambda *_: None)


def run_fit(line: Path, out: Path, *more: str, **kwargs) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "makel", "fit", str(line), "--out", str(out), "--size", "64", "--epochs", "800"]
    # A shell starts what it puts in the background, such as these tests, deaf to Ctrl-C, and children inherit that.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen([*command, "--quiet", *more], stderr=subprocess.PIPE, text=True, **kwargs)
    finally:
        signal.signal(signal.SIGINT, heard)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL and no SIGINT for one process")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_fit_that_is_stopped_leaves_no_model_and_can_be_resumed(line, tmp_path, number):
    out = tmp_path / "model"
    process = run_fit(line, out)
    work = tmp_path / ".model.resume"
    deadline = time.monotonic() + 120
    while not (work / "checkpoint.pt").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not out.exists()
    process = run_fit(line, out, "--resume")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    makel.Inspector.load(out)
    assert not work.exists()


def test_images_replaced_while_a_fit_runs_do_not_enter_the_record(tmp_path):
    """One after it was read, which changes nothing; one before, and one that was to be held out: left out."""
    root = write_line(tmp_path / "line")
    parts = split(load(root))
    late, early = parts.fit[0].image_path, parts.fit[-1].image_path
    held = parts.calibrate[0].image_path
    hashes = {
        sample.image_path: short_hash(sha256(sample.image_path.read_bytes()).hexdigest()) for sample in load(root).good
    }
    other = early.with_name("other.tmp")

    def replace(path: Path) -> None:
        other.write_bytes((root / "test" / "blot" / "000.png").read_bytes())
        other.replace(path)

    def progress(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("backbone", 0):
            replace(early)
        elif (stage, done) == ("export", 0):
            replace(late)
            replace(held)

    summary = fit(root, tmp_path / "model", **SETTINGS, progress=progress)
    provenance = summary.manifest.provenance
    assert set(provenance.fit_hashes) == {hashes[each.image_path] for each in parts.fit} - {hashes[early]}
    assert set(provenance.calibrate_hashes) == {hashes[each.image_path] for each in parts.calibrate} - {hashes[held]}
    assert [line.rpartition("/")[2] for line in summary.unreadable] == [
        f"{path.name} was replaced while it was used: fit again with what is there now" for path in (early, held)
    ]


def test_a_second_fit_into_the_same_folder_is_refused_at_its_start(line, tmp_path):
    with staging(tmp_path / "model"), pytest.raises(ModelFolderError, match="is being written by another fit"):
        fit(line, tmp_path / "model", **SETTINGS)


def test_a_work_folder_of_somebody_is_left_alone(line, tmp_path):
    mine = tmp_path / ".model.resume" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"notes\.txt is nothing that a fit writes"):
        fit(line, tmp_path / "model", **SETTINGS)
    assert mine.read_text(encoding="utf-8") == "mine"


def test_a_group_by_the_command_line_is_held_out_as_a_whole(tmp_path, makel_says):
    root = write_line(tmp_path / "line", n_good=12, n_defect=1)
    for index, path in enumerate(sorted((root / "train" / "good").iterdir())):
        path.rename(path.with_name(f"part{index // 3}_{index % 3}.png"))
    code, out, err = makel_says(
        "fit", root, "--out", tmp_path / "model", "--size", "64", "--epochs", "1", "--group", r"part\d", "--quiet"
    )
    assert (code, err) == (0, "")
    assert "images     9 fitted on, 1 for the threshold" in out
    assert "warning: 12 good images of 12 show 4 parts in all, such as part0_0.png and part0_1.png" in out
    assert "show 4 parts in all" in (tmp_path / "model" / "report.html").read_text(encoding="utf-8")
