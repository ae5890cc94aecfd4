#!/usr/bin/env python3
"""Large images in tiles: seconds and memory as they grow, one row an image into a results file.

    python benchmarks/large_images.py [--only 16384x16384-grey]

A model is fitted on twelve made-up textures of 1024x1024 with the default method, `--tile 512 --overlap auto`. The
images to inspect are the same texture repeated, as uncompressed TIFF, with four dark blots: amid a tile, on the border
of two, on the corner of four, and at the last corner of the image. Each is inspected by a process of its own, as
`makel inspect --out` would, with the mask written to the disk.

`peak_mib` is the most memory that process held (on Linux its VmHWM, the resident size that `ru_maxrss` also counts),
Python, ONNX Runtime, the model and the mapped library files inside; `inspect_s` is from the opened model to the
verdict, reading the file inside. `found` of `planted` blots were found as exactly one region.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import tifffile
from rows import RESULTS, THREADS, Rows, facts, run

from makel.model.inspector import Inspector
from makel.training.fit import fit

TILE, PERIOD, RADIUS = 512, 2048, 20
CASES = {
    # name: height, width, channels
    "2048x2048-grey": (2048, 2048, 1),
    "4096x4096-grey": (4096, 4096, 1),
    "8192x8192-grey": (8192, 8192, 1),
    "16384x16384-grey": (16384, 16384, 1),
    "16384x16384-rgb": (16384, 16384, 3),
    "strip-16384x2048-grey": (16384, 2048, 1),
    "strip-65536x2048-grey": (65536, 2048, 1),
}
INSPECT = """
import json, resource, sys, time
from pathlib import Path
from makel.images import read_reduced
from makel.model import overlay
from makel.model.inspector import Inspector
inspector = Inspector.load(sys.argv[1], threads=int(sys.argv[4]))
began = time.perf_counter()
verdict = inspector.inspect(sys.argv[2])
inspect_s = time.perf_counter() - began
picture, threshold = read_reduced(sys.argv[2], overlay.LONGEST_PX), inspector.calibration.pixel_threshold
overlay.write(Path(sys.argv[3]), "image", picture, verdict, threshold, rules=inspector.rules)
write_s = time.perf_counter() - began - inspect_s
peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.platform == "linux":  # there ru_maxrss counts from the parent that forked on
    lines = Path("/proc/self/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
boxes = [region.box_px for region in verdict.regions]
print(json.dumps({"inspect_s": inspect_s, "write_s": write_s, "peak_kib": peak_kib, "boxes": boxes}))
"""


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """(H, W) uint8: smooth clouds that repeat without a border, and the noise of a camera."""
    rng = np.random.default_rng(seed)
    wide = np.pad(rng.normal(0, 40, (height, width)).astype(np.float32), 16, mode="wrap")
    clouds = cv2.GaussianBlur(wide, (0, 0), 3)[16:-16, 16:-16] * 6 + 120
    return np.clip(clouds + rng.normal(0, 4, (height, width)), 0, 255).astype(np.uint8)


def train(folder: Path) -> Path:
    for seed in range(12):
        path = folder / "good" / f"{seed:02d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), texture(1024, 1024, seed))
    fit(folder / "good", folder / "model", tile=TILE, overlap="auto", device="cpu")
    return folder / "model"


def blots(height: int, width: int, model: Path) -> list[tuple[int, int]]:
    """Centres (y, x), by where the tiles of this image stand."""
    tiling = Inspector.load(model).manifest.tiling
    down, across = tiling.cut(height).starts, tiling.cut(width).starts
    middle = TILE // 2
    return [
        (down[0] + middle, across[0] + middle),
        (down[1] + middle, across[2]),
        (down[2], across[1]),
        (height - RADIUS - 1, width - RADIUS - 1),
    ]


def write(path: Path, shape: tuple[int, int, int], centres: list[tuple[int, int]]) -> None:
    """Write an image piece by piece."""
    height, width, channels = shape
    piece = np.tile(texture(PERIOD, PERIOD, 100), (1, width // PERIOD))
    size = (height, width) if channels == 1 else (height, width, 3)
    image = tifffile.memmap(path, shape=size, dtype=np.uint8, photometric="minisblack" if channels == 1 else "rgb")
    for top in range(0, height, PERIOD):
        image[top : top + PERIOD] = piece if channels == 1 else piece[..., None]
    for y, x in centres:
        part = np.ascontiguousarray(image[max(0, y - 32) : y + 32, max(0, x - 32) : x + 32])
        cv2.circle(part, (min(x, 32), min(y, 32)), RADIUS, (15,) * channels, -1)
        image[max(0, y - 32) : y + 32, max(0, x - 32) : x + 32] = part
    image.flush()


def inspect(model: Path, shape: tuple[int, int, int], folder: Path) -> dict[str, object]:
    """One image by a process of its own."""
    height, width, channels = shape
    path, centres = folder / "image.tif", blots(height, width, model)
    write(path, shape, centres)
    done = run(sys.executable, "-c", INSPECT, model, path, folder / "out", str(THREADS))
    if done.result is None:
        sys.exit(done.error)
    found = done.result
    around = [[x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in found["boxes"]] for y, x in centres]
    tiling = Inspector.load(model).manifest.tiling
    n_tiles = len(tiling.boxes((height, width)))
    path.unlink()
    return {
        "height_px": height,
        "width_px": width,
        "channels": channels,
        "megapixels": round(height * width / 1e6, 1),
        "tile_px": tiling.tile_px,
        "overlap_px": tiling.overlap_px,
        "n_tiles": n_tiles,
        "inspect_s": round(found["inspect_s"], 1),
        "ms_per_tile": round(1000 * found["inspect_s"] / n_tiles, 1),
        "write_s": round(found["write_s"], 1),
        "peak_mib": round(found["peak_kib"] / 1024, 1),
        "planted": len(centres),
        "found": sum(sum(each) == 1 for each in around),
        "regions": len(found["boxes"]),
        "load": done.load,
        **facts(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--model", type=Path, help="a model folder of an earlier run, in place of a new fit")
    arguments = parser.parse_args()
    results = Rows(RESULTS / "large_images.csv", ["case"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = arguments.model or train(folder)
        for case in arguments.only:
            if not results.has(case=case):
                results.add({"case": case, **inspect(model, CASES[case], folder)})


if __name__ == "__main__":
    main()
