"""Which zone failed, from the model to everything the station tells."""

import csv
import json

import pytest

import tiny_model
from conftest import SETTINGS, picture, serving
from makel.calibration import calibrate
from makel.model.zones import Zone, Zones
from makel.station.decisions import Decision
from makel.station.station import Station

# The picture's spot lies over x 20..40, y 12..24 of 80 x 48.
SPOT = ((16.0, 9.0), (44.0, 9.0), (44.0, 27.0), (16.0, 27.0))
EDGE = ((60.0, 0.0), (80.0, 0.0), (80.0, 48.0), (60.0, 48.0))


def zone(name, polygon):
    own = calibrate((0.1, 0.2, 0.25), (0.1, 0.2, 0.25), false_reject=0.25)
    return Zone(name=name, kind="inspect", polygon=polygon, false_reject=0.25, calibration=own)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    zones = Zones(image_size_px=(80, 48), zones=(zone("bore", SPOT), zone("edge", EDGE)))
    return tiny_model.write(tmp_path_factory.mktemp("zones") / "part", zones=zones)


@pytest.fixture
def station(tmp_path, model):
    with Station.open(tmp_path / "station", SETTINGS) as opened:
        opened.add("part", model, by="test", role="engineer")
        yield opened


def test_a_decision_says_which_zone_failed_wherever_it_goes(station, model, makel_says, tmp_path):
    said = station.inspector("part")
    with serving(station) as client:
        answer = client.post("/inspect", params={"name": "a"}, content=picture(255)).json()
        good = client.post("/inspect", content=picture()).json()
        bore, edge = answer["zones"]
        assert (bore["name"], bore["verdict"], edge["name"], edge["verdict"]) == ("bore", "reject", "edge", "pass")
        assert bore["score"] > bore["threshold"] == pytest.approx(0.25)
        assert edge["score"] < edge["threshold"]
        assert [each["verdict"] for each in good["zones"]] == ["pass", "pass"]
        assert answer["regions"][0]["zone"] == "bore"
        assert client.get("/history/1").json()["zones"] == answer["zones"]
        assert client.get("/history").json()["decisions"][1]["zones"] == answer["zones"]
        assert client.post("/models/part/try", content=picture(255)).json()["zones"] == answer["zones"]
        head = client.post("/inspect?picture=mask", content=picture(255), headers={"accept": "image/png"}).headers
        assert "zones" not in json.loads(head["makel-decision"])
    recorded = station.store.get(1)
    assert [each.name for each in recorded.decision.failed_zones] == ["bore"]
    assert recorded.decision.zones[0].p_value == said.calibration.p_value(1.0)
    assert station.store.verify() is None
    station.close()
    _, out, _ = makel_says("history", "show", station.folder, "--number", "1")
    assert f"zone bore: {bore['score']:.4g} of 0.25" in out
    assert "edge" not in out
    makel_says("history", "export", station.folder, tmp_path / "all.csv")
    with (tmp_path / "all.csv").open(newline="") as file:
        assert [json.loads(row["zones"]) for row in csv.DictReader(file)][:2] == [answer["zones"], good["zones"]]


def test_what_was_recorded_before_there_were_zones_is_read(station):
    station.decide(picture(255), source="http")
    body = station.store.get(1).decision.to_json()
    del body["zones"], body["look"]
    found = Decision.from_json(body)
    assert (found.zones, found.failed_zones) == ((), ())


def test_a_reject_that_no_model_made_has_no_zones(station):
    assert station.decide(b"text", source="http").decision.zones == ()
    assert station.reject("no picture", source="trigger").decision.failed_zones == ()
