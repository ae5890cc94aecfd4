import pytest

from makel.datasets import check_mvtec_ad, load, load_all
from makel.datasets.download import MVTEC_AD, is_mvtec_ad
from makel.errors import DatasetError


def fill(folder, count, ending=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index:03}{ending}").write_text(str(folder / f"{index:03}"))


@pytest.fixture
def whole(tmp_path):
    """MVTec AD with as many files as were published, each of a few bytes."""
    root = tmp_path / "mvtec_anomaly_detection"
    for name, (train, good, defects) in MVTEC_AD.items():
        fill(root / name / "train" / "good", train)
        fill(root / name / "test" / "good", good)
        fill(root / name / "test" / "scratch", defects)
        fill(root / name / "ground_truth" / "scratch", defects, "_mask.png")
        (root / name / "license.txt").write_text("CC BY-NC-SA 4.0")
    (root / "readme.txt").write_text("Attribution")
    return root


def test_the_numbers_add_up_to_what_was_published():
    assert len(MVTEC_AD) == 15
    assert sum(train for train, _, _ in MVTEC_AD.values()) == 3629
    assert sum(good + defects for _, good, defects in MVTEC_AD.values()) == 1725


def test_a_whole_download_has_no_findings_and_others_one_for_each_flaw(whole, capsys):
    assert check_mvtec_ad(whole) == ()
    assert [dataset.name for dataset in load_all(whole)] == sorted(MVTEC_AD)
    assert capsys.readouterr().err == ""

    (whole / "grid").rename(whole / "grid_old")
    (whole / "bottle" / "train" / "good" / "004.png").unlink()
    (whole / "cable" / "ground_truth" / "scratch" / "007_mask.png").unlink()
    (whole / "pill" / "test" / "good" / "000.png").unlink()
    (whole / "pill" / "test" / "scratch" / "140.png").unlink()
    (whole / "pill" / "ground_truth" / "scratch" / "140_mask.png").unlink()
    (whole / "wood" / "test" / "scratch" / "003.png").unlink()
    findings = check_mvtec_ad(whole)
    assert findings[:6] == (
        "1 of 15 categories are absent: grid",
        f"1 folders are no category of MVTec AD: {whole / 'grid_old'}",
        "bottle: 208 images in train/good, 209 were published",
        f"cable: 1 images of defects have no mask: {whole / 'cable' / 'test' / 'scratch' / '007.png'}",
        "pill: 25 images in test/good, 26 were published",
        "pill: 140 images of defects, 141 were published",
    )
    assert findings[6].startswith("wood: 1 masks belong to no image (")
    assert len(findings) == 7

    (whole / "wood" / "ground_truth" / "scratch" / "003_mask.png").unlink()  # or wood could not be read
    assert len(load_all(whole)) == 15
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 7
    assert warned[0] == f"{whole}: 1 of 15 categories are absent: grid"
    assert warned[6] == f"{whole}: wood: 59 images of defects, 60 were published"


def test_a_few_categories_are_no_download_cut_short(tmp_path, capsys):
    for name in ("bottle", "wood"):
        fill(tmp_path / name / "train" / "good", 3)
    assert not is_mvtec_ad(tmp_path)
    assert len(load_all(tmp_path)) == 2
    assert len(load(tmp_path / "wood").good) == 3
    assert capsys.readouterr().err == ""
    assert check_mvtec_ad(str(tmp_path))[1] == "bottle: 3 images in train/good, 209 were published"
    with pytest.raises(DatasetError, match="gone is not there; a folder of images was expected"):
        check_mvtec_ad(tmp_path / "gone")
