"""Parts presented several times to a model, and to people: what an agreement study is read from."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from makel.datasets import hashes
from makel.datasets.dataset import is_good_name
from makel.errors import DatasetError, ImageError, MakelError
from makel.evidence.agreement import AT_LEAST_TRIALS
from makel.images import find, shown
from makel.model.inspector import Inspector
from makel.types import Sample

MODEL = "makel"
"""What the model is called beside people."""

_REJECT = {"reject", "rejected", "defect", "bad", "nok", "nio", "fail", "1"}
_PASS = {"pass", "passed", "good", "ok", "io", "gut", "accept", "0"}


@dataclass(frozen=True)
class Part:
    """One part of a study.

    Attributes:
        name: Unique in the study: the folder that its images lie in, with the kind before it, such as "good/017".
        defective: What the reference says.
        kind: "good", or the kind of defect.
        images: One a presentation.
    """

    name: str
    defective: bool
    kind: str
    images: tuple[Path, ...]


@dataclass(frozen=True)
class Presentation:
    """One image of a part, and what the model said of it.

    Attributes:
        part: The part's name.
        image: The file.
        sha256: Of its bytes, in hex; "" where it cannot be read.
        rejected: Whether the line would have taken it out.
        score: The model's; None where the image could not be inspected, which is a reject.
        reason: Why it could not be inspected, "" otherwise.
    """

    part: str
    image: Path
    sha256: str
    rejected: bool
    score: float | None
    reason: str = ""


def read_study(root: str | os.PathLike[str]) -> tuple[Part, ...]:
    """The parts of a study: a folder for each kind, in it a folder for each part, in that an image a presentation.

        STUDY/good/017/1.png  STUDY/good/017/2.png  ...
        STUDY/scratch/003/1.png  ...

    Args:
        root: The folder.

    Returns:
        Sorted by name; as many images of each.

    Raises:
        DatasetError: It is laid out otherwise, parts have unlike numbers of images or fewer than two, or two
            presentations are the same file.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DatasetError(f"{shown(root)} is no folder; expected were KIND/PART/ with an image a presentation")
    parts = tuple(_parts(folder))
    if not parts:
        raise DatasetError(
            f"{shown(folder)} holds no parts; expected were good/PART/ and KIND/PART/ with an image a presentation"
        )
    counts = {len(part.images) for part in parts}
    if len(counts) > 1:
        least, most = (pick(parts, key=lambda part: len(part.images)) for pick in (min, max))
        raise DatasetError(
            f"{least.name} has {len(least.images)} images and {most.name} {len(most.images)}: present every part "
            "equally often"
        )
    if (trials := counts.pop()) < AT_LEAST_TRIALS:
        raise DatasetError(
            f"each part in {shown(folder)} has {trials} image: present every part at least {AT_LEAST_TRIALS} times, "
            "moved or photographed anew"
        )
    _refuse_copies(parts)
    return parts


def _parts(folder: Path) -> Iterator[Part]:
    for kind in _folders(folder):
        if find(kind):
            raise DatasetError(
                f"{shown(kind)} holds images; expected was a folder for each part in it, with an image a presentation"
            )
        is_good = is_good_name(kind.name)
        for part in _folders(kind):
            if images := tuple(find(part)):
                yield Part(f"{kind.name}/{part.name}", not is_good, "good" if is_good else kind.name, images)


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _refuse_copies(parts: tuple[Part, ...]) -> None:
    """The same file twice is no second presentation: a model says the same of it, and repeatability means nothing."""
    first: dict[str, Path] = {}
    for image, sha256 in _hashed(parts):
        if sha256 in first:
            raise DatasetError(
                f"{shown(first[sha256])} and {shown(image)} are the same file: take a photograph for each presentation"
            )
        first[sha256] = image


def _hashed(parts: tuple[Part, ...]) -> list[tuple[Path, str]]:
    samples = [Sample(image, "good", "good") for part in parts for image in part.images]
    return [(sample.image_path, sha256) for sample, sha256 in zip(samples, hashes(samples), strict=True)]


def present(
    inspector: Inspector, parts: tuple[Part, ...], progress: Callable[[str, int, int | None], None] | None = None
) -> tuple[Presentation, ...]:
    """Let a model inspect every presentation, as the line does.

    Args:
        inspector: The model.
        parts: From `read_study`.
        progress: Called with ("presenting", done, total).

    Returns:
        In the order of the parts and their images. An image that cannot be inspected is rejected, as on the line.
    """
    hashed = _hashed(parts)
    of = [part.name for part in parts for _ in part.images]
    found = []
    for index, (path, result) in enumerate(inspector.inspect_all([image for image, _ in hashed])):
        shown_as = of[index], path, hashed[index][1]
        if isinstance(result, ImageError):
            found.append(Presentation(*shown_as, rejected=True, score=None, reason=str(result)))
        elif isinstance(result, MakelError):
            raise result
        else:
            found.append(Presentation(*shown_as, rejected=result.verdict == "reject", score=result.score))
        if progress is not None:
            progress("presenting", index + 1, len(hashed))
    return tuple(found)


def as_table(parts: tuple[Part, ...], presentations: tuple[Presentation, ...]) -> NDArray[np.bool_]:
    """(parts, trials) whether each presentation was rejected."""
    return np.array([each.rejected for each in presentations], np.bool_).reshape(len(parts), -1)


def read_appraisers(path: str | os.PathLike[str], parts: tuple[Part, ...]) -> dict[str, NDArray[np.bool_]]:
    """What people said of the same parts.

    Args:
        path: A CSV file with a heading and the columns appraiser, part, trial and verdict. Columns are parted by commas
            or semicolons; a part is called as in the study, such as good/017; a verdict is pass or reject (also good or
            defect, ok or nok).
        parts: From `read_study`.

    Returns:
        Appraiser → (parts, trials) whether each was rejected, in the order of the file.

    Raises:
        DatasetError: The file cannot be read, or an appraiser did not judge every part equally often.
    """
    place = {part.name: index for index, part in enumerate(parts)}
    said: dict[str, dict[tuple[int, str], bool]] = {}
    for where, row in _rows(Path(path)):
        name, part, trial = (row[column].strip() for column in ("appraiser", "part", "trial"))
        if name == MODEL:
            raise DatasetError(f"{where}: the name {MODEL} is the model's own; call the appraiser otherwise")
        if part not in place:
            raise DatasetError(f"{where}: there is no part {part!r} in the study; one is called {parts[0].name!r}")
        verdict = row["verdict"].strip().lower()
        if verdict not in _REJECT | _PASS:
            raise DatasetError(f"{where}: a verdict of {row['verdict']!r} is neither pass nor reject")
        given = said.setdefault(name, {})
        if (place[part], trial) in given:
            raise DatasetError(f"{where}: {name} judged {part} in trial {trial} twice")
        given[place[part], trial] = verdict in _REJECT
    if not said:
        raise DatasetError(f"{shown(path)} holds no judgements: expected were rows of appraiser, part, trial, verdict")
    return {name: _full(name, given, parts) for name, given in said.items()}


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    needed = ("appraiser", "part", "trial", "verdict")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            heading = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=";" if heading.count(";") > heading.count(",") else ",")
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            if missing := [name for name in needed if name not in columns]:
                raise DatasetError(
                    f"{shown(path)} has no column {missing[0]}: expected are {', '.join(needed)}, got "
                    f"{', '.join(columns) or 'nothing'}"
                )
            reader.fieldnames = columns
            for row in reader:
                if None in row or any(row[name] is None for name in needed):
                    raise DatasetError(f"{shown(path)}, line {reader.line_num}: expected {len(columns)} columns")
                yield f"{shown(path)}, line {reader.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"{shown(path)} cannot be read as CSV: {getattr(error, 'strerror', None) or error}"
        ) from error


def _full(name: str, given: Mapping[tuple[int, str], bool], parts: tuple[Part, ...]) -> NDArray[np.bool_]:
    trials = sorted({trial for _, trial in given})
    for index, part in enumerate(parts):
        for trial in trials:
            if (index, trial) not in given:
                raise DatasetError(
                    f"{name} did not judge {part.name} in trial {trial}: every part is judged every time"
                )
    return np.array([[given[index, trial] for trial in trials] for index in range(len(parts))], np.bool_)
