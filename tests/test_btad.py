import pytest

from makel.datasets import load, load_all, split
from makel.errors import DatasetError

SUFFIXES = {"01": (".bmp", ".png"), "02": (".png", ".png"), "03": (".bmp", ".bmp")}  # images, masks


def fill(folder, names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text(str(folder / name))


@pytest.fixture
def btad(tmp_path):
    root = tmp_path / "BTech_Dataset_transformed"
    for category, (image, mask) in SUFFIXES.items():
        fill(root / category / "train" / "ok", [f"{index:04}{image}" for index in range(5)])
        fill(root / category / "test" / "ok", [f"{index:04}{image}" for index in range(2)])
        fill(root / category / "test" / "ko", [f"{index:04}{image}" for index in range(3)])
        fill(root / category / "ground_truth" / "ko", [f"{index:04}{mask}" for index in range(3)])
    return root


@pytest.mark.parametrize("category", SUFFIXES)
def test_a_category_with_masks_of_another_type(btad, category):
    dataset = load(btad / category)
    image, mask = SUFFIXES[category]
    assert (dataset.name, dataset.root) == (f"btad_{category}", btad / category)
    assert [sample.image_path.name for sample in dataset.good] == [f"000{index}{image}" for index in range(5)]
    truth = btad / category / "ground_truth" / "ko"
    assert [(sample.label, sample.kind, sample.mask_path) for sample in dataset.test] == [
        *(("defect", "ko", truth / f"000{index}{mask}") for index in range(3)),
        *(("good", "good", None) for _ in range(2)),
    ]
    parts = split(dataset)
    assert {sample.label for sample in parts.fit + parts.calibrate} == {"good"}


def test_the_download_holds_three_categories(btad):
    assert [dataset.name for dataset in load_all(btad)] == ["btad_01", "btad_02", "btad_03"]
    with pytest.raises(DatasetError, match=r"holds 3 categories \(01, 02, 03\): give one of them"):
        load(btad)


def test_a_line_of_ones_own_with_the_same_words_keeps_its_name(btad):
    (btad / "01").rename(btad / "line")
    assert load(btad / "line").name == "line"


def test_defects_to_fit_on_are_refused(btad):
    fill(btad / "01" / "train" / "ko", ["0000.bmp"])
    with pytest.raises(DatasetError, match=r"train/ko holds images that are not called good"):
        load(btad / "01")
