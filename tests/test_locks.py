"""locks/ is in step with pyproject.toml, and what it installs is written down with its licences."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import guides
import installs

EXTRAS = {"line": (), "station": ("station",)}


@pytest.fixture
def lock(repository):
    """Reads a lock: its requirements, each with its hashes."""

    def read(name):
        text = (repository / "locks" / f"{name}.txt").read_text(encoding="utf-8")
        found = re.findall(r"^(\w[^\\\n]*?) \\\n((?: +--hash=[^\n]+\n)+)", text, re.MULTILINE)
        assert len(found) == len(re.findall(r"^[^ #\n]", text, re.MULTILINE))  # nothing else, and none without a hash
        return {Requirement(pin): set(re.findall(r"sha256:[0-9a-f]{64}", hashes)) for pin, hashes in found}

    return read


def applies(pin):
    return pin.marker is None or pin.marker.evaluate()


@pytest.mark.parametrize(("name", "extras"), EXTRAS.items())
def test_a_lock_holds_what_makel_brings_and_no_more(lock, name, extras):
    pins = lock(name)
    assert all(pins.values())
    assert {pin.name for pin in pins if applies(pin)} == installs.brought(extras), "python3 dev.py lock"


@pytest.mark.parametrize(("name", "extras"), EXTRAS.items())
def test_a_lock_allows_what_pyproject_allows(repository, lock, name, extras):
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, asked):
        pinned = [pin for pin in lock(name) if pin.name == canonicalize_name(requirement.name)]
        versions = [str(pin.specifier).removeprefix("==") for pin in pinned]
        assert versions, f"{requirement} is not in locks/{name}.txt: python3 dev.py lock"
        assert all(map(requirement.specifier.contains, versions)), f"{requirement}, locked {versions}"


def test_the_station_runs_on_the_versions_of_the_line(lock):
    line, station = lock("line"), lock("station")
    assert {pin: station[pin] for pin in line} == line


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_names_no_index_and_no_pytorch(repository, lock, name):
    text = (repository / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|index|find-links|^-", text, re.MULTILINE)
    assert not {"torch", "torchvision"} & {pin.name for pin in lock(name)}


def test_every_locked_package_is_among_the_licences(repository, lock):
    tables = guides.tables((repository / "docs" / "licences.md").read_text(encoding="utf-8"))
    licences = {row[0].split()[0]: row[2] for table in tables for row in table}
    assert {pin.name for name in EXTRAS for pin in lock(name)} <= licences.keys()
    assert all(licences.values())


def test_the_bill_of_materials_holds_the_lock_with_licences(repository, tmp_path, lock, installed):
    spec = importlib.util.spec_from_file_location("dev", repository / "dev.py")
    dev = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(dev)
    assert dev.LOCKS == EXTRAS
    out = tmp_path / "bill.json"
    subprocess.run([sys.executable, *map(str, dev.bill(installed("station").python, out))], check=True)
    bill = json.loads(out.read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "makel")
    components = {canonicalize_name(part["name"]): part for part in bill["components"]}
    assert {pin.name for pin in lock("station") if applies(pin)} == components.keys()
    assert all(part["version"] and part.get("licenses") for part in components.values())
