"""`makel watch` as it runs on a line: killed, started again, stopped."""

import json
import signal
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

import tiny_model
from makel.station.store import Store
from test_watch import drop, picture
from waiting import until

N_FILES = 500
MAKEL = [sys.executable, "-W", "error", "-m", "makel"]


@pytest.fixture
def line(tmp_path):
    """A model, and the folder that pictures arrive in."""
    (tmp_path / "arriving").mkdir()
    return tiny_model.write(tmp_path / "parts"), tmp_path / "arriving"


class Watching:
    """A `makel watch` of its own process."""

    def __init__(self, line, data, *options):
        command = [*MAKEL, "watch", *line, "--data", data, "--settle-ms", "0", "--threads", "1", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.first = self.process.stderr.readline()

    def end(self, number):
        self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=20)
        return self.process.returncode, out, errors


def test_files_in_bursts_are_each_decided_once_over_kills(line, tmp_path):
    data, folder, done = tmp_path / "station", line[1], tmp_path / "done"
    names = [f"part {number:03}.png" for number in range(N_FILES)]
    arriving = iter(names)

    def send(count):
        for name in islice(arriving, count):
            number = int(name[5:8])
            drop(folder, name, picture(128 if number % 10 else 0, number=number))

    # Files stay for two runs, then are moved: those the record knows too, and none of them is decided again.
    for decided, options in ((10, []), (100, []), (60, ["--done", done])):
        running = Watching(line, data, *options)
        assert running.first.startswith("makel: watching "), running.first
        send(125)
        for _ in range(decided):
            running.process.stdout.readline()  # so many were told of: it is in the middle of a burst
        assert running.end(signal.SIGKILL)[0] == -signal.SIGKILL
    running = Watching(line, data, "--done", done)
    send(125)
    until(lambda: list(folder.iterdir()) == [])
    code, _, errors = running.end(signal.SIGTERM)
    assert code == 0
    assert all(line.startswith("makel: parts: ") for line in errors.splitlines())  # these parts' contrast does differ
    with Store.open(data / "store.sqlite") as store:
        found = store.after(0, limit=2 * N_FILES)
        assert store.verify() is None
    assert Counter(one.decision.name for one in found) == Counter(names)
    assert [one.number for one in found] == list(range(1, N_FILES + 1))
    assert sum(one.decision.verdict == "reject" for one in found) == N_FILES // 10
    assert all(one.decision.reason == "" for one in found)
    moved = {f"{one.number:06d}_{one.decision.name}": one.decision.verdict for one in found}
    assert {path.name: path.parent.name for path in done.rglob("*.png")} == moved


def test_what_it_prints(line, tmp_path):
    running = Watching(line, tmp_path / "station")
    assert running.first == f"makel: watching {line[1]} with parts version 1\n"
    drop(line[1], "a.png", picture(128))
    assert running.process.stdout.readline().startswith("pass    1  a.png  score 0.00")
    assert running.end(signal.SIGINT) == (0, "", "")
    running = Watching(line, tmp_path / "station", "--json")
    drop(line[1], "b.png", picture(0))
    said = json.loads(running.process.stdout.readline())
    assert (said["number"], said["name"], said["verdict"]) == (2, "b.png", "reject")
    assert running.end(signal.SIGTERM)[0] == 0


def test_one_station_folder_has_one_watch(line, tmp_path, makel_says):
    running = Watching(line, tmp_path / "station")
    code, out, said = makel_says("watch", *line, "--data", tmp_path / "station")
    assert (code, out) == (10, "")
    assert "is in use by another makel" in said
    running.end(signal.SIGTERM)


def test_what_cannot_be_watched_is_refused(line, tmp_path, makel_says):
    (tmp_path / "file").write_text("notes")
    code, _, said = makel_says("watch", line[0], tmp_path / "file", "--data", tmp_path / "station")
    assert (code, said) == (
        2,
        f"makel: {tmp_path / 'file'} is not a folder: give the one that pictures arrive in\n",
    )
    assert not (tmp_path / "station").exists()
    code, _, said = makel_says("watch", *line, "--data", tmp_path / "station", "--trigger")
    assert (code, said.count("\n")) == (2, 1)
    assert "--opcua" in said


def test_a_folder_that_is_not_there_yet_is_waited_for_and_drift_is_said(line, tmp_path):
    share = tmp_path / "share"
    done = share / "decided"  # as on a line whose share is mounted later
    running = Watching((line[0], share / "camera"), tmp_path / "station", "--done", done)
    assert {running.first, running.process.stderr.readline()} == {
        f"makel: watching {share / 'camera'} with parts version 1\n",
        f"{share / 'camera'} is not there: waiting for it\n",
    }
    assert not share.exists()
    (share / "camera").mkdir(parents=True)
    for number in range(50):  # a block of nothing but rejects
        drop(share / "camera", f"{number}.png", picture(0, number=number))
    assert running.process.stdout.readline().startswith("reject  1  ")
    assert running.process.stderr.readline() == f"{share / 'camera'}: all is well again\n"
    said = running.process.stderr.readline()
    assert said.startswith("makel: parts: ")
    assert "50 of 50 parts are rejected, and 25 % of good parts were promised" in said
    code, out, errors = running.end(signal.SIGTERM)
    assert (code, len(out.splitlines()), errors) == (0, 49, "")
    assert len(list(done.rglob("*.png"))) == 50
    running = Watching((line[0], share / "camera"), tmp_path / "station")  # it is known after a restart
    assert running.first == said
    assert running.end(signal.SIGTERM)[0] == 0
