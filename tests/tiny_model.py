"""A real but tiny model folder: a pixel scores its distance from mid grey, an image the highest of its pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from makel.calibration import calibrate
from makel.images import Preparation
from makel.model import folder, golden, manifest
from makel.types import Scores

SIZE = 16


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width, of which one number stands for both."""
    return (size, size) if isinstance(size, int) else size


def onnx_bytes(
    *,
    batch: int | str = "N",
    gain: float = 1.0,
    score_name: str = "score",
    ballast: int = 0,
    size: int | tuple[int, int] = SIZE,
) -> bytes:
    """gain * |mean over channels - 0.5| as map, its maximum as score.

    Args:
        batch: A number makes a graph of that batch size only.
        gain: Factor on the map.
        score_name: Name of the second output.
        ballast: Bytes of weights that are added and change nothing.
        size: Height and width of the input, or the side of a square.
    """
    half = numpy_helper.from_array(np.float32([0.5]), "half")
    factor = numpy_helper.from_array(np.float32([gain]), "gain")
    # A real sum over real numbers, or the optimiser would fold the ballast away.
    weights = numpy_helper.from_array(np.zeros((ballast // 4 // 64 + 1, 64), np.float32), "ballast")
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["grey", "half"], ["signed"]),
        helper.make_node("Abs", ["signed"], ["distance"]),
        helper.make_node("Mul", ["distance", "gain"], ["gained"]),
        helper.make_node("ReduceMean", ["image"], ["one_number"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["ballast", "one_number"], ["weighed"]),
        helper.make_node("ReduceMax", ["weighed"], ["nothing"], keepdims=0),
        helper.make_node("Add", ["gained", "nothing"], ["anomaly_map"]),
        helper.make_node("ReduceMax", ["anomaly_map"], [score_name], axes=[1, 2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, *sides(size)])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, [batch, 1, *sides(size)]),
            helper.make_tensor_value_info(score_name, TensorProto.FLOAT, [batch]),
        ],
        [half, factor, weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def expected(images: np.ndarray) -> Scores:
    """What the graph computes, in NumPy."""
    anomaly_map = np.abs(images.mean(axis=1, keepdims=True) - np.float32(0.5))
    return Scores(image=anomaly_map.max(axis=(1, 2, 3)), anomaly_map=anomaly_map)


def draft(
    *,
    colour: str = "rgb",
    image_scores=(0.1, 0.2, 0.3),
    false_reject: float = 0.25,
    size: int | tuple[int, int] = SIZE,
    **changes,
):
    """The manifest's draft: an image is rejected above the highest of `image_scores`."""
    sections = {
        "method": manifest.Method(name="skip_ae", preset="fast", config={"size": size, "blocks": (1, 2)}),
        "preprocessing": Preparation(*sides(size), colour=colour, white_level=None),
        "backbone": manifest.Backbone(
            name="tf_efficientnet_lite0", licence="Apache-2.0", weights_sha256="0" * 64, source="package", blocks=(1, 2)
        ),
        "calibration": calibrate(image_scores, image_scores, false_reject=false_reject),
        "provenance": manifest.Provenance(
            data_name="tiny",
            data_digest="1" * 64,
            n_fit=12,
            n_calibrate=3,
            seed=0,
            created="2025-01-01T00:00:00+00:00",
            machine="test",
            versions={"numpy": np.__version__},
            holdout=("good/000.png",),
        ),
        "fit": manifest.Fit(seconds={"train": 1.5, "export": 0.25, "total": 1.75}, epochs=3, final_loss=0.125),
        "parity": manifest.Parity(
            score_tolerance=1e-5, map_tolerance=1e-5, worst_score_difference=0.0, worst_map_difference=0.0, n_images=2
        ),
    }
    return manifest.Draft(**{**sections, **changes})


def fill(stage: Path, *, model: bytes | None = None, size: int | tuple[int, int] = SIZE) -> None:
    """Every file a fit leaves in a staging folder."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *sides(size)), dtype=np.uint8)
    (stage / manifest.ONNX_NAME).write_bytes(onnx_bytes(size=size) if model is None else model)
    (stage / "report.html").write_text("<p>report</p>", encoding="utf-8")
    (stage / "log.jsonl").write_text('{"loss": 1}\n', encoding="utf-8")
    (stage / "weights.safetensors").write_bytes(bytes(range(64)))
    golden.write(stage, images, expected(golden.restore(images)))


def write(
    target: Path,
    *,
    model: bytes | None = None,
    size: int | tuple[int, int] = SIZE,
    files: dict[str, bytes] | None = None,
    **changes,
) -> Path:
    """A whole model folder at `target`, with `files` beside."""
    with folder.staging(target) as stage:
        fill(stage, model=model, size=size)
        for name, data in (files or {}).items():
            (stage / name).write_bytes(data)
        folder.write(target, stage, draft(size=size, **changes))
    return target
