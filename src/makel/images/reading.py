"""From a file to pixels: the checks before opening, the pixel cap before decoding, and decoding ahead of the model."""

from __future__ import annotations

import io
import os
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from makel.errors import ImageError
from makel.images import containers, jp2, jpeg, png, pnm, tiff
from makel.images.containers import Header
from makel.images.formats import FORMATS, START, format_of, named_format
from makel.images.preparation import Preparation, prepare
from makel.images.tags import Malformed

Result = TypeVar("Result")

MAX_PIXELS = 200_000_000
"""Largest image `read` decodes unless told otherwise: a 200 Mpx line scan passes, an image bomb does not."""

_HEADER_READERS: dict[str, Callable[[BinaryIO, int], Header]] = {
    "JPEG": jpeg.read_jpeg_header,
    "PNG": png.read_png_header,
    "BMP": containers.read_bmp_header,
    "TIFF": tiff.read_tiff_header,
    "WebP": containers.read_webp_header,
    "PNM": pnm.read_pnm_header,
    "JPEG 2000": jp2.read_jp2_header,
}
_FILE_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_UPRIGHT: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    # EXIF orientation: what turns the stored pixels upright
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}

# The ImageError says what is wrong with a file; OpenCV would print its own account to the terminal before it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_FATAL)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Look at an image file without decoding it.

    Raises:
        ImageError: It is not a regular file, cannot be opened, is empty, cut short, or of a kind makel does not read:
            CMYK, animated, of several pages, of neither 8 nor 16 bits.
    """
    with opened(path) as (_, _, header):
        return header


def read(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Decode an image file and turn it upright.

    Grey stays one channel and a palette becomes the colours it stands for. Alpha is left out, not blended: what the
    camera saw is in the colours, and a background to blend with would be an invention. Colour profiles are
    left out too.

    Args:
        path: A JPEG, PNG, BMP, TIFF, WebP, PGM, PPM or JPEG 2000 file, whatever its name ends in.
        max_pixels: A larger image is refused before anything of its size is allocated.

    Returns:
        (H, W) or (H, W, 3) uint8 or uint16, RGB, C-contiguous.

    Raises:
        ImageError: As `read_header`; or it has more than `max_pixels`, or is damaged. A file that is cut short is never
            returned in part. Damage amid a JPEG, which has no checksums, cannot always be told from a picture.
    """
    with opened(path) as (stream, size, header):
        return _pixels(stream, size, header, max_pixels)


def decode(data: bytes, *, name: str = "image", max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Decode an image from the bytes of its file, as `read` does. The format is what its first bytes say.

    Args:
        data: The bytes of a file that `read` reads.
        name: What to call the image in an error.
        max_pixels: As in `read`.

    Returns:
        As `read`.

    Raises:
        ImageError: As `read`.
    """
    with _named(name):
        if not data:
            raise Malformed("is empty, 0 bytes: send it again")
        stream, size = io.BytesIO(data), len(data)
        header = _header(stream, size, _known_format(data[:START]))
        return _pixels(stream, size, header, max_pixels)


def decode_header(data: bytes, *, name: str = "image") -> Header:
    """Look at an image from the bytes of its file without decoding it, as `read_header` does at a file.

    Raises:
        ImageError: As `read_header`.
    """
    with _named(name):
        if not data:
            raise Malformed("is empty, 0 bytes: send it again")
        return _header(io.BytesIO(data), len(data), _known_format(data[:START]))


def decode_all(
    paths: Iterable[str | os.PathLike[str]],
    *,
    workers: int = 2,
    ahead: int = 8,
    preparation: Preparation | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[Path, NDArray[Any] | ImageError]]:
    """Decode files in threads, in their order, while the caller works on those before.

    Args:
        paths: Image files; taken from the iterable as they are needed.
        workers: Threads that decode.
        ahead: Images decoded or being decoded before they are asked for: what bounds the memory.
        preparation: Prepare each image as well, in its thread.
        max_pixels: As in `read`.

    Yields:
        Each path with its image, or with the error that keeps it from being one, so that the rest goes on. Closing the
        iterator early drops what has not begun and waits for what has.
    """

    def work(path: Path) -> NDArray[Any] | ImageError:
        try:
            image = read(path, max_pixels=max_pixels)
            return image if preparation is None else prepare(image, preparation, name=shown(path))
        except ImageError as error:
            return error

    return work_ahead(work, map(Path, paths), workers=workers, ahead=ahead)


def work_ahead(
    work: Callable[[Path], Result], paths: Iterable[Path], *, workers: int, ahead: int
) -> Iterator[tuple[Path, Result]]:
    """Do something with files in threads, in their order; see `decode_all`.

    Args:
        work: What to do with each.
        paths: Taken as they are needed.
        workers: Threads.
        ahead: Files done or being done before they are asked for.

    Yields:
        Each path with what `work` gave. Closing the iterator early drops what has not begun and waits for what has.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="makel-decode")
    waiting: deque[tuple[Path, Future[Result]]] = deque()
    try:
        for path in paths:
            waiting.append((path, pool.submit(work, path)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes in a file that is safe to open: regular, with something in it. To open a FIFO is to wait forever.

    Raises:
        ImageError: There is no such file, or it is a folder, a FIFO, a socket, a device, or empty.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        hint = ": give an image file or a folder of them" if isinstance(error, FileNotFoundError) else ""
        why = getattr(error, "strerror", None) or error
        raise ImageError(f"{shown(path)} cannot be read: {why}{hint}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _FILE_KINDS if is_kind(status.st_mode)), "not a regular file")
        hint = " or, to `makel inspect`, a folder that image files are right in" if stat.S_ISDIR(status.st_mode) else ""
        raise ImageError(f"{shown(path)} is {kind}: give an image file{hint}")
    if not status.st_size:
        raise ImageError(f"{shown(path)} is empty, 0 bytes: copy it again")
    return status.st_size


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, ...) stored pixels as they stand upright, by an EXIF orientation from 1 to 8."""
    return _UPRIGHT[orientation](pixels)


def shown(path: str | os.PathLike[str]) -> str:
    """A path as a message shows it: on one line, whatever its name holds."""
    name = os.fsdecode(path)
    return name if name.isprintable() else repr(name)


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int, Header]]:
    """A file, its size and its header; what goes wrong inside becomes an ImageError that names it."""
    size = file_size(path)
    with _named(path), Path(path).open("rb") as stream:
        name = _known_format(stream.read(START), Path(path))
        yield stream, size, _header(stream, size, name)


@contextmanager
def _named(name: str | os.PathLike[str]) -> Iterator[None]:
    """What goes wrong inside becomes an ImageError that names the image."""
    try:
        yield
    except Malformed as error:
        raise ImageError(f"{shown(name)} {error}") from error
    except MemoryError as error:
        raise ImageError(f"{shown(name)} does not fit into memory: cut it into parts") from error
    except OSError as error:
        raise ImageError(f"{shown(name)} cannot be read: {error.strerror or error}") from error


def _header(stream: BinaryIO, size: int, name: str) -> Header:
    """What a file of a known format says of itself; the stream stands at its start afterwards."""
    stream.seek(0)
    try:
        header = _HEADER_READERS[name](stream, size)
    except (struct.error, LookupError, ValueError) as error:  # a part of it is shorter than its kind is
        raise Malformed(f"is damaged in its header: {error}; copy it again") from error
    if not (header.width_px > 0 and header.height_px > 0):
        raise Malformed(f"has no pixels: {header.width_px}x{header.height_px}")
    containers.check_plausible(header.width_px, header.height_px, size)
    stream.seek(0)
    return header


def _pixels(stream: BinaryIO, size: int, header: Header, max_pixels: int) -> NDArray[Any]:
    """The upright pixels of a file whose header was read; nothing of their size is allocated before the cap."""
    if header.width_px * header.height_px > max_pixels:
        raise Malformed(
            f"has {header.width_px}x{header.height_px} pixels, at most {max_pixels} are read: cut it into parts, "
            "or allow more (max_pixels; at a station --max-pixels)"
        )
    pixels = _decode(stream, size, header)
    upright = np.ascontiguousarray(_UPRIGHT[header.orientation](pixels))
    expected = (header.height_px, header.width_px) + ((3,) if header.channels == 3 else ())
    if upright.shape != expected or upright.dtype.itemsize * 8 != header.bit_depth:
        raise Malformed(f"is damaged: its header says {expected}, its pixels are {upright.shape} {upright.dtype}")
    return upright


def _known_format(start: bytes, path: Path | None = None) -> str:
    """The format that a file's first bytes say. Its name, None where it has none, only helps to say what is wrong.

    Raises:
        Malformed: It is none that is read.
    """
    found, formats = format_of(start), ", ".join(FORMATS)
    if found in _HEADER_READERS:
        return found
    expected = named_format(path) if path else ""
    if found:
        raise Malformed(f"is {f'not {expected} but ' if expected else ''}{found}: convert it to {formats}")
    if expected:
        raise Malformed(f"is not {expected}, nor any other image known here: copy it again")
    what = "convert it" if path else "send it again"
    raise Malformed(f"is no image known here; {formats} are read: {what}")


def _decode(stream: BinaryIO, size: int, header: Header) -> NDArray[Any]:
    """Stored pixels: (H, W) or (H, W, 3) RGB, uint8 or uint16."""
    if header.format == "TIFF":
        return tiff.decode_tiff(stream, size, header)
    if header.format == "PNM":
        return pnm.decode_pnm(stream, header)
    data = stream.read(size)
    if header.format == "JPEG":
        return jpeg.decode_jpeg(data, header)
    if header.format == "PNG":
        data = png.bare_png(data)
    # The channels of the header: OpenCV alone would take grey with alpha for colour.
    flags = cv2.IMREAD_GRAYSCALE if header.channels == 1 else cv2.IMREAD_COLOR_RGB
    flags |= cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels: NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise Malformed(f"cannot be decoded: {_one_line(error)}") from error
    if pixels is None:
        raise Malformed("cannot be decoded: it is damaged; copy it again")
    return pixels


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
