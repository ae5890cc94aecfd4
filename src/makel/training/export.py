"""From a fitted detector to one ONNX file."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from makel.training.detector import Detector
from makel.types import Scores, Shape

BATCH = 8
"""Images that are scored at once."""

_EXPECTED: tuple[tuple[str, type[Warning]], ...] = (
    # beginning of the message, category
    ("You are using the legacy TorchScript-based ONNX export", DeprecationWarning),
    ("The feature will be removed. Please remove usage of this function", DeprecationWarning),  # of its own functions
    # Of skip_ganomaly and ganomaly with `train_mode_norm`, which mean it.
    ("ONNX export mode is set to TrainingMode.EVAL, but operator 'instance_norm' is set to train=True", UserWarning),
    ("Constant folding - Only steps=1 can be constant folded", UserWarning),  # of pads by reflection
    # What Python reads of a tensor becomes a constant. Sizes are constant here, all but N, and the gate runs two of it.
    ("", TracerWarning),
)
"""What torch says of every export and is no news: nothing else is kept from the user."""

_SMALL = 1024
"""Values below which a tensor is not worth a cast."""


class _Outputs(nn.Module):
    """The detector with its scores as a plain tuple, which is what an ONNX graph can return."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.detector(image)
        return scores.image, scores.anomaly_map


def export_onnx(detector: Detector, path: Path) -> None:
    """Write a fitted detector as one ONNX file: image (N, 3, H, W) → score (N,), anomaly_map (N, 1, H, W).

    Args:
        detector: Fitted, in eval mode. It is moved to the CPU and stays there.
        path: The file to write. Weights are inside; N is dynamic, H and W are those of `config.size`.

    Raises:
        TrainingError: The detector is not fitted.
    """
    detector.require_fitted()
    detector.cpu().eval()
    trace(_Outputs(detector).eval(), path, detector.config.size, ("score", "anomaly_map"))
    _halve(path)


def trace(network: nn.Module, path: Path, size: Shape, outputs: Sequence[str]) -> None:
    """Write a network as an ONNX file that takes "image", (N, 3, H, W) float32, any N.

    Args:
        network: In eval mode, on the CPU.
        path: The file to write.
        size: Height and width of its images, in pixels.
        outputs: Names of what it gives, a tensor each whose first dimension is N.
    """
    with warnings.catch_warnings(), torch.no_grad():
        for message, category in _EXPECTED:
            warnings.filterwarnings("ignore", message, category)
        # Not the exporter behind `dynamo=True`: with torch 2.13 it takes twenty times as long for a graph that is up to
        # a quarter slower, and whose banks are no longer packed.
        torch.onnx.export(
            network,
            # Two images, since a one would be taken for a constant.
            (torch.rand(2, 3, *size),),
            str(path),
            dynamo=False,
            opset_version=18,
            # Folding would store what is packed in half precision as whole float32 matrices.
            do_constant_folding=False,
            input_names=["image"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "n"} for name in ("image", *outputs)},
        )


def _halve(path: Path) -> None:
    """Store every large float32 tensor that half precision holds exactly in half precision, with a cast behind it.

    ONNX Runtime computes the cast once, when it loads the model. The frozen backbone's weights are such tensors.
    """
    model = onnx.load(path)
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < _SMALL or not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def torch_scores(detector: Detector, images: NDArray[np.float32], batch: int = BATCH) -> Scores[NDArray[np.float32]]:
    """Scores of (N, 3, H, W) float32 prepared images in torch, on the device the detector is on."""
    device = next(detector.parameters()).device
    maps, scores = [], []
    with torch.no_grad():
        for start in range(0, len(images), batch):
            out = detector(torch.from_numpy(images[start : start + batch]).to(device))
            scores.append(out.image.float().cpu().numpy())
            maps.append(out.anomaly_map.float().cpu().numpy())
    return Scores(image=np.concatenate(scores), anomaly_map=np.concatenate(maps))
