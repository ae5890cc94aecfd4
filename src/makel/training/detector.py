"""The contract every method keeps.

A detector is an `nn.Module` in three parts, called in this order:

    extract(image)            frozen: backbone features, computed once for every image and cached
    prepare / training_step / finish     learning, from the cached features of good images only
    score(features)           from features to raw scores

`forward(image)` is `scores(features(image))`, which are `score` and `extract` of what is inspected; it holds everything
after resizing, so it exports whole. Inside a detector
there are no labels, thresholds, disks or logs. Whatever is frozen stays in eval mode under `.train()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from makel.errors import TrainingError, UsageError
from makel.training.backbones import Backbone
from makel.training.inspected import Inspected
from makel.types import Scores, Shape

Features = tuple[Tensor, ...]
"""What `extract` gives: one (N, C, H, W) tensor a level. A method on raw pixels gives one level, the image itself."""

SIZE = 256
"""Side in pixels of a square of as many pixels as a method sees where nobody says otherwise."""

Batches = Iterable[Features]
"""A re-iterable of feature batches, in a fixed order: iterate as often as needed."""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """Settings every method has. A method's own `Config` extends it; `presets` names its settings by preset, and
    `for_tiles` those that change, whatever the preset, where images are cut into tiles.

    Attributes:
        size: Height and width of the input image, in pixels; one number stands for a square.
        aspect: Whether `makel.fit` gives the input the aspect of the good images, with about as many pixels as `size`
            has, where nobody gives it both sides; or leaves it the square that `size` is.
        backbone: Name of the frozen backbone, "" for a method that needs none.
        blocks: Backbone blocks to take features from, 1 is the finest.
        epochs: Passes over the images that are fitted on; 0 for as many as `updates` takes.
        updates: Steps of the optimiser, so that 40 images and 4,000 cost the same; 0 for closed-form methods.
        most_epochs: Passes at most, however many `updates` takes; 0 for no limit.
        batch_size: Images a training step.
    """

    size: Shape = (SIZE, SIZE)
    aspect: Literal["image", "square"] = "square"
    backbone: str = "tf_efficientnet_lite0"
    blocks: tuple[int, ...] = (1, 2, 3)
    epochs: int = 0
    updates: int = 0
    most_epochs: int = 0
    batch_size: int = 8

    presets: ClassVar[dict[str, dict[str, Any]]] = {"fast": {}, "paper": {}}
    for_tiles: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", as_shape(self.size))
        if self.aspect not in ("image", "square"):
            raise UsageError(f"aspect {self.aspect!r} is not known: choose image or square")

    def epochs_for(self, n_batches: int) -> int:
        """Passes over images that make `n_batches` batches.

        These are `epochs`, or as many as give `updates` steps but no more than `most_epochs`.
        """
        wanted = ceil(self.updates / n_batches)
        return self.epochs or min(wanted, self.most_epochs or wanted)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """The settings of a preset, with `changes` on top. Unknown names are refused with the nearest known ones."""
        if name not in cls.presets:
            raise UsageError(f"preset {name!r} is not known: choose one of {', '.join(cls.presets)}")
        return cls(**{**cls.presets[name], **cls.check(changes)})

    @classmethod
    def check(cls, changes: dict[str, Any]) -> dict[str, Any]:
        """`changes` if every key is a setting of this method, else an error that names the nearest setting."""
        from difflib import get_close_matches

        known = [item.name for item in fields(cls)]
        for key in changes:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
                raise UsageError(f"setting {key!r} is not known: {hint}")
        return changes


def as_shape(size: object) -> Shape:
    """Height and width in pixels of a size as it is given: both, as any sequence, or the side of a square.

    Raises:
        UsageError: It is neither, or a side is below 1.
    """
    sides = (size, size) if isinstance(size, int) else size
    match sides:
        case (int(height), int(width)) if min(height, width) > 0 and not isinstance(size, bool):
            return height, width
    raise UsageError(
        f"size {size!r} is no size of an image: give a whole number of pixels from 1 on, or height and width as two"
    )


class Detector(nn.Module, ABC):
    """Base of every method; see the module's docstring for the contract.

    Attributes:
        config_class: The type of `config`; its presets are the method's.
        exports: Whether it becomes an ONNX file. One that needs gradients to score cannot: it is run in PyTorch, and
            its model folder says so.
        config: The frozen settings.
        backbone: The frozen backbone; None for a method that needs none.
        inspected: The part of the input that counts; None for all of it. A method gives it to `finish_scores`.
        fitted: Buffer, becomes True in `finish`; scoring images before that is an error.
    """

    config_class: ClassVar[type[DetectorConfig]] = DetectorConfig
    exports: ClassVar[bool] = True

    def __init__(self, config: DetectorConfig, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.inspected: Inspected | None = None
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @abstractmethod
    def extract(self, image: Tensor) -> Features:
        """Frozen features of (N, 3, H, W) float32 RGB images in [0, 1]; nothing in here is ever trained."""

    def prepare(self, good: Batches) -> None:
        """Take statistics of the good images before training, and build what depends on them. Nothing by default."""

    def trained_on(self, images: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows of the cache training steps see, (N,); all by default.

        Args:
            images: (N,) the image that each row is of: several rows may be tiles or copies of one.
        """
        return np.ones(len(images), np.bool_)

    def optimizers(self, steps: int) -> dict[str, tuple[torch.optim.Optimizer, Any]]:
        """Name → (optimiser, learning-rate scheduler stepped once a batch, or None), for `steps` batches in all.

        Empty (the default) for closed-form methods.
        """
        return {}

    def training_step(self, features: Features) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Yield (optimiser name, loss to minimise, parts to log), once an optimiser.

        The loop zeroes that optimiser's gradients, goes backward and steps before it resumes the generator, so a later
        yield of an adversarial pair sees the earlier step's weights.
        """
        yield from ()

    def warnings(self, epochs: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
        """What a person should know of a training that ended without an error, such as a network that collapsed.

        Args:
            epochs: The log: for each epoch, the mean of everything `training_step` logs.

        Returns:
            One line each. None by default.
        """
        return ()

    def finish(self, good: Batches) -> None:
        """Take what scoring needs from the good images after training. An override calls this one last."""
        self.fitted.fill_(True)  # type: ignore[operator]

    @abstractmethod
    def score(self, features: Features) -> Scores[Tensor]:
        """Raw scores from features: image (N,), anomaly_map (N, 1, H, W) at the input's size."""

    def forward(self, image: Tensor) -> Scores[Tensor]:
        """Raw scores of (N, 3, H, W) float32 RGB images in [0, 1].

        Raises:
            TrainingError: The detector is not fitted.
        """
        # A traced graph cannot ask, so `export_onnx` does before it traces.
        if not torch.compiler.is_compiling():
            self.require_fitted()
        return self.scores(self.features(image))

    def restrict(self, seen: NDArray[np.bool_], scored: NDArray[np.bool_]) -> None:
        """Inspect only a part of the input, from the first feature on; see `Inspected`. All of it is no restriction."""
        self.inspected = None if scored.all() else Inspected(seen, scored)

    def features(self, image: Tensor) -> Features:
        """What `extract` gives of what is inspected: everything that computes features calls this."""
        return self.extract(self.inspected.paint_over(image) if self.inspected else image)

    def scores(self, features: Features) -> Scores[Tensor]:
        """What `score` gives, with a map that is zero where nothing is inspected."""
        scores = self.score(features)
        if self.inspected is None:
            return scores
        return replace(scores, anomaly_map=scores.anomaly_map * self.inspected.mask)

    def require_fitted(self) -> None:
        """Refuse to go on with a detector whose scores would mean nothing.

        Raises:
            TrainingError: The detector is not fitted.
        """
        if not self.fitted:
            raise TrainingError(f"{type(self).__name__} is not fitted: train it or load a fitted state first")

    @property
    def settled(self) -> DetectorConfig:
        """`config` with everything that `finish` chose: a detector of these settings chooses nothing."""
        return self.config

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """Modules that never change and stay in eval mode: the backbone."""
        return () if self.backbone is None else (self.backbone,)

    def learned_state(self) -> dict[str, Tensor]:
        """The state without the frozen modules': what fitting found out."""
        frozen = {id(value) for module in self.frozen for value in module.state_dict(keep_vars=True).values()}
        state = self.state_dict(keep_vars=True)
        return {key: value.detach() for key, value in state.items() if id(value) not in frozen}

    def trained_state(self) -> dict[str, Tensor]:
        """What a model folder keeps beside `model.onnx`: the learned state, or where that is large what was trained."""
        return self.learned_state()

    def train(self, mode: bool = True) -> Self:
        """Set training mode on everything but the frozen modules."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self
