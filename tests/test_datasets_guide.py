"""The guide docs/datasets.md does and says what is so."""

import re
from itertools import pairwise

import cv2
import numpy as np
import pytest

import guides
from makel import images
from makel.calibration import images_needed
from makel.datasets import load


@pytest.fixture
def guide(repository):
    return (repository / "docs" / "datasets.md").read_text(encoding="utf-8")


def test_strips_are_cut_into_frames_that_makel_reads(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (2500, 1100, 3), np.uint8)
    for folder, name, strip in (
        ("good", "a", colour),
        ("new", "b", (colour[..., 0].astype(np.uint16) << 4)[:1000, :900]),
    ):
        (tmp_path / "strips" / folder).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "strips" / folder / f"{name}.tif"), strip[..., ::-1] if strip.ndim == 3 else strip)
    (code,) = guides.blocks(guide, "python")
    exec(code, {})

    frames = load("glass").good
    places = [(0, 0), (0, 76), (1024, 0), (1024, 76), (1476, 0), (1476, 76)]
    assert [frame.image_path.name for frame in frames] == [f"a_y{y:06}_x{x:06}.png" for y, x in places]
    for frame, (y, x) in zip(frames, places, strict=True):
        assert np.array_equal(images.read(frame.image_path), colour[y : y + 1024, x : x + 1024])
    (small,) = images.find("frames")
    assert (images.read(small).shape, images.read(small).dtype) == ((1000, 900), np.uint16)


def test_overlapping_frames_cover_the_strip(guide):
    names = {}
    exec(guides.blocks(guide, "python")[0].split("for path in")[0], names)
    for length in (100, 128, 129, 257, 1000):
        starts = names["starts"](length, 128, 32)
        covered = {pixel for start in starts for pixel in range(start, min(start + 128, length))}
        assert covered == set(range(length))
        assert len(set(starts)) == len(starts)
        assert all(later - start <= 96 for start, later in pairwise(starts))


def test_the_table_of_good_images_is_what_calibration_promises(guide):
    rows = re.findall(r"^\| (\d+) % \| (\d+) \| (\d+) \|$", guide, re.MULTILINE)
    assert len(rows) == 4
    for budget, held_out, good in rows:
        assert images_needed(int(budget) / 100) == int(held_out) == round(0.2 * int(good))
