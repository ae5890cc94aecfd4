"""Imports timm where torchvision's compiled operators cannot load.

The torchvision wheel on the Python package index is built for CUDA. Beside a CPU-only torch its shared library cannot
load, and the import then fails while it describes two operators that nobody declared. Declaring their schemas lets the
Python side import, and the Python side is all that timm needs. Where torchvision imports by itself nothing is done.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from makel.errors import MissingExtraError

_libraries: list[torch.library.Library] = []  # a Library takes its declarations back when it is collected


def import_timm() -> ModuleType:
    """The timm module.

    Raises:
        MissingExtraError: timm or torchvision is not installed.
    """
    try:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "torchvision::nms" not in str(error):
                raise
            _declare_operators()
            importlib.import_module("torchvision")
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name not in ("torchvision", "timm"):
            raise
        raise MissingExtraError("a backbone", "fit") from error


def _declare_operators() -> None:
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
    _libraries.append(library)
