"""The training loop: one for all methods, deterministic for a seed, resumable at every epoch."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass, field
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from makel.errors import TrainingError
from makel.training.detector import Detector
from makel.training.features import FeatureCache, Progress

SAVE_EVERY_S = 5.0
"""A killed fit loses at most this much training, or one epoch where that takes longer."""


@dataclass
class History:
    """Losses by epoch.

    Attributes:
        epochs: One record an epoch: "epoch", "seconds" and the mean of everything the method logs.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)

    @property
    def final_loss(self) -> float | None:
        """Loss of the last epoch, None for a closed-form method."""
        return self.epochs[-1]["loss"] if self.epochs else None

    def to_jsonl(self) -> str:
        """One JSON object a line."""
        return "".join(json.dumps(record) + "\n" for record in self.epochs)


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit in progress is kept, and what it is a fit of.

    Attributes:
        path: The file.
        key: Digest of everything the fit depends on; a checkpoint of another fit is not resumed.
    """

    path: Path
    key: str

    def save(self, state: dict[str, Any]) -> None:
        """Write atomically."""
        temporary = self.path.with_suffix(".tmp")
        buffer = io.BytesIO()  # torch, writing a file itself, has no word for a full disk
        torch.save({"key": self.key, **state}, buffer)
        temporary.write_bytes(buffer.getbuffer())
        temporary.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        """What was saved, or None where nothing was.

        Raises:
            TrainingError: It belongs to another fit, or cannot be read.
        """
        if not self.path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        except Exception as error:  # a torn file fails in the depths of zipfile, pickle or torch
            raise TrainingError(f"{self.path} cannot be read ({error}): delete it, or fit without --resume") from error
        if state.get("key") != self.key:
            raise TrainingError(
                f"{self.path} belongs to a fit of other images or settings: repeat those, or fit without --resume"
            )
        return state


def train(
    detector: Detector,
    cache: FeatureCache,
    *,
    seed: int,
    progress: Progress,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
) -> History:
    """Fit a detector on cached features of good images.

    Every epoch draws from generators seeded by (seed, epoch), so a resumed fit ends with the same weights as one that
    was never stopped.

    Args:
        detector: Unfitted, on the device of the cache.
        cache: Features of the good images.
        seed: Seed of everything random.
        progress: Called after every epoch.
        checkpoint: Where to keep the state for `resume`.
        resume: Go on from the checkpoint, if there is one.

    Returns:
        The losses.

    Raises:
        TrainingError: A loss is not finite, or the checkpoint is of another fit.
    """
    torch.manual_seed(seed)
    detector.eval()
    with torch.no_grad():
        detector.prepare(cache)
    seen = cache.subset(np.flatnonzero(detector.trained_on(cache.images)))
    batches = _batches(len(seen), detector.config.batch_size)
    epochs = detector.config.epochs_for(len(batches))
    optimizers = detector.optimizers(epochs * len(batches))
    history, start = History(), 0
    state = checkpoint.load() if checkpoint and resume else None
    if state:
        detector.load_state_dict(state["detector"], strict=False)  # the frozen part is not in it
        for name, (optimizer, scheduler) in optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            if scheduler:
                scheduler.load_state_dict(state["schedulers"][name])
        history.epochs.extend(state["history"])
        start = len(history.epochs)
    saved = time.monotonic()
    for epoch in range(start, epochs):
        history.epochs.append(_train_epoch(detector, seen, optimizers, batches, seed, epoch))
        progress("training", epoch + 1, epochs)
        if checkpoint and time.monotonic() - saved > SAVE_EVERY_S:
            checkpoint.save(_state(detector, optimizers, history))
            saved = time.monotonic()
    detector.eval()
    with torch.no_grad():
        detector.finish(cache)
    return history


def _batches(n: int, size: int) -> list[range]:
    """Positions of every batch of an epoch. All images count; a last batch of one would break BatchNorm, so it joins
    the batch before it."""
    starts = list(range(0, n, size))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], n], strict=True)]


Optimizers = dict[str, tuple[torch.optim.Optimizer, Any]]


def _train_epoch(
    detector: Detector, cache: FeatureCache, optimizers: Optimizers, batches: list[range], seed: int, epoch: int
) -> dict[str, float]:
    began = time.perf_counter()
    # Hashed, so that neighbouring seeds do not share streams shifted by an epoch.
    torch.manual_seed(int.from_bytes(sha256(f"{seed}:{epoch}".encode()).digest()[:7], "big"))
    order = torch.randperm(len(cache)).tolist()
    sums: dict[str, Tensor] = {}
    detector.train()
    for batch in batches:
        features = cache.batch([order[index] for index in batch])
        with torch.autocast("cuda", torch.bfloat16, enabled=cache.device.type == "cuda"):
            for name, loss, parts in detector.training_step(features):
                optimizer, scheduler = optimizers[name]
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if scheduler:
                    scheduler.step()
                for key, value in parts.items():
                    weighted = value.detach().double() * len(batch)
                    sums[key] = sums[key] + weighted if key in sums else weighted
    record = {key: float(total) / len(order) for key, total in sums.items()}
    for key, mean in record.items():
        if not isfinite(mean):
            raise TrainingError(
                f"{key} became {mean} in epoch {epoch + 1}: lower the learning rate, or look for good images that "
                "are blank or broken"
            )
    return {"epoch": epoch + 1, "seconds": round(time.perf_counter() - began, 4), **record}


def _state(detector: Detector, optimizers: Optimizers, history: History) -> dict[str, Any]:
    return {
        "detector": detector.learned_state(),
        "optimizers": {name: optimizer.state_dict() for name, (optimizer, _) in optimizers.items()},
        "schedulers": {name: scheduler.state_dict() for name, (_, scheduler) in optimizers.items() if scheduler},
        "history": history.epochs,
    }
