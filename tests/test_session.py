"""Sessions: exact scores, honest refusals."""

from __future__ import annotations

import os
from pathlib import Path
from time import process_time, sleep

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import tiny_model
from makel.errors import ModelFolderError, UsageError
from makel.images import Preparation
from makel.model.folder import open_folder
from makel.model.session import PROVIDERS, Session, _waiting, open_session
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


@pytest.mark.parametrize(
    ("version", "entry"),
    [
        ("1.25.9", {"session.intra_op.allow_spinning": "0"}),
        ("1.26.0", {"session.intra_op.spin_duration_us": "100"}),
        ("2.0.0", {"session.intra_op.spin_duration_us": "100"}),
    ],
)
def test_threads_wait_as_the_installed_version_knows_to(monkeypatch, version: str, entry: dict) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert _waiting() == entry


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


def renamed(change) -> bytes:
    model = onnx.load_from_string(onnx_bytes())
    change(model)
    return model.SerializeToString()


def retyped(model: onnx.ModelProto, output: str, kind: int) -> None:
    """Let an output have another type, cast to it at the end."""
    value = next(item for item in model.graph.output if item.name == output)
    producer = next(node for node in model.graph.node if output in node.output)
    for node in model.graph.node:
        node.input[:] = ["own" if name == output else name for name in node.input]
    producer.output[:] = ["own"]
    model.graph.node.append(helper.make_node("Cast", ["own"], [output], to=kind))
    value.type.tensor_type.elem_type = kind


@pytest.mark.parametrize("output", ["score", "anomaly_map"])
@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64])
def test_scores_of_another_type_are_refused(output: str, kind: int) -> None:
    with pytest.raises(ModelFolderError, match=rf"gives .*'{output}': \('tensor\(\w+\)', \d\).* no makel model"):
        Session(renamed(lambda model: retyped(model, output, kind)))


def test_inputs_and_outputs_beyond_its_own_are_refused() -> None:
    def more(model: onnx.ModelProto) -> None:
        model.graph.output.append(helper.make_tensor_value_info("gained", TensorProto.FLOAT, None))

    with pytest.raises(ModelFolderError, match="gained"):
        Session(renamed(more))


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_channels_and_sides_that_only_a_run_can_tell_are_refused(dimension: int) -> None:
    def unknown(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[dimension].dim_param = "any"

    with pytest.raises(ModelFolderError, match=r"images of .*any.*expected 3 channels, and rows and columns"):
        Session(renamed(unknown))


@pytest.mark.parametrize("shape", [(SIZE, SIZE + 1), (2 * SIZE, SIZE), (SIZE // 2, SIZE // 2)])
def test_a_folder_that_says_another_size_than_its_network_takes_is_refused(tmp_path: Path, shape) -> None:
    model = tiny_model.write(tmp_path / "model", preprocessing=Preparation(*shape, colour="rgb"))
    with pytest.raises(
        ModelFolderError, match=rf"takes images of {SIZE} x {SIZE} px, and model\.json says {shape[1]} x {shape[0]} px"
    ):
        open_session(open_folder(model))


def test_a_map_of_another_size_than_the_image_is_refused_stated_or_not() -> None:
    def halved(model: onnx.ModelProto, stated: bool) -> None:
        """Every second row and column."""
        producer = next(node for node in model.graph.node if "anomaly_map" in node.output)
        for node in model.graph.node:
            node.input[:] = ["own" if name == "anomaly_map" else name for name in node.input]
        producer.output[:] = ["own"]
        steps = {"starts": [0, 0], "ends": [SIZE, SIZE], "axes": [2, 3], "steps": [2, 2]}
        for name, values in steps.items():
            model.graph.initializer.append(numpy_helper.from_array(np.int64(values), name))
        model.graph.node.append(helper.make_node("Slice", ["own", *steps], ["anomaly_map"]))
        dimensions = next(item for item in model.graph.output if item.name == "anomaly_map").type.tensor_type.shape.dim
        for each in dimensions[2:]:
            if stated:
                each.dim_value = SIZE // 2
            else:
                each.dim_param = "side"

    with pytest.raises(ModelFolderError, match=f"gives maps of {SIZE // 2} x {SIZE // 2} px"):
        Session(renamed(lambda model: halved(model, True)))
    # ONNX Runtime finds out by itself where it can; so a batch of another size than said stands for what it cannot.
    with pytest.raises(ModelFolderError, match=f"gives maps of {SIZE // 2} x {SIZE // 2} px"):
        Session(renamed(lambda model: halved(model, False)))


def test_results_of_another_shape_than_the_images_are_refused() -> None:
    def first_only(model: onnx.ModelProto) -> None:
        """The score of the first image, whatever the batch; no shape says so."""
        producer = next(node for node in model.graph.node if "score" in node.output)
        producer.output[:] = ["own"]
        steps = {"starts": [0], "ends": [1]}
        for name, values in steps.items():
            model.graph.initializer.append(numpy_helper.from_array(np.int64(values), name))
        model.graph.node.append(helper.make_node("Slice", ["own", *steps], ["score"]))
        model.graph.output[1].type.tensor_type.shape.dim[0].dim_param = "some"

    session = Session(renamed(first_only))
    assert session.run(images(1)).image.shape == (1,)
    with pytest.raises(ModelFolderError, match=r"a score of shape \(1,\) and a map of \(2, 1, 16, 16\), expected"):
        session.run(images(2))


def test_a_network_that_cannot_be_run_is_the_folders_fault_in_one_line() -> None:
    def only_two(model: onnx.ModelProto) -> None:
        """A Reshape that two images alone can go through."""
        producer = next(node for node in model.graph.node if "score" in node.output)
        producer.output[:] = ["own"]
        model.graph.initializer.append(numpy_helper.from_array(np.int64([2]), "two"))
        model.graph.node.append(helper.make_node("Reshape", ["own", "two"], ["score"]))

    session = Session(renamed(only_two), name="part/model.onnx")
    assert session.run(images(2)).image.shape == (2,)
    with pytest.raises(ModelFolderError, match=r"^part/model\.onnx cannot be run: .*Reshape.*Fit again$") as caught:
        session.run(images(3))
    assert "\n" not in str(caught.value)


def test_onnx_runtimes_own_format_is_refused_also_where_it_hides_in_an_onnx_file(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(onnx_bytes(), options, providers=["CPUExecutionProvider"])
    data = (tmp_path / "model.ort").read_bytes()
    assert data[4:8] == b"ORTM"
    with pytest.raises(ModelFolderError, match=r"no ONNX file|cannot be loaded"):
        Session(data)
    named = b"\x12\x08ppORTMpp" + onnx_bytes()  # "ORTM" is part of the producer's name
    assert named[4:8] == b"ORTM"
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail):
        onnxruntime.InferenceSession(named, providers=["CPUExecutionProvider"])  # takes it for its own
    assert Session(named).run(np.zeros((1, 3, SIZE, SIZE), np.float32)).image == 0.5
