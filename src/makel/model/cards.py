"""What people read beside a model: a model card, a sheet on its images, and one for the plant, as Markdown.

They are part of the model folder, so its id covers them; therefore they cannot name it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from makel.images import shown
from makel.model.manifest import MANIFEST_NAME, ONNX_NAME, Draft
from makel.types import in_px

MODEL_CARD_NAME, DATA_SHEET_NAME, DEPLOYMENT_NAME = "model_card.md", "data_sheet.md", "deployment.md"

_ESCAPED = str.maketrans({each: f"\\{each}" for each in "\\`*_[]<>|#"})


def write(stage: Path, draft: Draft) -> None:
    """Write the three of them into a staging folder.

    Raises:
        OSError: They cannot be written.
    """
    pages = {MODEL_CARD_NAME: model_card(draft), DATA_SHEET_NAME: data_sheet(draft), DEPLOYMENT_NAME: deployment(draft)}
    for name, text in pages.items():
        (stage / name).write_text(text, encoding="utf-8", newline="\n")


def model_card(draft: Draft) -> str:
    """What the model is, what it promises, and what nobody may expect of it."""
    method, backbone, calibration = draft.method, draft.backbone, draft.calibration
    rows = [
        ("Product", _plain(draft.provenance.data_name)),
        ("Method", f"{method.name}, preset {method.preset}, fitted by makel {draft.makel_version}"),
        ("Input", f"{in_px(draft.preprocessing.shape)} (width x height), {draft.colour()}{_tiles(draft)}"),
        ("Fitted", f"{draft.provenance.created} on {draft.provenance.machine}, seed {draft.provenance.seed}"),
        ("Rejects above", f"a score of {calibration.image_threshold:.6g}"),
    ]
    if backbone is not None:
        rows.append(("Features", f"{_plain(backbone.name)}, blocks {', '.join(map(str, backbone.blocks))}"))
    if draft.latency is not None:
        rows.append(("Time", draft.latency.explain()))
    licences = [f"makel {draft.makel_version}: Apache-2.0"]
    if backbone is not None:
        licences.append(
            f"weights of {_plain(backbone.name)}: {_plain(backbone.licence)}, SHA-256 `{backbone.weights_sha256}`"
        )
    return _page(
        f"Model card: {_plain(draft.provenance.data_name)}",
        _table(rows),
        "## What it is for",
        "It says of an image of this product, taken as its good images were, whether the part passes or is rejected, "
        "with a p-value and the regions that stand out. It was shown good parts alone. It is no measuring instrument, "
        "and it does not know what a defect is: it tells what looks unusual.",
        "## What it promises",
        calibration.explain(),
        *([_list(map(_plain, draft.zones.lines(calibration)))] if draft.zones else []),
        "## Limits",
        _list(
            [
                "How many defects it misses is known only from defects: measure with `makel evaluate`, and accept with "
                "`makel accept`.",
                "A new camera, lens, lamp, position or supplier makes it another task: recalibrate, or fit again.",
                f"A defect that is smaller than a pixel or two of {in_px(draft.preprocessing.shape)} is not seen"
                + (" in a tile." if draft.tiling else "."),
                *(_plain(warning) for warning in draft.fit.warnings),
            ]
        ),
        "## Licences",
        _list(licences),
        "## Versions",
        _table(list(draft.provenance.versions.items())),
    )


def data_sheet(draft: Draft) -> str:
    """Which images it was fitted on, and where its thresholds come from."""
    provenance, images = draft.provenance, draft.fit.images
    rows = [
        ("Name", _plain(provenance.data_name)),
        ("SHA-256 over the bytes of all images", f"`{provenance.data_digest}`"),
        ("Fitted on", f"{provenance.n_fit} good images{_copies(draft)}"),
        ("Thresholds from", f"{provenance.n_calibrate} good images, {_scheme(draft)}"),
        ("Colour", draft.colour()),
    ]
    if images is not None:
        rows.append(("Sizes", draft.sizes()))
    again = draft.recalibration
    if again is not None:
        beside = ", beside the scores of before" if again.joined else ""
        rows.append(
            ("Recalibrated", f"{again.created} on {again.n_images} images of {_plain(again.data_name)}{beside}")
        )
        rows.append(("SHA-256 of these", f"`{again.data_digest}`"))
    odd = [_plain(warning) for warning in draft.fit.warnings]
    held_out = [f"`{shown(name).replace('`', '')}`" for name in provenance.holdout]
    return _page(
        f"Images of {_plain(provenance.data_name)}",
        _table(rows),
        "The hash of every single image is in `model.json` (`fit_hashes`, `calibrate_hashes`), as far as it was noted.",
        "## What the fit noticed",
        _list(odd) if odd else "Nothing.",
        "## Held out",
        _list(held_out) if held_out else "Every image was left out of a model in turn.",
        "## To be filled in by whoever took them",
        _table([(what, "") for what in _ASKED]),
    )


_ASKED = (
    "Product, drawing, revision",
    "Line and station",
    "Camera, lens, lamp, exposure",
    "Taken from, to",
    "Lots, suppliers, tools that are covered",
    "Who decided that the parts are good, and how",
)


def deployment(draft: Draft) -> str:
    """How it is brought onto a line, and what has to be looked after there."""
    preparation, parity = draft.preprocessing, draft.parity
    depth = "8 bits a channel" if preparation.white_level is None else f"16 bits, white at {preparation.white_level}"
    is_torch = draft.runtime == "torch"
    runs = "PyTorch (`makel[fit]`)" if is_torch else f"ONNX Runtime, from `{ONNX_NAME}`; neither GPU nor network"
    steps = [
        "Copy the whole folder; nothing may be added to it.",
        "`makel verify MODEL` on the PC of the line: every file is as it was written, and the golden images give the "
        f"same scores (to within {parity.score_tolerance:.2g}) and maps ({parity.map_tolerance:.2g}).",
        f"Compare the `model_id` in `{MANIFEST_NAME}` with the one that was released.",
        "`makel serve MODEL`, or `makel inspect MODEL IMAGES`.",
        "Run good and bad parts that are kept for this, at every start of a shift and after every change.",
    ]
    after = [
        ("Camera, lens, lamp or position changed", "fit again, or `makel recalibrate` on fresh good images"),
        ("More good parts rejected than promised", "look at them; `makel recalibrate`"),
        ("The station says drift", "look for its cause first: light, focus, position, product"),
        ("ONNX Runtime, driver or PC changed", "`makel verify` again"),
    ]
    return _page(
        f"Deployment of {_plain(draft.provenance.data_name)}",
        _table(
            [
                ("Runs on", runs),
                ("Images", f"{depth}; {_sizes_or_any(draft)}"),
                ("Product", draft.colour()),
                ("An image that cannot be inspected", "is rejected, with its reason"),
                *([("Time", draft.latency.explain())] if draft.latency else []),
            ]
        ),
        "## Bringing it onto the line",
        "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1)),
        "## When something changes",
        _table(after, head=("what", "do")),
        "## Released",
        _table([("Model id", ""), ("Line", ""), ("Date", ""), ("By", ""), ("Signature", "")]),
    )


def _tiles(draft: Draft) -> str:
    tiling = draft.tiling
    return f"; images are cut into tiles of {tiling.tile_px} px that share {tiling.overlap_px}" if tiling else ""


def _copies(draft: Draft) -> str:
    parts = []
    if draft.provenance.n_tiles:
        parts.append(f"{draft.provenance.n_tiles} tiles of them")
    if draft.provenance.n_copies:
        parts.append(f"{draft.provenance.n_copies} jittered copies of each")
    return f", {' and '.join(parts)}" if parts else ""


def _scheme(draft: Draft) -> str:
    return "held out" if draft.calibration.scheme == "holdout" else "each scored by a model that did not see it"


def _sizes_or_any(draft: Draft) -> str:
    return f"like those fitted on, {draft.sizes()}" if draft.sizes() else "like those fitted on"


def _page(title: str, *blocks: str) -> str:
    return "\n\n".join([f"# {title}", *blocks]) + "\n"


def _table(rows: Iterable[tuple[str, str]], head: tuple[str, str] = ("", "")) -> str:
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _plain(text: str) -> str:
    """A name from outside, so that it stays text in Markdown and on one line."""
    return shown(text).translate(_ESCAPED)
