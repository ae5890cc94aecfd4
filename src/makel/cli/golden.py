"""`makel golden`: the golden suite of a model, which another reader of it is checked with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from makel.cli.terminal import put

app = typer.Typer(help="The golden suite of a model: what another reader of it, or another machine, must come to.")


@app.callback()
def _golden() -> None:
    """Keep `export` a command of its own, however many there are."""


@app.command("export")
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder for the suite; new, or empty.")],
    seed: Annotated[int, typer.Option(min=0, help="What positions and noise are drawn with.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write images with all that makel makes of them, step by step, in files that any language reads."""
    from makel.evidence.golden_suite import SUITE_NAME
    from makel.evidence.golden_suite import export as write
    from makel.model.inspector import Inspector

    suite = write(Inspector.load(model, threads=1), out, seed=seed)
    verdicts = [case["verdict"]["verdict"] for case in suite["cases"]]
    if as_json:
        put(
            json.dumps(
                {"model_id": suite["model_id"], "n_cases": len(verdicts), "n_rejected": verdicts.count("reject")}
            )
        )
        return
    put(f"{out / SUITE_NAME}: {len(verdicts)} images of model {suite['model_id']}, {verdicts.count('reject')} rejected")
    put("it holds pictures made of the model's golden images: treat them like those")
