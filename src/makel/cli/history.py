"""`makel history`: the station's record, checked, exported and shown."""

from __future__ import annotations

import json
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from makel.cli.extras import require
from makel.cli.progress import Bars
from makel.cli.terminal import put
from makel.errors import BrokenRecordError, StoreError, UsageError

if TYPE_CHECKING:
    from makel.station.decisions import Recorded
    from makel.station.pictures import Checked
    from makel.station.store import Filter, Store

app = typer.Typer(help="Check, export or show the station's record of decisions.")


class Said(StrEnum):
    """What a person said of a part, or that nobody did."""

    good = "good"
    defect = "defect"
    none = "none"


class Outcome(StrEnum):
    """What was decided."""

    passed = "pass"
    rejected = "reject"


Station = Annotated[
    str, typer.Argument(metavar="STATION", help="A station's folder, its store.sqlite, or postgresql://...")
]
OfModel = Annotated[str | None, typer.Option("--model", help="Only what this model decided.")]
OfVerdict = Annotated[Outcome | None, typer.Option("--verdict", help="pass or reject.")]
OfAnswer = Annotated[Said | None, typer.Option("--answer", help="good, defect, or none for parts nobody spoke of.")]
OfName = Annotated[str | None, typer.Option("--name", help="Only parts whose name has this in it.")]
Since = Annotated[str | None, typer.Option("--since", help="From this moment on: 2026-11-25T14:30:00Z, or a date.")]
Until = Annotated[str | None, typer.Option("--until", help="Before this moment, likewise.")]


@app.command("verify")
def verify(
    station: Station,
    noted: Annotated[
        str | None, typer.Option("--noted", metavar="ENTRY:HASH", help="A head that was noted earlier.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="DIR", help="The kept pictures.", show_default="those beside the record"),
    ] = None,
    no_pictures: Annotated[bool, typer.Option("--no-pictures", help="Leave the pictures out: many take long.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check that no entry of the record and no kept picture was changed, and print the record's head to be noted."""
    head_then = None
    if noted is not None:
        entry, _, noted_hash = noted.partition(":")
        if not entry.isdecimal() or len(noted_hash) != 64:
            raise UsageError(f"--noted is {noted!r}: give the head as 'makel history verify' printed it, ENTRY:HASH")
        head_then = (int(entry), noted_hash)
    with _open(station) as store, Bars(quiet=quiet) as bars:
        from makel.station.decisions import Head

        head = None
        with suppress(StoreError):  # what is wrong with it, the check says
            head = store.head()
        broken = store.verify(
            None if head_then is None else Head(head_then[0], 0, head_then[1]),
            lambda done, total: bars("verifying", done, total),
        )
        if broken is not None:
            raise BrokenRecordError(f"{store.name} is broken{':' if broken.entry is None else ' at'} {broken}")
        head = head or store.head()
        checked = None if no_pictures else _check_pictures(station, pictures, bars)
    if as_json:
        found = {} if checked is None else {"n_pictures": checked.n_pictures, "damaged_pictures": checked.damaged}
        put(json.dumps({"n_entries": head.entry, "n_decisions": head.number, "head": str(head), **found}))
    else:
        put(f"{store.name} is intact: {head.number} decisions in {head.entry} entries", f"head {head}")
        if checked is not None and not checked.damaged:
            put(f"pictures: {checked.n_pictures} are kept, each is what its name says")
    if checked is not None and checked.damaged:
        put(*(f"makel: {line}" for line in checked.damaged), error=True)
        n_damaged = len(checked.damaged)
        raise BrokenRecordError(f"{n_damaged} of {checked.n_pictures} pictures are damaged; the record is intact")


@app.command("export")
def export(
    station: Station,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The table to write: .csv or .parquet.")],
    model: OfModel = None,
    verdict: OfVerdict = None,
    answer: OfAnswer = None,
    name: OfName = None,
    since: Since = None,
    until: Until = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Write decisions to a table for other programs, oldest first."""
    with _open(station) as store, Bars(quiet=quiet) as bars:
        chosen = _filter(model, verdict, answer, name, since, until)
        n_decisions = store.export(out, chosen, lambda done, total: bars("exporting", done, total))
    put(f"{n_decisions} decisions: {out}")


@app.command("show")
def show(
    station: Station,
    number: Annotated[int | None, typer.Option("--number", min=1, help="Only the decision of this number.")] = None,
    model: OfModel = None,
    verdict: OfVerdict = None,
    answer: OfAnswer = None,
    name: OfName = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many decisions at most.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show decisions, newest first."""
    with _open(station) as store:
        if number is not None:
            found = [store.get(number)]
        else:
            found = store.find(_filter(model, verdict, answer, name, since, until), limit=limit)
    for item in found:
        put(json.dumps(item.to_json()) if as_json else _line(item))


def _open(station: str) -> Store:
    require("station", "makel history")
    from makel.station.store import Store

    folder = Path(station)
    return Store.open(folder / "store.sqlite" if folder.is_dir() else station, create=False, read_only=True)


def _check_pictures(station: str, given: Path | None, bars: Bars) -> Checked | None:
    """What became of the pictures: those in the folder given, or those beside the record if there are any."""
    from makel.station.pictures import check

    beside = Path(station) if Path(station).is_dir() else Path(station).parent
    folder = given or beside / "pictures"
    if not folder.is_dir():
        if given:
            raise UsageError(f"--pictures {given} is not a folder: give that of the kept pictures")
        return None
    return check(folder, lambda done, total: bars("checking pictures", done, total))


def _filter(
    model: str | None,
    verdict: Outcome | None,
    answer: Said | None,
    name: str | None,
    since: str | None,
    until: str | None,
) -> Filter:
    from makel.station.store import Filter

    return Filter(
        model=model,
        verdict=None if verdict is None else verdict.value,
        answer=None if answer is None else answer.value,
        since=since,
        until=until,
        name=name,
    )


def _line(item: Recorded) -> str:
    decision = item.decision
    score = decision.reason if decision.score is None else f"score {decision.score:.4g} of {decision.threshold:.4g}"
    parts = [f"{item.number:>7}", decision.at[:19], f"{decision.verdict:6}", decision.model, decision.name, score]
    parts += [f"zone {zone.name}: {zone.score:.4g} of {zone.threshold:.4g}" for zone in decision.failed_zones]
    if item.answer is not None:
        parts.append(f"a person said: {item.answer}")
    return "  ".join(part for part in parts if part)
