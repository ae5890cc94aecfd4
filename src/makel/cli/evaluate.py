"""`makel evaluate`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from makel.cli.into_model import refuse_in_model
from makel.cli.progress import Bars, say
from makel.cli.terminal import put
from makel.errors import CODES, ImageError


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="A category in MVTec AD layout, or good images beside defect folders."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for report.html.", show_default="MODEL-evaluation")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use at most.")] = None,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Measure a model on labelled images, and write a report that opens in any browser."""
    from makel.api import evaluate as evaluate_model
    from makel.evaluation.report import write_evaluation_report
    from makel.model.inspector import Inspector

    if out is not None:
        refuse_in_model(out, model)
    inspector = Inspector.load(model, threads=threads, provider=provider)
    with Bars(quiet=quiet) as bars:
        evaluation = evaluate_model(inspector, data, progress=bars)
    here = Path(os.path.abspath(model))  # noqa: PTH100 - resolve() would put the report beside a link's target
    report = (out or here.with_name(f"{here.name}-evaluation")) / "report.html"
    write_evaluation_report(report, evaluation, data_name=Path(os.path.abspath(data)).name)  # noqa: PTH100
    if as_json:
        put(json.dumps(evaluation.to_json()))
    else:
        put(*evaluation.lines(), f"report         {report}")
    lines = (evaluation.refusals(), evaluation.unmarked(), evaluation.seen(), *evaluation.masks_read())
    say(filter(None, (*evaluation.notes, *lines)))
    if evaluation.failures:
        n_masks = len(evaluation.failures) - len(evaluation.refused)
        if n_masks:
            put(f"makel: {n_masks} mask{'' if n_masks == 1 else 's'} could not be used", error=True)
        raise typer.Exit(CODES[ImageError][0])
