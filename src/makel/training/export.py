"""From a fitted detector to one ONNX file, and the gate that compares the two on real images."""

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

from makel.errors import ParityError
from makel.model.manifest import Parity
from makel.model.session import Runner
from makel.training.detector import Detector
from makel.types import Scores, Shape

RELATIVE_TOLERANCE = 1e-3
"""Allowed difference of a score between torch and ONNX Runtime, as a share of the highest good score. Sums over
thousands of products in another order differ by about 1e-5; a wrong resize, pad or normalisation by far more."""

_NUDGE, _ROUNDING = 2.0**-20, 4
"""What a millionth of full scale added to pixels does to a score is rounding, and so is four times as much.

Good images that are all but equal leave scores of little else than rounding, of which a share means nothing."""

FLIP_TOLERANCE = RELATIVE_TOLERANCE / 10
"""How far from the threshold, as a share of the same, a score may lie whose verdict the export turns round. The
threshold is itself the score of a held-out image, so at that image the two disagree wherever they round differently."""

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


def nudged(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, 3, H, W) prepared images, each value a millionth of full scale up or down."""
    up = np.random.default_rng(0).random(images.shape[1:]) < 0.5
    moved = images + np.where(up, np.float32(_NUDGE), np.float32(-_NUDGE))
    return np.asarray(np.clip(moved, 0, 1), np.float32)


def check_parity(
    images: NDArray[np.float32],
    names: Sequence[str],
    trained: Scores[NDArray[np.float32]],
    exported: Runner,
    threshold: float,
    *,
    of_nudged: Scores[NDArray[np.float32]] | None = None,
) -> Parity:
    """The gate: the exported model must score held-out real images as the trained one does.

    Images go through the exported model one by one and several at once, so that a fixed batch size cannot pass. Nor may
    the verdict on any of them turn round, but where the trained score lies so close to the threshold that rounding
    alone decides: a tenth of what a score may differ by, so a flip can fail where nothing else does.

    Args:
        images: (N, 3, H, W) float32 prepared images.
        names: What to call each in a message.
        trained: What torch gives for them.
        exported: What runs the exported file.
        threshold: The calibrated image threshold.
        of_nudged: What torch gives for `nudged(images)`; None where no score is near rounding.

    Returns:
        The tolerances and the worst differences found.

    Raises:
        ParityError: A score or a map differs by more than the tolerance, or a verdict turns round.
    """
    found: list[list[tuple[np.float32, NDArray[np.float32]]]] = [[], []]
    for size, each in zip((1, BATCH), found, strict=True):
        for start in range(0, len(images), size):
            out = exported.run(images[start : start + size])
            each += zip(out.image, out.anomaly_map, strict=True)
    highest = max(float(np.abs(trained.image).max()), 1e-6)
    score_tolerance = RELATIVE_TOLERANCE * highest
    map_tolerance = 10 * RELATIVE_TOLERANCE * max(float(np.abs(trained.anomaly_map).mean()), 1e-6)
    if of_nudged is not None:
        rounding = (
            np.abs(of_nudged.image - trained.image).max(),
            np.abs(of_nudged.anomaly_map - trained.anomaly_map).max(),
        )
        score_tolerance = max(score_tolerance, _ROUNDING * float(rounding[0]))
        map_tolerance = max(map_tolerance, _ROUNDING * float(rounding[1]))
    worst_score = worst_map = 0.0
    for index, name in enumerate(names):
        for got_score, got_map in (each[index] for each in found):
            score = float(trained.image[index])
            off, map_off = abs(float(got_score) - score), float(np.abs(got_map - trained.anomaly_map[index]).max())
            turned = (float(got_score) > threshold) != (score > threshold)
            flipped = turned and abs(score - threshold) > FLIP_TOLERANCE * highest
            # Written so that NaN fails.
            if flipped or not (off <= score_tolerance and map_off <= map_tolerance):
                raise ParityError(
                    f"the exported model scores {name} {float(got_score):.6g}, the trained one {score:.6g}, and their "
                    f"maps differ by {map_off:.3g} (allowed: {score_tolerance:.3g} and {map_tolerance:.3g}"
                    f"{', verdict flipped' if flipped else ''}): nothing was written. Report this with the versions "
                    "of torch and onnxruntime"
                )
            worst_score, worst_map = max(worst_score, off), max(worst_map, map_off)
    return Parity(
        score_tolerance=score_tolerance,
        map_tolerance=map_tolerance,
        worst_score_difference=worst_score,
        worst_map_difference=worst_map,
        n_images=len(names),
    )
