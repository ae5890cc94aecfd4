"""What a benchmark measures, from a TOML file.

data = ["../../data"]                 # relative to the file: categories, folders of them, "synthetic:40"

[[grid]]                              # every combination is a cell; cells of several grids count once
methods = ["skip_ae", "dfr"]
preset = "fast"
backbones = ["efficientnet_lite0"]    # left out: the preset's
blocks = [[1], [1, 2, 3]]             # left out: the preset's
categories = ["toothbrush"]           # left out: all
seeds = [0, 1, 2]
settings = { epochs = 5, size = 128 } # of the method's Config, over the preset's
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from makel.errors import UsageError
from makel.images import shown

SYNTHETIC = "synthetic:"


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Grid(_Table):
    """Cells that are every combination of what is listed.

    Attributes:
        methods: Names in `makel.methods.names()`.
        preset: The settings they start from.
        backbones: Backbones; none for the preset's own. Methods on raw pixels have none and are one cell.
        blocks: Sets of backbone blocks; none for the preset's own.
        categories: Names of categories; none for all there are.
        seeds: Seeds of everything random.
        settings: Settings of the methods' `Config`, over the preset's.
    """

    methods: tuple[str, ...] = Field(min_length=1)
    preset: str = "fast"
    backbones: tuple[str, ...] = ()
    blocks: tuple[tuple[int, ...], ...] = ()
    categories: tuple[str, ...] = ()
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    settings: dict[str, Any] = {}


class Spec(_Table):
    """A benchmark.

    Attributes:
        data: Folders: a category, or a folder of categories. "synthetic:N" or "synthetic:PRODUCT:N" makes up a line of
            N good images.
        device: Where to fit: "auto", "cpu", "cuda" or "mps".
        provider: What models run on: "cpu", "cuda", "tensorrt" or "openvino".
        threads: Processor threads of each cell, in fitting and inspecting.
        features_gb: Room for shared features; beyond it the least recently used go.
        grid: The cells.
    """

    data: tuple[str, ...] = ()
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    provider: Literal["cpu", "cuda", "tensorrt", "openvino"] = "cpu"
    threads: int = Field(default=1, ge=1)
    features_gb: float = Field(default=10.0, gt=0)
    grid: tuple[Grid, ...] = Field(min_length=1)


def read(path: str | os.PathLike[str], data: Sequence[str | os.PathLike[str]] = ()) -> Spec:
    """Read a benchmark.

    Args:
        path: The TOML file.
        data: Used in place of what the file says, relative to the working folder.

    Returns:
        The benchmark; its folders are absolute.

    Raises:
        UsageError: The file is not TOML, a key is unknown or a value cannot be used.
    """
    file = Path(path)
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
        spec = Spec.model_validate(raw)
    except OSError as error:
        raise UsageError(f"{shown(file)} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown(file)} is not TOML: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{shown(file)}: {_explain(error)}") from error
    base, given = (Path.cwd(), tuple(os.fspath(each) for each in data)) if data else (file.resolve().parent, spec.data)
    if not given:
        raise UsageError(f'{shown(file)} names no data: add a line such as data = ["../data"], or give --data')
    folders = (each if each.startswith(SYNTHETIC) else os.path.abspath(base / each) for each in given)  # noqa: PTH100
    return spec.model_copy(update={"data": tuple(folders)})


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    *where, last = first["loc"]
    inside = f" of grid {int(where[1]) + 1}" if where else ""
    if first["type"] == "extra_forbidden":
        known = list((Grid if where else Spec).model_fields)
        near = get_close_matches(str(last), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"key {last!r}{inside} is not known: {hint}"
    name = ".".join(str(part) for part in first["loc"])
    return f"{name}: {first['msg'][0].lower()}{first['msg'][1:]}, but got {first['input']!r}"
