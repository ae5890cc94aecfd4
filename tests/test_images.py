import io
import itertools
import struct
import threading
import time
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from makel.errors import ImageError
from makel.images import SUFFIXES, Preparation, decode, decode_all, find, prepare, read, read_header
from makel.types import in_px
from tiff_file import PREDICTOR, STRIP_ROWS, tiff_file

HEIGHT, WIDTH = 29, 37  # primes, so that swapped axes cannot cancel
RNG = np.random.default_rng(0)
GREY = cv2.GaussianBlur(RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8), (0, 0), 1.5)
RGB = cv2.GaussianBlur(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 1.5)
ALPHA = np.where(np.indices((HEIGHT, WIDTH)).sum(axis=0) % 3, 255, 0).astype(np.uint8)
GREY16, RGB16 = GREY.astype(np.uint16) * 201, RGB.astype(np.uint16) * 201
GREY_RAMP = [level for level in range(256) for _ in range(3)]

rgb256 = Preparation(256, 256, "rgb")


def save(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def save16(path, pixels, *flags):
    stored = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
    path.write_bytes(cv2.imencode(path.suffix, stored, list(flags))[1].tobytes())
    return path


def palette(pixels, colours):
    image = Image.fromarray(pixels, "L")
    indexed = Image.new("P", image.size)
    indexed.putdata(list(image.getdata()) if not hasattr(image, "get_flattened_data") else image.get_flattened_data())
    indexed.putpalette(colours)
    return indexed


def packbits(pixels):
    """Runs, and bytes as they are, with empty codes between."""
    runs = [bytes([257 - 2, row[0]]) + b"\x80" + bytes([len(row) - 3]) + row[2:] for row in pixels]
    return b"".join(runs)


def differences(pixels):
    """A Deflate TIFF whose values are differences along each row."""
    rows = np.diff(pixels, axis=1, prepend=np.zeros_like(pixels[:, :1]))
    return tiff_file(WIDTH, HEIGHT, [zlib.compress(rows.tobytes())], 8, bits=8 * pixels.itemsize, tags={PREDICTOR: 2})


DOUBLED = np.concatenate([GREY[:, :1], GREY], axis=1)
"""Rows that begin with a run of two."""


def pnm(kind, pixels, highest):
    return f"P{kind}\n# by a camera\n{WIDTH} {HEIGHT}\n{highest}\n".encode() + pixels.tobytes()


def words(kind, pixels):
    lines = "\n".join(" ".join(map(str, row.ravel())) for row in pixels)
    return f"P{kind} {WIDTH} {HEIGHT} 255\n{lines}\n".encode()


COLOURS = [value for level in range(256) for value in (level, 255 - level, level // 2)]
COLOURED = np.array(COLOURS, np.uint8).reshape(256, 3)[GREY]

LOSSLESS = {
    # name: what writes the file, and what must come back
    "png grey": ("a.png", lambda p: save(p, GREY), GREY),
    "png rgb": ("a.png", lambda p: save(p, RGB), RGB),
    "png grey 16": ("a.png", lambda p: save16(p, GREY16), GREY16),
    "png rgb 16": ("a.png", lambda p: save16(p, RGB16), RGB16),
    "png rgba": ("a.png", lambda p: save(p, np.dstack([RGB, ALPHA])), RGB),
    "png rgba 16": ("a.png", lambda p: save16(p, np.dstack([RGB16, ALPHA.astype(np.uint16) * 257])), RGB16),
    "png grey alpha": ("a.png", lambda p: save(p, np.dstack([GREY, ALPHA])), GREY),
    "png palette": ("a.png", lambda p: palette(GREY, COLOURS).save(p), COLOURED),
    "png palette transparent": ("a.png", lambda p: palette(GREY, COLOURS).save(p, transparency=7), COLOURED),
    "png palette grey": ("a.png", lambda p: palette(GREY, GREY_RAMP).save(p), GREY),
    "png one bit": ("a.png", lambda p: Image.fromarray(GREY > 128).save(p), np.where(GREY > 128, 255, 0)),
    "bmp grey": ("a.bmp", lambda p: save(p, GREY), GREY),
    "bmp rgb": ("a.bmp", lambda p: save(p, RGB), RGB),
    "bmp palette": ("a.bmp", lambda p: palette(GREY, COLOURS).save(p), COLOURED),
    "bmp one bit": ("a.bmp", lambda p: Image.fromarray(GREY > 128).save(p), np.where(GREY > 128, 255, 0)),
    "bmp 32 bits": ("a.bmp", lambda p: save(p, np.dstack([RGB, np.zeros_like(ALPHA)])), RGB),
    "webp": ("a.webp", lambda p: save(p, RGB, lossless=True), RGB),
    "webp alpha": ("a.webp", lambda p: save(p, np.dstack([RGB, ALPHA]), lossless=True, exact=True), RGB),
    "tiff grey": ("a.tif", lambda p: save(p, GREY), GREY),
    "tiff grey 16": ("a.tif", lambda p: tifffile.imwrite(p, GREY16), GREY16),
    "tiff grey 16 big-endian": ("a.tiff", lambda p: tifffile.imwrite(p, GREY16, byteorder=">"), GREY16),
    "tiff grey 16 lzw": ("a.tif", lambda p: save16(p, GREY16, cv2.IMWRITE_TIFF_COMPRESSION, 5), GREY16),
    "tiff rgb 16": ("a.tif", lambda p: tifffile.imwrite(p, RGB16, photometric="rgb"), RGB16),
    "tiff rgb 16 lzw": ("a.tif", lambda p: save16(p, RGB16, cv2.IMWRITE_TIFF_COMPRESSION, 5), RGB16),
    "tiff rgb 16 deflate": (
        "a.tif",
        lambda p: tifffile.imwrite(p, RGB16, photometric="rgb", compression="zlib"),
        RGB16,
    ),
    "tiff rgb": ("a.tif", lambda p: save(p, RGB), RGB),
    "tiff rgb lzw": ("a.tif", lambda p: save(p, RGB, compression="tiff_lzw"), RGB),
    "tiff rgb deflate": ("a.tif", lambda p: save(p, RGB, compression="tiff_adobe_deflate"), RGB),
    "tiff rgb packbits": ("a.tif", lambda p: save(p, RGB, compression="packbits"), RGB),
    "tiff rgba": ("a.tif", lambda p: save(p, np.dstack([RGB, ALPHA])), RGB),
    "tiff rgba lzw": ("a.tif", lambda p: save(p, np.dstack([RGB, ALPHA]), compression="tiff_lzw"), RGB),
    "tiff palette": ("a.tif", lambda p: palette(GREY, COLOURS).save(p), COLOURED),
    "tiff one bit": ("a.tif", lambda p: Image.fromarray(GREY > 128).save(p), np.where(GREY > 128, 255, 0)),
    "tiff white is zero": ("a.tif", lambda p: tifffile.imwrite(p, 255 - GREY, photometric="miniswhite"), GREY),
    "tiff planes": (
        "a.tif",
        lambda p: tifffile.imwrite(p, RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
        RGB,
    ),
    "tiff tiles": ("a.tif", lambda p: tifffile.imwrite(p, RGB, photometric="rgb", tile=(16, 16)), RGB),
    "tiff big": ("a.tif", lambda p: tifffile.imwrite(p, RGB, photometric="rgb", bigtiff=True), RGB),
    "tiff palette lzw": ("a.tif", lambda p: palette(GREY, COLOURS).save(p, compression="tiff_lzw"), COLOURED),
    "tiff packbits": (
        "a.tif",
        lambda p: p.write_bytes(
            tiff_file(
                WIDTH + 1,
                HEIGHT,
                [packbits(map(bytes, DOUBLED[at : at + 10])) for at in (0, 10, 20)],
                32773,
                tags={STRIP_ROWS: 10},
            )
        ),
        DOUBLED,
    ),
    "tiff rgb 16 deflate strips": (
        "a.tif",
        lambda p: tifffile.imwrite(p, RGB16, photometric="rgb", compression="zlib", rowsperstrip=5, byteorder=">"),
        RGB16,
    ),
    "tiff predictor": ("a.tif", lambda p: p.write_bytes(differences(GREY)), GREY),
    "tiff predictor 16": ("a.tif", lambda p: p.write_bytes(differences(GREY16)), GREY16),
    "tiff padded strips": (
        "a.tif",
        lambda p: p.write_bytes(
            tiff_file(
                WIDTH, HEIGHT, [GREY[at : at + 10].tobytes() + b"pad" for at in (0, 10, 20)], 1, tags={STRIP_ROWS: 10}
            )
        ),
        GREY,
    ),
    "tiff tiles deflate": (
        "a.tif",
        lambda p: tifffile.imwrite(p, RGB, photometric="rgb", tile=(16, 16), compression="zlib"),
        RGB,
    ),
    "tiff planes strips": (
        "a.tif",
        lambda p: tifffile.imwrite(
            p, RGB16.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", rowsperstrip=4, compression="zlib"
        ),
        RGB16,
    ),
    "dib": ("a.dib", lambda p: save(p, RGB, format="BMP"), RGB),
    "ppm": ("a.ppm", lambda p: save(p, RGB), RGB),
    "pgm": ("a.pgm", lambda p: save(p, GREY), GREY),
    "pgm 16": ("a.pgm", lambda p: save16(p, GREY16), GREY16),
    "pgm 12": (
        "a.pgm",
        lambda p: p.write_bytes(pnm(5, (GREY.astype(np.uint16) * 16).astype(">u2"), 4095)),
        GREY.astype(np.uint16) * 16,
    ),
    "pgm and a line": ("a.pgm", lambda p: p.write_bytes(pnm(5, GREY, 255) + b"\n"), GREY),
    "pgm of few levels": ("a.pgm", lambda p: p.write_bytes(pnm(5, GREY // 128, 1)), GREY // 128 * 255),
    "ppm in words": ("a.ppm", lambda p: p.write_bytes(words(3, RGB)), RGB),
    "pgm in words": ("a.pnm", lambda p: p.write_bytes(words(2, GREY)), GREY),
    "jp2 rgb": ("a.jp2", lambda p: save(p, RGB), RGB),
    "jp2 grey": ("a.jp2", lambda p: save(p, GREY), GREY),
    "jp2 grey 16": ("a.jp2", lambda p: save(p, GREY16), GREY16),
    "jp2 rgba tiles": ("a.jp2", lambda p: save(p, np.dstack([RGB, ALPHA]), tile_size=(16, 16)), RGB),
    "jpeg 2000 codestream": ("a.j2k", lambda p: save(p, RGB, no_jp2=True), RGB),
    "tiff strips": ("a.tif", lambda p: tifffile.imwrite(p, GREY, rowsperstrip=3), GREY),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_come_back_exactly_and_the_header_agrees(tmp_path, name):
    file_name, write, expected = LOSSLESS[name]
    path = tmp_path / file_name
    write(path)
    pixels = read(path)
    np.testing.assert_array_equal(pixels, expected)
    assert pixels.flags.c_contiguous
    header = read_header(path)
    assert (header.height_px, header.width_px) == pixels.shape[:2]
    assert header.channels == (3 if pixels.ndim == 3 else 1)
    assert header.bit_depth == 8 * pixels.dtype.itemsize


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_jpeg_is_what_pillow_decodes(tmp_path, mode, options):
    path = save(tmp_path / "a.JPG", RGB, mode, quality=90, subsampling=0, **options)
    with Image.open(path) as image:
        assert np.abs(np.asarray(image).astype(int) - read(path)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    path = save(tmp_path / f"a{suffix}", RGB, exif=exif, **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    pixels = read(path)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= (3 if suffix == ".jpg" else 0)
    header = read_header(path)
    assert (header.height_px, header.width_px, header.orientation) == (*expected.shape[:2], orientation)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\3"]
)
def test_broken_exif_counts_as_upright(tmp_path, exif):
    path = save(tmp_path / "a.jpg", RGB, exif=exif)
    assert read_header(path).orientation == 1
    assert read(path).shape == RGB.shape


def test_orientation_out_of_range_counts_as_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 9
    assert read(save(tmp_path / "a.png", RGB, exif=exif)).shape == RGB.shape


def test_a_png_that_libpng_grumbles_about_is_read_in_silence(tmp_path, capfd):
    path = save(tmp_path / "a.png", RGB, icc_profile=b"not a profile")
    np.testing.assert_array_equal(read(path), RGB)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", LOSSLESS)
def test_bytes_give_the_pixels_of_their_file(tmp_path, name):
    file, write, expected = LOSSLESS[name]
    write(tmp_path / file)
    np.testing.assert_array_equal(decode((tmp_path / file).read_bytes()), expected)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "part 7 is empty, 0 bytes: send it again"),
        (b"GIF89a", "part 7 is GIF: convert it to JPEG, PNG, BMP, TIFF, WebP, PNM, JPEG 2000"),
        (b"\0\1", "part 7 is no image known here; JPEG, PNG, BMP, TIFF, WebP, PNM, JPEG 2000 are read: send it again"),
    ],
)
def test_bytes_that_are_no_image_are_refused_by_the_name_given(data, said):
    with pytest.raises(ImageError) as caught:
        decode(data, name="part 7")
    assert str(caught.value) == said


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.jp2", "a.ppm", "a.jfif", "a.dat", "a"])
@pytest.mark.parametrize("held", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM"])
def test_the_content_decides_what_a_file_is(tmp_path, name, held):
    options = {"lossless": True} if held == "WEBP" else {"quality": 95, "subsampling": 0} if held == "JPEG" else {}
    path = save(tmp_path / name, RGB, format=held, **options)
    assert np.abs(read(path).astype(int) - RGB).max() <= (12 if held == "JPEG" else 0)
    if path.suffix in SUFFIXES:
        ((_, image),) = decode_all(find(tmp_path))
        np.testing.assert_array_equal(image, read(path))


CUT_SHORT = {
    # options of the encoder: those that make the file end in other ways
    "baseline": {},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "full colour": {"subsampling": 0},
}


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", CUT_SHORT)
def test_a_cut_jpeg_with_an_end_marker_is_cut_short(tmp_path, capfd, kind, mode):
    large = np.tile(RGB, (4, 4, 1))
    data = save(tmp_path / "a.jpg", large, mode, **CUT_SHORT[kind]).read_bytes()
    assert decode(data).shape[:2] == large.shape[:2]
    first = data.index(b"\xff\xda") + 14
    for kept in [*range(first, len(data) - 3, len(data) // 15), len(data) - 3]:
        with pytest.raises(ImageError, match=r"is cut short|is damaged"):
            decode(data[:kept] + b"\xff\xd9")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", CUT_SHORT)
def test_a_whole_jpeg_that_a_decoder_grumbles_about_is_read(tmp_path, kind):
    data = save(tmp_path / "a.jpg", RGB, **CUT_SHORT[kind]).read_bytes()
    expected = decode(data)
    adobe = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\x07"  # a colour transform nobody knows: taken as the usual one
    padded = data if kind == "restarts" else data[:-2] + bytes(4) + data[-2:]
    for odd in (padded, data[:2] + adobe + data[2:], data[:11] + b"\x09" + data[12:]):
        np.testing.assert_array_equal(decode(odd), expected)


def test_jpegs_are_what_opencv_gives(tmp_path):
    for mode, flag in (("L", cv2.IMREAD_GRAYSCALE), ("RGB", cv2.IMREAD_COLOR_RGB)):
        data = save(tmp_path / "a.jpg", RGB, mode).read_bytes()
        np.testing.assert_array_equal(decode(data), cv2.imdecode(np.frombuffer(data, np.uint8), flag))


@pytest.mark.parametrize("kind", [0, 2, 3, 4, 6])
def test_interlaced_png(tmp_path, kind):
    whole = {0: GREY, 2: RGB, 3: COLOURED, 4: GREY, 6: RGB}[kind]
    for height, width in ((HEIGHT, WIDTH), (1, 1), (3, 2), (9, 5)):
        pixels = {0: GREY, 2: RGB, 3: GREY, 4: np.dstack([GREY, ALPHA]), 6: np.dstack([RGB, ALPHA])}[kind]
        (tmp_path / "a.png").write_bytes(interlaced(kind, pixels[:height, :width]))
        np.testing.assert_array_equal(read(tmp_path / "a.png"), whole[:height, :width])


def interlaced(kind, pixels):
    """A PNG in the seven passes of Adam7, without filters."""
    raw = b""
    for left, top, across, down in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = pixels[top::down, left::across]
        if part.shape[0] and part.shape[1]:
            raw += b"".join(b"\0" + row.tobytes() for row in part)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, kind, 0, 0, 1)
    chunks = [
        (b"IHDR", header),
        *([(b"PLTE", bytes(COLOURS))] if kind == 3 else []),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def test_the_pixel_cap_holds_for_bytes(tmp_path):
    data = save(tmp_path / "a.png", GREY).read_bytes()
    assert decode(data, max_pixels=HEIGHT * WIDTH).shape == GREY.shape
    with pytest.raises(ImageError, match=f"at most {HEIGHT * WIDTH - 1} are read"):
        decode(data, max_pixels=HEIGHT * WIDTH - 1)


def test_trailing_bytes_do_no_harm(tmp_path):
    for suffix in (".jpg", ".png", ".bmp"):
        path = save(tmp_path / f"a{suffix}", RGB)
        before = read(path)
        path.write_bytes(path.read_bytes() + b"camera notes" * 20)
        np.testing.assert_array_equal(read(path), before)


def test_the_pixel_cap_is_the_callers(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    assert read(path, max_pixels=WIDTH * HEIGHT).shape == RGB.shape
    with pytest.raises(ImageError, match=rf"a\.png has {WIDTH}x{HEIGHT} pixels, at most 1072 are read"):
        read(path, max_pixels=WIDTH * HEIGHT - 1)


def encoded(suffix, **options):
    stream = io.BytesIO()
    Image.fromarray(RGB).save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return stream.getvalue()


WHOLE = [
    ("jpg", encoded("jpg")),
    ("jpg", encoded("jpg", progressive=True)),
    ("png", encoded("png")),
    ("bmp", encoded("bmp")),
    ("webp", encoded("webp")),
    ("tif", encoded("tif")),
    ("tif", encoded("tif", compression="tiff_lzw")),
    ("tif", encoded("tif", compression="tiff_adobe_deflate")),
]


@pytest.mark.parametrize(("suffix", "data"), WHOLE)
@pytest.mark.parametrize("zeros", [False, True], ids=["cut", "cut and filled with zeros"])
def test_a_truncated_file_is_never_returned_in_part(tmp_path, suffix, data, zeros):
    if zeros and (suffix in ("bmp", "webp") or data == encoded("tif")):
        pytest.skip("nothing in this format tells zeros from pixels")
    path = tmp_path / f"a.{suffix}"
    for kept in range(1, len(data) - 2, 53):
        path.write_bytes(data[:kept] + bytes(len(data) - kept) * zeros)
        with pytest.raises(ImageError, match=rf"a\.{suffix} "):
            read(path)


@given(st.sampled_from(WHOLE), st.data())
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_file_gives_an_image_of_its_headers_size_or_one_clear_line(tmp_path, whole, data):
    suffix, original = whole
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(changed), 400) - 1) | st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(changed)
    ((_, result),) = decode_all([path], max_pixels=1_000_000)
    if isinstance(result, ImageError):
        assert str(path) in str(result)
        assert "\n" not in str(result)
    else:
        header = read_header(path)
        assert result.shape[:2] == (header.height_px, header.width_px)


# Preparing


@pytest.mark.parametrize("shape", [(29, 37), (512, 300), (100, 700), (1, 5000), (5000, 1), (1, 1), (256, 256)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_any_size_becomes_the_square_the_model_takes(shape, dtype):
    full = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    image = np.full((*shape, 3), full, dtype)
    image[..., 1] = 0
    before = image.copy()
    prepared = prepare(image, Preparation(256, 256, "rgb", 65535 if dtype == np.uint16 else None))
    assert prepared.shape == (3, 256, 256)
    assert prepared.dtype == np.float32
    assert prepared.flags.c_contiguous
    np.testing.assert_allclose(prepared[0], 1, atol=1e-6)
    assert prepared.max() <= 1
    np.testing.assert_array_equal(prepared[1], 0)
    np.testing.assert_array_equal(image, before)


def test_shrinking_averages_areas():
    image = np.array([[0, 100, 8, 8], [200, 100, 8, 8]], np.uint8)
    prepared = prepare(image, Preparation(1, 1, "grey"))
    np.testing.assert_allclose(prepared, np.float32(54 / 255))
    checkers = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    np.testing.assert_allclose(prepare(checkers, Preparation(128, 128, "grey")), 0.5, atol=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("factors", [(3, 3), (5, 3), (3, 1), (6, 9), (2.5, 1.5)])
def test_shrinking_by_any_factor_averages_areas(dtype, factors):
    """Sums over the area of each new pixel, parts of pixels in part: what interpolation between four pixels is not."""
    high, wide = (round(2 * 3 * factor) for factor in factors)
    image = RNG.integers(0, 256, (high, wide)).astype(dtype) / (255 if dtype == np.float32 else 1)

    def shares(length, parts):
        edges = np.linspace(0, length, parts + 1)
        inner = np.minimum(edges[1:, None], np.arange(1, length + 1)) - np.maximum(edges[:-1, None], np.arange(length))
        return np.clip(inner, 0, None) / (length / parts)

    expected = shares(high, 6) @ image.astype(float) @ shares(wide, 6).T
    scale = {np.uint8: 255, np.uint16: 1023, np.float32: 1}[dtype]
    prepared = prepare(image.astype(dtype), Preparation(6, 6, "grey", 1023 if dtype == np.uint16 else None))[0]
    np.testing.assert_allclose(prepared * scale, expected, atol=0.51 if dtype != np.float32 else 1e-5)


def test_height_and_width_of_the_input_are_not_swapped():
    image = np.arange(48, dtype=np.uint8).reshape(4, 12)
    prepared = prepare(image, Preparation(2, 3, "grey"))
    expected = image.reshape(2, 2, 3, 4).mean((1, 3))
    assert prepared.shape == (3, 2, 3)
    np.testing.assert_allclose(prepared[1] * 255, expected, atol=0.51)
    grown = prepare(image, Preparation(8, 3, "grey"))[0] * 255
    assert grown.shape == (8, 3)
    np.testing.assert_allclose(grown[[0, 7]], image.reshape(4, 3, 4).mean(2)[[0, 3]], atol=0.51)
    half = prepare(np.repeat(np.repeat(image, 8, 0), 8, 1), Preparation(2, 3, "grey"))  # by halving
    np.testing.assert_allclose(half, prepared, atol=2 / 255)
    assert Preparation(2, 3, "grey").shape == (2, 3)
    assert in_px((2, 3)) == "3 x 2 px"


def test_each_axis_is_resized_in_the_way_that_suits_it():
    # Fine stripes along the axis that shrinks, a ramp along the axis that grows.
    stripes = (np.arange(512) % 2 * 200).astype(np.uint8)
    image = np.stack([stripes // 2, stripes])  # 2 x 512
    prepared = prepare(image, Preparation(64, 64, "grey"))[0] * 255
    np.testing.assert_allclose(prepared[0], 50, atol=1)
    np.testing.assert_allclose(prepared[-1], 100, atol=1)
    assert (np.diff(prepared[:, 0]) >= 0).all()
    assert 70 < prepared[32, 0] < 80


def test_an_image_of_the_right_size_is_only_scaled():
    image = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    prepared = prepare(image, Preparation(64, 64, "rgb"))
    np.testing.assert_array_equal(prepared, image.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def test_grey_fills_three_channels_in_every_shape():
    flat = prepare(GREY, Preparation(16, 16, "grey"))
    assert (flat[0] == flat[1]).all()
    assert (flat[0] == flat[2]).all()
    np.testing.assert_array_equal(prepare(GREY[..., None], Preparation(16, 16, "grey")), flat)
    np.testing.assert_array_equal(prepare(np.dstack([GREY] * 3), Preparation(16, 16, "grey")), flat)
    np.testing.assert_array_equal(prepare(GREY, Preparation(16, 16, "any")), flat)


def test_the_white_level_becomes_one():
    image = np.array([[0, 2048], [4095, 5000]], np.uint16)
    prepared = prepare(image, Preparation(2, 2, "grey", 4095))
    np.testing.assert_allclose(prepared[0], [[0, 2048 / 4095], [1, 1]])


@pytest.mark.parametrize(
    ("image", "preparation", "message"),
    [
        (GREY16, Preparation(256, 256, "grey"), r"x\.png is 16-bit; this model was fitted on 8-bit"),
        (GREY, Preparation(256, 256, "grey", 4095), r"x\.png is 8-bit; this model was fitted on 16-bit"),
        (np.dstack([RGB, ALPHA]), rgb256, r"x\.png has shape \(29, 37, 4\)"),
        (np.zeros((0, 5, 3), np.uint8), rgb256, r"shape \(0, 5, 3\)"),
        (np.zeros(5, np.uint8), rgb256, r"shape \(5,\)"),
        (RGB.astype(np.float64), rgb256, r"is float64; uint8, uint16, or float32 in \[0, 1\] was expected"),
        (RGB.astype(np.int16), rgb256, r"is int16"),
        (RGB.astype(np.float32), rgb256, r"must lie in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan, np.float32), rgb256, r"values from nan"),
        (np.full((4, 4, 3), -0.1, np.float32), rgb256, r"values from -0\.1"),
    ],
)
def test_pixels_the_model_was_not_fitted_on_are_refused(image, preparation, message):
    with pytest.raises(ImageError, match=message) as caught:
        prepare(image, preparation, name="x.png")
    assert "\n" not in str(caught.value)


def test_colour_is_learnt_from_the_good_images(tmp_path):
    grey_in_jpeg = read(save(tmp_path / "g.jpg", np.dstack([GREY] * 3), quality=60))

    def learn(*images):
        return Preparation.of([(f"{index}.png", image) for index, image in enumerate(images)], shape=(32, 32))

    assert grey_in_jpeg.ndim == 3
    assert learn(GREY, GREY) == Preparation(32, 32, "grey")
    assert learn(GREY, grey_in_jpeg) == Preparation(32, 32, "grey")
    assert learn(grey_in_jpeg) == Preparation(32, 32, "grey")
    assert learn(RGB, RGB) == Preparation(32, 32, "rgb")
    assert learn(grey_in_jpeg, RGB) == Preparation(32, 32, "rgb")
    assert learn(GREY, RGB) == Preparation(32, 32, "any")
    assert learn(ImageError("0.png is empty"), RGB) == Preparation(32, 32, "rgb")


def in_colour(image, *gains):
    """A grey picture as RGB, each channel with a gain of its own; in the same type."""
    top = 65535 if image.dtype == np.uint16 else 255
    return np.clip(np.rint(image[..., None] * np.array(gains)), 0, top).astype(image.dtype)


def stained(image, stain=(150, 90, 50), size=6):
    """The same with a rust stain, whose colour is given for a white of 255."""
    found = in_colour(image, 1, 1, 1)
    found[4 : 4 + size, 7 : 7 + size] = np.array(stain) * (1 if image.dtype == np.uint8 else 201)
    return found


@pytest.mark.parametrize("grey", [GREY, GREY16], ids=["8 bit", "16 bit"])
@pytest.mark.parametrize("in_rgb", [False, True], ids=["grey files", "rgb files"])
def test_neither_single_pixels_nor_a_white_balance_nor_one_image_make_a_product_coloured(grey, in_rgb):
    base = in_colour(grey, 1, 1, 1) if in_rgb else grey
    hot = in_colour(grey, 1, 1, 1)
    hot[3, 5] = (np.array([255, 0, 0]) * (1 if grey.dtype == np.uint8 else 257)).astype(grey.dtype)
    images = [base] * 4 + [in_colour(grey, 1, 1.01, 0.99), in_colour(grey, 1.01, 1, 0.99), stained(grey), hot]

    def learn(*chosen):
        return Preparation.of([(f"{index}.png", image) for index, image in enumerate(chosen)], shape=(29, 37)).colour

    assert learn(*images) == "grey"
    assert learn(hot, hot) == "grey"
    coloured = [stained(grey, (200, 40, 40))] * 3  # a red label, on most of them
    assert learn(*coloured, base) == ("rgb" if in_rgb else "any")
    assert learn(base, base, base, coloured[0]) == "grey"


def test_tiles_of_one_image_count_as_one():
    red = np.full((8, 8, 3), (200, 40, 40), np.uint8)
    grey = np.full((8, 8, 3), 128, np.uint8)
    four = [("0.tif", grey)] * 5 + [("0.tif", red)] + [("1.tif", grey)] * 6 + [("2.tif", grey)] * 6
    assert Preparation.of(four, shape=(8, 8)).colour == "rgb"  # one of three images
    assert Preparation.of([*four, ("3.tif", grey)], shape=(8, 8)).colour == "grey"  # one of four


@pytest.mark.parametrize(
    ("grey", "white"), [(GREY, None), (GREY16, 65535), (GREY.astype(np.float32) / 255, None)], ids=lambda p: str(p)[:4]
)
def test_of_a_model_fitted_on_grey_a_tint_is_taken_out_and_a_stain_shows(grey, white):
    preparation = Preparation(29, 37, "grey", white)
    flat = prepare(grey, preparation)
    rounding = 1 / 255
    if grey.dtype == np.float32:
        tinted, rust = grey[..., None] * np.float32([1, 0.99, 0.98]), np.dstack([grey] * 3)
        rust[4:10, 7:13] = np.float32([150, 90, 50]) / 255
    else:
        tinted, rust = in_colour(grey, 1, 0.99, 0.98), stained(grey)
    prepared = prepare(tinted, preparation)
    assert np.ptp(prepared, axis=0).max() == 0
    np.testing.assert_allclose(prepared, flat, atol=0.02)
    found = prepare(rust, preparation)
    # 150 and 50 of 255 lie 0.392 apart, of which 8 / 255 and 3 % of 150 / 255 are allowed; grey is 0.403.
    scale = 1 if grey.dtype != np.uint16 else 201 / 257
    spread, allowed, level = scale * 100 / 255, 8 / 255 + 0.03 * scale * 150 / 255, scale * 103.38 / 255
    kept = 1 - allowed / spread
    for channel, value in enumerate((150, 90, 50)):
        expected = level + kept * (scale * value / 255 - level)
        np.testing.assert_allclose(found[channel, 4:10, 7:13], expected, atol=rounding)
    away = np.ones(grey.shape, bool)
    away[4:10, 7:13] = False
    np.testing.assert_allclose(found[:, away], flat[:, away], atol=1e-6)


def test_a_tint_that_grows_never_turns_on_one_grey_level():
    """The picture changes by no more than the tint and its rounded grey do, where it begins to show as everywhere."""
    before = None
    for step in range(60):
        image = np.full((8, 8, 3), (128 + step, 128, 128), np.uint8)
        prepared = prepare(image, Preparation(8, 8, "grey"))[:, 0, 0]
        if before is not None:
            assert np.abs(prepared - before).max() <= 1.6 / 255
        before = prepared
    assert np.ptp(before) > 0.15


@pytest.mark.parametrize("colour", ["rgb", "any"])
def test_a_model_fitted_on_colour_takes_grey_as_three_equal_channels(colour):
    prepared = prepare(GREY, Preparation(29, 37, colour))
    np.testing.assert_array_equal(prepared, prepare(np.dstack([GREY] * 3), Preparation(29, 37, colour)))
    np.testing.assert_array_equal(prepare(GREY[..., None], Preparation(29, 37, colour)), prepared)
    np.testing.assert_array_equal(prepared, np.broadcast_to(GREY / np.float32(255), (3, 29, 37)))


@pytest.mark.parametrize(
    ("brightest", "white"), [(900, 1023), (1023, 1023), (1024, 4095), (9000, 16383), (65535, 65535)]
)
def test_the_white_level_is_learnt_from_the_good_images(brightest, white):
    images = [("a.png", np.full((8, 8), 5, np.uint16)), ("b.png", np.full((8, 8), brightest, np.uint16))]
    assert Preparation.of(images, shape=(8, 8)).white_level == white


def test_good_images_that_cannot_be_compared_are_refused():
    with pytest.raises(ImageError, match=r"b\.png has 16 bits and a\.png 8: one model needs images of one bit depth"):
        Preparation.of([("a.png", GREY), ("b.png", GREY16)], shape=(32, 32))
    with pytest.raises(ImageError, match="no good image could be decoded"):
        Preparation.of([("a.png", ImageError("a.png is empty"))], shape=(32, 32))


# Decoding ahead


@pytest.fixture
def files(tmp_path):
    paths = [save(tmp_path / f"{index:02}.png", np.full((8, 8), index, np.uint8)) for index in range(20)]
    paths[7].write_bytes(b"")
    return paths


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (2, 8), (4, 100)])
def test_decoding_ahead_keeps_the_order_and_goes_on_after_an_error(files, workers, ahead):
    results = list(decode_all(map(str, files), workers=workers, ahead=ahead))
    assert [path for path, _ in results] == files
    for index, (_, image) in enumerate(results):
        if index == 7:
            assert isinstance(image, ImageError)
        else:
            np.testing.assert_array_equal(image, index)


def test_decoding_ahead_can_prepare_and_names_what_it_cannot(files):
    results = list(decode_all(files[:3], preparation=Preparation(4, 4, "grey")))
    assert [image.shape for _, image in results] == [(3, 4, 4)] * 3
    ((_, error),) = decode_all(files[:1], preparation=Preparation(4, 4, "rgb", 4095))
    assert "00.png is 8-bit; this model was fitted on 16-bit images" in str(error)


def test_decoding_ahead_takes_no_more_than_it_may_and_ends_with_its_reader(files):
    taken = itertools.count()
    decoding = decode_all((path for path in itertools.cycle(files[:5]) if next(taken) >= 0), workers=2, ahead=3)
    for _ in range(2):
        next(decoding)
    assert next(taken) == 2 + 3
    decoding.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("makel-decode_")]


def test_decoding_ahead_happens_while_the_reader_works(files, monkeypatch):
    begun = []

    def slow(path, *, max_pixels):
        begun.append(path)
        return np.zeros((2, 2), np.uint8)

    monkeypatch.setattr("makel.images.reading.read", slow)
    decoding = decode_all(files, workers=1, ahead=4)
    next(decoding)
    deadline = time.monotonic() + 10
    while len(begun) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert begun == files[:5]
    decoding.close()


# Finding


def test_find_lists_images_sorted_and_nothing_else(tmp_path):
    for name in ("b.PNG", "a.jpeg", "._a.jpeg", "notes.txt", ".hidden.png", "c.tif"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in find(tmp_path)] == ["a.jpeg", "b.PNG", "c.tif"]
    assert find(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert find(tmp_path / "missing") == [tmp_path / "missing"]
    assert ".webp" in SUFFIXES


@pytest.mark.real
def test_real_images_are_what_pillow_decodes(real_data):
    paths = find(real_data / "toothbrush" / "train" / "good")[:3] + find(real_data / "magnetic_tile/test/good")[:20]
    for path in paths:
        with Image.open(path) as image:
            expected = np.asarray(image)
        pixels = read(path)
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).max() <= (0 if path.suffix == ".png" else 3)


def test_the_header_of_a_bmp_counts_rows_from_the_top_as_well(tmp_path):
    path = save(tmp_path / "a.bmp", RGB)
    data = bytearray(path.read_bytes())
    data[22:26] = struct.pack("<i", -HEIGHT)
    path.write_bytes(data)
    np.testing.assert_array_equal(read(path), RGB[::-1])
