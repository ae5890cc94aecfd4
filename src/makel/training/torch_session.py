"""Runs a model in PyTorch: for detectors that cannot become an ONNX file. Behind the same `Runner` as every other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load

from makel.errors import ModelFolderError, UsageError
from makel.methods import load as load_method
from makel.model.folder import ModelFolder
from makel.model.layout import ModelLayout, place_on_input
from makel.model.manifest import WEIGHTS_NAME, Backbone, Method
from makel.model.session import check_images, check_threads
from makel.model.zones import Zones
from makel.training import backbones
from makel.training.detector import Detector, DetectorConfig
from makel.training.export import torch_scores
from makel.types import Scores


class TorchSession:
    """A fitted detector. `run` may be called from several threads at once.

    Attributes:
        detector: In eval mode; its weights take no gradients.
    """

    def __init__(self, detector: Detector, device: torch.device) -> None:
        """Take a fitted detector to a device.

        Raises:
            TrainingError: The detector is not fitted.
        """
        detector.require_fitted()
        self.detector = detector.to(device).eval().requires_grad_(False)

    @classmethod
    def open(cls, folder: ModelFolder, *, threads: int | None = None, provider: str = "cpu") -> Self:
        """The model of a folder.

        Args:
            folder: An opened model folder.
            threads: Threads a run uses at most; None for what PyTorch uses. PyTorch has one number for the process.
            provider: "cpu" or "cuda".

        Raises:
            ModelFolderError: Weights and settings do not fit together.
            UsageError: The provider cannot be used, or `threads` is below one.
        """
        if provider not in ("cpu", "cuda"):
            raise UsageError(f"provider {provider!r} cannot run {folder.path}, a PyTorch model: use 'cpu' or 'cuda'")
        if provider == "cuda" and not torch.cuda.is_available():
            raise UsageError("provider 'cuda' does not start on this machine: check its driver, or use 'cpu'")
        if threads is not None:
            torch.set_num_threads(check_threads(threads))
        manifest = folder.manifest
        return cls.rebuild(
            manifest.method,
            manifest.backbone,
            folder.read(WEIGHTS_NAME),
            place_on_input(manifest.zones or Zones(), manifest.preprocessing.shape),
            name=str(folder.path / WEIGHTS_NAME),
            device=torch.device(provider),
        )

    @classmethod
    def rebuild(
        cls,
        method: Method,
        backbone: Backbone | None,
        weights: bytes,
        layout: ModelLayout,
        *,
        name: str,
        device: torch.device,
    ) -> Self:
        """A session from what a model folder keeps of a detector.

        Args:
            method: Its name and settings.
            backbone: The backbone it was fitted on.
            weights: The bytes of its safetensors file; not a path, so that what was hashed is what runs.
            layout: Which part of the input counts.
            name: What to call the weights in messages.
            device: Where to run.

        Raises:
            ModelFolderError: Weights and settings do not fit together, or the backbone has other weights.
        """
        detector_class = load_method(method.name)
        config = _config(detector_class.config_class, method.config, name)
        built = backbones.build(config.backbone, config.blocks) if config.backbone else None
        if built and backbone and built.weights_sha256 != backbone.weights_sha256:
            raise ModelFolderError(
                f"{name} was fitted on other weights of {backbone.name} than the ones found here "
                f"({built.source}): add the ones from {backbone.source} with `makel weights add`"
            )
        try:
            detector = detector_class(config, built)
            detector.restrict(layout.seen, layout.scored)
            state = load(weights)
            if state.keys() != detector.learned_state().keys():
                raise ValueError(f"its tensors are not those of {method.name}")
            detector.load_state_dict(state, strict=False)  # the frozen part is not in it
        except (SafetensorError, UsageError, ValueError, TypeError, RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split())
            raise ModelFolderError(f"{name} does not fit its settings: {reason}. Fit again") from error
        return cls(detector, device)

    def run(self, images: NDArray[np.float32]) -> Scores[NDArray[np.float32]]:
        """Raw scores of prepared images.

        Args:
            images: (N, 3, H, W) float32 RGB in [0, 1], any N.

        Returns:
            image (N,) and anomaly_map (N, 1, H, W), float32.

        Raises:
            UsageError: The array has another type or shape than the model takes.
        """
        check_images(images, (3, *self.detector.config.size))
        return torch_scores(self.detector, images)


def _config(config_class: type[DetectorConfig], settings: Mapping[str, Any], name: str) -> DetectorConfig:
    """The frozen settings from their JSON values, where tuples became lists."""
    try:
        changes: dict[str, Any] = config_class.check(dict(settings))
        changes = {key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()}
        return config_class(**changes)
    except UsageError as error:
        raise ModelFolderError(f"{name} was fitted with settings this makel does not know: {error}") from error
