"""Products of which a camera sees next to nothing: plain sheets, and parts that are all but equal."""

import cv2
import numpy as np

from makel.model.folder import open_folder
from makel.model.inspector import Inspector

SETTINGS = ("--size", "64", "--quiet", "--seed", "1")


def write(folder, images):
    folder.mkdir()
    for number, image in enumerate(images):
        (folder / f"{number:02}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return folder


def sheets(shape, sd, count=12):
    """Grey levels around 128."""
    rng = np.random.default_rng(0)
    return [np.clip(np.rint(rng.normal(128, sd, shape)), 0, 255).astype(np.uint8) for _ in range(count)]


def test_a_plain_sheet_is_fitted_and_a_spot_on_it_found(makel_says, tmp_path):
    *good, fresh = sheets((128, 128), 3, 13)
    folder = write(tmp_path / "sheets", good)
    (folder / "00.png").rename(folder / "00.jfif")
    (folder / "12.heic").write_bytes(b"\0\0\0\x18ftypheic")
    code, out, err = makel_says("fit", folder, "--out", tmp_path / "model", "--epochs", "2", *SETTINGS)
    assert (code, "10 fitted on, 2 for the threshold" in out) == (0, True)
    for line in ("1 file not looked at: 1 .heic", "1 of 12 names disagree with what the files hold"):
        assert f"note: {line}" in out
        assert f"makel: {line}" in err
    inspector = Inspector.load(tmp_path / "model", threads=1)
    spot = fresh.copy()
    spot[40:50, 60:70] = 60
    assert inspector.inspect(spot).score > 2 * max(
        inspector.inspect(fresh).score, inspector.calibration.image_threshold
    )


def test_parts_that_are_all_but_equal_are_fitted(makel_says, tmp_path):
    """A distance to what is remembered is then nothing but rounding, and differs from one library to the next."""
    texture = np.random.default_rng(0).integers(100, 140, (96, 96), np.uint8)
    images = [texture.copy() for _ in range(12)]
    for number, image in enumerate(images):
        image[number, 0] += 1
    folder = write(tmp_path / "parts", images)
    code, _, err = makel_says("fit", folder, "--out", tmp_path / "model", "--method", "nearest", *SETTINGS)
    assert (code, err) == (0, "")
    manifest = open_folder(tmp_path / "model").manifest
    assert manifest.parity.score_tolerance < 0.1 * Inspector.load(tmp_path / "model").inspect(255 - texture).score
