"""Decoding in processes of its own: whatever a file does to a decoder, the station goes on, in bounded memory and time.

A decoder that takes longer than an honest image of that size could, or more memory, is ended and replaced; the image
has no pixels then, and is a fail-safe reject like any other that cannot be read. Image and pixels pass through a file
in memory, which both sides have open: a pipe would cost several milliseconds an image.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from makel.errors import ImageError, Overloaded
from makel.images import decode, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MAX_PIXELS = 30_000_000
"""Largest image a station takes unless told otherwise. Decoding and judging take up to 30 bytes a pixel for a moment:
with this a station stays below 1 GB, whatever it is sent."""

_LEAST_MEMORY_BYTES = 64 * 2**20
_BYTES_PER_PIXEL = 6
"""Room for all large images together: 8-bit RGB and a copy of it, at the largest size."""

_HANG_S = 60.0
"""Processor time is what a decoder is given; one that takes none of it, but this, hangs."""

_KEPT_BYTES = 32 * 2**20
_PATIENCE_S = 5.0

_log = logging.getLogger(__name__)


class Decode(Protocol):
    """What makes pixels of the bytes of an image file, in this process or another."""

    def __call__(self, data: bytes, /, *, name: str, large: bool = True) -> NDArray[Any]:
        """See `Decoders.decode`."""


def decode_here(data: bytes, /, *, name: str, large: bool = True) -> NDArray[Any]:
    """Decode in this process, whatever size it is."""
    del large
    return decode(data, name=name)


class LargeImageError(Exception):
    """An image that takes long and much: decode it where nothing else waits for it."""


class _Room:
    """Bytes for large images: while they are decoded, and as pixels for as long as anybody has them."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes, self._taken_bytes = size_bytes, 0
        self._changed = threading.Condition()

    def take(self, size_bytes: int, closed: threading.Event) -> int:
        """Wait for so many, or for all there are; gives how many, none where whoever waits was closed."""
        granted = min(size_bytes, self._size_bytes)
        with self._changed:
            while self._taken_bytes + granted > self._size_bytes:
                if closed.is_set():
                    return 0
                self._changed.wait(0.5)
            self._taken_bytes += granted
        return granted

    def give(self, size_bytes: int) -> None:
        with self._changed:
            self._taken_bytes -= size_bytes
            self._changed.notify_all()


class Decoders:
    """Processes that decode, as many as are needed at once. Thread-safe.

    Attributes:
        problem: Why the last image could not be given to a decoder; "" where it could.
    """

    def __init__(self, n: int, *, max_pixels: int = MAX_PIXELS, beside: Decoders | None = None) -> None:
        """Start none yet: each begins with the first image it is needed for, or with `start`.

        Args:
            n: Processes at most; whoever brings one more image waits.
            max_pixels: A larger image is refused.
            beside: Others that have the same memory for large images.
        """
        self.problem = ""
        self._n, self._max_pixels = n, max_pixels
        self._room: _Room = beside._room if beside else _Room(_LEAST_MEMORY_BYTES + _BYTES_PER_PIXEL * max_pixels)
        self._large = threading.Semaphore(max(1, n // 2))  # those who wait for room leave decoders to the others
        self._idle: list[_Decoder] = []
        self._busy: set[_Decoder] = set()
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._end_hanging, name="makel-decoders", daemon=True)
        self._watch.start()

    def start(self, n: int) -> None:
        """Start so many processes now, so that the first images do not wait for it."""
        with self._changed:
            for _ in range(min(n, self._n) - len(self._idle) - len(self._busy)):
                self._begin_another()

    def decode(self, image: bytes, *, name: str = "image", large: bool = True) -> NDArray[Any]:
        """As `makel.images.decode`.

        Args:
            image: The bytes of an image file.
            name: What to call it in an error.
            large: Whether to wait for what a large image takes, if it is one.

        Raises:
            LargeImageError: It is one, and `large` is False.
            ImageError: As `makel.images.decode`; or decoding it takes more time or memory than an image of its size.
            Overloaded: No decoder can be had: this is closed, or the system starts no process.
        """
        try:
            return self._decode(image, name, None)
        except LargeImageError:
            if not large:
                raise
        with self._large:
            return self._decode(image, name, self._room)

    def _decode(self, image: bytes, name: str, room: _Room | None) -> NDArray[Any]:
        with self._borrowed() as decoder:
            try:
                return decoder.decode(image, shown(name), self._max_pixels, room)
            except _Ended as ended:
                _log.warning("%s %s", shown(name), ended)
                raise ImageError(f"{shown(name)} {ended}") from None

    def close(self) -> None:
        """End every process, also one that decodes."""
        with self._changed:
            self._closed.set()
            decoders = [*self._idle, *self._busy]
            self._idle.clear()
            self._changed.notify_all()
        for decoder in decoders:
            decoder.kill()
        self._watch.join()

    @contextmanager
    def _borrowed(self) -> Iterator[_Decoder]:
        decoder = self._take()
        try:
            yield decoder
        finally:
            with self._changed:
                self._busy.remove(decoder)
                if decoder.alive and not self._closed.is_set():
                    self._idle.append(decoder)
                elif not self._closed.is_set():  # the next image finds one that has started meanwhile
                    self._begin_another()
                else:
                    decoder.kill()
                self._changed.notify()

    def _take(self) -> _Decoder:
        with self._changed:
            self._changed.wait_for(lambda: self._idle or len(self._busy) < self._n or self._closed.is_set())
            if self._closed.is_set():
                raise Overloaded("the station is being closed: nothing is decoded any more")
            while self._idle and not self._idle[-1].alive:  # ended from outside while it had nothing to do
                self._idle.pop().kill()
            if not self._idle:
                self._begin_another()
            if not self._idle:
                raise Overloaded(f"no decoder can be started: {self.problem}")
            decoder = self._idle.pop()  # the one used last: its pages are warm
            self._busy.add(decoder)
            decoder.until_s = monotonic() + _HANG_S
            return decoder

    def _begin_another(self) -> None:
        try:
            self._idle.append(_Decoder(self._closed))
            self.problem = ""
        except OSError as error:
            self.problem = error.strerror or str(error)

    def _end_hanging(self) -> None:
        while not self._closed.wait(1.0):
            with self._changed:
                late = [decoder for decoder in self._busy if monotonic() > decoder.until_s]
            for decoder in late:
                decoder.kill()


class _Ended(Exception):  # noqa: N818  what became of a decoder, in words that follow the name of its image
    pass


class _Decoder:
    """One process; one thread at a time uses it.

    Attributes:
        until_s: When whoever uses it has to be done, by `monotonic`.
    """

    def __init__(self, closed: threading.Event) -> None:
        self._closed, self.until_s = closed, math.inf
        self._path: Path | None = None
        inherited: tuple[int, ...] = ()
        if sys.platform == "linux":
            file = os.memfd_create("makel-image")
            path, inherited = f"/proc/self/fd/{file}", (file,)
        else:
            file, path = tempfile.mkstemp(prefix="makel-image-")
            self._path = Path(path)
        self._file = os.fdopen(file, "r+b", buffering=0)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "makel.station.decoder", path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=inherited,
                start_new_session=True,  # Ctrl-C in a terminal is the station's to answer
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        except BaseException:
            self._discard_file()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, image: bytes, name: str, max_pixels: int, room: _Room | None) -> NDArray[Any]:
        """See `Decoders.decode`; without `room` no large image is decoded.

        Raises:
            ImageError: The image cannot be read.
            _Ended: The process is gone.
        """
        self._file.seek(0)
        _transfer(self._file.write, memoryview(image))
        said = self._ask(json.dumps({"size_bytes": len(image), "name": name, "max_pixels": max_pixels}))
        return self._large(said["memory_bytes"], room) if "memory_bytes" in said else self._pixels(said)

    def _large(self, need_bytes: int, room: _Room | None) -> NDArray[Any]:
        self.until_s = math.inf  # to wait for others is not to hang
        granted = room.take(need_bytes, self._closed) if room else 0
        self.until_s = monotonic() + _HANG_S
        if room is None or not granted:
            self._ask("0")
            raise LargeImageError
        try:
            pixels = self._pixels(self._ask(str(granted)))
        except BaseException:
            room.give(granted)
            raise
        room.give(granted - pixels.nbytes)
        weakref.finalize(pixels, room.give, pixels.nbytes)
        return pixels

    def kill(self) -> None:
        """End it, whatever it does; from any thread, more than once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was not flushed has nobody to read it
                if pipe is not None:
                    pipe.close()
        self._discard_file()

    def _ask(self, line: str) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(line.encode() + b"\n")
            stdin.flush()
            answer = stdout.readline()
        except (OSError, ValueError):  # ValueError: another thread has closed the pipe
            answer = b""
        if not answer.endswith(b"\n"):
            raise _Ended(self._how_it_ended())
        said: dict[str, Any] = json.loads(answer)
        return said

    def _pixels(self, said: dict[str, Any]) -> NDArray[Any]:
        if "error" in said:
            raise ImageError(said["error"])
        pixels: NDArray[Any] = np.empty(said["shape"], said["dtype"])
        self._file.seek(0)
        _transfer(self._file.readinto, pixels.reshape(-1).view(np.uint8).data)
        if pixels.nbytes > _KEPT_BYTES:
            self._file.truncate(0)
        return pixels

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        if code in (-getattr(signal, "SIGPROF", 0), None, -getattr(signal, "SIGKILL", 9)):
            return "takes more time or memory to decode than an image of its size: save it again as a plain image"
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"ended the process that decoded it ({how}): it is damaged; save it again as a plain image"

    def _discard_file(self) -> None:
        self._file.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _transfer(move: Any, content: memoryview) -> None:
    """Move all of it: one call moves 2 GB at most."""
    while content:
        moved = move(content)
        if not moved:
            raise _Ended("was not decoded in full: send it again")
        content = content[moved:]
