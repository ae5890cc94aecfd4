#!/usr/bin/env python3
"""Draw the README's picture from a finished demonstration: `python benchmarks/readme_picture.py makel-demo`.

One row a defect: what the camera saw, where the defect truly is, what makel says of it.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

import makel
from makel.evaluation.pictures import outline_truth
from makel.images import read
from makel.model import overlay

OUT = Path(__file__).resolve().parent.parent / "docs" / "images" / "demo.png"
SHOWN = ("scratch/003", "stain/003", "dent/003")
SIDE_PX = 208
GAP_PX = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="what `makel demo --out` wrote")
    demo = parser.parse_args().demo
    inspector = makel.Inspector.load(demo / "model")
    rows = []
    for name in SHOWN:
        image = read(demo / "data" / "test" / f"{name}.png")
        colour = np.ascontiguousarray(np.broadcast_to(image.reshape(*image.shape[:2], -1), (*image.shape[:2], 3)))
        mask = read(demo / "data" / "ground_truth" / f"{name}_mask.png")
        verdict = inspector.inspect(image)
        said = overlay.draw(image, verdict, inspector.calibration.pixel_threshold)
        parts = [colour, outline_truth(colour, np.asarray(mask > 0, np.uint8)), said]
        height_px = round(SIDE_PX * said.shape[0] / said.shape[1])
        tiles = []
        for part in parts:
            scale = SIDE_PX / part.shape[1]
            small = cv2.resize(part, (SIDE_PX, round(scale * part.shape[0])), interpolation=cv2.INTER_AREA)
            below = height_px - small.shape[0]
            tiles.append(np.pad(small, ((0, below), (0, GAP_PX), (0, 0)), constant_values=255))
        rows.append(np.pad(np.concatenate(tiles, 1), ((0, GAP_PX), (0, 0), (0, 0)), constant_values=255))
    picture = np.concatenate(rows)[:-GAP_PX, :-GAP_PX]
    OUT.parent.mkdir(exist_ok=True)
    _, encoded = cv2.imencode(".png", picture[..., ::-1])
    OUT.write_bytes(encoded.tobytes())
    print(f"wrote {OUT}: {len(encoded) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
