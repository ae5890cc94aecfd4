"""What bridges an outage of the record: nothing is lost, nothing comes twice, and the order stays."""

import os
import re
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from makel.errors import BrokenRecordError, StoreError, UsageError
from makel.station.decisions import canonical
from makel.station.journal import Journal, Recorder, _header, _sealed
from makel.station.store import Store
from makel.types import Region
from record import DECISION, decision, script

SMALL = 30_000  # bytes: some forty decisions


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


@pytest.fixture
def journal(path):
    opened = Journal(path, SMALL)
    yield opened
    opened.close()


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store.sqlite", timeout_s=0.02) as opened:
        yield opened


@contextmanager
def locked(store):
    """The record as another program leaves it that holds it locked."""
    other = sqlite3.connect(store.name, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.close()


@contextmanager
def recorder(store, journal, n_arriving=0):
    """A recorder, and an event for when as many decisions as given have come from the journal into the record."""
    seen, all_there = [], threading.Event()

    def arrived(found):
        seen.extend(found)
        if len(seen) >= n_arriving:
            all_there.set()

    with Recorder(store, journal, retry_s=0.01, arrived=arrived) as opened:
        yield opened, seen, all_there


def wait_for_the_end_of(recorder):
    """Until nothing waits any more: also the last step, emptying the journal, is done then."""
    while recorder.outage is not None:
        recorder._closing.wait(0.005)


def fill(add, path):
    """Call `add` with 0, 1, ... until the journal is full; gives how many times it was not."""
    for n_accepted in range(1000):
        try:
            add(n_accepted)
        except StoreError as error:
            said = str(error)
            break
    assert re.fullmatch(rf"{path} is full: \d+ decisions wait in it for the record to come back", said)
    return n_accepted


def names(found):
    return [item.decision.name for item in found]


def test_what_was_added_is_there_after_opening_again(path):
    journal = Journal(path, SMALL)
    assert len(journal) == 0
    journal.add([decision(0), decision(1)])
    journal.add([decision(2)])
    journal.close()
    journal = Journal(path, SMALL)
    assert journal.waiting() == [decision(0), decision(1), decision(2)]
    assert journal.waiting(1, 1) == [decision(1)]
    journal.add([decision(3)])
    journal.clear()
    assert journal.waiting() == []
    journal.add([decision(4)])
    journal.close()
    journal = Journal(path)
    assert journal.waiting() == [decision(4)]  # and none of the longer text that stood there before
    journal.close()


def test_it_has_its_size_from_the_start_and_keeps_to_it(path, journal):
    assert path.stat().st_size == SMALL
    n_accepted = fill(lambda index: journal.add([decision(index), decision(index)]), path)
    assert len(journal) == 2 * n_accepted > 30
    assert path.stat().st_size == SMALL
    journal.clear()
    journal.add([decision(0)])


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_crash_cut_off_does_not_count(path, journal, cut):
    journal.add([decision(0)])
    end = journal._end
    journal.add([decision(1)])
    journal.close()
    content = bytearray(path.read_bytes())
    content[end + cut :] = bytes(len(content) - end - cut)
    path.write_bytes(content)
    journal = Journal(path, SMALL)
    assert journal.waiting() == [decision(0)]
    journal.add([decision(2)])
    assert journal.waiting() == [decision(0), decision(2)]
    journal.close()


@pytest.mark.parametrize("cut", range(1, 1300, 97))
def test_a_group_that_a_crash_cut_off_is_no_damage(path, journal, cut):
    journal.add([decision(0)])
    journal.clear()
    journal.add([decision(index) for index in range(3)])
    journal.close()
    old = path.read_bytes()
    journal = Journal(path, SMALL)
    journal.clear()  # what was there stays behind the new first line
    journal.add([decision(7)])
    end = journal._end
    journal.add([decision(8), decision(9)])
    journal.close()
    path.write_bytes(path.read_bytes()[: end + cut] + old[end + cut :])
    journal = Journal(path, SMALL)
    assert journal.waiting()[0] == decision(7)
    journal.add([decision(1)])
    journal.close()
    journal = Journal(path, SMALL)
    assert journal.waiting()[-1] == decision(1)
    journal.close()


@pytest.fixture
def ten(path, journal):
    """A journal with ten acknowledged decisions: its bytes, and where they end."""
    for index in range(8):
        journal.add([decision(index)])
    journal.add([decision(8), decision(9)])
    journal.close()
    return path.read_bytes(), journal._end


def damaged(path, content, said=r"is damaged at byte \d+: of \d+ decisions in it \d can be read"):
    """That it is found: nothing is read from it, and it stays as it is."""
    path.write_bytes(content)
    with pytest.raises(BrokenRecordError, match=said):
        Journal(path, SMALL)
    assert path.read_bytes() == content


def test_a_byte_that_changed_anywhere_loses_nothing_in_silence(path, ten):
    content, end = ten
    first = content.index(b"\n") + 1
    mark = content.rindex(b"\n", 0, end - 1) + 1
    for at in range(first, mark, 97):
        for bit in (0, 2, 7):
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            damaged(path, bytes(changed))
    for at in (*range(first - 17, first), first - 40, 3):  # its first line
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StoreError, match="is no journal of this makel or is damaged"):
            Journal(path, SMALL)
    for at in range(mark, end):  # the last mark itself: it holds no decision
        changed = bytearray(content)
        changed[at] ^= 4
        path.write_bytes(changed)
        journal = Journal(path, SMALL)
        assert len(journal) == 10
        journal.close()


def test_line_ends_lost_lines_and_a_cut_file_are_damage_too(path, ten):
    content, end = ten
    second = content.index(b"\n", content.index(b"end 1\n") + 10) + 1
    damaged(path, content[:second] + content[second + 700 :] + bytes(700))  # lines that are gone
    damaged(path, content[:second] + b"\n" + content[second:-1])  # one that was put in
    damaged(path, content[:second] + bytes(4096 - 512) + content[second + 4096 - 512 :])  # a block of the disk
    damaged(path, content[:second], "is damaged at byte .*bytes are left")
    damaged(path, content[: end // 2], "is damaged at byte .*bytes are left")


def test_a_station_stops_at_a_damaged_journal(tmp_path):
    from makel.station.station import Station

    with Station.open(tmp_path / "station"):
        pass
    path = tmp_path / "station" / "journal"
    journal = Journal(path)
    journal.add([decision(0)])
    journal.add([decision(1)])
    journal.close()
    content = path.read_bytes().replace(b'"screw"', b'"nut"  ', 1)
    path.write_bytes(content)
    with pytest.raises(BrokenRecordError, match=r"journal is damaged at byte \d+: of 2 decisions in it 0 can be read"):
        Station.open(tmp_path / "station")
    assert path.read_bytes() == content
    with Store.open(tmp_path / "station" / "store.sqlite") as store:
        assert store.count() == 0


def test_a_journal_of_the_version_before_is_read(path):
    lines = (_sealed("a" * 32, index, canonical(decision(index).to_json()).encode()) for index in range(3))
    content = _header("makel-journal-1", "a" * 32) + b"".join(lines)
    path.write_bytes(content.ljust(SMALL, b"\0"))
    journal = Journal(path, 2 * SMALL)
    assert journal.waiting() == [decision(index) for index in range(3)]
    journal.add([decision(3)])
    journal.close()
    journal = Journal(path)
    assert len(journal) == 4
    journal.clear()
    journal.close()
    assert path.read_bytes().startswith(b"makel-journal-2 ")


def test_what_was_added_is_flushed_before_anybody_is_told(path, journal, monkeypatch):
    on_disk, fsync = [], os.fsync

    def flushed(file):
        fsync(file)
        on_disk.append(path.read_bytes())

    monkeypatch.setattr(os, "fsync", flushed)
    journal.add([decision(0)])
    assert b'"2026-11-25T14:00:00.000000+00:00"' in on_disk[-1]
    journal.clear()
    assert on_disk[-1].startswith(_header("makel-journal-2", journal._generation, str(SMALL)))


def test_a_second_process_is_kept_out(path, journal):
    with pytest.raises(StoreError, match="is in use by another makel: one process at a time"):
        Journal(path, SMALL)


def test_what_is_no_journal_is_left_alone(path):
    path.write_bytes(b"notes of somebody")
    with pytest.raises(StoreError, match="is no journal of this makel or is damaged: move it away"):
        Journal(path, SMALL)
    assert path.read_bytes().startswith(b"notes of somebody")
    with pytest.raises(StoreError, match="cannot be opened: "):
        Journal(path.parent, SMALL)


def test_a_full_disk_does_not_stop_it(small_disk):
    journal = Journal(small_disk / "journal", SMALL)
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "other").write_bytes(bytes(3 * 10**6))
    journal.add([decision(0)])
    journal.close()
    with pytest.raises(StoreError, match=r"needs 0 MB of disk: .* cannot be written: No space left"):
        Journal(small_disk / "second", SMALL)


def test_while_all_is_well_the_journal_stays_empty(store, journal):
    with recorder(store, journal) as (opened, _, _):
        assert opened.append(decision(0)).number == 1
        assert [item.number for item in opened.append_all([decision(1), decision(2)])] == [2, 3]
        assert opened.outage is None
    assert len(journal) == 0


def test_an_outage_is_bridged_in_order(store, journal):
    with recorder(store, journal, 5) as (opened, seen, all_there):
        opened.append(decision(0))
        with locked(store):
            waiting = [opened.append(decision(index)) for index in range(1, 6)]
            assert {(item.number, item.hash) for item in waiting} == {(0, "")}
            outage = opened.outage
            assert outage.waiting == 5
            assert "another program holds the record locked" in outage.reason
        assert all_there.wait(10)
        wait_for_the_end_of(opened)
        assert opened.append(decision(6)).number == 7
    assert [item.number for item in seen] == [2, 3, 4, 5, 6]
    assert [item.decision for item in store.find()][::-1] == [decision(index) for index in range(7)]
    assert store.verify() is None


def test_many_threads_through_an_outage_lose_and_double_nothing(store, journal, tmp_path):
    with recorder(store, journal) as (opened, _, _), ThreadPoolExecutor(4) as threads:
        with locked(store):
            first = list(threads.map(lambda index: opened.append(decision(index)), range(20)))
        rest = list(threads.map(lambda index: opened.append(decision(index)), range(20, 40)))
        wait_for_the_end_of(opened)
    assert {item.number for item in first} == {0}
    assert {item.decision for item in store.find()} == {decision(index) for index in range(40)}
    assert store.count() == len(first) + len(rest)
    assert store.verify() is None


def test_what_neither_can_take_is_not_accepted(store, journal):
    with recorder(store, journal) as (opened, _, _), locked(store):
        n_accepted = fill(lambda index: opened.append(decision(index)), journal.path)
        assert opened.outage.waiting == n_accepted > 30


def test_what_cannot_be_written_down_harms_nothing(store, journal):
    odd = replace(DECISION, regions=(Region((0, 0, 1, 1), 1, float("nan")),))
    with recorder(store, journal) as (opened, _, _):
        with pytest.raises(UsageError, match="this decision cannot be recorded: "):
            opened.append(odd)
        with locked(store):
            opened.append(decision(0))
            with pytest.raises(UsageError, match="this decision cannot be recorded: "):
                opened.append(odd)
        wait_for_the_end_of(opened)
    assert store.count() == 1


def test_what_waits_from_an_earlier_run_goes_in_once(store, journal):
    journal.add([decision(0), decision(1), decision(2)])
    store.append_all([decision(0), decision(1)])  # the earlier run died between the record and emptying the journal
    with recorder(store, journal, 3) as (opened, seen, all_there):
        assert all_there.wait(10)
        wait_for_the_end_of(opened)
    assert [item.number for item in seen] == [1, 2, 3]
    assert store.count() == 3


def test_a_listener_that_fails_is_said_and_stops_nothing(store, journal, capsys):
    def broken(found):
        raise RuntimeError("no such broker")

    journal.add([decision(0)])
    with Recorder(store, journal, retry_s=0.01, arrived=broken) as opened:
        wait_for_the_end_of(opened)
        assert opened.append(decision(1)).number == 2
    assert "no such broker" in capsys.readouterr().err  # what Python does with a log nobody configured


_WRITER = """
import sys
from record import decision
from dataclasses import replace
from makel.station.journal import Journal, Recorder
from makel.station.store import Store
store = Store.open(sys.argv[1], create=False, timeout_s=0.01)
recorder = Recorder(store, Journal(sys.argv[2], 10**6), retry_s=0.01)
for index in range(3000):
    recorder.append(decision(index))
    print(index, flush=True)
"""


@pytest.mark.parametrize("after", [40, 90])
def test_a_process_killed_in_an_outage_or_behind_it_loses_and_doubles_nothing(store, path, after):
    with script(_WRITER, store.name, path) as process:
        told = [int(process.stdout.readline()) for _ in range(20)]
        with locked(store):
            told += [int(process.stdout.readline()) for _ in range(40)]
        told += [int(process.stdout.readline()) for _ in range(after - 40)]
        process.kill()
        told += [int(line) for line in process.stdout if line.endswith("\n")]
        process.wait()
    with Recorder(store, Journal(path, 10**6), retry_s=0.01) as recorder:
        wait_for_the_end_of(recorder)
    found = [item.decision for item in store.find(limit=4000)][::-1]
    assert found[: len(told)] == [decision(index) for index in told]
    assert len(told) <= len(found) <= len(told) + 1
    assert store.verify() is None


def test_a_server_that_stops_is_bridged(postgresql, journal):
    with Store.open(postgresql.database(), timeout_s=2) as store:
        with recorder(store, journal, 3) as (opened, _, all_there):
            opened.append(decision(0))
            postgresql.stop()
            try:
                assert [item.number for item in opened.append_all([decision(1), decision(2)])] == [0, 0]
                assert opened.append(replace(DECISION, name="third")).number == 0
            finally:
                postgresql.start()
            assert all_there.wait(20)
        assert names(store.find(limit=1)) == ["third"]
        assert store.count() == 4
        assert store.verify() is None
