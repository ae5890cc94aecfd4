"""Evaluation of a tiny model on tiny datasets, through the inspector that ships."""

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

import tiny_model
from makel.datasets import load
from makel.errors import DatasetError, ModelFolderError
from makel.evaluation import protocol
from makel.evaluation.metrics import rate_interval
from makel.evaluation.protocol import evaluate, figure
from makel.images import Preparation
from makel.model.inspector import Inspector
from makel.types import Sample

KEYS = {
    "model_id",
    "image_auroc",
    "image_ap",
    "image_f1_max",
    "pixel_auroc",
    "pixel_ap",
    "pixel_f1_max",
    "aupro_30",
    "aupro_05",
    "threshold",
    "false_reject_rate",
    "false_reject_interval",
    "miss_rate",
    "miss_interval",
    "n_good",
    "n_defect",
    "n_good_refused",
    "n_defect_refused",
    "n_unlabelled",
    "n_unmarked",
    "blank_masks",
    "n_seen",
    "n_shared",
    "mask_notes",
    "per_kind",
    "latency_ms",
    "failures",
    "notes",
}
METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_30", "aupro_05")
KIND_KEYS = {
    "n",
    "image_auroc",
    "image_ap",
    "pixel_auroc",
    "pixel_ap",
    "aupro_30",
    "miss_rate",
    "miss_interval",
}


@pytest.fixture(scope="module")
def inspector(tmp_path_factory):
    """Scores the distance from mid grey and rejects above 0.3."""
    return Inspector.load(tiny_model.write(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch):
    monkeypatch.setattr(protocol, "LATENCY_CALLS", 9)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def part(grey=128, spot=None, *, height=32, width=48, box=(8, 16, 12, 24)):
    """An even part, and with `spot` a square of that grey over y 8..16, x 12..24; the second array marks it."""
    image = np.full((height, width, 3), grey, np.uint8)
    mask = np.zeros((height, width), np.uint8)
    y0, y1, x0, x1 = box
    if spot is not None:
        image[y0:y1, x0:x1] = spot
    mask[y0:y1, x0:x1] = 255
    return image, mask


@pytest.fixture
def line(tmp_path):
    """Four good parts of which one is rejected; three bright and two dim defects, of which the dim ones pass."""
    root = tmp_path / "line"
    for index, grey in enumerate((128, 130, 140, 220)):
        write(root / f"test/good/{index}.png", part(grey)[0])
    for index, spot in enumerate((255, 250, 245)):
        image, mask = part(128, spot)
        write(root / f"test/bright/{index}.png", image)
        write(root / f"ground_truth/bright/{index}_mask.png", mask)
    for index, spot in enumerate((150, 160)):
        image, mask = part(128, spot)
        write(root / f"test/dim/{index}.png", image)
        write(root / f"ground_truth/dim/{index}_mask.png", mask)
    return root


def measure(inspector, root, **settings):
    evaluation = evaluate(inspector, load(root).test, **settings)
    said = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    return evaluation, said


class TestAWholeEvaluation:
    def test_the_documented_keys(self, inspector, line):
        _, said = measure(inspector, line)
        assert set(said) == KEYS
        assert set(said["per_kind"]) == {"bright", "dim"}
        assert all(set(row) == KIND_KEYS for row in said["per_kind"].values())
        assert set(said["latency_ms"]) == {"p50", "p95", "p99"}
        assert said["model_id"] == inspector.manifest.model_id
        assert said["threshold"] == inspector.calibration.image_threshold

    def test_figures_worked_out_by_hand(self, inspector, line):
        _, said = measure(inspector, line)
        # Good scores 0.002, 0.010, 0.049, 0.363; defects 0.5, 0.48, 0.46 and 0.088, 0.127.
        assert said["image_auroc"] == pytest.approx((3 * 4 + 2 * 3) / 20)
        assert said["per_kind"]["bright"]["image_auroc"] == 1.0
        assert said["per_kind"]["dim"]["image_auroc"] == pytest.approx(0.75)
        assert (said["false_reject_rate"], said["miss_rate"]) == (1 / 4, 2 / 5)
        assert said["false_reject_interval"] == list(rate_interval(1, 4))
        assert said["miss_interval"] == list(rate_interval(2, 5))
        assert (said["n_good"], said["n_defect"], said["n_unlabelled"], said["n_unmarked"]) == (4, 5, 0, 0)
        assert (said["failures"], said["blank_masks"]) == ([], [])
        assert (said["per_kind"]["bright"]["n"], said["per_kind"]["bright"]["miss_rate"]) == (3, 0.0)
        assert (said["per_kind"]["dim"]["n"], said["per_kind"]["dim"]["miss_rate"]) == (2, 1.0)
        assert said["per_kind"]["dim"]["miss_interval"] == list(rate_interval(2, 2))

    def test_pixels_count_at_the_size_of_the_model(self, inspector, line):
        evaluation, said = measure(inspector, line)
        # Masks of 8x12 of 32x48 pixels are 4x4 of 16x16: exactly where the map is high.
        assert (evaluation.pixel.n_defect, evaluation.pixel.n_regions) == (5 * 16, 5)
        assert evaluation.pixel.n_good == 4 * 256 + 5 * (256 - 16)
        # Only the good part that is bright all over scores above the dim defects.
        n_good = evaluation.pixel.n_good
        assert said["pixel_auroc"] == pytest.approx((3 * n_good + 2 * (n_good - 256)) / (5 * n_good))
        assert said["per_kind"]["bright"]["pixel_auroc"] == 1.0
        assert said["per_kind"]["bright"]["aupro_30"] == 1.0
        assert 0 < said["per_kind"]["dim"]["aupro_30"] < 1

    def test_outcomes_in_the_order_given(self, inspector, line):
        samples = load(line).test
        evaluation = evaluate(inspector, samples[::-1])
        assert [outcome.path for outcome in evaluation.outcomes] == [sample.image_path for sample in samples[::-1]]
        for outcome in evaluation.outcomes:
            image = cv2.cvtColor(cv2.imread(str(outcome.path)), cv2.COLOR_BGR2RGB)
            verdict = inspector.inspect(image)
            assert outcome.score == pytest.approx(verdict.score, abs=1e-6)
            assert outcome.rejected == (verdict.verdict == "reject")
            assert outcome.p_value == verdict.p_value

    def test_the_order_changes_nothing(self, inspector, line):
        samples = load(line).test
        one, other = (
            evaluate(inspector, order, workers=n).to_json() for order, n in ((samples, 1), (samples[::-1], 3))
        )
        for key in METRICS:
            assert one[key] == pytest.approx(other[key], abs=1e-12)
        for kind, row in one["per_kind"].items():
            for key in KIND_KEYS:
                assert row[key] == pytest.approx(other["per_kind"][kind][key], abs=1e-12)

    def test_latency(self, inspector, line):
        evaluation, said = measure(inspector, line)
        latency = evaluation.latency
        assert 0 < latency.p50 <= latency.p95 <= latency.p99 < 60_000
        assert all(map(math.isfinite, said["latency_ms"].values()))
        assert (latency.n_calls, latency.n_images) == (9, 8)

    def test_latency_stops_in_time(self, inspector, line, monkeypatch):
        monkeypatch.setattr(protocol, "LATENCY_LIMIT_S", 0.0)
        latency = measure(inspector, line)[0].latency
        assert (latency.n_calls, latency.n_images) == (1, 1)
        assert latency.p50 == latency.p99

    def test_progress(self, inspector, line):
        calls = []
        measure(inspector, line, progress=lambda *call: calls.append(call))
        assert [call for call in calls if call[0] == "evaluate"] == [("evaluate", n, 9) for n in range(1, 10)]
        assert [call for call in calls if call[0] == "latency"] == [("latency", n, 12) for n in range(1, 13)]

    def test_lines_for_people(self, inspector, line):
        evaluation, said = measure(inspector, line)
        lines = evaluation.lines()
        assert lines[0] == f"images         AUROC {said['image_auroc']:.4f}, AP {said['image_ap']:.4f}"
        assert lines[1] == (
            f"pixels         AUROC {said['pixel_auroc']:.4f}, AP {said['pixel_ap']:.4f}, "
            f"AUPRO {said['aupro_30']:.4f} at 0.30 and {said['aupro_05']:.4f} at 0.05"
        )
        assert lines[2] == "false rejects  1 of 4 (25.0 %, 95 % interval 4.6 to 69.9 %) of the good images"
        assert lines[3] == "misses         2 of 5 (40.0 %, 95 % interval 11.8 to 76.9 %) of the defects"
        assert lines[4].startswith("latency        ")
        assert len(lines) == 5
        assert evaluation.unmarked() is None

    def test_only_a_perfect_1_reads_as_one(self):
        assert [figure(value) for value in (1.0, 0.999999, 0.99985, 0.0029, -0.0, None)] == [
            "1.0000",
            "0.9999",
            "0.9999",
            "0.0029",
            "0.0000",
            "undefined",
        ]


class TestOneLabel:
    def test_good_only(self, inspector, line):
        samples = [sample for sample in load(line).test if sample.label == "good"]
        evaluation = evaluate(inspector, samples)
        said = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
        assert all(said[key] is None for key in METRICS)
        assert (said["miss_rate"], said["miss_interval"], said["per_kind"]) == (None, None, {})
        assert (said["false_reject_rate"], said["n_good"], said["n_defect"]) == (0.25, 4, 0)
        assert "AUROC undefined" in evaluation.lines()[0]
        assert evaluation.lines()[3] == "misses         none of the defects"

    def test_defects_only(self, inspector, line):
        samples = [sample for sample in load(line).test if sample.label == "defect"]
        said = evaluate(inspector, samples).to_json()
        assert [said[key] for key in ("image_auroc", "image_ap", "image_f1_max")] == [None] * 3
        assert (said["false_reject_rate"], said["false_reject_interval"]) == (None, None)
        # The unmarked pixels of defect images are good pixels.
        assert said["pixel_auroc"] == 1.0
        assert (said["n_good"], said["n_defect"], said["miss_rate"]) == (0, 5, 0.4)
        assert said["per_kind"]["bright"]["image_auroc"] is None

    def test_no_label_at_all(self, inspector, line):
        samples = [replace(sample, label=None) for sample in load(line).test]
        with pytest.raises(DatasetError, match=r"none of 9 images has a label.*test/good and test/scratch"):
            evaluate(inspector, samples)
        with pytest.raises(DatasetError, match="none of 0 images"):
            evaluate(inspector, [])

    def test_images_that_nobody_labelled_are_counted_and_left_out(self, inspector, line):
        samples = load(line).test
        labelled = evaluate(inspector, samples).to_json()
        more = evaluate(inspector, [*samples, Sample(samples[0].image_path), Sample(line / "none.png")]).to_json()
        assert more["n_unlabelled"] == 2
        assert {key: more[key] for key in METRICS} == {key: labelled[key] for key in METRICS}
        assert more["failures"] == []


class TestKinds:
    def test_a_defect_called_good_or_nothing_is_a_defect(self, inspector, line):
        samples = [
            replace(sample, kind={"bright": "good", "dim": ""}.get(sample.kind, sample.kind))
            for sample in load(line).test
        ]
        said = evaluate(inspector, samples).to_json()
        assert set(said["per_kind"]) == {"defect"}
        assert (said["n_good"], said["per_kind"]["defect"]["n"]) == (4, 5)
        assert said["pixel_auroc"] == evaluate(inspector, load(line).test).to_json()["pixel_auroc"]


class TestWhatCannotBeUsed:
    def test_what_cannot_be_judged_counts_as_rejected_and_the_run_goes_on(self, inspector, line):
        whole = measure(inspector, line)[1]
        broken = line / "test/good/broken.png"
        broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
        deep = write(line / "test/dim/deep.png", np.full((32, 48), 150, np.uint16))  # the model takes 8 bits
        gone = Sample(line / "test/dim/gone.png", "defect", "dim")
        evaluation = evaluate(inspector, [*load(line).test, gone])
        said = evaluation.to_json()
        assert [each["path"] for each in said["failures"]] == [str(deep), str(broken), str(gone.image_path)]
        for each in said["failures"]:
            assert each["path"] in each["error"]
            assert "\n" not in each["error"]
        assert {key: said[key] for key in METRICS} == {key: whole[key] for key in METRICS}
        # Of 4 good images 1 was rejected, of 5 defects 2 passed: one more good is rejected, two more defects are found.
        assert (said["n_good"], said["n_defect"], said["n_unmarked"]) == (5, 7, 0)
        assert (said["false_reject_rate"], said["miss_rate"]) == (2 / 5, 2 / 7)
        assert (said["n_good_refused"], said["n_defect_refused"]) == (1, 2)
        assert (said["per_kind"]["dim"]["n"], said["per_kind"]["dim"]["miss_rate"]) == (4, 2 / 4)
        lines = evaluation.lines()
        assert lines[0].startswith("refused: ")
        assert len(lines) == 5 + 3
        assert lines[-3].startswith("false rejects  2 of 5 (40.0 %")
        assert lines[-3].endswith("of the good images, 1 of them as they cannot be judged")
        assert lines[-2].endswith("of the defects; 2 found only as they cannot be judged")
        assert str(evaluation.refusals()).startswith(
            "3 of 12 images cannot be judged, and the line would take them out: 1 good, counted as false rejects; "
            f"2 with a defect, counted as found (such as: {deep}"
        )

    def test_a_kind_of_which_no_image_can_be_judged_is_found_by_refusal(self, inspector, line):
        (line / "test/hole").mkdir()
        (line / "test/hole/0.png").write_bytes(b"no image")
        said = measure(inspector, line)[1]
        assert set(said["per_kind"]) == {"bright", "dim", "hole"}
        hole = said["per_kind"]["hole"]
        assert (hole["n"], hole["miss_rate"], hole["image_auroc"], hole["pixel_auroc"]) == (1, 0, None, None)
        assert len(said["failures"]) == 1

    def test_when_no_image_can_be_read(self, inspector, line):
        samples = [replace(sample, image_path=line / f"no{n}.png") for n, sample in enumerate(load(line).test)]
        evaluation = evaluate(inspector, samples)
        said = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
        assert len(said["failures"]) == 9
        assert all(said[key] is None for key in (*METRICS, "latency_ms"))
        assert (said["false_reject_rate"], said["miss_rate"]) == (1, 0)
        assert evaluation.lines()[-1] == "latency        not measured for a decoded image"

    @pytest.mark.parametrize("size", [(32, 47), (48, 32), (16, 16)])
    def test_a_mask_of_another_size_is_a_failure(self, inspector, line, size):
        mask = write(line / "ground_truth/bright/0_mask.png", np.full(size, 255, np.uint8))
        evaluation, said = measure(inspector, line)
        (failure,) = said["failures"]
        assert failure["path"] == str(mask)
        assert f"is {size[1]}x{size[0]} and its image" in failure["error"]
        assert failure["error"].endswith("48x32: a mask must have its image's size")
        assert (said["n_defect"], said["n_unmarked"], evaluation.pixel.n_regions) == (5, 1, 4)
        assert said["per_kind"]["bright"]["n"] == 3
        assert evaluation.unmarked() == (
            "1 of 5 defect images has no usable mask and counts among the images, not among the pixels"
        )

    def test_an_unreadable_mask_is_a_failure(self, inspector, line):
        mask = line / "ground_truth/dim/1_mask.png"
        mask.write_bytes(mask.read_bytes()[:60])
        evaluation, said = measure(inspector, line)
        assert [each["path"] for each in said["failures"]] == [str(mask)]
        assert (said["n_unmarked"], evaluation.pixel.n_regions) == (1, 4)

    def test_a_model_that_gives_no_number_is_refused(self, line, tmp_path):
        images = np.zeros((1, 3, 16, 16), np.float32)
        model = Inspector.load(tiny_model.write(tmp_path / "broken"))
        good = model.scores(images)

        class Broken:
            manifest, calibration = model.manifest, model.calibration

            def scores(self, batch):
                return replace(good, anomaly_map=np.full_like(good.anomaly_map, np.nan))

        with pytest.raises(ModelFolderError, match="score or map that is not finite"):
            evaluate(Broken(), load(line).test)

    def test_a_model_that_changes_its_mind_is_refused(self, inspector, line):
        class Moody:
            manifest, calibration, scores = inspector.manifest, inspector.calibration, inspector.scores

            def inspect(self, image):
                verdict = inspector.inspect(image)
                return replace(verdict, score=verdict.score + 2e-5)  # twice the tolerance

        with pytest.raises(ModelFolderError, match=r"gave one image the scores .* run `makel verify`"):
            evaluate(Moody(), load(line).test)


class TestMasks:
    def test_a_defect_whose_mask_marks_nothing_counts_among_images_only(self, inspector, line):
        """Four such images lie in the magnetic tile set: a warning, not a failure."""
        before = measure(inspector, line)[1]
        mask = write(line / "ground_truth/bright/0_mask.png", np.zeros((32, 48), np.uint8))
        evaluation, said = measure(inspector, line)
        assert said["failures"] == []
        assert said["blank_masks"] == [str(mask)]
        assert (said["n_unmarked"], said["n_defect"]) == (1, 5)
        for key in ("image_auroc", "image_ap", "image_f1_max", "miss_rate"):
            assert said[key] == before[key]
        assert (evaluation.pixel.n_defect, evaluation.pixel.n_good) == (4 * 16, 4 * 256 + 4 * 240)
        assert evaluation.unmarked() == (
            "1 of 5 defect images has no usable mask and counts among the images, not among the pixels "
            f"(1 mask marks no pixel, such as {mask})"
        )
        assert len(evaluation.lines()) == 5

    def test_a_mark_too_small_for_the_model_does_not_turn_its_pixels_into_good_ones(self, inspector, line):
        image, mask = part(128, 255, height=320, width=480, box=(0, 1, 0, 1))
        write(line / "test/dust/0.png", image)
        path = write(line / "ground_truth/dust/0_mask.png", mask)
        evaluation, said = measure(inspector, line)
        assert said["blank_masks"] == [str(path)]
        assert (evaluation.pixel.n_good, evaluation.pixel.n_regions) == (4 * 256 + 5 * 240, 5)
        assert said["per_kind"]["dust"]["pixel_auroc"] is None
        assert said["per_kind"]["dust"]["image_auroc"] is not None

    def test_every_value_above_zero_is_defect_in_any_channel(self, inspector, line):
        expected = measure(inspector, line)[1]
        mask = part()[1]
        write(line / "ground_truth/bright/0_mask.png", np.uint8(mask > 0))
        write(line / "ground_truth/bright/1_mask.png", np.stack([0 * mask, 0 * mask, mask], axis=2))
        write(line / "ground_truth/bright/2_mask.png", np.uint16(mask > 0) * 40_000)
        write(line / "ground_truth/dim/0_mask.png", np.dstack([mask, mask, mask, np.full_like(mask, 255)]))  # alpha
        said = measure(inspector, line)[1]
        assert {key: said[key] for key in METRICS} == {key: expected[key] for key in METRICS}

    def test_some_defects_without_a_mask(self, inspector, line):
        (line / "ground_truth/bright/1_mask.png").unlink()
        evaluation, said = measure(inspector, line)
        assert (said["n_unmarked"], said["blank_masks"], said["failures"]) == (1, [], [])
        assert evaluation.pixel.n_regions == 4

    def test_without_masks_pixels_are_not_ranked(self, inspector, line):
        samples = [replace(sample, mask_path=None) for sample in load(line).test]
        evaluation = evaluate(inspector, samples)
        said = evaluation.to_json()
        assert all(said[key] is None for key in METRICS if not key.startswith("image"))
        assert said["image_auroc"] is not None
        assert (evaluation.pixel.n_good, said["n_unmarked"]) == (0, 5)
        assert evaluation.unmarked().startswith("5 of 5 defect images have no usable mask and count among")

    def test_diagonal_neighbours_are_one_region(self, inspector, line):
        image, mask = part(128, 255)
        mask[:] = 0
        for step in range(4):
            mask[2 * step : 2 * step + 2, 3 * step : 3 * step + 3] = 255
        write(line / "test/bright/3.png", image)
        write(line / "ground_truth/bright/3_mask.png", mask)
        assert measure(inspector, line)[0].pixel.n_regions == 6


class TestCommand:
    @pytest.fixture
    def model(self, tmp_path):
        return tiny_model.write(tmp_path / "model")

    def test_for_people(self, makel_says, model, line):
        code, out, err = makel_says("evaluate", model, line)
        assert (code, err.count("\n")) == (0, 1)
        assert err.startswith("makel: 3 of 9 images to test on show what another does, such as ")
        assert len(out.splitlines()) == 7
        assert f"note           {err.removeprefix('makel: ')}" in out
        report = model.with_name("model-evaluation") / "report.html"
        assert out.splitlines()[-1] == f"report         {report}"
        assert report.is_file()

    def test_blank_masks_are_a_warning(self, makel_says, model, line, tmp_path):
        mask = write(line / "ground_truth/bright/0_mask.png", np.zeros((32, 48), np.uint8))
        code, out, err = makel_says("evaluate", model, line, "--json", "--out", tmp_path / "out")
        assert code == 0
        said = json.loads(out)
        assert set(said) == KEYS
        assert (said["n_unmarked"], said["blank_masks"]) == (1, [str(mask)])
        assert err.splitlines()[1].startswith("makel: 1 of 5 defect images has no usable mask")
        assert err.count("\n") == 2
        assert str(mask) in (tmp_path / "out/report.html").read_text(encoding="utf-8")

    def test_what_cannot_be_read_is_exit_code_3(self, makel_says, model, line):
        (line / "test/good/broken.png").write_bytes(b"no image")
        code, out, err = makel_says("evaluate", model, line)
        assert code == 3
        assert out.startswith("refused: ")
        assert err.splitlines()[1].startswith(
            "makel: 1 of 10 images cannot be judged, and the line would take them out: 1 good, "
        )
        assert err.count("\n") == 2


@pytest.mark.real
def test_the_real_set_with_blank_masks(real_data, tmp_path):
    """Magnetic tiles: every defect of the kind with blank masks, and some good ones."""
    root = real_data / "magnetic_tile"
    chosen = [sample for sample in load(root).test if sample.kind == "uneven"]
    good = [sample for sample in load(root).test if sample.label == "good"][:20]
    inspector = Inspector.load(tiny_model.write(tmp_path / "m", size=256, preprocessing=Preparation(256, 256, "grey")))
    evaluation = evaluate(inspector, [*good, *chosen])
    assert (len(evaluation.blank_masks), evaluation.n_unmarked, evaluation.failures) == (4, 4, ())
    assert evaluation.misses.of == len(chosen)
    assert evaluation.pixel.auroc is not None
