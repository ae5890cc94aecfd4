"""Benchmarks that really run: what they write, how they fail, and that killing one changes nothing."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

import makel
from makel.bench.page import TIMED
from makel.cli import run
from makel.datasets import load, synthetic
from makel.evaluation.protocol import evaluate

# AnoGAN is the one method without an ONNX export, which would take most of a tiny cell's time.
TINY = """
device = "cpu"

[[grid]]
methods = ["anogan"]
seeds = [0, 1]
settings = { size = 32, width = 8, updates = 1, search_steps = 1 }
"""
# At 64 px the grid of block 3 is too small to be halved three times.
FAILING = """
[[grid]]
methods = ["skip_ae"]
blocks = [[3]]
categories = ["weave-6"]
settings = { size = 64 }
"""


def rows_of(out):
    return list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8").splitlines()))


def untimed(out):
    return [{key: value for key, value in row.items() if not key.startswith(TIMED)} for row in rows_of(out)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A benchmark with three cells, one of which fails: its folder, file, exit code, and output."""
    root = tmp_path_factory.mktemp("bench")
    spec = root / "spec.toml"
    spec.write_text('data = ["synthetic:weave:6"]\n' + TINY + FAILING, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "makel", "bench", str(spec), "--out", str(root / "out"), "--workers", "1"],
        capture_output=True,
        text=True,
        check=False,
    )
    return root / "out", spec, done


def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(finished):
    out, _, done = finished
    assert done.returncode == 7, done.stderr
    rows = rows_of(out)
    assert [(row["method"], row["seed"], row["status"]) for row in rows] == [
        ("anogan", "0", "done"),
        ("anogan", "1", "done"),
        ("skip_ae", "0", "failed"),
    ]
    assert rows[2]["error"].startswith("UsageError: size 64 x 64 px with blocks (3,) gives a finest level of 4 x 4")
    assert done.stderr.splitlines()[-1] == "makel: 1 cell failed: mend the cause and run again with --retry"
    assert "UsageError: size 64" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("[1/3")
    assert lines[-3:] == [
        "cells      3 measured now, 0 before, 1 failed",
        f"results    {out / 'results.csv'}",
        f"tables     {out / 'tables.html'}",
    ]


def test_every_row_says_what_it_cost_and_where_it_comes_from(finished):
    for row in rows_of(finished[0])[:2]:
        for column in ("seconds_cell", "seconds_training", "latency_p50_ms", "peak_memory_mb", "model_mb"):
            assert float(row[column]) > 0
        assert float(row["seconds_cell"]) > float(row["seconds_total"])
        assert row["makel"] == makel.__version__
        assert "torch" in row["versions"]
        assert row["machine"].endswith("fit on cpu, inspect on cpu, threads 1")


def test_the_tables_and_figures_are_written_and_nothing_else_stays(finished):
    out, _, _ = finished
    page, text = (out / "tables.html").read_text(encoding="utf-8"), (out / "tables.md").read_text(encoding="utf-8")
    for written in (page, text):
        assert "weave-6" in written
        assert "UsageError: size 64" in written
        assert "Table 4" in written
        assert "7025" in written
    assert "http-equiv" in page
    assert "<script" not in page
    assert (out / "figures" / "figure4-weave_6.svg").read_text(encoding="utf-8").count("<image") == 4
    assert sorted(path.name for path in out.iterdir()) == [
        ".lock", "cells", "clock", "data", "figures", "models", "results.csv", "tables.html", "tables.md",
    ]  # fmt: skip


def test_a_cell_is_what_fit_and_evaluate_give(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("makel.evaluation.protocol.LATENCY_CALLS", 1)  # time is not what is compared
    out, _, _ = finished
    dataset = load(out / "data" / "weave-6")
    settings = {"size": 32, "width": 8, "updates": 1, "search_steps": 1}
    makel.fit(dataset, tmp_path / "model", method="anogan", settings=settings, seed=1, device="cpu")
    said = evaluate(makel.Inspector.load(tmp_path / "model", threads=1), dataset.test).to_json()
    row = rows_of(out)[1]
    for name in ("image_auroc", "pixel_auroc", "pixel_ap", "aupro_30"):
        assert float(row[name]) == pytest.approx(said[name], abs=2e-3)  # here with other threads


def test_what_is_there_is_not_measured_again_but_failures_are_when_asked(finished, capsys):
    out, spec, _ = finished
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    table = (out / "results.csv").read_bytes()
    assert run(["bench", str(spec), "--out", str(out)]) == 7
    assert "cells      0 measured now, 3 before, 1 failed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == before
    assert (out / "results.csv").read_bytes() == table
    assert run(["bench", str(spec), "--out", str(out), "--retry", "--json"]) == 7
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(result["status"], result["cell"]["variant"]["method"]) for result in said] == [("failed", "skip_ae")]
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert len(changed) == 1


@pytest.mark.timeout(600)
def test_a_run_killed_ten_times_ends_with_the_same_results(tmp_path):
    for name in ("weave", "brushed"):
        product = {"weave": "weave", "brushed": "brushed_metal"}[name]
        synthetic.write(tmp_path / "data" / name, product=product, n_fit=6, n_good=2, n_defect=3, size_px=64)
    spec = tmp_path / "spec.toml"
    spec.write_text('data = ["data"]\n' + TINY.replace("[0, 1]", "[0, 1, 2]"), encoding="utf-8")

    def start(out, workers):
        command = [sys.executable, "-m", "makel", "bench", str(spec), "--out", str(out), "--workers", str(workers)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    began = time.monotonic()
    with start(undisturbed, 1) as process:
        moments_s = [time.monotonic() - began for line in process.stdout if line.startswith("[")]
    assert process.returncode == 0
    assert len(moments_s) == 6
    a_cell_s = (moments_s[-1] - moments_s[0]) / 5
    moment = random.Random(0)
    for turn in range(10):
        with start(killed, 1 + turn % 2) as process:
            try:  # from before the first process is up to when the first cells are done
                process.wait(timeout=moment.uniform(0.1, 0.8) * (moments_s[0] + a_cell_s))
            except subprocess.TimeoutExpired:
                process.kill()
        assert process.returncode in (0, -signal.SIGKILL)
        for result in killed.glob("cells/*.json"):
            assert json.loads(result.read_text(encoding="utf-8"))["status"] == "done"  # whole, or not there
    done = run(["bench", str(spec), "--out", str(killed), "--quiet"])
    assert done == 0
    assert untimed(killed) == untimed(undisturbed)
    assert not (killed / "work").exists()
    assert not (killed / "features").exists()


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_ray_gives_the_same_results(finished, tmp_path):
    out, spec, _ = finished
    command = [sys.executable, "-m", "makel", "bench", str(spec), "--out", str(tmp_path / "out"), "--engine", "ray"]
    done = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    for theirs, ours in zip(untimed(tmp_path / "out"), untimed(out), strict=True):
        assert theirs == ours


def test_the_help_is_quick_and_needs_no_torch(capsys):
    code = "import sys; sys.modules['torch'] = None; from makel.cli import run; sys.exit(run(['bench', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--engine" in done.stdout


def test_a_wrong_file_is_one_line_on_stderr(tmp_path, capsys):
    assert run(["bench", str(tmp_path / "none.toml"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"makel: {tmp_path / 'none.toml'} cannot be read: No such file or directory\n"
    assert not (tmp_path / "out").exists()
