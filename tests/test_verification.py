"""Whatever is changed in a record past the store is found, where it begins."""

import json
import tracemalloc

import pytest

from makel.errors import StoreError
from makel.station.decisions import START, Broken, Head, canonical, link
from makel.station.store import Store
from record import DECISION, decision, sql


@pytest.fixture
def where(tmp_path):
    """One kind of database is enough: what is compared is what came out of it."""
    return tmp_path / "store.sqlite"


@pytest.fixture
def filled(where):
    """A record of nine entries: six decisions, two answers, one change."""
    with Store.open(where) as store:
        store.append_all([decision(index) for index in range(4)])  # 1 to 4
        store.answer(2, "good", "eva")  # 5
        store.audit("eva", "engineer", "activate", {"version": 2})  # 6
        store.append(decision(4))  # 7
        store.answer(2, "defect", "ines")  # 8
        store.append(decision(5))  # 9
        assert store.verify() is None
        yield store


CONTENT = "its content, its hash or its place in the chain was changed"


@pytest.mark.parametrize(
    ("change", "entry", "why"),
    [
        ("body = replace(body, 'screw', 'screws')", 3, CONTENT),
        ("body = replace(body, '\"score\":', '\"score\":1')", 3, CONTENT),
        ("body = ''", 3, CONTENT),
        ("body = 'ü'", 3, "its content was changed"),
        ("hash = replace(hash, substr(hash, 1, 8), '00000000')", 3, CONTENT),
        ("kind = 'audit'", 3, "its column 'kind' was changed: the hashed content says otherwise"),
        ("number = 17", 3, "its column 'number' was changed: the hashed content says otherwise"),
        ("number = NULL", 3, "its column 'number' was changed: the hashed content says otherwise"),
        (
            "at = '2026-11-25T15:00:00.000000+00:00'",
            3,
            "its column 'at' was changed: the hashed content says otherwise",
        ),
        ("model = 'nut'", 3, "its column 'model' was changed: the hashed content says otherwise"),
        ("verdict = 'pass'", 3, "its column 'verdict' was changed: the hashed content says otherwise"),
        ("name = NULL", 3, "its column 'name' was changed: the hashed content says otherwise"),
        ("arrival = 'x'", 3, "its column 'arrival' was changed: the hashed content says otherwise"),
        ("answer = 'good'", 8, "its column 'answer' was changed: the hashed content says otherwise"),
        ("number = 3", 8, "its column 'number' was changed: the hashed content says otherwise"),
        ("entry = 17", 9, "missing, with all after it: the record had 9 entries"),
        ("entry = 0", 1, "missing"),
    ],
)
def test_a_changed_field(filled, where, change, entry, why):
    sql(where, f"UPDATE entries SET {change} WHERE entry = {entry}")
    assert filled.verify() == Broken(entry, why)


@pytest.mark.parametrize(
    ("which", "entry", "why"),
    [
        ("entry = 4", 4, "missing"),
        ("entry = 1", 1, "missing"),
        ("entry IN (3, 4, 5)", 3, "missing, with the 2 after it"),
        ("entry = 9", 9, "missing, with all after it: the record had 9 entries"),
        ("entry > 6", 7, "missing, with all after it: the record had 9 entries"),
        ("entry > 0", 1, "missing, with all after it: the record had 9 entries"),
    ],
)
def test_a_removed_entry(filled, where, which, entry, why):
    sql(where, f"DELETE FROM entries WHERE {which}")
    assert filled.verify() == Broken(entry, why)


def test_a_removed_entry_whose_gap_was_closed(filled, where):
    sql(
        where,
        "DELETE FROM entries WHERE entry = 6",
        *(f"UPDATE entries SET entry = {n - 1} WHERE entry = {n}" for n in (7, 8, 9)),
    )
    assert filled.verify() == Broken(6, CONTENT)


def test_an_inserted_entry(filled, where):
    copied = "hash, body, kind, 99, at, model, verdict, name, arrival, answer FROM entries WHERE entry = 7"
    columns = "(entry, hash, body, kind, number, at, model, verdict, name, arrival, answer)"
    sql(where, f"INSERT INTO entries {columns} SELECT 10, {copied}")
    assert filled.verify() == Broken(10, "added behind the end of the record")
    sql(where, "DELETE FROM entries WHERE entry = 10", f"INSERT INTO entries {columns} SELECT -1, {copied}")
    assert filled.verify() == Broken(1, "an entry stands before the first")


def test_two_entries_that_changed_places(filled, where):
    sql(where, *(f"UPDATE entries SET entry = {to} WHERE entry = {at}" for at, to in ((2, 20), (3, 2), (20, 3))))
    assert filled.verify() == Broken(2, CONTENT)


def test_a_changed_or_emptied_head(filled, where):
    sql(where, "UPDATE head SET number = 7")
    assert filled.verify() == Broken(9, f"the head says {filled.head().hash} and 7 decisions, the entries do not")
    sql(where, "DELETE FROM head")
    emptied = "the table 'head', which says where the record ends,"
    assert filled.verify() == Broken(None, f"{emptied} was emptied")
    with pytest.raises(StoreError, match="has 0 rows where it had one: bring back a copy"):
        filled.append(decision(6))
    two = "INSERT INTO head (one, entry, number, hash) VALUES (1, 9, 6, 'x'), (2, 9, 6, 'x')"
    sql(where, two)
    assert filled.verify() == Broken(None, f"{emptied} has 2 rows where it had one")
    sql(where, "DELETE FROM head WHERE one = 2", "UPDATE head SET entry = 'nine'")
    assert filled.verify() == Broken(None, f"{emptied} was changed: it says nine:x")
    sql(where, "DROP TABLE head")
    assert filled.verify() == Broken(None, "the table 'head' was removed")


def test_a_tail_cut_off_with_its_head_shows_only_beside_a_noted_head(filled, where):
    noted = filled.head()
    ((cut,),) = sql(where, "SELECT hash FROM entries WHERE entry = 8")
    sql(where, "DELETE FROM entries WHERE entry = 9", f"UPDATE head SET entry = 8, number = 5, hash = '{cut}'")
    assert filled.verify() is None
    assert filled.verify(noted) == Broken(9, "missing: the record had 9 entries when its head was noted")
    filled.append(decision(6))
    assert filled.verify(noted) == Broken(
        9, f"its hash is {filled.head().hash}, but was {noted.hash} when it was noted"
    )


def test_a_record_written_anew_shows_only_beside_a_noted_head(filled, where):
    noted = filled.head()
    before, statements = START, []
    for entry, body in sql(where, "SELECT entry, body FROM entries ORDER BY entry"):
        content = json.loads(body)
        if entry == 3:
            content["score"] = 0.0
        before = link(before, canonical(content))
        statements.append(f"UPDATE entries SET body = '{canonical(content)}', hash = '{before}' WHERE entry = {entry}")
    sql(where, *statements, f"UPDATE head SET hash = '{before}'")
    assert filled.verify() is None
    assert filled.verify(noted) == Broken(9, f"its hash is {before}, but was {noted.hash} when it was noted")


def test_a_note_from_before_holds_while_the_record_grows(filled):
    noted = filled.head()
    filled.append_all([DECISION] * 3)
    assert filled.verify(noted) is None
    assert filled.verify(Head(0, 0, START)) is None


def test_decision_numbers_are_part_of_the_chain(filled, where):
    """Also whoever writes the chain anew cannot leave out a decision: the numbers say so."""
    head = Head(8, 5, sql(where, "SELECT hash FROM entries WHERE entry = 8")[0][0])
    body = canonical({**DECISION.to_json(), "kind": "decision", "entry": 9, "number": 7})
    end = link(head.hash, body)
    sql(
        where,
        f"UPDATE entries SET body = '{body}', hash = '{end}', number = 7, at = '{DECISION.at}' WHERE entry = 9",
        f"UPDATE head SET hash = '{end}', number = 7",
    )
    assert filled.verify() == Broken(9, "decision 7 stands where decision 6 should")


def test_an_empty_record_holds(where):
    with Store.open(where) as store:
        assert store.verify() is None
        assert store.head() == Head(0, 0, START)
        assert store.verify(Head(3, 3, "a" * 64)) == Broken(
            1, "missing: the record had 3 entries when its head was noted"
        )


def test_memory_does_not_grow_with_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr("makel.station.verification._PAGE", 100)
    seen = []
    with Store.open(tmp_path / "store.sqlite") as store:
        store.append_all([DECISION] * 200)
        peaks = [_peak(lambda: store.verify(progress=lambda *at: seen.append(at)))]
        store.append_all([DECISION] * 600)
        peaks.append(_peak(store.verify))
    assert seen == [(100, 200), (200, 200)]
    assert peaks[0] > 1e5  # a page
    assert peaks[1] < 2 * peaks[0]  # of four times as much


def _peak(call):
    tracemalloc.start()
    assert call() is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
