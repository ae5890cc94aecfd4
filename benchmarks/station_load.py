#!/usr/bin/env python3
"""Load on the station: throughput against bare Inspector calls on the same cores, overload, recovery, and the record.

    python benchmarks/station_load.py MODEL ../shared/data/toothbrush/test [--seconds 60] [--sizes 256,1024]

For each size, images of that side are made from those in the folder, and one row a phase goes into the results file:

    bare_inspect       one `Inspector.inspect(file)` after the other
    bare_inspect_all   `Inspector.inspect_all(files)`, which decodes in threads while the model runs
    station            `makel serve`, and clients that send one image as soon as the last one is answered
    overload           four times as many clients as the queue has places, each sending again at once when refused
    recovery           the clients of before, right after

Every request carries an image of its own (some bytes behind the end of the PNG), so each is hashed and its picture
kept. Clients run in a process beside, on the same cores. Decoding is inside every figure. Linux only: memory is
read from /proc.
"""

import argparse
import csv
import http.client
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import cycle
from pathlib import Path

import cv2
import numpy as np

from makel.images import find, read
from makel.model.folder import open_folder
from makel.model.inspector import Inspector
from makel.station.store import Store

RESULTS = Path(__file__).parent / "results" / "station_load.csv"
PACKAGES = ("makel", "onnxruntime", "uvicorn", "fastapi", "numpy")
CLIENTS = 4
QUEUE = 8
RETRY_S = 0.01


class Served:
    """`makel serve` on a free port, and what can be read of it."""

    def __init__(self, model: Path, data: Path, options: list[str]) -> None:
        command = [sys.executable, "-m", "makel", "serve", f"part={model}", "--data", str(data), "--port", "0"]
        self.process = subprocess.Popen([*command, "--queue", str(QUEUE), *options], stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"http://([\d.]+):(\d+)", line):
                self.address = (found[1], int(found[2]))
                return
        sys.exit("makel serve did not start")

    def rss_mb(self) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) / 1024

    def depth(self) -> float:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        connection.request("GET", "/metrics")
        return float(
            re.search(r'makel_queue_depth\{model="part"\} ([\d.]+)', connection.getresponse().read().decode())[1]
        )

    def stop(self) -> None:
        self.process.terminate()
        if self.process.wait(120):
            sys.exit(f"makel serve ended with {self.process.returncode}")


def ask(address: tuple[str, int], bodies: list[bytes], seconds: float, mark: int) -> dict[str, list]:
    """One client: numbers and latencies of what was answered, and how much was refused."""
    connection = http.client.HTTPConnection(*address, timeout=60)
    said = {"numbers": [], "latencies_s": [], "refused": [], "failed": []}
    end = time.perf_counter() + seconds
    for serial, body in enumerate(cycle(bodies)):
        began = time.perf_counter()
        if began > end:
            break
        image = body + mark.to_bytes(4, "big") + serial.to_bytes(8, "big")
        connection.request("POST", "/inspect", image, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status == 200:
            said["numbers"].append(json.loads(content)["number"])
            said["latencies_s"].append(time.perf_counter() - began)
        elif answer.status == 503 and answer.headers["Retry-After"]:
            said["refused"].append(1)
            time.sleep(RETRY_S)
        else:
            said["failed"].append(f"{answer.status} {content[:200]!r}")
    return said


def load(served: Served, bodies: list[bytes], seconds: float, clients: int, mark: int) -> dict[str, object]:
    """Clients in threads of this process, which does nothing else; figures of all of them together."""
    with ThreadPoolExecutor(clients) as pool:
        began = time.perf_counter()
        jobs = [pool.submit(ask, served.address, bodies, seconds, mark + each) for each in range(clients)]
        memory, depths = [], []
        while not all(job.done() for job in jobs):
            time.sleep(min(1.0, seconds / 5))
            memory.append(served.rss_mb())
            depths.append(served.depth())
        took = time.perf_counter() - began
        said = [job.result() for job in jobs]
    together = {key: [value for each in said for value in each[key]] for key in said[0]}
    if together["failed"]:
        sys.exit(f"{len(together['failed'])} requests failed: {together['failed'][0]}")
    p50, p99 = (1000 * float(value) for value in np.percentile(together["latencies_s"], (50, 99)))
    settled = memory[len(memory) // 4 :]  # what the first quarter allocates stays
    return {
        "numbers": together["numbers"],
        "images": len(together["numbers"]),
        "images_per_s": len(together["numbers"]) / took,
        "p50_ms": p50,
        "p99_ms": p99,
        "refused": len(together["refused"]),
        "queue_max": max(depths),
        "rss_start_mb": settled[0],
        "rss_end_mb": settled[-1],
    }


def bare(model: Path, files: list[Path], seconds: float, options: dict[str, int]) -> dict[str, dict[str, object]]:
    """Inspector calls without a station."""
    inspector = Inspector.load(model, **options)
    for path in files[:3]:
        inspector.inspect(path)

    def timed(verdicts) -> dict[str, object]:
        began = time.perf_counter()
        for done, _ in enumerate(verdicts, 1):
            took = time.perf_counter() - began
            if took > seconds:
                return {"images": done, "images_per_s": done / took}
        raise AssertionError("the files never end")

    return {
        "bare_inspect": timed(map(inspector.inspect, cycle(files))),
        "bare_inspect_all": timed(inspector.inspect_all(cycle(files))),
    }


def measure(args: argparse.Namespace, size: int, folder: Path) -> list[dict[str, object]]:
    files = pictures(args.images, size, folder / "images")
    bodies = [path.read_bytes() for path in files]
    threads = {} if args.threads is None else {"threads": args.threads}
    rows = bare(args.model, files, args.seconds / 2, threads)
    best = max(row["images_per_s"] for row in rows.values())
    options = [] if args.threads is None else ["--threads", str(args.threads)]
    served = Served(args.model, folder / "station", [*options, *args.serve.split()])
    load(served, bodies, min(3, args.seconds), CLIENTS, 1_000_000)  # warm
    for phase, clients, seconds in (
        ("station", CLIENTS, args.seconds),
        ("overload", 4 * QUEUE, args.seconds / 2),
        ("recovery", CLIENTS, args.seconds / 6),
    ):
        rows[phase] = {"clients": clients, **load(served, bodies, seconds, clients, len(rows) * 1000)}
    served.stop()
    with Store.open(folder / "station" / "store.sqlite", create=False) as store:
        recorded = store.count()
    answered = [number for row in rows.values() for number in row.pop("numbers", ())]
    for row in rows.values():
        row["share_of_bare"] = row["images_per_s"] / best
    rows["station"] |= {
        "lost": len([number for number in answered if not 0 < number <= recorded]),
        "doubled": len(answered) - len(set(answered)),
    }
    return [{"size_px": size, "phase": phase, **row} for phase, row in rows.items()]


def pictures(source: Path, size: int, folder: Path) -> list[Path]:
    """Images of one size as PNG, at most 24."""
    folder.mkdir()
    found = [path for each in sorted({path.parent for path in source.rglob("*")}) for path in find(each)][:24]
    for index, path in enumerate(found):
        pixels = cv2.resize(read(path), (size, size), interpolation=cv2.INTER_AREA)
        pixels = pixels[..., ::-1] if pixels.ndim == 3 else pixels
        (folder / f"{index:02d}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return find(folder)


COLUMNS = (
    "size_px", "phase", "clients", "images", "images_per_s", "share_of_bare", "p50_ms", "p99_ms", "refused",
    "queue_max", "rss_start_mb", "rss_end_mb", "lost", "doubled",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="folder of images the model takes")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--sizes", default="256,1024")
    parser.add_argument("--threads", type=int, help="threads of the model, bare and served")
    parser.add_argument("--serve", default="", help="further options of makel serve, such as '--batch 1'")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    common = {
        "queue": QUEUE,
        "seconds": args.seconds,
        "options": args.serve,
        "seed": open_folder(args.model).manifest.provenance.seed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": json.dumps({name: version(name) for name in PACKAGES}),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip(),
    }
    rows = []
    for size in map(int, args.sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(args, size, Path(folder))
    args.out.parent.mkdir(exist_ok=True)
    with args.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *common], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow(shown | common)
            print({key: shown[key] for key in COLUMNS if key in shown})


if __name__ == "__main__":
    main()
