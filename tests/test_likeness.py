"""What counts as the same picture once more: made-up parts that lie still, re-saved, as bursts, and plain sheets."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from makel.datasets import Dataset, doubtful_labels, folds, load, name_groups, repeated, representatives, split
from makel.errors import DatasetError, UsageError
from makel.images import likeness
from makel.types import Sample

SIDE = 320


def part(number):
    """(320, 320, 3) RGB: a plate with holes that lies still, with grain and a few marks of its own."""
    rng = np.random.default_rng(number)
    picture = np.full((SIDE, SIDE, 3), 40, np.float32)
    cv2.circle(picture, (160, 160), 132, (150, 160, 170), -1)
    for angle in range(0, 360, 60):
        x, y = 160 + 90 * np.cos(np.radians(angle)), 160 + 90 * np.sin(np.radians(angle))
        cv2.circle(picture, (round(x), round(y)), 18, (30, 30, 30), -1)
    grain = cv2.GaussianBlur(rng.normal(0, 120, (SIDE, SIDE)).astype(np.float32), (0, 0), 6)
    picture = cv2.GaussianBlur(picture, (0, 0), 2)  # as a lens does
    return np.clip(picture + grain[..., None], 0, 255).astype(np.uint8)


def sheet(number):
    return np.clip(np.random.default_rng(number).normal(120, 3, (SIDE, SIDE)), 0, 255).astype(np.uint8)


def again(picture, change):
    rng = np.random.default_rng(1)
    if change == "jpeg":
        return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], cv2.IMREAD_UNCHANGED)
    if change == "half":
        return cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    if change == "16 bit":
        return picture.astype(np.uint16) * 257
    frame = {"frame": picture * 1.01, "dim": picture * 0.95 + 3, "moved": np.roll(picture, 1, axis=1)}[change]
    return np.clip(frame + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8)


def looks(pictures):
    return [likeness.shrink(picture) for picture in pictures]


@pytest.mark.parametrize("change", ["jpeg", "half", "frame", "dim", "moved"])
def test_a_part_once_more_is_found_and_another_part_is_not(change):
    parts = [part(number) for number in range(12)]
    numbers = likeness.groups(looks([*parts, *(again(each, change) for each in parts)]))
    assert numbers.tolist() == [*range(12), *range(12)]


def test_a_set_of_16_bits_is_judged_alike():
    parts = [part(number) for number in range(8)]
    numbers = likeness.groups(looks([again(each, "16 bit") // 16 for each in (*parts, again(parts[0], "frame"))]))
    assert numbers.tolist() == [*range(8), 0]


def test_a_mark_of_a_thousandth_of_the_image_makes_another_part():
    parts = [part(number) for number in range(12)]
    marked = parts[0].copy()
    marked[140:150, 140:150] -= 12
    assert likeness.groups(looks([*parts, marked])).tolist() == [*range(13)]


def test_plain_sheets_stay_different_and_equal_ones_do_not():
    sheets = [sheet(number) for number in range(20)]
    assert likeness.groups(looks(sheets)).tolist() == [*range(20)]
    assert likeness.groups(looks([*sheets, sheets[4]])).tolist() == [*range(20), 4]


def test_parts_that_differ_in_brightness_alone_stay_different():
    levels = [np.full((24, 24, 3), 100 + level, np.uint8) for level in range(19)]
    for each in levels:
        each[:, :12] = 128
    assert likeness.groups(looks(levels)).tolist() == [*range(19)]


def test_what_is_known_already_is_not_compared_among_itself():
    parts = [part(number) for number in range(8)]
    known = [*parts, again(parts[0], "frame")]
    numbers = likeness.groups(looks([*known, again(parts[3], "frame")]), n_known=len(known))
    assert numbers.tolist() == [*range(9), 3]


def test_thumbnails_are_written_and_read():
    found = [*looks([part(0), part(1)]), None]
    first, second, *blank = likeness.unpack(likeness.pack(found, None))
    assert np.abs(first - found[0]).mean() < 1.5
    assert np.abs(second - found[1]).mean() < 1.5
    assert blank == [None] * 14
    deep, *_ = likeness.unpack(likeness.pack(looks([again(part(0), "16 bit")]), 65535))
    assert np.abs(deep - found[0]).mean() < 1.5
    everyone = looks(part(number) for number in range(20))
    stored = likeness.unpack(likeness.pack(everyone, None))
    assert likeness.groups([*stored, *everyone], n_known=len(stored))[len(stored) :].tolist() == [*range(20)]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "n_merged"),
    [("aliens", 0), ("cookies", 0), ("elpv_mono", 0), ("metal_nut", 0), ("pill", 0), ("screw", 1), ("toothbrush", 0)],
)
def test_different_parts_of_real_sets_stay_different(real_data, name, n_merged):
    # screw 053 and 173 are one picture at two exposures
    found = likeness.thumbnails(sample.image_path for sample in load(real_data / name).good)
    assert len(found) - 1 - likeness.groups(found).max() == n_merged


# the split


def write(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Twelve parts as BMP and as JPEG, one of them a third time in the test part."""
    root = tmp_path_factory.mktemp("twice")
    for number in range(12):
        for ending in ("bmp", "jpg"):
            write(root / "train" / "good" / f"{number:02}.{ending}", part(number))
    write(root / "test" / "good" / "a.png", again(part(3), "frame"))
    write(root / "test" / "good" / "b.png", part(50))
    write(root / "test" / "scratch" / "c.png", again(part(3), "jpeg"))
    return root


def test_one_part_is_never_on_two_sides_and_has_one_say(twice):
    parts = split(load(twice), holdout=0.25)
    fit, held = ([sample.image_path.stem for sample in each] for each in (parts.fit, parts.calibrate))
    assert len(fit) == 2 * 9
    assert len(held) == len(set(held)) == 3
    assert not set(fit) & set(held)
    assert [sample.image_path.name for sample in parts.test] == ["b.png", "c.png"]
    assert len(parts.findings) == 3
    assert "24 good images of 24 show 12 parts in all, such as 00.bmp and 00.jpg" in parts.findings[0]
    assert "3 held out beside are used for nothing" in parts.findings[0]
    assert "a.png, shows what is among the good ones: the test goes without" in parts.findings[1]
    assert parts.findings[2].startswith("1 of 1 defects looks like good images, such as ")
    assert "c.png like " in parts.findings[2]


def test_images_to_test_on_that_show_the_same_are_counted(twice):
    test = load(twice).test
    assert repeated(test) == ()  # a.png and c.png show one part, and are good and a defect
    assert repeated([*test, replace(test[1])])[0].startswith("1 of 4 images to test on shows what another does")
    other = [sample for sample in test if sample.image_path.name == "b.png"]
    assert doubtful_labels(other, other) == ()


def test_a_group_for_every_image_is_said(tmp_path):
    dataset = name_groups(load(frames(tmp_path)), ".*")
    (line,) = split(dataset).findings
    assert line.startswith("each of 24 good images is a group of its own, such as 'good/part0_0.png'")


def test_folds_keep_a_part_together(twice):
    fit = split(load(twice), holdout=0).fit
    sides = [{fit[index].image_path.stem for index in fold} for fold in folds(fit, 4)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 12
    speaking = representatives(fit, seed=0)
    assert sorted(fit[index].image_path.stem for index in speaking) == [f"{number:02}" for number in range(12)]
    assert {fit[index].image_path.suffix for index in speaking} == {".bmp", ".jpg"}


def test_a_part_beside_defects_falls_on_one_side(tmp_path):
    for number in range(12):
        for ending in ("bmp", "jpg"):
            write(tmp_path / "good" / f"{number:02}.{ending}", part(number))
    write(tmp_path / "scratch" / "a.png", part(30))
    dataset = load(tmp_path)
    fit = {sample.image_path.stem for sample in dataset.good}
    test = {sample.image_path.stem for sample in dataset.test if sample.label == "good"}
    assert test
    assert not fit & test


def frames(root, nested=False):
    """Four different sides of each of six parts."""
    for number in range(6):
        for side in range(4):
            name = f"part{number}/{side}.png" if nested else f"part{number}_{side}.png"
            write(root / "good" / name, part(10 * number + side))
    return root


def test_a_group_is_held_out_as_a_whole(tmp_path):
    dataset = name_groups(load(frames(tmp_path)), r"part\d")
    parts = split(dataset, holdout=1 / 3)
    assert len(parts.fit) == 4 * 4
    assert len(parts.calibrate) == 2
    assert not {sample.group for sample in parts.fit} & {sample.group for sample in parts.calibrate}
    assert "24 good images of 24 show 6 parts in all" in parts.findings[0]
    assert split(load(tmp_path), holdout=1 / 3).findings == ()  # no two sides look alike


def test_a_folder_may_name_the_part(tmp_path):
    frames(tmp_path, nested=True)
    with pytest.raises(DatasetError, match="or, where the folder is a part or a lot, fit with --group"):
        load(tmp_path)
    dataset = name_groups(load(tmp_path, nested=True), r"([^/]+)/[^/]+$")
    assert {sample.group for sample in dataset.good} == {f"part{number}" for number in range(6)}
    assert len(split(dataset).calibrate) == 1


def test_samples_may_carry_their_group(tmp_path):
    good = load(frames(tmp_path)).good
    lots = tuple(Sample(each.image_path, "good", group=f"lot {index % 3}") for index, each in enumerate(good))
    parts = split(Dataset("lots", tmp_path, lots), holdout=1 / 3)
    assert (len(parts.fit), len(parts.calibrate)) == (16, 1)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("(part", r"group '\(part' is no regular expression"), ("lot", r"group 'lot' names no part in good/part0_0\.png")],
)
def test_a_group_that_cannot_be_named_is_refused(tmp_path, pattern, said):
    with pytest.raises(UsageError, match=said):
        name_groups(load(frames(tmp_path)), pattern)


def test_one_part_however_often_it_was_taken_is_too_few(tmp_path):
    for frame in range(3):
        write(tmp_path / "good" / f"part0_{frame}.png", part(frame))
    with pytest.raises(
        DatasetError, match=r"1 different good image to fit on.*of 3 files; those of one part count once"
    ):
        split(name_groups(load(tmp_path), r"part\d"))
