"""The line as a controller sees it, through asyncua's own client."""

import asyncio
import socket
import threading

import pytest
from asyncua import Client, ua

import tiny_model
from makel.calibration import calibrate
from makel.errors import UsageError
from makel.model.zones import Zone, Zones
from makel.station.opcua import NAMESPACE, OpcuaServer
from makel.station.station import Station
from makel.station.store import Filter
from makel.station.trigger import Trigger
from test_watch import drop, picture
from waiting import WAIT_S

DEADLINE_S = 0.5


def address():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"opc.tcp://127.0.0.1:{one.getsockname()[1]}"


class Controller:
    """What a programmable controller does, with asyncua's client."""

    def __init__(self, client, model):
        self._client, self._model = client, model

    async def __aenter__(self):
        await self._client.connect()
        self._index = await self._client.get_namespace_index(NAMESPACE)
        return self

    async def __aexit__(self, *_):
        await self._client.disconnect()

    def node(self, name):
        return self._client.get_node(f"ns={self._index};s={self._model}.{name}")

    async def read(self, *names):
        return [await self.node(name).read_value() for name in names]

    async def start(self, part):
        parent = self._client.get_node(f"ns={self._index};s={self._model}")
        return await parent.call_method(self.node("StartPart"), part)

    async def until(self, **wanted):
        async with asyncio.timeout(WAIT_S):
            while await self.read(*wanted) != list(wanted.values()):
                await asyncio.sleep(0.005)


class Plant:
    """A station whose lines are on one server: making one takes seconds."""

    LINES = ("parts", "hung", "written", "free")

    def __init__(self, folder, model):
        self.url, self.obstacles = address(), []
        self.station = Station.open(folder / "station")
        self.folders, self.triggers = {}, {}
        for name in self.LINES:
            self.station.add(name, model, by="test", role="engineer")
            self.folders[name] = folder / name
            self.folders[name].mkdir()
        for name in self.LINES[:-1]:
            self.triggers[name] = Trigger(
                self.folders[name], self.station, model=name, deadline_s=DEADLINE_S, settle_s=0.0
            )
        lines = {"free": None, **self.triggers}
        self._server = OpcuaServer(
            self.url, lines, self.station.listen, folder, obstacles=lambda: self.obstacles, heartbeat_s=0.02
        )
        self._server.start()

    def run(self, model, program):
        """Run a controller's program against one line."""

        async def connect():
            async with Controller(Client(self.url), model) as line:
                await program(line)

        asyncio.run(connect())

    def newest(self, model):
        return self.station.store.find(Filter(model=model), limit=1)[0]

    def close(self):
        self._server.stop()
        self.station.close()


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    own = calibrate((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), false_reject=0.25)
    corners = [
        Zone(name=name, kind="inspect", polygon=polygon, false_reject=0.25, calibration=own)
        for name, polygon in (("left", ((0, 0), (4, 0), (4, 8), (0, 8))), ("top", ((4, 0), (8, 0), (8, 4), (4, 4))))
    ]
    zones = Zones(image_size_px=(8, 8), zones=tuple(corners))
    model = tiny_model.write(tmp_path_factory.mktemp("models") / "parts", zones=zones)
    made = Plant(tmp_path_factory.mktemp("plant"), model)
    yield made
    made.close()


def test_a_controller_starts_a_part_and_reads_its_result(plant):
    async def program(line):
        await line.until(Ready=True, State="Ready")
        assert await line.read("Busy", "ResultValid", "Reject", "Verdict") == [False, False, True, "reject"]
        assert await line.start("serial 7") == [True, ""]
        await line.until(Busy=True)
        assert await line.read("Ready", "ResultValid", "Reject", "State") == [False, False, True, "SingleExecution"]
        assert await line.start("serial 8") == [False, "the part before is not decided yet"]
        drop(plant.folders["parts"], "a.png", picture(128))
        await line.until(ResultValid=True)
        assert await line.read("Reject", "Verdict", "Reason", "Part", "Sequence") == [False, "pass", "", "serial 7", 1]
        assert await line.read("FailedZones") == [""]
        decision = plant.newest("parts").decision
        assert decision.source == "opcua"
        shown = await line.read("Number", "Score", "Threshold", "PValue", "ModelId", "At", "LatencyMs")
        assert shown == [
            plant.newest("parts").number,
            decision.score,
            decision.threshold,
            decision.p_value,
            decision.model_id,
            decision.at,
            decision.latency_ms,
        ]
        await line.until(Busy=False, Ready=True)
        before = (await line.read("Heartbeat"))[0]
        async with asyncio.timeout(WAIT_S):
            while (await line.read("Heartbeat"))[0] == before:
                await asyncio.sleep(0.005)

    plant.run("parts", program)


def test_no_picture_in_time_is_a_reject_on_the_variables_and_in_the_record(plant):
    async def program(line):
        await line.start("serial 7")
        await line.until(ResultValid=True)
        reason = "no picture within 500 ms of the trigger"
        assert await line.read("Reject", "Verdict", "Reason") == [True, "reject", reason]
        recorded = plant.newest("parts")
        assert await line.read("Number") == [recorded.number]
        assert (recorded.decision.verdict, recorded.decision.reason) == ("reject", reason)
        assert str((await line.read("Score"))[0]) == "nan"

    plant.run("parts", program)


def test_a_result_that_hangs_behind_the_deadline_is_a_reject_all_the_same(plant, monkeypatch):
    released, take = threading.Event(), plant.triggers["hung"].take
    # A disk that hangs: the decision does not come back, however good the part is.
    monkeypatch.setattr(plant.triggers["hung"], "take", lambda **how: (released.wait(WAIT_S), take(**how))[1])

    async def program(line):
        await line.node("Start").write_value(True)
        await line.until(ResultValid=True)
        assert await line.read("Reject", "Reason") == [True, "no decision within 500 ms"]
        assert await line.read("Ready", "State") == [False, "SingleExecution"]  # no part can start behind it
        released.set()
        await line.until(Ready=True)

    plant.run("hung", program)


def test_a_controller_that_only_writes_variables_starts_with_one(plant):
    async def program(line):
        await line.node("PartId").write_value("serial 9")
        await line.node("Start").write_value(True)
        await line.until(Busy=True, Start=False)
        drop(plant.folders["written"], "a.png", picture(0))
        await line.until(ResultValid=True)
        assert await line.read("Verdict", "Part", "Reason") == ["reject", "serial 9", ""]
        assert await line.read("FailedZones") == ["left, top"]
        with pytest.raises(ua.uaerrors.BadUserAccessDenied):
            await line.node("Verdict").write_value("pass")

    plant.run("written", program)


def test_a_line_without_a_trigger_shows_every_decision(plant):
    async def program(line):
        await line.until(State="ContinuousExecution", Ready=False)
        assert await line.start("x") == [False, "free decides every picture that arrives and takes no Start"]
        outcome = plant.station.decide(picture(128), model="free", name="a.png", source="watch")
        await line.until(Sequence=1, ResultValid=True)
        assert await line.read("Verdict", "Part", "Number") == ["pass", "a.png", outcome.recorded.number]

    plant.run("free", program)


def test_a_line_that_cannot_decide_is_not_ready(plant):
    async def program(line):
        plant.obstacles.append("the record is gone")
        await line.until(State="Error", Ready=False)
        plant.obstacles.clear()
        await line.until(State="Ready", Ready=True)

    plant.run("parts", program)


def test_other_machines_need_a_password(plant, tmp_path, monkeypatch):
    url = address().replace("127.0.0.1", "0.0.0.0")
    with pytest.raises(UsageError, match="is open to other machines: put a password into MAKEL_OPCUA_PASSWORD"):
        OpcuaServer(url, {"parts": None}, plant.station.listen, tmp_path)
    monkeypatch.setenv("MAKEL_OPCUA_PASSWORD", "secret")
    server = OpcuaServer(url, {"parts": None}, plant.station.listen, tmp_path)
    server.start()
    assert (tmp_path / "opcua-key.pem").stat().st_mode & 0o077 == 0

    async def connect(user, password, encrypted=True):
        client = Client(url.replace("0.0.0.0", "127.0.0.1"))
        client.application_uri = "urn:test"
        if encrypted:
            await client.set_security_string(
                f"Basic256Sha256,SignAndEncrypt,{tmp_path / 'opcua-certificate.der'},{tmp_path / 'opcua-key.pem'}"
            )
        if user:
            client.set_user(user)
            client.set_password(password)
        async with Controller(client, "parts") as line:
            return await line.read("Verdict")

    try:
        assert asyncio.run(connect("makel", "secret")) == ["reject"]
        for wrong in (("makel", "wrong"), ("admin", "secret"), ("", "")):
            with pytest.raises(ua.UaError):
                asyncio.run(connect(*wrong))
        with pytest.raises(ua.UaError):
            asyncio.run(connect("makel", "secret", encrypted=False))
    finally:
        server.stop()


def test_addresses_that_cannot_be_used_are_refused(plant, tmp_path):
    for url in ("http://127.0.0.1:4840", "opc.tcp://127.0.0.1", "opc.tcp://127.0.0.1:x"):
        with pytest.raises(UsageError, match="is no address of an OPC UA server"):
            OpcuaServer(url, {}, plant.station.listen, tmp_path)
    with pytest.raises(UsageError, match=r"no OPC UA server at .*: Address already in use"):
        OpcuaServer(plant.url, {}, plant.station.listen, tmp_path).start()
