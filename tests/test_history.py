"""`makel history` as people type it."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from makel.cli import extras
from makel.station.pictures import Pictures
from makel.station.store import Store
from record import DECISION, decision, sql


@pytest.fixture
def station(tmp_path):
    """A station's folder with five decisions."""
    folder = tmp_path / "station"
    with Store.open(folder / "store.sqlite") as store:
        store.append_all([decision(index) for index in range(3)])
        store.append(replace(decision(3), verdict="pass", model="nut", name="part 8.png", zones=()))
        store.append(
            replace(decision(4), score=None, threshold=None, p_value=None, reason="no decision within 200 ms", zones=())
        )
        store.answer(4, "defect", "eva")
    return folder


def test_verify_says_that_all_is_well_and_where_it_ends(station, makel_says):
    with Store.open(station / "store.sqlite") as store:
        head = store.head()
    expected = f"{station}/store.sqlite is intact: 5 decisions in 6 entries\nhead 6:{head.hash}\n"
    assert makel_says("history", "verify", station) == (0, expected, "")
    assert makel_says("history", "verify", station, "--noted", f"6:{head.hash}") == (0, expected, "")
    code, out, _ = makel_says("history", "verify", station / "store.sqlite", "--json")
    assert (code, json.loads(out)) == (0, {"n_entries": 6, "n_decisions": 5, "head": str(head)})


def test_verify_says_what_is_wrong(station, makel_says):
    assert makel_says("history", "verify", station, "--noted", f"7:{'a' * 64}") == (
        16,
        "",
        f"makel: {station}/store.sqlite is broken at entry 7: missing: the record had 7 entries when its head was "
        "noted\n",
    )
    sql(station / "store.sqlite", "UPDATE entries SET verdict = 'pass' WHERE entry = 2")
    assert makel_says("history", "verify", station) == (
        16,
        "",
        f"makel: {station}/store.sqlite is broken at entry 2: its column 'verdict' was changed: the hashed content "
        "says otherwise\n",
    )


@pytest.mark.parametrize("noted", ["7", "seven:" + "a" * 64, "7:abc"])
def test_a_head_that_is_none_is_refused(station, makel_says, noted):
    code, out, err = makel_says("history", "verify", station, "--noted", noted)
    assert (code, out) == (2, "")
    assert err == f"makel: --noted is {noted!r}: give the head as 'makel history verify' printed it, ENTRY:HASH\n"


def test_show_is_for_people(station, makel_says):
    assert makel_says("history", "show", station, "--limit", "3") == (
        0,
        "      5  2026-11-25T14:00:04  reject  screw  part 7.png  no decision within 200 ms\n"
        "      4  2026-11-25T14:00:03  pass    nut  part 8.png  score 0.4286 of 1  a person said: defect\n"
        "      3  2026-11-25T14:00:02  reject  screw  part 7.png  score 0.2857 of 1  zone bore: 2.5 of 2\n",
        "",
    )
    assert makel_says("history", "show", station, "--number", "9")[0] == 11


def test_show_is_for_machines(station, makel_says):
    code, out, _ = makel_says("history", "show", station, "--number", "2", "--json")
    with Store.open(station / "store.sqlite") as store:
        assert (code, json.loads(out)) == (0, store.get(2).to_json())


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--model", "nut"], [4]),
        (["--verdict", "pass"], [4]),
        (["--answer", "none"], [5, 3, 2, 1]),
        (["--answer", "defect"], [4]),
        (["--name", "PART 8"], [4]),
        (["--since", "2026-11-25T14:00:03Z"], [5, 4]),
        (["--until", "2026-11-25T15:00:01+01:00"], [1]),
        (["--since", "2026-11-26"], []),
    ],
)
def test_filters(station, makel_says, tmp_path, options, numbers):
    code, out, _ = makel_says("history", "show", station, "--json", *options)
    assert (code, [json.loads(line)["number"] for line in out.splitlines()]) == (0, numbers)
    table = tmp_path / "table.csv"
    assert makel_says("history", "export", station, table, *options) == (0, f"{len(numbers)} decisions: {table}\n", "")


def test_where_there_is_no_record_none_is_made(tmp_path, makel_says):
    code, _, err = makel_says("history", "verify", tmp_path)
    assert (code, err) == (
        10,
        f"makel: {tmp_path}/store.sqlite: there is no record here; give the path of a station's store.sqlite\n",
    )
    assert not (tmp_path / "store.sqlite").exists()
    assert makel_says("history", "show", tmp_path / "none")[0] == 10


def test_the_extra_is_asked_for(station, makel_says, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda _: None)
    assert makel_says("history", "show", station) == (
        2,
        "",
        "makel: makel history needs the 'station' extra, which is not installed: pip install 'makel[station]'\n",
    )


def test_the_record_of_a_server(postgresql, makel_says):
    url = postgresql.database()
    with Store.open(url) as store:
        store.append(DECISION)
    code, out, _ = makel_says("history", "verify", url)
    assert code == 0
    assert "is intact: 1 decisions in 1 entries" in out


NAMES = (
    "clear\x1b[2J",
    "title\x1b]0;x\x07",
    "pass\x1b[1A\x1b[2Kpass",
    "two\nlines",
    "back\rpass",
    "\u202egnp.ssap",
    "\x9bm",
    "\udcff",
)


def test_a_name_does_nothing_to_the_terminal(tmp_path, makel_says):
    with Store.open(tmp_path / "store.sqlite") as store:
        for name in NAMES:
            store.append(replace(DECISION, name=name, model=name, zones=(replace(DECISION.zones[0], name=name),)))
            store.append(replace(DECISION, score=None, threshold=None, p_value=None, reason=f"{name} is no image"))
    code, out, err = makel_says("history", "show", tmp_path)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 2 * len(NAMES)
    assert out.replace("\n", "").isprintable()
    assert r"clear\x1b[2J" in out
    for name in NAMES:
        code, out, err = makel_says("history", "verify", tmp_path / f"none{name}")
        assert (code, out) == (10, "")
        assert err.endswith("\n")
        assert err[:-1].isprintable()


@pytest.fixture
def kept(station):
    """The same station with three pictures."""
    pictures = Pictures(station / "pictures")
    pictures.keep(b"one", "pass")
    pictures.keep(b"two", "reject")
    pictures.answered(pictures.keep(b"three", "reject"))
    return station


def damage(path, page_kind, text):
    """Change a byte of this text in every page of a kind: 10 is that of an index, 13 that of a table."""
    content = bytearray(path.read_bytes())
    for start in range(0, len(content), 4096):
        at = content.find(text, start, start + 4096)
        if content[start] == page_kind and at >= 0:
            content[at] ^= 0x80 if page_kind == 13 else 1
    assert content != path.read_bytes()
    path.write_bytes(content)


def test_verify_runs_the_databases_own_check(station, makel_says):
    damage(station / "store.sqlite", 10, b"2026-11-25T14:00:02")
    code, out, err = makel_says("history", "verify", station)
    assert (code, out, err.count("\n")) == (16, "", 1)
    assert "store.sqlite is broken: the database's own check says: " in err
    assert "missing from index decision_at" in err


def test_a_damaged_schema_is_said(station, makel_says):
    content = (station / "store.sqlite").read_bytes()
    (station / "store.sqlite").write_bytes(content.replace(b" WHERE kind", b" \xcfHERE kind", 1))
    code, out, err = makel_says("history", "verify", station)
    assert (code, out) == (10, "")
    assert "store.sqlite: the file is damaged; bring back a copy" in err


def test_verify_finds_what_is_no_text_any_more(station, makel_says):
    damage(station / "store.sqlite", 13, b"part 7.png")
    code, out, err = makel_says("history", "verify", station)
    assert (code, out) == (16, "")
    assert re.search(r"is broken at entry \d: its content", err)


def test_verify_tells_an_emptied_head_in_its_own_words(station, makel_says):
    sql(station / "store.sqlite", "DELETE FROM head")
    said = f"{station}/store.sqlite is broken: the table 'head', which says where the record ends, was emptied"
    assert makel_says("history", "verify", station) == (16, "", f"makel: {said}\n")


def test_verify_compares_pictures_with_their_hashes(kept, makel_says, tmp_path):
    code, out, err = makel_says("history", "verify", kept)
    assert (code, err) == (0, "")
    assert out.endswith("\npictures: 3 are kept, each is what its name says\n")
    assert json.loads(makel_says("history", "verify", kept, "--json")[1])["damaged_pictures"] == []
    changed, gone, _ = sorted(path for path in kept.glob("pictures/*/*/*"))
    changed.write_bytes(b"One")
    gone.unlink()
    (kept / "pictures" / "pass" / ".unfinished").mkdir()
    for where in (kept, kept / "store.sqlite"):
        code, out, err = makel_says("history", "verify", where)
        assert code == 16
        assert "is intact: 5 decisions in 6 entries\nhead 6:" in out
        assert err == (
            f"makel: {changed} was damaged or changed: its content is not what its name says\n"
            "makel: 1 of 2 pictures are damaged; the record is intact\n"
        )
    assert makel_says("history", "verify", kept, "--no-pictures")[0] == 0
    assert makel_says("history", "verify", kept, "--pictures", tmp_path / "none")[0] == 2
    moved = tmp_path / "moved"
    (kept / "pictures").rename(moved)
    assert makel_says("history", "verify", kept)[0] == 0
    assert makel_says("history", "verify", kept, "--pictures", moved)[0] == 16


@pytest.fixture
def read_only(tmp_path):
    """What puts a folder on a medium that cannot be written."""
    medium = tmp_path / "medium"
    medium.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a folder again")

    def put(folder):
        shutil.copytree(folder, medium / "station", ignore=shutil.ignore_patterns("*-shm"))
        for options in (["--bind", medium], ["-o", "remount,ro,bind"]):
            if subprocess.run(["mount", *options, medium], capture_output=True).returncode:
                pytest.skip("this system does not let root mount a folder again")
        return medium / "station"

    yield put
    subprocess.run(["umount", "--lazy", medium], capture_output=True)


def test_a_record_on_a_medium_that_cannot_be_written_is_read(kept, read_only, makel_says, tmp_path):
    there = read_only(kept)
    with pytest.raises(OSError, match="Read-only file system"):
        (there / "store.sqlite").touch()
    code, out, err = makel_says("history", "verify", there)
    assert (code, err) == (0, "")
    assert "is intact: 5 decisions in 6 entries" in out
    assert makel_says("history", "show", there, "--limit", "1")[0] == 0
    assert makel_says("history", "export", there, tmp_path / "all.csv")[:2] == (0, f"5 decisions: {tmp_path}/all.csv\n")


def test_what_was_written_last_is_not_left_out_where_it_cannot_be_read(kept, read_only, makel_says):
    with Store.open(kept / "store.sqlite") as store:
        store.append(DECISION)
        there = read_only(kept)  # a copy of a station that runs
    code, out, err = makel_says("history", "verify", there)
    assert (code, out, err.count("\n")) == (10, "", 1)
    assert "what was written last is still in store.sqlite-wal beside it" in err


def test_reading_changes_nothing(kept, makel_says, tmp_path):
    before = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    makel_says("history", "verify", kept)
    makel_says("history", "show", kept)
    after = {path: path.read_bytes() for path in kept.rglob("*") if path.is_file()}
    assert after == before
    other = tmp_path / "other.sqlite"
    sql(other, "CREATE TABLE mine (x)")
    code, _, err = makel_says("history", "verify", other)
    assert (code, err) == (
        10,
        f"makel: {other} holds no record of makel: give a station's folder, or its store.sqlite\n",
    )
    assert sql(other, "SELECT name FROM sqlite_master") == [("mine",)]
    sql(kept / "store.sqlite", "UPDATE alembic_version SET version_num = '9999'")
    assert "was written by a newer makel (9999): update makel" in makel_says("history", "verify", kept)[2]
