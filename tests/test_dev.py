"""dev.py without installing anything: what it would do on each system."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement


@pytest.fixture
def dev(repository, tmp_path, monkeypatch):
    """dev.py as a module, with a working copy of its own."""
    spec = importlib.util.spec_from_file_location("dev", repository / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_bytes((repository / "pyproject.toml").read_bytes())
    (tmp_path / "locks").mkdir()
    for name, path in (("ROOT", ""), ("VENV", ".venv"), ("STAMP", ".venv/stamp.json"), ("PYTHON", ".venv/python")):
        monkeypatch.setattr(module, name, tmp_path / path)
    monkeypatch.delenv("MAKEL_TORCH", raising=False)
    return module


@pytest.fixture
def asked(dev, monkeypatch):
    """What dev.py asks of pip; its environment counts as working once it was made."""
    calls = []

    def pip(*arguments, required=True):
        calls.append(arguments)
        return True

    def create():
        dev.VENV.mkdir()
        dev.PYTHON.touch()

    monkeypatch.setattr(dev, "pip", pip)
    monkeypatch.setattr(dev, "create", create)
    monkeypatch.setattr(dev, "works", lambda: dev.PYTHON.is_file())
    monkeypatch.setattr(sys, "platform", "linux")
    return calls


def test_an_old_python_can_read_it_and_is_told(repository):
    text = (repository / "dev.py").read_text(encoding="utf-8")
    ast.parse(text, feature_version=(3, 6))
    checked = text.replace("(3, 11)", "(99, 0)")
    done = subprocess.run([sys.executable, "-"], input=checked, capture_output=True, text=True, check=False)
    version = "{}.{}".format(*sys.version_info)
    assert done.returncode == 1
    assert done.stderr == f"makel needs Python 3.11 or newer, this is {version}: run dev.py with a newer one\n"


def test_the_pinned_pair_is_what_pyproject_allows(repository, dev):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    allowed = {item.name: item for item in map(Requirement, project["optional-dependencies"]["fit"])}
    assert allowed["torch"].specifier.contains(dev.TORCH)
    assert allowed["torchvision"].specifier.contains(dev.TORCHVISION)


def test_first_call_installs_the_lock_then_torch_and_later_calls_nothing(dev, asked):
    dev.set_up([])
    index = ("--extra-index-url", "https://download.pytorch.org/whl/cpu", "--retries", "2")
    assert asked == [
        ("--require-hashes", "--requirement", dev.ROOT / "locks" / "line.txt"),
        ("torch==2.13.0+cpu", *index),
        ("--no-deps", "torchvision==0.28.0", *index),
        ("--editable", f"{dev.ROOT}[fit]", "torch==2.13.0", "torchvision==0.28.0"),
    ]
    dev.set_up([])
    assert len(asked) == 4
    dev.set_up(["dev"])
    assert len(asked) == 8
    assert asked[4] == ("--require-hashes", "--requirement", dev.ROOT / "locks" / "station.txt")
    assert any(item.startswith("pytest>=") for item in asked[-1])
    dev.set_up([])  # what more is there does no harm
    assert len(asked) == 8


@pytest.mark.parametrize("name", ["pyproject.toml", "locks/line.txt", "locks/station.txt"])
def test_a_change_of_what_is_asked_for_installs_again(dev, asked, name):
    dev.set_up([])
    with (dev.ROOT / name).open("a") as file:
        file.write("\n")
    dev.set_up([])
    assert len(asked) == 8


def test_a_set_up_that_breaks_off_is_done_again(dev, asked, monkeypatch):
    whole = dev.pip

    def breaks(*arguments, required=True):
        if "--editable" in arguments:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(dev, "pip", breaks)
    with pytest.raises(KeyboardInterrupt):
        dev.set_up([])
    monkeypatch.setattr(dev, "pip", whole)
    dev.set_up([])
    assert json.loads(dev.STAMP.read_text())["torch"] == "cpu"
    assert len(asked) == 7


def test_without_a_cpu_build_it_says_so_and_takes_the_index_s(dev, asked, monkeypatch, capsys):
    whole = dev.pip
    monkeypatch.setattr(dev, "pip", lambda *names, required=True: whole(*names) and names[0] != "torch==2.13.0+cpu")
    dev.set_up([])
    assert asked[2:4] == [("torch==2.13.0",), ("--no-deps", "torchvision==0.28.0")]
    assert "no CPU build of torch 2.13.0 within reach" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("platform", "build", "torch"),
    [
        ("linux", "cuda", ("torch===2.13.0",)),
        ("darwin", "cpu", ("torch==2.13.0",)),
    ],
)
def test_the_build_of_each_system(dev, asked, monkeypatch, platform, build, torch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("MAKEL_TORCH", build)
    dev.set_up([])
    assert asked[1:3] == [torch, ("--no-deps", "torchvision==0.28.0")]


def test_the_cuda_build_stays_until_another_is_asked_for(dev, asked, monkeypatch):
    monkeypatch.setenv("MAKEL_TORCH", "cuda")
    dev.set_up([])
    monkeypatch.delenv("MAKEL_TORCH")
    dev.set_up([])
    assert len(asked) == 4
    monkeypatch.setenv("MAKEL_TORCH", "cpu")
    dev.set_up([])
    assert asked[5][0] == "torch==2.13.0+cpu"


def test_builds_that_are_not_there_are_refused(dev, asked, monkeypatch):
    monkeypatch.setenv("MAKEL_TORCH", "rocm")
    with pytest.raises(SystemExit, match="MAKEL_TORCH is 'rocm': set it to cpu or cuda"):
        dev.set_up([])
    monkeypatch.setenv("MAKEL_TORCH", "cuda")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit, match="no CUDA build of torch for macOS"):
        dev.set_up([])
    assert asked == []


def test_a_failed_install_shows_what_pip_said(dev, monkeypatch):
    monkeypatch.setattr(dev, "PYTHON", sys.executable)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(SystemExit, match=r"(?s)No matching distribution.*set-up failed in: .* makel-does-not-exist"):
        dev.pip("makel-does-not-exist")
    assert dev.pip("makel-does-not-exist", required=False) is False


def test_jobs_refuse_arguments_they_do_not_take(repository):
    done = subprocess.run(
        [sys.executable, "dev.py", "lint", "--fix"], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "lint takes no further arguments, but got --fix" in done.stderr


@pytest.fixture
def system(dev, monkeypatch):
    """A system with some programs, and what was asked of its apt-get, which is there for root."""
    installed, orders = {"apt-get"}, []

    def run(command, env, **_):
        assert env["DEBIAN_FRONTEND"] == "noninteractive"
        orders.append([word for word in command if not word.startswith(("-o", "Acquire"))])
        if "install" in command:
            installed.update(
                {"postgresql": "initdb", "chromium-driver": "chromedriver"}.get(name, name) for name in command
            )

    monkeypatch.setattr(dev.shutil, "which", lambda name: f"/usr/bin/{name}" if name in installed else None)
    monkeypatch.setattr(dev.os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(dev.os, "name", "posix")
    monkeypatch.setattr(dev.subprocess, "run", run)
    monkeypatch.setattr(dev, "PROGRAMS", {name: (program, "/nowhere/*") for name, (program, _) in dev.PROGRAMS.items()})
    return installed, orders


def test_programs_that_are_missing_are_installed(dev, system, capsys):
    installed, orders = system
    installed |= {"chromium", "chromedriver"}
    dev.install_programs()
    install = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", "postgresql", "mosquitto"]
    assert orders == [["apt-get", "-qq", "update"], install]
    assert capsys.readouterr().err == "-- set-up: postgresql, mosquitto from the system's packages\n"
    dev.install_programs()
    assert len(orders) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("why", ["no apt-get", "not root", "apt-get fails"])
def test_what_is_still_missing_is_one_line(dev, system, monkeypatch, capsys, why):
    installed, orders = system
    installed |= {"initdb", "mosquitto", "chromedriver"}
    if why == "no apt-get":
        installed.remove("apt-get")
    elif why == "not root":
        monkeypatch.setattr(dev.os, "geteuid", lambda: 1000)
    else:
        monkeypatch.setattr(dev.subprocess, "run", lambda *_, **__: orders.append("failed"))
    dev.install_programs()
    assert orders == (["failed", "failed"] if why == "apt-get fails" else [])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "-- set-up: not installed: chromium; the tests that need them are skipped"


def test_programs_are_found_where_debian_puts_them(dev, monkeypatch, tmp_path):
    monkeypatch.setattr(dev.shutil, "which", lambda _: None)
    (tmp_path / "15" / "bin").mkdir(parents=True)
    (tmp_path / "15" / "bin" / "initdb").touch()
    monkeypatch.setattr(dev, "PROGRAMS", {"postgresql": ("initdb", f"{tmp_path}/*/bin"), "other": ("initdb", "/none")})
    assert dev.missing_programs() == ["other"]


@pytest.fixture
def client(dev, repository):
    """The folder of the reader in JavaScript, in the working copy of `dev`."""
    folder = dev.ROOT / "clients" / "node"
    folder.mkdir(parents=True)
    (folder / "package.json").write_bytes((repository / "clients" / "node" / "package.json").read_bytes())
    return folder


def test_node_packages_are_installed_once_and_again_when_the_pin_moves(dev, client, monkeypatch, capsys):
    calls = []
    pins = json.loads((client / "package.json").read_text())["dependencies"]

    def npm(command, **_):
        calls.append(command[:2])
        for name, version in pins.items():
            (client / "node_modules" / name).mkdir(parents=True, exist_ok=True)
            (client / "node_modules" / name / "package.json").write_text(json.dumps({"version": version}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(dev.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(dev.subprocess, "run", npm)
    for n_calls in (1, 1):
        dev.install_node_packages()
        assert calls == [["/usr/bin/npm", "install"]] * n_calls
    pins["pngjs"] = "7.0.1"
    (client / "package.json").write_text(json.dumps({"dependencies": pins}))
    dev.install_node_packages()
    assert len(calls) == 2
    assert set(capsys.readouterr().err.splitlines()) == {"-- set-up: onnxruntime-node, pngjs with npm (300 MB)"}


@pytest.mark.parametrize(("npm", "reason"), [(None, "npm is not installed"), ("npm", "npm install failed there")])
def test_without_node_packages_one_line_says_what_is_skipped(dev, client, monkeypatch, capsys, npm, reason):
    monkeypatch.setattr(dev.shutil, "which", lambda _: npm)
    monkeypatch.setattr(dev.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    dev.install_node_packages()
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"-- set-up: clients/node has no packages, {reason}; its test is skipped"
