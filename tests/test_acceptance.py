"""Acceptance: agreement against published and hand-made examples, sample sizes, and a test of a real model folder."""

import json

import cv2
import numpy as np
import pytest

import tiny_model
from makel.cli import run
from makel.errors import DatasetError, MissingExtraError, UsageError
from makel.evidence.acceptance import accept
from makel.evidence.acceptance_report import write_acceptance_report
from makel.evidence.agreement import Limits, agree, cohen_kappa, compare, fleiss_kappa
from makel.evidence.sample_size import at_most, plan, upper_bound
from makel.evidence.study import read_appraisers, read_study


def crosstab(both_bad, first_only, second_only, both_good):
    """The judgements of two inspectors behind their table of four."""
    counts = (both_bad, first_only, second_only, both_good)
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


@pytest.mark.parametrize(
    ("table", "kappa"),
    [
        # AIAG, Measurement Systems Analysis, chapter III C: inspectors among each other, then against the reference
        ((44, 6, 3, 97), 0.86),
        ((43, 7, 8, 92), 0.78),
        ((42, 5, 9, 94), 0.79),
        ((45, 5, 3, 97), 0.88),
        ((45, 2, 3, 100), 0.92),
        ((42, 9, 6, 93), 0.77),
    ],
)
def test_kappa_of_two_is_that_of_the_manual(table, kappa):
    assert round(cohen_kappa(*crosstab(*table)), 2) == kappa


def test_kappa_of_many_is_what_comes_out_by_hand():
    # Ten parts, fourteen judgements, five categories. Shares of the categories: 20, 28, 39, 21, 32 of 140; agreeing
    # pairs of a part on average .378, by chance .213: (.378 - .213) / (1 - .213) = .210
    counts = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert round(fleiss_kappa(counts), 3) == 0.21
    assert fleiss_kappa([[3, 0], [0, 3]]) == 1
    assert fleiss_kappa([[3, 0], [3, 0]]) is None  # chance alone explains it
    with pytest.raises(UsageError, match="as many of each"):
        fleiss_kappa([[3, 0], [1, 1]])


def test_one_inspector_by_hand():
    parts = ["good/1", "good/2", "good/3", "hole/1", "hole/2"]
    defective = [False, False, False, True, True]
    rejected = [[0, 0, 0], [0, 1, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]]
    found = agree("makel", parts, defective, rejected)
    assert (found.effectiveness.count, found.effectiveness.of) == (2, 5)
    assert (found.miss_rate.count, found.miss_rate.of) == (2, 6)
    assert (found.false_alarm_rate.count, found.false_alarm_rate.of) == (4, 9)
    assert (found.repeatability.count, found.repeatability.of) == (3, 5)
    assert (found.missed, found.alarmed, found.unsteady) == (("hole/2",), ("good/2", "good/3"), ("good/2", "hole/2"))
    # 9 of 15 right; 8 rejected, 6 of 15 defective: by chance 8/15 * 6/15 + 7/15 * 9/15 = 111/225
    assert found.kappa_reference == pytest.approx((9 / 15 - 111 / 225) / (1 - 111 / 225))
    # agreeing pairs (3 + 1 + 3 + 3 + 1) / 15; by chance (8/15)^2 + (7/15)^2
    chance = (8 / 15) ** 2 + (7 / 15) ** 2
    assert found.kappa_within == pytest.approx((11 / 15 - chance) / (1 - chance))


def test_inspectors_among_each_other_by_hand():
    parts, defective = ["a", "b", "c"], [False, True, True]
    said = {"makel": [[0, 0], [1, 1], [1, 0]], "A": [[0, 0], [1, 1], [1, 1]]}
    found = compare(parts, defective, said)
    assert (found.all_agree.count, found.all_right.count) == (2, 2)
    # trial by trial they agree 5 times of 6; makel rejects 3 of 6, A 4 of 6
    chance = 3 / 6 * 4 / 6 + 3 / 6 * 2 / 6
    assert found.pairs == (("makel", "A", pytest.approx((5 / 6 - chance) / (1 - chance))),)
    assert compare(parts, defective, {"makel": said["makel"]}) is None


@pytest.mark.parametrize(
    ("wrong_good", "wrong_bad", "grade"),
    [(2, 1, "acceptable"), (3, 1, "marginal"), (2, 2, "marginal"), (6, 2, "unacceptable"), (2, 3, "unacceptable")],
)
def test_limits_are_met_up_to_their_last_count(wrong_good, wrong_bad, grade):
    defective = [False] * 20 + [True] * 25
    rejected = np.repeat(np.array(defective)[:, None], 2, 1)
    rejected[:wrong_good, 0] = True  # of 40 presentations
    rejected[20 : 20 + wrong_bad, 0] = False  # of 50
    found = agree("makel", [str(index) for index in range(45)], defective, rejected)
    assert found.grade(Limits(), Limits(0.8, 0.05, 0.1)) == grade


def test_a_part_shown_once_is_refused():
    with pytest.raises(UsageError, match="at least 2 times"):
        agree("A", ["1"], [True], [[1]])


@pytest.mark.parametrize(
    ("rate", "allowed", "parts"), [(0.02, 0, 149), (0.05, 0, 59), (0.05, 1, 93), (0.1, 2, 61), (0.5, 0, 5)]
)
def test_sample_sizes_are_those_of_the_tables(rate, allowed, parts):
    assert plan(rate, allowed=allowed).parts == parts
    assert upper_bound(allowed, parts) <= rate < upper_bound(allowed, parts - 1)


def test_binomial_probabilities_are_exact():
    assert at_most(1, 3, 0.25) == pytest.approx(0.75**3 + 3 * 0.25 * 0.75**2)
    assert (at_most(3, 3, 0.9), at_most(0, 5, 0.0), at_most(0, 5, 1.0)) == (1, 1, 0)
    assert upper_bound(0, 10) == pytest.approx(1 - 0.05**0.1)
    assert upper_bound(10, 10) == 1
    assert plan(0.02).chance(0.005) == pytest.approx(0.995**149)


@pytest.mark.parametrize("claim", [0.0, 1.0, -0.1, 1e-9, float("nan")])
def test_a_claim_that_is_none_is_refused(claim):
    with pytest.raises(UsageError):
        plan(claim)


SAID = "appraiser,part,trial,verdict\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("accept") / "model")


@pytest.fixture
def study(tmp_path):
    """Three good parts and two with a hole, each three times; one good part is rejected once, one hole passes."""
    grey = {
        "good/1": (128, 129, 127),
        "good/2": (130, 126, 250),
        "good/3": (125, 131, 124),
        "hole/1": (248, 249, 251),
        "hole/2": (133, 134, 135),
    }
    root = tmp_path / "study"
    for part, levels in grey.items():
        (root / part).mkdir(parents=True)
        for trial, level in enumerate(levels):
            pixels = np.full((20, 20, 3), level, np.uint8)
            cv2.imwrite(str(root / part / f"{trial}.png"), pixels)
    return root


def test_a_model_is_accepted_or_not_by_what_it_says(model, study):
    found = accept(model, study)
    assert [part.name for part in found.parts] == ["good/1", "good/2", "good/3", "hole/1", "hole/2"]
    assert (found.model.false_alarm_rate.count, found.model.miss_rate.count) == (1, 3)
    assert (found.model.missed, found.model.alarmed) == (("hole/2",), ("good/2",))
    assert found.grade == "unacceptable"
    assert found.between is None
    assert len(found.digest) == 64
    assert any("parts are few" in remark for remark in found.remarks())


def test_an_image_that_cannot_be_inspected_is_a_reject_with_its_reason(model, study):
    (study / "good" / "1" / "1.png").write_bytes(b"no picture")
    found = accept(model, study)
    assert found.model.false_alarm_rate.count == 2
    assert [each.part for each in found.failures] == ["good/1"]
    assert found.to_json()["presentations"][1]["score"] is None


def test_people_stand_beside_the_model(model, study, tmp_path):
    rows = [
        f"A;{part};{trial};{'ok' if part.startswith('good') else 'NOK'}"
        for part in ("good/1", "good/2", "good/3", "hole/1", "hole/2")
        for trial in (1, 2)
    ]
    said = tmp_path / "said.csv"
    said.write_text("\ufeffAppraiser;Part;Trial;Verdict\n" + "\n".join(rows), encoding="utf-8")
    found = accept(model, study, appraisers=said)
    assert [each.name for each in found.inspectors] == ["makel", "A"]
    assert found.inspectors[1].grade(found.limits, found.marginal) == "acceptable"
    assert found.between.all_right.count == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column appraiser"),
        (SAID, "holds no judgements"),
        (SAID + "A,good/9,1,pass\n", "no part 'good/9'"),
        (SAID + "A,good/1,1,maybe\n", "neither pass nor reject"),
        (SAID + "A,good/1,1,pass\nA,good/1,1,pass\n", "twice"),
        (SAID + "A,good/1,1,pass\n", "did not judge good/2 in trial 1"),
        (SAID + "makel,good/1,1,pass\n", "model's own"),
        (SAID + "A,good/1\n", "line 2: expected 4 columns"),
    ],
)
def test_a_file_of_judgements_that_does_not_fit_is_one_clear_line(study, tmp_path, text, told):
    said = tmp_path / "said.csv"
    said.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=told):
        read_appraisers(said, read_study(study))


def _lone(study):
    (study / "good" / "1" / "2.png").unlink()


def _copied(study):
    (study / "good" / "1" / "2.png").write_bytes((study / "good" / "1" / "1.png").read_bytes())


def _flat(study):
    (study / "good" / "part.png").write_bytes((study / "good" / "1" / "1.png").read_bytes())


@pytest.mark.parametrize(
    ("change", "told"), [(_lone, "equally often"), (_copied, "are the same file"), (_flat, "a folder for each part")]
)
def test_a_study_that_does_not_fit_is_one_clear_line(study, change, told):
    change(study)
    with pytest.raises(DatasetError, match=told):
        read_study(study)


def test_the_command_writes_a_page_and_says_the_result_by_its_exit_code(model, study, tmp_path, capsys):
    command = ["accept", "run", str(model), str(study), "--out", str(tmp_path / "out")]
    assert run(command) == 1
    said = capsys.readouterr()
    assert "result         unacceptable" in said.out
    page = (tmp_path / "out" / "acceptance.html").read_text(encoding="utf-8")
    assert "<strong>unacceptable</strong>" in page
    assert page.count("<b>missed</b>") == 3
    assert page.count("<b>false alarm</b>") == 1
    written = json.loads((tmp_path / "out" / "acceptance.json").read_text(encoding="utf-8"))
    assert written["result"] == "unacceptable"
    assert written["inspectors"][0]["miss_rate"]["count"] == 3
    for limits, code in (("0/100/100", 0), ("0/50/12", 0), ("0/49/12", 1), ("0/50/11", 1)):
        assert run([*command, "--limits", limits]) == code
    assert run([*command, "--limits", "90/2"]) == 2


def test_the_plan_is_said_for_people_and_programs(capsys):
    assert run(["accept", "plan", "--miss", "2%", "--false-reject", "0.05", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    assert (plans["defective"][0], plans["good"][0]) == ({"allowed": 0, "parts": 149}, {"allowed": 0, "parts": 59})
    assert run(["accept", "plan"]) == 0
    assert "149 defective parts, if none" in capsys.readouterr().out


def test_a_pdf_is_printed_or_refused_before_anything_is_written(model, study, tmp_path):
    found, page = accept(model, study), tmp_path / "out" / "acceptance.html"
    try:
        import weasyprint  # noqa: F401
    except (ImportError, OSError):
        with pytest.raises(MissingExtraError, match=r"makel\[pdf\]"):
            write_acceptance_report(page, found, pdf=True)
        assert not page.exists()
    else:
        written = write_acceptance_report(page, found, pdf=True)
        assert written[1].read_bytes().startswith(b"%PDF")
