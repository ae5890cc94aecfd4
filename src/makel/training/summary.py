"""What a fit did, for a program and for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from makel.model.manifest import Manifest

FEW = 5
"""Images fitted on below which a fit is warned about."""


@dataclass(frozen=True)
class FitSummary:
    """What fitting did.

    Attributes:
        path: The model folder.
        manifest: Its manifest.
        unreadable: Good images that could not be read and were left out, one line each.
        n_tiles_available: Tiles that the images fitted on have, of a tiled model; 0 of another.
        notes: What lies in the folder and was not looked at, and names that disagree with the files, a line each.
        test: Kind of image → how many of it are kept for testing.
    """

    path: Path
    manifest: Manifest
    unreadable: tuple[str, ...]
    n_tiles_available: int = 0
    notes: tuple[str, ...] = ()
    test: Mapping[str, int] = field(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know of a fit that ended without an error."""
        n = self.manifest.provenance.n_fit
        few = (
            f"fitted on {n} image{'' if n == 1 else 's'}: in what good parts may differ cannot be seen from so few; "
            "collect 20 or more",
        )
        return (*self.manifest.fit.warnings, *(few if n < FEW else ()))

    def to_json(self) -> dict[str, Any]:
        """Plain values: seconds a stage, images, threshold and what false-reject rate is promised."""
        calibration, provenance = self.manifest.calibration, self.manifest.provenance
        return {
            "model": str(self.path),
            "model_id": self.manifest.model_id,
            "method": self.manifest.method.name,
            "preset": self.manifest.method.preset,
            "n_fit": provenance.n_fit,
            "n_calibrate": provenance.n_calibrate,
            "tiling": None if self.manifest.tiling is None else asdict(self.manifest.tiling),
            "n_tiles": provenance.n_tiles,
            "n_tiles_available": self.n_tiles_available,
            "unreadable": list(self.unreadable),
            "colour": self.manifest.preprocessing.colour,
            "images": self.manifest.fit.images and self.manifest.fit.images.model_dump(mode="json"),
            "test": dict(self.test),
            "threshold": calibration.image_threshold,
            "requested_false_reject": calibration.requested_false_reject,
            "promised_false_reject": calibration.promised_false_reject,
            "zones": [] if self.manifest.zones is None else self.manifest.zones.lines(calibration),
            "seconds": self.manifest.fit.seconds,
            "final_loss": self.manifest.fit.final_loss,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "parity": self.manifest.parity.model_dump(),
            "latency": self.manifest.latency
            and {**self.manifest.latency.model_dump(), "kept": self.manifest.latency.kept},
        }

    def lines(self) -> list[str]:
        """The same for a person."""
        manifest = self.manifest
        seconds = manifest.fit.seconds
        stages = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total")
        return [
            *(f"left out: {line}" for line in self.unreadable),
            *(f"warning: {line}" for line in self.warnings),
            *(f"note: {line}" for line in self.notes),
            f"model      {self.path} ({manifest.model_id})",
            f"images     {manifest.provenance.n_fit} fitted on, {manifest.provenance.n_calibrate} for the threshold",
            f"colour     {manifest.colour()}",
            *((f"sizes      {sizes}",) if (sizes := manifest.sizes()) else ()),
            *self._tiles(),
            *self._test(),
            f"seconds    {seconds['total']:.1f} in all: {stages}",
            f"threshold  {manifest.calibration.image_threshold:.4g}",
            f"promise    {manifest.calibration.explain()}",
            *((f"latency    {manifest.latency.explain()}",) if manifest.latency else ()),
            *(f"zones      {line}" for line in self.to_json()["zones"]),
        ]

    def _test(self) -> list[str]:
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.test.items())
        return [f"test       {kinds}: kept for testing, not fitted on"] if kinds else []

    def _tiles(self) -> list[str]:
        tiling, used = self.manifest.tiling, self.manifest.provenance.n_tiles
        if tiling is None:
            return []
        of = "all" if used == self.n_tiles_available else f"{used} of {self.n_tiles_available}, chosen by the seed,"
        return [f"tiles      {tiling.tile_px} px, {tiling.overlap_px} px shared; {of} fitted on"]
