"""Overlays and masks: clear where good, hot where not, and never two inputs in one file."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from makel.model import overlay
from makel.model.regions import find_regions
from makel.types import Verdict

THRESHOLD = 2.0


def verdict_of(anomaly_map: np.ndarray) -> Verdict:
    score = float(anomaly_map.max())
    return Verdict(
        verdict="reject" if score > THRESHOLD else "pass",
        score=score,
        threshold=THRESHOLD,
        p_value=0.05,
        regions=find_regions(anomaly_map, THRESHOLD),
        anomaly_map=anomaly_map,
        model_id="0123456789abcdef",
        elapsed_ms=1.0,
    )


def defect(height: int = 512, width: int = 768, peak: float = 8.0) -> np.ndarray:
    """Background 1 with some noise, a blob of the given peak over x 300..400, y 100..160."""
    drawn = np.random.default_rng(0).uniform(0.8, 1.2, (height, width)).astype(np.float32)
    drawn[100:160, 300:400] = peak
    return drawn


GREY = np.full((512, 768), 90, np.uint8)


def test_good_areas_stay_as_they_are_and_the_caption_hides_nothing() -> None:
    drawn = overlay.draw(GREY, verdict_of(defect()), THRESHOLD)
    assert drawn.shape[0] > 512
    assert drawn.shape[1:] == (768, 3)
    clear = np.ones((512, 768), bool)
    clear[90:170, 290:410] = False
    assert (drawn[:512][clear] == 90).all()


def test_hotter_looks_hotter() -> None:
    def centre(peak: float) -> np.ndarray:
        return overlay.draw(GREY, verdict_of(defect(peak=peak)), THRESHOLD)[130, 350].astype(int)

    shades = [centre(peak) for peak in (1.0, 1.8, 2.5, 4.0, 6.0)]
    assert (shades[0] == 90).all()
    distances = [np.abs(shade - 90).sum() for shade in shades]
    assert distances == sorted(distances)
    assert shades[-1][0] > shades[-1][2] + 60  # red and yellow, not blue: RGB order


def test_regions_are_outlined() -> None:
    drawn = overlay.draw(GREY, verdict_of(defect()), THRESHOLD)
    assert (drawn[100, 310:390] > 200).all()
    assert (drawn[110:150, 399] > 200).all()


def test_caption_tells_pass_from_reject() -> None:
    good, bad = (overlay.draw(GREY, verdict_of(defect(peak=peak)), THRESHOLD) for peak in (1.0, 8.0))
    assert good[-1, -1].argmax() == 1
    assert bad[-1, -1].argmax() == 0
    assert (bad[512:] == 255).any()  # letters


@pytest.mark.parametrize("peak", [0.5, 8.0])
@pytest.mark.parametrize(
    "image",
    [
        np.full((40, 60), 90, np.uint8),
        np.full((40, 60, 1), 90, np.uint8),
        np.full((40, 60, 3), 90, np.uint8),
        np.full((40, 60), 4000, np.uint16),
        np.full((40, 60, 3), 0.3, np.float32),
        np.full((3000, 5), 90, np.uint8),
        np.full((5, 3000, 3), 90, np.uint8),
        np.full((1, 1), 90, np.uint8),
        np.zeros((40, 60), np.uint16),
    ],
)
def test_every_kind_and_size_of_image_can_be_drawn(image: np.ndarray, peak: float) -> None:
    given = image.copy()
    drawn = overlay.draw(image, verdict_of(np.full(image.shape[:2], peak, np.float32)), THRESHOLD)
    assert drawn.dtype == np.uint8
    assert drawn.ndim == 3
    assert 320 <= max(drawn.shape[:2]) <= 2100
    np.testing.assert_array_equal(image, given)


def test_white_level_is_shown_as_white() -> None:
    image = np.full((512, 512), 1023, np.uint16)
    quiet = verdict_of(np.zeros((512, 512), np.float32))
    assert (overlay.draw(image, quiet, THRESHOLD, white_level=1023)[:512] == 255).all()
    assert (overlay.draw(image, quiet, THRESHOLD, white_level=4095)[:512] == 64).all()


def test_a_map_without_background_is_hot_where_it_is_above() -> None:
    drawn = defect(peak=1.0) + 5
    drawn[:100] = 0
    picture = overlay.draw(GREY, verdict_of(drawn.astype(np.float32)), THRESHOLD)
    assert (picture[:90] == 90).all()
    assert (picture[200] != 90).any(axis=-1).all()


def test_files_hold_overlay_and_mask_at_the_images_size(tmp_path: Path) -> None:
    anomaly_map = defect()
    image = np.full((512, 768, 3), (200, 30, 30), np.uint8)
    paths = overlay.write(tmp_path / "новый", "teil/ä 1", image, verdict_of(anomaly_map), THRESHOLD)
    assert paths == (tmp_path / "новый/teil/ä 1_overlay.png", tmp_path / "новый/teil/ä 1_mask.png")
    shown, mask = (cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) for path in paths)
    np.testing.assert_array_equal(mask, np.where(anomaly_map > THRESHOLD, 255, 0))
    assert mask.dtype == np.uint8
    assert shown[5, 5].tolist() == [30, 30, 200]  # OpenCV reads BGR


def names(*paths: str) -> list[str]:
    return overlay.names([Path(path) for path in paths])


def test_names_are_stems_below_what_the_paths_share() -> None:
    assert names("a/1.png") == ["1"]
    assert names("a/1.png", "a/2.png") == ["1", "2"]
    assert names("a/1.png", "b/1.png") == ["a/1", "b/1"]
    assert names("line/a/1.png", "line/1.png") == ["a/1", "1"]
    assert names("../x/1.png", "b/1.png")[1].endswith("b/1")
    assert ".." not in names("../x/1.png", "b/1.png")[0]
    assert names() == []


def test_names_of_one_folder_that_would_collide_keep_their_suffix() -> None:
    assert names("1.png", "1.jpg") == ["1", "1.jpg"]
    assert names("A.png", "a.png") == ["A", "a.png"]
    assert names("1.jpg.png", "1.png", "1.jpg") == ["1.jpg", "1", "1.jpg-2"]


def test_the_same_file_twice_has_one_name() -> None:
    assert names("a/1.png", "a/../a/1.png", "b/1.png") == ["a/1", "a/1", "b/1"]


parts = st.sampled_from(["a", "A", "b", "a.png", "1"])


@given(st.lists(st.tuples(st.lists(parts, max_size=2), parts, st.sampled_from([".png", ".jpg", ".PNG", ""]))))
def test_different_files_never_share_a_name(drawn) -> None:
    paths = [Path(*folders, stem + suffix) for folders, stem, suffix in drawn]
    found = dict(zip(paths, overlay.names(paths), strict=True))
    assert len({name.casefold() for name in found.values()}) == len(found)
    written = {f"{name}{end}".casefold() for name in found.values() for end in ("_overlay.png", "_mask.png")}
    assert len(written) == 2 * len(found)
