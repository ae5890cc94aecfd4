"""What the registry takes in computes here what was fitted."""

import shutil

import pytest

import tiny_model
from conftest import SETTINGS, picture
from makel.errors import ModelFolderError
from makel.station.registry import Registry
from makel.station.station import Station


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A folder whose files are all as its manifest says, and whose network scores its golden images differently."""
    folder = tmp_path_factory.mktemp("other") / "part"
    return tiny_model.write(folder, model=tiny_model.onnx_bytes(gain=1.01))


def test_a_model_that_computes_something_else_here_is_not_taken_in(tmp_path, other):
    registry = Registry(tmp_path / "models", threads=1)
    with pytest.raises(ModelFolderError, match=r"and scored .* when fitted"):
        registry.add("part", other)
    assert registry.names() == []
    assert list((tmp_path / "models").rglob("*")) == []


def test_a_version_that_computes_something_else_here_neither_starts_nor_takes_over(station, other):
    shutil.copytree(other, station.registry.version("part").path.parent / "2")
    with pytest.raises(ModelFolderError, match=r"and scored .* when fitted"):
        station.activate("part", 2, by="test", role="engineer")
    assert station.registry.active("part") == 1
    assert station.decide(picture(), source="http").decision.verdict == "pass"
    with pytest.raises(ModelFolderError, match=r"and scored .* when fitted"):
        station.inspector("part", 2)
    station.registry.set_active("part", 2)
    station.close()
    with Station.open(station.folder, SETTINGS) as again:
        assert again.models() == []
        assert "part is not served: " in again.warnings()[0]
        assert "when fitted" in again.warnings()[0]
