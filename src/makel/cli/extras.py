"""What a command needs beyond the torch-free runtime."""

from __future__ import annotations

from importlib.util import find_spec

from makel.errors import MissingExtraError

_PACKAGES = {
    "fit": ("torch", "torchvision", "timm", "safetensors", "onnx"),
    "station": (
        "fastapi",
        "uvicorn",
        "httptools",
        "python_multipart",
        "sqlalchemy",
        "alembic",
        "prometheus_client",
        "paho",
    ),
}


def require(extra: str, what: str) -> None:
    """Make sure an extra is installed, without importing it.

    Args:
        extra: Name of the extra, "fit" or "station".
        what: The command that needs it, for the message.

    Raises:
        MissingExtraError: One of its packages is missing; the message says the install command.
    """
    if any(find_spec(package) is None for package in _PACKAGES[extra]):
        raise MissingExtraError(what, extra)
