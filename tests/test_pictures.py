"""Pictures below a limit: passes go first, rejects next, answered ones last, and never a path from outside."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from makel.errors import NotFoundError, StoreError
from makel.station.pictures import Limits, Pictures

ROOMY = Limits(size_bytes=10**9, free_bytes=0)


def picture(index, size_bytes=100):
    return bytes([index]) * size_bytes


def name(index, size_bytes=100):
    return hashlib.sha256(picture(index, size_bytes)).hexdigest()


def kept(pictures, indices):
    return [index for index in indices if name(index) in pictures]


@pytest.fixture
def pictures(tmp_path):
    return Pictures(tmp_path / "pictures", ROOMY)


@pytest.fixture
def five(tmp_path):
    """Room for five pictures."""
    return Pictures(tmp_path / "pictures", Limits(size_bytes=500, free_bytes=0))


def test_a_picture_is_kept_under_its_hash(pictures, tmp_path):
    assert pictures.keep(picture(1), "reject") == name(1)
    assert pictures.read(name(1)) == picture(1)
    (file,) = (path for path in (tmp_path / "pictures").rglob("*") if path.is_file())
    assert file.relative_to(tmp_path).as_posix() == f"pictures/reject/{name(1)[:2]}/{name(1)}"
    assert pictures.usage() == {"pass": (0, 0), "reject": (1, 100), "answered": (0, 0)}


def test_the_same_picture_is_kept_once_on_the_better_shelf(pictures):
    for verdict in ("pass", "reject", "pass"):
        pictures.keep(picture(1), verdict)
    assert pictures.usage() == {"pass": (0, 0), "reject": (1, 100), "answered": (0, 0)}
    pictures.answered(name(1))
    pictures.keep(picture(1), "reject")
    assert pictures.usage() == {"pass": (0, 0), "reject": (0, 0), "answered": (1, 100)}
    pictures.answered(name(2))  # long gone, and no matter
    assert pictures.read(name(1)) == picture(1)


def test_passes_go_before_rejects_and_answered_ones_last(five):
    for index, verdict in enumerate(["reject", "pass", "pass", "reject", "pass"]):
        five.keep(picture(index), verdict)
    five.answered(name(1))
    five.keep(picture(5), "pass")
    assert kept(five, range(6)) == [0, 1, 3, 4, 5]
    five.keep(picture(6), "pass")
    five.keep(picture(7), "reject")
    five.keep(picture(8), "reject")
    assert kept(five, range(9)) == [0, 1, 3, 7, 8]
    five.keep(picture(9), "pass")  # the newest comes in, for the oldest of the least shelf that has any
    assert kept(five, range(10)) == [1, 3, 7, 8, 9]
    for index in range(10, 16):
        five.keep(picture(index), "reject")
    assert kept(five, range(16)) == [1, 12, 13, 14, 15]
    for index in range(12, 16):
        five.answered(name(index))
    five.keep(picture(16), "reject")
    assert kept(five, range(17)) == [12, 13, 14, 15, 16]


def test_what_was_kept_counts_after_opening_again(five, tmp_path):
    for index in range(5):
        five.keep(picture(index), "pass")
        os.utime(five._place("pass", name(index)), (1000 - index, 1000 - index))
    again = Pictures(tmp_path / "pictures", Limits(size_bytes=500, free_bytes=0))
    assert again.usage()["pass"] == (5, 500)
    again.keep(picture(5), "pass")
    assert kept(again, range(6)) == [0, 1, 2, 3, 5]  # 4 was the oldest by its file


def test_pictures_of_another_process_count_after_tidying(five, tmp_path):
    other = Pictures(tmp_path / "pictures", Limits(size_bytes=500, free_bytes=0))
    for index in range(4):
        five.keep(picture(index), "pass")
        other.keep(picture(index + 4), "pass")
    other.answered(name(0))
    assert five.read(name(0)) == picture(0)
    five.tidy()
    assert sum(n for n, _ in five.usage().values()) == 5
    assert name(0) in five
    other.tidy()
    assert other.usage() == five.usage()


def test_old_ones_are_dropped_wherever_they_stand(tmp_path):
    folder = tmp_path / "pictures"
    pictures = Pictures(folder, ROOMY)
    for index, verdict in enumerate(["pass", "reject", "reject", "pass", "reject"]):
        pictures.keep(picture(index), verdict)
    pictures.answered(name(2))
    for shelf, index in (("pass", 0), ("reject", 1), ("answered", 2)):
        os.utime(pictures._place(shelf, name(index)), (time.time() - 3 * 86400,) * 2)
    Pictures(folder, Limits(size_bytes=10**9, age_days=4, free_bytes=0)).tidy()
    assert kept(pictures, range(5)) == [0, 1, 2, 3, 4]
    Pictures(folder, Limits(size_bytes=10**9, age_days=2, free_bytes=0)).tidy()
    assert kept(pictures, range(5)) == [3, 4]


def test_a_clock_that_jumps_drops_nothing(tmp_path, monkeypatch):
    pictures = Pictures(tmp_path / "pictures", Limits(size_bytes=10**9, age_days=2, free_bytes=0))
    pictures.keep(picture(0), "pass")
    ahead = time.time() + 365 * 86400
    monkeypatch.setattr("makel.station.pictures.time.time", lambda: ahead)
    pictures.keep(picture(1), "pass")
    pictures.tidy()
    assert kept(pictures, range(2)) == [0, 1]


@pytest.mark.parametrize(
    "asked", ["", "..", "../../store.sqlite", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "a" * 62 + "/a"]
)
def test_only_a_hash_is_ever_looked_up(pictures, asked):
    with pytest.raises(NotFoundError, match="is kept; the oldest passes are dropped first"):
        pictures.read(asked)
    assert asked not in pictures
    pictures.answered(asked)


def test_a_picture_that_was_changed_is_not_given_out(pictures):
    pictures.keep(picture(1), "pass")
    pictures._place("pass", name(1)).write_bytes(picture(2))
    with pytest.raises(StoreError, match="was damaged or changed: its content is not what its name says"):
        pictures.read(name(1))


def test_a_file_that_vanished_is_kept_again(pictures):
    pictures.keep(picture(1), "pass")
    pictures._place("pass", name(1)).unlink()
    with pytest.raises(NotFoundError):
        pictures.read(name(1))
    pictures.keep(picture(1), "reject")
    assert pictures.read(name(1)) == picture(1)
    assert pictures.usage() == {"pass": (0, 0), "reject": (1, 100), "answered": (0, 0)}


def test_what_a_killed_process_left_half_written_goes(pictures, tmp_path):
    pictures.keep(picture(1), "pass")
    folder = pictures._place("pass", name(1)).parent
    for half, age_s in ((".new", 0), (".old", 7200)):
        (folder / half).write_bytes(b"half")
        os.utime(folder / half, (time.time() - age_s,) * 2)
    assert Pictures(tmp_path / "pictures", ROOMY).usage()["pass"] == (1, 100)
    assert {path.name for path in folder.iterdir()} == {".new", name(1)}


def test_threads_keep_to_the_limit(five):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda index: five.keep(picture(index), "pass"), range(100)))
    assert five.usage()["pass"] == (5, 500)
    five.tidy()
    assert five.usage()["pass"] == (5, 500)


def test_one_picture_over_the_limit_costs_no_other(five):
    five.keep(picture(0), "pass")
    with pytest.raises(StoreError, match="a picture of 501 bytes is over the limit of 500 for all"):
        five.keep(picture(1, 501), "reject")
    assert kept(five, range(1)) == [0]


def test_a_full_disk_leaves_nothing_half_written(small_disk, monkeypatch):
    pictures = Pictures(small_disk / "pictures", ROOMY)
    (small_disk / "other").write_bytes(bytes(1_900_000))
    # What the file system says is free need not be: a quota, or another program that was faster.
    monkeypatch.setattr("makel.station.pictures.shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    with pytest.raises(StoreError, match="cannot be written: the disk is full"):
        pictures.keep(picture(1, 400_000), "reject")
    assert [path for path in (small_disk / "pictures").rglob("*") if path.is_file()] == []
    (small_disk / "other").unlink()
    pictures.keep(picture(1, 400_000), "reject")
    assert pictures.read(name(1, 400_000)) == picture(1, 400_000)


def test_passes_make_room_for_the_record_and_rejects_do_not(small_disk):
    pictures = Pictures(small_disk / "pictures", Limits(size_bytes=10**9, free_bytes=1_000_000))
    for index, verdict in enumerate(["reject", "pass", "pass"]):
        pictures.keep(picture(index, 200_000), verdict)
    (small_disk / "other").write_bytes(bytes(500_000))
    pictures.keep(picture(3, 200_000), "pass")
    assert name(1, 200_000) not in pictures
    (small_disk / "other").write_bytes(bytes(1_200_000))
    with pytest.raises(StoreError, match="the disk is nearly full, no more pictures are kept; free some space"):
        pictures.keep(picture(4, 200_000), "reject")
    assert pictures.usage() == {"pass": (0, 0), "reject": (1, 200_000), "answered": (0, 0)}


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "pictures").write_text("a file")
    with pytest.raises(StoreError, match="cannot be made: "):
        Pictures(tmp_path / "pictures")


def test_a_second_name_outlives_the_first(five, tmp_path):
    five.keep(picture(1), "pass")
    five.link(name(1), tmp_path / "second.png")
    for index in range(2, 8):
        five.keep(picture(index), "pass")
    assert name(1) not in five
    assert (tmp_path / "second.png").read_bytes() == picture(1)
    with pytest.raises(NotFoundError, match="is kept"):
        five.link(name(1), tmp_path / "third.png")
    with pytest.raises(StoreError, match=r"second\.png/4\.png cannot be written"):
        five.link(name(7), tmp_path / "second.png" / "4.png")
