"""Files that break other tools: each gives one clear line, and neither crash, hang nor gigabytes."""

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from makel.errors import ImageError
from makel.images import decode_all, read, read_header
from peak_memory import PEAK_MIB
from tiff_file import PHOTOMETRIC, STRIP_ROWS, TILE_HEIGHT, TILE_WIDTH, tiff_file

POSIX = sys.platform != "win32"
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 50, 3), np.uint8)


def encoded(name, **options):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, name, **options)
    return stream.getvalue()


PNG, JPEG, TIFF, LZW = encoded("PNG"), encoded("JPEG"), encoded("TIFF"), encoded("TIFF", compression="tiff_lzw")
BMP, WEBP, GIF, JP2 = encoded("BMP"), encoded("WEBP"), encoded("GIF"), encoded("JPEG2000")
PROGRESSIVE = encoded("JPEG", progressive=True)


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, rows, depth=8, kind=2, way=0):
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, way)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg_of_size(width, height, data=JPEG):
    frame = data.index(b"\xff\xc2" if data is PROGRESSIVE else b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


def bytes_as(data):
    return lambda path: path.write_bytes(data)


def fifo(path):
    os.mkfifo(path)


def bound_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name may have 108 bytes at most
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


def link_to(target):
    return lambda path: path.symlink_to(target)


def sparse(start, size):
    def write(path):
        path.write_bytes(start)
        os.truncate(path, size)

    return write


def pages(path):
    tifffile.imwrite(path, np.zeros((3, 16, 16), np.uint8), photometric="minisblack")


def tags_in_a_loop(path):
    data = bytearray(TIFF)
    start = struct.unpack("<I", data[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0]
    data[end : end + 4] = struct.pack("<I", start)
    path.write_bytes(data)


def jpeg_of_scans(count):
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded("JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * count + data[-2:]


def inflating_to(size):
    """Deflate of zeros without an end, quickly made: each block stands by itself."""
    packer = zlib.compressobj(9)
    first, block = (packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + block * (size >> 24)


def codestream(at, value):
    """A JPEG 2000 codestream with some bytes behind its COD (or the SIZ) replaced."""
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "JPEG2000", no_jp2=True)
    data = bytearray(stream.getvalue())
    start = data.index(b"\xff\x52" if at >= 0 else b"\xff\x51") + abs(at)
    data[start : start + len(value)] = value
    return bytes(data)


def animated(name, **options):
    stream = io.BytesIO()
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(stream, name, save_all=True, append_images=frames[1:], **options)
    return bytes_as(stream.getvalue())


BOMB = inflating_to(8 << 30)
BOMBS = {
    # what has its pixels, and behind them gigabytes
    "a.png": PNG[:33] + chunk(b"IDAT", BOMB) + chunk(b"IEND", b""),
    "b.png": PNG[:33] + b"".join(chunk(b"IDAT", BOMB[i : i + 99]) for i in range(0, len(BOMB), 99)) + PNG[-12:],
    "strip.tif": tiff_file(100, 100, [BOMB], 8),
    "tile.tif": tiff_file(100, 100, [BOMB], 8, tags={TILE_WIDTH: 112, TILE_HEIGHT: 112}),
    "libtiff.tif": tiff_file(100, 100, [BOMB], 8, tags={PHOTOMETRIC: 0}),
    "packbits.tif": tiff_file(100, 100, [b"\x81\0" * 4_000_000], 32773),
}
HOSTILE = {
    # kind: file name, what makes it, what its error says
    "missing": ("a.png", lambda path: None, "No such file"),
    "empty": ("a.png", bytes_as(b""), "is empty, 0 bytes"),
    "one byte": ("a.png", bytes_as(b"\x89"), "is not PNG, nor any other image"),
    "only a signature": ("a.png", bytes_as(PNG[:8]), "is cut short"),
    "truncated png": ("a.png", bytes_as(PNG[: len(PNG) // 2]), "is cut short"),
    "truncated jpeg": ("a.jpg", bytes_as(JPEG[: len(JPEG) // 2]), "is cut short"),
    "jpeg filled with zeros": ("a.jpg", bytes_as(JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2)), "is cut short"),
    "truncated bmp": ("a.bmp", bytes_as(BMP[: len(BMP) // 2]), "is cut short"),
    "truncated webp": ("a.webp", bytes_as(WEBP[: len(WEBP) // 2]), "is cut short"),
    "truncated tiff": ("a.tif", bytes_as(TIFF[: len(TIFF) // 2]), "is cut short"),
    "truncated lzw tiff": ("a.tif", bytes_as(LZW[: len(LZW) // 2]), "is cut short"),
    "png with half its pixels": (
        "a.png",
        bytes_as(png(50, 40, bytes(151 * 20))),
        "3020 of 6040 bytes of its pixels are missing",
    ),
    "png with a wrong checksum": ("a.png", bytes_as(PNG[:60] + b"???" + PNG[63:]), "checksum"),
    "gif called png": ("a.png", bytes_as(GIF), "is not PNG but GIF"),
    "gif": ("a.gif", bytes_as(GIF), "a.gif is GIF: convert it"),
    "text": ("a.jpg", bytes_as(b"Nothing to see here.\n" * 9), "is not JPEG but text"),
    "web page": ("a.jpg", bytes_as(b"<!doctype html><title>404</title>"), "is not JPEG but text"),
    "pdf": ("a.png", bytes_as(b"%PDF-1.7\n\x80\x81"), "is not PNG but PDF"),
    "program": ("a.bmp", bytes_as(b"\x7fELF\x02\x01\x01\0\0"), "is not BMP but a program"),
    "pickle": ("a.png", bytes_as(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0."), "is not PNG"),
    "noise": ("a.png", bytes_as(RNG.bytes(5000)), "is not PNG"),
    "noise after a signature": ("a.tif", bytes_as(b"II*\0" + RNG.bytes(500)), "a.tif "),
    "zeros": ("a.bmp", bytes_as(bytes(4096)), "is not BMP"),
    "no width": ("a.png", bytes_as(png(0, 7, b"")), "0x7"),
    "no height": ("a.jpg", bytes_as(jpeg_of_size(9, 0)), "has no pixels: 9x0"),
    "folder": ("a.png", lambda path: path.mkdir(), "is a folder"),
    "image bomb png": ("a.png", bytes_as(png(60_000, 60_000, bytes(10_000_000))), "at most 200000000 are read"),
    "image bomb jpeg": ("a.jpg", sparse(jpeg_of_size(65_500, 65_500), 1 << 24), "at most 200000000 are read"),
    "jpeg of few bytes": ("a.jpg", bytes_as(jpeg_of_size(14_000, 14_000)), "bytes cannot hold 14000x14000 pixels"),
    "large progressive jpeg": (
        "a.jpg",
        sparse(jpeg_of_size(10_100, 10_100, PROGRESSIVE), 1 << 24),
        "10100x10100 pixels in progressive steps, at most 100000000",
    ),
    "large claim within the cap": ("a.png", bytes_as(png(14_000, 14_000, b"")), "bytes of its pixels are missing"),
    "huge file of a small image": ("a.png", sparse(PNG, 6 << 30), "far more than 50x40 pixels take"),
    "huge file of a small jpeg": ("a.jpg", sparse(JPEG, 6 << 30), "far more than 50x40 pixels take"),
    "huge file of nothing": ("a.webp", sparse(b"RIFF\xff\xff\xff\x0fWEBP", 1 << 30), "does not begin with its header"),
    "jpeg of many scans": ("a.jpg", bytes_as(jpeg_of_scans(200)), "has more than 100 scans"),
    "jpeg of many segments": (
        "a.jpg",
        bytes_as(JPEG[:2] + b"\xff\xfe\0\x02" * 20_000 + JPEG[2:]),
        "has no frame header in its first",
    ),
    "jpeg without its last scans": (
        "a.jpg",
        bytes_as(PROGRESSIVE[: PROGRESSIVE.rindex(b"\xff\xda")] + b"\xff\xd9"),
        "last scans are missing",
    ),
    "jpeg cut with an end marker": ("a.jpg", bytes_as(JPEG[:-40] + b"\xff\xd9"), "data end before its last pixel"),
    "png of many chunks": ("a.png", bytes_as(PNG[:33] + chunk(b"IDAT", b"") * 250_000 + PNG[33:]), "more than 200000"),
    "png of an unknown kind": ("a.png", bytes_as(png(50, 40, b"", kind=5)), "is damaged: colour type 5"),
    "png of three bits": ("a.png", bytes_as(png(50, 40, b"", depth=3)), "of 3 bits"),
    "png in an unknown way": ("a.png", bytes_as(png(50, 40, b"", way=2)), "in ways [0, 0, 2]"),
    "png without a palette": ("a.png", bytes_as(png(50, 40, bytes(2040), kind=3)), "no palette"),
    "huge tiles": (
        "a.tif",
        bytes_as(tiff_file(100, 100, [BOMB[:9999]], 8, tags={TILE_WIDTH: 1 << 20, TILE_HEIGHT: 1 << 20})),
        "tiles of 1048576x1048576 pixels in an image of 100x100",
    ),
    "tiny tiles": (
        "a.tif",
        bytes_as(tiff_file(300, 300, [b"x"], 8, tags={TILE_WIDTH: 1, TILE_HEIGHT: 1}, starts=[8] * 90_000)),
        "tiles of 1x1",
    ),
    "strips over each other": (
        "a.tif",
        bytes_as(tiff_file(500, 500, [b"\0\0\0\xff\xff" * 40_000], 8, tags={STRIP_ROWS: 1}, starts=[8] * 500)),
        "its 500 parts lie over each other",
    ),
    "tiff with too few bytes in a strip": (
        "a.tif",
        bytes_as(tiff_file(100, 100, [zlib.compress(bytes(99))], 8)),
        "99 of",
    ),
    "pgm of half its pixels": ("a.pgm", bytes_as(b"P5 40 50 255\n" + bytes(1000)), "cannot hold 40x50 pixels"),
    "pgm of words": ("a.pgm", bytes_as(b"P2 2 2 255\n1 2 three 4 "), "not all numbers"),
    "pgm above its highest": ("a.pgm", bytes_as(b"P2 2 2 9\n1 2 3 10"), "its header allows 9"),
    "pgm of comments": ("a.pgm", bytes_as(b"P5 " + b"#\n" * 100_000), "header is not that of"),
    "image bomb ppm": ("a.ppm", sparse(b"P6 60000 60000 255\n", (3 * 60_000**2) + 100), "at most 200000000 are read"),
    "image bomb jpeg 2000": ("a.jp2", bytes_as(codestream(-6, struct.pack(">II", 60_000, 60_000))), "at most 32000000"),
    "jpeg 2000 of many layers": ("a.j2k", bytes_as(codestream(6, b"\xff\xff")), "more than 100 layers"),
    "jpeg 2000 of tiny blocks": ("a.j2k", bytes_as(codestream(10, b"\0\0")), "parts too tiny"),
    "jpeg 2000 of tiny tiles": ("a.j2k", bytes_as(codestream(-22, struct.pack(">II", 1, 1))), "2000 tiles"),
    "jpeg 2000 of a short size": ("a.j2k", bytes_as(codestream(-2, b"\0\x08")), "is damaged in its header"),
    "truncated jpeg 2000": ("a.jp2", bytes_as(JP2[: len(JP2) // 2]), "is cut short"),
    "jpeg 2000 cut with an end marker": ("a.jp2", bytes_as(JP2[: len(JP2) // 2] + b"\xff\xd9"), "a.jp2 "),
    "cmyk": ("a.jpg", lambda path: Image.fromarray(PIXELS).convert("CMYK").save(path), "is CMYK"),
    "float tiff": ("a.tif", lambda path: tifffile.imwrite(path, PIXELS[..., 0] / np.float32(255)), "save it with"),
    "cmyk tiff": ("a.tif", lambda path: Image.fromarray(PIXELS).convert("CMYK").save(path), "neither grey, RGB"),
    "pictures in a row": ("a.pgm", lambda p: p.write_bytes(2 * b"P5 2 1 255\n\0\1"), "more than one image"),
    "pages": ("a.tif", pages, "more than one page"),
    "tags in a loop": ("a.tif", tags_in_a_loop, "more than one page"),
    "animated png": ("a.png", animated("PNG"), "is animated"),
    "animated webp": ("a.webp", animated("WEBP"), "is animated"),
    "fifo": ("a.png", fifo, "is a FIFO"),
    "socket": ("a.png", bound_socket, "is a socket"),
    "device": ("a.png", link_to("/dev/zero"), "is a device"),
    "link to itself": ("a.png", link_to("a.png"), "Too many levels of symbolic links"),
    "link to nothing": ("a.png", link_to("nowhere.png"), "No such file"),
    "nul in its name": ("a\0b.png", lambda path: None, "null byte"),
    "line break in its name": ("a\nb.png", bytes_as(b""), "is empty"),
    "name too long": ("a" * 300 + ".png", lambda path: None, "File name too long"),
}
NEEDS_POSIX = {
    "fifo",
    "socket",
    "device",
    "link to itself",
    "link to nothing",
    "line break in its name",
    "name too long",
}


def make(folder, kind):
    if kind in NEEDS_POSIX and not POSIX:
        pytest.skip("this kind of file is not to be had on Windows")
    name, write, _ = HOSTILE[kind]
    path = folder / name
    write(path)
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", HOSTILE)
def test_one_clear_line(tmp_path, kind):
    path = make(tmp_path, kind)
    with pytest.raises(ImageError, match=re.escape(HOSTILE[kind][2])) as caught:
        read(path)
    message = str(caught.value)
    assert (str(path) if str(path).isprintable() else repr(str(path))) in message
    assert message.isprintable()  # no line break, no escape sequence


def test_the_list_is_long_enough():
    assert len(HOSTILE) >= 25


@pytest.mark.parametrize(
    "kind", ["truncated png", "truncated bmp", "gif called png", "cmyk", "pages", "folder", "empty"]
)
def test_the_header_alone_tells(tmp_path, kind):
    with pytest.raises(ImageError, match=re.escape(HOSTILE[kind][2])):
        read_header(make(tmp_path, kind))


@pytest.mark.skipif(not POSIX, reason="Windows has neither modes nor users like these")
def test_permission_denied():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder, "a.png")
        path.write_bytes(PNG)
        path.chmod(0)
        became_nobody = os.geteuid() == 0  # root may read everything
        if became_nobody:
            os.seteuid(65534)
        try:
            with pytest.raises(ImageError, match=r"a\.png cannot be read: Permission denied"):
                read(path)
        finally:
            if became_nobody:
                os.seteuid(0)


INSPECT_ALL = (
    PEAK_MIB
    + """
import json, resource, sys
from pathlib import Path
from makel.errors import ImageError
from makel.images import decode_all
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
paths = [Path(line) for line in json.loads(sys.stdin.read())]
results = list(decode_all(paths))
said = [None if not isinstance(result, ImageError) else str(result) for _, result in results]
cpu_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime
print(json.dumps({"said": said, "peak_mib": peak_mib(), "cpu_s": cpu_s}))
"""
)


@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks of memory are Linux's")
def test_a_run_over_all_of_them_goes_on_in_little_memory_and_says_nothing_else(tmp_path):
    paths = []
    for index, kind in enumerate(HOSTILE):
        (tmp_path / str(index)).mkdir()
        paths.append(make(tmp_path / str(index), kind))
    for name, data in {"good.png": PNG, **BOMBS}.items():
        (tmp_path / name).write_bytes(data)
        paths.append(tmp_path / name)
    ran = subprocess.run(
        [sys.executable, "-c", INSPECT_ALL],
        input=json.dumps([str(path) for path in paths]),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert all(told["said"][: len(HOSTILE)])
    assert told["said"][len(HOSTILE) :] == [None] * (1 + len(BOMBS))
    assert told["cpu_s"] < 10  # inflating the bombs would take more for each
    assert told["peak_mib"] < 300
    assert not ran.stderr


def test_decoding_ahead_gives_the_errors_as_values(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "third").mkdir()
    good = tmp_path / "b.png"
    good.write_bytes(PNG)
    paths = [make(tmp_path / "first", "empty"), good, make(tmp_path / "third", "folder")]
    results = [result for _, result in decode_all(paths)]
    assert [isinstance(result, ImageError) for result in results] == [True, False, True]
    np.testing.assert_array_equal(results[1], PIXELS)
