import cv2
import numpy as np
import pytest

from makel.datasets import digest, load, split
from makel.datasets.synthetic import PRODUCTS, render, write
from makel.errors import DatasetError, UsageError
from makel.images import Preparation, decode_all, read

SIZE = 96
DEFECTS = [(product, kind) for product, kinds in PRODUCTS.items() for kind in kinds]


def picture(product, seed, kind="good", severity=1.0, size_px=SIZE):
    return render(product, np.random.default_rng(seed), kind=kind, severity=severity, size_px=size_px)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic") / "flange"
    return write(root, product="flange", n_fit=6, n_good=3, n_defect=11, size_px=SIZE, seed=5)


def test_it_is_written_in_the_mvtec_layout_with_a_mask_for_each_defect(written):
    assert load(written.root) == written
    assert (written.name, len(written.good), len(written.test)) == ("flange", 6, 14)
    counts = {kind: sum(sample.kind == kind for sample in written.test) for kind in ("good", *PRODUCTS["flange"])}
    assert counts == {"good": 3, "scratch": 3, "hole": 2, "stain": 2, "dent": 2, "missing": 2}
    for sample in written.test:
        assert (sample.mask_path is not None) == (sample.label == "defect")
        if sample.mask_path:
            mask = read(sample.mask_path)
            assert mask.shape == read(sample.image_path).shape[:2] == (SIZE, SIZE)
            assert set(np.unique(mask)) == {0, 255}
    assert len(split(written).calibrate) == 1
    assert Preparation.of(decode_all(sample.image_path for sample in written.good), shape=(64, 64)).colour == "rgb"


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(written, tmp_path):
    arguments = {"product": "flange", "n_good": 3, "n_defect": 11, "size_px": SIZE}
    again = write(tmp_path / "again", n_fit=6, seed=5, **arguments)
    assert digest(again.good + again.test) == digest(written.good + written.test)
    longer = write(tmp_path / "longer", n_fit=8, seed=5, **arguments)
    assert digest(longer.good[:6]) == digest(written.good)
    other = write(tmp_path / "other", n_fit=6, seed=6, **arguments)
    assert digest(other.good) != digest(written.good)


def test_nothing_is_overwritten(written):
    with pytest.raises(DatasetError, match="is there already: give a new or empty folder"):
        write(written.root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"product": "flnge"}, "product 'flnge' is unknown; it can be flange, brushed_metal, weave"),
        ({"n_defect": -1}, "n_defect=-1"),
        ({"size_px": 32}, "size_px=32"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "x", **arguments)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("product", PRODUCTS)
def test_good_parts_vary_as_on_a_line_and_have_an_empty_mask(product):
    parts = [picture(product, seed) for seed in range(12)]
    assert all(not mask.any() for _, mask in parts)
    pictures = np.stack([image for image, _ in parts]).astype(float)
    assert pictures.shape == (12, SIZE, SIZE, 3)
    brightness = pictures.mean(axis=(1, 2, 3))
    assert 1 < brightness.std() < 12  # lamp and exposure, in grey levels
    assert (pictures == 255).mean() < 0.02
    assert (pictures == 0).mean() < 0.02
    noise = pictures[0] - cv2.GaussianBlur(pictures[0], (0, 0), 1)
    assert noise.std() > 0.4


@pytest.mark.parametrize(("product", "kind"), DEFECTS)
@pytest.mark.parametrize("severity", [0.1, 1.0])
def test_the_mask_is_where_the_defect_changed_the_picture(product, kind, severity):
    # The same part with and without: all random numbers of the part are drawn before those of its defect, but the
    # camera's noise comes after them, so the picture outside the mask changes by noise and exposure only.
    inside, outside, areas = [], [], []
    for seed in range(4):
        good, _ = picture(product, seed, size_px=128)
        image, mask = picture(product, seed, kind, severity, size_px=128)
        assert mask.any()
        if kind == "missing" and product != "flange":
            continue  # draws its place before the part is complete, so there is no twin to compare with
        difference = cv2.GaussianBlur(np.abs(image.astype(np.float32) - good).max(axis=2), (0, 0), 1)
        difference -= np.median(difference)
        near = cv2.dilate(mask, np.ones((7, 7), np.uint8)) > 0
        inside.append(difference[mask > 0].mean())
        outside.append(difference[~near].mean())
        areas.append((mask > 0).mean())
    if inside:
        assert np.mean(inside) > 2 * max(np.mean(outside), 1)
        assert 1e-4 < np.mean(areas) < 0.06


@pytest.mark.parametrize("kind", ["scratch", "hole", "stain", "dent"])
def test_severity_makes_a_defect_larger(kind):
    def area(severity):
        return np.mean([(picture("flange", seed, kind, severity)[1] > 0).mean() for seed in range(8)])

    assert area(1.0) > 1.5 * area(0.1)


def test_a_missing_bolt_hole_is_bright_where_a_hole_is_dark():
    image, mask = picture("flange", 3, "missing", size_px=256)
    good, _ = picture("flange", 3, size_px=256)
    centre = cv2.erode(mask, np.ones((9, 9), np.uint8)) > 0
    assert image[centre].mean() > 2 * good[centre].mean()


def test_defects_lie_on_the_part():
    for seed in range(10):
        _, mask = picture("flange", seed, "stain", size_px=128)
        y, x = np.nonzero(mask)
        reach = np.hypot(x - 63.5, y - 63.5) / 64
        assert reach.min() > 0.15
        assert reach.max() < 0.9
