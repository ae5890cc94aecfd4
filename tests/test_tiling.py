"""Tiles: where they stand, that their weights sum to one, and that what is planted on their borders is found once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import tiny_model
from makel.errors import DatasetError, ImageError, MakelError, ModelFolderError, UsageError
from makel.images import DecodedRows, Preparation, open_rows, read, read_reduced
from makel.model import map_store, overlay
from makel.model.inspector import Inspector
from makel.model.layout import place_on_input
from makel.model.map_store import MapStore, reduce_peaks
from makel.model.region_stream import RegionStream
from makel.model.regions import find_regions
from makel.model.scan import Scan
from makel.model.tiling import Tiling
from makel.model.zones import Zone, Zones
from makel.training import loop
from makel.training.features import extract
from makel.training.tiles import TilePlan
from makel.types import Scores, Verdict
from peak_memory import PEAK_MIB

TILE = 32
TILING = Tiling(TILE, 8)
GREY = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Rejects, and marks pixels, above 0.3; takes tiles of 32 px as they are."""
    return tiny_model.write(tmp_path_factory.mktemp("tiles") / "model", size=TILE, tiling=TILING, colour="grey")


@pytest.fixture(scope="module")
def inspector(model) -> Inspector:
    return Inspector.load(model, threads=1)


tilings = st.integers(32, 90).flatmap(
    lambda tile: st.builds(Tiling, tile_px=st.just(tile), overlap_px=st.integers(0, tile // 2))
)


@given(tilings, st.integers(1, 700))
def test_tiles_cover_a_side_and_their_weights_sum_to_one(tiling: Tiling, length: int) -> None:
    axis = tiling.cut(length)
    assert axis.side_px == min(tiling.tile_px, length)
    assert (axis.starts[0], axis.length_px) == (0, length)
    assert all(
        one + axis.side_px - other >= tiling.overlap_px
        for one, other in zip(axis.starts, axis.starts[1:], strict=False)
    )
    total = np.zeros(length)
    for start, weights in zip(axis.starts, axis.weights(), strict=True):
        assert weights.min() >= 0
        total[start : start + axis.side_px] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_a_weight_falls_towards_a_neighbour_and_not_towards_the_edge_of_the_image() -> None:
    first, second = Tiling(32, 8).cut(56).weights()
    assert (first[:24] == 1).all()
    assert (np.diff(first[23:]) < 0).all()
    np.testing.assert_allclose(second, first[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (16, "auto", "too small to show anything"),
        (64, "33", "give 0 to 32, or auto"),
        (64, -1, "give 0 to 32, or auto"),
        (64, "some", "neither auto nor a whole number"),
    ],
)
def test_a_tiling_that_cannot_be_is_refused(tile: int, overlap: str | int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tiling.of(tile, overlap)


def test_auto_is_a_quarter() -> None:
    assert Tiling.of(512) == Tiling(512, 128)
    assert Tiling.of(512, "40") == Tiling(512, 40)


maps = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).random(np.random.default_rng(seed).integers(1, 25, 2)).astype(np.float32)
)


@given(maps, st.floats(0, 1), st.integers(1, 9), st.integers(1, 4))
def test_regions_are_the_same_wherever_bands_are_cut(
    anomaly_map: np.ndarray, threshold: float, rows: int, min_area_px: int
) -> None:
    stream = RegionStream(threshold, min_area_px=min_area_px)
    for start in range(0, len(anomaly_map), rows):
        stream.add(anomaly_map[start : start + rows])
    assert stream.finish() == find_regions(anomaly_map, threshold, min_area_px=min_area_px)


def test_a_ring_that_closes_bands_later_is_one_region() -> None:
    drawn = np.zeros((40, 40), np.float32)
    drawn[4:36, 4:36] = 1
    drawn[6:34, 6:34] = 0
    drawn[20, 20] = 2
    stream = RegionStream(0.5, keep=lambda region: region.area_px > 1)
    for start in range(0, 40, 3):
        stream.add(drawn[start : start + 3])
    (ring,) = stream.finish()
    assert (ring.box_px, ring.area_px, ring.peak) == ((4, 4, 36, 36), 32 * 32 - 28 * 28, 1.0)


def part(height: int, width: int) -> np.ndarray:
    return np.full((height, width), GREY, np.uint8)


@pytest.mark.parametrize("place", [(24, 24), (20, 40), (48, 24), (0, 0), (92, 146)])
def test_a_defect_on_a_border_or_corner_of_tiles_is_found_once(inspector: Inspector, place: tuple[int, int]) -> None:
    """The model scores each pixel by itself, so box, area and peak are known exactly."""
    drawn = part(104, 160)  # tiles begin at multiples of 24
    y, x = place
    drawn[y : y + 12, x : x + 14] = 255
    verdict = inspector.inspect(drawn)
    (region,) = verdict.regions
    assert region.box_px == (x, y, x + 14, y + 12)
    assert region.area_px == 12 * 14
    assert region.peak == pytest.approx(0.5, abs=1e-5)
    assert (verdict.verdict, verdict.score) == ("reject", pytest.approx(0.5, abs=1e-5))


def test_a_minimum_area_and_a_scale_work_with_tiles(tmp_path: Path) -> None:
    zones = Zones(mm_per_px=0.5, min_area_px=30)
    path = tiny_model.write(tmp_path / "model", size=TILE, tiling=TILING, colour="grey", zones=zones)
    drawn = part(104, 160)
    drawn[22:26, 22:28] = 255  # 24 px on a corner of tiles: too small to reject
    inspector = Inspector.load(path, threads=1)
    verdict = inspector.inspect(drawn)
    assert (verdict.verdict, verdict.regions) == ("pass", ())
    drawn[60:70, 60:70] = 255
    (region,) = inspector.inspect(drawn).regions
    assert (region.area_px, region.area_mm2) == (100, 25.0)


def test_the_map_is_that_of_every_pixel(inspector: Inspector) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (101, 67), dtype=np.uint8)
    np.testing.assert_allclose(inspector.inspect(drawn).anomaly_map, np.abs(drawn / 255 - 0.5), atol=1e-5)


class Vignette:
    """A network that sees the border of its input badly: there it says 15 % less, as the default one may."""

    def __init__(self) -> None:
        distance = np.minimum(np.arange(TILE), np.arange(TILE)[::-1])
        ramp = 1 - 0.15 * np.exp(-distance / (TILE / 16))
        self._gain = (ramp[:, None] * ramp).astype(np.float32)

    def run(self, images: np.ndarray) -> Scores:
        plain = tiny_model.expected(images)
        return Scores(plain.image, plain.anomaly_map * self._gain)


def test_no_seams_show(inspector: Inspector) -> None:
    """The map of an even part is even where tiles meet, and that of the part moved by half a tile is the same."""
    vignette = Inspector(inspector.folder, Vignette())
    drawn = np.zeros((128, 152), np.uint8)

    def steps(anomaly_map: np.ndarray) -> float:
        inner = anomaly_map[TILE // 2 : -TILE // 2, TILE // 2 : -TILE // 2]
        return max(np.abs(np.diff(inner, axis=axis)).max() for axis in (0, 1))

    whole = vignette.inspect(drawn).anomaly_map
    edge_to_edge = np.concatenate(
        [
            band.copy()
            for band in Scan(
                DecodedRows(drawn), Tiling(TILE, 0), inspector.manifest.preprocessing, Vignette().run, name="part"
            ).bands()
        ]
    )
    assert steps(whole) < 0.25 * steps(edge_to_edge)
    moved = vignette.inspect(drawn[TILE // 2 :, TILE // 2 :]).anomaly_map
    inner = np.s_[TILE:-TILE, TILE:-TILE]
    gap = np.abs(whole[TILE // 2 :, TILE // 2 :][inner] - moved[inner])
    assert gap.max() < 0.06 * whole.mean()


def test_pictures_of_a_camera_are_judged_as_files_are(inspector: Inspector) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (101, 67), dtype=np.uint8)
    wanted = inspector.inspect(drawn)
    for verdict in inspector.judge([inspector.prepare(drawn), inspector.prepare(drawn[..., None])]):
        assert (verdict.score, verdict.regions) == (wanted.score, wanted.regions)
    in_rgb = np.dstack([drawn] * 3)
    assert inspector.inspect(in_rgb).score == wanted.score
    with pytest.raises(ImageError, match="this model was fitted on 8-bit images"):
        inspector.prepare(drawn.astype(np.uint16))


def test_a_colour_where_there_was_none_is_found_in_tiles_too(inspector: Inspector) -> None:
    """The same grey, in a pure colour: 255 of red alone stands out from mid grey, 128 of all channels does not."""
    image = np.full((80, 80, 3), GREY, np.uint8)
    before = inspector.inspect(image).score
    image[40:52, 40:52] = (255, 128, 128)
    assert inspector.inspect(image).score > before + 0.1


def test_a_number_that_is_not_finite_never_passes(inspector: Inspector) -> None:
    class Broken:
        def run(self, images: np.ndarray) -> Scores:
            return Scores(np.zeros(len(images), np.float32), np.full((len(images), 1, TILE, TILE), np.nan, np.float32))

    with pytest.raises(ModelFolderError, match="not finite"):
        Inspector(inspector.folder, Broken()).inspect(part(64, 64))


@pytest.mark.parametrize("shape", [(7, 11), (32, 32), (20, 300), (300, 20)])
def test_an_image_narrower_than_a_tile_still_has_a_map_of_its_size(inspector: Inspector, shape) -> None:
    verdict = inspector.inspect(np.full(shape, 255, np.uint8))
    assert verdict.anomaly_map.shape == shape
    assert [region.box_px for region in verdict.regions] == [(0, 0, shape[1], shape[0])]


def test_files_of_every_layout_give_the_verdict_of_their_pixels(inspector: Inspector, tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (101, 67), dtype=np.uint8)
    wanted = inspector.inspect(drawn)
    layouts = [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}, {"compression": "zlib", "tile": (32, 16)}]
    paths = [tmp_path / f"{number}.tif" for number in range(len(layouts))]
    for path, layout in zip(paths, layouts, strict=True):
        tifffile.imwrite(path, drawn, photometric="minisblack", **layout)
    found = list(inspector.inspect_all([*paths, tmp_path / "absent.tif"]))
    assert [path for path, _ in found] == [*paths, tmp_path / "absent.tif"]
    for _, verdict in found[:-1]:
        assert isinstance(verdict, Verdict)
        assert (verdict.score, verdict.regions) == (wanted.score, wanted.regions)
    assert isinstance(found[-1][1], ImageError)
    for wrong in (np.zeros((3, 5, 7, 3), np.uint8), np.zeros(5, np.uint8), np.zeros((5, 7), np.int32)):
        with pytest.raises(ImageError):
            inspector.inspect(wrong)


@pytest.fixture
def in_file(monkeypatch) -> None:
    """Maps of more than 2,000 pixels go to a file."""
    monkeypatch.setattr(map_store, "MEMORY_LIMIT_PX", 2000)


@pytest.mark.usefixtures("in_file")
def test_a_map_in_a_file_reads_as_any_other(inspector: Inspector) -> None:
    drawn = np.random.default_rng(1).integers(0, 256, (101, 67), dtype=np.uint8)
    anomaly_map = inspector.inspect(drawn).anomaly_map
    assert map_store.is_in_file(anomaly_map)
    assert not anomaly_map.flags.writeable
    np.testing.assert_allclose(anomaly_map, np.abs(drawn / 255 - 0.5), atol=1e-5)
    np.testing.assert_array_equal(np.concatenate(list(map_store.bands(anomaly_map, 13))), anomaly_map)
    padded = np.full((105, 70), -np.inf, np.float32)
    padded[:101, :67] = anomaly_map
    np.testing.assert_array_equal(reduce_peaks(anomaly_map, 5), padded.reshape(21, 5, 14, 5).max(axis=(1, 3)))


@pytest.mark.usefixtures("in_file")
def test_the_mask_of_a_large_image_is_written_in_bands_at_its_own_size(inspector: Inspector, tmp_path: Path) -> None:
    drawn = part(301, 95)
    drawn[250:260, 20:40] = 255
    verdict = inspector.inspect(drawn)
    paths = overlay.write(tmp_path, "part", drawn, verdict, 0.3)
    assert [path.name for path in paths] == ["part_overlay.png", "part_mask.tif"]
    np.testing.assert_array_equal(read(paths[1]), np.where(drawn == 255, 255, 0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said_in_one_line(monkeypatch) -> None:
    monkeypatch.setattr(map_store, "MEMORY_LIMIT_PX", 0)
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(map_store.tempfile, "TemporaryFile", lambda: full)
        with pytest.raises(MakelError, match=r"cannot take a map of 0 MiB .*make room, or let TMPDIR name"):
            MapStore(4, 4).add(np.zeros((4, 4), np.float32))


BOUNDED = (
    PEAK_MIB
    + """
import json, sys
import makel
from makel.model import map_store
map_store.MEMORY_LIMIT_PX = 1 << 20
inspector = makel.Inspector.load(sys.argv[1], threads=1)
peaks = []
for path in sys.argv[2:]:
    verdict = inspector.inspect(path)
    peaks.append(peak_mib())
print(json.dumps({"peaks": peaks, "shape": verdict.anomaly_map.shape, "boxes": [r.box_px for r in verdict.regions]}))
"""
)


@pytest.mark.parametrize("layout", [{}, {"compression": "zlib", "rowsperstrip": 64}])
def test_memory_does_not_grow_with_the_length_of_a_strip(tmp_path: Path, layout: dict[str, object]) -> None:
    """Four times the length would be 25 MiB of map and 6 of image more."""
    model = tiny_model.write(tmp_path / "model", size=64, tiling=Tiling(256, 64), colour="grey")
    paths = []
    for height in (4096, 16384):
        strip = part(height, 512)
        strip[height - 300 : height - 280, 100:120] = 255
        paths.append(tmp_path / f"{height}.tif")
        tifffile.imwrite(paths[-1], strip, photometric="minisblack", **layout)
    script = [sys.executable, "-c", BOUNDED, str(model), *map(str, paths)]
    found = json.loads(subprocess.run(script, check=True, capture_output=True, text=True).stdout)
    assert found["shape"] == [16384, 512]
    assert len(found["boxes"]) == 1
    short, long = found["peaks"]
    assert long - short < 8


def test_an_image_of_268_megapixels_is_not_refused_where_it_is_read_by_rows(tmp_path: Path) -> None:
    path = tmp_path / "frame.tif"
    with tifffile.TiffWriter(path) as writer:  # a file with holes: no byte of it is on the disk
        writer.write(None, shape=(16384, 16384), dtype=np.uint8, photometric="minisblack")
    with pytest.raises(ImageError, match="at most 200000000 are read"):
        read(path)
    with open_rows(path) as rows:
        assert rows.shape == (16384, 16384)
        assert not rows.read(16380, 16384).any()
    assert read_reduced(path, 256).shape == (256, 256)


def test_a_bomb_in_one_compressed_strip_is_refused_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(
        path, np.zeros((6000, 6000), np.uint8), photometric="minisblack", compression="zlib", rowsperstrip=6000
    )
    with pytest.raises(ImageError, match="at most 1000000 are read"), open_rows(path, max_pixels=1_000_000):
        pass


def test_damage_in_later_rows_names_the_file(tmp_path: Path, inspector: Inspector) -> None:
    path = tmp_path / "damaged.tif"
    drawn = np.random.default_rng(0).integers(0, 256, (200, 64), dtype=np.uint8)
    tifffile.imwrite(path, drawn, photometric="minisblack", compression="zlib", rowsperstrip=20)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[0].dataoffsets[7], file.pages[0].databytecounts[7]
    data[start : start + length] = bytes(length)
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"damaged\.tif is damaged in its rows .*copy it again"):
        inspector.inspect(path)


def texture(seed: int, height: int = 224, width: int = 288) -> np.ndarray:
    """Grey threads with noise; every image its own piece of them."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 20)
    threads = 120 + 50 * np.sin((np.arange(width) + phase) / 3) + rng.normal(0, 8, (height, width))
    return np.clip(threads, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def line(tmp_path_factory) -> Path:
    """Eight good textures, and two with a blot where four tiles meet."""
    root = tmp_path_factory.mktemp("textures")

    def write(path: Path, pixels: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), pixels)

    for seed in range(8):
        write(root / "train" / "good" / f"{seed}.png", texture(seed))
    for seed in (20, 21):
        write(root / "test" / "good" / f"{seed}.png", texture(seed))
        drawn, mask = texture(seed + 10), np.zeros((224, 288), np.uint8)
        cv2.circle(mask, (104, 112), 14, 255, -1)
        drawn[mask > 0] = 5
        write(root / "test" / "blot" / f"{seed}.png", drawn)
        write(root / "ground_truth" / "blot" / f"{seed}_mask.png", mask)
    return root


@pytest.fixture(scope="module")
def fitted(line, tmp_path_factory):
    from makel.training.fit import fit

    return fit(line, tmp_path_factory.mktemp("tiled") / "model", tile=128, size=64, epochs=6)


def test_a_fit_on_tiles_says_what_it_did(fitted, line: Path) -> None:
    manifest = fitted.manifest
    assert manifest.tiling == Tiling(128, 32)
    assert (manifest.provenance.n_fit, manifest.provenance.n_calibrate, manifest.provenance.n_tiles) == (6, 2, 6 * 6)
    assert manifest.method.config["reading"] == "nearest"
    assert "tiles      128 px, 32 px shared; all fitted on" in fitted.lines()
    assert fitted.to_json()["tiling"] == {"tile_px": 128, "overlap_px": 32}


def test_thresholds_are_those_of_whole_images(fitted, line: Path) -> None:
    """Hold-out is by image: the calibration holds what the inspector says of the held-out files."""
    inspector = Inspector.load(fitted.path, threads=1)
    verdicts = [inspector.inspect(line / name) for name in fitted.manifest.provenance.holdout]
    calibration = inspector.calibration
    np.testing.assert_allclose(sorted(verdict.score for verdict in verdicts), calibration.image_scores, rtol=1e-5)
    np.testing.assert_allclose(
        sorted(float(verdict.anomaly_map.max()) for verdict in verdicts), calibration.pixel_peaks, rtol=1e-5
    )


def test_a_blot_where_four_tiles_meet_is_one_region(fitted, line: Path) -> None:
    inspector = Inspector.load(fitted.path, threads=1)
    verdict = inspector.inspect(line / "test" / "blot" / "20.png")
    x0, y0, x1, y1 = verdict.regions[0].box_px
    assert (verdict.verdict, x0 < 104 < x1, y0 < 112 < y1) == ("reject", True, True)
    inside = [region for region in verdict.regions if region.peak > 0.5 * verdict.regions[0].peak]
    assert len(inside) == 1
    y, x = np.unravel_index(verdict.anomaly_map.argmax(), verdict.anomaly_map.shape)
    assert np.hypot(y - 112, x - 104) < 18


def test_the_map_of_an_image_moved_by_half_a_tile_is_the_same(fitted) -> None:
    """What two tiles say of the same pixels differs with what else they show; most of all here, in 8 x 8 positions."""
    inspector = Inspector.load(fitted.path, threads=1)
    drawn = texture(40, 640, 768)
    whole = inspector.inspect(drawn).anomaly_map[64:, 64:]
    moved = inspector.inspect(drawn[64:, 64:]).anomaly_map
    gap = np.abs(whole - moved)[128:-128, 128:-128]
    assert gap.mean() < 0.2 * whole.mean()
    assert gap.max() < 0.5 * inspector.calibration.pixel_threshold


def test_verify_and_evaluate_work_on_tiles(fitted, line: Path, makel_says, tmp_path: Path) -> None:
    assert makel_says("verify", fitted.path)[0] == 0
    code, said, _ = makel_says("evaluate", fitted.path, line, "--json")
    found = json.loads(said)
    assert (code, found["failures"], found["n_defect"], found["n_good"]) == (0, [], 2, 2)
    assert found["image_auroc"] == 1
    assert found["pixel_auroc"] > 0.95
    assert found["latency_ms"]["p50"] > 0
    assert "tiles of 128 px sharing 32" in makel_says("info", fitted.path)[1]
    code, _, _ = makel_says("inspect", fitted.path, line / "test" / "blot" / "20.png", "--out", tmp_path / "out")
    assert code == 0
    assert read(tmp_path / "out" / "20_mask.png").shape == (224, 288)


def test_cross_calibration_scores_whole_images_by_models_that_saw_no_tile_of_them(line: Path, tmp_path: Path) -> None:
    from makel.datasets import load
    from makel.methods.pca import PCA, Config
    from makel.training import fit

    samples = load(line).good[:4]
    paths = [sample.image_path for sample in samples]
    tiling = Tiling(128, 32)
    plan = TilePlan.of(paths, tiling, seed=0)
    preparation = Preparation.of(plan.pixels(), shape=(64, 64))
    config, layout = Config(size=64), place_on_input(Zones(), (64, 64))
    detector = fit.build_detector(PCA, config, 0)
    extraction = extract(
        detector,
        paths,
        preparation,
        device=detector.fitted.device,
        folder=tmp_path,
        progress=lambda *_: None,
        tiles=plan,
    )
    seen = []

    def train(detector, cache, **settings):
        seen.append({extraction.paths[row] for row in cache.rows})
        return loop.train(detector, cache, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "train", train)
        scores, peaks = fit.cross_scores(
            PCA, config, extraction, samples, 0, lambda *_: None, layout, preparation=preparation, tiling=tiling
        )
    left_out = [set(paths) - each for each in seen]
    assert sorted(path for each in left_out for path in each) == sorted(paths)  # each image once, whole
    assert np.isfinite(scores).all()
    assert peaks.shape == (4, 1)
    assert (peaks > 0).all()


def test_the_number_of_tiles_fitted_on_is_bounded_and_chosen_by_the_seed(line: Path) -> None:
    paths = sorted((line / "train" / "good").iterdir())
    plans = [TilePlan.of(paths, Tiling(128, 32), seed=seed, limit=18) for seed in (0, 0, 1)]
    assert [plan.count for plan in plans] == [16, 16, 16]
    assert plans[0].n_available == 48
    assert plans[0].chosen == plans[1].chosen != plans[2].chosen


def test_tiles_that_cut_nothing_and_options_that_need_them_are_refused(line: Path, tmp_path: Path) -> None:
    from makel.training.fit import fit

    with pytest.raises(DatasetError, match="none of 6 good images is larger than a tile of 512 px"):
        fit(line, tmp_path / "model", tile=512)
    with pytest.raises(UsageError, match="give the tile's side too"):
        fit(line, tmp_path / "model", overlap=16)
    with pytest.raises(UsageError, match="latency budget is for images taken whole"):
        fit(line, tmp_path / "model", tile=128, latency_budget=20)
    corner = Zone(name="corner", kind="ignore", polygon=((0, 0), (9, 0), (0, 9)))
    with pytest.raises(UsageError, match="zone 'corner' is a part of an image taken whole"):
        fit(line, tmp_path / "model", tile=128, zones=Zones(image_size_px=(288, 224), zones=(corner,)))
    assert not (tmp_path / "model").exists()
