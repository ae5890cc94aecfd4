"""`makel serve` as a process: started, told to stop, killed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2
import pytest

import makel.cli.extras
from conftest import DEFECT, GOOD
from makel.station.service import listen
from makel.station.store import Store

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


@contextmanager
def station(*arguments):
    """The process and a client of it."""
    command = [sys.executable, "-m", "makel", "serve", "--port", "0", "--threads", "1", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = []
            for line in process.stderr:
                said.append(line)
                if "serving on" in line:
                    break
            else:
                raise AssertionError("".join(said))
            rest = threading.Thread(target=process.stderr.read)  # a full pipe would stop the process
            rest.start()
            process.said = said
            with httpx2.Client(base_url=said[-1].split()[-1], timeout=30) as client:
                yield process, client
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            rest.join()


def post(client):
    """The answer's number; None where the connection was refused or broke off, -1 for a problem document."""
    try:
        answer = client.post("/inspect", content=DEFECT)
    except httpx2.TransportError:
        return None
    return answer.json()["number"] if answer.status_code == 200 else -1


@POSIX
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_finishes_what_it_accepted(tmp_path, models, number):
    data = tmp_path / "data"
    with (
        station(models["first"], "--data", data) as (process, client),
        ThreadPoolExecutor(4) as pool,
        client.stream("GET", "/events") as stream,
    ):
        next(stream.iter_lines())
        answers = [pool.submit(post, client) for _ in range(40)]
        assert answers[0].result() is not None
        process.send_signal(number)
        assert process.wait(30) == 0
    numbers = [answer.result() for answer in answers if answer.result()]
    with Store.open(data / "store.sqlite", create=False) as store:
        assert sorted(number for number in numbers if number > 0) == list(range(1, store.count() + 1))


@POSIX
def test_killed_it_loses_nothing_that_it_answered(tmp_path, models):
    data, answered = tmp_path / "data", []
    for _ in range(2):
        with station(models["first"], "--data", data) as (process, client), ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(post, client) for _ in range(60)]
            answers[20].result()
            process.kill()
            process.wait()
            answered += [number for answer in answers if (number := answer.result())]
    with Store.open(data / "store.sqlite", create=False) as store:
        recorded = [each.number for each in store.find(limit=1000)]
    assert len(answered) >= 40
    assert len(answered) == len(set(answered))
    assert set(answered) <= set(recorded)  # one may be recorded whose answer was on its way
    assert recorded == list(range(len(recorded), 0, -1))


def test_it_serves_under_a_name_and_again_without_naming_anything(tmp_path, models):
    data = tmp_path / "data"
    with station(f"brush={models['first']}", models["second"], "--data", data) as (_, client):
        assert [model["name"] for model in client.get("/models").json()["models"]] == ["brush", "second"]
    with station("--data", data, "--deadline-ms", 5000) as (_, client):
        assert client.post("/inspect?model=second", content=GOOD).json()["number"] == 1


def test_one_of_several_that_cannot_be_opened_keeps_none_of_the_others_away(tmp_path, models):
    deep, changed = tmp_path / "deep", tmp_path / "changed"
    for folder in (deep, changed):
        shutil.copytree(models["first"], folder)
    (deep / "model.json").write_bytes(b"[" * 200_000)
    (changed / "model.onnx").write_bytes(b"something else")
    with station(deep, models["first"], changed, "--data", tmp_path / "data") as (process, client):
        assert [model["name"] for model in client.get("/models").json()["models"]] == ["first"]
        assert client.post("/inspect", content=GOOD).json()["number"] == 1
        said = [line for line in process.said if "; the others are served" in line]
    assert len(said) == 2
    assert str(deep / "model.json") in said[0]
    assert str(changed / "model.onnx") in said[1]


def test_what_cannot_be_served_is_one_line(makel_says, tmp_path, models):
    data = tmp_path / "data"
    code, out, err = makel_says("serve", "--host", "0.0.0.0", "--data", data)
    assert (code, out) == (2, "")
    assert err.startswith("makel: --host 0.0.0.0 lets others in, and there is no token yet")
    code, _, err = makel_says("serve", tmp_path / "nothing", "--data", data)
    assert (code, err.count("\n")) == (8, 1)
    assert "does not exist" in err
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, _, err = makel_says("serve", models["first"], "--data", data, "--port", port)
    assert (code, err.count("\n")) == (2, 1)
    assert f"127.0.0.1 port {port} cannot be listened on" in err
    assert not data.exists()  # nothing was served, so nothing is left
    code, _, err = makel_says("serve", f"a/b={models['first']}", "--data", data)
    assert code == 2
    assert "'a/b' is no name for a model" in err


def test_without_the_extra_it_says_how_to_install_it(makel_says, monkeypatch):
    monkeypatch.setattr(makel.cli.extras, "find_spec", lambda _: None)
    said = "makel: makel serve needs the 'station' extra, which is not installed: pip install 'makel[station]'\n"
    assert makel_says("serve") == (2, "", said)
