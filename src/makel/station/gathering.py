"""The pictures a candidate is made of: good parts of the line as it is now, as the record knows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from makel.errors import MakelError, UsageError
from makel.images import ending, is_image_name
from makel.station.decisions import Recorded
from makel.station.filters import Filter
from makel.station.station import Station

_PASSED = 400
_ANSWERED = 1000
FAR = 1.5
"""Rejects called good that score beyond so many times their threshold look like nothing the model knows as good."""

FEWEST = 3
"""Different pictures that such a look takes: one alone may be a slip of the finger."""

_GOOD_FOLDERS = ("good", "ok", "io", "gut", "normal", "pass")


@dataclass(frozen=True)
class Gathered:
    """Good parts whose pictures are kept.

    Attributes:
        passed: Parts that passed and that nobody called a defect, newest first.
        said_good: Rejects that a person called good, newest first.
        doubtful: Others that a person called good, too few and too far above their threshold to move it. They are left
            out: a slip of the finger on one bad defect would let every defect like it pass.
        unanswered: Rejects of the same time that nobody spoke of. They are left out: if good ones are among them, a
            threshold from the others rejects a little more than it promises.
    """

    passed: tuple[Recorded, ...]
    said_good: tuple[Recorded, ...]
    doubtful: tuple[Recorded, ...]
    unanswered: int

    @property
    def all(self) -> tuple[Recorded, ...]:
        """Each picture once."""
        return tuple({each.decision.image_sha256: each for each in (*self.said_good, *self.passed)}.values())


def gather(station: Station, model: str) -> Gathered:
    """The good parts of a model's line whose pictures are kept, as they came: not only those somebody spoke of.

    Parts a person called good are those the model found suspicious. Thresholds from them alone would be far too high;
    among all the others of the same time they have the weight they have on the line.

    Raises:
        StoreError: The record cannot be read now.
    """
    find = station.store.find
    passed = [
        each
        for each in find(Filter(model=model, verdict="pass", of_the_line=True), limit=_PASSED)
        if each.answer != "defect" and each.decision.image_sha256 in station.pictures
    ]
    since = min((each.decision.at for each in passed), default=None)
    said_good = [
        each for each in false_rejects(station, model, since=since) if each.decision.image_sha256 in station.pictures
    ]
    far = [each for each in said_good if (ratio(each) or 0.0) > FAR]
    doubtful = far if len({each.decision.image_sha256 for each in far}) < FEWEST else []
    unanswered = station.store.count(
        Filter(model=model, verdict="reject", answer="none", since=since, of_the_line=True)
    )
    kept = tuple(each for each in said_good if each not in doubtful)
    return Gathered(tuple(passed), kept, tuple(doubtful), unanswered)


def false_rejects(station: Station, model: str, *, since: str | None = None) -> list[Recorded]:
    """Rejects of the line that a person called good, newest first, whether their pictures are kept or not."""
    wanted = Filter(model=model, verdict="reject", answer="good", since=since, of_the_line=True)
    return [each for each in station.store.find(wanted, limit=_ANSWERED) if each.decision.score is not None]


def ratio(part: Recorded) -> float | None:
    """How many times its threshold a part scores; None where that says nothing."""
    score, threshold = part.decision.score, part.decision.threshold
    return None if score is None or threshold is None or threshold <= 0 else score / threshold


def write_out(station: Station, parts: Iterable[Recorded], folder: Path) -> tuple[list[Path], list[str]]:
    """Pictures as files with the endings their bytes ask for; and one line for each that is gone.

    Raises:
        NotFoundError: One was dropped this moment.
        StoreError: The folder cannot be written.
    """
    paths, gone = [], []
    for part in parts:
        try:
            content = station.picture(part)
        except MakelError as error:
            gone.append(f"part {part.number}: {error}")
            continue
        path = folder / f"part-{part.number:09}{ending(content) or '.bin'}"
        station.pictures.link(part.decision.image_sha256, path)
        paths.append(path)
    return paths, gone


def good_folder(images: Path) -> Path:
    """The folder of good images in a kept upload, to which more can be added.

    Raises:
        UsageError: There is none, or it cannot be told which it is.
    """
    holding = sorted({path.parent for path in images.rglob("*") if path.is_file() and is_image_name(path)})
    good = [folder for folder in holding if folder.name.lower() in _GOOD_FOLDERS and folder.parent.name != "test"]
    chosen: Sequence[Path] = good or holding
    if len(chosen) != 1:
        raise UsageError(
            f"the images of this version lie in {len(chosen)} folders, and it cannot be told which holds the good "
            "ones: fit again with `makel fit` and the new images"
        )
    return chosen[0]
