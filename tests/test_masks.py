"""Masks as programs write them, read as what they mean or refused: one defect of 20 x 10 px, stored in many ways."""

from __future__ import annotations

import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from makel.datasets import load
from makel.errors import DatasetError, ImageError
from makel.images import read_header, read_mask

TRUTH = np.zeros((60, 80), bool)
TRUTH[20:30, 30:50] = True
WHITE = np.uint8(TRUTH * 255)


def palette(labels, colours):
    image = Image.new("P", labels.shape[::-1])
    image.putdata(labels.ravel().tolist())
    image.putpalette([value for colour in colours for value in colour])
    return image


def on_transparent(paint, background):
    pixels = np.zeros((60, 80, 4), np.uint8)
    pixels[...] = (*background, 0)
    pixels[TRUTH] = (*paint, 255)
    return Image.fromarray(pixels, "RGBA")


def voc():
    labels = np.uint8(TRUTH)
    border = (cv2.dilate(labels, np.ones((3, 3), np.uint8)) > 0) & ~TRUTH
    return np.where(border, 255, labels).astype(np.uint8)


def soft(factor=4):
    large = cv2.resize(WHITE, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    return cv2.GaussianBlur(cv2.resize(large, (80, 60), interpolation=cv2.INTER_AREA), (0, 0), 0.8)


def ringing():
    return np.asarray(Image.fromarray(WHITE).resize((160, 120)).resize((80, 60), Image.Resampling.LANCZOS))


PLAIN = {
    "white": lambda: Image.fromarray(WHITE),
    "ones": lambda: Image.fromarray(np.uint8(TRUTH)),
    "red": lambda: Image.fromarray(np.dstack([WHITE, 0 * WHITE, 0 * WHITE])),
    "bilevel": lambda: Image.fromarray(WHITE).convert("1"),
    "grey palette": lambda: palette(np.uint8(~TRUTH), [(255, 255, 255), (0, 0, 0)]),
}
READ = {
    "palette on bright": (lambda: palette(np.uint8(TRUTH), [(250, 250, 200), (0, 0, 90)]), "palette"),
    "VOC palette": (lambda: palette(voc(), [(0, 0, 0), (128, 0, 0), *[(9, 9, 9)] * 253, (224, 224, 192)]), "border"),
    "VOC labels": (lambda: Image.fromarray(voc()), "border"),
    "labels 1 and 2": (lambda: Image.fromarray(np.uint8(1 + TRUTH)), "the lowest label, 1, is the background"),
    "labels 1 and 3 on 0": (
        lambda: Image.fromarray(np.where(np.arange(80) < 40, 1, 3).astype(np.uint8) * TRUTH),
        "labels 1, 3 are all marked",
    ),
    "white on transparent white": (lambda: on_transparent((255, 255, 255), (255, 255, 255)), "opaque"),
    "black on transparent white": (lambda: on_transparent((0, 0, 0), (255, 255, 255)), "opaque"),
    "ringing": (lambda: Image.fromarray(ringing()), "soft edges are cut at half"),
    "soft edges": (lambda: Image.fromarray(soft()), "soft edges are cut at half"),
}


def stored(tmp_path, image, name="mask.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("how", PLAIN)
def test_a_plain_mask_needs_no_word(tmp_path, how):
    mask = read_mask(stored(tmp_path, PLAIN[how]()))
    assert mask.note == ""
    np.testing.assert_array_equal(mask.marked, TRUTH)


@pytest.mark.parametrize("how", READ)
def test_what_is_certain_is_read_and_said(tmp_path, how):
    make, note = READ[how]
    mask = read_mask(stored(tmp_path, make()))
    assert note in mask.note
    np.testing.assert_array_equal(mask.marked, TRUTH)


def test_a_jpeg_is_cut_at_half(tmp_path):
    mask = read_mask(stored(tmp_path, Image.fromarray(WHITE), "mask.jpg", quality=60))
    assert "cut at half" in mask.note
    assert np.mean(mask.marked != TRUTH) < 0.002


GREYS = cv2.GaussianBlur(np.random.default_rng(0).normal(120, 200, (60, 80)).astype(np.float32), (0, 0), 3)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.fromarray(255 - WHITE), "marks 96 % of its image: it is inverted"),
        (Image.fromarray(np.uint8(np.where(TRUTH, 200, 255))), "has the values 200, 255, none of them 0"),
        (palette(np.uint8(~TRUTH), [(200, 0, 0), (0, 0, 90)]), "marks 96 % of its image"),
        (Image.fromarray(np.clip(GREYS, 0, 255).astype(np.uint8)), "more than an edge: it is no mask"),
        (Image.fromarray(np.full((60, 80), 255, np.uint8)), "has the values 255, none of them 0"),
    ],
)
def test_what_is_not_certain_is_refused_in_one_line(tmp_path, image, said):
    path = stored(tmp_path, image)
    with pytest.raises(ImageError, match=said) as caught:
        read_mask(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_labels_in_a_jpeg_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"has soft values up to \d+: store labels without loss"):
        read_mask(stored(tmp_path, Image.fromarray(np.uint8(2 * TRUTH)), "mask.jpg", quality=95))


def turned(tmp_path, orientation, shape=(60, 80)):
    """The header of an image that its EXIF turns."""
    image = Image.fromarray(np.zeros(shape, np.uint8))
    exif = image.getexif()
    exif[274] = orientation
    return read_header(stored(tmp_path, image, "image.jpg", exif=exif))


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(5, TRUTH.T), (6, TRUTH.T[:, ::-1]), (7, TRUTH.T[::-1, ::-1]), (8, TRUTH.T[::-1])],
)
def test_a_mask_on_the_stored_pixels_is_turned_with_its_image(tmp_path, orientation, upright):
    mask = read_mask(stored(tmp_path, Image.fromarray(WHITE)), image=turned(tmp_path, orientation))
    assert "turned with it" in mask.note
    np.testing.assert_array_equal(mask.marked, upright)


def test_a_mask_on_the_upright_pixels_stays(tmp_path):
    path = stored(tmp_path, Image.fromarray(np.ascontiguousarray(WHITE.T)))
    mask = read_mask(path, image=turned(tmp_path, 6))
    assert mask.note == ""
    np.testing.assert_array_equal(mask.marked, TRUTH.T)


@pytest.mark.parametrize(("orientation", "shape"), [(3, (60, 80)), (2, (60, 80)), (6, (80, 80))])
def test_where_both_would_fit_it_is_refused(tmp_path, orientation, shape):
    path = stored(tmp_path, Image.fromarray(np.resize(WHITE, shape)))
    with pytest.raises(ImageError, match="it is not certain on which of the two it was drawn"):
        read_mask(path, image=turned(tmp_path, orientation, shape))


def test_a_mask_of_another_size_is_refused_before_its_values(tmp_path):
    with pytest.raises(ImageError, match="is 80x60 and its image 70x60: a mask must have its image's size"):
        read_mask(stored(tmp_path, Image.fromarray(255 - WHITE)), image=turned(tmp_path, 1, (60, 70)))


# names


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(str(folder / name), encoding="utf-8")


def test_two_images_do_not_share_a_mask(tmp_path):
    fill(tmp_path / "train" / "good", "a.png")
    fill(tmp_path / "test" / "bent", "000.png", "000.jpg", "001.png", "001.jpg")
    fill(tmp_path / "ground_truth" / "bent", "000_mask.png")
    with pytest.raises(DatasetError, match=r"000_mask\.png would be the mask of .*000\.jpg and of .*000\.png"):
        load(tmp_path)


def test_names_are_compared_as_they_read(tmp_path):
    composed, apart = (unicodedata.normalize(form, "schlüssel") for form in ("NFC", "NFD"))
    fill(tmp_path / "train" / "good", "a.png")
    fill(tmp_path / "test" / composed, f"{apart}.png")
    fill(tmp_path / "ground_truth" / apart, f"{composed}_mask.png")
    (sample,) = load(tmp_path).test
    assert sample.mask_path is not None
