"""Runs a model: prepared images in, raw scores out. One session a model; its threads sleep when there is no work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from makel.errors import MissingExtraError, ModelFolderError, UsageError
from makel.model.folder import ModelFolder, faults_of
from makel.model.graph import check_graph
from makel.model.manifest import MANIFEST_NAME, ONNX_NAME
from makel.types import Scores, Shape, in_px

onnxruntime.disable_telemetry_events()  # on Windows; elsewhere the variable set in makel.model does it

PROVIDERS = {
    # name: (ONNX Runtime's name, the package that has it)
    "cpu": ("CPUExecutionProvider", "onnxruntime"),
    "cuda": ("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": ("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
}

_FLOATS = "tensor(float)"

_MAX_DEFAULT_THREADS = 4
"""More gain little on one 256 px image, and take cores from the camera."""


class Runner(Protocol):
    """What turns prepared images into raw scores."""

    def run(self, images: NDArray[np.float32]) -> Scores[NDArray[np.float32]]:
        """Raw scores of (N, 3, H, W) float32 RGB images in [0, 1], any N."""
        ...


class Session:
    """An ONNX model in ONNX Runtime. `run` may be called from several threads at once.

    Attributes:
        provider: What it runs on, a key of `PROVIDERS`.
        threads: Threads a run uses at most.
    """

    def __init__(
        self,
        model: bytes,
        *,
        name: str = ONNX_NAME,
        shape: Shape | None = None,
        threads: int | None = None,
        provider: str = "cpu",
    ) -> None:
        """Load a model.

        Args:
            model: The ONNX file's bytes; not a path, so that what was hashed is what runs.
            name: What to call the model in messages, such as its path.
            shape: Height and width in pixels that its images and maps must have; None for its own.
            threads: Threads a run uses at most; None for the cores this process may use, at most 4.
            provider: A key of `PROVIDERS`.

        Raises:
            UsageError: The provider is unknown, not installed or does not start, or `threads` is below one.
            ModelFolderError: The model holds what makel does not export (see `makel.model.graph`), ONNX Runtime cannot
                load it, or it does not take images of this shape and give scores and maps of it.
        """
        self._name = name
        self.provider = provider
        self.threads = default_threads() if threads is None else check_threads(threads)
        wanted = _installed(provider)
        check_graph(model, name)
        options = onnxruntime.SessionOptions()
        # Not ONNX Runtime's own format either, which it would recognise by itself: nothing there was looked at.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        for key, value in _waiting().items():
            options.add_session_config_entry(key, value)
        options.log_severity_level = 3
        try:
            # Without fallback: otherwise a GPU that does not start prints a banner and becomes a CPU.
            self._session = onnxruntime.InferenceSession(model, options, providers=wanted, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors share no base below Exception
            raise ModelFolderError(
                f"{name} cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {_one_line(error)}"
            ) from error
        if self._session.get_providers()[0] != wanted[0]:
            raise UsageError(
                f"provider {provider!r} is installed but does not start on this machine: check its driver and "
                "libraries, or use 'cpu'"
            )
        self._shape = self._check_signature(name, shape)

    def run(self, images: NDArray[np.float32]) -> Scores[NDArray[np.float32]]:
        """Raw scores of prepared images.

        Args:
            images: (N, 3, H, W) float32 RGB in [0, 1], any N.

        Returns:
            image (N,) and anomaly_map (N, 1, H, W), float32.

        Raises:
            UsageError: The array has another type or shape than the model takes.
            ModelFolderError: The model cannot be run, or gives arrays of other shapes.
        """
        check_images(images, (3, *self._shape))
        try:
            score, anomaly_map = self._session.run(["score", "anomaly_map"], {"image": images})
        except Exception as error:  # ONNX Runtime's errors share no base below Exception
            raise ModelFolderError(f"{self._name} cannot be run: {_one_line(error)}. Fit again") from error
        expected = (len(images),), (len(images), 1, *self._shape)
        if (score.shape, anomaly_map.shape) != expected:
            raise ModelFolderError(
                f"{self._name} gives a score of shape {score.shape} and a map of {anomaly_map.shape}, expected "
                f"{expected[0]} and {expected[1]}: fit again"
            )
        return Scores(image=score, anomaly_map=anomaly_map)

    def _check_signature(self, name: str, shape: Shape | None) -> Shape:
        """Height and width of what the model takes, if it takes and gives what a model of makel does."""
        inputs = {item.name: (item.type, len(item.shape)) for item in self._session.get_inputs()}
        outputs = {item.name: (item.type, len(item.shape)) for item in self._session.get_outputs()}
        if inputs != {"image": (_FLOATS, 4)} or outputs != {"score": (_FLOATS, 1), "anomaly_map": (_FLOATS, 4)}:
            raise ModelFolderError(
                f"{name} takes {inputs} and gives {outputs} (name: type and dimensions); expected image: 4 and score: "
                f"1, anomaly_map: 4, all of {_FLOATS}. It is no makel model: export it with `makel fit`"
            )
        batch, channels, height, width = self._session.get_inputs()[0].shape
        if isinstance(batch, int):
            raise ModelFolderError(f"{name} takes batches of {batch} only: export it with a dynamic batch size")
        if not (isinstance(height, int) and isinstance(width, int)) or channels != 3:
            raise ModelFolderError(
                f"{name} takes images of {channels} channels, {height} rows and {width} columns: expected 3 channels, "
                "and rows and columns as numbers. It is no makel model: export it with `makel fit`"
            )
        own = height, width
        if own != (shape or own):
            raise ModelFolderError(
                f"{name} takes images of {in_px(own)}, and {MANIFEST_NAME} says {in_px(shape or own)}: the two do not "
                "belong together, restore the folder from a good copy"
            )
        sides = {item.name: item.shape for item in self._session.get_outputs()}["anomaly_map"][2:]
        # A side that only a run can tell is a word; `run` looks at it.
        if any(isinstance(side, int) and side != wanted for side, wanted in zip(sides, own, strict=True)):
            raise ModelFolderError(
                f"{name} takes images of {in_px(own)} and gives maps of {sides[1]} x {sides[0]} px: it is no makel "
                "model, export it with `makel fit`"
            )
        return own


def open_session(folder: ModelFolder, *, threads: int | None = None, provider: str = "cpu") -> Runner:
    """What runs the model of a folder. The one place that looks at `manifest.runtime`.

    Args:
        folder: An opened model folder.
        threads: See `Session`.
        provider: See `Session`.

    Returns:
        The runner, from bytes that match the manifest's hash.

    Raises:
        ModelFolderError: The model was changed or cannot be loaded.
        UsageError: The provider cannot be used.
        MissingExtraError: The model runs in PyTorch, which is not installed.
    """
    match folder.manifest.runtime:
        case "onnx":
            return Session(
                folder.read(ONNX_NAME),
                name=str(folder.path / ONNX_NAME),
                shape=folder.manifest.preprocessing.shape,
                threads=threads,
                provider=provider,
            )
        case "torch":
            if find_spec("torch") is None:
                method = folder.manifest.method.name
                raise MissingExtraError(f"{folder.path} (method {method!r}, scored in PyTorch)", "fit")
            # The one import of fitting here, and only for a model that cannot be scored without it.
            from makel.training.torch_session import TorchSession

            with faults_of(folder.path):
                return TorchSession.open(folder, threads=threads, provider=provider)


def check_images(images: NDArray[np.float32], shape: Sequence[int]) -> None:
    """Refuse anything but float32 of (N, *shape).

    Raises:
        UsageError: It has another type or shape.
    """
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[1:] != tuple(shape):
        raise UsageError(
            f"images must be float32 of shape (N, {', '.join(map(str, shape))}), but got {images.dtype} "
            f"of shape {images.shape}: use makel.images.prepare"
        )


def check_threads(threads: int) -> int:
    """`threads`, if a model can run on as many.

    Raises:
        UsageError: It is below one.
    """
    if threads < 1:
        raise UsageError(f"{threads} threads cannot run a model: give at least 1")
    return threads


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _waiting() -> dict[str, str]:
    """How long a thread that waits for the others keeps its core busy, in ONNX Runtime's words.

    Long, as is its default, fights for the cores of a busy PC: 9 ms became 400. Not at all costs a wake-up for every
    layer, 7 % of the time. Versions before 1.26 do not know in between.
    """
    version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    if version < (1, 26):
        return {"session.intra_op.allow_spinning": "0"}
    return {"session.intra_op.spin_duration_us": "100"}


def _installed(provider: str) -> list[str]:
    """The provider in ONNX Runtime's words, with the CPU for what it cannot do."""
    if provider not in PROVIDERS:
        raise UsageError(f"provider {provider!r} is not known: choose one of {', '.join(PROVIDERS)}")
    wanted, package = PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise UsageError(
            f"provider {provider!r} is not in the installed ONNX Runtime: "
            f"pip uninstall onnxruntime, then pip install {package}"
        )
    return list(dict.fromkeys([wanted, PROVIDERS["cpu"][0]]))


def default_threads() -> int:
    """Threads an inspection uses when nobody says otherwise: the cores this process may use, at most 4."""
    # A container or a service manager often leaves a process fewer cores than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_DEFAULT_THREADS, cores)
