"""`makel golden`: the golden suite of a model, which another reader of it is checked with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from makel.cli.terminal import put

app = typer.Typer(help="The golden suite of a model: what another reader of it, or another machine, must come to.")


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


@app.command("check")
def check(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    suite: Annotated[Path, typer.Argument(metavar="SUITE", help="What `makel golden export` wrote of it.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use at most.")] = None,
) -> None:
    """Run a golden suite again on this machine and provider. Exit code 8 if a step or a verdict differs."""
    from makel.evidence.golden_check import check as run
    from makel.model.inspector import Inspector

    found = run(Inspector.load(model, threads=threads, provider=provider), suite)
    if as_json:
        put(json.dumps(found.to_json()))
        return
    put(f"{found.n_cases} images of model {found.model_id} on {provider}: every verdict is the same")
    for what, value in vars(found.worst).items():
        put(f"{what:16} differs by at most {value:.2g} (allowed {found.tolerances[what]:.2g})")
