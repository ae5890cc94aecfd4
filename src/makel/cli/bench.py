"""`makel bench`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from makel.cli.extras import require
from makel.cli.progress import Bars
from makel.cli.terminal import put
from makel.errors import CODES, TrainingError

if TYPE_CHECKING:
    from makel.bench.run import News


class Engine(StrEnum):
    """What runs the cells."""

    process = "process"
    ray = "ray"


def bench(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A TOML file: data, and grids of what to measure.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of results; run again to go on.")],
    engine: Annotated[Engine, typer.Option(help="Processes on this machine, or a Ray cluster.")] = Engine.process,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at once.", show_default="processors / threads a cell")
    ] = None,
    data: Annotated[list[Path] | None, typer.Option(help="Folder in place of the file's data; repeatable.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Measure failed cells again.")] = False,
    keep_features: Annotated[bool, typer.Option("--keep-features", help="Leave shared features in DIR.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars, no line a cell.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a cell.")] = False,
) -> None:
    """Measure methods, backbones, blocks, categories and seeds, and write the paper's tables with ours beside."""
    require("fit", "makel bench")
    from makel.bench.run import run

    def tell(news: News) -> None:
        if as_json:
            result = {key: value for key, value in news.record.result.items() if key != "picture"}
            put(json.dumps(result))
        elif not quiet:
            put(_line(news))

    with Bars(quiet=quiet) as bars:
        summary = run(
            spec,
            out,
            engine=engine.value,
            workers=workers,
            data=data or (),
            retry=retry,
            keep_features=keep_features,
            tell=tell,
            progress=bars,
        )
    if not as_json:
        known = len(summary.records) - summary.measured
        put(
            f"cells      {summary.measured} measured now, {known} before, {len(summary.failed)} failed",
            *(f"remark     {remark}" for remark in summary.remarks),
            f"results    {summary.out / 'results.csv'}",
            f"tables     {summary.out / 'tables.html'}",
        )
    if summary.failed:
        for record in summary.failed:
            error = record.result["error"]
            put(f"failed: {record.cell.words()}: {error['type']}: {error['message']}", error=True)
        what = "cell" if len(summary.failed) == 1 else "cells"
        put(f"makel: {len(summary.failed)} {what} failed: mend the cause and run again with --retry", error=True)
        raise typer.Exit(CODES[TrainingError][0])


def _line(news: News) -> str:
    record, left = news.record, f", {news.left_s / 60:.0f} min left" if news.left_s >= 60 else ""
    head = f"[{news.done}/{news.total}{left}] {record.cell.words()}"
    if not record.done:
        return f"{head}: {record.result['error']['type']}: {record.result['error']['message']}"
    metrics = [
        f"{name} {'–' if value is None else format(value, '.3f')}"
        for name, value in (
            ("pixels", record.metric("pixel_auroc")),
            ("images", record.metric("image_auroc")),
            ("AUPRO", record.metric("aupro_30")),
        )
    ]
    return f"{head}: {', '.join(metrics)}, {record.result['seconds']['cell']:.1f} s"
