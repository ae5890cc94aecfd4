"""`makel verify` and `makel info`: what a model folder holds, and whether it computes here what was fitted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from makel.cli.terminal import put


def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use at most.")] = None,
) -> None:
    """Check every file of a model folder, and replay its golden images on this machine."""
    from makel.model.folder import open_folder
    from makel.model.golden import replay
    from makel.model.session import open_session

    folder = open_folder(model)
    differences = replay(folder, open_session(folder, threads=threads, provider=provider))
    parity = folder.manifest.parity
    score = max(difference.score for difference in differences)
    anomaly_map = max(difference.anomaly_map for difference in differences)
    if as_json:
        put(
            json.dumps(
                {
                    "model_id": folder.manifest.model_id,
                    "n_files": len(folder.manifest.files) + 1,
                    "n_golden": len(differences),
                    "worst_score_difference": score,
                    "worst_map_difference": anomaly_map,
                    "score_tolerance": parity.score_tolerance,
                    "map_tolerance": parity.map_tolerance,
                }
            )
        )
        return
    put(f"{model} is intact: model {folder.manifest.model_id}, {len(folder.manifest.files) + 1} files")
    put(
        f"{len(differences)} golden images replayed on {provider}: scores differ by at most {score:.2g} "
        f"(allowed {parity.score_tolerance:.2g}), maps by {anomaly_map:.2g} (allowed {parity.map_tolerance:.2g})"
    )


def info(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest as JSON.")] = False,
) -> None:
    """Say what a model is: how it was fitted, on what, and what its thresholds promise."""
    from makel.model.folder import open_folder
    from makel.types import in_px

    manifest = open_folder(model).manifest
    if as_json:
        put(json.dumps(manifest.model_dump(mode="json")))
        return
    provenance, calibration, preparation = manifest.provenance, manifest.calibration, manifest.preprocessing
    seconds = manifest.fit.seconds["total"]
    backbone = "none"
    if manifest.backbone:
        blocks = ",".join(map(str, manifest.backbone.blocks))
        backbone = (
            f"{manifest.backbone.name}, blocks {blocks} "
            f"({manifest.backbone.licence}, SHA-256 {manifest.backbone.weights_sha256[:16]}...)"
        )
    tiling = manifest.tiling
    taken = f"tiles of {tiling.tile_px} px sharing {tiling.overlap_px}, seen" if tiling else "seen"
    rows = {
        "model": manifest.model_id,
        "method": f"{manifest.method.name}, preset {manifest.method.preset}",
        "backbone": backbone,
        "images": f"{preparation.colour}, {taken} at {in_px(preparation.shape)} (width x height)",
        "colour": manifest.colour(),
        "fitted on": f"{provenance.data_name}: {provenance.n_fit} good images, {provenance.n_calibrate} to calibrate",
        "fitted at": f"{provenance.created} in {seconds:.0f} s, makel {manifest.makel_version}",
        "threshold": f"{calibration.image_threshold:.6g} for images, {calibration.pixel_threshold:.6g} for pixels",
        "promise": calibration.explain(),
    }
    if sizes := manifest.sizes():
        rows["sizes"] = sizes
    if (again := manifest.recalibration) is not None:
        beside = ", beside those of before" if again.joined else ""
        images = f"{again.n_images} images of {again.data_name}{beside}"
        rows["thresholds"] = f"recalibrated {again.created} from {again.model_id} on {images}"
    if manifest.latency:
        rows["latency"] = manifest.latency.explain()
    for key, value in rows.items():
        put(f"{key:10} {value}")
    for line in manifest.zones.lines(calibration) if manifest.zones else ():
        put(f"{'zones':10} {line}")
