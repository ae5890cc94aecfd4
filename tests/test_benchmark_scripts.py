"""The parts of the benchmark scripts that decide what is measured: rows, subsets, pictures, processes."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import makel
import tiny_model
from makel.datasets import hashes, load, split, synthetic
from makel.images import find, read
from makel.types import Sample


@pytest.fixture(autouse=True)
def _beside_the_scripts(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "benchmarks")


def test_a_row_is_measured_once_and_outlives_the_script(tmp_path):
    from rows import Rows

    path = tmp_path / "results" / "some.csv"
    rows = Rows(path, ("category", "seed"))
    assert not rows.has(category="parts", seed=0)
    rows.add({"category": "parts", "seed": 0, "figure": 0.5})
    again = Rows(path, ("category", "seed"))
    assert again.has(category="parts", seed=0)
    assert not again.has(category="parts", seed=1)
    again.add({"category": "parts", "seed": 1, "figure": 0.25})
    assert path.read_text(encoding="utf-8") == "category,seed,figure\nparts,0,0.5\nparts,1,0.25\n"
    with pytest.raises(SystemExit, match="give another --out"):
        again.add({"category": "parts", "seed": 2})


def test_a_row_may_be_replaced_where_it_stands(tmp_path):
    from rows import Rows

    path = tmp_path / "some.csv"
    rows = Rows(path, ("category",))
    for category in ("parts", "tiles"):
        rows.put({"category": category, "figure": "", "ms": 1})
    rows.put({"category": "parts", "figure": 0.5, "ms": 2})
    assert path.read_text(encoding="utf-8") == "category,figure,ms\nparts,0.5,2\ntiles,,1\n"
    assert Rows(path, ("category",)).get(category="parts") == {"category": "parts", "figure": "0.5", "ms": "2"}
    with pytest.raises(SystemExit, match="give another --out"):
        rows.put({"category": "parts", "figure": 0.5})
    assert [each.name for each in tmp_path.iterdir()] == ["some.csv"]


def test_a_mutant_is_the_module_with_one_small_change(repository):
    from mutate import TESTS, mutants

    source = """
def f(a: int = 1, *, b: bool = True) -> int:
    \"\"\"Text.\"\"\"
    if a < 2 and not b:
        print(f"{a + 1}")
        raise ValueError("no")
    return max(a, -2)
"""
    found = [(each.line, each.before, each.after) for each in mutants(source)]
    assert sorted(found) == [
        (2, "1", "2"),
        (2, "True", "False"),
        (4, "2", "3"),
        (4, "a < 2", "a <= 2"),
        (4, "a < 2 and (not b)", "a < 2 or not b"),
        (4, "if a < 2 and (not b):\n    print(f'{a + 1}')\n    raise ValueError('no')",
         "if not (a < 2 and (not b)):\n    print(f'{a + 1}')\n    raise ValueError('no')"),
        (4, "not b", "b"),
        (5, "print(f'{a + 1}')", "pass"),
        (6, "raise ValueError('no')", "pass"),
        (7, "-2", "2"),
        (7, "2", "3"),
        (7, "max(a, -2)", "min(a, -2)"),
        (7, "return max(a, -2)", "return None"),
    ]  # fmt: skip
    assert len({each.source for each in mutants(source)}) == len(found)
    for module, tests in TESTS.items():
        assert (repository / "src/makel" / module).is_file()
        assert all((repository / "tests" / name).is_file() for name in tests if name.endswith(".py"))


def test_a_row_says_where_it_comes_from():
    from rows import facts

    said = facts(openvino="1.2")
    assert list(said) == ["machine", "versions", "commit"]
    assert '"openvino": "1.2"' in said["versions"]
    assert all(said.values())


def test_a_process_gives_its_last_json_or_its_last_complaint():
    from rows import run

    done = run(
        sys.executable, "-c", "import os; print('x'); print('{\"threads\": %s}' % os.environ['OMP_NUM_THREADS'])"
    )
    assert done.result == {"threads": 2}
    assert done.error == ""
    assert done.seconds >= 0
    assert done.peak_mb > 1
    failed = run(sys.executable, "-c", "print('{}'); raise SystemExit('no room')")
    assert (failed.result, failed.error) == (None, "no room")
    assert run(sys.executable, "-c", "").error == "it said nothing"


def test_a_larger_subset_holds_the_smaller_one(tmp_path):
    from few_images import subset

    dataset = synthetic.write(tmp_path / "line", n_fit=9, n_good=1, n_defect=0, size_px=64)
    small, large = (set(subset(dataset, count, seed=3).good) for count in (4, 7))
    assert (len(small), len(large)) == (4, 7)
    assert small < large
    assert small != set(subset(dataset, 4, seed=4).good)
    assert subset(dataset, 4, seed=3).test == dataset.test


def test_few_images_are_the_same_for_ours_and_a_peer(tmp_path, category, monkeypatch):
    import few_images
    from rows import Done, Rows

    asked = []

    def measure_ours(folder, seed, size, threads, scores, *, timed, **more):
        dataset = load(folder)
        asked.append(("ours", {path.name for path in find(folder / "train" / "good")}, more))
        npz(scores, dataset, [1, 2], range(len(dataset.test)), seed=seed)
        return {"fit_s": 1.5, "ms_p50": 2.5, "ms_p99": 3.5}

    def run(*command):
        folder, scores = command[3], command[command.index("--scores") + 1]
        listing = command[command.index("--held-out") + 1].read_text(encoding="utf-8").splitlines()
        asked.append(("peer", {path.name for path in find(folder / "train" / "good")}, listing))
        npz(scores, load(folder), [1, 2], range(len(load(folder).test)), seed=3)
        return Done({"fit_s": 9.5, "ms_p50": 8.5, "ms_p99": 3.5}, "", 4.0, 500, 0.1)

    monkeypatch.setattr(few_images, "measure_ours", measure_ours)
    monkeypatch.setattr(few_images, "run", run)
    monkeypatch.setattr(few_images, "versions_of", lambda _python: {"peer anomalib": "2.7.0"})
    command = ["few_images.py", category, "--counts", "5,20", "--seeds", "3", "--augment", "both", "--out"]
    command += [tmp_path / "few.csv", "--peer-python", "python", "--peer-script", "s.py", "--models", "padim"]
    monkeypatch.setattr(sys, "argv", [str(each) for each in command])
    few_images.main()
    rows = Rows(tmp_path / "few.csv", ()).rows
    assert [(row["who"], row["n_images"], row["augment"], row["fit_s"]) for row in rows] == [
        ("makel", "5", "off", "1.5"),
        ("makel", "5", "on", "1.5"),
        ("anomalib padim", "5", "off", "9.5"),
        ("makel", "10", "off", "1.5"),  # all there are
        ("makel", "10", "on", "1.5"),
        ("anomalib padim", "10", "off", "9.5"),
    ]
    drawn = {sample.image_path.name for sample in few_images.subset(load(category), 5, 3).good}
    assert [names for _, names, _ in asked[:3]] == [drawn] * 3
    assert [more for who, _, more in asked if who == "ours"][:2] == [
        {"method": "skip_ae"},
        {"method": "skip_ae", "augment": True},
    ]
    assert len(asked[2][2]) == 1
    assert asked[2][2][0].removeprefix("train/good/") in drawn
    few_images.main()
    assert len(asked) == 6


def test_no_two_pictures_are_the_same(tmp_path):
    from fit_scaling import write_pictures

    write_pictures(tmp_path, 7, 2, 64)
    assert len(set(hashes([Sample(path) for path in find(tmp_path)]))) == 7
    assert read(tmp_path / "00000.png").shape == (64, 64, 3)
    assert len(load(tmp_path).good) == 7


def test_what_a_peer_prints_becomes_a_row():
    from peers import row_of
    from rows import Done

    printed = {"model": "dfm", "fit_s": 10.5, "ms_p50": 157.4, "ms_p99": 210.0}
    found = {"image_auroc": 0.98, "pixel_auroc": None, "miss_5": 0.25}

    def row(done, found, timed=True):
        said = {"versions": {"peer anomalib": "2.7.0"}, "threads": 1}
        return row_of("parts", "anomalib dfm", 256, 0, done, found, timed=timed, **said)

    measured = row(Done(printed, "", 40.0, 876, 0.5), found)
    assert (measured["category"], measured["size"], measured["ms_p50"], measured["error"]) == ("parts", 256, 157.4, "")
    assert (measured["miss_5"], measured["pixel_auroc"], measured["aupro_30"]) == (0.25, "", "")
    assert '"peer anomalib": "2.7.0"' in measured["versions"]
    assert measured["machine"].endswith("threads 1")
    accuracy = row(Done(printed, "", 40.0, 876, 0.5), found, timed=False)
    assert (accuracy["fit_s"], accuracy["ms_p50"], accuracy["ms_p99"], accuracy["image_auroc"]) == ("", "", "", 0.98)
    broken = row(Done(None, "no memory", 4.0, 876, 0.5), {})
    assert (broken["fit_s"], broken["image_auroc"], broken["error"]) == ("", "", "no memory")


@pytest.fixture(scope="module")
def category(tmp_path_factory):
    """A made-up line: 10 good images, of which a fit holds out 2; 3 good ones and 4 defects to test on."""
    root = tmp_path_factory.mktemp("line") / "flange"
    synthetic.write(root, n_fit=10, n_good=3, n_defect=4, size_px=64)
    return root


def of_candidate(name, *values, metric="image_auroc", seed=0):
    """A row a set; the sets are called a, b, c and so on."""
    empty = {"image_auroc": "", "pixel_auroc": "", "aupro_30": "", "miss_5": ""}
    return [
        {"category": "abcdef"[index], "candidate": name, "seed": str(seed), **empty, metric: str(value)}
        for index, value in enumerate(values)
    ]


def test_a_candidate_stands_beside_the_default_on_the_sets_and_seeds_that_both_have():
    from leave_one_out import standings

    rows = [
        *of_candidate("default", 0.9, 0.8, 0.7),
        *of_candidate("default", 1.0, 0.8, 0.7, seed=1),
        *of_candidate("other", 0.8, 0.9),  # no third set, and no second seed
    ]
    peers = [
        {"category": "a", "who": "anomalib padim", "size": "256", "error": "", "image_auroc": "0.85"},
        {"category": "a", "who": "anomalib dfm", "size": "256", "error": "", "image_auroc": "0.95"},
        {"category": "b", "who": "anomalib dfm", "size": "384", "error": "", "image_auroc": "0.6"},
        {"category": "b", "who": "makel", "size": "384", "error": "", "image_auroc": "1"},
        {"category": "b", "who": "anomalib padim", "size": "256", "error": "no memory", "image_auroc": ""},
    ]
    default, other = standings(rows, "image_auroc", peers)
    assert (default.sets, default.mean, default.gain, default.loss) == (3, pytest.approx(0.81666667), 0, 0)
    assert (default.worst, default.lowest) == ("c", pytest.approx(0.7))
    assert (default.peer_set, default.peer_loss) == ("a", pytest.approx(0.0))
    assert (other.sets, other.mean, other.gain) == (2, pytest.approx(0.85), pytest.approx(0))
    assert (other.loses_most, other.loss) == ("a", pytest.approx(0.1))
    assert (other.peer_set, other.peer_loss) == ("a", pytest.approx(0.15))


def test_a_set_left_out_says_what_its_others_would_have_chosen():
    from leave_one_out import text, verdicts

    rows = [
        *of_candidate("default", 0.9, 0.8, 0.7),
        *of_candidate("bold", 0.99, 0.8, 0.62),
        *of_candidate("as good", 0.9, 0.8018, 0.7),
        *of_candidate("half", 1.0, 1.0),  # without all sets it is no candidate
    ]
    found = verdicts(rows, "image_auroc")
    assert [(each.left_out, each.best, each.holds) for each in found] == [
        ("a", "default", True),  # .0009 behind
        ("b", "bold", False),
        ("c", "bold", False),
    ]
    assert [each.best_here for each in found] == ["bold", "as good", "default"]
    assert [each.lost for each in found] == pytest.approx([0.09, 0.0018, 0])
    assert [each.behind for each in found] == pytest.approx([0.0009, 0.005, 0.045])
    said = text(rows)
    assert "of 3 candidates that have all sets" in said
    assert "within 0.001, 1 of 3 times" in said
    assert "| b | no, bold by 0.0050 | as good | 0.0018 |" in said
    assert verdicts(of_candidate("default", 0.9), "image_auroc") == []


def test_what_a_promise_misses_counts_against_a_candidate():
    from leave_one_out import standings

    rows = [*of_candidate("default", 0.25, 0.5, metric="miss_5"), *of_candidate("x", 0.5, 0.25, metric="miss_5")]
    _, other = standings(rows, "found_5")
    assert (other.mean, other.worst, other.loses_most, other.loss) == (0.625, "a", "a", 0.25)
    assert standings(rows, "pixel_auroc") == []


@pytest.fixture
def study(category, tmp_path, monkeypatch):
    """The script, and a function that runs it on the made-up line with two updates; gives the rows there are then."""
    import study_skip_ae as script
    from rows import Rows

    short = {"updates": 2, "bank": 50}
    changed = {
        name: replace(each, changes={**each.changes, **{key: value for key, value in short.items() if key == "bank"}})
        if each.changes.get("updates") == 0
        else replace(each, changes={**each.changes, **short})
        for name, each in script.CANDIDATES.items()
    }
    monkeypatch.setattr(script, "CANDIDATES", changed)

    def measured(*more):
        command = ["study_skip_ae.py", category, "--seeds", "0", "--threads", "1", "--out", tmp_path / "s.csv", *more]
        monkeypatch.setattr(sys, "argv", [str(each) for each in command])
        script.main()
        return Rows(tmp_path / "s.csv", ("category", "candidate", "seed")).rows

    return script, measured


def test_every_choice_of_the_study_is_measured_once(study, capsys, monkeypatch):
    script, measured = study
    rows = measured()
    assert [row["candidate"] for row in rows] == list(script.CHOICES)
    for row in rows:
        assert row["input"] == "64 x 64 px"  # images have no more pixels
        assert all(0 <= float(row[key]) <= 1 for key in script.FIGURES)
        assert row["machine"].endswith("threads 1")
    assert len({row["features_s"] for row in rows}) == 1
    assert len({(row["image_auroc"], row["pixel_auroc"]) for row in rows}) >= 5
    monkeypatch.setattr(script, "measure", None)  # nothing is measured again
    assert measured() == rows
    capsys.readouterr()
    measured("--leave-one-out", "--peers", "none.csv")
    assert "| default | 1 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        measured("--only", "magic")


def test_the_curve_starts_with_an_autoencoder_that_saw_nothing(study):
    script, measured = study
    assert len(script.CURVE) == 14
    rows = measured("--only", "0 updates", "equation 2, 0 updates")
    assert [row["candidate"] for row in rows] == ["0 updates", "equation 2, 0 updates"]
    assert script.CANDIDATES["3200 updates"].changes["most_epochs"] == 0


def test_halves_of_the_default_see_their_half_alone(category, tmp_path):
    import torch
    from study_skip_ae import CANDIDATES, Category, build_detector

    there = Category(category, tmp_path)
    for name, zero, alone in (
        ("no autoencoder", slice(-152, None), slice(152)),
        ("residual alone", slice(152), slice(-152, None)),
    ):
        detector = build_detector(CANDIDATES[name].detector, there.config(CANDIDATES[name]), 0)
        good, _, _ = there.features(detector, detector.config)
        described = detector._described(good.batch([0, 1]))
        assert described.shape[1] == 2 * 152
        assert not described[:, zero].any()
        whole = super(CANDIDATES[name].detector, detector)._described(good.batch([0, 1]))
        torch.testing.assert_close(described[:, alone], whole[:, alone])


def test_as_many_epochs_as_the_minutes_hold():
    from paper_embedded import epochs_in, printed

    assert [epochs_in(30, seconds) for seconds in (1, 60, 3600)] == [150, 30, 1]
    assert epochs_in(30, 60, most=5) == 5
    assert (printed("metal_nut", "skip_ae"), printed("screw", "dfr"), printed("aliens", "dfr")) == (0.98, 0.97, "")


def test_the_papers_settings_are_fitted_for_as_long_as_there_is_time(category, tmp_path, monkeypatch):
    import paper_embedded
    from rows import Rows

    asked = []

    def fit(data, out, **given):
        asked.append(given)
        (tmp_path / "log.jsonl").write_text('{"seconds": 4.0}\n' * given["epochs"], encoding="utf-8")
        return SimpleNamespace(path=tmp_path)

    figures = {"image_auroc": 0.5, "pixel_auroc": None, "aupro_30": None}
    monkeypatch.setattr(makel, "fit", fit, raising=False)
    monkeypatch.setattr(makel.Inspector, "load", lambda *_, **__: None)
    monkeypatch.setattr(makel, "evaluate", lambda *_: SimpleNamespace(to_json=lambda: figures), raising=False)
    command = ["paper_embedded.py", category, "--minutes", "0.5", "--out", tmp_path / "p.csv", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", [str(each) for each in command])
    paper_embedded.main()
    paper_embedded.main()
    rows = Rows(tmp_path / "p.csv", ()).rows
    assert [(row["method"], row["epochs"], row["epoch_s"], row["training_s"]) for row in rows] == [
        ("skip_ae", "7", "4.0", "28.0"),
        ("dfr", "7", "4.0", "28.0"),
    ]
    assert [(given["method"], given["epochs"]) for given in asked] == [
        ("skip_ae", 1), ("skip_ae", 7), ("dfr", 1), ("dfr", 7),
    ]  # fmt: skip
    assert all((given["preset"], given["size"], given["blocks"]) == ("paper", 256, (1, 2, 3)) for given in asked)


def relative(samples, root):
    return [sample.image_path.relative_to(root).as_posix() for sample in samples]


def test_a_peer_has_the_images_held_out_that_makel_holds_out(category):
    from anomalib_peer import parted
    from peers import held_out

    parts = split(load(category), seed=0)
    listing = category.parent / "held_out.txt"
    listing.write_text("\n".join(held_out(load(category), seed=0)), encoding="utf-8")
    fit, kept = parted(category, listing)
    assert kept == [sample.image_path for sample in parts.calibrate]
    assert fit == [sample.image_path for sample in parts.fit]
    assert parted(category, None) == ([sample.image_path for sample in load(category).good], [])
    listing.write_text("test/good/000.png", encoding="utf-8")
    with pytest.raises(SystemExit, match="no image of"):
        parted(category, listing)


def test_a_peer_sees_no_copy_of_what_is_held_out_and_a_threshold_counts_a_part_once(tmp_path):
    from anomalib_peer import parted
    from peers import figures, held_out, judged

    line = synthetic.write(tmp_path / "line", n_fit=6, n_good=1, n_defect=1, size_px=64)
    first = line.good[0].image_path
    first.with_name("copy.png").write_bytes(first.read_bytes())
    dataset = load(tmp_path / "line")
    for seed in range(8):  # held out at some of them, fitted on at others
        listing = tmp_path / "held_out.txt"
        listing.write_text("\n".join(held_out(dataset, seed)), encoding="utf-8")
        fit, kept = parted(tmp_path / "line", listing)
        assert fit == [sample.image_path for sample in split(dataset, seed=seed).fit]
        assert {*judged(dataset, seed)} <= {*held_out(dataset, seed)}
        scores = npz(tmp_path / "scores.npz", dataset, [1.0] * len(kept), [0, 2])
        with np.load(scores) as found:
            np.savez(scores, **{**{key: found[key] for key in found.files}, "held_out": held_out(dataset, seed)})
        of_one_each = 1 / (len(judged(dataset, seed)) + 1)
        assert figures(dataset, scores, seed)["promise"] == pytest.approx(of_one_each)


def npz(path, dataset, kept, scores, maps=None, seed=None):
    """A file of scores, the test images in another order than the dataset's; with a seed, held out are its images."""
    from peers import judged

    names = [str(at) for at in range(len(kept))] if seed is None else judged(dataset, seed)
    kept = kept[: len(names)]
    order = list(range(len(dataset.test)))[::-1]
    np.savez(
        path,
        held_out=names,
        held_out_scores=np.array(kept, float),
        test=[relative(dataset.test, dataset.root)[at] for at in order],
        test_scores=np.array([scores[at] for at in order], float),
        **({} if maps is None else {"maps": np.stack([maps[at] for at in order])}),
    )
    return path


def test_a_promise_of_five_per_cent_is_what_makels_calibration_makes_of_held_out_scores(tmp_path, category):
    from peers import figures

    dataset = load(category)
    is_good = [sample.label == "good" for sample in dataset.test]
    goods, defects = iter((1, 5, 19.5)), iter((18, 19, 20, 40))
    scores = [next(goods if good else defects) for good in is_good]
    # 39 images carry two rejects in forty: the threshold is the highest score but one.
    found = figures(dataset, npz(tmp_path / "many.npz", dataset, [100, 18, *range(17), *([0] * 20)], scores))
    assert (found["promise"], found["miss_5"], found["false_reject_5"]) == (0.05, 0.25, 1 / 3)
    assert found["image_auroc"] == pytest.approx(10 / 12)
    assert (found["pixel_auroc"], found["aupro_30"]) == (None, None)
    # Two carry one in three: the threshold is the highest of them.
    few = figures(dataset, npz(tmp_path / "few.npz", dataset, [2, 19], scores))
    assert (few["promise"], few["miss_5"], few["false_reject_5"]) == (1 / 3, 0.5, 1 / 3)


def test_pixels_count_where_masks_say(tmp_path, category):
    from peers import figures, marked

    dataset = load(category)
    right = [
        np.float32(marked(sample.mask_path) > 0) if sample.mask_path else np.zeros((256, 256), np.float32)
        for sample in dataset.test
    ]
    assert {each.shape for each in right} == {(256, 256)}
    scores = [float(each.max()) for each in right]
    found = figures(dataset, npz(tmp_path / "right.npz", dataset, [0.5, 0.5], scores, right))
    assert (found["image_auroc"], found["pixel_auroc"], found["aupro_30"], found["miss_5"]) == (1, 1, 1, 0)
    wrong = figures(dataset, npz(tmp_path / "wrong.npz", dataset, [0.5, 0.5], scores, [1 - each for each in right]))
    assert (wrong["image_auroc"], wrong["pixel_auroc"], wrong["aupro_30"]) == (1, 0, 0)


def test_ours_is_measured_as_makel_measures_it(tmp_path, category, monkeypatch):
    from peers import BUDGET, figures, measure_ours, scored

    dataset = load(category)
    kept = [sample.image_path for sample in split(dataset, seed=1).calibrate]
    anyhow = makel.Inspector.load(tiny_model.write(tmp_path / "anyhow", size=256), threads=1)
    of_kept = [scored(anyhow, path)[0] for path in kept]
    model = tiny_model.write(tmp_path / "model", size=256, image_scores=of_kept, false_reject=BUDGET)
    asked = []

    def fit(data, _out, **given):
        asked.append((data, given))
        return SimpleNamespace(path=model)

    monkeypatch.setattr(makel, "fit", fit, raising=False)
    said = measure_ours(category, 1, None, 1, tmp_path / "ours.npz", timed=False)
    assert (asked, said["size"]) == ([(category, {"seed": 1, "false_reject": 0.05})], 256)
    found, evaluation = figures(dataset, tmp_path / "ours.npz"), makel.evaluate(model, category)
    assert found == {
        "image_auroc": evaluation.image.auroc,
        "pixel_auroc": evaluation.pixel.auroc,
        "aupro_30": evaluation.pixel.aupro_30,
        "promise": evaluation.manifest.calibration.promised_false_reject,
        "miss_5": evaluation.misses.value,
        "false_reject_5": evaluation.false_rejects.value,
    }
    measure_ours(category, 1, 384, 1, tmp_path / "ours.npz", timed=False)
    assert asked[1] == (category, {"seed": 1, "false_reject": 0.05, "size": 384})
    with np.load(tmp_path / "ours.npz") as file:
        assert file["held_out"].tolist() == [path.relative_to(category).as_posix() for path in kept]
        assert file["held_out_scores"] == pytest.approx(of_kept)


def test_a_model_that_held_out_other_images_is_not_compared(tmp_path, category, monkeypatch):
    from peers import measure_ours

    model = tiny_model.write(tmp_path / "model", size=256, image_scores=(0.1, 0.2, 0.3))
    monkeypatch.setattr(makel, "fit", lambda *_, **__: SimpleNamespace(path=model), raising=False)
    with pytest.raises(SystemExit, match="held out 3 images, not the 2"):
        measure_ours(category, 0, None, 1, tmp_path / "ours.npz", timed=False)


def test_accuracy_now_and_times_later(tmp_path, category, monkeypatch):
    import peers
    from rows import Done

    dataset, out, calls = load(category), tmp_path / "peers.csv", []

    def run(*command, threads):
        command = [str(each) for each in command]
        calls.append((command, threads))
        scores = command[
            command.index("--scores" if "--scores" in command else "--measure") + 1 + ("--measure" in command)
        ]
        seed = int(command[command.index("--measure") + 1]) if "--measure" in command else 0
        npz(scores, dataset, [1, 2], range(len(dataset.test)), seed=seed)
        return Done({"fit_s": 1.5, "ms_p50": 2.5, "ms_p99": 3.5}, "", 4.0, 500, 0.1)

    def measured(*more):
        calls.clear()
        asked = [category, "--peer-script", "s.py", "--peer-python", "python", "--models", "padim,dfm", "--out", out]
        monkeypatch.setattr(sys, "argv", [str(each) for each in ("peers.py", *asked, "--seeds", "0,1", *more)])
        peers.main()
        found = peers.Rows(out, ("who",)).rows
        return [(row["who"], row["size"], row["seed"], row["fit_s"], row["ms_p99"]) for row in found]

    monkeypatch.setattr(peers, "run", run)
    monkeypatch.setattr(peers, "versions_of", lambda _python: {"peer anomalib": "2.7.0"})
    size = str(peers.default_size())
    keys = [("makel", size, "0"), ("anomalib padim", "256", "0"), ("makel", size, "1"), ("anomalib dfm", "256", "0")]
    assert measured("--accuracy-only", "--threads", "1") == [(*key, "", "") for key in keys]
    assert {threads for _, threads in calls} == {1}
    assert [command[command.index("--calls") + 1] for command, _ in calls if "--calls" in command] == ["0", "0"]
    assert measured("--accuracy-only") == [(*key, "", "") for key in keys]
    assert calls == []
    assert measured() == [(*key, "1.5", "3.5") for key in keys]
    assert len(calls) == 4
    assert measured() == [(*key, "1.5", "3.5") for key in keys]
    assert calls == []
    assert measured("--size", "384")[4:] == [
        ("anomalib padim", "384", "0", "1.5", "3.5"),
        ("anomalib dfm", "384", "0", "1.5", "3.5"),
    ]
    with pytest.raises(SystemExit):
        measured("--models", "stfpm")


STUB = {
    "anomalib/__init__.py": "",
    "anomalib/data.py": """
from pathlib import Path

class Folder:
    def __init__(self, root, normal_dir, val_split_mode, **_):
        assert val_split_mode == "none"
        self.train_data = sorted(Path(root, normal_dir).iterdir())
""",
    "anomalib/engine.py": """
class Engine:
    def __init__(self, limit_val_batches, **_):
        assert limit_val_batches == 0

    def fit(self, model, datamodule):
        model.seen = [path.resolve().name for path in datamodule.train_data]
""",
    "anomalib/pre_processing.py": """
class PreProcessor:
    def __init__(self, transform):
        self.transform = transform
""",
    "script.py": """
import json
from types import SimpleNamespace

from makel.training.torchvision_import import import_timm

SIZE = 256
import_timm()

class Model:
    def eval(self):
        print(json.dumps({"seen": self.seen}))

    def model(self, image):
        assert image.shape == (1, 3, SIZE, SIZE)
        anomaly_map = image.mean(1, keepdim=True)[:, :, ::2, ::2]
        return SimpleNamespace(pred_score=anomaly_map.mean(), anomaly_map=anomaly_map)

def build(name, pre_processor, **_):
    assert name == "dfm"
    return Model()
""",
}


def test_a_peer_is_fitted_without_what_is_held_out_and_scores_it(tmp_path, category, repository, monkeypatch):
    """Anomalib in name only: a score is how bright an image is."""
    for name, text in STUB.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    parts = split(load(category), seed=0)
    (tmp_path / "held_out.txt").write_text("\n".join(relative(parts.calibrate, category)), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = [sys.executable, repository / "benchmarks" / "anomalib_peer.py", "dfm", category, "--size", "128"]
    command += ["--peer-script", tmp_path / "script.py", "--held-out", tmp_path / "held_out.txt", "--threads", "1"]
    command += ["--scores", tmp_path / "scores.npz", "--calls", "9"]
    ran = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    fitted, said = map(json.loads, ran.stdout.splitlines())
    assert fitted["seen"] == [sample.image_path.name for sample in parts.fit]
    assert (said["model"], said["size"], said["n_fit"]) == ("dfm", 128, 8)
    assert said["ms_p99"] >= said["ms_p50"] > 0
    with np.load(tmp_path / "scores.npz") as file:
        assert file["held_out"].tolist() == relative(parts.calibrate, category)
        assert len(file["held_out_scores"]) == 2
        assert sorted(file["test"].tolist()) == sorted(relative(parts.test, category))
        assert (file["maps"].shape, file["maps"].dtype) == ((7, 256, 256), np.float32)
        assert file["test_scores"] == pytest.approx(file["maps"].mean(axis=(1, 2)), abs=1e-3)
    from peers import figures

    assert figures(load(category), tmp_path / "scores.npz")["image_auroc"] == pytest.approx(said["image_auroc"])
