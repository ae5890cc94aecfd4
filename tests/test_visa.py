import shutil

import pytest

from makel.datasets import load, load_all, split
from makel.errors import DatasetError

COLUMNS = "object,split,label,image,mask"


def fill(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(str(folder / name))


def lines(category):
    """The published split's lines for what `visa` makes: four images to fit on, two good and three defects to test."""
    normal, anomaly = f"{category}/Data/Images/Normal", f"{category}/Data/Images/Anomaly"
    return [
        *(f"{category},train,normal,{normal}/{index:04}.JPG," for index in (5, 0, 3, 2)),
        *(f"{category},test,normal,{normal}/{index:04}.JPG," for index in (4, 1)),
        *(f"{category},test,anomaly,{anomaly}/{i:03}.JPG,{category}/Data/Masks/Anomaly/{i:03}.png" for i in range(3)),
    ]


def write_split(root, rows, columns=COLUMNS):
    (root / "split_csv").mkdir(exist_ok=True)
    (root / "split_csv" / "1cls.csv").write_bytes("".join(f"{row}\r\n" for row in [columns, *rows]).encode())


@pytest.fixture
def visa(tmp_path):
    root = tmp_path / "VisA"
    for category in ("candle", "pipe_fryum"):
        fill(root / category / "Data" / "Images" / "Normal", [f"{index:04}.JPG" for index in range(6)])
        fill(root / category / "Data" / "Images" / "Anomaly", [f"{index:03}.JPG" for index in range(3)])
        fill(root / category / "Data" / "Masks" / "Anomaly", [f"{index:03}.png" for index in range(3)])
        (root / category / "image_anno.csv").write_text("image,label,mask\n")
    write_split(root, lines("candle") + lines("pipe_fryum"))
    (root / "split_csv" / "2cls_highshot.csv").write_text(COLUMNS)
    (root / "LICENSE-DATASET").write_text("CC BY 4.0")
    return root


def test_a_category_is_split_as_published(visa):
    dataset = load(visa / "candle")
    images, masks = visa / "candle" / "Data" / "Images", visa / "candle" / "Data" / "Masks" / "Anomaly"
    assert (dataset.name, dataset.root) == ("candle", visa / "candle")
    assert [sample.image_path for sample in dataset.good] == [images / "Normal" / f"000{i}.JPG" for i in (0, 2, 3, 5)]
    assert {(sample.label, sample.kind, sample.mask_path) for sample in dataset.good} == {("good", "good", None)}
    assert [(sample.image_path, sample.label, sample.kind, sample.mask_path) for sample in dataset.test] == [
        *((images / "Anomaly" / f"00{i}.JPG", "defect", "anomaly", masks / f"00{i}.png") for i in range(3)),
        *((images / "Normal" / f"000{i}.JPG", "good", "good", None) for i in (1, 4)),
    ]
    parts = split(dataset)
    assert {sample.label for sample in parts.fit + parts.calibrate} == {"good"}


def test_the_download_holds_categories(visa):
    assert [dataset.name for dataset in load_all(visa)] == ["candle", "pipe_fryum"]
    assert load_all(visa / "candle") == [load(visa / "candle")]
    with pytest.raises(DatasetError, match=r"holds 2 categories \(candle, pipe_fryum\): give one of them"):
        load(visa)


def test_an_image_on_both_sides_does_not_test(visa):
    images = visa / "candle" / "Data" / "Images" / "Normal"
    shutil.copy(images / "0000.JPG", images / "0001.JPG")  # the one is fitted on, the other tests
    dataset = load(visa / "candle")
    assert len(split(dataset).test) == len(dataset.test) - 1


def test_a_category_without_its_split_can_be_split_in_another_way(visa):
    shutil.rmtree(visa / "split_csv")
    with pytest.raises(DatasetError, match=r"1cls\.csv, which says what tests, is not there: .* give .*Data/Images"):
        load(visa / "candle")
    dataset = load(visa / "candle" / "Data" / "Images")
    assert {sample.label for sample in dataset.good} == {"good"}
    assert sum(sample.label == "defect" for sample in dataset.test) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, rows[0]], r"names an image of candle twice"),
        (lambda rows: [rows[0].replace("train", "test"), *rows], r"names an image of candle twice"),
        (lambda rows: rows[1:], r"holds 1 files that .*1cls\.csv does not name \(.*0005\.JPG\): take them out"),
        (
            lambda rows: [*rows, rows[0].replace("0005", "0009")],
            r"names 1 files that are not in .*candle \(.*0009\.JPG\)",
        ),
        (
            lambda rows: [*rows[:-1], rows[-1].replace("Masks/Anomaly/002", "Masks/Anomaly/7")],
            r"names 1 files .*7\.png",
        ),
        (
            lambda rows: [*rows[:-1], rows[-1].replace("candle/Data/Images/", "../")],
            r"names 1 files .*\.\./Anomaly/002",
        ),
        (
            lambda rows: [*rows[:-1], rows[-1].replace("test", "train")],
            r"trains on the defect .*002\.JPG, and only good",
        ),
        (lambda rows: [rows[0].replace("train", "val"), *rows[1:]], r"1cls\.csv, line 2: val, normal; expected were"),
        (lambda rows: [rows[0].replace("normal", "fine"), *rows[1:]], r"1cls\.csv, line 2: train, fine; expected were"),
        (lambda rows: [*rows, 'candle,"'], r"1cls\.csv is not a table of text"),
    ],
)
def test_a_split_that_does_not_agree_with_the_files_is_refused(visa, change, message):
    write_split(visa, change(lines("candle")))
    with pytest.raises(DatasetError, match=message):
        load(visa / "candle")


def test_a_split_file_of_another_kind_is_refused(visa):
    write_split(visa, lines("candle"), columns="image,label,mask")
    with pytest.raises(DatasetError, match=r"has columns \['image', 'label', 'mask'\]; expected were object,split"):
        load(visa / "candle")
    (visa / "split_csv" / "1cls.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match=r"1cls\.csv is not a table of text"):
        load(visa / "candle")
