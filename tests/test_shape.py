"""What shape an input has: chosen from the images, given by hand, or a square of a folder that was fitted before."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import makel
import tiny_model
from makel.errors import ModelFolderError, UsageError
from makel.methods import load as load_method
from makel.methods import names as method_names
from makel.model import folder
from makel.model.folder import open_folder
from makel.training.detector import DetectorConfig
from makel.training.fit import fit
from makel.training.shape import image_sizes, input_shape
from makel.training.torch_session import _config


@pytest.mark.parametrize(
    ("sizes", "size", "expected"),
    [
        ([(1024, 1024)], 384, (384, 384)),
        ([(500, 1240)], 256, (160, 416)),
        ([(1240, 500)], 256, (416, 160)),
        ([(1080, 1920)] * 3, 384, (288, 512)),
        ([(300, 300)], 384, (288, 288)),  # not more pixels than there are
        ([(80, 96)], 256, (96, 96)),
        ([(4096, 128)], 256, (1024, 64)),  # a strip: the long side gives way to the short one's 64
        ([(128, 4096)], 384, (64, 2176)),
        ([(32, 128)], 256, (64, 128)),
        ([(2, 2)], 256, (64, 64)),
        ([(1000, 2000), (1000, 1000), (1000, 1000)], 256, (256, 256)),  # the median of a mixture
        ([(1000, 2000), (1000, 2000), (3000, 1000), (200, 400)], 256, (192, 352)),
        ([(700, 900)], 32, (64, 64)),
    ],
)
def test_the_input_has_the_aspect_of_the_images_and_the_pixels_asked_for(sizes, size, expected):
    assert input_shape(sizes, size) == expected


def test_no_shape_has_many_more_pixels_than_asked_for_or_sides_that_are_no_multiples():
    rng = np.random.default_rng(0)
    for size in (128, 256, 384):
        for height, width in rng.integers(20, 5000, (200, 2)).tolist():
            rows, columns = input_shape([(height, width)], size)
            assert rows % 32 == columns % 32 == 0
            assert min(rows, columns) >= 64
            assert rows * columns <= 1.4 * max(64 * 64, size * size)


def test_sizes_are_those_of_upright_images(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # lies on its side
    Image.new("L", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("L", (50, 30)).save(tmp_path / "upright.png")
    (tmp_path / "broken.png").write_bytes(b"none")
    assert image_sizes(tmp_path / name for name in ("turned.jpg", "broken.png", "upright.png")) == [(40, 20), (30, 50)]


def test_a_size_is_a_square_or_a_height_and_width():
    assert DetectorConfig().size == (256, 256)
    assert DetectorConfig.preset("fast", size=64).size == (64, 64)
    assert DetectorConfig.preset("fast", size=[64, 96]).size == (64, 96)
    for wrong in (0, -3, True, 1.5, "64", (64,), (64, 0), (64, 64, 64), (64, 1.5), None):
        with pytest.raises(UsageError, match="is no size of an image"):
            DetectorConfig.preset("fast", size=wrong)
    with pytest.raises(UsageError, match="aspect 'wide' is not known: choose image or square"):
        DetectorConfig.preset("fast", aspect="wide")


@pytest.mark.parametrize("name", method_names())
def test_fast_presets_on_a_backbone_take_the_aspect_of_the_images_and_no_other(name):
    config_class = load_method(name).config_class
    raw = not config_class.preset("fast").backbone
    assert config_class.preset("fast").aspect == ("square" if raw else "image")
    assert config_class.preset("paper").aspect == "square"
    if raw:
        with pytest.raises(UsageError, match="size 64 x 32 px: this method takes square images alone"):
            config_class.preset("fast", size=(32, 64))
        with pytest.raises(UsageError, match="takes square images alone"):
            config_class.preset("fast", aspect="image")


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    """Good images of noise, 200 pixels wide and 80 high."""
    root = tmp_path_factory.mktemp("line")
    rng = np.random.default_rng(0)
    (root / "good").mkdir()
    for index in range(8):
        cv2.imwrite(str(root / "good" / f"{index}.png"), rng.integers(100, 140, (80, 200), np.uint8))
    return root


PCA = {"method": "pca", "size": 128, "false_reject": 0.5}


@pytest.fixture(scope="module")
def wide(line, tmp_path_factory):
    return fit(line, tmp_path_factory.mktemp("models") / "model", **PCA)


def test_a_fit_takes_the_aspect_of_its_images(wide):
    manifest = wide.manifest
    assert manifest.preprocessing.shape == (96, 192)
    assert manifest.method.config["size"] == [96, 192]
    raw = json.loads((wide.path / "model.json").read_text())
    assert (raw["preprocessing"]["height"], raw["preprocessing"]["width"]) == (96, 192)
    assert "192 x 96 px (width x height)" in (wide.path / "report.html").read_text(encoding="utf-8")


def test_a_defect_is_where_it_is_in_the_pixels_of_the_image(wide):
    image = np.random.default_rng(1).integers(100, 140, (80, 200), np.uint8)
    image[50:66, 160:190] = 255
    verdict = makel.Inspector.load(wide.path).inspect(image)
    assert verdict.verdict == "reject"
    assert verdict.anomaly_map.shape == (80, 200)
    y, x = np.unravel_index(verdict.anomaly_map.argmax(), verdict.anomaly_map.shape)
    assert 46 <= y < 70
    assert 156 <= x < 194


def test_both_sides_given_stay_as_they_are(line, tmp_path):
    summary = fit(line, tmp_path / "model", **{**PCA, "size": (72, 40)})
    assert summary.manifest.preprocessing.shape == (72, 40)


def test_the_paper_and_tiles_are_squares(line, tmp_path):
    tiled = fit(line, tmp_path / "tiled", tile=64, **{**PCA, "size": 64})
    assert tiled.manifest.preprocessing.shape == (64, 64)
    with pytest.raises(UsageError, match="a tile is a square and cannot be seen at 96 x 64 px: give one number"):
        fit(line, tmp_path / "refused", tile=64, **{**PCA, "size": (64, 96)})
    square = fit(line, tmp_path / "square", settings={"aspect": "square"}, **{**PCA, "size": 64})
    assert square.manifest.preprocessing.shape == (64, 64)


def test_a_latency_budget_measures_every_shape_once(line, tmp_path):
    backbone = "efficientnet_lite0"
    settings = {"method": "pca", "backbone": backbone, "false_reject": 0.5}
    manifest = fit(line, tmp_path / "model", latency_budget=60_000, **settings).manifest
    # From 128 on, the images have fewer pixels than each of the sizes that are tried.
    assert [(each.size, each.backbone) for each in manifest.latency.tried] == [((96, 192), backbone)]
    assert manifest.preprocessing.shape == (96, 192)
    assert open_folder(tmp_path / "model").manifest == manifest


def as_before(path: Path) -> Path:
    """A square model folder, rewritten as it was when every input was a square."""
    raw = json.loads((path / "model.json").read_text())
    preprocessing = raw["preprocessing"]
    preprocessing["size"] = preprocessing.pop("height")
    assert preprocessing["size"] == preprocessing.pop("width") == raw["method"]["config"]["size"]
    del raw["model_id"]
    raw["model_id"] = sha256((json.dumps(raw, sort_keys=True, indent=2) + "\n").encode()).hexdigest()[:16]
    (path / "model.json").write_text(json.dumps(raw, sort_keys=True, indent=2) + "\n")
    return path


def test_a_folder_that_was_fitted_before_runs_as_it_is(tmp_path, makel_says):
    now, before = tiny_model.write(tmp_path / "now"), as_before(tiny_model.write(tmp_path / "before"))
    data = (before / "model.json").read_bytes()
    assert b'"size": 16' in data
    opened = open_folder(before)
    assert opened.manifest.preprocessing.shape == (16, 16)
    assert opened.manifest.to_bytes() == data
    image = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    old, new = (makel.Inspector.load(path).inspect(image) for path in (before, now))
    assert (old.score, old.regions) == (new.score, new.regions)
    assert makel_says("verify", before)[0] == 0
    assert "seen at 16 x 16 px" in makel_says("info", before)[1]
    assert folder.copy(opened, tmp_path / "copy").manifest == open_folder(tmp_path / "copy").manifest
    assert (tmp_path / "copy" / "model.json").read_bytes() == data


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b'"size": 16,\n    "white', b'"size": 17,\n    "white'),
        lambda data: data.replace(b'"size": 16,\n    "white', b'"size": 16.0,\n    "white'),
        lambda data: data.replace(b'"size": 16,\n    "white', b'"height": 16,\n    "size": 16,\n    "white'),
        lambda data: data.replace(b'"size": 16,\n    "white', b'"height": 16,\n    "width": 16,\n    "white'),
    ],
)
def test_a_folder_of_before_is_checked_to_the_byte_too(tmp_path, change):
    path = as_before(tiny_model.write(tmp_path / "before")) / "model.json"
    changed = change(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    with pytest.raises(ModelFolderError, match=r"model\.json"):
        open_folder(path.parent)


@pytest.mark.parametrize("size", [64, [64, 64]])
def test_settings_of_a_torch_model_are_read_in_both_forms(size):
    config = _config(load_method("anogan").config_class, {"size": size, "latent": 8}, "weights.safetensors")
    assert config.size == (64, 64)
