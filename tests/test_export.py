"""The record as a table: what other programs read is what was recorded."""

import csv
import json
import re
import tracemalloc
from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest

import guides
from makel.errors import MissingExtraError, StoreError, UsageError
from makel.station.decisions import Decision, Recorded
from makel.station.export import COLUMNS
from makel.station.look import Look
from makel.station.store import Filter, Store
from record import DECISION, decision

FAILED = replace(
    DECISION,
    at="2026-11-25T14:59:00.000000+00:00",
    name="=1+1\udcff",
    model_id="",
    score=None,
    threshold=None,
    p_value=None,
    regions=(),
    reason="no decision within 200 ms",
)


@pytest.fixture
def store(where):
    with Store.open(where) as opened:
        opened.append_all([decision(0), decision(1), FAILED])
        opened.answer(2, "good", "eva")
        yield opened


def test_the_columns_are_what_a_decision_says(store, repository):
    assert set(COLUMNS) == set(store.get(1).to_json())
    assert {item.name for item in fields(Decision)} < set(COLUMNS)
    table = guides.tables(guides.section((repository / "docs/station/history.md").read_text(), "What is in it"))[0]
    assert {name for row in table for name in re.findall(r"`(\w+)`", row[0])} == set(COLUMNS)


def test_csv_holds_what_was_recorded(store, tmp_path):
    calls = []
    assert store.export(tmp_path / "all.csv", progress=lambda *at: calls.append(at)) == 3
    assert calls == [(3, 3)]
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, item in zip(rows, store.find()[::-1], strict=True):
        plain = item.to_json()
        for several in ("regions", "zones"):
            assert json.loads(row.pop(several)) == plain.pop(several)
        name = plain.pop("name")
        # A spreadsheet would run the one as a formula, and no text file can hold the other's last byte.
        assert row.pop("name") == (name if item.number < 3 else "'=1+1\\udcff")
        assert row == {key: "" if value is None else str(value) for key, value in plain.items()}
    assert [path.name for path in tmp_path.iterdir() if "all" in path.name] == ["all.csv"]


def test_a_look_is_a_list_in_both_tables(store, tmp_path):
    from pyarrow import parquet

    look = Look(0.4, 0.5, 0.1, None, None, None)
    store.append(replace(DECISION, look=look))
    store.export(tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        texts = [list(csv.DictReader(file))[-1]["look"]]
    store.export(tmp_path / "all.parquet")
    texts.append(parquet.read_table(tmp_path / "all.parquet")["look"].to_pylist()[-1])
    assert [json.loads(text) for text in texts] == [look.to_json()] * 2


FORMULAS = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "part;=1+1",
    'part;"=1+1',
    'part";"=1+1";"',
    "part; \u00a0=1",
    "part\t=1",
    "part\r\n=1",
    "part\u2028=1",
    "part|=1",
    "part;;@A1|+1;-1",
    "＝1+1",
    "part;＋1",
]


@pytest.mark.parametrize("field", ["name", "source", "reason", "zone"])
def test_no_cell_is_a_formula_wherever_a_spreadsheet_parts_them(tmp_path, field):
    with Store.open(tmp_path / "store.sqlite") as store:
        for text in FORMULAS:
            named = replace(DECISION, zones=(replace(DECISION.zones[0], name=text),))
            store.append(named if field == "zone" else replace(DECISION, **{field: text}))
        store.export(tmp_path / "all.csv")
    written = (tmp_path / "all.csv").read_text(encoding="utf-8")
    for separator in ",;\t|":
        for row in csv.reader(written.splitlines(), delimiter=separator):
            # Some programs leave out quotes that do not stand around a whole cell.
            assert not [each for each in row if re.match(r"""[\s"]*[=+@＝＋－＠-]""", each)], row
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(FORMULAS)
    assert [json.loads(row["regions"]) for row in rows] == [[region.to_json() for region in DECISION.regions]] * len(
        rows
    )
    assert all(json.loads(row["zones"]) for row in rows)


def test_plain_names_stay_as_they_are_in_a_table(tmp_path):
    names = ["part-7, left side.png", "a=b;c", "Stück　1\u00a0.png", "x - y | z"]
    with Store.open(tmp_path / "store.sqlite") as store:
        store.append_all([replace(DECISION, name=name) for name in names])
        store.export(tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(encoding="utf-8", newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == names


def test_parquet_holds_what_was_recorded(store, tmp_path):
    from pyarrow import parquet

    assert store.export(tmp_path / "all.parquet") == 3
    table = parquet.read_table(tmp_path / "all.parquet")
    assert table.column_names == list(COLUMNS)
    assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"
    for row, item in zip(table.to_pylist(), store.find()[::-1], strict=True):
        plain = item.to_json()
        assert row.pop("at") == datetime.fromisoformat(plain.pop("at")).astimezone(UTC)
        for several in ("regions", "zones"):
            assert json.loads(row.pop(several)) == plain.pop(several)
        assert row.pop("name") == plain.pop("name").replace("\udcff", "\\udcff")
        assert row == plain


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_filter_chooses_and_nothing_chosen_is_an_empty_table(store, tmp_path, ending):
    assert store.export(tmp_path / f"a.{ending}", Filter(answer="good")) == 1
    assert store.export(tmp_path / f"b.{ending}", Filter(model="nut")) == 0
    assert (tmp_path / f"b.{ending}").stat().st_size > 50  # its columns are there


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_memory_does_not_grow_with_the_record(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("makel.station.export._PAGE", 100)
    with Store.open(tmp_path / "store.sqlite") as store:
        store.append_all([DECISION] * 200)
        store.export(tmp_path / f"warm.{ending}")  # fills the caches of modules
        peaks = []
        for n_more in (0, 1_000):
            store.append_all([DECISION] * n_more)
            tracemalloc.start()
            store.export(tmp_path / f"all.{ending}")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[0] > 1e5  # a page
    assert peaks[1] < 3 * peaks[0]  # of six times as much; what the collector has not come to yet counts too


def test_what_cannot_be_written_is_said_and_leaves_the_old_file(store, tmp_path, small_disk):
    with pytest.raises(UsageError, match=r"all\.xlsx ends in '\.xlsx': a record is exported to \.csv or \.parquet"):
        store.export(tmp_path / "all.xlsx")
    with pytest.raises(StoreError, match=r"all\.csv cannot be written: No such file or directory"):
        store.export(tmp_path / "nowhere" / "all.csv")
    for ending in ("csv", "parquet"):
        target = small_disk / f"all.{ending}"
        store.export(target)
        before = target.read_bytes()
        with pytest.raises(OSError, match="No space left"):
            (small_disk / "other").write_bytes(bytes(3 * 10**6))
        with pytest.raises(StoreError, match=r"cannot be written: .*No space left"):
            store.export(target)
        assert target.read_bytes() == before
        assert {path.name for path in small_disk.iterdir()} <= {"all.csv", "all.parquet", "other"}
        (small_disk / "other").unlink()


def test_parquet_without_its_library(store, tmp_path, monkeypatch):
    monkeypatch.setattr("makel.station.export.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"an export to Parquet needs the 'parquet' extra"):
        store.export(tmp_path / "all.parquet")


def test_a_decision_that_was_changed_is_not_exported_as_if_it_were_not(store, tmp_path, where):
    from record import sql

    sql(where, "UPDATE entries SET body = '{}' WHERE number = 2 AND kind = 'decision'")
    with pytest.raises(StoreError, match=r"decision 2 was changed .*; 'makel history verify' says more"):
        store.export(tmp_path / "all.csv")
    assert not (tmp_path / "all.csv").exists()
    with pytest.raises(StoreError, match="decision 2 was changed"):
        store.get(2)
    assert isinstance(store.get(1), Recorded)
