"""The pages: one HTML file each, readable without a network, holding what a person needs to trust or doubt a model."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import ceil
from os.path import commonpath
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from makel import __version__
from makel.calibration import Calibration, images_needed
from makel.evaluation import plots
from makel.evaluation.pictures import Exhibit, Group, Heat, colours, data_uri, outline_truth, thumbnail
from makel.evaluation.protocol import LARGE_SIDE_PX, Evaluation, Outcome, Rate, figure
from makel.images import Preparation, open_rows, prepare, read, read_reduced, reduction, shown
from makel.model.layout import outline
from makel.model.manifest import Draft
from makel.model.map_store import MapStore, reduce_peaks
from makel.model.overlay import draw_zones
from makel.model.scan import Run, Scan
from makel.model.tiling import Tiling
from makel.model.zones import Zones
from makel.types import in_px

DOUBTFUL = 6
"""Good images a fit report shows."""

_LISTED = 1000
"""Rows of the longest tables: with every image of a large test set a page would be slow and over its size."""

_PLAN_PX = 520
"""Longer side of the picture in which zones have their names."""

_OUTLYING = 3.5
"""Robust z-score from which one of many good images counts as an outlier (Iglewicz and Hoaglin 1993)."""

_GROUPS: dict[Group, tuple[str, str]] = {
    "missed": ("Missed defects", "Defects that pass, the lowest score first."),
    "false reject": ("False rejects", "Good images that are rejected, the highest score first."),
    "barely caught": ("Barely caught", "Rejected defects closest to the threshold."),
    "nearly rejected": ("Nearly rejected", "Good images that pass, the highest score first."),
    "clearly caught": ("Clearly caught", "Rejected defects with the highest scores."),
}


@dataclass(frozen=True)
class DoubtfulImage:
    """A good image that scores high.

    Attributes:
        path: The image file.
        score: Raw score, from a model that did not see the image.
        image: Decoded pixels, any size.
        anomaly_map: (H, W) float32.
    """

    path: Path
    score: float
    image: NDArray[Any] = field(repr=False)
    anomaly_map: NDArray[np.float32] = field(repr=False)


def find_doubtful(
    paths: Sequence[Path],
    scores: Sequence[float] | NDArray[np.floating],
    run: Run,
    preparation: Preparation,
    *,
    tiling: Tiling | None = None,
    limit: int = DOUBTFUL,
) -> tuple[DoubtfulImage, ...]:
    """The good images a person should look at: those with the highest scores.

    Args:
        paths: (n,) good images that the thresholds come from.
        scores: (n,) their scores.
        run: Prepared images (N, 3, H, W) → scores and maps: `Session.run` or `Inspector.scores`.
        preparation: How the model takes images.
        tiling: How it cuts them; image and map are then reduced to what a page shows.
        limit: How many.

    Returns:
        At most `limit`, the highest score first.

    Raises:
        ImageError: One of them can no longer be read.
    """
    chosen = np.argsort(-np.asarray(scores, np.float64), kind="stable")[:limit]
    found = []
    for index in chosen:
        if tiling is None:
            image = read(paths[index])
            anomaly_map = run(prepare(image, preparation, name=shown(paths[index]))[np.newaxis]).anomaly_map[0, 0]
        else:
            image = read_reduced(paths[index], LARGE_SIDE_PX)
            anomaly_map = _scan(paths[index], run, preparation, tiling)
        found.append(DoubtfulImage(paths[index], float(scores[index]), image, anomaly_map))
    return tuple(found)


def _scan(path: Path, run: Run, preparation: Preparation, tiling: Tiling) -> NDArray[np.float32]:
    """The map of an image in tiles, reduced as `read_reduced` reduces the image."""
    with open_rows(path) as rows:
        store = MapStore(*rows.shape[:2])
        for band in Scan(rows, tiling, preparation, run, name=shown(path)).bands():
            store.add(band)
        return reduce_peaks(store.finish(), reduction(rows.shape, LARGE_SIDE_PX))


def write_evaluation_report(target: Path, evaluation: Evaluation, *, data_name: str = "") -> None:
    """Write what an evaluation found as one HTML page.

    Args:
        target: The file; its folder is made where absent.
        evaluation: From `makel.evaluation.protocol.evaluate`.
        data_name: What to call the images in the heading.

    Raises:
        OSError: The file cannot be written.
    """
    manifest, calibration = evaluation.manifest, evaluation.manifest.calibration
    zones = manifest.zones or Zones()
    heat = Heat.over([exhibit.anomaly_map for exhibit in evaluation.gallery], calibration.pixel_threshold)
    names = _Names([outcome.path for outcome in evaluation.outcomes])
    ranked = sorted(evaluation.outcomes, key=lambda outcome: -outcome.score)
    good = [outcome.score for outcome in evaluation.outcomes if outcome.label == "good"]
    defect = [outcome.score for outcome in evaluation.outcomes if outcome.label == "defect"]
    page = {
        "title": f"Evaluation {data_name} {manifest.model_id}".replace("  ", " "),
        "heading": data_name or "Evaluation",
        "subtitle": f"model {manifest.model_id} · {_method(manifest)}",
        "lead": _lead(evaluation),
        "confusion": [
            _confusion_row("good", evaluation.false_rejects, pass_is_right=True),
            _confusion_row("defect", evaluation.misses, pass_is_right=False),
        ],
        "threshold": f"{calibration.image_threshold:.4g}",
        "n_seen": evaluation.n_seen,
        "lists_seen": bool(evaluation.manifest.seen_hashes),
        "histogram": plots.score_histogram(
            good, defect, calibration.image_threshold, upper_name="good", lower_name="defect"
        ),
        "remarks": _remarks(evaluation),
        "tiles": _tiles(evaluation),
        "roc": _roc(evaluation),
        "pro": _pro(evaluation),
        "n_regions": _count(evaluation.pixel.n_regions, "region"),
        "kinds": [
            {
                "name": kind.kind,
                "of": kind.misses.of,
                "missed": kind.misses.count,
                "bar": plots.interval_bar(kind.misses.value, kind.misses.interval_95),
                "interval": _interval(kind.misses),
                "image_auroc": _figure(kind.image.auroc),
                "pixel_auroc": _figure(kind.pixel.auroc),
                "aupro": _figure(kind.pixel.aupro_30),
            }
            for kind in evaluation.per_kind
        ],
        "scale": _scale(heat),
        "groups": [
            {
                "title": title,
                "text": text,
                "exhibits": [_exhibit(each, heat, names, zones) for each in evaluation.gallery if each.group == group],
            }
            for group, (title, text) in _GROUPS.items()
            if any(each.group == group for each in evaluation.gallery)
        ],
        "latency": _latency(evaluation),
        "promise": calibration.explain(),
        "zones": _zones(zones, calibration, evaluation.gallery[0].image if evaluation.gallery else None),
        "blank_masks": [shown(path) for path in evaluation.blank_masks[:_LISTED]],
        "more_blank_masks": max(0, len(evaluation.blank_masks) - _LISTED),
        "failures": [reason for _, reason in evaluation.failures[:_LISTED]],
        "more_failures": max(0, len(evaluation.failures) - _LISTED),
        "provenance": [
            {
                "title": "The measurement",
                "rows": [
                    ("images", f"{evaluation.false_rejects.of} good, {evaluation.misses.of} with defects"),
                    (
                        "not judged",
                        f"{evaluation.n_refused('good')} of the good and {evaluation.n_refused('defect')} of those "
                        "with defects: they count as rejected and have no score",
                    ),
                    (
                        "not used",
                        f"{_count(len(evaluation.failures) - len(evaluation.refused), 'mask')}, "
                        f"{evaluation.n_unlabelled} without a label",
                    ),
                    (
                        "pixels",
                        f"{evaluation.pixel.n_good:,} good, {evaluation.pixel.n_defect:,} defect, in "
                        f"{_count(evaluation.pixel.n_regions, 'region')}, at the model's input size",
                    ),
                    ("exactness", "exact" if evaluation.pixel.exact else "scores rounded to share histogram bins"),
                    ("took", f"{evaluation.seconds:.1f} s"),
                    ("machine", f"{platform.machine()} {platform.system()}, Python {platform.python_version()}"),
                    ("runtime", f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}"),
                ],
            },
            *_provenance(manifest),
        ],
        "outcomes": [_outcome_row(outcome, names) for outcome in ranked[:_LISTED]],
        "more_outcomes": max(0, len(ranked) - _LISTED),
    }
    _write(target, "evaluation.html", page)


def write_fit_report(
    target: Path,
    draft: Draft,
    *,
    losses: Sequence[float] = (),
    doubtful: Sequence[DoubtfulImage] = (),
    unreadable: Sequence[str] = (),
) -> None:
    """Write how a fit went as one HTML page; it becomes part of the model folder.

    Args:
        target: The file; its folder is made where absent.
        draft: Everything known about the model. It has no `model_id` yet: that is a hash of this page too.
        losses: Mean loss of each pass; empty for closed-form methods.
        doubtful: From `find_doubtful`.
        unreadable: One line for each good image that was left out.

    Raises:
        OSError: The file cannot be written.
    """
    calibration, provenance = draft.calibration, draft.provenance
    cross = calibration.scheme == "cross"
    zones, white_level = draft.zones or Zones(), draft.preprocessing.white_level
    heat = Heat.over([each.anomaly_map for each in doubtful], calibration.pixel_threshold)
    names = _Names([each.path for each in doubtful])
    page = {
        "title": f"Fit of {provenance.data_name}",
        "heading": provenance.data_name,
        "subtitle": _method(draft),
        "lead": _fit_lead(draft),
        "promise": calibration.explain(),
        "zones": _zones(
            zones,
            calibration,
            thumbnail(doubtful[0].image, white_level=white_level, side_px=_PLAN_PX) if doubtful else None,
        ),
        "asked": _percent(calibration.requested_false_reject),
        "promised": f"{_percent(calibration.promised_false_reject)} false rejects",
        "cross": cross,
        "image_threshold": f"{calibration.image_threshold:.4g}",
        "pixel_threshold": f"{calibration.pixel_threshold:.4g}",
        "n_calibrate": calibration.n,
        "histogram": plots.score_histogram(
            calibration.image_scores, (), calibration.image_threshold, upper_name="good", lower_name=""
        ),
        "remarks": _fit_remarks(draft, losses, len(unreadable)),
        "scale": _scale(heat),
        "doubtful": [
            {
                "name": names[each.path],
                "image": _picture(picture := thumbnail(each.image, white_level=white_level), zones),
                "heat": _picture(heat.draw(each.anomaly_map, (picture.shape[0], picture.shape[1])), zones),
                "score": f"{each.score:.4g}",
                "standing": _standing(each.score, calibration),
            }
            for each in doubtful
        ],
        "losses": plots.loss_plot(losses) if len(losses) > 1 and np.isfinite(losses).all() else None,
        "seconds": plots.bar_list(
            {name: value for name, value in draft.fit.seconds.items() if name != "total"}, unit="s"
        ),
        "total_seconds": f"{draft.fit.seconds.get('total', sum(draft.fit.seconds.values())):.1f}",
        "machine": provenance.machine,
        "steps": _steps(draft),
        "unreadable": list(unreadable[:_LISTED]),
        "more_unreadable": max(0, len(unreadable) - _LISTED),
        "provenance": _provenance(draft),
    }
    _write(target, "fit.html", page)


def _write(target: Path, template: str, page: dict[str, Any]) -> None:
    environment = Environment(
        loader=PackageLoader("makel.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template(template).render(
        page, makel_version=__version__, written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name that is not text on this system must not cost the page.
    target.write_text(text, encoding="utf-8", errors="backslashreplace")


class _Names:
    """Paths as a page shows them: without the folders that all have in common."""

    def __init__(self, paths: Sequence[Path]) -> None:
        parents = {str(path.absolute().parent) for path in paths}
        # With a single folder its own name still tells what the files are.
        self._root = Path(commonpath(parents)) if len(parents) > 1 else None

    def __getitem__(self, path: Path) -> str:
        inside = path.absolute().relative_to(self._root) if self._root else Path(*path.parts[-2:])
        return shown(inside.as_posix())


def _lead(evaluation: Evaluation) -> Markup:
    """The one sentence to read."""
    rejects, misses = evaluation.false_rejects, evaluation.misses
    parts = []
    if rejects.of:
        parts.append(
            Markup("Of {} it rejects <strong>{}</strong> ({}).").format(
                _count(rejects.of, "good image"), rejects.count or "none", _interval(rejects)
            )
        )
    if misses.of:
        parts.append(
            Markup("Of {} it misses <strong>{}</strong> ({}).").format(
                _count(misses.of, "defect"), misses.count or "none", _interval(misses)
            )
        )
    return Markup(" ").join(parts) if parts else escape("No image could be inspected.")


def _remarks(evaluation: Evaluation) -> list[dict[str, Any]]:
    """What the figures mean together: what supports the model, and what should keep a person careful."""
    calibration, parity = evaluation.manifest.calibration, evaluation.manifest.parity
    rejects, misses = evaluation.false_rejects, evaluation.misses
    total = (evaluation.manifest.zones or Zones()).promise(calibration)
    promised = _percent(total)
    found = []
    if seen := evaluation.seen():
        found.append(_doubt(f"{seen}."))
    if rejects.interval_95:
        low, high = rejects.interval_95
        if low > total:
            found.append(
                _doubt(
                    f"More good images are rejected than the {promised} aimed at, beyond chance. The good test images "
                    "differ from those the threshold comes from: another camera, light or batch? Calibrate on images "
                    "from the line."
                )
            )
        elif not evaluation.n_seen:
            found.append(_trust(f"The false rejects agree with the {promised} that the calibration aims at."))
        if high - low > 0.1:
            found.append(
                _doubt(
                    f"{_count(rejects.of, 'good image')} cannot tell the false-reject rate better than "
                    f"{_percent(low)} to {_percent(high)}. Test on more."
                )
            )
    if misses.interval_95:
        if misses.count:
            found.append(_doubt(_price_of_all(evaluation)))
        else:
            refused = evaluation.n_refused("defect")
            only = f", {refused} of them only as they cannot be judged" if refused else ""
            found.append(
                (_doubt if refused else _trust)(
                    f"No defect was missed{only}. With {_count(misses.of, 'defect')} the miss rate may still be as "
                    f"high as {_percent(misses.interval_95[1])}."
                )
            )
    if (evaluation.image.auroc or 0) >= 0.95 and (misses.value or 0) > 0.2:
        found.append(
            _doubt(
                "Defects rank well above good images, yet many pass: it is the threshold that is high, not the model "
                "that is blind. More held-out good images or a larger false-reject budget lower it."
            )
        )
    if evaluation.image.auroc is not None and evaluation.image.auroc < 0.8:
        found.append(
            _doubt(
                f"An image AUROC of {evaluation.image.auroc:.3f} means that many defects look no worse to the model "
                "than good parts do. No threshold mends that: try another backbone, larger images or more good images."
            )
        )
    if calibration.promised_false_reject > calibration.requested_false_reject:
        found.append(
            _doubt(
                f"A false-reject rate of {_percent(calibration.requested_false_reject)} was asked for; "
                f"{calibration.n} calibration images carry {_percent(calibration.promised_false_reject)} at best, "
                f"{images_needed(calibration.requested_false_reject)} are needed."
            )
        )
    if unmarked := evaluation.unmarked():
        found.append(_doubt(f"{unmarked}."))
    if refusals := evaluation.refusals():
        found.append(_doubt(f"{refusals}."))
    if n_masks := len(evaluation.failures) - len(evaluation.refused):
        found.append(_doubt(f"{_count(n_masks, 'mask')} could not be used; listed below."))
    found.extend(_doubt(f"{line}.") for line in evaluation.masks_read())
    if evaluation.n_shared:
        found.append(_doubt(f"{_count(evaluation.n_shared, 'good image')} left out: one to fit on shows the same."))
    if not evaluation.pixel.exact:
        found.append(_doubt("Pixel scores span so wide a range that neighbouring values were counted as equal."))
    found.append(
        _trust(
            f"What was measured is what ships: the exported model, which repeated the fitted one on "
            f"{_count(parity.n_images, 'held-out image')} to within {parity.worst_score_difference:.1g} of a score."
        )
    )
    return sorted(found, key=lambda remark: not remark["doubt"])


def _price_of_all(evaluation: Evaluation) -> str:
    """What it would take to catch every defect of this test set. It is told, and never used."""
    passed = [each.score for each in evaluation.outcomes if each.label == "defect" and not each.rejected]
    lowest = min(passed)
    price = sum(each.label == "good" and each.score >= lowest for each in evaluation.outcomes)
    price += evaluation.n_refused("good")
    text = f"{evaluation.misses.count} of {_count(evaluation.misses.of, 'defect')} pass."
    if evaluation.false_rejects.of:
        text += (
            f" To catch all of these, the threshold would have to be below {lowest:.4g}, and {price} of "
            f"{_count(evaluation.false_rejects.of, 'good image')} would be rejected."
        )
    return text


def _tiles(evaluation: Evaluation) -> list[dict[str, str]]:
    image, pixel = evaluation.image, evaluation.pixel
    meanings = (
        ("Image AUROC", image.auroc, "Chance that a defective image scores higher than a good one. 0.5 is guessing."),
        ("Image AP", image.ap, "Of the images flagged, the share that is defective, averaged over the defects found."),
        ("Image F1-max", image.f1_max, "Best balance at a threshold picked with the labels: not reachable on a line."),
        (
            "Pixel AUROC",
            pixel.auroc,
            "Chance that a defect pixel scores higher than a good one. Large defects dominate.",
        ),
        ("Pixel AP", pixel.ap, "Of the pixels flagged, the share on a defect. Stricter, for good pixels are many."),
        ("Pixel F1-max", pixel.f1_max, "Best overlap of map and mask at a threshold picked with the labels."),
        ("AUPRO 0.30", pixel.aupro_30, "Share of each marked region covered, a small one weighing as much as a large."),
        (
            "AUPRO 0.05",
            pixel.aupro_05,
            "The same while at most 5 % of good pixels light up: close to how maps are used.",
        ),
    )
    return [{"name": name, "value": _figure(value), "meaning": meaning} for name, value, meaning in meanings]


def _roc(evaluation: Evaluation) -> Markup | None:
    image, pixel = evaluation.image, evaluation.pixel
    if not len(image.roc) and not len(pixel.roc):
        return None
    mark = None
    if evaluation.false_rejects.value is not None and evaluation.misses.value is not None:
        mark = (evaluation.false_rejects.value, 1 - evaluation.misses.value, "calibrated")
    lines = [
        plots.Line(f"images {_figure(image.auroc)}", image.roc, "line-a"),
        plots.Line(f"pixels {_figure(pixel.auroc)}", pixel.roc, "line-b"),
    ]
    return plots.curve_plot(lines, x_label="good ones flagged", y_label="defects found", chance=True, mark=mark)


def _pro(evaluation: Evaluation) -> Markup | None:
    pixel = evaluation.pixel
    if not len(pixel.pro):
        return None
    lines = [plots.Line(f"AUPRO {_figure(pixel.aupro_30)}", pixel.pro)]
    return plots.curve_plot(lines, x_label="good pixels lit up", y_label="region covered", x_high=0.3)


def _latency(evaluation: Evaluation) -> str:
    latency = evaluation.latency
    if latency is None:
        return "Not measured: no image could be inspected."
    return (
        f"From a decoded image to its verdict, one at a time: {latency.p50:.1f} ms median, {latency.p95:.1f} ms at the "
        f"95th percentile, {latency.p99:.1f} ms at the 99th ({latency.n_calls} calls on "
        f"{_count(latency.n_images, 'image')}). Reading and decoding the file are not in it."
    )


def _confusion_row(name: str, wrong: Rate, *, pass_is_right: bool) -> dict[str, Any]:
    right = wrong.of - wrong.count
    return {
        "name": name,
        "of": wrong.of,
        "passed": right if pass_is_right else wrong.count,
        "rejected": wrong.count if pass_is_right else right,
        "pass_is_right": pass_is_right,
        "rate": "–" if wrong.value is None else _percent(wrong.value),
        "bar": plots.interval_bar(wrong.value, wrong.interval_95),
        "interval": _interval_alone(wrong),
    }


def _exhibit(exhibit: Exhibit, heat: Heat, names: _Names, zones: Zones) -> dict[str, Any]:
    shape = (exhibit.image.shape[0], exhibit.image.shape[1])
    return {
        "name": names[exhibit.path],
        "kind": "" if exhibit.kind == "good" else shown(exhibit.kind),
        "image": _picture(exhibit.image, zones),
        "truth": None if exhibit.truth is None else data_uri(outline_truth(exhibit.image, exhibit.truth)),
        "no_truth": "good: nothing to find" if exhibit.kind == "good" else "no usable mask",
        "heat": _picture(heat.draw(exhibit.anomaly_map, shape), zones),
        "score": f"{exhibit.score:.4g}",
        "p_value": f"{exhibit.p_value:.3g}",
    }


def _picture(picture: NDArray[np.uint8], zones: Zones) -> str:
    """The picture with the zones on it; it is too small for their names."""
    return data_uri(draw_zones(picture, zones, name=False))


def _zones(zones: Zones, calibration: Calibration, image: NDArray[np.uint8] | None) -> dict[str, Any] | None:
    """What the zones are and promise, and where they lie; None without any, or a minimum area."""
    if zones == Zones():
        return None
    rows = []
    for zone in zones.zones:
        own = zone.calibration
        share = outline(zones, zone, _PLAN_PX, _PLAN_PX).mean()
        rows.append(
            {
                "name": zone.name,
                "kind": zone.kind,
                "share": _percent(float(share)),
                "threshold": "–" if own is None else f"{own.image_threshold:.4g}",
                "promised": "–" if own is None else _percent(own.promised_false_reject),
            }
        )
    size, scale, least = zones.image_size_px, zones.mm_per_px, zones.min_area_px
    notes = []
    if zones.judged:
        notes.append(
            "What lies in no zone that is judged by itself is judged together, at "
            f"{_percent(calibration.promised_false_reject)}. An image is rejected if any part is, so all parts "
            f"together come to at most {_percent(zones.promise(calibration))} false rejects."
        )
    if least is not None:
        area = f"{least:.4g} px" + ("" if scale is None else f" ({least * scale**2:.3g} mm²)")
        notes.append(
            f"Regions below {area} are dropped, and a part without a region left passes. That can only lower the "
            "false rejects, and it can cost defects."
        )
    if size is not None:
        notes.append(f"Drawn on {size[0]} x {size[1]} px" + ("." if scale is None else f", {scale:g} mm each."))
    return {
        "rows": rows,
        "notes": notes,
        "image": data_uri(draw_zones(image, zones)) if image is not None and zones.zones else None,
    }


def _outcome_row(outcome: Outcome, names: _Names) -> dict[str, str]:
    wrong = outcome.rejected == (outcome.label == "good")
    return {
        "name": names[outcome.path],
        "kind": outcome.kind,
        "verdict": ("✕ reject" if outcome.rejected else "✓ pass") + (", wrong" if wrong else ""),
        "score": f"{outcome.score:.4g}",
        "p_value": f"{outcome.p_value:.3g}",
    }


def _scale(heat: Heat) -> Markup:
    """The legend of the maps' colours: the very colour map, as a strip with its three levels named."""
    strip = colours(np.linspace(0, 1, 33))
    stops = "".join(
        f'<stop offset="{index / 32:.3f}" stop-color="rgb({red} {green} {blue})"/>'
        for index, (red, green, blue) in enumerate(strip.tolist())
    )
    hottest = f"hottest {heat.hottest:.3g}" if heat.hottest >= heat.end else f"{heat.end:.3g}"
    names = (
        (0, "start", f"ordinary {heat.typical:.3g}" if heat.typical < heat.threshold else "below"),
        (260, "middle", f"pixel threshold {heat.threshold:.3g}"),
        (520, "end", hottest if heat.typical < heat.threshold else "above"),
    )
    labels = "".join(f'<text x="{x}" y="34" text-anchor="{anchor}">{escape(name)}</text>' for x, anchor, name in names)
    return Markup(
        f'<svg class="scale" viewBox="0 0 520 40" role="img" aria-label="colours of the anomaly maps"><defs>'
        f'<linearGradient id="heat">{stops}</linearGradient></defs><rect width="520" height="14" rx="3" '
        f'fill="url(#heat)"/><path class="axis" d="M260 14v6"/>{labels}</svg>'
    )


def _fit_lead(draft: Draft) -> Markup:
    provenance, calibration = draft.provenance, draft.calibration
    total = (draft.zones or Zones()).promise(calibration)
    verb = "aims at" if calibration.scheme == "cross" else "promises"
    return Markup(
        "Fitted on {}; the threshold comes from {} and {} at most <strong>{}</strong> false rejects{}."
    ).format(
        _count(provenance.n_fit, "good image"),
        _origin(draft),
        verb,
        _percent(total),
        ", all zones together" if draft.zones and draft.zones.judged else "",
    )


def _origin(draft: Draft) -> str:
    again = draft.recalibration
    if again is not None:
        return (
            f"{_count(again.n_images, 'fresh one')}{' beside those before' if again.joined else ''}, without fitting,"
        )
    cross = draft.calibration.scheme == "cross"
    return "the same, cross-fitted," if cross else f"{draft.calibration.n} others, held out,"


def _fit_remarks(draft: Draft, losses: Sequence[float], n_unreadable: int) -> list[dict[str, Any]]:
    calibration, parity = draft.calibration, draft.parity
    found = []
    if calibration.promised_false_reject > calibration.requested_false_reject:
        needed = images_needed(calibration.requested_false_reject)
        found.append(
            _doubt(
                f"{_percent(calibration.requested_false_reject)} false rejects were asked for: that takes {needed} "
                f"calibration images and there are {calibration.n}."
            )
        )
    else:
        found.append(_trust(f"{calibration.n} calibration images are enough for the budget that was asked for."))
    outliers = sum(_robust_z(score, calibration) > _OUTLYING for score in calibration.image_scores)
    if outliers and calibration.n >= 8:  # below that, spread cannot be told from outliers
        verb = "scores" if outliers == 1 else "score"
        found.append(_doubt(f"{_count(outliers, 'good image')} {verb} far above the rest: look at the pictures below."))
    if len(losses) > 4 and losses[-1] > 1.5 * min(losses):
        found.append(_doubt("The loss rose again before the end: training was not stable. Try fewer passes."))
    found.extend(_doubt(f"{line[:1].upper()}{line[1:]}.") for line in draft.fit.warnings)
    if n_unreadable:
        verb = "was" if n_unreadable == 1 else "were"
        found.append(_doubt(f"{_count(n_unreadable, 'good image')} could not be read and {verb} left out."))
    found.append(
        _trust(
            f"The exported model repeats the fitted one on {_count(parity.n_images, 'image')}: scores differ by "
            f"{parity.worst_score_difference:.2g} at most, {parity.score_tolerance:.2g} is allowed, and no verdict "
            "flipped."
        )
    )
    found.append(_doubt("No defect has been seen yet. Whether it finds yours, only labelled defects can tell."))
    return sorted(found, key=lambda remark: not remark["doubt"])


def _steps(draft: Draft) -> list[dict[str, str]]:
    calibration = draft.calibration
    steps = []
    if calibration.promised_false_reject > calibration.requested_false_reject:
        total = ceil(images_needed(calibration.requested_false_reject) * _images_for_each_held_out(draft))
        affordable = ceil(1000 * calibration.promised_false_reject) / 1000
        steps.append(
            {
                "text": f"For a promise of {_percent(calibration.requested_false_reject)}, collect about {total} good "
                "images and fit again; or accept the rate that these carry.",
                "command": f"makel fit DATA --out MODEL --false-reject {affordable:g}",
            }
        )
    steps += [
        {
            "text": "Measure it on labelled images, a few of each defect you know of.",
            "command": "makel evaluate MODEL DATA",
        },
        {"text": "Check it on the machine it will run on.", "command": "makel verify MODEL"},
        {"text": "Inspect, with pictures of what it found.", "command": "makel inspect MODEL PARTS --out FOUND"},
    ]
    return steps


def _images_for_each_held_out(draft: Draft) -> float:
    n, total = draft.calibration.n, draft.provenance.n_fit + draft.calibration.n
    if draft.calibration.scheme == "cross":
        return 1.0
    # What was held out is a rounded share, a fifth as a rule.
    return 5.0 if n == max(1, round(total / 5)) else total / n


def _provenance(draft: Draft) -> list[dict[str, Any]]:
    """Model, backbone, data and export, as rows of name and value."""
    method, preparation, backbone = draft.method, draft.preprocessing, draft.backbone
    provenance, parity = draft.provenance, draft.parity
    images = "8-bit" if preparation.white_level is None else f"16-bit, white at {preparation.white_level}"
    sections: list[dict[str, Any]] = [
        {
            "title": "The model",
            "rows": [
                ("method", f"{method.name}, preset {method.preset}"),
                ("input", f"{in_px(preparation.shape)} (width x height), {preparation.colour}, {images}"),
                ("config", ", ".join(f"{key} {value}" for key, value in method.config.items())),
                ("made by", f"makel {draft.makel_version}, {provenance.created}, seed {provenance.seed}"),
                ("on", provenance.machine),
                ("with", ", ".join(f"{name} {number}" for name, number in provenance.versions.items())),
            ],
        },
        {
            "title": "Its good images",
            "rows": [
                ("data", provenance.data_name),
                ("colour", draft.colour()),
                *((("sizes", sizes),) if (sizes := draft.sizes()) else ()),
                ("SHA-256", provenance.data_digest),
                ("fitted on", provenance.n_fit),
                ("threshold from", f"{provenance.n_calibrate}, {draft.calibration.scheme}"),
                ("budget", f"{_percent(draft.calibration.requested_false_reject)} false rejects asked for"),
            ],
        },
        {
            "title": "Its export",
            "rows": [
                ("runtime", draft.runtime),
                ("compared on", _count(parity.n_images, "image")),
                ("score differs", f"{parity.worst_score_difference:.2g} at most, {parity.score_tolerance:.2g} allowed"),
                ("map differs", f"{parity.worst_map_difference:.2g} at most, {parity.map_tolerance:.2g} allowed"),
            ],
        },
    ]
    if backbone is not None:
        rows = [
            ("name", backbone.name),
            ("blocks", ", ".join(map(str, backbone.blocks))),
            ("licence", backbone.licence),
            ("weights from", backbone.source),
            ("SHA-256", backbone.weights_sha256),
        ]
        sections.insert(1, {"title": "Its backbone", "rows": rows})
    if (again := draft.recalibration) is not None:
        rows = [
            ("of model", again.model_id),
            ("images", f"{again.n_images} of {again.data_name}{', beside those before' if again.joined else ''}"),
            ("SHA-256", again.data_digest),
            ("done", f"{again.created}, makel {again.makel_version}"),
        ]
        sections.append({"title": "Its recalibration", "rows": rows})
    return sections


def _method(draft: Draft) -> str:
    backbone = f" on {draft.backbone.name}" if draft.backbone else ""
    return f"{draft.method.name} ({draft.method.preset}){backbone}, {in_px(draft.preprocessing.shape)}"


def _standing(score: float, calibration: Calibration) -> str:
    """Where a calibration score stands among the others."""
    distance = _robust_z(score, calibration)
    above = sum(other > score for other in calibration.image_scores)
    place = "the highest" if above == 0 else f"{above} higher"
    if distance > _OUTLYING and calibration.n >= 8:
        return f"▲ {place} of {calibration.n}, {distance:.1f} spreads above the median"
    return f"{place} of {calibration.n}"


def _robust_z(score: float, calibration: Calibration) -> float:
    scores = np.array(calibration.image_scores)
    median = float(np.median(scores))
    spread = 1.4826 * float(np.median(np.abs(scores - median)))
    return (score - median) / spread if spread > 0 else 0.0


def _trust(text: str) -> dict[str, Any]:
    return {"doubt": False, "text": text}


def _doubt(text: str) -> dict[str, Any]:
    return {"doubt": True, "text": text}


def _figure(value: float | None) -> str:
    return figure(value, undefined="–")


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %" if rate >= 0.0095 or rate == 0 else f"{100 * rate:.2g} %"


def _interval(rate: Rate) -> str:
    alone = _interval_alone(rate)
    return alone if rate.value is None else f"{_percent(rate.value)}, 95 % interval {alone}"


def _interval_alone(rate: Rate) -> str:
    if rate.interval_95 is None:
        return "none tested"
    low, high = rate.interval_95
    return f"{_percent(low)} to {_percent(high)}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
