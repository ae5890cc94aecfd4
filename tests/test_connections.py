"""A station with its line connected, as `makel serve` runs it."""

import json
import re
import signal
import subprocess
import sys
import threading

import httpx2
import pytest

import tiny_model
from makel.errors import NotFoundError, UsageError
from makel.station.connections import Connections, Wiring
from makel.station.station import Station
from test_watch import drop, picture
from waiting import until


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "parts")


@pytest.fixture
def station(tmp_path, model):
    with Station.open(tmp_path / "station") as opened:
        opened.add("parts", model, by="test", role="engineer")
        yield opened


def test_serve_watches_and_is_triggered(tmp_path, model):
    arriving, taken = tmp_path / "arriving", tmp_path / "taken"
    arriving.mkdir()
    taken.mkdir()
    wired = ["--watch", f"free={arriving}", "--trigger", f"part={taken}", "--done", tmp_path / "done"]
    wired += ["--lead-ms", "60000", "--mqtt", "mqtt://127.0.0.1:1", "--deadline-ms", "5000"]
    models = [f"free={model}", f"part={model}", "--data", tmp_path / "station", "--port", "0", "--threads", "1"]
    command = [sys.executable, "-W", "error", "-m", "makel", "serve", *models, *wired]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while not (line := process.stderr.readline()).startswith("makel: serving on "):
            assert line
        with httpx2.Client(base_url=re.search(r"http://[\d.]+:\d+", line)[0], timeout=20) as client:
            drop(arriving, "a.png", picture(128))
            until(lambda: client.get("/history", params={"model": "free"}).json()["decisions"])
            drop(taken, "b.png", picture(0))
            body = client.post("/trigger/part", params={"name": "serial 7"}).json()
            assert (body["name"], body["source"], body["verdict"]) == ("serial 7", "trigger", "reject")
            assert body["arrival"].startswith("b.png@")
            missing = client.post("/trigger/free")
            assert (missing.status_code, missing.json()["detail"]) == (
                404,
                "'free' is no line with a trigger; there are part",
            )
            until(lambda: "cannot be reached" in client.get("/readyz").json()["warnings"][0])
            (warning,) = client.get("/readyz").json()["warnings"]
            assert re.fullmatch(r"MQTT: the broker 127\.0\.0\.1:1/makel cannot be reached: .*refused", warning)
        until(lambda: len(list((tmp_path / "done").rglob("*.png"))) == 2)
        assert len(list((tmp_path / "done" / "free" / "pass").iterdir())) == 1
        assert len(list((tmp_path / "done" / "part" / "reject").iterdir())) == 1
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 0
    assert json.loads((tmp_path / "station" / "mqtt.json").read_text())["acknowledged"] == 0


def test_what_cannot_be_wired_is_refused(station, tmp_path, makel_says):
    one = {"parts": tmp_path}
    for wiring, error, said in (
        (Wiring(watched=one, triggered=one), UsageError, "wire each once"),
        (Wiring(watched={"parts": tmp_path, "other": tmp_path / "."}), UsageError, "wire each once"),
        (Wiring(watched={"other": tmp_path}), NotFoundError, "other"),
        (Wiring(opcua="opc.tcp://127.0.0.1:4840"), UsageError, "wire at least one"),
    ):
        with pytest.raises(error, match=said):
            Connections(station, wiring)
    for given in ("folder", "=folder", "name="):
        code, _, said = makel_says("serve", "--data", tmp_path / "other", "--watch", given)
        assert (code, said) == (2, f"makel: --watch {given!r} is not NAME=FOLDER, or its model has a folder already\n")


def test_a_file_too_large_for_any_image_is_not_read(station, tmp_path):
    """Three copies of what is read are held for a moment: of no more than the largest image that is decoded."""
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(64 * 2**20 + 4 * station.settings.max_pixels + 1)
    with Connections(station, Wiring(watched={"parts": tmp_path}, settle_s=0, give_up_s=0.1)):
        until(lambda: station.store.count() == 1)
    (decided,) = station.store.find()
    assert "sparse.png is 187108865 bytes, at most 187108864 are read" in decided.decision.reason
    assert decided.decision.image_sha256 == ""


def test_what_was_started_is_stopped_where_the_next_cannot_start(station, tmp_path, monkeypatch):
    monkeypatch.setenv("MAKEL_OPCUA_PASSWORD", "secret")
    before = threading.active_count()
    elsewhere = {"mqtt": "mqtt://127.0.0.1:1", "opcua": "opc.tcp://192.0.2.1:4840"}
    taken = Connections(station, Wiring(watched={"parts": tmp_path}, **elsewhere))
    with pytest.raises(UsageError, match="no OPC UA server at"), taken:
        pass
    assert threading.active_count() == before
