"""Both engines, with workers that really die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from makel import scale
from makel.errors import UsageError

HERE = Path(__file__).resolve().parent


@pytest.fixture(
    params=[
        "process",
        pytest.param("ray", marks=pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")),
    ]
)
def engine(request, monkeypatch):
    # Ray's workers are children of its own daemons and know nothing of pytest's path.
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    return scale.engine(request.param)


def answer(task):
    """Its number doubled and its threads; what dies in between dies the hard way, as of too much memory."""
    number, flag = task
    if flag == "always" or (flag and not Path(flag).exists()):
        if flag != "always":
            Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number, os.environ["OMP_NUM_THREADS"]


@pytest.mark.filterwarnings("ignore:::ray")
def test_workers_that_die_are_noticed_retried_once_and_given_up(engine, tmp_path):
    tasks = [(1, ""), (2, str(tmp_path / "once")), (3, "always"), (4, "")]
    results = dict(engine(answer, tasks, workers=2, threads=3))
    assert results.keys() == set(tasks)
    lost = results.pop((3, "always"))
    assert isinstance(lost, scale.Lost)
    assert lost.reason
    assert results == {task: (2 * task[0], "3") for task in tasks if task[1] != "always"}


def test_a_lost_worker_says_how_it_ended():
    [(_, lost)] = scale.engine("process")(answer, [(1, "always")], workers=1, threads=1)
    assert "SIGKILL" in lost.reason
    assert "memory" in lost.reason


def pid_after(seconds):
    time.sleep(seconds)
    return os.getpid()


def test_one_process_serves_many_tasks_and_leaves_in_the_end():
    pids = {pid for _, pid in scale.engine("process")(pid_after, [0.0, 0.001, 0.002], workers=1, threads=1)}
    assert len(pids) == 1
    assert not alive(pids.pop())


def test_giving_up_early_ends_the_workers(tmp_path):
    outcomes = scale.engine("process")(pid_after, [0.0, 300.0], workers=2, threads=1)
    began = time.monotonic()
    next(outcomes)
    outcomes.close()
    assert time.monotonic() - began < 60


def write_pid_and_wait(path):
    Path(path).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(300)


def test_a_killed_parent_takes_its_workers_with_it(tmp_path):
    note = tmp_path / "pid"
    code = (
        "import test_scale\nfrom makel import scale\n"
        f"list(scale.engine('process')(test_scale.write_pid_and_wait, [{str(note)!r}], workers=1, threads=1))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(HERE)})
    wait_until(lambda: note.exists() and note.read_text(encoding="utf-8"))
    worker = int(note.read_text(encoding="utf-8"))
    assert alive(worker)
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(worker))


def test_an_unknown_engine_is_refused():
    with pytest.raises(UsageError, match="engine 'dask' is not known: choose one of process, ray"):
        scale.engine("dask")


def alive(pid):
    if not Path("/proc/self/stat").exists():
        pytest.skip("whether a process lives is read from /proc")
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"  # a zombie only waits for somebody to ask how it ended


def wait_until(met, seconds=60):
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until
        time.sleep(0.05)
