"""Golden images: replayed exactly, and refused when the model computes something else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

import tiny_model
from makel.errors import ModelFolderError
from makel.model import golden
from makel.model.folder import open_folder, staging
from makel.model.folder import write as write_folder
from makel.model.session import open_session
from makel.types import Scores


def replay(path: Path) -> tuple[golden.Difference, ...]:
    opened = open_folder(path)
    return golden.replay(opened, open_session(opened, threads=1))


def test_replay_finds_no_difference(tmp_path: Path) -> None:
    found = replay(tiny_model.write(tmp_path / "model"))
    assert [item.name for item in found] == ["golden/000.npz", "golden/001.npz"]
    assert max(item.score for item in found) < 1e-6
    assert max(item.anomaly_map for item in found) < 1e-6


def test_a_drifted_model_is_refused_with_both_scores(tmp_path: Path) -> None:
    drifted = tiny_model.write(tmp_path / "model", model=tiny_model.onnx_bytes(gain=1.001))
    with pytest.raises(ModelFolderError, match=r"000\.npz scores 0\.\d+ here and scored 0\.\d+ when fitted"):
        replay(drifted)


def test_a_difference_within_the_tolerance_is_reported(tmp_path: Path) -> None:
    wide = tiny_model.draft().parity.model_copy(update={"score_tolerance": 0.01, "map_tolerance": 0.02})
    drifted = tiny_model.write(tmp_path / "model", model=tiny_model.onnx_bytes(gain=1.001), parity=wide)
    images = golden.restore(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8))
    expected = 0.001 * tiny_model.expected(images).image
    for found, difference in zip(replay(drifted), expected, strict=True):
        assert found.score == pytest.approx(difference, rel=0.01)
        assert found.anomaly_map == pytest.approx(difference, rel=0.01)


def test_a_map_alone_that_drifts_is_refused(tmp_path: Path) -> None:
    wide = tiny_model.draft().parity.model_copy(update={"score_tolerance": 0.01})
    drifted = tiny_model.write(tmp_path / "model", model=tiny_model.onnx_bytes(gain=1.001), parity=wide)
    with pytest.raises(ModelFolderError, match="its map differs by"):
        replay(drifted)


def test_nan_is_a_difference(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="scores nan here"):
        replay(tiny_model.write(tmp_path / "model", model=tiny_model.onnx_bytes(gain=math.nan)))


def test_a_folder_without_golden_images_proves_nothing(tmp_path: Path) -> None:
    with staging(tmp_path / "model") as stage:
        (stage / "model.onnx").write_bytes(tiny_model.onnx_bytes())
        write_folder(tmp_path / "model", stage, tiny_model.draft())
    with pytest.raises(ModelFolderError, match="holds no golden images"):
        replay(tmp_path / "model")


@pytest.mark.parametrize("content", ["pickled", "no arrays", "not a zip"])
def test_what_is_no_golden_image_is_refused(tmp_path: Path, content: str) -> None:
    with staging(tmp_path / "model") as stage:
        tiny_model.fill(stage)
        path = stage / "golden" / "000.npz"
        if content == "pickled":
            np.savez(path, image=np.array([{}], dtype=object), score=0, anomaly_map=0)
        elif content == "no arrays":
            np.savez(path, other=0)
        else:
            path.write_bytes(b"not a zip")
        write_folder(tmp_path / "model", stage, tiny_model.draft())
    with pytest.raises(ModelFolderError, match=r"000\.npz is not a golden image"):
        replay(tmp_path / "model")


def test_quantise_and_restore_are_inverse_on_what_is_stored() -> None:
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(golden.quantise(golden.restore(every)), every)
    assert golden.restore(every).dtype == np.float32
    assert golden.restore(every).max() == 1


def test_as_many_scores_as_images(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 16, 16), np.uint8)
    with pytest.raises(ValueError, match="zip"):
        golden.write(tmp_path, images, Scores(np.zeros(1, np.float32), np.zeros((1, 1, 16, 16), np.float32)))
