"""The methods, one file each: the file's name is the method's name everywhere. Importing this imports none of them."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from makel.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from makel.training.detector import Detector


def names() -> tuple[str, ...]:
    """Every method, in alphabetical order; found by listing this folder, so a new file is known at once."""
    from makel.model.manifest import method_names

    return method_names()


def load(name: str) -> type[Detector]:
    """The detector class of a method: the one public class in its file that is a `Detector`.

    Args:
        name: One of `names()`.

    Raises:
        UsageError: There is no such method.
        MissingExtraError: PyTorch is not installed.
        TypeError: The file does not define exactly one detector.
    """
    if name not in names():
        raise UsageError(f"method {name!r} is not known: choose one of {', '.join(names())}")
    if find_spec("torch") is None:
        raise MissingExtraError(f"method {name!r}", "fit")
    from makel.training.detector import Detector

    module = import_module(f"{__name__}.{name}")
    found = [
        item
        for key, item in vars(module).items()
        if isinstance(item, type)
        and issubclass(item, Detector)
        and item.__module__ == module.__name__
        and key[0] != "_"
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one public Detector, but defines {len(found)}")
    return found[0]
