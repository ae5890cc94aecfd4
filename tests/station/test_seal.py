"""A station that serves only what somebody it trusts has signed, and that signs what it makes."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

import tiny_model
from conftest import DEFECT, GOOD, SETTINGS, picture, serving, wait_for
from makel.errors import ModelFolderError, SignatureError, UsageError
from makel.model.folder import open_folder
from makel.signing.signature import signature_path
from makel.signing.signer import Signer
from makel.signing.trust import Trust
from makel.station.candidates import Candidates
from makel.station.station import Station
from signers import certify, make, needs_signing

pytestmark = needs_signing


@pytest.fixture
def keys(tmp_path):
    return make(tmp_path, "plant")


@pytest.fixture
def folders(tmp_path, models, keys):
    """One model signed by the plant, one by somebody else, one by nobody."""
    found = {name: shutil.copytree(models["first"], tmp_path / "in" / name) for name in ("ours", "theirs", "bare")}
    Signer(keys[0]).sign(found["ours"])
    Signer(make(tmp_path, "stranger")[0]).sign(found["theirs"])
    return found


@pytest.fixture
def opened(tmp_path, keys, decoders):
    """A station that trusts the plant; called again after it was closed, as it starts the next time."""
    stations = []

    def start(*trusted, **more):
        settings = replace(SETTINGS, trusted=trusted, **more)
        stations.append(Station.open(tmp_path / "station", settings, decoders=decoders))
        return stations[-1]

    yield start
    for each in stations:
        each.close()


def add(station, name, folder):
    return station.add(name, folder, by="test", role="engineer")


def test_unsigned_and_foreign_models_stay_outside_and_the_others_are_served(opened, keys, folders):
    station = opened(keys[1])
    add(station, "ours", folders["ours"])
    for name, why in (("theirs", "which is not trusted"), ("bare", "is not signed")):
        with pytest.raises(SignatureError, match=why):
            add(station, name, folders[name])
    assert station.models() == station.registry.names() == ["ours"]
    assert station.decide(DEFECT, source="http").decision.verdict == "reject"
    assert (
        signature_path(station.registry.version("ours").path).read_bytes()
        == folders["ours"].with_name("ours.sig").read_bytes()
    )


def test_a_station_that_begins_to_trust_serves_what_was_signed_since(opened, tmp_path, keys, folders):
    station = opened()
    for name, folder in folders.items():
        add(station, name, folder)
    assert station.models() == ["bare", "ours", "theirs"]
    station.close()
    station = opened(keys[1])
    assert station.models() == ["ours"]
    warnings = "\n".join(station.warnings())
    assert "bare is not served: " in warnings
    assert "theirs is not served: " in warnings
    assert "is not signed" in station.registry.version("bare").problem
    with pytest.raises(ModelFolderError, match="is not signed"):
        station.decide(GOOD, model="bare", source="http")
    Signer(keys[0]).sign(folders["bare"])
    version, new = add(station, "bare", folders["bare"])
    assert (version.version, version.problem, new) == (1, "", False)
    assert station.models() == ["bare", "ours"]
    station.close()
    assert opened(keys[1], tmp_path / "stranger.pub").models() == ["bare", "ours", "theirs"]


def test_a_signature_that_goes_away_or_is_cut_is_seen_and_the_line_goes_on(opened, keys, folders):
    station = opened(keys[1])
    add(station, "ours", folders["ours"])
    path = signature_path(station.registry.version("ours").path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert "goes on from memory" in station.warnings()[0]
    assert "was cut or changed" in station.registry.version("ours").problem
    path.unlink()
    assert "is not signed" in station.registry.version("ours").problem
    assert station.decide(DEFECT, source="http").decision.verdict == "reject"
    with pytest.raises(SignatureError):
        station.activate("ours", 1, by="test", role="engineer")


def test_a_candidate_is_signed_by_the_station_and_tells_where_it_came_from(opened, keys, folders, makel_says):
    station = opened(keys[1])
    own = station.folder / "keys" / "station.key"
    add(station, "ours", folders["ours"])
    assert not own.exists()
    for spot in range(150, 190, 4):
        station.decide(picture(spot), source="http")
    candidates = Candidates(station)
    begun = candidates.begin("ours", false_reject=0.1, join=True, by="ada", role="engineer")
    wait_for(lambda: candidates.get("ours", begun.id).ended)
    assert candidates.get("ours", begun.id).problem == ""
    version = candidates.activate("ours", begun.id, by="ada", role="engineer")
    assert (version.version, version.active, version.problem) == (2, True, "")
    assert stat.S_IMODE(own.stat().st_mode) == 0o600

    first, second = (station.registry.version("ours", number) for number in (1, 2))
    links = Trust([own.with_suffix(".pub"), keys[1]]).chain(open_folder(second.path))
    assert [(link.model_id, link.trusted_by) for link in links] == [
        (second.model_id, own.with_suffix(".pub")),
        (first.model_id, keys[1]),
    ]
    told = [row for row in makel_says("info", second.path)[1].splitlines() if row.startswith("signed")]
    assert links[0].signed_by in told[0]
    assert f"from {first.model_id} of " in told[1]
    assert links[1].signed_by in told[1]
    station.close()
    again = opened(keys[1])  # what it made itself it trusts the next time, too
    assert (again.models(), again.registry.version("ours").version) == (["ours"], 2)
    again.close()
    shutil.rmtree(own.parent)  # and no longer without its key
    assert "which is not trusted" in opened(keys[1]).warnings()[0]


def test_the_public_part_beside_the_key_is_not_what_is_trusted(opened, tmp_path, keys, folders):
    station = opened(keys[1])
    station.seal.sign(folders["bare"])
    shutil.copy(tmp_path / "stranger.pub", station.folder / "keys" / "station.pub")
    station.close()
    station = opened(keys[1])
    with pytest.raises(SignatureError):
        add(station, "theirs", folders["theirs"])
    add(station, "bare", folders["bare"])


def test_a_station_can_be_given_its_key_and_signs_without_asking_for_signatures(opened, tmp_path, folders):
    key, public = make(tmp_path, "line")
    station = opened(signing_key=key)
    add(station, "bare", folders["bare"])
    source = tiny_model.write(tmp_path / "fitted")
    version, _ = station.fitting._take_in("fitted", source, by="test", role="engineer")
    assert Trust([public]).check(open_folder(version.path)).trusted_by == public
    assert not (station.folder / "keys").exists()
    station.close()
    with pytest.raises(UsageError, match="is no private key"):
        opened(signing_key=public)


def test_an_upload_brings_its_signature(opened, keys, folders):
    station = opened(keys[1])
    with serving(station) as client:
        for name, status in ("ours", 201), ("bare", 400), ("theirs", 400):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                for path in folders[name].parent.rglob("*"):
                    if path.is_file() and path.relative_to(folders[name].parent).parts[0] in (name, f"{name}.sig"):
                        archive.write(path, path.relative_to(folders[name].parent))
            answer = client.post(f"/models?name={name}", content=buffer.getvalue())
            assert answer.status_code == status, answer.text
            assert str(station.folder) not in answer.text
        assert "is not trusted" in answer.json()["detail"]


def test_an_expired_certificate_keeps_a_model_from_starting(opened, tmp_path, folders):
    root = certify(tmp_path, "root", sign=False)
    leaf = certify(tmp_path, "leaf", root, days=(-9, -1))
    Signer(leaf.key, (leaf.certificate,)).sign(folders["bare"])
    with pytest.raises(SignatureError, match="expired"):
        add(opened(root.certificate), "bare", folders["bare"])


def says(tmp_path, *arguments):
    command = [sys.executable, "-W", "error", "-m", "makel", *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_the_commands_refuse_in_one_line_and_leave_no_station_behind(tmp_path, keys, folders):
    (tmp_path / "arriving").mkdir()
    for command in (
        ["serve", folders["theirs"], "--port", "0"],
        ["watch", folders["bare"], tmp_path / "arriving"],
    ):
        code, out, said = says(tmp_path, *command, "--trusted", keys[1])
        assert (code, out, said.count("\n")) == (20, "", 1), said
        assert not (tmp_path / "makel-station").exists()
    serve = [sys.executable, "-m", "makel", "serve", *map(str, folders.values()), "--port", "0", "--threads", "1"]
    with subprocess.Popen([*serve, "--trusted", keys[1]], cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        said = []
        for line in process.stderr:
            said.append(line)
            if "serving on" in line:
                break
        process.terminate()
        process.communicate(timeout=30)
    told = "".join(said)
    assert "ours version 1 is new" in told
    assert told.count("; the others are served") == 2
    assert json.loads((tmp_path / "makel-station" / "models" / "ours" / "active.json").read_bytes())["active"] == 1
