"""`makel weights`: the backbones' ImageNet weights on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from makel.cli.extras import require
from makel.cli.terminal import put

app = typer.Typer(help="List, add or check backbone weights.")


@app.command("list")
def show(as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False) -> None:
    """List the backbones by short name, and whether their weights are on this machine."""
    require("fit", "makel weights")
    from makel.training.weights import Weights, known

    absent = False
    for facts, found in known():
        row = {"name": facts.name, "timm": facts.tag, "licence": facts.licence}
        if isinstance(found, Weights):
            row |= {"source": found.source, "sha256": found.sha256}
            state = f"here ({found.source})"
        else:
            absent = True
            row |= {"error": str(found)}
            state = "not here"
        put(json.dumps(row) if as_json else f"{facts.name:20} {facts.licence:14} {state}")
    if absent and not as_json:
        put("'makel weights check NAME' says how to get one that is not here.")


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A backbone: see 'makel weights list'.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Its weights: .safetensors, .pth or .pt.")],
) -> None:
    """Check a weight file and keep a copy, so that the backbone works on this machine without a network."""
    require("fit", "makel weights")
    from makel.training.weights import add as add_weights

    added = add_weights(name, file)
    put(f"added {added.facts.name}: {added.path}, SHA-256 {added.sha256}")


@app.command("check")
def check(name: Annotated[str, typer.Argument(metavar="NAME", help="A backbone: see 'makel weights list'.")]) -> None:
    """Load the weights of a backbone on this machine and compare them with its architecture, key by key."""
    require("fit", "makel weights")
    from makel.training.weights import check as check_weights

    weights, numbers = check_weights(name)
    put(
        f"{weights.facts.name} is right: {numbers:,} numbers match timm's {weights.facts.tag}; {weights.source}, "
        f"{weights.facts.licence} ({weights.facts.licence_source}), SHA-256 {weights.sha256}"
    )
