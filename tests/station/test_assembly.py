"""What runs a station has the guard and drift from its first moment, whichever command it is."""

import ast
import shutil
from pathlib import Path

import pytest
from test_candidates import decide, made

import makel.cli
from conftest import SETTINGS, picture, wait_for
from makel.errors import CandidateError
from makel.station.assembly import Assembly, assemble


@pytest.fixture
def refused(tmp_path, station):
    """The folder of a model that was a candidate for "part" and was refused; the station is closed."""
    for spot in (150, 154):
        decide(station, picture(spot), "good")
    candidates = Assembly.of(station).candidates
    found = made(candidates, join=False, false_reject=0.05)
    assert found.state == "refused"
    shutil.copytree(station.folder / "candidates" / found.id / "model", tmp_path / "given" / "part")
    station.close()
    return tmp_path / "given" / "part"


def test_a_refused_candidate_does_not_judge_by_way_of_watch(tmp_path, station, refused, makel_says):
    (tmp_path / "camera").mkdir()
    code, out, err = makel_says("watch", refused, tmp_path / "camera", "--data", station.folder)
    assert (code, out, err.count("\n")) == (17, "", 1)
    assert "version 2 is a candidate that is refused: it can promise a false-reject rate of" in err
    with assemble(station.folder, SETTINGS) as again:
        assert again.station.registry.active("part") == 1


def test_a_refused_candidate_that_is_added_again_is_the_same(station, refused):
    with assemble(station.folder, SETTINGS) as again:
        version, new = again.station.add("part", refused, by="ada", role="engineer")
        assert new
        with pytest.raises(CandidateError, match="version 2 is a candidate that is refused"):
            again.station.activate("part", version.version, by="ada", role="engineer")


def test_drift_is_followed_in_every_station(tmp_path, models):
    with assemble(tmp_path / "station", SETTINGS) as running:
        running.station.add("part", models["first"], by="ada", role="engineer")
        for number in range(50):
            decide(running.station, picture(number % 20))
        wait_for(lambda: running.drift.states()[0].parts == 50)
        (warning,) = running.station.warnings()
        assert "50 of 50 parts are rejected" in warning


def test_no_command_opens_a_station_in_another_way():
    commands = Path(makel.cli.__file__).parent
    opened = {
        path.name: {
            ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        }
        for path in commands.glob("*.py")
    }
    assert {name for name, calls in opened.items() if "assemble" in calls} == {"serve.py", "watch.py"}
    assert not [name for name, calls in opened.items() if calls & {"Station.open", "Station", "Candidates", "Drift"}]
