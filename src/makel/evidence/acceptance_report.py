"""The page of an acceptance test: to be read, printed and signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from makel import __version__
from makel.errors import MissingExtraError
from makel.evaluation.pictures import data_uri, thumbnail
from makel.evaluation.protocol import Rate
from makel.evidence.acceptance import Acceptance
from makel.evidence.agreement import Agreement
from makel.images import read_reduced
from makel.types import in_px

_SHOWN = 24
"""Presentations with a wrong verdict that have a picture; all are in the table."""

_PICTURE_PX = 220


def write_acceptance_report(target: Path, found: Acceptance, *, pdf: bool = False) -> list[Path]:
    """Write what was found as one HTML page, and as PDF where that is asked for.

    Args:
        target: The HTML file; its folder is made where absent. The PDF stands beside it.
        found: From `makel.evidence.acceptance.accept`.
        pdf: Whether to print it, which takes WeasyPrint.

    Returns:
        The files that were written.

    Raises:
        MissingExtraError: A PDF was asked for, and WeasyPrint is not installed; nothing was written.
        OSError: A file cannot be written.
    """
    printer = _printer() if pdf else None
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("makel.evidence"), PackageLoader("makel.evaluation")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    text = environment.get_template("acceptance.html").render(_page(found))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8", errors="backslashreplace")
    if printer is None:
        return [target]
    printed = target.with_suffix(".pdf")
    printer(string=text).write_pdf(printed)
    return [target, printed]


def _printer() -> Any:
    try:
        from weasyprint import HTML
    except (ImportError, OSError) as error:  # OSError: its libraries in C are missing
        raise MissingExtraError("a PDF", "pdf") from error
    return HTML


def _page(found: Acceptance) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "title": f"Acceptance test of {found.study}",
        "makel_version": __version__,
        "found": found,
        "grade": found.grade,
        "n_good": sum(not part.defective for part in found.parts),
        "n_bad": sum(part.defective for part in found.parts),
        "kinds": sorted({part.kind for part in found.parts if part.defective}),
        "remarks": [{"doubt": True, "text": text} for text in found.remarks()],
        "inspectors": [_row(each, found) for each in found.inspectors],
        "between": found.between
        and {
            "kappa": _kappa(found.between.kappa),
            "all_agree": _cell(found.between.all_agree),
            "all_right": _cell(found.between.all_right),
            "pairs": [(one, other, _kappa(kappa)) for one, other, kappa in found.between.pairs],
        },
        "wrong": _wrong(found),
        "failures": [f"{each.part}: {each.reason}" for each in found.failures],
        "system": [
            ("model", manifest.model_id),
            ("method", f"{manifest.method.name}, preset {manifest.method.preset}"),
            ("input", f"{in_px(manifest.preprocessing.shape)} (width x height)"),
            ("threshold", f"{manifest.calibration.image_threshold:.6g}"),
            ("promise", manifest.calibration.explain()),
            ("fitted on", f"{manifest.provenance.data_name}, SHA-256 {manifest.provenance.data_digest}"),
        ],
        "environment": list(found.environment.items()),
        "rows": [
            {
                "part": part.name,
                "reference": "defective" if part.defective else "good",
                "verdicts": [
                    {"word": "reject" if each.rejected else "pass", "wrong": each.rejected != part.defective}
                    for each in found.presentations
                    if each.part == part.name
                ],
            }
            for part in found.parts
        ],
    }


def _row(each: Agreement, found: Acceptance) -> dict[str, Any]:
    return {
        "name": each.name,
        "grade": each.grade(found.limits, found.marginal),
        "effectiveness": _cell(each.effectiveness),
        "miss_rate": _cell(each.miss_rate),
        "false_alarm_rate": _cell(each.false_alarm_rate),
        "repeatability": _cell(each.repeatability),
        "kappa_reference": _kappa(each.kappa_reference),
        "kappa_within": _kappa(each.kappa_within),
    }


def _cell(rate: Rate) -> dict[str, Any]:
    interval = rate.interval_95
    if rate.value is None or interval is None:
        return {"value": "–", "of": "none presented", "interval": ""}
    return {
        "value": f"{100 * rate.value:.1f} %",
        "of": f"{rate.count} of {rate.of}",
        "interval": f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %",
    }


def _kappa(kappa: float | None) -> str:
    return "undefined" if kappa is None else f"{kappa:.3f}"


def _wrong(found: Acceptance) -> list[dict[str, str]]:
    defective = {part.name: part.defective for part in found.parts}
    wrong = [each for each in found.presentations if each.rejected != defective[each.part] and not each.reason]
    white_level = found.manifest.preprocessing.white_level
    return [
        {
            "name": f"{each.part}/{each.image.name}",
            "what": "missed" if defective[each.part] else "false alarm",
            "score": f"{each.score:.4g}",
            "image": data_uri(
                thumbnail(read_reduced(each.image, _PICTURE_PX), white_level=white_level, side_px=_PICTURE_PX)
            ),
        }
        for each in wrong[:_SHOWN]
    ]
