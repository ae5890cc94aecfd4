"""What the record knows of files that arrived, and of what came after a number."""

from dataclasses import replace

import pytest

from makel.station.journal import Journal, Recorder
from makel.station.store import Store
from record import DECISION
from waiting import until


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "store.sqlite") as opened:
        yield opened


def test_a_decision_is_found_by_the_arrival_of_its_file(store):
    odd = "part\udc80\0.png@7"  # a name that is no text, as file systems hold them
    store.append_all([replace(DECISION, arrival=each) for each in ("", "a.png@5", "a.png@6", "a.png@5", odd)])
    assert [one.number for one in store.arrived("a.png@5")] == [2, 4]
    assert [one.number for one in store.arrived(odd)] == [5]
    assert store.arrived("a.png") == store.arrived("") == []


def test_what_came_after_a_number_comes_oldest_first(store):
    store.append_all([DECISION] * 5)
    store.answer(2, "good", "eva")  # an entry of the chain, but no decision
    assert [one.number for one in store.after(2)] == [3, 4, 5]
    assert [one.number for one in store.after(0, limit=2)] == [1, 2]
    assert store.after(1, limit=1)[0].answer == "good"
    assert store.after(5) == []


def test_a_decision_that_waits_for_the_record_is_known_by_its_arrival(store, tmp_path):
    decision = replace(DECISION, arrival="a.png@5")
    with Recorder(store, Journal(tmp_path / "journal", 2**16), retry_s=0.01) as recorder:
        (tmp_path / "store.sqlite").rename(tmp_path / "away")
        assert recorder.append(decision).number == 0
        assert [(one.number, one.decision) for one in recorder.arrived("a.png@5")] == [(0, decision)]
        assert recorder.arrived("b.png@5") == []
        (tmp_path / "away").rename(tmp_path / "store.sqlite")
        until(lambda: recorder.outage is None)
        assert recorder.arrived("a.png@5") == []
    assert [one.number for one in store.arrived("a.png@5")] == [1]
