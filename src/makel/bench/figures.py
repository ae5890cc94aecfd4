"""The paper's Figures 4 and 5 as SVG: in the page with its colours, and as files of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup, escape

from makel.bench import paper
from makel.bench.tables import Record, Table, columns, name_of

_CELL_PX, _GAP_PX, _HEAD_PX = 150, 8, 24

_STYLE = (
    "svg{font-family:system-ui,sans-serif;background:#fff}text{font-size:12px;fill:#5b646c}"
    ".strong{fill:#1d2226;font-weight:600}.good{fill:#0f6aa8}.paper{fill:#b9b4a8}.axis{stroke:#5b646c;fill:none}"
    ".whisker{stroke:#1d2226;stroke-width:1.5}"
)


@dataclass(frozen=True)
class Figure:
    """A drawing with its words.

    Attributes:
        name: File name without its ending.
        caption: What it shows.
        svg: The drawing, coloured by the page it stands in.
    """

    name: str
    caption: str
    svg: Markup

    def to_file(self) -> str:
        """The drawing as a file of its own."""
        opening, rest = str(self.svg).split(">", 1)
        return f'{opening} xmlns="http://www.w3.org/2000/svg"><style>{_STYLE}</style>{rest}\n'


def pictures(records: Sequence[Record], categories: Sequence[str]) -> list[Figure]:
    """Figure 4: for each category one defect, where it is, and what each method makes of it."""
    heads = columns(record.cell for record in records)
    figures = []
    for category in categories:
        shown = []
        for head in heads:
            mine = [
                record
                for record in records
                if record.cell.variant == head and record.cell.category == category and record.result.get("picture")
            ]
            if mine:
                first = min(mine, key=lambda record: record.cell.seed)
                shown.append((name_of(head, heads), first.result["picture"]))
        if not shown:
            continue
        first_picture = shown[0][1]
        cells = [("image, truth", first_picture["image"], first_picture["truth"])]
        cells += [(name, picture["heat"], picture["mask"]) for name, picture in shown]
        caption = (
            f"{category}: {first_picture['name']}, the middle one of all marked defects. Above, the image and each "
            "method's heat map, each coloured by its own threshold; below, where the defect is and what is above the "
            "calibrated pixel threshold."
        )
        figures.append(Figure(f"figure4-{paper.same_name(category)}", caption, _grid(cells, caption)))
    return figures


def bars(tables: Sequence[Table]) -> list[Figure]:
    """Figure 5: mean area by backbone and by blocks, from Tables 5 and 6."""
    figures = []
    for table in tables:
        if table.number not in "56":
            continue
        rows = [(name, entries) for name, entries in table.rows if not name.startswith(paper.AVERAGE)]
        with_ours = [index for index in range(len(table.columns)) if any(entries[index].by_seed for _, entries in rows)]
        common = [(name, entries) for name, entries in rows if all(entries[index].by_seed for index in with_ours)]
        if not common:
            continue
        printed = paper.average(table.number) if table.compared else {}
        keys = {**{name: key for key, name in paper.BACKBONES.items()}, **{f"block {key}": key for key in paper.BLOCKS}}
        values = [
            (
                column,
                mean(mean(entries[index].by_seed) for _, entries in common) if index in with_ours else None,
                printed.get(keys.get(column, "")),
            )
            for index, column in enumerate(table.columns)
        ]
        letter = "a" if table.number == "5" else "b"
        over = ", ".join(name for name, _ in common) if len(common) < 6 else f"{len(common)} categories"
        theirs = ", the paper's over its 17 categories" if printed else ""
        caption = f"{table.title[0].upper()}{table.title[1:]}. Ours are means over {over}{theirs}. Bars begin at 0.5."
        name = f"figure5{letter}-{paper.same_name(table.title.partition(' by ')[0])}"
        figures.append(Figure(name, caption, _bars(values, caption)))
    return figures


def _grid(cells: Sequence[tuple[str, str, str]], label: str) -> Markup:
    step_px = _CELL_PX + _GAP_PX
    parts = []
    for index, (name, above, below) in enumerate(cells):
        left_px = index * step_px
        parts.append(f'<text class="strong" x="{left_px}" y="14">{escape(name)}</text>')
        parts += [
            f'<image href="{escape(picture)}" x="{left_px}" y="{_HEAD_PX + row * step_px}" '
            f'width="{_CELL_PX}" height="{_CELL_PX}" preserveAspectRatio="xMidYMin"/>'
            for row, picture in enumerate((above, below))
        ]
    return _svg(parts, len(cells) * step_px - _GAP_PX, _HEAD_PX + 2 * step_px - _GAP_PX, label)


def _bars(values: Sequence[tuple[str, float | None, float | None]], label: str) -> Markup:
    width_px, name_px, bar_px, row_px = 560, 150, 13, 40
    scale_px = 2 * (width_px - name_px - 60)
    parts = [f'<path class="axis" d="M{name_px} 0V{row_px * len(values) + 4}"/>']
    for index, (name, ours, theirs) in enumerate(values):
        top_px = index * row_px + 6
        parts.append(f'<text x="{name_px - 10}" y="{top_px + 18}" text-anchor="end">{escape(name)}</text>')
        for offset_px, css, value, words in (
            (0, "good", ours, "{:.3f}"),
            (bar_px + 2, "paper", theirs, "paper {:.2f}"),
        ):
            if value is None:
                continue
            long_px = max(1.0, scale_px * (value - 0.5))
            parts.append(
                f'<rect class="{css}" x="{name_px}" y="{top_px + offset_px}" width="{long_px:.1f}" '
                f'height="{bar_px}" rx="2"/>'
                f'<text class="{"strong" if css == "good" else ""}" x="{name_px + long_px + 6:.1f}" '
                f'y="{top_px + offset_px + 11}">{words.format(value)}</text>'
            )
    return _svg(parts, width_px + 20, row_px * len(values) + 8, label)


def _svg(parts: Sequence[str], width_px: int, height_px: int, label: str) -> Markup:
    # Every text has been escaped where it went in.
    return Markup(
        f'<svg class="drawing" viewBox="0 0 {width_px} {height_px}" role="img" aria-label="{escape(label)}" '
        f'style="max-width:{width_px}px;width:100%">{"".join(parts)}</svg>'
    )
