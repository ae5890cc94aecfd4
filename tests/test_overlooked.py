"""What a command did not look at, it says: of a dataset's folder, and in the summary."""

import json
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest

import tiny_model
from makel.datasets import load, overlooked
from makel.images import PassedOver, passed_over


def save(path, grey=128, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 8, 3), grey, np.uint8)
    pixels[number // 8, number % 8] += 1
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that scores the distance from mid grey and rejects above 0.3."""
    return tiny_model.write(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def category(tmp_path):
    """A category in MVTec AD layout, with a mask."""
    root = tmp_path / "nut"
    for number in range(3):
        save(root / "train" / "good" / f"{number}.png", number=number)
        save(root / "test" / "good" / f"{number}.png", number=number + 8)
        save(root / "test" / "bent" / f"{number}.png", grey=10, number=number)
        mask = np.zeros((8, 8), np.uint8)
        mask[2:4, 2:4] = 255
        path = root / "ground_truth" / "bent" / f"{number}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    return root


def test_nothing_is_said_where_all_is_used(category):
    save(category / "ground_truth" / "good" / "0_mask.png")  # not needed, and not read
    assert overlooked(load(category)) == ()


def test_what_a_layout_leaves_out_beside_what_it_reads_is_not_said(category):
    dataset = load(category)
    assert overlooked(replace(dataset, good=dataset.good[:1])) == ()
    assert len(overlooked(replace(dataset, good=()))) == 1


def test_files_of_other_kinds_are_counted_by_ending(category):
    for name in ("a.heic", "b.heic", "c.HEIC"):
        (category / "train" / "good" / name).write_bytes(b"\0\0\0\x18ftypheic")
    (category / "ground_truth" / "bent" / "0.npy").write_bytes(b"\x93NUMPY")
    assert overlooked(load(category)) == ("4 files not looked at: 3 .heic, 1 .npy",)


@pytest.mark.parametrize("folder", ["ground_truth", "ground_truth/bent/day1", "GROUND_TRUTH", "masks"])
def test_masks_that_nothing_reads_are_named(category, folder):
    save(category / folder / "7_mask.png")
    (line,) = overlooked(load(category))
    assert line.startswith(f"{folder}/ holds 1 image not looked at: move them to where the layout has images or masks")


@pytest.mark.parametrize("kind", ["Good parts", "OK_2", "good-images", "defect_free", "i.O."])
def test_a_kind_of_defect_called_good_is_named(category, kind):
    (category / "test" / "good").rename(category / "test" / kind)
    assert overlooked(load(category)) == (
        f"{kind}/ is read as a kind of defect by its name: call it good if it holds good images",
    )


@pytest.mark.parametrize("kind", ["not_good", "pass_through_bent", "normal_map_error", "no_hole", "broken", "io_pin"])
def test_a_kind_of_defect_called_like_one_is_not_named(category, kind):
    (category / "test" / "bent").rename(category / "test" / kind)
    (category / "ground_truth" / "bent").rename(category / "ground_truth" / kind)
    assert overlooked(load(category)) == ()


@pytest.mark.skipif(os.name == "nt", reason="paths are of no use there at this depth")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    parent = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # deeper than a path may be long: an error for root, too, who may list all else
        os.mkdir("x" * 250, dir_fd=parent)
        inner = os.open("x" * 250, os.O_RDONLY, dir_fd=parent)
        os.close(parent)
        parent = inner
    os.close(parent)
    (line,) = passed_over(tmp_path, [], advice="look").lines
    assert line.endswith("cannot be listed, and may hold images: File name too long")
    assert passed_over(tmp_path, [], advice="look").images


def test_images_behind_a_link_to_a_folder_of_folders_are_named(tmp_path):
    save(tmp_path / "elsewhere" / "cam1" / "deep" / "0.png")
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "cam").symlink_to(tmp_path / "elsewhere")
    found = passed_over(tmp_path / "line", [], advice="look")
    assert found == PassedOver(("cam/ holds 1 image not looked at: look",), images=True)


@pytest.mark.parametrize("folder", ["extra", "train/good/day1/deep", "."])
def test_folders_that_no_part_of_the_layout_reads_are_named(category, folder):
    for number in range(2):
        save(category / folder / f"{number}.png", grey=77, number=number)
    (line,) = overlooked(load(category))
    name = f"{category}" if folder == "." else f"{folder}/"
    assert line == f"{name} holds 2 images not looked at: move them to where the layout has images or masks, or away"


def test_kinds_beside_a_test_folder_are_named(tmp_path):
    for folder in ("good", "test/good", "test/bent", "scratch"):
        for number in range(3):
            save(tmp_path / folder / f"{number}.png", grey=len(folder), number=number)
    (line,) = overlooked(load(tmp_path))
    assert line.startswith("scratch/ holds 3 images not looked at")


def test_many_kinds_and_folders_are_summed_up(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.x{number}").write_bytes(b"\0")
        for count in range(1 + number // 11):
            save(tmp_path / f"folder{number:02}" / f"{count}.png")
    found = passed_over(tmp_path, [], advice="look")
    files, first, *_, last = found.lines
    assert found.images
    assert files.startswith("12 files not looked at: 1 .x")
    assert files.endswith(", 4 others")
    assert first == "folder11/ holds 2 images not looked at: look"
    assert last == "7 more folders hold 7 images not looked at"
    assert passed_over(tmp_path / "folder00", [tmp_path / "folder00" / "0.png"], advice="look") == PassedOver()


def test_evaluate_says_it_on_stderr_and_in_the_summary(makel_says, model, category, tmp_path):
    (category / "test" / "bent" / "3.gif").write_bytes(b"GIF89a")
    (category / "test" / "bent" / "0.png").rename(category / "test" / "bent" / "0.jpg")
    arguments = ("evaluate", model, category, "--out", tmp_path / "report")
    code, out, err = makel_says(*arguments)
    said = (
        "1 file not looked at: 1 .gif",
        "1 of 9 names disagree with what the files hold, which decides: 1 .jpg hold PNG",
    )
    assert code == 0
    for line in said:
        assert f"makel: {line}" in err
        assert f"note           {line}" in out
    assert json.loads(makel_says(*arguments, "--json")[1])["notes"][0] == said[0]


def test_recalibrate_says_it_on_stderr_and_in_the_summary(makel_says, model, tmp_path):
    for number in range(12):
        save(tmp_path / "fresh" / f"{number}.png", number=number)
    (tmp_path / "fresh" / "12.heif").write_bytes(b"\0\0\0\x18ftypheic")
    code, out, err = makel_says("recalibrate", model, tmp_path / "fresh", "--out", tmp_path / "renewed")
    assert code == 0
    assert "note: 1 file not looked at: 1 .heif\n" in out
    assert err == "makel: 1 file not looked at: 1 .heif\n"
