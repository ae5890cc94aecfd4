"""The acceptance test of an inspection system: parts presented several times, limits set before, one result."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from makel import __version__
from makel.datasets.contents import digest_of
from makel.evaluation.protocol import Rate
from makel.evidence import study
from makel.evidence.agreement import AT_LEAST_PARTS, MARGINAL, Agreement, Between, Limits, agree, compare
from makel.evidence.sample_size import upper_bound
from makel.evidence.study import MODEL, Part, Presentation
from makel.images import shown
from makel.model.inspector import Inspector
from makel.model.manifest import Manifest


@dataclass(frozen=True)
class Acceptance:
    """What an acceptance test found.

    Attributes:
        manifest: The model's.
        study: What the study's folder is called.
        parts: What was presented.
        presentations: Each image, and what the model said.
        digest: SHA-256 in hex over the bytes of all images, whatever their names and order.
        inspectors: The model first, then the people in the order of their file.
        between: Them among each other; None for the model alone.
        limits: What had to be reached.
        marginal: What still is marginal.
        environment: Name → version or description of what it ran on.
        created: When, UTC, ISO 8601.
    """

    manifest: Manifest
    study: str
    parts: tuple[Part, ...]
    presentations: tuple[Presentation, ...]
    digest: str
    inspectors: tuple[Agreement, ...]
    between: Between | None
    limits: Limits
    marginal: Limits
    environment: dict[str, str]
    created: str

    @property
    def model(self) -> Agreement:
        """The model's own result."""
        return self.inspectors[0]

    @property
    def grade(self) -> str:
        """The model's: "acceptable", "marginal" or "unacceptable"."""
        return self.model.grade(self.limits, self.marginal)

    @property
    def trials(self) -> int:
        """Presentations of each part."""
        return len(self.parts[0].images)

    @property
    def failures(self) -> tuple[Presentation, ...]:
        """Presentations that could not be inspected; they count as rejected."""
        return tuple(each for each in self.presentations if each.reason)

    def remarks(self) -> list[str]:
        """What a reader has to know before trusting the result, a sentence each."""
        good = sum(not part.defective for part in self.parts)
        bad, said = len(self.parts) - good, []
        if len(self.parts) < AT_LEAST_PARTS:
            said.append(
                f"{len(self.parts)} parts are few: the manual's own study has {AT_LEAST_PARTS}, a third of them near "
                "the limit between good and bad."
            )
        for count, what in ((good, "good"), (bad, "defective")):
            if count == 0:
                said.append(f"No {what} part was presented: half of the question is not answered.")
        if bad:
            bound = upper_bound(len(self.model.missed), bad)
            said.append(
                f"Of {bad} defective parts {len(self.model.missed) or 'none'} passed at least once: with 95 % "
                f"confidence the system lets at most {100 * bound:.1f} % of such parts pass in as many presentations."
            )
        if self.failures:
            said.append(f"{len(self.failures)} presentations could not be inspected; as on the line they are rejected.")
        return said

    def lines(self) -> list[str]:
        """For a terminal."""
        good = sum(not part.defective for part in self.parts)
        return [
            f"study          {self.study}: {good} good and {len(self.parts) - good} defective parts, "
            f"{self.trials} presentations each",
            *(
                line
                for each in self.inspectors
                for line in (
                    f"{each.name[:14]:14} effectiveness {_rate(each.effectiveness)}, misses {_rate(each.miss_rate)}, "
                    f"false alarms {_rate(each.false_alarm_rate)}",
                    f"{'':14} repeatability {_rate(each.repeatability)}, kappa with the reference "
                    f"{_kappa(each.kappa_reference)}, within itself {_kappa(each.kappa_within)}: "
                    f"{each.grade(self.limits, self.marginal)}",
                )
            ),
            *([f"{'together':14} kappa of all {_kappa(self.between.kappa)}"] if self.between else []),
            f"{'limits':14} {self.limits.in_words()}",
            f"{'result':14} {self.grade}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "model_id": self.manifest.model_id,
            "study": self.study,
            "images_sha256": self.digest,
            "created": self.created,
            "environment": self.environment,
            "limits": asdict(self.limits),
            "marginal": asdict(self.marginal),
            "result": self.grade,
            "inspectors": [
                {
                    **asdict(each),
                    **{name: _rate_json(getattr(each, name)) for name in _RATES},
                    "grade": each.grade(self.limits, self.marginal),
                }
                for each in self.inspectors
            ],
            "between": None
            if self.between is None
            else {
                "kappa": self.between.kappa,
                "all_agree": _rate_json(self.between.all_agree),
                "all_right": _rate_json(self.between.all_right),
                "pairs": [list(pair) for pair in self.between.pairs],
            },
            "remarks": self.remarks(),
            "presentations": [{**asdict(each), "image": shown(each.image.name)} for each in self.presentations],
        }


_RATES = ("effectiveness", "miss_rate", "false_alarm_rate", "repeatability")


def accept(
    model: str | os.PathLike[str] | Inspector,
    data: str | os.PathLike[str],
    *,
    appraisers: str | os.PathLike[str] | None = None,
    limits: Limits | None = None,
    marginal: Limits = MARGINAL,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Acceptance:
    """Present parts to a model as often as they were photographed, and compare it with the reference and with people.

    Args:
        model: A model folder, or an inspector that is loaded.
        data: The study's folder, see `makel.evidence.study.read_study`.
        appraisers: A CSV file of what people said of the same parts, see `makel.evidence.study.read_appraisers`.
        limits: What has to be reached; AIAG's where nobody says.
        marginal: What still is marginal.
        progress: Called with (stage, done, total).

    Raises:
        DatasetError: The study or the file cannot be used.
        ModelFolderError: The model folder is damaged or changed.
    """
    parts = study.read_study(data)
    people = {} if appraisers is None else study.read_appraisers(appraisers, parts)
    inspector = model if isinstance(model, Inspector) else Inspector.load(model)
    presentations = study.present(inspector, parts, progress)
    said = {MODEL: study.as_table(parts, presentations), **people}
    names, defective = [part.name for part in parts], [part.defective for part in parts]
    return Acceptance(
        manifest=inspector.manifest,
        study=Path(os.path.abspath(data)).name,  # noqa: PTH100, `resolve` would follow a link
        parts=parts,
        presentations=presentations,
        digest=digest_of(each.sha256 for each in presentations),
        inspectors=tuple(agree(name, names, defective, each) for name, each in said.items()),
        between=compare(names, defective, said),
        limits=limits or Limits(),
        marginal=marginal,
        environment=_environment(),
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _environment() -> dict[str, str]:
    return {
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "makel": __version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }


def _rate(rate: Rate) -> str:
    return "none" if rate.value is None else f"{rate.count} of {rate.of} ({100 * rate.value:.1f} %)"


def _rate_json(rate: Rate) -> dict[str, Any]:
    interval = rate.interval_95
    return {
        "count": rate.count,
        "of": rate.of,
        "value": rate.value,
        "interval_95": None if interval is None else list(interval),
    }


def _kappa(kappa: float | None) -> str:
    return "undefined" if kappa is None else f"{kappa:.2f}"
