"""A watched folder: every picture is decided, each exactly once."""

import os
import threading
import time
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny_model
from makel.errors import UsageError
from makel.station.decisions import Decision, now
from makel.station.inbox import Inbox
from makel.station.station import Station
from makel.station.store import Filter, Store
from makel.station.watch import Watch
from waiting import until

GIVE_UP_S = 0.4


def picture(grey, number=0):
    """The bytes of a PNG, others for every number. Mid grey, 128, is good to the tiny model; black is not."""
    pixels = np.full((8, 8, 3), grey, np.uint8)
    pixels[:4, :4, 0] += np.array([number >> bit & 1 for bit in range(16)], np.uint8).reshape(4, 4)
    return cv2.imencode(".png", pixels)[1].tobytes()


def drop(folder, name, data, mtime=None):
    """Renamed into place, as a camera's software ought to."""
    partial = folder / f"{name}.part"
    partial.write_bytes(data)
    if mtime is not None:
        os.utime(partial, (mtime, mtime))
    partial.replace(folder / name)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "parts")


class Decided:
    """What the station told of, to wait for it."""

    def __init__(self, station):
        self.recorded = []
        self._changed = threading.Condition()
        station.listen(self._heard)

    def _heard(self, recorded):
        with self._changed:
            self.recorded.append(recorded)
            self._changed.notify_all()

    def wait(self, count):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.recorded) >= count, 20), self.recorded
            assert len(self.recorded) == count
            return [one.decision for one in self.recorded]


@pytest.fixture
def station(tmp_path, model):
    with Station.open(tmp_path / "station") as opened:
        opened.add("parts", model, by="test", role="engineer")
        yield opened


@pytest.fixture
def decided(station):
    return Decided(station)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "arriving"
    path.mkdir()
    return path


@pytest.fixture
def watch(folder, station):
    """Starts watches, and stops them at the end."""
    running = []

    def start(**changes):
        settings = {"settle_s": 0.0, "give_up_s": GIVE_UP_S, "poll_s": 0.005, "model": "parts"} | changes
        running.append(Watch(folder, changes.pop("station", station), **settings))
        running[-1].start()
        return running[-1]

    yield start
    for each in running:
        each.stop()


def test_what_arrives_is_decided_in_the_order_it_was_written(folder, watch, decided):
    drop(folder, "late.png", picture(0), mtime=2_000_000_000)
    drop(folder, "early.png", picture(128), mtime=1_000_000_000)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_bytes(picture(128))
    (folder / "folder.png").mkdir()
    (folder / "link.png").symlink_to(folder / "early.png")
    watch()
    first, second = decided.wait(2)
    assert (first.name, first.verdict, first.source) == ("early.png", "pass", "watch")
    assert first.arrival == "early.png@1000000000000000000"
    assert (second.name, second.verdict, second.reason) == ("late.png", "reject", "")


def test_a_file_is_decided_once_over_restarts(folder, watch, decided):
    drop(folder, "a.png", picture(128))
    first = watch()
    decided.wait(1)
    first.stop()
    watch()
    drop(folder, "b.png", picture(128, number=1))
    assert [part.name for part in decided.wait(2)] == ["a.png", "b.png"]


def test_another_picture_under_the_same_name_is_another_part(folder, watch, decided):
    drop(folder, "current.png", picture(128), mtime=1_000_000_000)
    watch()
    decided.wait(1)
    drop(folder, "current.png", picture(0), mtime=1_000_000_001)
    decided.wait(2)
    drop(folder, "current.png", picture(0), mtime=1_000_000_002)  # the lamp is out: the same bytes, and yet a part
    parts = decided.wait(3)
    assert [part.verdict for part in parts] == ["pass", "reject", "reject"]
    assert len({part.arrival for part in parts}) == 3


def test_other_content_with_the_same_time_is_another_part_after_a_restart(folder, watch, decided):
    drop(folder, "a.png", picture(128), mtime=1_000_000_000)  # a file system that counts in seconds
    first = watch()
    decided.wait(1)
    first.stop()
    drop(folder, "a.png", picture(0), mtime=1_000_000_000)
    watch()
    assert [part.verdict for part in decided.wait(2)] == ["pass", "reject"]


def test_the_same_delivery_sent_again_is_not_decided_again(folder, watch, decided, tmp_path):
    done = tmp_path / "done"
    watch(done=done)
    drop(folder, "a.png", picture(128), mtime=1_000_000_000)
    decided.wait(1)
    until(lambda: not (folder / "a.png").exists())
    drop(folder, "a.png", picture(128), mtime=1_000_000_000)
    until(lambda: not (folder / "a.png").exists())
    drop(folder, "b.png", picture(128), mtime=1_000_000_000)
    assert [part.name for part in decided.wait(2)] == ["a.png", "b.png"]
    until(lambda: not (folder / "b.png").exists())
    assert sorted(path.name for path in (done / "pass").iterdir()) == ["000001_a.png", "000002_b.png"]


def test_a_file_is_not_read_before_it_stands_still(folder, watch, decided):
    whole = picture(128)
    watch(settle_s=0.1, give_up_s=10)
    with (folder / "a.png").open("wb", buffering=0) as file:
        file.write(whole)
        for extra in range(5):  # it decodes from the start; only its growth tells that it is not done
            time.sleep(0.04)
            file.write(bytes([extra]))
    (part,) = decided.wait(1)
    assert part.image_sha256 == sha256(whole + bytes(range(5))).hexdigest()


def test_a_half_written_file_is_waited_for(folder, watch, decided):
    whole = picture(128)
    (folder / "a.png").write_bytes(whole[:-20])
    watch(give_up_s=20)
    drop(folder, "b.png", picture(128, number=1))  # is not held up by it
    assert [part.name for part in decided.wait(1)] == ["b.png"]
    with (folder / "a.png").open("ab") as file:
        file.write(whole[-20:])
    assert [(part.name, part.reason) for part in decided.wait(2)] == [("b.png", ""), ("a.png", "")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (picture(128)[:-20], "a.png is cut short: it ends before its IEND chunk; copy it again (0.4 s after it came)"),
        (b"", "a.png is empty, 0 bytes: send it again (0.4 s after it came)"),
    ],
)
def test_a_file_that_never_becomes_whole_is_a_reject_that_says_so(folder, watch, decided, tmp_path, content, reason):
    (folder / "a.png").write_bytes(content)
    running = watch(done=tmp_path / "done")
    (part,) = decided.wait(1)
    assert (part.verdict, part.reason, part.model_id, part.score) == ("reject", reason, "", None)
    until(lambda: (tmp_path / "done" / "reject" / "000001_a.png").exists())
    running.stop()
    assert (tmp_path / "done" / "reject" / "000001_a.png").read_bytes() == content


def test_a_file_still_growing_at_the_end_of_its_time_is_a_reject_and_decided_once_more_when_it_is_done(
    folder, watch, decided
):
    stop = threading.Event()

    def write():
        with (folder / "a.png").open("wb", buffering=0) as file:
            file.write(picture(128))
            while not stop.wait(0.01):
                file.write(b"x")
            file.write(b"x")  # after the decision, or there would be nothing new to decide on

    writer = threading.Thread(target=write)
    writer.start()
    watch(settle_s=0.1)
    (part,) = decided.wait(1)
    stop.set()
    writer.join()
    assert part.reason == "a.png is still being written (0.4 s after it came)"
    assert [each.reason for each in decided.wait(2)] == [part.reason, ""]


def test_a_file_that_another_took_the_name_of_is_not_moved_in_its_place(folder, tmp_path):
    inbox = Inbox(folder, done=tmp_path / "done", settle_s=0)
    drop(folder, "a.png", picture(128))
    (waiting,) = inbox.scan()
    drop(folder, "a.png", picture(0))
    decision = Decision(now(), "parts", "", "watch", "a.png", "", "reject", "x", None, None, None, (), 0)
    with Store.open(tmp_path / "store.sqlite") as store:
        inbox.finish(waiting.arrival, store.append(decision))
    assert (folder / "a.png").read_bytes() == picture(0)
    assert list((tmp_path / "done" / "reject").iterdir()) == []
    assert len(inbox.scan()) == 1


def test_while_the_folder_is_gone_the_watch_says_so_and_goes_on_when_it_is_back(folder, watch, decided):
    running = watch()
    away = folder.with_name("away")
    folder.rename(away)
    until(lambda: running.problem)
    assert running.problem == f"{folder} is not there: waiting for it"
    away.rename(folder)
    drop(folder, "a.png", picture(128))
    decided.wait(1)
    until(lambda: not running.problem)


def test_while_the_record_is_gone_files_wait_for_it(folder, watch, decided, station):
    running = watch()
    record = Path(station.store.name)
    hidden = record.with_name("hidden")
    record.rename(hidden)
    drop(folder, "a.png", picture(128))
    until(lambda: running.problem)
    assert "is gone" in running.problem
    assert decided.recorded == []
    hidden.rename(record)
    assert [part.name for part in decided.wait(1)] == ["a.png"]


def test_a_clock_that_goes_back_neither_stops_the_watch_nor_breaks_the_chain(
    folder, watch, decided, station, monkeypatch
):
    import makel.station.station as module

    times = iter(["2026-11-25T14:30:00.000001+00:00", "2026-11-25T13:00:00.000001+00:00"])
    monkeypatch.setattr(module, "now", lambda: next(times))
    watch()
    drop(folder, "a.png", picture(128), mtime=2_000_000_000)
    decided.wait(1)
    drop(folder, "b.png", picture(128), mtime=1_000_000_000)
    decided.wait(2)
    assert [(one.number, one.decision.name) for one in station.store.find(Filter(model="parts"))] == [
        (2, "b.png"),
        (1, "a.png"),
    ]
    first, second = (one.decision for one in station.store.after(0))
    assert first.at > second.at
    assert station.store.verify() is None
    assert min(first.latency_ms, second.latency_ms) >= 0  # measured, not subtracted


def test_folders_that_cannot_be_used_are_refused(folder, tmp_path):
    (tmp_path / "file").write_text("notes")
    with pytest.raises(UsageError, match="is not a folder: give the one that pictures arrive in"):
        Inbox(tmp_path / "file")
    with pytest.raises(UsageError, match="is the watched folder itself: give another one"):
        Inbox(folder, done=folder)
    if Path("/dev/shm").is_dir() and Path("/dev/shm").stat().st_dev != folder.stat().st_dev:
        with pytest.raises(UsageError, match="can be moved whole only within one drive"):
            Inbox(folder, done=Path("/dev/shm") / f"makel-{os.getpid()}")


def test_what_is_not_looked_at_is_counted_once_it_stays(folder, watch, decided, monkeypatch, tmp_path):
    monkeypatch.setattr("makel.station.inbox.OVERLOOKED_S", 0.2)
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "notes.json").write_text("{}")
    (folder / "folder").mkdir()
    (tmp_path / "elsewhere.png").write_bytes(b"\x89PNG")
    (folder / "b.png").symlink_to(tmp_path / "elsewhere.png")
    watching = watch()
    assert watching.overlooked == ""
    until(lambda: watching.overlooked)
    assert watching.overlooked == "2 files not looked at: 1 .heic, 1 link"
    (folder / "a.heic").unlink()
    (folder / "b.png").unlink()
    until(lambda: not watching.overlooked)
