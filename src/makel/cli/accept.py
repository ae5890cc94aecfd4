"""`makel accept`: the acceptance test of a system, and how many parts it takes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from makel.cli.progress import Bars
from makel.cli.share import share
from makel.cli.terminal import put
from makel.errors import CODES, REJECTED_EXIT_CODE, ImageError, UsageError

if TYPE_CHECKING:
    from makel.evidence.agreement import Limits

app = typer.Typer(help="The acceptance test of a system: how many parts it takes, and what it finds.")

_LIMITS = "EFFECTIVENESS/MISSES/FALSE_ALARMS"


@app.command("plan")
def plan(
    miss: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="Share of defects that may pass, to be claimed.")
    ] = 0.02,
    false_reject: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="Share of good parts rejected, to be claimed.")
    ] = 0.05,
    confidence: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="How sure the claims shall be.")
    ] = 0.95,
    allowed: Annotated[int, typer.Option(min=0, max=50, help="Wrong verdicts to plan for, at most.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How many defective and how many good parts a claim takes, if so many verdicts may be wrong."""
    from makel.evidence.sample_size import plan as plan_for

    claims = {"defective": miss, "good": false_reject}
    plans = {
        what: [plan_for(rate, confidence=confidence, allowed=count) for count in range(allowed + 1)]
        for what, rate in claims.items()
    }
    if as_json:
        rows = {what: [{"allowed": each.allowed, "parts": each.parts} for each in of] for what, of in plans.items()}
        put(json.dumps({"confidence": confidence, "claims": claims, "plans": rows}))
        return
    for what, of in plans.items():
        verb = "pass" if what == "defective" else "are rejected"
        put(f"at most {100 * claims[what]:g} % of {what} parts {verb}, claimed with {100 * confidence:g} % confidence:")
        for each in of:
            chance = each.chance(claims[what] / 4)
            put(
                f"  {each.parts:6d} {what} parts, if {each.allowed or 'none'} of them may be judged wrongly; a system "
                f"four times as good succeeds in {100 * chance:.0f} % of such tests"
            )


@app.command("run")
def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    data: Annotated[
        Path, typer.Argument(metavar="STUDY", help="good/PART/ and KIND/PART/ with an image for each presentation.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report.", show_default="MODEL-acceptance")
    ] = None,
    appraisers: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="What people said: columns appraiser, part, trial, verdict."),
    ] = None,
    limits: Annotated[str, typer.Option(metavar=_LIMITS, help="What has to be reached, in percent.")] = "90/2/5",
    marginal: Annotated[str, typer.Option(metavar=_LIMITS, help="What still is marginal, in percent.")] = "80/5/10",
    pdf: Annotated[bool, typer.Option("--pdf", help="Print the report as PDF too: needs makel[pdf].")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use at most.")] = None,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Present parts to a model, compare it with the reference, itself and people. Exit code 1 if not acceptable."""
    from makel.evidence.acceptance import accept
    from makel.evidence.acceptance_report import write_acceptance_report
    from makel.model.inspector import Inspector

    asked, still = parse_limits("--limits", limits), parse_limits("--marginal", marginal)
    inspector = Inspector.load(model, threads=threads, provider=provider)
    with Bars(quiet=quiet) as bars:
        found = accept(inspector, data, appraisers=appraisers, limits=asked, marginal=still, progress=bars)
    here = Path(os.path.abspath(model))  # noqa: PTH100 - resolve() would put the report beside a link's target
    folder = out or here.with_name(f"{here.name}-acceptance")
    written = write_acceptance_report(folder / "acceptance.html", found, pdf=pdf)
    (folder / "acceptance.json").write_text(json.dumps(found.to_json(), indent=1), encoding="utf-8")
    if as_json:
        put(json.dumps(found.to_json()))
    else:
        put(*found.lines(), *(f"{'report':14} {path}" for path in written))
    for remark in found.remarks():
        put(f"makel: {remark}", error=True)
    if found.failures:
        raise typer.Exit(CODES[ImageError][0])
    if found.grade != "acceptable":
        raise typer.Exit(REJECTED_EXIT_CODE)


def parse_limits(option: str, text: str) -> Limits:
    """Three percentages as they are written on the command line, "90/2/5".

    Raises:
        UsageError: They are not three numbers between 0 and 100.
    """
    from makel.evidence.agreement import Limits

    try:
        effectiveness, miss, alarm = (float(each) / 100 for each in text.split("/"))
        return Limits(effectiveness, miss, alarm)
    except (ValueError, UsageError) as error:
        raise UsageError(
            f"{option} {text!r} cannot be read: give three percentages, {_LIMITS.lower()}, such as 90/2/5"
        ) from error
