"""`makel watch`."""

from __future__ import annotations

import json
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from makel.cli.extras import require
from makel.cli.progress import say
from makel.cli.serve import SigningKey, Trusted
from makel.cli.terminal import put
from makel.errors import UsageError

if TYPE_CHECKING:
    from makel.station.connections import Connections
    from makel.station.decisions import Recorded
    from makel.station.drift import Drift

_LOOK_S = 1.0


def watch(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where pictures arrive.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of models, record and pictures.")] = Path(
        "makel-station"
    ),
    done: Annotated[
        Path | None,
        typer.Option("--done", metavar="DIR", help="Where decided files go.", show_default="they stay"),
    ] = None,
    settle_ms: Annotated[float, typer.Option(min=0, help="A file is read once it stood still for so long.")] = 200,
    give_up_s: Annotated[float, typer.Option(min=0.1, help="A file not whole by then is a reject.")] = 10,
    deadline_ms: Annotated[
        float | None,
        typer.Option(min=1, help="A part without a decision by then is a reject.", show_default="none; 1000 triggered"),
    ] = None,
    trigger: Annotated[
        bool, typer.Option("--trigger", help="Take one picture for each Start that comes over OPC UA.")
    ] = False,
    lead_ms: Annotated[float, typer.Option(min=0, help="A picture may come so long before its trigger.")] = 0,
    mqtt: Annotated[str | None, typer.Option(metavar="URL", help="Broker to tell.", show_default="none")] = None,
    opcua: Annotated[
        str | None, typer.Option(metavar="URL", help="Address to serve OPC UA at.", show_default="none")
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="URL", help="PostgreSQL for the record.", show_default="SQLite in DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="An image of more is a reject; each takes 30 bytes of memory.")
    ] = 30_000_000,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Processor threads to use at most.", show_default="the cores, 4 at most"),
    ] = None,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
    trusted: Trusted = None,
    signing_key: SigningKey = None,
) -> None:
    """Decide every picture that arrives in a folder, each exactly once; ends with Ctrl-C or SIGTERM."""
    require("station", "makel watch")
    from makel.model.folder import open_folder
    from makel.station.assembly import assemble
    from makel.station.connections import Connections, Wiring
    from makel.station.ending import STOP_S, end_within
    from makel.station.inbox import check_folder
    from makel.station.seal import Seal
    from makel.station.station import Settings

    if trigger and opcua is None:
        raise UsageError("--trigger waits for Start over OPC UA: say where to serve it with --opcua")
    deadline_s = None if deadline_ms is None else deadline_ms / 1000
    settings = Settings(
        deadline_s=deadline_s,
        max_pixels=max_pixels,
        threads=threads,
        provider=provider,
        trusted=tuple(trusted or ()),
        signing_key=signing_key,
    )
    name = model.resolve().name
    Seal(data, settings.trusted, signing_key).check(
        open_folder(model)
    )  # what cannot be watched leaves no station behind
    check_folder(folder)
    with assemble(data, settings, store=store) as assembly:
        station = assembly.station
        version, _ = station.add(name, model, by="makel watch", role="engineer")
        if station.registry.version(name).version != version.version:
            station.activate(name, version.version, by="makel watch", role="engineer")
        wired = {"triggered" if trigger else "watched": {name: folder}}
        wiring = Wiring(
            **wired,
            done=done,
            mqtt=mqtt,
            opcua=opcua,
            settle_s=settle_ms / 1000,
            give_up_s=give_up_s,
            deadline_s=deadline_s or 1.0,
            lead_s=lead_ms / 1000,
        )
        stopped = threading.Event()

        def stop(*_: object) -> None:
            end_within(STOP_S)
            stopped.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        station.listen(lambda recorded: _print(recorded, as_json=as_json))
        for problem in station.warnings():
            put(f"makel: {problem}", error=True)
        station.decoders.start(settings.workers)
        with Connections(station, wiring) as connections:
            put(f"makel: watching {folder} with {name} version {version.version}", error=True)
            _say_news(connections, assembly.drift, stopped)
            station.drain()  # before the connections stop, which wait for what they have handed in


def _say_news(connections: Connections, drift: Drift, stopped: threading.Event) -> None:
    """Say what is not looked at, and when a line is no longer what its model was calibrated for or is again.

    How it stands now was said with the station's warnings; what goes wrong with a folder or a broker is logged there.
    """

    def lines() -> dict[str, tuple[object, str]]:
        """What is news where it changes, and its words, whose numbers are others with every block."""
        return {
            state.model: ((state.since, [each.cause for each in state.causes]) if state.changed else None, state.words)
            for state in drift.states()
        }

    overlooked: list[str] = []
    before = lines()
    while not stopped.wait(_LOOK_S):
        there, found = connections.overlooked(), lines()
        say(line for line in there if line not in overlooked)
        say(f"{name}: {words}" for name, (what, words) in found.items() if what != before.get(name, (None, ""))[0])
        overlooked, before = there, found


def _print(recorded: Recorded, *, as_json: bool) -> None:
    decision = recorded.decision
    if as_json:
        put(json.dumps(recorded.to_json()))
        return
    why = (
        decision.reason or f"score {decision.score:.4g}, threshold {decision.threshold:.4g}, p = {decision.p_value:.3g}"
    )
    zones = [f"zone {each.name}: {each.score:.4g}, threshold {each.threshold:.4g}" for each in decision.failed_zones]
    put("  ".join([f"{decision.verdict:6}", str(recorded.number), decision.name, why, *zones]))
