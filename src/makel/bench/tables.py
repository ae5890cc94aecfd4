"""The paper's Tables 2, 3, 5 and 6 with our values beside its own, at the level of pixels, images and regions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from makel.bench import paper
from makel.bench.cells import Cell, Variant, join

GAP = "–"

LEVELS = {
    # metric: what it is called in headings
    "pixel_auroc": "pixel AUROC",
    "image_auroc": "image AUROC",
    "aupro_30": "AUPRO up to a false-positive rate of 0.3",
}
HEADLINE = "pixel_auroc"


@dataclass(frozen=True)
class Record:
    """A cell and its result.

    Attributes:
        cell: The cell.
        result: What `measure` gave.
    """

    cell: Cell
    result: dict[str, Any]

    @property
    def done(self) -> bool:
        """Whether it was measured."""
        return bool(self.result["status"] == "done")

    def metric(self, name: str) -> float | None:
        """A metric, or None where the cell failed or the metric is undefined."""
        value: float | None = self.result["metrics"][name] if self.done else None
        return value


@dataclass(frozen=True)
class Entry:
    """One place of a table.

    Attributes:
        by_seed: Our values.
        paper: The paper's value.
        unsure: The paper does not say what its value is of.
    """

    by_seed: tuple[float, ...] = ()
    paper: float | None = None
    unsure: bool = False

    @property
    def ours(self) -> str:
        """Mean, and standard deviation where there are several seeds."""
        if not self.by_seed:
            return GAP
        spread = f" ± {stdev(self.by_seed):.3f}" if len(self.by_seed) > 1 else ""
        return f"{mean(self.by_seed):.3f}{spread}"

    @property
    def printed(self) -> str:
        """The paper's value as it prints it."""
        return GAP if self.paper is None else f"{self.paper:.2f}{'†' if self.unsure else ''}"

    @property
    def difference(self) -> str:
        """Ours less the paper's, signed."""
        if self.paper is None or not self.by_seed:
            return GAP
        return f"{mean(self.by_seed) - self.paper:+.3f}".replace("-", "−")


@dataclass(frozen=True)
class Table:
    """A table in the paper's form.

    Attributes:
        number: The paper's number.
        title: What it shows.
        notes: What a reader has to know, one sentence or more each.
        columns: Names of the columns.
        rows: Name and entries of each row.
        compared: Whether the paper has values for it.
    """

    number: str
    title: str
    notes: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    compared: bool


@dataclass(frozen=True)
class _Column:
    name: str
    variant: Variant | None
    key: str  # the paper's column


def columns(cells: Iterable[Cell]) -> list[Variant]:
    """The variants that stand for a method in Tables 2 to 4: for each method and preset the first that is named.

    The paper's methods come first, in its order.
    """
    firsts: dict[tuple[str, str], Variant] = {}
    for cell in cells:
        firsts.setdefault((cell.variant.method, cell.variant.preset), cell.variant)
    known = list(paper.METHODS)
    order = {key: known.index(key[0]) if key[0] in known else len(known) for key in firsts}
    return [firsts[key] for key in sorted(firsts, key=lambda key: order[key])]


def name_of(variant: Variant, among: Sequence[Variant]) -> str:
    """What a column is called: the paper's name of the method or ours, with the preset where two are shown."""
    several = sum(each.method == variant.method for each in among) > 1
    name = paper.METHODS.get(variant.method, variant.method)
    return f"{name} ({variant.preset})" if several else name


def all_tables(records: Sequence[Record], categories: Sequence[str], level: str) -> list[Table]:
    """Tables 2 and 3, then 5 and 6 for every method that was measured with several backbones or blocks.

    Args:
        records: Cells in the order of the benchmark's file.
        categories: All categories, in order.
        level: A key of `LEVELS`.
    """
    heads = columns(record.cell for record in records)
    return [
        *_by_method(records, categories, heads, level),
        *_by_part(records, categories, heads, level, "5", lambda variant: variant.backbone),
        *_by_part(records, categories, heads, level, "6", lambda variant: join(variant.blocks)),
    ]


def _by_method(
    records: Sequence[Record], categories: Sequence[str], heads: Sequence[Variant], level: str
) -> list[Table]:
    beside = level == HEADLINE  # only areas of pixels may stand beside the paper's
    known = list(paper.METHODS)
    shown = [_Column(name_of(head, heads), head, head.method) for head in heads]
    notes = [f"{column.name}: {head.words()}." for column, head in zip(shown, heads, strict=True)] if beside else []
    if beside:
        measured = {head.method for head in heads}
        shown += [_Column(name, None, key) for key, name in paper.METHODS.items() if key not in measured]
        shown.sort(key=lambda column: known.index(column.key) if column.key in known else len(known))
        notes.append("† The paper does not say whether this is an area of pixels or of images: compare with care.")
    on_lines = [name for name in categories if _in_paper(name, "3")]
    elsewhere = [name for name in categories if name not in on_lines]
    rows = {
        "2": [name for name in elsewhere if not (beside and _in_paper(name, "2"))],
        "3": [] if beside else on_lines,
    }
    others = any(not _in_paper(name, "2") for name in elsewhere)
    titles = {"2": "MVTec AD and other products" if others else "MVTec AD", "3": "production lines"}
    return [
        _table(
            number,
            f"methods on {titles[number]}, {LEVELS[level]}",
            notes,
            shown,
            records,
            rows[number],
            level,
            compared=beside,
        )
        for number, wanted in (("2", elsewhere), ("3", on_lines))
        if wanted
    ]


def _by_part(
    records: Sequence[Record],
    categories: Sequence[str],
    heads: Sequence[Variant],
    level: str,
    number: str,
    part: Callable[[Variant], str],
) -> list[Table]:
    tables = []
    for head in heads:
        variants = _that_differ_in_part(records, head, number)
        if len(variants) < 2:
            continue
        compared = head.method == "skip_ae" and level == HEADLINE
        known = list(paper.BACKBONES) if number == "5" else list(paper.BLOCKS)
        found = {part(variant): variant for variant in variants}
        keys = [key for key in known if compared or key in found] + [key for key in found if key not in known]
        names = paper.BACKBONES if number == "5" else {key: f"block {key}" for key in keys}
        shown = [_Column(names.get(key, key), found.get(key), key) for key in keys]
        name = name_of(head, heads)
        what = "backbones" if number == "5" else "backbone blocks"
        notes = [f"Ours: {head.words()}, with the {what} of the columns."]
        if number == "6" and compared and head.backbone != "resnext101":
            notes.append(f"The paper's blocks are those of ResNeXt101, ours those of {head.backbone}.")
        if head.method != "skip_ae":
            notes.append("The paper has no such table.")
        more = [each for each in categories if not (compared and _in_paper(each, number))]
        tables.append(
            _table(number, f"{name} by {what}, {LEVELS[level]}", notes, shown, records, more, level, compared=compared)
        )
    return tables


def _that_differ_in_part(records: Sequence[Record], head: Variant, number: str) -> list[Variant]:
    """The variants that are `head` but for their backbone (Table 5) or their blocks (Table 6)."""

    def rest(variant: Variant) -> tuple[Any, ...]:
        free = "backbone" if number == "5" else "blocks"
        config = {key: value for key, value in json.loads(variant.config).items() if key != free}
        return variant.method, variant.preset, json.dumps(config)

    every = dict.fromkeys(record.cell.variant for record in records)
    return [variant for variant in every if variant.backbone and rest(variant) == rest(head)]


def _table(
    number: str,
    title: str,
    notes: Sequence[str],
    shown: Sequence[_Column],
    records: Sequence[Record],
    more: Sequence[str],
    level: str,
    *,
    compared: bool,
) -> Table:
    """The paper's rows and its average where they are `compared`, then `more` categories, then what can be averaged."""
    values = [_values(records, column.variant, level) for column in shown]
    printed = paper.table(number) if compared else {}
    of_paper = {paper.same_name(name): row for name, row in printed.items()}

    def line(name: str, ours: Sequence[Iterable[float]], theirs: dict[str, float]) -> tuple[str, tuple[Entry, ...]]:
        entries = (
            Entry(tuple(by_seed), theirs.get(column.key), number in "23" and column.key in paper.LEVEL_UNSTATED)
            for column, by_seed in zip(shown, ours, strict=True)
        )
        return name, tuple(entries)

    def row(name: str) -> tuple[str, tuple[Entry, ...]]:
        key = paper.same_name(name)
        return line(name, [found.get(key, {}).values() for found in values], of_paper.get(key, {}))

    rows = [row(name) for name in printed]
    if printed:
        ours = [_mean_over(found, list(of_paper)) for found in values]
        rows.append(line(paper.AVERAGE, ours, paper.average(number)))
    rows += [row(name) for name in more]
    # Means over different categories cannot be compared: this one is over those that every measured column has.
    measured = [set(found) for found in values if found]
    everything = dict(zip([*of_paper, *map(paper.same_name, more)], [*printed, *more], strict=True))
    common = [key for key in everything if measured and all(key in there for there in measured)]
    if len(common) > 1 and set(common) != set(of_paper):
        names = [everything[key] for key in common]
        name = f"Average of {' and '.join(names)}" if len(names) == 2 else f"Average of {len(names)} measured"
        theirs = {}
        if set(common) <= set(of_paper):
            keys = [column.key for column in shown if all(column.key in of_paper[key] for key in common)]
            theirs = {key: mean(of_paper[each][key] for each in common) for key in keys}
        rows.append(line(name, [_mean_over(found, common) for found in values], theirs))
    return Table(number, title, tuple(notes), tuple(column.name for column in shown), tuple(rows), compared)


def _values(records: Sequence[Record], variant: Variant | None, level: str) -> dict[str, dict[int, float]]:
    """Category, as the paper and folders share its name → seed → value."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        value = record.metric(level)
        if record.cell.variant == variant and value is not None:
            found.setdefault(paper.same_name(record.cell.category), {})[record.cell.seed] = value
    return found


def _mean_over(found: dict[str, dict[int, float]], keys: Sequence[str]) -> tuple[float, ...]:
    """Mean over categories by seed, for the seeds that all of them have; of their means where there is no such seed."""
    if not keys or any(key not in found for key in keys):
        return ()
    shared = sorted(set.intersection(*(set(found[key]) for key in keys)))
    if shared:
        return tuple(mean(found[key][seed] for key in keys) for seed in shared)
    return (mean(mean(found[key].values()) for key in keys),)


def _in_paper(category: str, number: str) -> bool:
    return paper.same_name(category) in {paper.same_name(name) for name in paper.table(number)}
