#!/usr/bin/env python3
"""Attacks on the station over the loopback, and what a well-behaved client notices of each.

    python benchmarks/station_attacks.py MODEL ../shared/data/toothbrush/test/good [--seconds 10] [--only silent,zips]

While an attack goes on, a client inspects an image every 50 ms, another asks `/readyz`, and the memory of `makel serve`
and its decoders is read from /proc (the proportional share, so that what they have in common counts once). One row an
attack goes into the results file: latency and refusals of the client, how often `/readyz` said what was so, and the
highest memory. Linux only.
"""

import argparse
import csv
import http.client
import io
import json
import os
import platform
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from makel.images import find

RESULTS = Path(__file__).parent / "results" / "station_attacks.csv"
PERIOD_S = 0.05
Address = tuple[str, int]
Once = Callable[[Address, threading.Event], None]


def tiff_strip(mebibytes: int) -> bytes:
    """A TIFF of 100x100 grey pixels whose one Deflate strip inflates to far more."""
    strip = zeros(mebibytes)
    entries = [(256, 100), (257, 100), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, 100), (279, len(strip))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory + bytes(4)


def png_surplus(mebibytes: int) -> bytes:
    """A PNG of 8x8 pixels whose IDAT inflates to far more."""
    return png(8, 8, 0, zeros(mebibytes))


def png_black(side_px: int) -> bytes:
    """A PNG of one colour: few bytes, many pixels."""
    return png(side_px, side_px, 2, zeros(bytes_=side_px * (3 * side_px + 1)))


def png(width: int, height: int, colour: int, compressed: bytes) -> bytes:
    """A PNG file of 8 bits around compressed pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def jpeg_scans(scans: int, side_px: int = 512) -> bytes:
    """A progressive JPEG whose last scan comes again and again; each goes over all of the image."""
    pixels = np.random.default_rng(0).integers(0, 255, (side_px, side_px), np.uint8)
    file = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    last = file.rindex(b"\xff\xda")
    scan = file[last:-2][:10] + b"\0"  # its header, and no data: the decoder fills up with zeros
    return file[:-2] + scans * scan + file[-2:]


def zeros(mebibytes: int = 0, bytes_: int = 0) -> bytes:
    """Zero bytes, compressed."""
    packer, left = zlib.compressobj(9), bytes_ or mebibytes * 2**20
    parts = []
    while left > 0:
        parts.append(packer.compress(bytes(min(left, 2**20))))
        left -= 2**20
    return b"".join([*parts, packer.flush()])


def zip_damaged(seed: int) -> bytes:
    """A zip whose compressed bytes were changed."""
    rng, buffer = np.random.default_rng(seed), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", rng.integers(97, 101, 400, np.uint8).tobytes())
    changed = bytearray(buffer.getvalue())
    for place in rng.integers(30, 30 + len(changed) // 2, 3):
        changed[place] ^= int(rng.integers(1, 256))
    return bytes(changed)


class Attack:
    """Threads that attack until they are told to stop."""

    def __init__(self, address: Address, threads: int, once: Once) -> None:
        """Begin; `once` is called again and again by each thread, and may fail as a network can."""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(address, once), daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, address: Address, once: Once) -> None:
        while not self._stop.is_set():
            try:
                once(address, self._stop)
            except (OSError, http.client.HTTPException):
                time.sleep(0.01)  # cut off, as is right

    def end(self) -> None:
        """Stop; what hangs in a socket ends with it."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2)


def hold(content: bytes, connections: int = 1) -> Once:
    """Connect, send this, and then nothing more; connect again where that was cut off."""

    def once(address: Address, stop: threading.Event) -> None:
        held = [socket.create_connection(address, timeout=10) for _ in range(connections)]
        try:
            for each in held:
                each.sendall(content)
            stop.wait(2)
        finally:
            for each in held:
                each.close()

    return once


def endless(start: bytes, block: bytes) -> Once:
    """Send a start and then a block for ever."""

    def once(address: Address, stop: threading.Event) -> None:
        with socket.create_connection(address, timeout=10) as opened:
            opened.sendall(start)
            while not stop.is_set():
                opened.sendall(block)

    return once


def post(path: str, body: bytes, kind: str = "application/octet-stream") -> Once:
    """Post this and wait for the answer."""

    def once(address: Address, _stop: threading.Event) -> None:
        connection = http.client.HTTPConnection(*address, timeout=60)
        connection.request("POST", path, body, {"Content-Type": kind})
        connection.getresponse().read()
        connection.close()

    return once


def unread(path: str) -> Once:
    """Ask for this many times, and read nothing."""
    return hold(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() * 8)


def form(image: bytes, count: int) -> tuple[bytes, str]:
    """A form with an image many times, and its content type."""
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + image + b"\r\n"
    return part * count + b"--x--\r\n", "multipart/form-data; boundary=x"


def announced(path: str, size: int, sent: int = 1000) -> bytes:
    """A request that says it is larger than what comes of it."""
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n\r\n".encode() + bytes(sent)


def attacks(image: bytes) -> dict[str, tuple[int, Callable[[], Once]]]:
    """Every attack: how many threads, and what makes what each does; some files take a while to make."""
    get = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    chunked = (
        "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    header = b"X-A: " + b"a" * 65000 + b"\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    overlay = "GET /history/1/overlay HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    return {
        "none": (0, lambda: hold(b"")),
        "silent": (8, lambda: hold(b"", 50)),
        "half_requests": (8, lambda: hold(b"GET / HTTP/1.1\r\nHost: 127", 50)),
        "headers": (4, lambda: endless(b"GET / HTTP/1.1\r\n", header)),
        "one_header": (4, lambda: endless(b"GET / HTTP/1.1\r\nX-A: ", b"a" * 65536)),
        "trailers": (4, lambda: endless(chunked.format("/inspect").encode() + b"1\r\na\r\n0\r\n", header)),
        "pipelined": (4, lambda: hold(get * 20_000)),
        "stalled_uploads": (8, lambda: hold(announced("/inspect", 63 * 2**20))),
        "many_stalled_uploads": (8, lambda: hold(announced("/inspect", 63 * 2**20), 50)),
        "half_uploads": (8, lambda: hold(announced("/inspect", 63 * 2**20, 62 * 2**20))),
        "candidates_json": (4, lambda: endless(chunked.format("/models/part/candidates").encode(), chunk)),
        "unread_overlays": (8, lambda: unread("/history/1/overlay")),
        "overlays": (40, lambda: endless_get(overlay.encode())),
        "overlay_forms": (4, lambda: post("/inspect?picture=overlay&picture=mask", *form(image, 64))),
        "tiff_strip": (4, lambda: post("/inspect", tiff_strip(1024))),
        "png_surplus": (4, lambda: post("/inspect", png_surplus(1024))),
        "jpeg_scans": (4, lambda: post("/inspect", jpeg_scans(40_000))),
        "png_black": (4, lambda: post("/inspect", png_black(5400))),
        "zips": (4, lambda: post("/models?name=other", zip_damaged(0), "application/zip")),
    }  # fmt: skip


def endless_get(request: bytes) -> Once:
    """Ask for something and read it."""

    def once(address: Address, _stop: threading.Event) -> None:
        with socket.create_connection(address, timeout=60) as opened:
            opened.sendall(request)
            while opened.recv(2**16):
                pass

    return once


class Client:
    """Who inspects an image every 50 ms, asks whether the station is ready, and notes both."""

    def __init__(self, address: Address, image: bytes) -> None:
        """Take where and what."""
        self._address, self._image = address, image
        self.latencies_s: list[float] = []
        self.ready_s: list[float] = []
        self.refused: list[str] = []
        self.untrue: list[str] = []

    def run(self, seconds: float) -> None:
        """For so long."""
        asking = threading.Thread(target=self._ask, args=(time.monotonic() + seconds,))
        asking.start()
        end, serial = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            began = time.monotonic()
            serial += 1
            status, body = self._request("POST", "/inspect", self._image + serial.to_bytes(8, "big"))
            if status == 200 and not json.loads(body)["reason"]:
                self.latencies_s.append(time.monotonic() - began)
            else:
                self.refused.append(f"{status} {body[:200]!r}")
            time.sleep(max(0.0, PERIOD_S - (time.monotonic() - began)))
        asking.join()

    def _ask(self, end: float) -> None:
        while time.monotonic() < end:
            began, refused = time.monotonic(), len(self.refused)
            status, body = self._request("GET", "/readyz", None)
            self.ready_s.append(time.monotonic() - began)
            time.sleep(0.2)
            new = [
                each for each in self.refused[refused:] if "images under way" not in each
            ]  # a full queue is no secret
            if (status == 200) != (not new):  # ready, and a part refused; or the other way round
                self.untrue.append(f"{status} {body[:200]!r}, {self.refused[refused:][:1]}")

    def _request(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        try:
            connection = http.client.HTTPConnection(*self._address, timeout=30)
            connection.request(method, path, body)
            answer = connection.getresponse()
            said = answer.status, answer.read()
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            return 0, repr(error).encode()
        return said


def memory_mb(process: int) -> float:
    """Proportional memory of a process and all below it."""
    found, total = [process], 0.0
    for each in found:
        try:
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:  # it has ended meanwhile
            continue
        total += sum(int(kb) for kb in re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)) / 1024
    return total


def measure(served: subprocess.Popen, address: Address, name: str, image: bytes, seconds: float) -> dict[str, object]:
    """One attack, and what the client saw of it."""
    threads, make = attacks(image)[name]
    attack, client = Attack(address, threads, make()), Client(address, image)
    peak, over = [memory_mb(served.pid)], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            peak.append(memory_mb(served.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    client.run(seconds)
    over.set()
    watcher.join()
    attack.end()
    latencies = client.latencies_s or [float("nan")]
    for told in [*client.refused[:2], *client.untrue[:2]]:
        print(f"  {name}: {told}", file=sys.stderr)
    return {
        "attack": name,
        "threads": threads,
        "seconds": seconds,
        "inspected": len(client.latencies_s),
        "refused": len(client.refused),
        "p50_ms": 1000 * float(np.percentile(latencies, 50)),
        "p99_ms": 1000 * float(np.percentile(latencies, 99)),
        "ready_max_ms": 1000 * max(client.ready_s),
        "ready_untrue": len(client.untrue),
        "memory_mb": max(peak),
    }


def serve(model: Path, data: Path, options: list[str]) -> tuple[subprocess.Popen, Address]:
    """`makel serve` on a free port."""
    command = [sys.executable, "-m", "makel", "serve", f"part={model}", "--data", str(data), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"http://([\d.]+):(\d+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()  # what it warns of is not of interest
            return process, (found[1], int(found[2]))
    sys.exit("makel serve did not start")


def main() -> None:
    """Run every attack on one station, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="folder of images the model takes")
    parser.add_argument("--seconds", type=float, default=10, help="for each attack")
    parser.add_argument("--only", help="names of attacks, with commas")
    parser.add_argument("--serve", default="", help="further options of makel serve")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    image = find(args.images)[0].read_bytes()
    names = args.only.split(",") if args.only else list(attacks(image))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        served, address = serve(args.model, Path(folder) / "station", args.serve.split())
        try:
            Client(address, image).run(2)
            for name in names:
                rows.append(measure(served, address, name, image, args.seconds))
                print({key: round(v, 1) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
        finally:
            began = time.monotonic()
            served.terminate()
            code = served.wait(60)
            print(f"ended with {code} after {time.monotonic() - began:.1f} s")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
    common = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "commit": commit.stdout.strip()}
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *common], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: round(v, 3) if isinstance(v, float) else v for k, v in (row | common).items()} for row in rows
        )


if __name__ == "__main__":
    main()
