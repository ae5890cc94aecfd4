"""The inspector: verdicts by hand on a model whose scores can be computed by hand, and what a cold start costs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import tiny_model
from makel.errors import ImageError, ModelFolderError, UsageError
from makel.model.inspector import Inspector
from makel.types import Scores, Verdict
from peak_memory import PEAK_MIB

GREY = 128
"""Mid grey: |128 / 255 - 0.5| = 0.00196 is the lowest score a grey of 8 bits has."""


@pytest.fixture(scope="module")
def inspector(tmp_path_factory) -> Inspector:
    # Rejects, and marks pixels, above 0.3.
    return Inspector.load(tiny_model.write(tmp_path_factory.mktemp("inspector") / "model"), threads=1)


def part(height: int = 48, width: int = 80, *, spot: int | None = None) -> np.ndarray:
    """A mid-grey part; with `spot`, a square of that grey over x 20..40, y 12..24."""
    drawn = np.full((height, width, 3), GREY, np.uint8)
    if spot is not None:
        drawn[12:24, 20:40] = spot
    return drawn


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
    return path


def test_a_good_part_passes(inspector: Inspector) -> None:
    verdict = inspector.inspect(part())
    assert verdict.verdict == "pass"
    assert verdict.score == pytest.approx(GREY / 255 - 0.5, abs=1e-5)
    assert verdict.threshold == 0.3
    assert verdict.p_value == 1
    assert verdict.regions == ()
    assert verdict.model_id == inspector.model_id == inspector.manifest.model_id
    assert verdict.elapsed_ms > 0


def test_a_defect_is_rejected_where_it_is_in_the_pixels_of_the_image(inspector: Inspector) -> None:
    verdict = inspector.inspect(part(spot=255))
    assert verdict.verdict == "reject"
    assert verdict.score == pytest.approx(0.5, abs=1e-3)
    assert verdict.p_value == 1 / 4
    assert verdict.anomaly_map.shape == (48, 80)
    assert verdict.anomaly_map.dtype == np.float32
    (region,) = verdict.regions
    # A pixel of the map is 5 x 3 pixels of the image; bilinear edges move by no more than one.
    assert np.abs(np.subtract(region.box_px, (20, 12, 40, 24))).max() <= 5
    assert region.peak == pytest.approx(0.5, abs=1e-3)
    assert region.area_px == (verdict.anomaly_map > 0.3).sum()


@pytest.mark.parametrize("size", [(8, 40), (48, 10)])
def test_a_defect_is_where_it_is_for_an_input_that_is_no_square(tmp_path: Path, size: tuple[int, int]) -> None:
    inspector = Inspector.load(tiny_model.write(tmp_path / "model", size=size), threads=1)
    verdict = inspector.inspect(part(spot=255))
    (region,) = verdict.regions
    assert verdict.anomaly_map.shape == (48, 80)
    assert np.abs(np.subtract(region.box_px, (20, 12, 40, 24))).max() <= 3
    with pytest.raises(UsageError, match=rf"of shape \(N, 3, {size[0]}, {size[1]}\)"):
        inspector.scores(np.zeros((1, 3, *size[::-1]), np.float32))


def test_what_was_prepared_ahead_is_judged_as_inspect_judges(inspector: Inspector) -> None:
    images = [part(), part(31, 57, spot=255), part(spot=10)]
    judged = inspector.judge([inspector.prepare(image) for image in images])
    assert [(each.verdict, each.score, each.regions) for each in judged] == [
        (each.verdict, each.score, each.regions) for each in map(inspector.inspect, images)
    ]
    assert inspector.judge([]) == []


@pytest.mark.parametrize(("height", "width"), [(7, 11), (16, 16), (53, 17), (601, 307), (40_000, 3)])
def test_map_and_boxes_have_the_size_of_the_image(inspector: Inspector, height: int, width: int) -> None:
    verdict = inspector.inspect(np.full((height, width, 3), 255, np.uint8))
    assert verdict.anomaly_map.shape == (height, width)
    assert [region.box_px for region in verdict.regions] == [(0, 0, width, height)]
    assert verdict.regions[0].area_px == height * width


def test_a_score_at_the_threshold_passes(tmp_path: Path) -> None:
    first = Inspector.load(tiny_model.write(tmp_path / "one"), threads=1).inspect(part(spot=255))
    exact = Inspector.load(tiny_model.write(tmp_path / "two", image_scores=(0.1, 0.2, first.score)), threads=1)
    verdict = exact.inspect(part(spot=255))
    assert verdict.score == verdict.threshold
    assert verdict.verdict == "pass"
    assert verdict.p_value == 2 / 4


def test_file_and_array_give_the_same_verdict(inspector: Inspector, tmp_path: Path) -> None:
    path = save(tmp_path / "part.png", part(spot=240))
    found = [inspector.inspect(image) for image in (path, str(path), part(spot=240))]
    assert len({(one.score, one.regions) for one in found}) == 1
    np.testing.assert_array_equal(found[0].anomaly_map, found[2].anomaly_map)


def test_the_image_is_not_changed(inspector: Inspector) -> None:
    given = part(spot=240)
    inspector.inspect(given)
    np.testing.assert_array_equal(given, part(spot=240))


def test_boxes_are_in_the_pixels_of_the_upright_image(inspector: Inspector, tmp_path: Path) -> None:
    """A camera held on its side stores the picture lying and says so in EXIF."""
    upright = part(spot=255)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    Image.fromarray(np.rot90(upright)).save(tmp_path / "lying.png", exif=exif)
    verdict = inspector.inspect(tmp_path / "lying.png")
    assert verdict.anomaly_map.shape == upright.shape[:2]
    assert verdict.regions == inspector.inspect(upright).regions


def test_the_documented_json_keys(inspector: Inspector) -> None:
    found = json.loads(json.dumps(inspector.inspect(part(spot=255)).to_json()))
    assert list(found) == ["verdict", "score", "threshold", "p_value", "regions", "zones", "model_id", "elapsed_ms"]
    assert list(found["regions"][0]) == ["box_px", "area_px", "peak", "zone", "area_mm2"]


def shades(folder: Path, count: int) -> list[Path]:
    return [save(folder / f"{i:02d}.png", part(spot=128 + i * 120 // count)) for i in range(count)]


def test_verdicts_come_in_the_order_of_the_paths(inspector: Inspector, tmp_path: Path) -> None:
    paths = shades(tmp_path, 13)
    mixed = [paths[i] for i in np.random.default_rng(0).permutation(13)]
    found = list(inspector.inspect_all(map(str, mixed)))
    assert [path for path, _ in found] == mixed
    assert {path: verdict.score for path, verdict in found} == {path: inspector.inspect(path).score for path in paths}


@pytest.mark.parametrize("batch", [2, 3, 8, 20])
def test_batch_size_and_order_change_scores_within_the_stated_tolerance(
    inspector: Inspector, tmp_path: Path, batch: int
) -> None:
    paths = shades(tmp_path, 13)
    alone = dict(inspector.inspect_all(paths))
    parity = inspector.manifest.parity
    for order in (paths, paths[::-1]):
        found = list(inspector.inspect_all(order, batch=batch, workers=1))
        assert [path for path, _ in found] == order
        for path, verdict in found:
            assert abs(verdict.score - alone[path].score) <= parity.score_tolerance
            assert np.abs(verdict.anomaly_map - alone[path].anomaly_map).max() <= parity.map_tolerance
            assert verdict.verdict == alone[path].verdict


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_an_image_that_cannot_be_inspected_is_a_value_and_the_run_goes_on(
    inspector: Inspector, tmp_path: Path, batch: int
) -> None:
    good = shades(tmp_path, 4)
    (tmp_path / "broken.png").write_bytes(good[0].read_bytes()[:60])
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    paths = [empty, good[0], tmp_path / "absent.png", good[1], good[2], tmp_path / "broken.png", tmp_path, good[3]]
    found = list(inspector.inspect_all(paths, batch=batch))
    assert [path for path, _ in found] == paths
    assert [type(one) for _, one in found] == [
        ImageError, Verdict, ImageError, Verdict, Verdict, ImageError, ImageError, Verdict
    ]  # fmt: skip
    for path, one in found:
        if isinstance(one, ImageError):
            assert path.name in str(one)


def test_no_paths_no_verdicts(inspector: Inspector) -> None:
    assert list(inspector.inspect_all([])) == []


def test_paths_are_taken_as_they_come(inspector: Inspector, tmp_path: Path) -> None:
    """A line has no last image: no more is read ahead than the look-ahead holds."""
    path = save(tmp_path / "part.png", part())
    taken = 0

    def line():
        nonlocal taken
        while True:
            taken += 1
            yield path

    run = inspector.inspect_all(line())
    for _ in range(5):
        next(run)
    run.close()
    assert 5 <= taken <= 15


@pytest.mark.parametrize("settings", [{"batch": 0}, {"workers": 0}])
def test_no_batch_and_no_workers_are_refused_at_once(inspector: Inspector, settings: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        inspector.inspect_all([], **settings)


def test_a_file_that_cannot_be_read_is_named(inspector: Inspector, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"absent\.png"):
        inspector.inspect(tmp_path / "absent.png")


def test_another_kind_of_array_is_refused(inspector: Inspector) -> None:
    for wrong in (np.zeros((3, 5, 7, 3), np.uint8), np.zeros((5, 7, 3), np.int32), np.zeros((0, 7, 3), np.uint8)):
        with pytest.raises(ImageError):
            inspector.inspect(wrong)


@dataclass(frozen=True)
class Broken:
    """A runner whose score or map is not finite."""

    score: float = 0.0
    value: float = 0.0

    def run(self, images: np.ndarray) -> Scores:
        n = len(images)
        return Scores(np.full(n, self.score, np.float32), np.full((n, 1, *images.shape[2:]), self.value, np.float32))


@pytest.mark.parametrize("broken", [Broken(score=np.nan), Broken(score=np.inf), Broken(value=np.nan)])
def test_a_number_that_is_not_finite_never_passes(inspector: Inspector, broken: Broken) -> None:
    with pytest.raises(ModelFolderError, match="not finite"):
        Inspector(inspector.folder, broken).inspect(part())


def test_several_threads_may_share_an_inspector(inspector: Inspector) -> None:
    wanted = [inspector.inspect(part(spot=200 + i)).score for i in range(4)]
    got: list[list[float]] = [[] for _ in wanted]

    def work(i: int) -> None:
        got[i] = [inspector.inspect(part(spot=200 + i)).score for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [[score] * 20 for score in wanted]


def test_scores_are_raw(inspector: Inspector) -> None:
    images = np.random.default_rng(0).random((3, 3, 16, 16), dtype=np.float32)
    np.testing.assert_allclose(inspector.scores(images).image, tiny_model.expected(images).image, atol=1e-6)


COLD = (
    PEAK_MIB
    + """
import json, sys, time
import makel
verdict = makel.Inspector.load(sys.argv[1]).inspect(sys.argv[2])
names = {"torch", "timm", "torchvision", "onnx", "matplotlib", "pandas", "scipy", "tifffile", "typer"}
heavy = sorted(names & set(sys.modules))
cpu_s = time.process_time()
print(json.dumps({"verdict": verdict.verdict, "peak_mib": peak_mib(), "cpu_s": cpu_s, "heavy": heavy}))
"""
)


def test_a_cold_process_inspects_soon_and_small(tmp_path: Path) -> None:
    """With a 15 MB model and a 256 px input, as the default fit leaves them."""
    heavy = tiny_model.onnx_bytes(ballast=15_000_000, size=256)
    model = tiny_model.write(tmp_path / "model", model=heavy, size=256)
    image = save(tmp_path / "part.png", part(1024, 1024, spot=255))
    script = [sys.executable, "-c", COLD, str(model), str(image)]
    found = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    assert found["verdict"] == "reject"
    assert found["heavy"] == []
    # Seconds of the processor, start of Python included: on an idle machine the wall clock shows no more, and on a busy
    # one it measures the others.
    assert found["cpu_s"] < 1.2
    assert found["peak_mib"] < 300
