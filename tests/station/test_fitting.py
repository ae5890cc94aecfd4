"""Fits beside the line: what may start one, what is told of it, and how it ends. A whole one is in tests/browser."""

from __future__ import annotations

import io
import json
import threading
import zipfile

import pytest

import makel.station.fitting as fitting_module
from conftest import GOOD, picture, serving
from makel.cli.progress import Bars
from makel.errors import MissingExtraError, Overloaded
from makel.station.access import Access, Tokens


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def ended(client, job_id):
    """A job that has ended. Its thread is what ends it, so that is what is waited for."""
    for thread in threading.enumerate():
        if thread.name == "makel-fit":
            thread.join(120)
    return client.get(f"/jobs/{job_id}").json()


IMAGES = {f"line/good/{index}.png": picture(100 + index) for index in range(4)}


def test_a_fit_that_cannot_be_says_why_in_one_line_and_leaves_nothing(client, station):
    one = {f"line/{index}.png": GOOD for index in range(4)}
    began = client.post("/jobs", params={"name": "part", "size": 64}, content=zipped(one))
    assert began.status_code == 202
    job = began.json()
    assert (job["state"], job["n_images"], job["settings"]["size"]) == ("fitting", 4, 64)
    busy = client.post("/jobs", params={"name": "other"}, content=zipped(IMAGES))
    assert busy.status_code == 503
    assert "'part' is being fitted, and one fit runs at a time" in busy.json()["detail"]
    job = ended(client, job["id"])
    assert job["state"] == "failed"
    assert job["problem"].startswith("line holds 1 different good image to fit on")  # and no path of this machine
    assert "\n" not in job["problem"]
    assert job["ended"] > job["began"]
    assert job["version"] is None
    assert client.get("/jobs").json() == {"obstacle": "", "jobs": [job]}
    assert not any((station.folder / "jobs").iterdir())
    assert [version["version"] for version in client.get("/models/part").json()["versions"]] == [1]


def test_a_fit_is_cancelled_at_once_and_makes_room(client, station):
    images = [("image", (f"../../{index}.png", GOOD)) for index in range(4)]
    began = client.post("/jobs", params={"name": "part"}, files=images)
    job_id = began.json()["id"]
    assert sorted(path.name for path in (station.folder / "jobs" / job_id / "images" / "part").iterdir()) == [
        f"{index:06}.png" for index in range(4)
    ]
    cancelled = client.delete(f"/jobs/{job_id}").json()
    assert (cancelled["state"], cancelled["version"]) == ("cancelled", None)
    assert client.delete(f"/jobs/{job_id}").json() == cancelled  # what has ended stays as it ended
    assert not any((station.folder / "jobs").iterdir())
    assert [audit.action for audit in station.store.audits(limit=3)] == ["cancel fit", "cancel fit", "fit"]
    station.fitting.discard(station.fitting.reserve())  # there is room


def test_closing_a_station_ends_its_fit(station, tmp_path):
    folder = station.fitting.reserve()
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes(GOOD)
    settings = fitting_module.FitSettings()
    station.fitting.start(
        folder, folder / "images", name="part", n_images=1, settings=settings, by="test", role="engineer"
    )
    station.close()
    assert station.fitting.jobs()[0].state == "cancelled"
    assert not folder.exists()
    with pytest.raises(Overloaded, match="being closed"):
        station.fitting.reserve()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no zip", "no zip file"),
        (zipped({"readme.txt": b"good"}), "holds no image"),
        (zipped({"../up.png": GOOD}), "leads outside"),
    ],
)
def test_an_upload_without_images_is_refused_and_leaves_nothing(client, station, content, said):
    answer = client.post("/jobs", params={"name": "part"}, content=content)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert not any((station.folder / "jobs").iterdir())
    assert client.get("/jobs").json()["jobs"] == []


def test_only_an_engineer_may_start_a_fit(station):
    tokens = Tokens(station.folder / "tokens.json")
    token = tokens.add("operator", "Shift 2")
    with serving(station, Access(tokens, token_needed=True)) as client:
        headers = {"Authorization": f"Bearer {token}"}
        assert client.post("/jobs", params={"name": "part"}, content=b"", headers=headers).status_code == 403
        assert client.get("/jobs", headers=headers).status_code == 200
        assert client.get("/jobs/0123456789ab", headers=headers).status_code == 404


def test_without_pytorch_the_page_is_told_before_anything_is_sent(client, station, monkeypatch):
    monkeypatch.setattr(fitting_module, "find_spec", lambda name: None)
    assert "pip install 'makel[fit]'" in client.get("/jobs").json()["obstacle"]
    with pytest.raises(MissingExtraError):
        station.fitting.reserve()
    assert client.post("/jobs", params={"name": "part"}, content=zipped(IMAGES)).status_code == 400


def test_both_sides_of_a_model_are_passed_on_as_the_command_line_has_them():
    assert fitting_module.FitSettings(size=(256, 640)).arguments()[2:4] == ["--size", "640x256"]
    assert fitting_module.FitSettings(size=384).arguments()[2:4] == ["--size", "384"]


def test_progress_for_programs_is_a_line_a_step(capsys):
    with Bars(as_json=True) as bars:
        bars("training", 1, 3)
        bars("training", 2, 3)  # too soon after the first to be worth a line
        bars("training", 3, 3)
        bars("export", 0, 1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(line["stage"], line["done"], line["total"]) for line in lines] == [
        ("training", 1, 3),
        ("training", 3, 3),
        ("export", 0, 1),
    ]
    with Bars(quiet=True, as_json=True) as bars:
        bars("training", 1, 3)
    assert capsys.readouterr().err == ""
