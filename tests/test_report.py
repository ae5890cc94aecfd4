"""The pages: one file, no outside reference, and the numbers that were measured."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

import tiny_model
from makel.calibration import calibrate
from makel.datasets import load
from makel.errors import ImageError
from makel.evaluation import protocol
from makel.evaluation.protocol import evaluate
from makel.evaluation.report import DoubtfulImage, find_doubtful, write_evaluation_report, write_fit_report
from makel.model.inspector import Inspector
from makel.model.manifest import Parity

VOID = {"meta", "img", "br"}
SHAPES = {"path", "rect", "circle", "stop", "text", "title", "svg", "defs", "lineargradient"}
LOADING = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href", "formaction"}


class Page(HTMLParser):
    """A page taken apart: checks its nesting and that it loads nothing."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.tags, self.images, self.words, self.labels = [], [], [], [], []
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in given if name.startswith("on")]
        for name in LOADING & set(given):
            assert (tag, name) == ("img", "src")
            assert given[name].startswith("data:image/jpeg;base64,")
            self.images.append(given[name])
        if "aria-label" in given:
            self.labels.append(given["aria-label"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in SHAPES
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)
            return
        assert "@import" not in data
        assert "url(" not in data


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def part(grey=128, spot=None):
    image = np.full((32, 48, 3), grey, np.uint8)
    if spot is not None:
        image[8:16, 12:24] = spot
    return image


MASK = np.zeros((32, 48), np.uint8)
MASK[8:16, 12:24] = 255


@pytest.fixture(scope="module")
def inspector(tmp_path_factory):
    """Scores the distance from mid grey and rejects above 0.3."""
    return Inspector.load(tiny_model.write(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def _few_calls(monkeypatch):
    monkeypatch.setattr(protocol, "LATENCY_CALLS", 3)


@pytest.fixture
def line(tmp_path):
    """Good parts, one of them rejected; a kind that is caught and one that is missed, names to escape."""
    root = tmp_path / "line"
    for name, grey in (("a", 128), ("b", 140), ("<i>&c", 220)):
        write(root / f"test/good/{name}.png", part(grey))
    for kind, spot in (("R&D <b>", 255), ("dim", 150)):
        for index in range(2):
            write(root / f"test/{kind}/{index}.png", part(128, spot - index))
            write(root / f"ground_truth/{kind}/{index}_mask.png", MASK)
    return root


def report(tmp_path, evaluation, **settings):
    target = tmp_path / "new" / "report.html"
    write_evaluation_report(target, evaluation, **settings)
    return Page(target)


class TestEvaluationReport:
    def test_values_are_those_of_the_json(self, inspector, line, tmp_path):
        evaluation = evaluate(inspector, load(line).test)
        page = report(tmp_path, evaluation, data_name="line")
        said = evaluation.to_json()
        for name, key in (
            ("Image AUROC", "image_auroc"),
            ("Image AP", "image_ap"),
            ("Image F1-max", "image_f1_max"),
            ("Pixel AUROC", "pixel_auroc"),
            ("Pixel AP", "pixel_ap"),
            ("Pixel F1-max", "pixel_f1_max"),
            ("AUPRO 0.30", "aupro_30"),
            ("AUPRO 0.05", "aupro_05"),
        ):
            assert re.search(rf"{name}\s+([\d.]+)", page.text.partition("How well it ranks")[2]).group(1) == (
                f"{said[key]:.4f}"
            )
        assert "Of 3 good images it rejects 1 (33.3 %, 95 % interval 6.1 % to 79.2 %)." in page.text
        assert "Of 4 defects it misses 2 (50.0 %, 95 % interval 15.0 % to 85.0 %)." in page.text
        assert f"The threshold, {said['threshold']:.4g}, comes from held-out good images alone" in page.text
        assert f"model {said['model_id']}" in page.text
        latency = said["latency_ms"]
        for key in ("p50", "p95", "p99"):
            assert f"{latency[key]:.1f} ms" in page.text
        row = said["per_kind"]["dim"]
        assert re.search(rf"dim 2 2 100.0 %, .*? {row['image_auroc']:.4f} {row['pixel_auroc']:.4f}", page.text)

    def test_everything_a_person_needs_is_there(self, inspector, line, tmp_path):
        page = report(tmp_path, evaluate(inspector, load(line).test), data_name="line")
        assert any(label.startswith("Histogram of image scores: 3 good, 4 defect") for label in page.labels)
        assert any(label.startswith("defects found over good ones flagged: images") for label in page.labels)
        assert any(label.startswith("region covered over good pixels lit up: AUPRO") for label in page.labels)
        for heading in ("Missed defects", "False rejects", "Barely caught", "Nearly rejected"):
            assert heading in page.text
        # image, truth and map of each of four defects; image and map of each of three good ones
        assert page.tags.count("figure") == 3 + 7
        assert len(page.images) == 4 * 3 + 3 * 2
        assert page.text.count("good: nothing to find") == 3
        assert inspector.calibration.explain() in page.text
        assert f"runtime onnxruntime {onnxruntime.__version__}, numpy {np.__version__}" in page.text
        assert "prefers-color-scheme: dark" in page.source
        assert len(page.source) < 1_000_000

    def test_names_are_escaped(self, inspector, line, tmp_path):
        page = report(tmp_path, evaluate(inspector, load(line).test), data_name="<script>alert(1)</script>&")
        assert "<script>alert(1)</script>&" in page.text
        assert "<script" not in page.source
        assert "good/<i>&c.png" in page.text
        assert "<i>&c" not in page.source
        assert "R&D <b>/0.png" in page.text
        assert "R&D <b>" not in page.source

    def test_what_could_not_be_used_is_listed(self, inspector, line, tmp_path):
        write(line / "ground_truth/dim/0_mask.png", 0 * MASK)
        (line / "test/good/<br>.png").write_bytes(b"no image")
        page = report(tmp_path, evaluate(inspector, load(line).test))
        left_out = page.text.partition("Refused, or not used")[2]
        assert f"{line}/test/good/<br>.png" in left_out
        blank = page.text.partition("Masks that mark nothing")[2].partition("Where it comes from")[0]
        assert f"{line}/ground_truth/dim/0_mask.png" in blank
        assert "1 of 4 defect images has no usable mask" in page.text
        assert "1 of the good and 0 of those with defects: they count as rejected and have no score" in page.text
        assert "1 of 8 images cannot be judged, and the line would take them out: 1 good" in page.text
        assert "Of 4 good images it rejects 2" in page.text
        assert "0 masks, 0 without a label" in page.text
        assert page.text.count("no usable mask") == 2  # in the remark and beside the picture

    def test_good_images_only(self, inspector, line, tmp_path):
        samples = [sample for sample in load(line).test if sample.label == "good"]
        page = report(tmp_path, evaluate(inspector, samples))
        assert "Image AUROC –" in page.text
        assert "Of 3 good images" in page.text
        assert "it misses" not in page.text
        assert "none tested" in page.text
        assert "By kind of defect" not in page.text
        assert not [label for label in page.labels if " over " in label]

    def test_defects_only(self, inspector, line, tmp_path):
        samples = [sample for sample in load(line).test if sample.label == "defect"]
        page = report(tmp_path, evaluate(inspector, samples))
        assert "Of 4 defects it misses 2" in page.text
        assert "it rejects" not in page.text
        assert "To catch all of these" not in page.text
        assert [label for label in page.labels if label.startswith("region covered")]

    def test_without_masks(self, inspector, line, tmp_path):
        samples = [replace(sample, mask_path=None) for sample in load(line).test]
        page = report(tmp_path, evaluate(inspector, samples))
        assert "Pixel AUROC –" in page.text
        assert "AUPRO 0.30 –" in page.text
        assert not [label for label in page.labels if label.startswith("region covered")]
        (roc,) = (label for label in page.labels if label.startswith("defects found"))
        assert "pixels" not in roc
        assert page.text.count("no usable mask") >= 4

    def test_when_nothing_could_be_read(self, inspector, line, tmp_path):
        samples = [replace(sample, image_path=line / "none.png") for sample in load(line).test]
        page = report(tmp_path, evaluate(inspector, samples))
        assert page.text.count("No image could be inspected.") == 1
        assert "Of 3 good images it rejects 3" in page.text
        assert "No defect was missed, 4 of them only as they cannot be judged." in page.text
        assert "Not measured: no image could be inspected." in page.text
        assert page.images == []
        assert "colours of the anomaly maps" not in page.labels

    def test_file_names_that_are_no_text(self, inspector, line, tmp_path):
        (line / "test/dim/2\udcff.png").write_bytes((line / "test/dim/0.png").read_bytes())
        page = report(tmp_path, evaluate(inspector, load(line).test))
        assert "udcff" in page.text

    def test_remarks_weigh_the_figures(self, inspector, line, tmp_path):
        page = report(tmp_path, evaluate(inspector, load(line).test))
        remarks = page.text.partition("Reasons to trust it")[2].partition("How well it ranks")[0]
        assert "2 of 4 defects pass. To catch all of these, the threshold would have to be below" in remarks
        assert "3 good images cannot tell the false-reject rate better than 6.1 % to 79.2 %" in remarks
        assert "to within 0 of a score" in remarks
        assert remarks.rindex("Doubt") < remarks.index("Trust")  # doubts first

    def test_a_threshold_that_is_high_is_told_from_a_model_that_is_blind(self, inspector, tmp_path):
        for index in range(3):
            write(tmp_path / f"high/test/good/{index}.png", part(130 + index))
            write(
                tmp_path / f"high/test/spot/{index}.png", part(130, 180 + index)
            )  # below the threshold, above the good
            write(tmp_path / f"blind/test/good/{index}.png", part(130 + index))
            write(tmp_path / f"blind/test/spot/{index}.png", part(128, 129 + index))
        high = report(tmp_path, evaluate(inspector, load(tmp_path / "high").test)).text
        blind = report(tmp_path, evaluate(inspector, load(tmp_path / "blind").test)).text
        assert "it is the threshold that is high, not the model that is blind" in high
        assert "No threshold mends that" not in high
        assert "many defects look no worse to the model than good parts do. No threshold mends that" in blind
        assert "it is the threshold that is high" not in blind

    def test_what_limits_the_figures_is_said(self, line, tmp_path):
        strict = Inspector.load(tiny_model.write(tmp_path / "strict", false_reject=0.01))
        evaluation = evaluate(strict, [sample for sample in load(line).test if "dim" not in str(sample.image_path)])
        coarse = replace(evaluation, pixel=replace(evaluation.pixel, exact=False))
        page = report(tmp_path, coarse)
        assert (
            "A false-reject rate of 1.0 % was asked for; 3 calibration images carry 25.0 % at best, 99 are needed."
            in page.text
        )
        assert "neighbouring values were counted as equal" in page.text
        assert "No defect was missed. With 2 defects the miss rate may still be as high as 65.8 %." in page.text

    def test_the_rejects_of_another_camera_are_noticed(self, inspector, tmp_path):
        root = tmp_path / "line"
        for index in range(30):
            write(root / f"test/good/{index}.png", part(220 + index % 3))
        write(root / "test/spot/0.png", part(128, 255))
        page = report(tmp_path, evaluate(inspector, load(root).test))
        assert "More good images are rejected than the 25.0 % aimed at, beyond chance." in page.text

    def test_legend_names_the_level_it_ends_at(self, inspector, line, tmp_path):
        hot = report(tmp_path, evaluate(inspector, load(line).test)).source
        names = re.findall(r'<text x="\d+" y="34"[^>]*>([^<]*)</text>', hot)
        assert names[1] == "pixel threshold 0.3"
        calm = [sample for sample in load(line).test if sample.image_path.name in ("a.png", "b.png")]
        quiet = report(tmp_path, evaluate(inspector, calm)).source
        ordinary, threshold, end = re.findall(r'<text x="\d+" y="34"[^>]*>([^<]*)</text>', quiet)
        assert "hottest" not in end  # the maps stay far below the last colour
        assert float(ordinary.split()[-1]) < float(threshold.split()[-1]) < float(end)


class TestFindDoubtful:
    def test_the_highest_scores_first(self, inspector, tmp_path):
        greys = (130, 200, 140, 180)
        paths = [write(tmp_path / f"good/{grey}.png", part(grey)) for grey in greys]
        scores = [abs(grey / 255 - 0.5) for grey in greys]
        found = find_doubtful(paths, scores, inspector.scores, inspector.manifest.preprocessing, limit=3)
        assert [each.path.stem for each in found] == ["200", "180", "140"]
        assert [each.score for each in found] == [scores[1], scores[3], scores[2]]
        for each in found:
            assert each.anomaly_map.shape == (16, 16)
            assert each.anomaly_map.max() == pytest.approx(each.score, abs=1e-6)
            assert each.image.shape == (32, 48, 3)

    def test_fewer_images_than_wanted_and_none(self, inspector, tmp_path):
        path = write(tmp_path / "good/0.png", part())
        assert len(find_doubtful([path], [0.1], inspector.scores, inspector.manifest.preprocessing)) == 1
        assert find_doubtful([], [], inspector.scores, inspector.manifest.preprocessing) == ()

    def test_an_image_that_is_gone(self, inspector, tmp_path):
        with pytest.raises(ImageError, match="gone"):
            find_doubtful([tmp_path / "gone.png"], [1.0], inspector.scores, inspector.manifest.preprocessing)


def fit_page(tmp_path, draft, **settings):
    target = tmp_path / "stage" / "report.html"
    write_fit_report(target, draft, **settings)
    return Page(target)


DOUBTFUL = DoubtfulImage(Path("line/good/<i>&.png"), 0.3, part(200), np.full((16, 16), 0.3, np.float32))


class TestFitReport:
    def test_everything_a_person_needs_is_there(self, tmp_path):
        draft = tiny_model.draft()
        page = fit_page(tmp_path, draft, losses=[3.0, 2.0, 1.0], doubtful=[DOUBTFUL], unreadable=["x/<b>.png is empty"])
        assert draft.calibration.explain() in page.text
        assert "Fitted on 12 good images; the threshold comes from 3 others, held out, and promises at most 25.0 %" in (
            page.text
        )
        assert "image threshold 0.3: an image with a higher score is rejected" in page.text
        assert "promised 25.0 % false rejects" in page.text
        assert "Histogram of image scores: 3 good, 0 ; threshold 0.3" in page.labels
        assert "Loss over 3 passes, from 3 to 1" in page.labels
        assert "train 1.5 s; export 0.2 s" in page.labels
        assert "1.8 s in all, on test." in page.text
        assert "good/<i>&.png" in page.text
        assert "score 0.3 · the highest of 3" in page.text
        assert len(page.images) == 2
        assert "x/<b>.png is empty" in page.text
        assert "1 good image could not be read and was left out." in page.text
        assert "3 calibration images are enough for the budget that was asked for." in page.text
        assert "No defect has been seen yet." in page.text
        assert "makel evaluate MODEL DATA" in page.text
        assert "--false-reject" not in page.text
        for fact in ("skip_ae, preset fast", "Apache-2.0", "0" * 64, "1" * 64, "12", "holdout"):
            assert fact in page.text

    def test_a_budget_that_cannot_be_kept_says_what_would_keep_it(self, tmp_path):
        page = fit_page(tmp_path, tiny_model.draft(false_reject=0.01))
        assert "1.0 % false rejects were asked for: that takes 99 calibration images and there are 3." in page.text
        # 3 of 15 are held out, so 99 of them take 495; and 3 images carry a quarter.
        assert "collect about 495 good images" in page.text
        assert "makel fit DATA --out MODEL --false-reject 0.25" in page.text

    @pytest.mark.parametrize(("n_fit", "n", "expected"), [(38, 10, 495), (32, 8, 495), (10, 10, 198), (1, 1, 495)])
    def test_what_it_says_to_collect_is_enough(self, tmp_path, n_fit, n, expected):
        scores = tuple(np.linspace(0.1, 0.3, n).tolist())
        draft = tiny_model.draft(calibration=calibrate(scores, scores, false_reject=0.01))
        provenance = draft.provenance.model_copy(update={"n_fit": n_fit, "n_calibrate": n})
        page = fit_page(tmp_path, draft.model_copy(update={"provenance": provenance}))
        assert f"collect about {expected} good images" in page.text

    def test_the_command_it_suggests_is_one_that_works(self, tmp_path):
        scores = tuple(np.linspace(0.1, 0.3, 10).tolist())
        asked = calibrate(scores, scores, false_reject=0.01)
        page = fit_page(tmp_path, tiny_model.draft(calibration=asked))
        suggested = float(re.search(r"--false-reject ([\d.]+)", page.text).group(1))
        again = calibrate(scores, scores, false_reject=suggested)
        assert again.promised_false_reject <= again.requested_false_reject == suggested

    def test_cross_fitted(self, tmp_path):
        calibration = calibrate((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), false_reject=0.25, scheme="cross")
        page = fit_page(tmp_path, tiny_model.draft(calibration=calibration))
        assert "the threshold comes from the same, cross-fitted, and aims at at most 25.0 %" in page.text
        assert "aimed at 25.0 % false rejects" in page.text
        assert "Scores of the 3 cross-fitted good images." in page.text

    def test_closed_form_methods_have_no_losses_and_some_no_backbone(self, tmp_path):
        page = fit_page(tmp_path, tiny_model.draft(backbone=None))
        assert "Mean loss of each pass" not in page.text
        assert "Its backbone" not in page.text
        assert "None was picked out." in page.text
        assert page.images == []

    @pytest.mark.parametrize("losses", [[1.0], [1.0, float("nan")], [float("inf"), 1.0]])
    def test_losses_that_make_no_curve_are_not_drawn(self, tmp_path, losses):
        assert "Mean loss of each pass" not in fit_page(tmp_path, tiny_model.draft(), losses=losses).text

    def test_outliers_and_unstable_losses_are_doubts(self, tmp_path):
        scores = (*np.linspace(0.1, 0.12, 20).tolist(), 0.9)
        calibration = calibrate(scores, scores, false_reject=0.05)
        outlier = replace(DOUBTFUL, score=0.9)
        page = fit_page(tmp_path, tiny_model.draft(calibration=calibration), losses=[3, 2, 1, 1, 5], doubtful=[outlier])
        assert "1 good image scores far above the rest" in page.text
        assert "▲ the highest of 21" in page.text
        assert "The loss rose again before the end" in page.text

    def test_how_far_the_export_is_from_the_fitted_model(self, tmp_path):
        parity = Parity(
            score_tolerance=1e-3, map_tolerance=1e-2, worst_score_difference=2e-4, worst_map_difference=3e-3, n_images=7
        )
        page = fit_page(tmp_path, tiny_model.draft(parity=parity))
        assert "repeats the fitted one on 7 images: scores differ by 0.0002 at most, 0.001 is allowed" in page.text

    def test_it_is_the_report_of_a_model_folder(self, tmp_path):
        """The page is written from the draft, before there is a model_id, and reads the same from the manifest."""
        manifest = Inspector.load(tiny_model.write(tmp_path / "model")).manifest
        one = fit_page(tmp_path, manifest, losses=[2.0, 1.0])
        assert json.loads(manifest.model_dump_json())["model_id"] not in one.source


@pytest.mark.real
def test_a_report_on_real_images(real_data, inspector, tmp_path):
    """Ten real photographs: the page stays small, and shows pictures as wide as they are."""
    samples = load(real_data / "toothbrush").test
    chosen = [*samples[:6], *[sample for sample in samples if sample.label == "good"][:4]]
    page = report(tmp_path, evaluate(inspector, chosen), data_name="toothbrush")
    assert 12 <= len(page.images) <= 30
    assert len(page.source) < 600_000
