"""The parts of the benchmark scripts that decide what is measured: rows, subsets, pictures, processes."""

import sys
from pathlib import Path

import pytest

from makel.datasets import hashes, load, synthetic
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
