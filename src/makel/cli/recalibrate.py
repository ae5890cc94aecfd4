"""`makel recalibrate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from makel.cli.progress import Bars, say
from makel.cli.share import share
from makel.cli.terminal import put


def recalibrate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    data: Annotated[Path, typer.Argument(metavar="GOOD_IMAGES", help="Good images that the model was not fitted on.")],
    out: Annotated[Path, typer.Option("--out", metavar="MODEL2", help="The model folder to write.")],
    false_reject: Annotated[
        float | None,
        typer.Option(
            parser=share,
            metavar="SHARE",
            help="Share of good parts that may be rejected.",
            show_default="the model's own",
        ),
    ] = None,
    join: Annotated[
        bool, typer.Option("--join", help="Keep the scores of the present thresholds beside the fresh ones.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use at most.")] = None,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Give a model new thresholds from fresh good images, without fitting."""
    from makel.api import recalibrate as renew

    with Bars(quiet=quiet) as bars:
        done = renew(
            model, data, out, false_reject=false_reject, join=join, threads=threads, provider=provider, progress=bars
        )
    put(*([json.dumps(done.to_json())] if as_json else done.lines()))
    say(done.notes)
