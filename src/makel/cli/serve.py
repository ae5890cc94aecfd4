"""`makel serve` and `makel token`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from makel.cli.extras import require
from makel.cli.terminal import put
from makel.errors import MakelError, ModelFolderError, UsageError

if TYPE_CHECKING:
    from makel.station.store import Store

DATA = Path("makel-station")

Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of models, record and pictures.")]
Url = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="PostgreSQL for the record.", show_default="SQLite in DIR"),
]
Trusted = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted",
        metavar="KEY",
        help="Serve only models that this public key or certificate signed; more than one may be given.",
        show_default="any model",
    ),
]
SigningKey = Annotated[
    Path | None,
    typer.Option(
        "--signing-key",
        metavar="KEY",
        help="Private key for what the station makes.",
        show_default="with --trusted, one of its own",
    ),
]

tokens = typer.Typer(name="token", help="Tokens for a station that others reach.")


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL...]", help="Model folders, or NAME=FOLDER; added to those in DIR."),
    ] = None,
    data: Data = DATA,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    store: Url = None,
    queue: Annotated[int, typer.Option(min=1, help="Images under way at most, for each model.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images a model takes at once, at most.")] = 4,
    deadline_ms: Annotated[
        float | None, typer.Option(min=1, help="An image without a decision by then is a reject.", show_default="none")
    ] = None,
    max_body_mb: Annotated[int, typer.Option(min=1, help="Megabytes one request may bring.")] = 64,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="An image of more is a reject; each takes 30 bytes of memory.")
    ] = 30_000_000,
    require_token: Annotated[
        bool, typer.Option("--require-token", help="Ask for a token on the loopback too.")
    ] = False,
    watch: Annotated[
        list[str] | None,
        typer.Option("--watch", metavar="NAME=FOLDER", help="Decide what arrives in a folder.", show_default="none"),
    ] = None,
    trigger: Annotated[
        list[str] | None,
        typer.Option("--trigger", metavar="NAME=FOLDER", help="The same, one for each trigger.", show_default="none"),
    ] = None,
    settle_ms: Annotated[float, typer.Option(min=0, help="A file is read once it stood still for so long.")] = 200,
    lead_ms: Annotated[float, typer.Option(min=0, help="A picture may come so long before its trigger.")] = 0,
    done: Annotated[
        Path | None,
        typer.Option("--done", metavar="DIR", help="Where decided files go.", show_default="they stay"),
    ] = None,
    mqtt: Annotated[str | None, typer.Option(metavar="URL", help="Broker to tell.", show_default="none")] = None,
    opcua: Annotated[
        str | None, typer.Option(metavar="URL", help="Address to serve OPC UA at.", show_default="none")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Processor threads a model uses at most.", show_default="the cores, 4 at most"),
    ] = None,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
    trusted: Trusted = None,
    signing_key: SigningKey = None,
) -> None:
    """Serve models over HTTP: every decision recorded, nothing accepted lost."""
    require("station", "makel serve")
    from makel.model.folder import open_folder
    from makel.station.access import Access, Tokens
    from makel.station.assembly import assemble
    from makel.station.connections import Connections, Wiring
    from makel.station.limits import BodyLimits
    from makel.station.seal import Seal
    from makel.station.service import create_app, listen, server
    from makel.station.station import Settings

    wiring = Wiring(
        watched=_folders("--watch", watch),
        triggered=_folders("--trigger", trigger),
        done=done,
        mqtt=mqtt,
        opcua=opcua,
        settle_s=settle_ms / 1000,
        deadline_s=(deadline_ms or 1000) / 1000,
        lead_s=lead_ms / 1000,
    )
    access = Access.on(host, Tokens(data / "tokens.json"), token_needed=require_token)
    settings = Settings(
        queue=queue,
        batch=batch,
        deadline_s=None if deadline_ms is None else deadline_ms / 1000,
        max_pixels=max_pixels,
        threads=threads,
        provider=provider,
        trusted=tuple(trusted or ()),
        signing_key=signing_key,
    )
    seal = Seal(data, settings.trusted, signing_key)
    given = [(name, Path(folder)) for name, _, folder in (model.rpartition("=") for model in models or ())]
    _each(
        given, lambda _, folder: seal.check(open_folder(folder))
    )  # where none can be served, no station is left behind
    with listen(host, port) as socket, assemble(data, settings, store=store) as assembly:
        station = assembly.station

        def add(name: str, folder: Path) -> None:
            version, new = station.add(name or folder.resolve().name, folder, by=_user(), role="engineer")
            put(f"makel: {version.name} version {version.version}{' is new' if new else ''}", error=True)

        for problem in _each(given, add):
            put(f"makel: {problem}; the others are served", error=True)
        for problem in station.warnings():
            put(f"makel: {problem}", error=True)
        connections = Connections(station, wiring)
        app = create_app(station, access, BodyLimits(image_bytes=max_body_mb * 2**20), connections.triggers, assembly)
        with connections:
            shown = f"[{host}]" if ":" in host else host
            put(f"makel: serving on http://{shown}:{socket.getsockname()[1]}", error=True)
            station.decoders.start(settings.workers)
            server(app).run([socket])
            station.drain()  # before the connections stop, which wait for what they have handed in


@tokens.command("add")
def add(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="operator or engineer.")],
    data: Data = DATA,
    name: Annotated[str, typer.Option(help="Whom it is for; the audit names them.", show_default="its id")] = "",
    store: Url = None,
) -> None:
    """Make a token and print it, this once."""
    require("station", "makel token")
    from makel.station.access import Tokens

    known = Tokens(data / "tokens.json")
    with _record(data, store) as record:
        secret = known.add(role, name)
        token = known.owner_of(secret)
        try:
            record.audit(_user(), "engineer", "add token", {"id": token.id, "name": token.name, "role": token.role})
        except MakelError:
            known.remove(token.id)  # no change without its audit
            raise
    put(secret)


@tokens.command("list")
def list_(data: Data = DATA, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show whose tokens there are; the tokens themselves are kept nowhere."""
    require("station", "makel token")
    from makel.station.access import Tokens

    known = Tokens(data / "tokens.json").all()
    if as_json:
        put(json.dumps([{key: getattr(token, key) for key in ("id", "name", "role", "created")} for token in known]))
        return
    for token in known:
        put(f"{token.id}  {token.role:8}  {token.created[:19]}  {token.name}")


@tokens.command("remove")
def remove(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="From `makel token list`.")],
    data: Data = DATA,
    store: Url = None,
) -> None:
    """Make a token worthless, at once."""
    require("station", "makel token")
    from makel.station.access import Tokens

    with _record(data, store) as record:
        # First, and whatever becomes of the audit: a token that is to open nothing must not wait for the record.
        token = Tokens(data / "tokens.json").remove(token_id)
        record.audit(_user(), "engineer", "remove token", {"id": token.id, "name": token.name, "role": token.role})
    put(f"{token.id} of {token.name} opens nothing any more")


def _each(models: list[tuple[str, Path]], do: Callable[[str, Path], object]) -> list[str]:
    """Do something with each model that was given, and give what is wrong with those it cannot be done with.

    Raises:
        ModelFolderError: It cannot be done with any.
    """
    problems: list[str] = []
    for name, folder in models:
        try:
            do(name, folder)
        except ModelFolderError as error:
            problems.append(str(error))
            if len(problems) == len(models):
                raise
    return problems


def _folders(option: str, given: list[str] | None) -> dict[str, Path]:
    """NAME=FOLDER, as often as it was given."""
    found: dict[str, Path] = {}
    for each in given or ():
        name, is_pair, folder = each.partition("=")
        if not is_pair or not name or not folder or name in found:
            raise UsageError(f"{option} {each!r} is not NAME=FOLDER, or its model has a folder already")
        found[name] = Path(folder)
    return found


def _record(data: Path, url: str | None) -> Store:
    from makel.station.store import Store

    data.mkdir(parents=True, exist_ok=True)
    return Store.open(url or data / "store.sqlite")


def _user() -> str:
    return os.environ.get("USER") or os.environ.get("USERNAME") or "command line"
