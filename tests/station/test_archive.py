import io
import stat
import zipfile

import pytest

from makel.errors import TooLargeError, UsageError
from makel.station.archive import ArchiveLimits, unpack


def packed(*entries, compression=zipfile.ZIP_DEFLATED):
    """A zip of (name or ZipInfo, bytes)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file


def test_files_come_out_as_they_went_in(tmp_path):
    folder = unpack(packed(("a.txt", b"1"), ("sub/b c.txt", b"2"), ("ümlaut.txt", b"3")), tmp_path)
    assert folder == tmp_path
    found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.txt")}
    assert found == {"a.txt": b"1", "sub/b c.txt": b"2", "ümlaut.txt": b"3"}


def test_one_folder_around_everything_is_stepped_into_and_litter_left_out(tmp_path):
    archive = packed(("m/a", b"1"), ("m/b/c", b"2"), ("__MACOSX/m/._a", b"x"), ("m/.DS_Store", b"x"))
    folder = unpack(archive, tmp_path)
    assert folder == tmp_path / "m"
    assert sorted(path.name for path in folder.rglob("*")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/a", "C:/a", "a\\..\\b", "a//b", "./a", "a/", "con:", "a\nb", "a. ", "a/. ", "..."],
)
def test_names_that_lead_outside_or_mean_different_things_are_refused(tmp_path, name):
    if name.endswith("/"):  # a folder, which needs no entry of its own
        with pytest.raises(UsageError, match="holds no file"):
            unpack(packed((name, b"")), tmp_path / "x")
        return
    info = zipfile.ZipInfo("x")
    info.filename = name
    with pytest.raises(UsageError, match="leads outside"):
        unpack(packed((info, b"x")), tmp_path / "inside")
    assert list(tmp_path.iterdir()) == []


def test_links_are_refused(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(UsageError, match="is a link or a special file"):
        unpack(packed((link, b"/etc/passwd")), tmp_path)


def test_the_same_name_twice_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"'A\.png' twice"):
        unpack(packed(("a.png", b"1"), ("A.png", b"2")), tmp_path)


def test_a_bomb_is_refused_before_anything_is_written(tmp_path):
    bomb = packed(("zeros", bytes(50_000_000)))
    assert bomb.getbuffer().nbytes < 100_000
    with pytest.raises(TooLargeError, match="50000000 bytes unpacked, at most 1000"):
        unpack(bomb, tmp_path, ArchiveLimits(unpacked_bytes=1000))
    with pytest.raises(TooLargeError, match="3 files, at most 2"):
        unpack(packed(("a", b""), ("b", b""), ("c", b"")), tmp_path, ArchiveLimits(files=2))
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_lies_about_its_size_fills_no_disk(tmp_path):
    data = bytearray(packed(("zeros", bytes(5_000_000))).getvalue())
    true_size = (5_000_000).to_bytes(4, "little")
    while (place := data.find(true_size)) >= 0:
        data[place : place + 4] = (900).to_bytes(4, "little")
    with pytest.raises((UsageError, TooLargeError)):
        unpack(io.BytesIO(bytes(data)), tmp_path, ArchiveLimits(unpacked_bytes=1000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1000


def test_encrypted_and_strangely_packed_files_are_refused(tmp_path):
    data = bytearray(packed(("a", b"x" * 100)).getvalue())
    data[6] |= 1  # the flag of encryption, in the file's head and in the directory
    data[data.find(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(UsageError, match="which is encrypted"):
        unpack(io.BytesIO(bytes(data)), tmp_path)
    with pytest.raises(UsageError, match="packed in way 14"):
        unpack(packed(("a", b"x" * 100), compression=zipfile.ZIP_LZMA), tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"text"])
def test_what_is_no_zip_is_refused(tmp_path, data):
    with pytest.raises(UsageError, match="is no zip file, or damaged"):
        unpack(io.BytesIO(data), tmp_path)


@pytest.mark.parametrize("cut", range(40, 400, 30))
def test_a_damaged_zip_is_refused(tmp_path, cut):
    data = bytearray(packed(("a.txt", b"one two three" * 20), ("b.txt", b"four" * 30)).getvalue())
    data[cut % len(data)] ^= 0xFF
    try:
        folder = unpack(io.BytesIO(bytes(data)), tmp_path)
    except UsageError:
        return
    # What zip does not protect: times, names, and the number of entries. Contents it does.
    found = {path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found <= {b"one two three" * 20, b"four" * 30}
