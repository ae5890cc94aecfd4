"""The cells of a grid, and what makes two of them the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

from makel import __version__
from makel.bench.spec import SYNTHETIC, Grid, Spec
from makel.datasets import Dataset, hashes, load_all, synthetic
from makel.errors import UsageError
from makel.methods import load as load_method
from makel.types import Sample


@dataclass(frozen=True)
class Variant:
    """A method as it is fitted: everything of a cell but its category and its seed.

    Attributes:
        method: Name of the method.
        preset: The preset the settings start from.
        backbone: Name of the backbone; "" for a method on raw pixels.
        blocks: Its blocks; none for a method on raw pixels.
        size: Side in pixels of the square whose pixels the model's input has as many as.
        settings: Canonical JSON of what the grid sets over the preset, backbone and blocks apart.
        config: Canonical JSON of every setting.
    """

    method: str
    preset: str
    backbone: str
    blocks: tuple[int, ...]
    size: int
    settings: str
    config: str

    @property
    def key(self) -> str:
        """What tells it from others, 16 hex digits."""
        return sha256(f"{self.method} {self.config}".encode()).hexdigest()[:16]

    def words(self) -> str:
        """All of it on one line, for a person."""
        features = f", {self.backbone} blocks {join(self.blocks)}" if self.backbone else ""
        changes = "".join(f", {key} {value}" for key, value in json.loads(self.settings).items())
        return f"{self.method} ({self.preset}{features}, {self.size} px{changes})"


@dataclass(frozen=True)
class Cell:
    """One fit and its measurement.

    Attributes:
        category: Name of the dataset.
        variant: What is fitted.
        seed: Seed of everything random.
    """

    category: str
    variant: Variant
    seed: int

    def key(self, data_digest: str) -> str:
        """The name of its result: a hash of the cell, the files it is measured on and makel's version."""
        facts = [self.category, self.variant.method, self.variant.config, self.seed, data_digest, __version__]
        return sha256(json.dumps(facts).encode()).hexdigest()[:32]

    def words(self) -> str:
        """All of it on one line, for a person."""
        return f"{self.category} · {self.variant.words()} · seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def expand(spec: Spec, categories: Sequence[str]) -> list[Cell]:
    """Every cell of a benchmark once, in the order the file names them.

    Args:
        spec: The benchmark.
        categories: The categories there are.

    Raises:
        UsageError: A method, preset, backbone, setting or category is unknown.
    """
    found: dict[Cell, None] = {}
    variants: dict[str, Variant] = {}
    for grid in spec.grid:
        for variant, category, seed in product(_variants(grid), _chosen(grid, categories), grid.seeds):
            same = variants.setdefault(variant.key, variant)  # two ways to say the same settings are one variant
            found[Cell(category, same, seed)] = None
    return list(found)


def in_running_order(cells: Sequence[Cell], categories: Sequence[str]) -> list[Cell]:
    """One category after the other, so that shared features can go with it, and in each one seed after the other, so
    that cells which share features rarely run at the same time."""
    return sorted(cells, key=lambda cell: (categories.index(cell.category), cell.seed))


def datasets(spec: Spec, folder: Path) -> dict[str, Dataset]:
    """Every category by its name; made-up ones are drawn below `folder` the first time.

    Raises:
        DatasetError: A folder cannot be read.
        UsageError: Two categories have one name, or a made-up one cannot be understood.
    """
    found: dict[str, Dataset] = {}
    for source in spec.data:
        root = _draw(source, folder) if source.startswith(SYNTHETIC) else Path(source)
        for dataset in load_all(root):
            if dataset.name in found:
                raise UsageError(
                    f"{dataset.root} and {found[dataset.name].root} are both called {dataset.name!r}: leave one out"
                )
            found[dataset.name] = dataset
    return found


def digest(dataset: Dataset) -> str:
    """SHA-256 in hex of every file a cell is measured on, with its place and its label."""
    samples = (*dataset.good, *dataset.test)
    masks = [Sample(sample.mask_path, None, "mask") for sample in samples if sample.mask_path]
    lines = [
        f"{sample.image_path.relative_to(dataset.root).as_posix()} {sample.label} {sample.kind} {content}"
        for each in (samples, masks)
        for sample, content in zip(each, hashes(each), strict=True)
    ]
    return sha256("\n".join(sorted(lines)).encode(errors="surrogateescape")).hexdigest()


def showcase(dataset: Dataset) -> Sample | None:
    """The image the pictures show: the middle one of all defects with a mask, whatever any model makes of it."""
    marked = [sample for sample in dataset.test if sample.label == "defect" and sample.mask_path]
    return marked[len(marked) // 2] if marked else None


def join(blocks: Sequence[int]) -> str:
    """Block numbers as the tables write them, "1,2,3"."""
    return ",".join(map(str, blocks))


def _variants(grid: Grid) -> list[Variant]:
    return [
        _variant(method, grid.preset, backbone, blocks, grid.settings)
        for method, backbone, blocks in product(grid.methods, grid.backbones or (None,), grid.blocks or (None,))
    ]


def _variant(
    method: str, preset: str, backbone: str | None, blocks: Sequence[int] | None, settings: dict[str, Any]
) -> Variant:
    from makel.training.facts import VGG19_DFR, facts_of

    config_class = load_method(method).config_class
    changes = {key: _frozen(value) for key, value in settings.items()}
    for key in ("backbone", "blocks"):
        if key in changes:
            raise UsageError(f"{key!r} is no key of settings: list it in the grid, as backbones or blocks")
    if config_class.preset(preset).backbone:  # raw pixels have no backbone, whatever the grid lists for the others
        changes |= {"blocks": tuple(sorted(blocks))} if blocks else {}
        changes |= {"backbone": backbone} if backbone else {}
        named = config_class.preset(preset, **changes).backbone
        changes["backbone"] = named if named == VGG19_DFR else facts_of(named).name  # one name for each of its aliases
    config = config_class.preset(preset, **changes)
    if not isinstance(settings.get("size", 0), int):
        raise UsageError(f"size {settings['size']!r} cannot be benchmarked: give one number, the side of a square")
    side = config.size[0]
    return Variant(
        method=method,
        preset=preset,
        backbone=config.backbone,
        blocks=tuple(config.blocks),
        size=side,
        settings=_canonical({key: value for key, value in settings.items() if key != "size"}),
        config=_canonical({**asdict(config), "size": side}),
    )


def _chosen(grid: Grid, categories: Sequence[str]) -> Sequence[str]:
    for name in grid.categories:
        if name not in categories:
            near = get_close_matches(name, categories, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(categories)}"
            raise UsageError(f"category {name!r} is not in the data: {hint}")
    return grid.categories or categories


def _draw(source: str, folder: Path) -> Path:
    """A made-up line, whole or not there: N good images to fit on and half as many of each kind to test on."""
    *product_name, number = source.removeprefix(SYNTHETIC).split(":")
    if len(product_name) > 1 or not number.isdecimal() or int(number) < 2:
        raise UsageError(f"data {source!r} cannot be understood: write synthetic:N or synthetic:PRODUCT:N, N from 2")
    name, count = (product_name or ["flange"])[0], int(number)
    root = folder / f"{name}-{count}"
    if not root.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{root.name}"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        tests = max(2, count // 2)
        synthetic.write(unfinished, product=name, n_fit=count, n_good=tests, n_defect=tests, size_px=128)
        unfinished.rename(root)
    return root


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _canonical(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
