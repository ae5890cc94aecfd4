"""What every test shares: few threads, no network, a home of its own, and the real images where they stand."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = REPOSITORY.parent / "shared" / "data"

# Set before any test imports numpy, OpenCV, torch or the hub's client: each reads its variable once.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "2")  # so that a run costs the same on a small shared machine as on a large one
_hub = tempfile.TemporaryDirectory(prefix="makel-hub-")  # removed when the run ends
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": _hub.name}  # with the hub, a test would pass or fail with the weather


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """A makel home of the test's own, so that it neither sees nor leaves anything of the user's."""
    monkeypatch.setenv("MAKEL_HOME", str(tmp_path / ".makel-home"))


@pytest.fixture(scope="session")
def repository():
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data():
    """The folder of real images in MVTec AD layout, one category a folder."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real images at {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """Clean environments with makel installed; `installed("fit,station")` is the one with these extras, made once."""
    import installs

    folder, made = tmp_path_factory.mktemp("installs"), {}
    wheel = installs.build(REPOSITORY, folder / "wheel")

    def get(extras):
        names = frozenset(filter(None, extras.split(",")))
        if names not in made:
            made[names] = installs.Environment(folder / ("-".join(sorted(names)) or "line"), wheel, names)
        return made[names]

    return get


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server; `postgresql.database()` is the URL of new empty room on it."""
    from postgresql import Server

    server = Server()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request, tmp_path):
    """Where a station's record may be: a file, or a database of a server."""
    if request.param == "sqlite":
        return tmp_path / "station" / "store.sqlite"
    return request.getfixturevalue("postgresql").database()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small file system")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "makel", folder], capture_output=True).returncode:
        pytest.skip("this system does not let root mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def one_thread():
    """PyTorch on one thread, for networks so small that more would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def makel_says(capsys):
    """Run a command; gives exit code, stdout and stderr."""
    from makel.cli import run

    def call(*arguments):
        code = run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call
