"""Fits beside the line: what may start one, what is told of it, and how it ends. A whole one is in tests/browser."""

from __future__ import annotations

import io
import json
import threading
import zipfile

import pytest

import makel.station.fitting as fitting_module
from conftest import GOOD, SETTINGS, picture, serving
from makel.cli.progress import Bars
from makel.errors import MissingExtraError, Overloaded
from makel.station.access import Access, Tokens
from makel.station.station import Station


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
    # Called by what it is, though the folder in the zip is called line; and no path of this machine.
    assert job["problem"].startswith("part holds 1 different good image to fit on")
    assert "\n" not in job["problem"]
    assert job["ended"] > job["began"]
    assert job["version"] is None
    assert client.get("/jobs").json() == {"obstacle": "", "jobs": [job]}
    assert [path.name for path in (station.folder / "jobs").rglob("*")] == [job["id"], "job.json"]
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
    assert [path.name for path in (station.folder / "jobs" / job_id).iterdir()] == ["job.json"]
    assert [audit.action for audit in station.store.audits(limit=3)] == ["cancel fit", "cancel fit", "fit"]
    station.fitting.discard(station.fitting.reserve())  # there is room


def test_a_fit_that_a_stop_cut_off_says_so_after_the_restart(station):
    folder = station.fitting.reserve()
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes(GOOD)
    settings = fitting_module.FitSettings()
    station.fitting.start(
        folder, folder / "images", name="part", n_images=1, settings=settings, by="test", role="engineer"
    )
    without_power = (folder / "job.json").read_bytes()
    station.close()
    (job,) = station.fitting.jobs()
    assert (job.state, job.problem) == (
        "failed",
        "the station was stopped before it was learnt: send the images again",
    )
    assert [path.name for path in folder.iterdir()] == ["job.json"]
    with pytest.raises(Overloaded, match="being closed"):
        station.fitting.reserve()

    with Station.open(station.folder, SETTINGS) as again:
        assert again.fitting.jobs() == [job]
    # The power went: the child's files and a job that claims to run are what is left.
    (folder / "job.json").write_bytes(without_power)
    (folder / "images").mkdir()
    (folder.with_name("0123456789ab")).mkdir()
    (folder.with_name("0123456789ab") / "job.json").write_text("{}")
    with Station.open(station.folder, SETTINGS) as again:
        assert [(each.state, each.problem, bool(each.ended)) for each in again.fitting.jobs()] == [
            ("failed", job.problem, True)
        ]
        assert sorted(path.name for path in (station.folder / "jobs").rglob("*")) == [folder.name, "job.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no zip", "no zip file"),
        (zipped({"readme.txt": b"good"}), "holds no image, whatever its names say, but 1 .txt: send good images"),
        (zipped({f"good/{index}.png": b"good" for index in range(50)}), "but 50 .png: send"),
        (zipped({"a.heic": b"0", "b.heic": b"1", "README": b"2"}), "but 2 .heic, 1 without an ending: send"),
        (zipped({"../up.png": GOOD}), "leads outside"),
    ],
)
def test_an_upload_without_images_is_refused_and_leaves_nothing(client, station, content, said):
    answer = client.post("/jobs", params={"name": "part"}, content=content)
    assert answer.status_code == 400
    assert said in answer.json()["detail"]
    assert not any((station.folder / "jobs").iterdir())
    assert client.get("/jobs").json()["jobs"] == []


def test_a_form_without_images_says_what_came(client):
    files = [("image", (f"{index}.txt", b"good")) for index in range(3)]
    answer = client.post("/jobs", params={"name": "part"}, files=files)
    assert (answer.status_code, "but 3 .txt: send" in answer.json()["detail"]) == (400, True)


@pytest.mark.parametrize("inside", ["", "good/", "line/good/"])
def test_the_images_of_an_upload_lie_below_the_name_of_what_is_learnt(client, station, inside):
    images = {f"{inside}{index}.png": picture(100 + index) for index in range(3)} | {f"{inside}note.png": b"text"}
    job = client.post("/jobs", params={"name": "part"}, content=zipped(images)).json()
    client.delete(f"/jobs/{job['id']}")
    assert job["n_images"] == 3


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


def test_a_fit_is_told_what_was_chosen_and_nothing_else():
    assert fitting_module.FitSettings(false_reject=0.02).arguments() == [
        "--preset",
        "fast",
        "--false-reject",
        "0.02",
        "--calibrate",
        "holdout",
    ]
    chosen = fitting_module.FitSettings(backbone="resnext101", blocks=(1, 3), augment=True).arguments()
    assert chosen[6:] == ["--backbone", "resnext101", "--blocks", "1,3", "--augment"]


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
