"""`makel verify`, `makel sign` and `makel info`: what a model folder holds, who says so, and whether it runs here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from makel.cli.terminal import put

if TYPE_CHECKING:
    from makel.model.folder import ModelFolder
    from makel.signing.trust import Link


def verify(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    trusted: Annotated[
        list[Path] | None,
        typer.Option(
            "--trusted",
            metavar="KEY",
            help="A public key or certificate that has to have signed it; more than one may be given.",
            show_default="no signature is looked at",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use at most.")] = None,
) -> None:
    """Check every file of a model folder, and replay its golden images on this machine."""
    from makel.model.folder import open_folder
    from makel.model.golden import replay
    from makel.model.session import open_session

    folder = open_folder(model)
    chain = _chain(folder, trusted) if trusted else []
    differences = replay(folder, open_session(folder, threads=threads, provider=provider))
    parity = folder.manifest.parity
    score = max(difference.score for difference in differences)
    anomaly_map = max(difference.anomaly_map for difference in differences)
    if as_json:
        told = {
            "model_id": folder.manifest.model_id,
            "n_files": len(folder.manifest.files) + 1,
            "n_golden": len(differences),
            "worst_score_difference": score,
            "worst_map_difference": anomaly_map,
            "score_tolerance": parity.score_tolerance,
            "map_tolerance": parity.map_tolerance,
        }
        put(json.dumps(told | ({"signatures": [_link(link) for link in chain]} if chain else {})))
        return
    put(f"{model} is intact: model {folder.manifest.model_id}, {len(folder.manifest.files) + 1} files")
    put(
        f"{len(differences)} golden images replayed on {provider}: scores differ by at most {score:.2g} "
        f"(allowed {parity.score_tolerance:.2g}), maps by {anomaly_map:.2g} (allowed {parity.map_tolerance:.2g})"
    )
    for place, link in enumerate(chain):
        what = f"came from model {link.model_id}," if place else "the whole folder is"
        how = f"trusted by {link.trusted_by}" if link.trusted_by else f"not trusted: {link.problem}"
        put(f"{what} signed by {link.signed_by}, {how}")


def _chain(folder: ModelFolder, trusted: list[Path]) -> list[Link]:
    from makel.signing.trust import Trust

    return Trust(trusted).chain(folder)


def _link(link: Link) -> dict[str, str | None]:
    trusted_by = None if link.trusted_by is None else str(link.trusted_by)
    return {"model_id": link.model_id, "signed_by": link.signed_by, "trusted_by": trusted_by}


def sign(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    key: Annotated[Path, typer.Option("--key", metavar="KEY", help="Private key, PEM: P-256, P-384 or P-521.")],
    certificate: Annotated[
        list[Path] | None,
        typer.Option(
            "--certificate",
            metavar="CERT",
            help="Certificate of the key, then those above it, PEM.",
            show_default="signed as the key",
        ),
    ] = None,
    origin: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="The signed model that this one was recalibrated from.",
            show_default="the one noted before, if any",
        ),
    ] = None,
) -> None:
    """Sign every file of a model folder. The signature lies beside it, as MODEL.sig; the folder stays as it is."""
    from makel.signing.signer import Signer

    signed = Signer(key, tuple(certificate or ())).sign(model, origin)
    put(f"{model} is signed by {signed.signer}: {len(signed.files)} files, {signed.path}")


def info(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest as JSON.")] = False,
) -> None:
    """Say what a model is: how it was fitted, on what, and what its thresholds promise."""
    from makel.model.folder import open_folder
    from makel.types import in_px

    folder = open_folder(model)
    manifest, signatures = folder.manifest, _signatures(folder)
    if as_json:
        put(json.dumps(manifest.model_dump(mode="json") | ({"signatures": signatures} if signatures else {})))
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
    for place, each in enumerate(signatures):
        before = f"from {each['model_id']} of {each['created']}, signed by " if place else "by "
        put(f"{'signed':10} {before}{each['signed_by']}; so it says, `makel verify --trusted` checks it")
    for line in manifest.zones.lines(calibration) if manifest.zones else ():
        put(f"{'zones':10} {line}")


def _signatures(folder: ModelFolder) -> list[dict[str, Any]]:
    """Who says to have signed a model, and those it came from; none where it is not signed."""
    from makel.signing.signature import Signature, read_origins, shown

    signature = Signature.read(folder.path)
    return [] if signature is None else shown(signature, read_origins(folder.path, folder.manifest), folder)
