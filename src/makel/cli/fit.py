"""`makel fit`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from makel.cli.extras import require
from makel.cli.progress import Bars, say
from makel.cli.share import share
from makel.cli.terminal import put
from makel.errors import UsageError

LEAST_SIZE_PX = 32


class Calibrate(StrEnum):
    """Where the good images come from that thresholds are taken from."""

    holdout = "holdout"
    cross = "cross"


def fit(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A category in MVTec AD layout, or any folder of good images.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="MODEL", help="The model folder to write.")],
    method: Annotated[str, typer.Option(help="How to learn.")] = "skip_ae",
    preset: Annotated[str, typer.Option(help="fast, or paper for the published settings.")] = "fast",
    backbone: Annotated[str | None, typer.Option(help="Where features come from: see 'makel weights list'.")] = None,
    blocks: Annotated[str | None, typer.Option(help="Backbone blocks to use, such as 2,3.", metavar="N,N")] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="PX|WxH", help="What the model sees: as many pixels as a square of PX, or this width x height."
        ),
    ] = None,
    augment: Annotated[
        bool, typer.Option("--augment", help="Fit on jittered copies of every image as well: for a few good images.")
    ] = False,
    tile: Annotated[
        int | None, typer.Option(min=32, help="Cut images into tiles of this side, in their own pixels.")
    ] = None,
    overlap: Annotated[str, typer.Option(help="Pixels that tiles share; auto for a quarter of one.")] = "auto",
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None,
    false_reject: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="Share of good parts that may be rejected.")
    ] = 0.01,
    calibrate: Annotated[
        Calibrate, typer.Option(help="Take thresholds from held-out images, or cross-fitted for small sets.")
    ] = Calibrate.holdout,
    holdout: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="Share of the good images to hold out.")
    ] = 0.2,
    latency_budget: Annotated[
        float | None,
        typer.Option(metavar="MS", help="Choose size and backbone so that an image takes at most so long here."),
    ] = None,
    zones: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Zones and minimum defect size: see docs/zones.md.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX", help="What in an image's path names its part, strip or lot, which is held out as a whole."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same model.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use at most.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted fit of the same settings.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
    json_progress: Annotated[
        bool, typer.Option("--json-progress", help="Progress as JSON lines on stderr, for programs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Learn from good images what a product looks like, and write a model folder."""
    chosen, shape = parse_blocks(blocks), parse_size(size)
    require("fit", "makel fit")
    from makel.training.fit import fit as fit_model

    if threads:
        import torch

        torch.set_num_threads(threads)
    with Bars(quiet=quiet, as_json=json_progress) as bars:
        summary = fit_model(
            data,
            out,
            method=method,
            preset=preset,
            backbone=backbone,
            blocks=chosen,
            size=shape,
            augment=augment,
            tile=tile,
            overlap=overlap,
            epochs=epochs,
            false_reject=false_reject,
            calibrate=calibrate.value,
            holdout=holdout,
            latency_budget=latency_budget,
            zones=zones,
            group=group,
            seed=seed,
            device=device,
            resume=resume,
            progress=bars,
        )
    put(*([json.dumps(summary.to_json())] if as_json else summary.lines()))
    if not json_progress:
        say(summary.notes)


def parse_blocks(text: str | None) -> tuple[int, ...] | None:
    """Block numbers as they are written on the command line, "2,3"; None where nothing was said.

    Raises:
        UsageError: Not whole numbers with commas between.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--blocks {text!r} cannot be read: give block numbers with commas, such as 2,3") from error


def parse_size(text: str | None) -> int | tuple[int, int] | None:
    """A size as it is written on the command line: a number, or width x height as in "640x256", for (height, width).

    Raises:
        UsageError: Neither, or a side is below `LEAST_SIZE_PX`.
    """
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() and len(side) < 6 for side in sides):
        raise UsageError(
            f"--size {text!r} cannot be read: give a number of pixels such as 384, or width x height such as 640x256"
        )
    numbers = [int(side) for side in sides]
    if min(numbers) < LEAST_SIZE_PX:
        raise UsageError(f"--size {text} is too small to show anything: give at least {LEAST_SIZE_PX} pixels a side")
    return (numbers[1], numbers[0]) if len(numbers) == 2 else numbers[0]
