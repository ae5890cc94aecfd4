"""Sessions: exact scores, honest refusals."""

from __future__ import annotations

import os
from pathlib import Path
from time import process_time, sleep

import numpy as np
import onnxruntime
import pytest

import tiny_model
from makel.errors import ModelFolderError, UsageError
from makel.model.folder import open_folder
from makel.model.session import PROVIDERS, Session, open_session
from tiny_model import SIZE, expected, onnx_bytes


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(onnx_bytes(), threads=1)


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).random((n, 3, SIZE, SIZE), dtype=np.float32)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_scores_are_what_the_graph_says(session: Session, n: int) -> None:
    got, wanted = session.run(images(n)), expected(images(n))
    np.testing.assert_allclose(got.image, wanted.image, atol=1e-6)
    np.testing.assert_allclose(got.anomaly_map, wanted.anomaly_map, atol=1e-6)
    assert got.image.shape == (n,)
    assert got.anomaly_map.shape == (n, 1, SIZE, SIZE)
    assert got.image.dtype == got.anomaly_map.dtype == np.float32


def test_images_are_not_changed(session: Session) -> None:
    given = images(2)
    session.run(given)
    np.testing.assert_array_equal(given, images(2))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, SIZE, SIZE), np.float64),
        np.zeros((1, 3, SIZE, SIZE), np.uint8),
        np.zeros((3, SIZE, SIZE), np.float32),
        np.zeros((1, 1, SIZE, SIZE), np.float32),
        np.zeros((1, 3, SIZE, SIZE + 1), np.float32),
    ],
)
def test_another_array_is_refused_with_its_shape(session: Session, wrong: np.ndarray) -> None:
    with pytest.raises(UsageError, match=rf"\(N, 3, {SIZE}, {SIZE}\), but got {wrong.dtype} of shape"):
        session.run(wrong)


def test_threads_that_wait_leave_their_core_to_others(session: Session) -> None:
    # Large enough that ONNX Runtime wakes its second thread, which is what may go on spinning.
    pair = Session(onnx_bytes(size=128), threads=2)
    images = np.zeros((4, 3, 128, 128), np.float32)
    pair.run(images)
    began = process_time()
    for _ in range(5):
        sleep(0.04)
        pair.run(images)
    # ONNX Runtime's own default keeps a core busy all through the 200 ms between.
    assert process_time() - began < 0.1
    options = session._session.get_session_options()
    assert options.intra_op_num_threads == 1
    assert options.inter_op_num_threads == 1
    assert 1 <= Session(onnx_bytes()).threads <= 4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_default_threads_are_the_cores_this_process_may_use() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert Session(onnx_bytes()).threads == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_no_threads_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Session(onnx_bytes(), threads=0)


def test_an_unknown_provider_names_the_known() -> None:
    with pytest.raises(UsageError, match="'gpu' is not known: choose one of cpu, cuda, tensorrt, openvino"):
        Session(onnx_bytes(), provider="gpu")


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "cpu"])
def test_a_provider_that_is_not_installed_says_how_to_get_it(monkeypatch, provider: str) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match=f"pip install {PROVIDERS[provider][1]}"):
        Session(onnx_bytes(), provider=provider)


def test_a_provider_that_does_not_start_never_becomes_the_cpu(monkeypatch) -> None:
    """Without its libraries ONNX Runtime runs a CUDA session on the CPU, with a warning at most."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [name for name, _ in PROVIDERS.values()])
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda model, options, **_: real(model, options, ["CPUExecutionProvider"])
    )
    with pytest.raises(UsageError, match="'cuda' is installed but does not start"):
        Session(onnx_bytes(), provider="cuda")


@pytest.mark.parametrize("model", [b"", b"not a model", onnx_bytes()[:200]])
def test_bytes_that_are_no_model_are_refused_in_one_line(model: bytes) -> None:
    with pytest.raises(ModelFolderError, match=r"part/model\.onnx") as caught:
        Session(model, name="part/model.onnx")
    assert "\n" not in str(caught.value)


def test_a_model_with_other_outputs_is_refused() -> None:
    with pytest.raises(ModelFolderError, match="no makel model"):
        Session(onnx_bytes(score_name="logit"))


def test_a_fixed_batch_size_is_refused() -> None:
    with pytest.raises(ModelFolderError, match="batches of 2 only"):
        Session(onnx_bytes(batch=2))


def test_open_session_runs_the_folders_model(tmp_path: Path) -> None:
    runner = open_session(open_folder(tiny_model.write(tmp_path / "model")), threads=1)
    np.testing.assert_allclose(runner.run(images(3)).image, expected(images(3)).image, atol=1e-6)
