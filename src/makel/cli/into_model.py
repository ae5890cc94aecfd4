"""What is never written into a model folder: anything but the model."""

from __future__ import annotations

from pathlib import Path

from makel.errors import UsageError


def refuse_in_model(out: Path, model: Path) -> None:
    """A file too many, or its report overwritten, and the model is damaged.

    Raises:
        UsageError: `out` is the model folder or lies in it.
    """
    target, folder = out.resolve(), model.resolve()
    if folder in (target, *target.parents):
        raise UsageError(f"--out {out} lies in the model folder {model}, which holds the model alone: give another")
