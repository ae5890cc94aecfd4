"""Plots: well-formed SVG without outside references, and marks where the numbers say."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from makel.evaluation import plots

scores = st.lists(st.floats(-1e6, 1e6, width=32), max_size=12)


def parse(markup):
    """The SVG as a tree; every coordinate of a shape in it is a number within its box."""
    tree = ET.fromstring(str(markup))
    width, height = (float(side) for side in tree.get("viewBox").split()[2:])
    for element in tree.iter():
        for name, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
            if element.tag in ("rect", "circle") and element.get(name) is not None:
                assert -0.1 <= float(element.get(name)) <= limit + 0.1, ET.tostring(element)
        for name in ("width", "height", "r"):
            if element.get(name) is not None:
                assert float(element.get(name)) >= 0
    for forbidden in ("http", "href", "script", "url(", "nan", "inf"):
        assert forbidden not in str(markup).replace("interval", "")
    return tree


def of_class(tree, css):
    return [element for element in tree.iter() if element.get("class") == css]


def texts(tree):
    return [element.text for element in tree.iter("text")]


def counts(tree, css):
    return sum(int(bar.find("title").text.split()[0]) for bar in of_class(tree, css))


class TestScoreHistogram:
    def test_every_score_is_in_a_bar_and_the_threshold_between(self):
        tree = parse(plots.score_histogram([1, 1.2, 2.2], [2.25, 4, 4, 4], 2.2, upper_name="good", lower_name="defect"))
        assert (counts(tree, "good"), counts(tree, "defect")) == (3, 4)
        (line,) = of_class(tree, "threshold")
        at_px = float(line.get("d").split()[0][1:])
        # A score at the threshold passes, and its bar is left of the line.
        assert all(float(bar.get("x")) + float(bar.get("width")) <= at_px for bar in of_class(tree, "good"))
        assert all(float(bar.get("x")) >= at_px for bar in of_class(tree, "defect"))
        (side,) = of_class(tree, "reject-side")
        assert float(side.get("x")) == pytest.approx(at_px, abs=0.11)
        assert "threshold 2.2" in texts(tree)
        assert "image score" in texts(tree)
        assert {"good", "3", "defect", "4"} <= set(texts(tree))
        assert tree.get("aria-label") == "Histogram of image scores: 3 good, 4 defect; threshold 2.2"

    def test_bars_stand_back_to_back(self):
        tree = parse(plots.score_histogram([1, 2], [1, 2], 1.5, upper_name="good", lower_name="defect"))
        middle = {float(bar.get("y")) + float(bar.get("height")) for bar in of_class(tree, "good")}
        assert middle == {float(bar.get("y")) for bar in of_class(tree, "defect")}
        assert len(middle) == 1

    def test_a_long_tail_is_drawn_logarithmically(self):
        tree = parse(plots.score_histogram([0.1, 0.11], [90.0], 0.2, upper_name="good", lower_name="defect"))
        assert "image score (logarithmic)" in texts(tree)
        assert {"0.1", "1", "10"} <= set(texts(tree))
        assert (counts(tree, "good"), counts(tree, "defect")) == (2, 1)

    def test_decades_do_not_pile_up(self):
        tree = parse(plots.score_histogram([1e-30, 1e-3], [1.0], 0.1, upper_name="good", lower_name="defect"))
        assert 3 <= sum("e-" in text for text in texts(tree)) <= 10

    def test_a_threshold_at_the_end_of_a_long_axis(self):
        tree = parse(plots.score_histogram([1e-30], [1.0], 1e-30, upper_name="good", lower_name="defect"))
        assert (counts(tree, "good"), counts(tree, "defect")) == (1, 1)

    def test_names_of_marks_differ_on_a_narrow_axis(self):
        tree = parse(plots.score_histogram([1000.01, 1000.02], [1000.05], 1000.03, upper_name="a", lower_name="b"))
        marks = [text for text in texts(tree) if text.startswith("1000")]
        assert len(marks) == len(set(marks)) >= 3

    @pytest.mark.parametrize(("good", "defect"), [([], [3.0]), ([1.0], []), ([], []), ([2.0], [2.0]), ([0.0], [0.0])])
    def test_one_label_or_none(self, good, defect):
        tree = parse(plots.score_histogram(good, defect, 2.0, upper_name="good", lower_name="defect"))
        assert (counts(tree, "good"), counts(tree, "defect")) == (len(good), len(defect))

    @settings(deadline=None, max_examples=60)
    @given(scores, scores, st.floats(-1e6, 1e6, width=32))
    def test_whatever_the_scores(self, good, defect, threshold):
        tree = parse(plots.score_histogram(good, defect, threshold, upper_name="good", lower_name="defect"))
        assert (counts(tree, "good"), counts(tree, "defect")) == (len(good), len(defect))

    def test_names_are_escaped(self):
        tree = parse(plots.score_histogram([1.0], [2.0], 1.5, upper_name='<b>&"', lower_name="d"))
        assert '<b>&"' in texts(tree)
        assert '1 <b>&"' in tree.get("aria-label")

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_refuses_what_is_not_finite(self, bad):
        with pytest.raises(ValueError, match="finite"):
            plots.score_histogram([bad], [], 1.0, upper_name="good", lower_name="")


class TestCurvePlot:
    LINE = plots.Line("images 0.9", np.array([[0, 0], [0, 0.5], [1, 1]]))

    def test_corners_and_mark(self):
        tree = parse(
            plots.curve_plot([self.LINE], x_label="x", y_label="y", chance=True, mark=(0.0, 0.5, "calibrated"))
        )
        curve = next(each for each in of_class(tree, "line-a") if "L" in each.get("d"))
        first, knee, last = ([float(n) for n in pair.split()] for pair in curve.get("d")[1:].split("L"))
        (dot,) = of_class(tree, "mark")
        assert [float(dot.get("cx")), float(dot.get("cy"))] == knee
        assert first[0] == knee[0] < last[0]
        assert first[1] > knee[1] > last[1]
        assert first[1] - knee[1] == pytest.approx(knee[1] - last[1], abs=0.2)  # 0.5 is half way up
        assert len(of_class(tree, "chance")) == 1
        assert {"images 0.9", "calibrated", "x", "y", "0", "0.2", "1"} <= set(texts(tree))

    def test_a_part_of_the_square_fills_the_plot(self):
        line = plots.Line("pro", np.array([[0, 0], [0.3, 1]]))
        tree = parse(plots.curve_plot([line], x_label="x", y_label="y", x_high=0.3))
        curve = next(each for each in of_class(tree, "line-a") if "L" in each.get("d"))
        axis = next(each for each in of_class(tree, "axis") if "H" in each.get("d"))
        assert float(curve.get("d").split("L")[1].split()[0]) == float(axis.get("d").split("H")[1])
        assert {"0.1", "0.2", "0.3"} <= set(texts(tree))
        assert not of_class(tree, "chance")

    def test_lines_without_points_are_left_out(self):
        empty = plots.Line("pixels –", np.empty((0, 2)), "line-b")
        tree = parse(plots.curve_plot([self.LINE, empty], x_label="x", y_label="y"))
        assert not of_class(tree, "line-b")
        assert "pixels –" not in texts(tree)

    def test_names_are_escaped(self):
        line = plots.Line("<i>&", self.LINE.points)
        tree = parse(plots.curve_plot([line], x_label="<x>", y_label="&y", mark=(0.9, 0.9, "<dot>")))
        assert {"<i>&", "<x>", "&y", "<dot>"} <= set(texts(tree))


class TestLossPlot:
    @pytest.mark.parametrize(
        "losses",
        [
            [3.0, 2.0, 1.0],
            [100.0, 1.0, 0.01],
            [0.0, 0.0],
            [-1.0, -3.0],
            [-2.0, -2.0],
            [5.0],
            [1, 0.5, 0, -0.5],
            [2.0] * 50,
        ],
    )
    def test_the_last_loss_is_marked(self, losses):
        tree = parse(plots.loss_plot(losses))
        (dot,) = of_class(tree, "mark")
        assert dot.find("title").text == f"{losses[-1]:.4g} at the end"
        curve = next(each for each in of_class(tree, "line-a"))
        assert curve.get("d").split("L")[-1].lstrip("M") == f"{dot.get('cx')} {dot.get('cy')}"
        assert tree.get("aria-label").startswith(f"Loss over {len(losses)} passes, from {losses[0]:.4g}")
        top, bottom = 20, 260
        heights = [float(pair.split()[1]) for pair in curve.get("d")[1:].split("L")]
        assert all(top <= height <= bottom for height in heights)
        assert [a > b for a in losses for b in losses] == [a < b for a in heights for b in heights]

    def test_scale(self):
        assert "loss" in texts(parse(plots.loss_plot([3.0, 2.0])))
        assert "loss (logarithmic)" in texts(parse(plots.loss_plot([3.0, 0.2])))
        assert {"1", "2", "3"} <= set(texts(parse(plots.loss_plot([3.0, 2.5, 2.2]))))


class TestSmallPlots:
    def test_bars(self):
        tree = parse(plots.bar_list({"train": 4.0, "ex<port": 1.0, "nothing": 0.0}, unit="s"))
        widths = [float(bar.get("width")) for bar in of_class(tree, "bar")]
        assert widths[0] == pytest.approx(4 * widths[1], abs=0.5)
        assert widths[2] == 1.0
        assert texts(tree) == ["train", "4.0 s", "ex<port", "1.0 s", "nothing", "0.0 s"]
        assert parse(plots.bar_list({}, unit="s")).get("aria-label") == ""

    @pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
    def test_interval(self, value):
        tree = parse(plots.interval_bar(value, (max(0.0, value - 0.1), min(1.0, value + 0.1))))
        (dot,) = of_class(tree, "mark")
        centre, radius = float(dot.get("cx")), float(dot.get("r"))
        assert radius <= centre <= 100 - radius  # whole, at 0 and at 1 too
        (whisker,) = of_class(tree, "whisker")
        left, right = whisker.get("d")[1:].split(" 8H")
        assert float(left) <= centre <= float(right)
        assert f"{100 * value:.1f} %" in tree.get("aria-label")

    def test_no_interval(self):
        assert plots.interval_bar(None, None) == ""


class TestTrendPlot:
    POINTS = np.array([(5.0, 0.8), (10.0, 0.9), (50.0, 0.95)])

    def test_every_point_is_where_its_numbers_say(self):
        svg = plots.trend_plot(
            [plots.Line("image AUROC", self.POINTS)], x_label="images", y_label="area", y_low=0.7, logarithmic=True
        )
        marks = of_class(parse(svg), "mark")
        assert [mark.find("title").text for mark in marks] == [
            "image AUROC: 0.8 at 5",
            "image AUROC: 0.9 at 10",
            "image AUROC: 0.95 at 50",
        ]
        left, middle, right = (float(mark.get("cx")) for mark in marks)
        assert (middle - left) / (right - left) == pytest.approx(np.log(2) / np.log(10), abs=0.01)
        first, second, third = (float(mark.get("cy")) for mark in marks)
        assert (first - second) / (second - third) == pytest.approx(2, abs=0.05)
        assert {"5", "10", "50", "images", "area", "image AUROC"} <= set(texts(parse(svg)))

    def test_a_linear_axis_begins_at_zero(self):
        svg = plots.trend_plot([plots.Line("fit", self.POINTS * 2)], x_label="images", y_label="s")
        marks = [float(mark.get("cx")) for mark in of_class(parse(svg), "mark")]
        assert (marks[1] - marks[0]) / (marks[2] - marks[0]) == pytest.approx(5 / 45, abs=0.01)
        assert "0" in texts(parse(svg))

    def test_one_point_is_enough(self):
        parse(plots.trend_plot([plots.Line("a", np.array([(5.0, 0.0)]))], x_label="x", y_label="y", logarithmic=True))

    def test_a_file_brings_its_own_colours(self):
        text = plots.to_file(plots.trend_plot([plots.Line("fit", self.POINTS)], x_label="x", y_label="y"))
        assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert ".line-a{" in text
