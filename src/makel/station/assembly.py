"""A station as it runs, whichever command runs it: with the guard of what may judge, and with drift."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from makel.station.candidates import Candidates
from makel.station.drift import Drift
from makel.station.station import Settings, Station


@dataclass(frozen=True)
class Assembly:
    """A station and what watches over its models.

    Attributes:
        station: The station.
        candidates: The versions to be; the station asks them what must not judge.
        drift: Whether each line is still what its model was calibrated for; the station warns of it.
    """

    station: Station
    candidates: Candidates
    drift: Drift

    @classmethod
    def of(cls, station: Station) -> Assembly:
        """What watches over a station's models, from its next change on."""
        return cls(station, Candidates(station), Drift(station))


@contextmanager
def assemble(folder: Path, settings: Settings | None = None, *, store: str | None = None) -> Iterator[Assembly]:
    """Open a station that is watched over before any model comes in; it is closed in the end.

    Args:
        folder: As for `Station.open`; made where it is missing.
        settings: What it allows itself.
        store: Path or URL of the record in place of the one in the folder.

    Raises:
        StoreError: The record cannot be opened, or another process has this folder.
        BrokenRecordError: The journal, in which decisions wait for the record, was damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Station.open(folder, settings, store=store) as station:
        yield Assembly.of(station)
