import shutil

import cv2
import numpy as np
import pytest

from makel.datasets import kolektor_sdd, load, load_all, split
from makel.errors import DatasetError, UsageError

DEFECTS = {("kos01", 3), ("kos02", 0), ("kos04", 7), ("kos05", 1), ("kos06", 2)}


def write_pair(image, mask, defect, shade):
    """An image, and a mask that says by one faint pixel whether it is a defect."""
    image.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(image), np.full((13, 7), shade, np.uint8))
    pixels = np.zeros((13, 7), np.uint8)
    pixels[11, 2] = defect
    cv2.imwrite(str(mask), pixels)


@pytest.fixture
def sdd(tmp_path):
    root = tmp_path / "KolektorSDD"
    for item in range(1, 8):
        folder = root / f"kos{item:02}"
        for part in range(8):
            defect = (folder.name, part) in DEFECTS
            write_pair(folder / f"Part{part}.jpg", folder / f"Part{part}_label.bmp", defect, 8 * item + part)
    return root


@pytest.fixture
def sdd2(tmp_path):
    root = tmp_path / "KolektorSDD2"
    for part, first, defects in (("train", 10000, {10002}), ("test", 20000, {20000, 20003})):
        for number in range(first, first + 5):
            folder = root / part
            write_pair(folder / f"{number}.png", folder / f"{number}_GT.png", number in defects, number % 251)
    for name in ("10001", "10001_GT"):
        shutil.copy(root / "train" / f"{name}.png", root / "train" / f"{name} (copy).png")
    return root


def names(samples):
    return [f"{sample.image_path.parent.name}/{sample.image_path.name}" for sample in samples]


# KolektorSDD


def test_a_defect_is_where_the_label_is_not_zero(sdd):
    dataset = load(sdd)
    defects = [sample for sample in dataset.test if sample.label == "defect"]
    assert (dataset.name, dataset.root) == ("KolektorSDD", sdd)
    assert names(defects) == ["kos01/Part3.jpg", "kos04/Part7.jpg"]
    assert [sample.mask_path for sample in defects] == [sdd / "kos01/Part3_label.bmp", sdd / "kos04/Part7_label.bmp"]
    assert {sample.kind for sample in defects} == {"defect"}
    assert {sample.mask_path for sample in dataset.test + dataset.good if sample.label == "good"} == {None}


def test_a_commutator_is_on_one_side_only_and_its_defects_are_never_fitted_on(sdd):
    dataset = load(sdd)
    assert {sample.image_path.parent.name for sample in dataset.test} == {"kos01", "kos04", "kos07"}
    assert len(dataset.test) == 24
    assert {sample.image_path.parent.name for sample in dataset.good} == {"kos02", "kos03", "kos05", "kos06"}
    assert len(dataset.good) == 32 - 3
    assert not {"kos02/Part0.jpg", "kos05/Part1.jpg", "kos06/Part2.jpg"} & set(names(dataset.good))
    assert {sample.label for sample in dataset.good} == {"good"}


def test_every_surface_tests_in_one_of_three_folds(sdd):
    tested = [name for fold in range(3) for name in names(kolektor_sdd.read(sdd, fold).test)]
    assert len(tested) == 56
    assert len(set(tested)) == 56
    assert kolektor_sdd.read(sdd) == load(sdd)
    with pytest.raises(UsageError, match="fold=3; a number from 0 to 2"):
        kolektor_sdd.read(sdd, 3)


def test_the_side_of_a_commutator_does_not_depend_on_which_others_are_there(sdd):
    before = kolektor_sdd.read(sdd, 2).test
    shutil.rmtree(sdd / "kos01")
    assert kolektor_sdd.read(sdd, 2).test == before


def test_the_image_that_its_authors_leave_out_is_left_out(sdd):
    (sdd / "kos03").rename(sdd / "kos21")
    kept = [name for name in names(kolektor_sdd.read(sdd, 2).test) if name.startswith("kos21")]
    assert kept == [f"kos21/Part{part}.jpg" for part in range(7)]
    (sdd / "kos21" / "Part7_label.bmp").unlink()
    assert len(kolektor_sdd.read(sdd, 2).test) == 15


def test_a_good_image_on_both_sides_is_left_out_of_the_test(sdd):
    shutil.copy(sdd / "kos02" / "Part1.jpg", sdd / "kos01" / "Part1.jpg")
    parts = split(load(sdd))
    assert "kos01/Part1.jpg" in names(load(sdd).test)
    assert "kos01/Part1.jpg" not in names(parts.test)
    assert any("Part1.jpg" in finding for finding in parts.findings)


def test_a_defect_that_is_a_good_image_too_is_refused(sdd):
    shutil.copy(sdd / "kos02" / "Part1.jpg", sdd / "kos01" / "Part3.jpg")
    with pytest.raises(DatasetError, match=r"kos02/Part1\.jpg and .*kos01/Part3\.jpg are the same image"):
        split(load(sdd))


@pytest.mark.parametrize("gone", ["Part2.jpg", "Part2_label.bmp"])
def test_half_a_pair_is_refused(sdd, gone):
    (sdd / "kos05" / gone).unlink()
    with pytest.raises(DatasetError, match=r"1 files are an image without its mask .*kos05/Part2"):
        load(sdd)


def test_a_label_that_cannot_be_read_is_refused(sdd):
    (sdd / "kos02" / "Part4_label.bmp").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"Part4_label\.bmp is empty.*it says whether .*kos02/Part4\.jpg is good"):
        load(sdd)


def test_a_folder_of_datasets(sdd, sdd2):
    assert [dataset.name for dataset in load_all(sdd.parent)] == ["KolektorSDD", "KolektorSDD2"]
    assert load_all(sdd) == [load(sdd)]


# KolektorSDD2


def test_the_second_dataset_is_split_as_published(sdd2):
    dataset = load(sdd2)
    assert names(dataset.good) == [f"train/{number}.png" for number in (10000, 10001, 10003, 10004)]
    assert names(dataset.test) == [f"test/{number}.png" for number in range(20000, 20005)]
    assert [sample.label for sample in dataset.test] == ["defect", "good", "good", "defect", "good"]
    assert dataset.test[0].mask_path == sdd2 / "test" / "20000_GT.png"
    assert {(sample.label, sample.mask_path) for sample in dataset.good} == {("good", None)}
    parts = split(dataset)
    assert len(parts.fit + parts.calibrate) == 4


def test_one_part_of_the_second_dataset_is_enough(sdd2):
    shutil.rmtree(sdd2 / "train")
    dataset = load(sdd2)
    assert (len(dataset.good), len(dataset.test)) == (0, 5)


def test_half_a_pair_of_the_second_dataset_is_refused(sdd2):
    (sdd2 / "test" / "20001_GT.png").unlink()
    with pytest.raises(DatasetError, match=r"1 files are an image without its mask .*test/20001\.png"):
        load(sdd2)


def test_half_a_dataset_given_as_good_images_is_refused(sdd, sdd2):
    with pytest.raises(DatasetError, match=r"10000_GT\.png looks like a mask beside its image"):
        load(sdd2 / "train")
    with pytest.raises(DatasetError, match=r"Part0_label\.bmp looks like a mask beside its image"):
        load(sdd / "kos01")
