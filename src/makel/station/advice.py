"""Which kind of candidate fits what people said of the rejects, in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

from makel.model.folder import open_folder
from makel.model.inspector import Inspector
from makel.station.candidate import Kind
from makel.station.fitting import obstacle
from makel.station.gathering import FAR, FEWEST, false_rejects, ratio
from makel.station.station import Station


@dataclass(frozen=True)
class Advice:
    """Which kind of candidate fits what people said.

    Attributes:
        kind: The kind.
        words: Why.
        false_rejects: Rejects of this version that a person called good.
        refit_obstacle: Why a refit is not possible here; "" where it is.
    """

    kind: Kind
    words: str
    false_rejects: int
    refit_obstacle: str


def advise(station: Station, name: str) -> Advice:
    """Which kind fits what people said of the rejects.

    Raises:
        NotFoundError: There is no such model.
        StoreError: The record cannot be read now.
    """
    inspector = station.inspector(name)
    mine = [each for each in false_rejects(station, name) if each.decision.model_id == inspector.model_id]
    # The same picture sent again is no second part.
    ratios = {each.decision.image_sha256: found for each in mine if (found := ratio(each)) is not None}
    cannot = refit_obstacle(station, name, inspector)
    if not ratios:
        words = "Nobody called a reject of this version good: new thresholds follow from the parts that pass."
        return Advice("recalibrate", words, len(mine), cannot)
    typical = median(ratios.values())
    one = len(ratios) == 1
    said = (
        f"1 false reject scores {typical:.2f} times the threshold"
        if one
        else f"{len(ratios)} false rejects score {typical:.2f} times the threshold at the median"
    )
    if typical <= FAR:
        words = (
            f"{said}, close above it: good parts are a little more varied than those of the calibration, and new "
            "thresholds are enough."
        )
        return Advice("recalibrate", words, len(mine), cannot)
    if len(ratios) < FEWEST:
        words = (
            f"{said}, far above it, and {'one says' if one else 'two say'} little: answer more rejects before anything "
            f"is learnt anew, and take {'it' if one else 'one'} back in History if it was a slip of the finger."
        )
        return Advice("recalibrate", words, len(mine), cannot)
    words = (
        f"{said}, far above it: good parts have a look the model does not know. A threshold that lets them pass would "
        "let defects pass too: fit again with them among the good images."
    )
    return Advice("refit", words, len(mine), cannot)


def refit_obstacle(station: Station, name: str, inspector: Inspector) -> str:
    """Why this version cannot be fitted again on this station with more images; "" where it can."""
    manifest = inspector.manifest
    if reason := obstacle():
        return reason
    if images_of(station, name, inspector) is None:
        version = station.registry.of(name, inspector.model_id)
        return (
            f"the images that version {version.version if version else 0} of {name} was fitted on are not kept here: "
            "fit it on this station, or with `makel fit` elsewhere, with the new images among the others"
        )
    if manifest.tiling or manifest.zones:
        return f"{name} has tiles or zones, which a fit here does not take: fit it with `makel fit`"
    return ""


def images_of(station: Station, name: str, inspector: Inspector) -> Path | None:
    """Where the images lie that a version, or the one it was recalibrated from, was fitted on at this station."""
    version = station.registry.of(name, inspector.model_id)
    while version is not None:
        folder = station.folder / "images" / name / str(version.version)
        if folder.is_dir():
            return folder
        again = open_folder(version.path, verify=False).manifest.recalibration
        version = station.registry.of(name, again.model_id) if again else None
    return None
