import shutil

import numpy as np
import pytest

from makel.datasets import (
    Dataset,
    digest,
    distinct,
    folds,
    load,
    load_all,
    overlooked,
    refuse_defects,
    split,
)
from makel.errors import DatasetError, ImageError, UsageError
from makel.types import Sample


def fill(folder, names, content=""):
    """Files called like images, each with content of its own: nothing here decodes them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(content or str(folder / name))


def numbered(count, suffix=".png"):
    return [f"{index:03}{suffix}" for index in range(count)]


def names(samples):
    return [f"{sample.image_path.parent.name}/{sample.image_path.name}" for sample in samples]


@pytest.fixture
def category(tmp_path):
    root = tmp_path / "cable"
    fill(root / "train" / "good", numbered(10))
    fill(root / "test" / "good", numbered(3))
    fill(root / "test" / "bent", numbered(3))
    fill(root / "test" / "cut", ["a.jpg", "b.jpg"])
    fill(root / "ground_truth" / "bent", ["000_mask.png", "002_mask.png"])
    fill(root / "ground_truth" / "cut", ["b.png"])
    return root


@pytest.fixture
def line(tmp_path):
    """A plain folder: good images beside defects."""
    root = tmp_path / "line"
    fill(root / "good", numbered(40))
    fill(root / "scratch", numbered(4))
    fill(root / "hole", numbered(2))
    return root


# MVTec AD


def test_a_category(category):
    dataset = load(str(category))
    assert dataset.name == "cable"
    assert dataset.root == category
    assert names(dataset.good) == [f"good/{name}" for name in numbered(10)]
    assert {(sample.label, sample.kind, sample.mask_path) for sample in dataset.good} == {("good", "good", None)}
    assert [sample.label for sample in dataset.test] == ["defect"] * 5 + ["good"] * 3
    assert {sample.kind for sample in dataset.test} == {"bent", "cut", "good"}


def test_masks_pair_by_name_never_by_position(category):
    masks = {names([sample])[0]: sample.mask_path for sample in load(category).test}
    truth = category / "ground_truth"
    assert masks["bent/000.png"] == truth / "bent" / "000_mask.png"
    assert masks["bent/001.png"] is None
    assert masks["bent/002.png"] == truth / "bent" / "002_mask.png"
    assert masks["cut/a.jpg"] is None
    assert masks["cut/b.jpg"] == truth / "cut" / "b.png"
    assert masks["good/000.png"] is None


@pytest.mark.parametrize("name", ["bent/007_mask.png", "bend/000_mask.png"])
def test_a_mask_without_an_image_is_refused(category, name):
    stray = category / "ground_truth" / name
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("x")
    with pytest.raises(DatasetError, match=rf"1 masks belong to no image \(.*{name}\)"):
        load(category)


def test_two_masks_of_one_image_are_refused(category):
    fill(category / "ground_truth" / "bent", ["000.png"])
    with pytest.raises(DatasetError, match=r"000_mask\.png and .*000\.png are masks of one image"):
        load(category)


def test_defects_to_fit_on_are_refused(category):
    fill(category / "train" / "bent", numbered(1))
    with pytest.raises(DatasetError, match=r"train/bent holds images that are not called good, and only good ones"):
        load(category)


@pytest.mark.parametrize("where", ["train", "train/good/monday", "test", "test/bent/monday"])
def test_images_that_would_be_left_out_are_refused(category, where):
    fill(category / where, ["stray.png"])
    with pytest.raises(DatasetError, match=r"stray|left out|one folder of good images was expected"):
        load(category)


def test_train_without_good_images_is_refused(category):
    shutil.rmtree(category / "train" / "good")
    with pytest.raises(DatasetError, match=r"train holds nothing; one folder of good images was expected there"):
        load(category)


def test_an_empty_folder_of_good_images_says_what_it_holds(category):
    for path in (category / "train" / "good").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(DatasetError, match=r"train/good holds 000\.heic, .*; expected were images \(\.jpg"):
        load(category)


def test_a_category_without_train_can_only_be_tested_on(category):
    shutil.rmtree(category / "train")
    dataset = load(category)
    assert (len(dataset.good), len(dataset.test)) == (0, 8)
    with pytest.raises(
        DatasetError,
        match="holds 0 different good images to fit on, only 8 to test on, since a folder called test is for that",
    ):
        split(dataset)


def test_a_test_folder_by_itself_has_its_masks_and_nothing_to_fit_on(category):
    dataset = load(category / "test")
    assert dataset.name == "cable"
    assert not dataset.good
    assert dataset.test == load(category).test


def test_a_root_of_categories(category):
    shutil.copytree(category, category.parent / "bottle")
    assert [dataset.name for dataset in load_all(category.parent)] == ["bottle", "cable"]
    assert load_all(category) == [load(category)]
    with pytest.raises(DatasetError, match=r"holds 2 categories \(bottle, cable\): give one of them"):
        load(category.parent)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "n_good", "n_test", "n_masks"), [("toothbrush", 48, 42, 30), ("magnetic_tile", 752, 592, 392)]
)
def test_real_categories(real_data, name, n_good, n_test, n_masks):
    dataset = load(real_data / name)
    assert (len(dataset.good), len(dataset.test)) == (n_good, n_test)
    assert sum(sample.mask_path is not None for sample in dataset.test) == n_masks
    parts = split(dataset)
    # Some tiles were taken several times, at several exposures: of those held out, each has one say.
    assert 0.95 * n_good <= len(parts.fit) + len(parts.calibrate) <= n_good


# Plain folders


def test_a_folder_of_good_images(tmp_path):
    fill(tmp_path / "parts", [*numbered(5), "notes.txt", "._000.png"])
    dataset = load(tmp_path / "parts")
    assert names(dataset.good) == [f"parts/{name}" for name in numbered(5)]
    assert dataset.test == ()


@pytest.mark.parametrize("name", ["good", "OK", "normal", "io"])
def test_a_good_folder_alone(tmp_path, name):
    fill(tmp_path / name, numbered(5))
    dataset = load(tmp_path)
    assert len(dataset.good) == 5
    assert dataset.test == ()


def test_good_images_beside_defects_never_test_what_was_fitted_on(line):
    dataset = load(line)
    kept = [sample for sample in dataset.test if sample.label == "good"]
    assert 3 <= len(kept) <= 14  # a fifth of 40, by a hash
    assert len(kept) + len(dataset.good) == 40
    assert not set(kept) & set(dataset.good)
    assert [sample.kind for sample in dataset.test if sample.label == "defect"] == ["hole"] * 2 + ["scratch"] * 4
    assert load(line) == dataset


def test_which_good_images_test_depends_on_their_bytes_alone(line, tmp_path):
    kept = {sample.image_path.read_text() for sample in load(line).test if sample.label == "good"}
    for index, path in enumerate(sorted((line / "good").iterdir(), reverse=True)):
        path.rename(line / "good" / f"renamed {index}.png")
    fill(line / "good", numbered(20))
    assert kept <= {sample.image_path.read_text() for sample in load(line).test if sample.label == "good"}


def test_one_good_image_at_least_is_kept_for_testing(tmp_path):
    for count in (2, 3, 4):
        root = tmp_path / str(count)
        fill(root / "good", numbered(count))
        fill(root / "hole", numbered(1))
        assert sum(sample.label == "good" for sample in load(root).test) >= 1


def test_defects_beside_loose_good_images_with_masks(tmp_path):
    fill(tmp_path, numbered(20))
    fill(tmp_path / "hole", ["a.bmp"])
    fill(tmp_path / "ground_truth" / "hole", ["a_mask.png"])
    dataset = load(tmp_path)
    (defect,) = [sample for sample in dataset.test if sample.label == "defect"]
    assert (defect.kind, defect.mask_path) == ("hole", tmp_path / "ground_truth" / "hole" / "a_mask.png")
    assert len(dataset.good) < 20


def test_a_test_folder_beside_good_images_leaves_them_all_to_fit_on(line):
    fill(line / "test" / "good", numbered(3))
    fill(line / "test" / "scratch", numbered(2))
    shutil.rmtree(line / "hole")
    shutil.rmtree(line / "scratch")
    dataset = load(line)
    assert len(dataset.good) == 40
    assert names(dataset.test) == ["good/000.png", "good/001.png", "good/002.png", "scratch/000.png", "scratch/001.png"]


def test_two_places_of_good_images_are_refused(line):
    fill(line / "ok", numbered(2))
    with pytest.raises(DatasetError, match=r"good images lie in .*good and in .*ok: keep them in one place"):
        load(line)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"holds nothing; expected were images \(\.jpg.*\), a folder called good, ok"),
        (lambda root: fill(root, ["notes.txt"]), r"holds notes\.txt; expected"),
        (lambda root: fill(root / "scratch", ["a.png"]), r"holds scratch/; expected"),
        (lambda root: fill(root / "good", ["a.gif"]), r"good holds a\.gif; expected"),
    ],
)
def test_folders_without_good_images_are_refused_saying_what_is_there(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DatasetError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("mask", ["004_mask.png", "004_GT.bmp", "004_label.png"])
def test_masks_among_good_images_are_refused(tmp_path, mask):
    fill(tmp_path, [*numbered(9), "big_label.png", "_mask.png"])
    assert len(load(tmp_path).good) == 11
    fill(tmp_path, [mask])
    with pytest.raises(DatasetError, match=rf"{mask} looks like a mask beside its image: keep masks in ground_truth"):
        load(tmp_path)


@pytest.mark.parametrize("folder", ["train/good", "test/good", "test/bent"])
@pytest.mark.parametrize("mask", ["001_mask.png", "001-Mask.png", "001.gt.bmp"])
def test_masks_beside_images_are_refused_in_every_folder(category, folder, mask):
    fill(category / folder, [mask])
    with pytest.raises(DatasetError, match=rf"{mask} looks like a mask beside its image: keep masks in ground_truth"):
        load(category)


def test_masks_lie_in_either_folder_or_both_in_any_case(category):
    (category / "ground_truth").rename(category / "Ground_Truth")
    fill(category / "masks" / "cut", ["a_mask.png"])
    masks = {sample.mask_path.name for sample in load(category).test if sample.mask_path}
    assert masks == {"000_mask.png", "002_mask.png", "a_mask.png", "b.png"}
    fill(category / "masks" / "cut", ["b_mask.png"])
    with pytest.raises(DatasetError, match=r"b_mask\.png and .*b\.png are masks of one image: keep one"):
        load(category)


@pytest.mark.parametrize("good", ["good", "."])
def test_a_model_beside_its_images_is_no_kind_of_defect(tmp_path, good):
    fill(tmp_path / good, numbered(9))
    fill(tmp_path / "model", ["seen.jpg"])
    assert len(load(tmp_path).good) < 9
    for name in ("model.json", "model.onnx"):
        (tmp_path / "model" / name).touch()
    assert len(load(tmp_path).good) == 9
    assert overlooked(load(tmp_path)) == ()


def test_a_root_of_plain_folders_with_tests_keeps_their_good_images(tmp_path):
    for name in ("cap", "lid"):
        fill(tmp_path / name / "good", numbered(4))
        fill(tmp_path / name / "test" / "good", ["a.png"])
        fill(tmp_path / name / "test" / "hole", ["b.png"])
    assert [(dataset.name, len(dataset.good), len(dataset.test)) for dataset in load_all(tmp_path)] == [
        ("cap", 4, 2),
        ("lid", 4, 2),
    ]


def test_what_is_no_folder_is_refused(tmp_path):
    fill(tmp_path, ["a.png"])
    with pytest.raises(DatasetError, match=r"a\.png is a file; a folder of images was expected"):
        load(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="missing is not there"):
        load(tmp_path / "missing")


# Splits


def samples(folder, count, label="good"):
    fill(folder, numbered(count))
    return tuple(Sample(folder / name, label, label) for name in numbered(count))


def dataset_of(good, test=()):
    return Dataset("x", good[0].image_path.parent, tuple(good), tuple(test))


@pytest.mark.parametrize(
    ("count", "holdout", "held_out"), [(40, 0.2, 8), (2, 0.2, 1), (3, 0.2, 1), (10, 0.5, 5), (7, 0, 0)]
)
def test_split_holds_out_the_share_asked_for(tmp_path, count, holdout, held_out):
    dataset = dataset_of(samples(tmp_path / "good", count), samples(tmp_path / "bent", 2, "defect"))
    parts = split(dataset, holdout=holdout)
    assert len(parts.calibrate) == held_out
    assert sorted(names(parts.fit + parts.calibrate)) == names(dataset.good)
    assert parts.test == dataset.test


def test_split_follows_its_seed(tmp_path):
    dataset = dataset_of(samples(tmp_path, 40))
    assert split(dataset, seed=3) == split(dataset, seed=3)
    assert split(dataset, seed=3) != split(dataset, seed=4)


def test_split_refuses_what_cannot_be_split(tmp_path):
    dataset = dataset_of(samples(tmp_path, 1))
    with pytest.raises(DatasetError, match="holds 1 different good image to fit on; at least 2 are needed"):
        split(dataset)
    for holdout in (-0.1, 1, float("nan")):
        with pytest.raises(UsageError, match="a share from 0 to below 1"):
            split(dataset, holdout=holdout)


def test_copies_count_once(tmp_path):
    good = samples(tmp_path / "good", 10)
    for name in ("again.png", "and again.png"):
        shutil.copy(good[3].image_path, tmp_path / "good" / name)
    dataset = load(tmp_path)
    assert len(dataset.good) == 12
    assert distinct(dataset.good) == good
    parts = split(dataset)
    assert len(parts.fit + parts.calibrate) == 10


def test_an_image_that_is_fitted_on_does_not_test(category):
    twin = category / "test" / "good" / "zzz.png"
    shutil.copy(category / "train" / "good" / "004.png", twin)
    dataset = load(category)
    parts = split(dataset)
    assert set(dataset.test) - set(parts.test) == {sample for sample in dataset.test if sample.image_path == twin}
    assert [line for line in parts.findings if "zzz.png" in line and "the test goes without" in line]


def test_an_image_cannot_be_good_and_a_defect(category):
    shutil.copy(category / "test" / "good" / "001.png", category / "test" / "bent" / "zzz.png")
    with pytest.raises(DatasetError, match=r"bent/zzz\.png and .*good/001\.png are .*, labelled defect and good"):
        split(load(category))


def test_a_test_image_may_lie_there_twice(category):
    shutil.copy(category / "test" / "good" / "001.png", category / "test" / "good" / "zzz.png")
    assert len(split(load(category)).test) == 9


@pytest.mark.parametrize("label", ["defect", None])
def test_only_good_images_may_be_fitted_on(tmp_path, label):
    dataset = dataset_of([*samples(tmp_path, 3), *samples(tmp_path / "bent", 1, label)])
    with pytest.raises(
        DatasetError, match=rf"bent/000\.png is labelled {label or 'nothing'} but given as a good image"
    ):
        split(dataset)
    refuse_defects(dataset.good[:3])


def test_what_cannot_be_read_is_left_for_decoding_to_report(tmp_path):
    good = (*samples(tmp_path, 8), Sample(tmp_path / "gone.png", "good"), Sample(tmp_path / "also gone.png", "good"))
    parts = split(dataset_of(good))
    assert len(parts.fit + parts.calibrate) == 10


@pytest.mark.parametrize(("count", "n_folds"), [(10, 5), (11, 5), (7, 7), (23, 2)])
def test_folds_hold_each_image_out_once(tmp_path, count, n_folds):
    parts = folds(samples(tmp_path, count), n_folds, seed=1)
    assert sorted(np.concatenate(parts)) == list(range(count))
    assert {len(part) for part in parts} <= {count // n_folds, -(-count // n_folds)}
    again = folds(samples(tmp_path, count), n_folds, seed=1)
    assert all((first == second).all() for first, second in zip(parts, again, strict=True))


def test_folds_keep_copies_together(tmp_path):
    good = list(samples(tmp_path, 12))
    for index in range(6):
        shutil.copy(good[index].image_path, tmp_path / f"copy{index}.png")
        good.append(Sample(tmp_path / f"copy{index}.png", "good"))
    for part in folds(good, 4):
        held_out = set(part.tolist())
        assert all((index in held_out) == (12 + index in held_out) for index in range(6))


def test_folds_refuse_what_they_cannot_do(tmp_path):
    good = samples(tmp_path, 3)
    with pytest.raises(DatasetError, match="3 different good images cannot make 4 folds: ask for at most 3"):
        folds(good, 4)
    with pytest.raises(UsageError, match="at least 2"):
        folds(good, 1)


def test_digest_knows_contents_and_nothing_else(tmp_path):
    good = samples(tmp_path / "a", 5)
    before = digest(good)
    assert len(before) == 64
    assert digest(good[::-1]) == before
    moved = []
    for index, sample in enumerate(good):
        moved.append(Sample(shutil.copy(sample.image_path, tmp_path / f"moved{index}.png")))
    assert digest(moved) == before
    assert digest(good[:4]) != before
    assert digest([*good, good[0]]) != before
    good[2].image_path.write_text("changed")
    assert digest(good) != before
    with pytest.raises(ImageError, match=r"gone\.png cannot be read"):
        digest([Sample(tmp_path / "gone.png")])
