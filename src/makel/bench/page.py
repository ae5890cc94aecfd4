"""results.csv, tables.md, tables.html and the figures: all that is written of a benchmark's results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from makel import __version__
from makel.bench import figures, paper
from makel.bench.cells import join
from makel.bench.measure import METRICS
from makel.bench.store import write
from makel.bench.tables import GAP, HEADLINE, LEVELS, Entry, Record, Table, all_tables, columns, name_of
from makel.escapes import cell

TIMED = ("seconds_", "latency_", "peak_memory_mb")
"""How columns of results.csv begin whose values differ from run to run."""


def write_all(
    out: Path,
    records: Sequence[Record],
    categories: Sequence[str],
    times: dict[str, Any] | None,
    remarks: Sequence[str],
) -> None:
    """Write everything into a folder, each file whole or not at all.

    Args:
        out: The folder.
        records: Every cell with its result, in order.
        categories: The categories, in order.
        times: What `clock.race` gave, with its category; None where nothing was timed.
        remarks: What a person should know of the results as a whole.
    """
    write(out / "results.csv", results(records))
    levels = {level: all_tables(records, categories, level) for level in LEVELS}
    drawings = [*figures.pictures(records, categories), *figures.bars(levels[HEADLINE])]
    folder = out / "figures"
    folder.mkdir(exist_ok=True)
    for figure in drawings:
        write(folder / f"{figure.name}.svg", figure.to_file())
    clock = _clock_table(records, times)
    failures = [f"{record.cell.words()}: {_error(record)}" for record in records if not record.done]
    write(out / "tables.md", _markdown(levels, clock, drawings, failures, remarks))
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("makel.bench"), PackageLoader("makel.evaluation")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    page = environment.get_template("tables.html").render(
        title="makel benchmark",
        lead=_lead(records),
        source=paper.load()["source"],
        doi=paper.load()["doi"],
        licence=paper.load()["licence"],
        headline=levels[HEADLINE],
        others=[(LEVELS[level], tables) for level, tables in levels.items() if level != HEADLINE],
        clock=clock,
        pictures=[figure for figure in drawings if figure.name.startswith("figure4")],
        bars=[figure for figure in drawings if figure.name.startswith("figure5")],
        failures=failures,
        remarks=remarks,
        machines=sorted({record.result["machine"] for record in records if record.done}),
        commits=sorted({record.result["commit"] for record in records if record.result["commit"]}),
        makel_version=__version__,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write(out / "tables.html", page)


def results(records: Sequence[Record]) -> str:
    """One row a cell, as CSV; empty where a cell failed or a metric is undefined."""
    stages = list(dict.fromkeys(name for record in records for name in record.result.get("seconds", {})))
    text = io.StringIO()
    rows = [_row(record, stages) for record in records]
    table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _row(record: Record, stages: Sequence[str]) -> dict[str, Any]:
    cell, result = record.cell, record.result
    latency = result.get("latency_ms") or {}
    metrics = result.get("metrics", {})
    return {
        "category": cell.category,
        "method": cell.variant.method,
        "preset": cell.variant.preset,
        "backbone": cell.variant.backbone,
        "blocks": join(cell.variant.blocks),
        "size": cell.variant.size,
        "settings": cell.variant.settings,
        "seed": cell.seed,
        "status": result["status"],
        **{name: _short(metrics.get(name)) for name in METRICS},
        "n_fit": result.get("n_fit", ""),
        "n_calibrate": result.get("n_calibrate", ""),
        **{f"seconds_{stage}": result.get("seconds", {}).get(stage, "") for stage in stages},
        **{f"latency_{name}_ms": latency.get(name, "") for name in ("p50", "p95", "p99")},
        "peak_memory_mb": result.get("peak_memory_mb", ""),
        "model_mb": result.get("model_mb", ""),
        "warnings": " | ".join(result.get("warnings", [])),
        "makel": result["makel"],
        "versions": "; ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
        "machine": result.get("machine", ""),
        "commit": result["commit"],
        "error": _error(record),
    }


def _short(value: float | None) -> str | int:
    return "" if value is None else value if isinstance(value, int) else f"{value:.6f}"


def _error(record: Record) -> str:
    error = record.result["error"]
    return " ".join(f"{error['type']}: {error['message']}".split()) if error else ""


def _lead(records: Sequence[Record]) -> str:
    done = sum(record.done for record in records)
    categories = len({record.cell.category for record in records})
    of_cells = f"{len(records)} cell{'' if len(records) == 1 else 's'}"
    over = f"{categories} categor{'y' if categories == 1 else 'ies'}"
    text = f"{done} of {of_cells} measured, over {over}"
    return f"{text}." if done == len(records) else f"{text}; what is missing is shown as {GAP}."


def _clock_table(records: Sequence[Record], times: dict[str, Any] | None) -> dict[str, Any] | None:
    """Table 4: method, milliseconds median and 95th percentile, the same from the file, and the paper's."""
    if times is None or "error" in times:
        return None
    heads = columns(record.cell for record in records)
    rows = []
    for head in heads:
        printed = paper.load()["4"].get(head.method)
        found = times["times"].get(head.key)
        rows.append(
            {
                "name": name_of(head, heads),
                "median": f"{found['decoded']['median']:.2f}" if found else GAP,
                "p95": f"{found['decoded']['p95']:.2f}" if found else GAP,
                "from_file": f"{found['from_file']['median']:.2f}" if found else GAP,
                "calls": str(found["decoded"]["calls"]) if found else GAP,
                "paper": GAP if printed is None else f"{printed:g}",
            }
        )
    note = (
        f"Milliseconds for one image of {times['category']} ({', '.join(times['images'][:3])} px), one after the other "
        "in one process with nothing beside it: from decoded pixels to the verdict, thus resizing, network, map at the "
        "image's size, thresholds and regions; the column from file has reading and decoding as well, from "
        "the system's cache. "
        f"Ours: {times['machine']}. The paper: {paper.load()['device']}; what its clock holds it does not say."
    )
    return {"rows": rows, "note": note}


def _markdown(
    levels: dict[str, list[Table]],
    clock: dict[str, Any] | None,
    drawings: Sequence[figures.Figure],
    failures: Sequence[str],
    remarks: Sequence[str],
) -> str:
    lines = [
        "# Benchmark",
        "",
        "Each place holds ours (mean ± standard deviation over seeds) / the paper's / the difference; "
        f"{GAP} is what was not measured or not printed. The paper: {paper.load()['source']} {paper.load()['doi']}. "
        f"{paper.load()['licence']}",
        "",
        *(f"- {remark}" for remark in remarks),
    ]
    for level, tables in levels.items():
        for table in tables:
            lines += ["", f"## Table {table.number}: {table.title}", "", *_table_lines(table), ""]
            lines += [f"- {note}" for note in table.notes] if level == HEADLINE else []
        if level == HEADLINE and clock:
            lines += ["", "## Table 4: inference time, ms", "", clock["note"], ""]
            lines += ["| Method | median | p95 | from file | calls | paper |", "|:--|--:|--:|--:|--:|--:|"]
            keys = ("name", "median", "p95", "from_file", "calls", "paper")
            lines += ["| " + " | ".join(row[key] for key in keys) + " |" for row in clock["rows"]]
    lines += ["", "## Figures", "", *(f"- [{figure.caption}](figures/{figure.name}.svg)" for figure in drawings)]
    if failures:
        lines += ["", "## Failed cells", "", *(f"- {failure}" for failure in failures)]
    return "\n".join(lines) + "\n"


def _table_lines(table: Table) -> list[str]:
    def place(entry: Entry) -> str:
        if not table.compared:
            return entry.ours
        if entry.paper is None:
            return entry.ours
        return f"{entry.ours} / {entry.printed}" + (f" / {entry.difference}" if entry.by_seed else "")

    head = ["| Category | " + " | ".join(table.columns) + " |", "|:--|" + "--:|" * len(table.columns)]
    return [*head, *(f"| {name} | " + " | ".join(map(place, entries)) + " |" for name, entries in table.rows)]
