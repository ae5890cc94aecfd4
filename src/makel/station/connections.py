"""What connects a station to its line: watched folders, triggers, MQTT and OPC UA, started and stopped as one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from makel.errors import UsageError
from makel.station.inbox import LARGEST_BYTES
from makel.station.mqtt import MqttPublisher
from makel.station.opcua import OpcuaServer
from makel.station.trigger import Trigger
from makel.station.watch import Watch

if TYPE_CHECKING:
    from makel.station.station import Station


@dataclass(frozen=True)
class Wiring:
    """What is connected to what.

    Attributes:
        watched: Folders that pictures arrive in, by the name of the model that decides them.
        triggered: The same, where a trigger says that a part is there and the next picture is that part's.
        done: Where decided files go; None leaves them. Each model has a folder of its name in it.
        mqtt: URL of the broker that is told; None for none.
        opcua: URL to serve OPC UA at; None for none.
        settle_s: Seconds a file must stand still.
        give_up_s: Seconds a file in a watched folder may take to become a whole image.
        deadline_s: Seconds a triggered part may take.
        lead_s: Seconds a picture may arrive before its trigger.
    """

    watched: Mapping[str, Path] = field(default_factory=dict)
    triggered: Mapping[str, Path] = field(default_factory=dict)
    done: Path | None = None
    mqtt: str | None = None
    opcua: str | None = None
    settle_s: float = 0.2
    give_up_s: float = 10.0
    deadline_s: float = 1.0
    lead_s: float = 0.0


class Connections:
    """A station's connections, running.

        with Connections(station, wiring) as connections:
            ...

    Attributes:
        triggers: By the name of the model, for whoever else may trigger.
    """

    def __init__(self, station: Station, wiring: Wiring) -> None:
        """Get ready; entering starts, leaving stops.

        Raises:
            UsageError: Something cannot be connected as it is wired.
            NotFoundError: A model that is wired is not served.
            MissingExtraError: A package for it is not installed.
            StoreError: The record cannot be read, or what MQTT remembers is damaged.
        """
        folders = [path.resolve() for path in (*wiring.watched.values(), *wiring.triggered.values())]
        if len(folders) != len(set(folders)) or wiring.watched.keys() & wiring.triggered.keys():
            raise UsageError("a folder can feed one model only, and a model is either triggered or not: wire each once")
        for model in (*wiring.watched, *wiring.triggered):
            station.line(model)
        if wiring.opcua and not wiring.watched and not wiring.triggered:
            raise UsageError("OPC UA shows the lines of watched and triggered folders: wire at least one")

        # An image of 16-bit colour may be so many bytes; what is larger is none that would be decoded.
        largest_bytes = min(LARGEST_BYTES, 64 * 2**20 + 4 * station.settings.max_pixels)

        def done(model: str) -> Path | None:
            return wiring.done / model if wiring.done else None

        self._watches = {
            model: Watch(
                folder,
                station,
                model=model,
                done=done(model),
                settle_s=wiring.settle_s,
                give_up_s=wiring.give_up_s,
                deadline_s=station.settings.deadline_s,
                decode=station.decoders.decode,
                largest_bytes=largest_bytes,
            )
            for model, folder in wiring.watched.items()
        }
        self.triggers = {
            model: Trigger(
                folder,
                station,
                model=model,
                done=done(model),
                settle_s=min(wiring.settle_s, wiring.deadline_s / 4),
                deadline_s=wiring.deadline_s,
                lead_s=wiring.lead_s,
                decode=station.decoders.decode,
                largest_bytes=largest_bytes,
            )
            for model, folder in wiring.triggered.items()
        }
        self._mqtt = (
            MqttPublisher(wiring.mqtt, station.store, station.listen, station.folder / "mqtt.json")
            if wiring.mqtt
            else None
        )
        self._opcua = (
            OpcuaServer(
                wiring.opcua,
                dict.fromkeys(wiring.watched) | self.triggers,
                station.listen,
                station.folder,
                obstacles=lambda: (
                    station.obstacles() + [watch.problem for watch in self._watches.values() if watch.problem]
                ),
            )
            if wiring.opcua
            else None
        )
        self._running = ExitStack()
        station.warn_of(self.warnings)

    def warnings(self) -> list[str]:
        """What is wrong with them now."""
        found = [f"the folder of {model}: {one.problem}" for model, one in self._folders().items() if one.problem]
        mqtt = [f"MQTT: {self._mqtt.problem}"] if self._mqtt and self._mqtt.problem else []
        return found + self.overlooked() + mqtt

    def overlooked(self) -> list[str]:
        """What lies in their folders and may be images, but is not looked at."""
        return [f"the folder of {model}: {one.overlooked}" for model, one in self._folders().items() if one.overlooked]

    def _folders(self) -> dict[str, Watch | Trigger]:
        return {**self._watches, **self.triggers}

    def __enter__(self) -> Self:
        # Those who tell of decisions start first, so that they miss none, and stop last.
        tellers = [each for each in (self._mqtt, self._opcua) if each is not None]
        with ExitStack() as running:
            for each in (*tellers, *self.triggers.values(), *self._watches.values()):
                each.start()
                running.callback(each.stop)
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
