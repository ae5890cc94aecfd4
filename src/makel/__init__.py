"""makel learns from good images what a product looks like, then judges new ones: pass or reject, how sure, and where.

    makel.fit("photos/of/good/parts", "model")
    verdict = makel.Inspector.load("model").inspect("part.png")
    evaluation = makel.evaluate("model", "labelled/photos")

Only `fit` needs torch. Names are imported on first use, so `import makel` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from makel.api import evaluate, recalibrate
    from makel.model.inspector import Inspector
    from makel.training.fit import fit

__version__ = "0.1.0"
__all__ = ["Inspector", "__version__", "evaluate", "fit", "recalibrate"]

_HOMES = {
    "Inspector": "makel.model.inspector",
    "evaluate": "makel.api",
    "fit": "makel.training.fit",
    "recalibrate": "makel.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if name == "fit" and error.name in ("torch", "torchvision", "timm", "safetensors", "onnx"):
            from makel.errors import MissingExtraError

            raise MissingExtraError("makel.fit", "fit") from error
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
