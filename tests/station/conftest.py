"""Stations for tests: real ones, on a model whose scores can be computed by hand, and a server on the loopback."""

from __future__ import annotations

import shutil
import threading
from contextlib import contextmanager

import cv2
import httpx2
import numpy as np
import pytest

import tiny_model
from makel.station.access import Access, Tokens
from makel.station.decoding import Decoders
from makel.station.service import create_app, listen, server
from makel.station.station import Settings, Station


def picture(spot=None, shape=(48, 80)):
    """A mid-grey part as PNG; with `spot`, a square of that grey over x 20..40, y 12..24."""
    drawn = np.full((*shape, 3), 128, np.uint8)
    if spot is not None:
        drawn[12:24, 20:40] = spot
    return cv2.imencode(".png", drawn)[1].tobytes()


GOOD, DEFECT = picture(), picture(255)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Two model folders: "first" rejects above 0.3, "second" above 0.9, which is everything."""
    folder = tmp_path_factory.mktemp("station-models")
    return {
        "first": tiny_model.write(folder / "first"),
        "second": tiny_model.write(folder / "second", image_scores=(0.7, 0.8, 0.9)),
    }


SETTINGS = Settings(queue=8, batch=2, threads=1, journal_bytes=2**20)


@pytest.fixture(scope="session")
def station_folder(tmp_path_factory, models):
    """The folder of a station that serves "part", whose version 1 is "first"; to be copied."""
    folder = tmp_path_factory.mktemp("station-folder") / "station"
    with Station.open(folder, SETTINGS) as opened:
        opened.add("part", models["first"], by="test", role="engineer")
    return folder


def wait_for(condition, timeout_s=30):
    """Until something is so that nobody announces."""
    deadline = threading.Event()
    for _ in range(100 * timeout_s):
        if condition():
            return
        deadline.wait(0.01)
    raise AssertionError(f"did not happen within {timeout_s} s")


@pytest.fixture(scope="session")
def decoders():
    """Processes that decode, shared by all stations that are given them: each takes a moment to start."""
    opened = Decoders(2)
    yield opened
    opened.close()


@pytest.fixture
def station(tmp_path, station_folder, decoders):
    """A station that serves "part"."""
    shutil.copytree(station_folder, tmp_path / "station")
    with Station.open(tmp_path / "station", SETTINGS, decoders=decoders) as opened:
        yield opened


@contextmanager
def held(line):
    """Keep a line's model busy; gives what lets go of it."""
    begun, go = threading.Event(), threading.Event()

    def wait(_):
        begun.set()
        go.wait(30)

    future = line.run(wait)
    assert begun.wait(30)
    try:
        yield go
    finally:
        go.set()
        future.result(30)


@contextmanager
def serving(station, access=None, **limits):
    """A client of a real server on the loopback."""
    from makel.station.limits import BodyLimits

    access = access or Access(Tokens(station.folder / "tokens.json"))
    app = create_app(station, access, BodyLimits(**limits) if limits else None)
    running = server(app)
    with listen("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=running.run, args=([socket],))
        thread.start()
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{socket.getsockname()[1]}", timeout=30) as client:
                yield client
        finally:
            running.end()
            thread.join()


@pytest.fixture
def client(station):
    """A client of the station."""
    with serving(station) as opened:
        yield opened
