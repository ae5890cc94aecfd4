"""The record on SQLite and on a real PostgreSQL: one chain, whoever writes and whatever fails."""

import json
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa

from makel.errors import MissingExtraError, NotFoundError, StoreError, UsageError
from makel.station.decisions import START, canonical, link
from makel.station.store import Filter, Store
from makel.station.tables import METADATA
from record import DECISION, decision, engine_of, sql, writer


@pytest.fixture
def store(where):
    with Store.open(where, timeout_s=2) as opened:
        yield opened


def numbers(found):
    return [item.number for item in found]


def test_what_is_recorded_can_be_read(store):
    first, second = store.append(decision(0)), store.append_all([decision(1)])[0]
    assert (first.number, second.number) == (1, 2)
    assert store.get(2) == second
    assert second.decision == decision(1)
    assert store.find() == [second, first]
    assert store.count() == 2
    with pytest.raises(NotFoundError, match="has no decision number 3"):
        store.get(3)


def test_the_chain_is_what_its_description_says(store, where):
    store.append(DECISION)
    store.answer(1, "good", "eva")
    store.audit("eva", "engineer", "activate", {"model": "screw", "version": 2})
    store.append(DECISION)
    before, number = START, 0
    for entry, entry_hash, body in sql(where, "SELECT entry, hash, body FROM entries ORDER BY entry"):
        content = json.loads(body)
        assert canonical(content) == body
        assert content["entry"] == entry
        number += content["kind"] == "decision"
        before = link(before, body)
        assert before == entry_hash
    assert content == {"kind": "decision", "entry": 4, "number": 2, **DECISION.to_json()}
    assert str(store.head()) == f"4:{before}"
    assert store.head().number == number == 2


def test_the_last_answer_counts_and_none_is_forgotten(store):
    store.append_all([decision(index) for index in range(3)])
    store.answer(2, "good", "eva")
    store.answer(2, "defect", "ines")
    store.answer(3, "good", "ines")
    assert [item.answer for item in store.find()] == ["good", "defect", None]
    assert numbers(store.find(Filter(answer="defect"))) == [2]
    assert numbers(store.find(Filter(answer="good"))) == [3]
    assert numbers(store.find(Filter(answer="none"))) == [1]
    assert [(item.answer, item.by) for item in store.answers(2)] == [("good", "eva"), ("defect", "ines")]
    with pytest.raises(NotFoundError, match="has no decision number 4"):
        store.answer(4, "good", "eva")
    with pytest.raises(UsageError, match="answer is 'fine': it is 'good' or 'defect'"):
        store.answer(1, "fine", "eva")


def test_an_answer_that_is_taken_back_counts_no_more_and_stays_in_the_record(store):
    store.append_all([decision(index) for index in range(2)])
    store.answer(1, "good", "eva")
    store.answer(1, None, "eva")
    assert store.get(1).answer is None
    assert numbers(store.find(Filter(answer="good"))) == []
    assert numbers(store.find(Filter(answer="none"))) == [2, 1]
    assert [item.answer for item in store.answers(1)] == ["good", None]
    store.answer(1, "defect", "eva")
    assert numbers(store.find(Filter(answer="defect"))) == [1]
    assert store.verify() is None


def test_what_was_tried_by_hand_is_told_from_the_parts_of_the_line(store):
    names = ["plain", '"source":"manual"', 'a", "source":"manual", "b']
    store.append_all([replace(decision(index), name=name) for index, name in enumerate(names)])
    store.append(replace(decision(3), source="manual"))
    assert numbers(store.find(Filter(of_the_line=True))) == [3, 2, 1]
    assert numbers(store.find(Filter(of_the_line=False))) == [4]
    assert (store.count(Filter(of_the_line=True)), store.count()) == (3, 4)


def test_changes_are_found_newest_first(store):
    store.audit("eva", "engineer", "activate", {"version": 2})
    store.audit("ines", "operator", "pause", {})
    assert [(item.by, item.role, item.action, item.detail) for item in store.audits()] == [
        ("ines", "operator", "pause", {}),
        ("eva", "engineer", "activate", {"version": 2}),
    ]
    assert len(store.audits(limit=1)) == 1


def test_filters_and_pages(store):
    store.append_all(
        [
            replace(decision(index), model="nut" if index % 2 else "screw", verdict="reject" if index < 3 else "pass")
            for index in range(10)
        ]
    )
    assert numbers(store.find(limit=4)) == [10, 9, 8, 7]
    assert numbers(store.find(before=7, limit=4)) == [6, 5, 4, 3]
    assert numbers(store.find(Filter(model="nut", verdict="reject"))) == [2]
    assert numbers(store.find(Filter(since=decision(7).at))) == [10, 9, 8]
    assert numbers(store.find(Filter(until=decision(2).at))) == [2, 1]
    assert store.count(Filter(model="screw")) == 5
    with pytest.raises(UsageError, match="'soon' is not a time"):
        store.find(Filter(since="soon"))


def test_names_are_found_by_a_part_of_them(store):
    names = ["Part_7.png", "PART%8", "part 8", "\0odd\udcff", "x" * 5000]
    store.append_all([replace(DECISION, name=name) for name in names])
    assert numbers(store.find(Filter(name="part"))) == [3, 2, 1]
    assert numbers(store.find(Filter(name="T_7"))) == [1]  # neither _ nor % stands for other letters
    assert numbers(store.find(Filter(name="T%8"))) == [2]
    assert [item.decision.name for item in store.find()] == names[::-1]


def test_text_of_any_length_and_kind_is_recorded_and_found(store):
    for text in ("x" * 100_000, "ü\0\udc80'\"\\%_", ""):
        long = replace(DECISION, name=text, model=text, reason=text, arrival=text, source=text, model_id=text)
        recorded = store.append(long)
        assert store.get(recorded.number).decision == long
        assert store.arrived(text) == ([recorded] if text else [])
        assert store.find(Filter(model=text)) == [recorded]
        store.audit(text, text, text, {text: text})
        store.answer(recorded.number, "good", text)
    assert store.verify() is None


def test_what_cannot_be_recorded_harms_nothing(store):
    with pytest.raises(UsageError, match=r"this audit cannot be recorded: .*; it holds plain finite values"):
        store.audit("eva", "engineer", "threshold", {"value": float("nan")})
    assert store.append(DECISION).number == 1
    assert store.verify() is None


def test_threads_share_commits_and_no_number_is_doubled(store):
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda index: store.append(decision(index)), range(120)))
    assert sorted(numbers(found)) == list(range(1, 121))
    assert all(store.get(item.number) == item for item in found[::17])
    assert store.verify() is None


def test_once_leaves_out_what_is_there(store):
    there = store.append_all([decision(0), decision(1)])
    found = store.append_all([decision(1), decision(2), decision(0)], once=True)
    assert numbers(found) == [2, 3, 1]
    assert found[0] == there[1]
    assert store.count() == 3
    assert numbers(store.append_all([decision(2), replace(decision(2), name="twin")], once=True)) == [3, 4]


def test_a_record_is_opened_again_where_it_ended(where):
    with Store.open(where) as store:
        first = store.append(DECISION)
    with Store.open(where, create=False) as store:
        assert store.get(1) == first
        assert store.append(DECISION).number == 2


def test_what_was_changed_is_found(store, where):
    store.append_all([decision(index) for index in range(4)])
    sql(where, "UPDATE entries SET verdict = 'pass' WHERE number = 3")
    assert store.verify().entry == 3
    sql(where, "DELETE FROM entries WHERE number = 2")
    assert str(store.verify()) == "entry 2: missing"


def test_two_processes_write_one_chain(where):
    Store.open(where).close()
    writers = [writer(where, 25, name) for name in ("serve", "watch")]
    said = [process.communicate(timeout=60)[0].split() for process in writers]
    assert [process.returncode for process in writers] == [0, 0]
    assert sorted(map(int, said[0] + said[1])) == list(range(1, 51))
    with Store.open(where) as store:
        assert store.verify() is None
        assert (store.count(Filter(name="serve")), store.count(Filter(name="watch"))) == (25, 25)


def test_a_killed_process_loses_nothing_it_was_told_of(where):
    with Store.open(where) as store, writer(where, 1000, "serve") as process:
        told = [int(process.stdout.readline()) for _ in range(30)]
        process.kill()
        told += [int(line) for line in process.stdout if line.endswith("\n")]
        process.wait()
        assert told == list(range(1, len(told) + 1))
        assert store.verify() is None
        assert len(told) <= store.count() <= len(told) + 1  # one more may be in, whose answer died on the way
        assert store.head().number == store.count() == store.append(DECISION).number - 1


def test_migrations_make_the_tables_of_today(where):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    Store.open(where).close()
    engine = engine_of(where)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_two_that_open_a_new_record_at_once_make_one(where):
    together = threading.Barrier(4)

    def open_it(index):
        together.wait()
        with Store.open(where) as store:
            return store.append(decision(index)).number

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(open_it, range(4))) == [1, 2, 3, 4]


def test_a_record_of_a_newer_makel_is_left_alone(where):
    Store.open(where).close()
    sql(where, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match=r"was written by a newer makel .*: update makel"):
        Store.open(where)


def test_a_lock_held_elsewhere_is_said_and_waited_for(where):
    with Store.open(where, timeout_s=0.05) as store:
        store.append(DECISION)
        engine = engine_of(where)
        with engine.connect() as other:
            other.execute(sa.text("UPDATE head SET entry = entry"))
            with pytest.raises(StoreError, match=r"another program holds the record locked; .* \(.*lock"):
                store.append(DECISION)
            assert store.count() == 1  # who reads does not wait
            other.rollback()
        engine.dispose()
        assert store.append(DECISION).number == 2


def test_a_server_that_stops_is_used_again_when_it_is_back(postgresql):
    with Store.open(postgresql.database(), timeout_s=2) as store:
        store.append(DECISION)
        postgresql.stop()
        try:
            with pytest.raises(StoreError, match=r"^postgresql://makel@/postgres\?.* cannot be reached or used now"):
                store.append(DECISION)
            with pytest.raises(StoreError, match="cannot be reached"):
                store.find()
        finally:
            postgresql.start()
        assert store.append(DECISION).number == 2
        assert store.verify() is None


def test_options_of_a_server_are_kept(postgresql):
    url = f"{postgresql.database()}%20-cwork_mem%3D9MB"
    with Store.open(url) as store, store._database.read() as connection:
        assert connection.exec_driver_sql("SHOW work_mem").scalar() == "9MB"
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "5s"


def test_a_server_that_is_not_there_is_said_without_the_password(postgresql, tmp_path):
    url = f"postgresql://makel:secret@/none?host={postgresql.folder}"
    with pytest.raises(StoreError, match=r"^postgresql://makel:\*\*\*@/none.*: the") as caught:
        Store.open(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreError, match="cannot be reached"):
        Store.open(f"postgresql://makel@/none?host={tmp_path}")


def test_postgresql_without_its_driver(monkeypatch):
    monkeypatch.setattr("makel.station.database.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"a record on PostgreSQL needs the 'postgresql' extra"):
        Store.open("postgresql://host/makel")


@pytest.mark.parametrize("where", ["mysql://eva:secret@host/makel", "sqlite:///store.sqlite"])
def test_other_databases_are_refused(where):
    with pytest.raises(UsageError, match="a record is the path of a file or postgresql://") as caught:
        Store.open(where)
    assert "secret" not in str(caught.value)


def test_a_file_that_goes_and_comes_back(tmp_path):
    path, away = tmp_path / "store.sqlite", tmp_path / "away"
    with Store.open(path) as store:
        store.append(DECISION)
        away.mkdir()
        for file in tmp_path.glob("store.sqlite*"):
            file.rename(away / file.name)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"store\.sqlite is gone \(No such file or directory\)"):
                store.append(DECISION)
        assert not path.exists()  # an empty record in its place would hide the loss
        with pytest.raises(StoreError, match="is gone"):
            store.count()
        for file in away.iterdir():
            file.rename(tmp_path / file.name)
        assert store.append(DECISION).number == 2
        assert store.verify() is None


def test_a_file_replaced_by_its_copy_is_noticed(tmp_path):
    path = tmp_path / "store.sqlite"
    with Store.open(path) as store:
        store.append(DECISION)
        with sqlite3.connect(path) as connection:
            connection.execute("VACUUM INTO ?", [str(tmp_path / "copy")])
        connection.close()
        for file in tmp_path.glob("store.sqlite*"):
            file.unlink()
        (tmp_path / "copy").rename(path)
        with pytest.raises(StoreError, match="was replaced by another file; the next call opens that one"):
            store.append(DECISION)
        assert store.append(DECISION).number == 2


def test_what_is_no_record_is_said(tmp_path):
    with pytest.raises(StoreError, match="there is no record here; give the path of a station's"):
        Store.open(tmp_path / "store.sqlite", create=False)
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be looked at as one\n" * 30)
    with pytest.raises(StoreError, match=r"notes\.txt: the file is no SQLite database"):
        Store.open(tmp_path / "notes.txt")
    with pytest.raises(StoreError, match=r"the file cannot be opened|cannot be made"):
        Store.open(tmp_path / "notes.txt" / "store.sqlite")


def test_commits_reach_the_disk(tmp_path):
    with Store.open(tmp_path / "store.sqlite") as store, store._database.write() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def fill(store):
    """Append until the disk is full; gives how many were accepted, and what was said then."""
    for accepted in range(10_000):
        try:
            store.append(replace(DECISION, name="n" * 2000))
        except StoreError as error:
            return accepted, str(error)
    raise AssertionError("it was never full")


def test_a_full_disk_is_said_and_left_behind(small_disk):
    with Store.open(small_disk / "store.sqlite") as store:
        (small_disk / "other").write_bytes(bytes(10**6))
        accepted, said = fill(store)
        assert accepted > 10
        assert "store.sqlite: the disk is full; free some space (database or disk is full)" in said
        assert store.count() == accepted
        (small_disk / "other").unlink()
        assert store.append(DECISION).number == accepted + 1
        assert store.verify() is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_limit_on_files_is_said_and_left_behind(tmp_path):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store.open(tmp_path / "store.sqlite") as store:
        store.append(DECISION)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
            accepted, said = fill(store)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "store.sqlite: the disk cannot be read or written, or is full" in said
        assert store.count() == accepted + 1
        assert store.append(DECISION).number == accepted + 2
        assert store.verify() is None
