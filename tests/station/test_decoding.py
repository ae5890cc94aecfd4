import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from contextlib import closing, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest

from conftest import DEFECT, GOOD, wait_for
from makel.errors import ImageError, Overloaded
from makel.images import Header, decode
from makel.station import decoder, decoding
from makel.station.decoding import Decoders, LargeImageError


@pytest.fixture
def one():
    opened = Decoders(1)
    yield opened
    opened.close()


def process(decoders):
    (only,) = decoders._idle
    return only._process


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("shape", [(7, 11), (7, 11, 3)])
def test_pixels_are_those_of_this_process(decoders, ending, shape):
    image = cv2.imencode(ending, np.random.default_rng(0).integers(0, 255, shape, np.uint8))[1].tobytes()
    pixels = decoders.decode(image)
    np.testing.assert_array_equal(pixels, decode(image))
    assert pixels.flags.writeable


def test_sixteen_bits_and_what_came_before_do_not_matter(decoders):
    deep = cv2.imencode(".png", np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000)[1].tobytes()
    for image in (GOOD, deep, DEFECT, deep):
        np.testing.assert_array_equal(decoders.decode(image), decode(image))


@pytest.mark.parametrize("image", [b"", b"GIF89a", GOOD[:-30], b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_the_same_error(decoders, image):
    with pytest.raises(ImageError) as here:
        decode(image, name="part\n1")
    with pytest.raises(ImageError) as there:
        decoders.decode(image, name="part\n1")
    assert str(there.value) == str(here.value).replace("part\n1", "'part\\n1'")


def test_the_pixel_cap_is_told_to_the_process():
    small = Decoders(1, max_pixels=1000)
    with pytest.raises(ImageError, match="at most 1000 are read"):
        small.decode(GOOD)
    small.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the limits are Linux's")
class TestLimits:
    def run(self, work, time_s=30.0, memory_bytes=2**30):
        code = f"""
import numpy, cv2
from makel.station.decoder import _bounded
with _bounded({time_s}, {memory_bytes}):
    {work}
"""
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    def test_processor_time_ends_a_process_also_in_c_code(self):
        done = self.run("numpy.linalg.svd(numpy.random.default_rng(0).random((6000, 6000)))", time_s=0.2)
        assert done.returncode == -signal.SIGPROF

    def test_more_memory_than_allowed_is_a_memory_error(self):
        done = self.run("numpy.ones(100 * 2**20, numpy.uint8)", memory_bytes=64 * 2**20)
        assert "MemoryError" in done.stderr
        assert self.run("numpy.ones(40 * 2**20, numpy.uint8)", memory_bytes=64 * 2**20).returncode == 0

    def test_a_file_that_inflates_without_end_takes_no_more_than_its_picture(self, decoders):
        """100x100 pixels in one Deflate strip of 400 MB."""
        packer = zlib.compressobj(1)
        strip = b"".join([packer.compress(bytes(2**20)) for _ in range(400)] + [packer.flush()])
        tags = [(256, 100), (257, 100), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, 100), (279, len(strip))]
        directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in tags)
        with suppress(ImageError):  # cut off, or read as far as its pixels go: as the reader likes
            decoders.decode(b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory + bytes(4))
        for each in decoders._idle:
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{each._process.pid}/status").read_text())
            assert int(peak[1]) < 200 * 2**10
        np.testing.assert_array_equal(decoders.decode(GOOD), decode(GOOD))


def test_the_allowance_grows_with_the_picture():
    small, large = Header("PNG", 100, 100, 1, 8), Header("PNG", 1000, 1000, 3, 16)
    assert decoder.memory_of(small, 0) == 64 * 2**20 + 40_000
    assert decoder.memory_of(large, 500) == 64 * 2**20 + 4 * 6_000_000 + 1000


class TestEnded:
    def test_a_process_that_is_ended_fails_one_image_and_is_replaced(self, one, monkeypatch):
        one.decode(GOOD)
        os.kill(process(one).pid, signal.SIGSTOP)  # hangs, as far as anybody can see
        monkeypatch.setattr(decoding, "_HANG_S", 0.2)
        with pytest.raises(ImageError, match="part 7 takes more time or memory to decode than an image of its size"):
            one.decode(GOOD, name="part 7")
        monkeypatch.undo()
        assert one.decode(GOOD).shape == (48, 80, 3)

    def test_a_crash_says_so(self, one):
        one.decode(GOOD)
        crashing = process(one)
        os.kill(crashing.pid, signal.SIGSTOP)
        said = []

        def ask():
            with pytest.raises(ImageError) as caught:
                one.decode(GOOD)
            said.append(str(caught.value))

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: one._busy)
        os.kill(crashing.pid, signal.SIGSEGV)
        os.kill(crashing.pid, signal.SIGCONT)
        thread.join(30)
        assert "ended the process that decoded it (SIGSEGV)" in said[0]

    def test_one_that_died_idle_costs_no_image(self, one):
        one.decode(GOOD)
        process(one).kill()
        process(one).wait()
        assert one.decode(GOOD).shape == (48, 80, 3)

    def test_closed_it_leaves_no_process_and_no_file(self):
        opened = Decoders(2)
        opened.decode(GOOD)
        running = process(opened)
        opened.close()
        assert running.poll() is not None
        with pytest.raises(Overloaded, match="being closed"):
            opened.decode(GOOD)

    def test_a_system_that_starts_no_process_is_named(self, one, monkeypatch):
        def refuse(*_args, **_kwargs):
            raise OSError(11, "Resource temporarily unavailable")

        monkeypatch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(Overloaded, match="no decoder can be started: Resource temporarily unavailable"):
            one.decode(GOOD)
        assert one.problem == "Resource temporarily unavailable"


class TestLarge:
    @pytest.fixture
    def large(self):
        """A picture whose pixels count as large: 42 MB."""
        return cv2.imencode(".png", np.zeros((3800, 3700, 3), np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()

    def test_a_large_image_is_handed_back_where_others_wait_for_it(self, one, large):
        with pytest.raises(LargeImageError):
            one.decode(large, large=False)
        assert one.decode(GOOD, large=False).shape == (48, 80, 3)

    def test_its_memory_is_taken_until_nobody_has_its_pixels(self, large):
        """Room for one of them: the next waits until the first is gone, also in the processes beside."""
        first = Decoders(1, max_pixels=15_000_000)
        beside = Decoders(1, beside=first)
        pixels = first.decode(large)
        assert first._room._taken_bytes == pixels.nbytes == 3800 * 3700 * 3
        got = []
        thread = threading.Thread(target=lambda: got.append(beside.decode(large).shape))
        thread.start()
        time.sleep(1.0)
        assert not got
        del pixels
        thread.join(30)
        assert got == [(3800, 3700, 3)]
        wait_for(lambda: first._room._taken_bytes == 0)
        for each in (first, beside):
            each.close()

    def test_waiting_for_its_memory_is_neither_hanging_nor_in_the_way(self, large, monkeypatch):
        """Three large images wait for longer than a decoder may hang, and small ones go on."""
        monkeypatch.setattr(decoding, "_HANG_S", 0.3)
        with closing(Decoders(2, max_pixels=15_000_000)) as opened:
            opened.start(2)
            taken = opened._room.take(10**12, opened._closed)
            got = []
            threads = [threading.Thread(target=lambda: got.append(opened.decode(large).shape)) for _ in range(3)]
            for thread in threads:
                thread.start()
            wait_for(lambda: opened._busy and not math.isfinite(next(iter(opened._busy)).until_s))
            time.sleep(1.5)  # those who look for hanging ones look once a second
            assert opened.decode(GOOD).shape == (48, 80, 3)
            monkeypatch.undo()
            opened._room.give(taken)
            for thread in threads:
                thread.join(30)
            assert got == [(3800, 3700, 3)] * 3

    def test_what_its_memory_is_too_little_for_says_so(self, large):
        with closing(Decoders(1, max_pixels=15_000_000)) as opened:
            opened._room._size_bytes = 40_000_000
            with pytest.raises(ImageError, match=r"more memory than the 40 MB there are here .* with --max-pixels"):
                opened.decode(large)
            with pytest.raises(ImageError, match=r"is cut short.*again$"):
                opened.decode(GOOD[:-30])
