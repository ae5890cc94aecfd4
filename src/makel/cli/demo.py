"""`makel demo`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from makel.cli.extras import require
from makel.cli.progress import Bars
from makel.cli.terminal import put
from makel.errors import UsageError

N_FIT, N_GOOD, N_DEFECT = 95, 30, 30
FALSE_REJECT = 0.05
"""What 19 held-out images can promise: a fifth of the 95."""

_PARTS = {"data", "model", "evaluation"}


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for pictures, model and report.")] = Path("makel-demo"),
    seed: Annotated[int, typer.Option(help="Same seed, same pictures and model.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bars.")] = False,
) -> None:
    """Make up a small line of parts, fit, evaluate, and say where the report is."""
    require("fit", "makel demo")
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= _PARTS):
        raise UsageError(f"{out} holds other things than a demo, which would replace them: choose another --out")
    from makel.api import evaluate
    from makel.datasets import synthetic
    from makel.evaluation.report import write_evaluation_report
    from makel.training.fit import fit

    data, model, report = out / "data", out / "model", out / "evaluation" / "report.html"
    if data.exists():
        shutil.rmtree(data)
    with Bars(quiet=quiet) as bars:
        bars("pictures", 0, None)
        synthetic.write(data, n_fit=N_FIT, n_good=N_GOOD, n_defect=N_DEFECT, seed=seed)
        bars("pictures", 1, 1)
        fitted = fit(data, model, false_reject=FALSE_REJECT, seed=seed, progress=bars).manifest
        evaluation = evaluate(model, data, progress=bars)
    write_evaluation_report(report, evaluation, data_name="makel demo")
    said = evaluation.to_json()
    rejects, misses, latency = evaluation.false_rejects, evaluation.misses, said["latency_ms"]
    put(f"line      {N_FIT} good parts to learn from, {N_GOOD} good and {N_DEFECT} with defects to test: {data}")
    put(
        f"fit       {fitted.provenance.n_fit} images in {fitted.fit.seconds['total']:.0f} s, "
        f"{fitted.provenance.n_calibrate} held out: "
        f"at most {100 * fitted.calibration.promised_false_reject:.1f} % false rejects promised"
    )
    put(
        f"ranking   AUROC of images {said['image_auroc']:.4f}, of pixels {said['pixel_auroc']:.4f}, "
        f"AUPRO {said['aupro_30']:.4f}"
    )
    put(
        f"verdicts  {rejects.count} of {rejects.of} good parts rejected, {misses.count} of {misses.of} defects missed, "
        f"{latency['p50']:.0f} ms an image"
    )
    put(f"report    {report.resolve()}")
