"""What a fit says of the images it was fed: each oddity by its own line, and none where images only vary."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from makel.datasets import load
from makel.images import Preparation, prepare
from makel.model.tiling import Tiling
from makel.training import mixture, survey
from makel.training.features import FeatureCache
from makel.training.fit import fit
from makel.training.tiles import TilePlan

RNG = np.random.default_rng(0)
STRIPES = np.broadcast_to(120 + 60 * np.sin(np.arange(96) / 5)[:, None], (96, 80))
SHAPE = (64, 64)


def part(noise: float = 6) -> np.ndarray:
    """(96, 80) uint8: a striped part, its light and its place a little different each time."""
    shifted = np.roll(STRIPES, RNG.integers(-4, 5), axis=0) + RNG.normal(0, 5)
    return np.clip(shifted + RNG.normal(0, noise, STRIPES.shape), 0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(autouse=True)
def _same_parts_whatever_ran_before():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


@pytest.fixture
def good(tmp_path) -> Path:
    for index in range(16):
        write(tmp_path / "good" / f"{index:02}.png", part())
    return tmp_path / "good"


def told(root: Path) -> tuple[str, ...]:
    dataset = load(root)
    pictures = survey.look([sample.image_path for sample in dataset.good], SHAPE)
    colour = Preparation.settle([picture.kind for picture in pictures], shape=SHAPE).colour
    return survey.warnings(pictures, colour, dataset)


def test_parts_that_only_vary_give_no_line(good):
    assert told(good) == ()


def test_a_plain_surface_and_bursts_with_noise_of_their_own_are_no_repeats(tmp_path):
    # So large that noise is averaged away where a picture is reduced: only the pixels themselves tell.
    base = np.tile(part(noise=0), (5, 6))
    for index in range(5):
        for name, level in (("plain", np.full(base.shape, 128)), ("burst", base)):
            shot = np.clip(level + RNG.normal(0, 3, base.shape), 0, 255).astype(np.uint8)
            write(tmp_path / name / f"{index}.png", shot)
    assert told(tmp_path / "plain") == ()
    assert told(tmp_path / "burst") == ()


def test_images_of_another_size_or_aspect_are_counted(good):
    for index in range(3):
        write(good / f"small{index}.png", cv2.resize(part(), (40, 48)))
    write(good / "wide.png", part().T)
    sizes, aspect = told(good)
    assert sizes.startswith("good images of 3 sizes: 16 of 80x96, 3 of 40x48, 1 of 96x80. All are brought to one size")
    assert aspect.startswith("1 of 20 good images has another aspect than the rest, such as wide.png: it is not kept")


def test_two_sizes_half_and_half_are_odd_and_cut_outs_of_any_size_are_not(tmp_path):
    for index in range(12):
        write(tmp_path / "two" / f"{index:02}.png", part() if index % 2 else cv2.resize(part(), (40, 48)))
        write(tmp_path / "any" / f"{index:02}.png", cv2.resize(part(), (60 + 7 * index, 150 - 5 * index)))
    (line,) = told(tmp_path / "two")
    assert line.startswith("good images of 2 sizes: 6 of 40x48, 6 of 80x96")
    assert told(tmp_path / "any") == ()


def test_images_that_show_nothing_are_counted(good):
    for index in range(2):
        write(good / f"black{index}.png", RNG.integers(0, 6, (96, 80)).astype(np.uint8))
        write(good / f"even{index}.png", np.full((96, 80), 90 + index, np.uint8))
    write(good / "white.png", np.full((96, 80), 255, np.uint8))
    black, white, even = told(good)
    assert black == "2 of 21 good images are black all over, such as black0.png: take out what shows no part"
    assert white.startswith("1 of 21 good images is white all over, such as white.png")
    assert even.startswith("2 of 21 good images are of one level all over, such as even0.png")


def test_a_lens_cap_on_all_images_is_told_and_a_product_of_one_level_is_none(tmp_path):
    for index in range(8):
        write(tmp_path / "black" / f"{index}.png", np.full((32, 32), index % 4, np.uint8))
        write(tmp_path / "sheet" / f"{index}.png", np.full((32, 32), 100 + index, np.uint8))
    (line,) = told(tmp_path / "black")
    assert line.startswith("8 of 8 good images are black all over")
    assert told(tmp_path / "sheet") == ()


def test_a_camera_that_hangs_is_told_however_its_frames_are_saved(good):
    frame = part()
    write(good / "a.png", frame)
    write(good / "b.bmp", frame)
    assert cv2.imwrite(str(good / "c.jpg"), frame, [cv2.IMWRITE_JPEG_QUALITY, 90])
    clock = frame.copy()
    cv2.putText(clock, "7", (2, 10), cv2.FONT_HERSHEY_PLAIN, 0.7, 255)
    write(good / "d.png", clock)
    assert cv2.imwrite(str(good / "e.jpg"), clock, [cv2.IMWRITE_JPEG_QUALITY, 80])
    (line,) = told(good)
    assert line.startswith("4 of 21 good images repeat the very shot of another, as ")
    assert "a camera that hangs, a line that stood still, or copies" in line


ALPHA = np.full((96, 80), 255, np.uint8)
ALPHA[:48] = 0


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "palette", "grey"])
def test_alpha_that_hides_pixels_is_told(good, ending):
    for index in range(3):
        image = part()
        if ending == "palette":
            picture = Image.fromarray(np.where(ALPHA == 0, 0, np.maximum(image, 1)).astype(np.uint8)).convert("P")
            picture.save(good / f"alpha{index}.png", transparency=0)
        elif ending == "grey":
            Image.fromarray(np.dstack([image, ALPHA])).save(good / f"alpha{index}.png")
        else:
            picture = Image.fromarray(np.dstack([image, image, image, ALPHA]))
            picture.save(good / f"alpha{index}.{ending}", lossless=True)
    opaque = np.dstack([part()] * 3 + [np.full((96, 80), 255, np.uint8)])
    Image.fromarray(opaque).save(good / "opaque.png")
    (line,) = [line for line in told(good) if "alpha" in line]
    assert line.startswith("3 of 20 good images have transparent pixels, 50 % of them, such as alpha0.")


@pytest.mark.parametrize(
    ("folder", "size", "why"),
    [
        ("preview", (80, 96), "its name is not one of a defect"),
        ("Thumbnails", (80, 96), "its name is not one of a defect"),
        ("all_parts", (20, 24), "16 of them, 20x24 and the like, are at most half as large as any good image"),
        ("scratch", (80, 96), ""),
        ("close_up", (60, 70), ""),
        ("strip", (60, 40), ""),
    ],
)
def test_a_folder_that_is_no_kind_of_defect_is_told(good, folder, size, why):
    for index in range(16):
        write(good.parent / folder / f"{index:02}.png", cv2.resize(part(), size))
    lines = told(good.parent)
    n_kept = sum(sample.label == "good" for sample in load(good.parent).test)
    if why:
        assert lines == (
            f"{folder}/ holds 16 images and is read as a kind of defect, but {why}; {n_kept} good images are kept to "
            "test against defects. Move it elsewhere if it is none",
        )
    else:
        assert lines == ()
    assert survey.test_kinds(load(good.parent)) == {"good": n_kept, folder: 16}


def test_colour_is_counted_in_both_directions(good):
    in_rgb = np.dstack([part()] * 3)
    in_rgb[20:40, 20:40] = (40, 40, 200)
    write(good / "red.png", in_rgb)
    (line,) = told(good)
    assert line.startswith("1 of 17 good images shows colour, such as red.png, and the product is read as grey")
    for index in range(1, 21):
        write(good / f"red{index}.png", np.roll(in_rgb, index, axis=1) + np.uint8(index))
    (line,) = told(good)
    assert line.startswith("16 of 37 good images show no colour, 16 of them as grey files, such as 00.png")


def test_what_tiles_show_of_colour_counts(tmp_path):
    """A label that is lost where the image is reduced to what a tile's input has."""
    for index in range(4):
        image = np.dstack([np.tile(part(), (6, 6))] * 3)
        image[100:104, 100:104] = (40, 40, 200)
        write(tmp_path / f"{index}.png", image)
    paths = sorted(tmp_path.iterdir())
    tiles = TilePlan.of(paths, Tiling(64, 16), seed=0)
    assert [each.kind.shows_colour for each in survey.look(paths, (16, 16), tiles=tiles)] == [True] * 4
    found = survey.look(paths, (16, 16))
    assert [each.kind.shows_colour for each in found] == [False] * 4
    assert {each.size_px for each in found} == {(480, 576)}


class TestSecondProduct:
    def vectors(self, *groups: tuple[int, float], n_channels: int = 60) -> np.ndarray:
        """Images of products: so many of each, its means so many spreads from those of the first."""
        rng = np.random.default_rng(1)
        return np.concatenate([rng.normal(distance, 1, (n, n_channels)) for n, distance in groups])

    def test_few_images_far_from_all_others_are_found(self):
        for first, second in ((36, 4), (90, 10), (18, 2), (30, 10)):
            found = mixture.apart(self.vectors((first, 0), (second, 3)))
            assert found.tolist() == [False] * first + [True] * second

    def test_one_product_its_outliers_and_its_lots_are_not(self):
        assert not mixture.apart(self.vectors((40, 0))).any()
        assert not mixture.apart(self.vectors((39, 0), (1, 9))).any()
        assert not mixture.apart(self.vectors((36, 0), (4, 0.7))).any()
        assert not mixture.apart(np.zeros((30, 5))).any()

    def test_tiles_and_copies_of_an_image_are_one(self):
        vectors = self.vectors((27, 0), (3, 3))
        level = np.repeat(vectors, 2, axis=0)[:, :, None, None] + np.array([[[[-0.5, 0.5]]]])
        image_of = np.repeat(np.arange(30), 2)
        cache = FeatureCache([level.astype(np.float16)], torch.device("cpu"), 7, np.arange(60), image_of)
        assert mixture.second_product(cache).tolist() == [27, 28, 29]
        assert mixture.second_product(cache.subset(range(20))).tolist() == []  # of 10 images chance says nothing

    def test_an_even_channel_decides_nothing(self):
        vectors = self.vectors((40, 0))
        vectors[:, 0] = 0
        vectors[:3, 0] = 1e-3
        assert not mixture.apart(vectors).any()


def test_a_fit_says_all_of_it_where_people_look(good, makel_says):
    """In the summary, in the manifest, in the report and in `makel info`; a second product by its features."""
    root = good.parent
    for index in range(12):
        write(good / f"more{index}.png", part())
    for index in range(4):
        rings = 120 + 100 * np.sin(np.hypot(*np.mgrid[-48:48, -40:40]) / 2 + index)
        write(good / f"other{index}.png", np.clip(rings + RNG.normal(0, 6, (96, 80)), 0, 255).astype(np.uint8))
    write(good / "black.png", np.zeros((96, 80), np.uint8))
    for index in range(3):
        write(root / "preview" / f"{index}.png", cv2.resize(part(), (20, 24)))
    summary = fit(root, root.parent / "model", method="pca", size=64, holdout=0.1)
    warnings = summary.warnings
    assert [line for line in warnings if line.startswith("preview/ holds 3 images")]
    assert [line for line in warnings if "black all over, such as black.png" in line]
    (second,) = [line for line in warnings if "look like another product" in line]
    assert re.match(r"[234] of \d\d images fitted on look like another product than the rest, such as other", second)
    assert {*warnings} <= {*summary.manifest.fit.warnings}
    text = summary.lines()
    assert all(f"warning: {line}" in text for line in warnings)
    n = summary.manifest.provenance.n_fit + summary.manifest.provenance.n_calibrate
    assert f"colour     read as grey: 0 of {n} good images show colour, {n} are grey files" in text
    assert "sizes      all 80 x 96 px" in text
    assert f"test       {summary.test['good']} good, 3 preview: kept for testing, not fitted on" in text
    assert summary.to_json()["images"]["n_coloured"] == 0
    report = (summary.path / "report.html").read_text(encoding="utf-8")
    assert "look like another product than the rest" in report
    assert "black all over" in report
    assert f"read as grey: 0 of {n} good images show colour" in report
    _, said, _ = makel_says("info", summary.path)
    assert f"colour     read as grey: 0 of {n} good images show colour, {n} are grey files\n" in said
    assert "sizes      all 80 x 96 px\n" in said


def test_a_rust_stain_on_a_grey_product_is_found_and_a_drifting_white_balance_is_not(tmp_path):
    """As a line has it: a camera in colour, a grey product, and a stain as bright as the part."""
    import makel

    def shot(gain: float = 0.0) -> np.ndarray:
        grey = part()[..., None] * np.array([1 - gain, 1, 1 + gain]) + RNG.normal(0, 1, (96, 80, 3))
        return np.clip(np.rint(grey), 0, 255).astype(np.uint8)

    def stained() -> np.ndarray:
        image = shot().astype(np.float64)
        image[40:56, 30:46] += np.array([-70, -12, 47])  # BGR; the weighted sum is 0
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    for index in range(30):
        write(tmp_path / "line/train/good" / f"{index:02}.png", shot((index % 3 - 1) * 0.01))
    for index in range(6):
        write(tmp_path / "line/test/good" / f"{index}.png", shot((-1) ** index * 0.01))
        write(tmp_path / "line/test/rust" / f"{index}.png", stained())
    summary = fit(tmp_path / "line", tmp_path / "model", method="pca", size=64, false_reject=0.2)
    assert summary.manifest.preprocessing.colour == "grey"
    evaluation = makel.evaluate(tmp_path / "model", tmp_path / "line")
    assert (evaluation.refused, evaluation.misses.of, evaluation.misses.count) == ((), 6, 0)
    drifted = prepare(shot(0.01)[..., ::-1], summary.manifest.preprocessing)
    assert np.ptp(drifted, axis=0).max() == 0
