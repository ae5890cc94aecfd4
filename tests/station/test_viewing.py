"""What the page asks for: pictures to look at, the nearest good one, thresholds, trials, and how the station does."""

from __future__ import annotations

import base64
import io
import re
from importlib.resources import files

import cv2
import numpy as np
import pytest
from PIL import Image

from conftest import DEFECT, GOOD, picture
from makel.calibration import calibrate


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def inspect(client, image, name="part"):
    return client.post("/inspect", params={"name": name}, content=image).json()["number"]


def test_a_view_is_a_picture_every_browser_shows_with_the_size_regions_refer_to(client):
    grey16 = np.full((60, 200), 40_000, np.uint16)
    tiff = cv2.imencode(".tiff", grey16)[1].tobytes()
    number = inspect(client, tiff)
    view = client.get(f"/history/{number}/view", params={"longest_px": 100})
    assert (view.headers["Content-Type"], view.headers["Makel-Image-Size"]) == ("image/jpeg", "200x60")
    assert pixels(view.content).shape == (30, 100, 3)
    assert client.get("/history/999/view").status_code == 404


def test_heat_is_clear_on_the_background_and_seen_on_the_defect(client):
    number = inspect(client, DEFECT)
    heat = pixels(client.get(f"/history/{number}/heat").content)
    assert heat.shape == (48, 80, 4)
    assert heat[18, 30, 3] > 100
    assert heat[40, 70, 3] == 0
    damaged = inspect(client, b"no image")
    answer = client.get(f"/history/{damaged}/heat")
    assert answer.status_code == 404
    assert "no model answered" in answer.json()["detail"]


def test_the_nearest_good_picture_is_the_one_that_differs_least(client):
    other = inspect(client, picture(140, shape=(48, 80)), "far")
    close = inspect(client, picture(220), "close")  # a reject a person calls good
    number = inspect(client, picture(230), "wanted")
    assert client.get(f"/history/{number}/nearest").json()["number"] == other
    assert client.post(f"/history/{close}/answer", json={"answer": "good"}).status_code == 200
    found = client.get(f"/history/{number}/nearest").json()
    assert (found["number"], found["golden"], found["n_compared"]) == (close, None, 2)
    assert found["difference"] == pytest.approx(10 / 255 * (20 * 12) / (48 * 80), rel=0.15)
    assert client.post(f"/history/{other}/answer", json={"answer": "defect"}).status_code == 200
    assert client.get(f"/history/{number}/nearest").json()["n_compared"] == 1


def test_where_no_good_picture_is_kept_a_golden_image_stands_in(client):
    number = inspect(client, DEFECT)
    found = client.get(f"/history/{number}/nearest").json()
    assert (found["number"], found["version"], found["n_compared"]) == (None, 1, 2)
    golden = client.get(f"/models/part/golden/{found['golden']}", params={"version": found["version"]})
    assert pixels(golden.content).shape == (16, 16, 3)
    assert client.get("/models/part/golden/2").status_code == 404


def test_thresholds_are_those_of_the_calibration(client, station):
    inspect(client, GOOD)
    inspect(client, DEFECT)
    own = client.get("/models/part/thresholds").json()
    calibration = station.inspector("part").calibration
    assert own["scores"] == [0.1, 0.2, 0.3]
    assert own["recent"] == pytest.approx([0.5, 0.002], abs=0.001)
    assert own["image_threshold"] == calibration.image_threshold
    assert own["explanation"] == calibration.explain()
    assert own["levels"] == [
        {"false_reject": rank / 4, "threshold": calibration.threshold_for(rank / 4)} for rank in (1, 2)
    ]
    asked = client.get("/models/part/thresholds", params={"false_reject": 0.5}).json()
    other = calibrate((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), false_reject=0.5)
    assert (asked["image_threshold"], asked["explanation"]) == (other.image_threshold, other.explain())
    assert client.get("/models/nobody/thresholds").status_code == 404


def test_a_version_is_tried_without_a_record(client, station, models):
    station.add("part", models["second"], by="test", role="engineer")
    first = client.post("/models/part/try", content=DEFECT).json()
    second = client.post("/models/part/try", params={"version": 2}, content=DEFECT).json()
    assert (first["verdict"], second["verdict"]) == ("reject", "pass")
    assert first["size_px"] == [80, 48]
    assert pixels(base64.b64decode(first["view_jpg"])).shape == (48, 80, 3)
    assert pixels(base64.b64decode(first["heat_png"])).shape == (48, 80, 4)
    assert first["regions"][0]["box_px"]
    assert station.store.count() == 0
    assert client.post("/models/part/try", content=b"").status_code == 400
    assert client.post("/models/part/try", content=b"no image").status_code == 422


def test_the_overview_counts_and_the_record_is_verified_on_request(client, station):
    for image in (GOOD, DEFECT, GOOD):
        inspect(client, image)
    seen = client.get("/overview").json()
    assert seen["latency_ms"]["n"] == 3
    assert 0 < seen["latency_ms"]["p50"] <= seen["latency_ms"]["p99"]
    assert seen["lines"] == [{"name": "part", "depth": 0, "queue": 8}]
    assert {shelf: each["n"] for shelf, each in seen["pictures"]["shelves"].items()} == {
        "pass": 1,
        "reject": 1,
        "answered": 0,
    }
    assert (seen["record"]["decisions"], seen["record"]["verified"]) == (3, None)
    verified = client.post("/record/verify").json()
    assert (verified["entry"], verified["problem"]) == (station.store.head().entry, "")
    assert client.get("/overview").json()["record"]["verified"] == verified


def test_the_page_is_whole_and_loads_nothing_but_itself(client):
    index = client.get("/")
    assert index.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in index.headers["Content-Security-Policy"]
    assert "unsafe" not in index.headers["Content-Security-Policy"]
    held = {item.name for item in files("makel.station").joinpath("page").iterdir()}
    wanted = set(re.findall(r"/page/([a-z.]+)", index.text))
    for name in held - {"index.html"}:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200
        assert "http://" not in answer.text.replace("http://www.w3.org/", "")
        assert "https://" not in answer.text
        wanted |= set(re.findall(r'from "\./([a-z]+\.js)"', answer.text))
    assert wanted == held - {"index.html"}
    assert "style=" not in index.text
    icon = client.get("/favicon.ico")
    assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")
    assert client.get("/page/nothing.js").status_code == 404
    assert client.get("/page/..%2fservice.py").status_code == 404
