"""Which files are images: by what they hold where they are read, by their names where a folder is listed."""

from __future__ import annotations

import codecs
from pathlib import Path

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WebP", "PNM", "JPEG 2000")
"""What makel reads."""

_SUFFIX_FORMATS = {
    # the first of a format is the one its files get
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WebP",
    ".pnm": "PNM",
    ".pgm": "PNM",
    ".ppm": "PNM",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
}
SUFFIXES = tuple(_SUFFIX_FORMATS)
"""Endings of the files makel looks at in a folder, in lower case; upper case is as good."""

START = 512
"""Bytes of a file that tell what it is."""

_SIGNATURES = (
    # offset, bytes, what it is
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (8, b"WEBP", "WebP"),
    *((0, b"P" + kind + space, "PNM") for kind in (b"2", b"3", b"5", b"6") for space in (b"\n", b"\r", b" ", b"\t")),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"GIF8", "GIF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x93NUMPY", "NumPy"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (4, b"ftyp", "HEIC, AVIF or video"),
)
_SPACES = dict.fromkeys(map(ord, "\t\n\r\ufeff"), " ")


def format_of(start: bytes) -> str:
    """What a file is by its first `START` bytes: one of `FORMATS`, another kind, "text", or "" for unknown."""
    for offset, signature, name in _SIGNATURES:
        if start.startswith(signature, offset):
            return name
    return "text" if _is_text(start) else ""


def _is_text(start: bytes) -> bool:
    try:
        # The last letter may be cut in two.
        return codecs.getincrementaldecoder("utf-8")().decode(start).translate(_SPACES).isprintable()
    except UnicodeDecodeError:
        return False


def named_format(path: Path) -> str:
    """The format that the ending of a file's name says, "" where it says none that makel reads."""
    return _SUFFIX_FORMATS.get(path.suffix.lower(), "")


def is_image_name(path: Path) -> bool:
    """Whether a file's name ends like an image's. Hidden ones do not count: macOS leaves `._name.png` beside images."""
    return bool(named_format(path)) and not path.name.startswith(".")


def suffix_of(name: str) -> str:
    """The ending that files of a format get, such as ".png"; "" where makel does not read it."""
    return next((suffix for suffix, each in _SUFFIX_FORMATS.items() if each == name), "")


def ending(data: bytes) -> str:
    """The ending that a file of these bytes gets, such as ".png"; "" where they are no image known here."""
    return suffix_of(format_of(data[:START]))
