#!/usr/bin/env python3
"""Set up a working copy of makel and do one job in it. Python's standard library only; Linux, macOS, Windows.

    python3 dev.py demo          fit and evaluate a small synthetic line
    python3 dev.py test [ARGS]   lint, then all tests with coverage; with ARGS, only pytest with those
    python3 dev.py lint          ruff, formatting, mypy
    python3 dev.py setup         the set-up alone
    python3 dev.py lock          write locks/ anew from pyproject.toml: exact versions with hashes
    python3 dev.py sbom          write dist/*.cdx.json: what the locks install, with licences, as CycloneDX

The first call makes `.venv` beside this file and installs into it: what makel runs on, in the versions of locks/ and
each file checked against its hash; torch and torchvision; then makel with what the job needs. Later calls see from a
stamp that nothing changed. MAKEL_TORCH=cuda takes the CUDA build of torch, MAKEL_TORCH=cpu the CPU one; unset, what is
installed stays, and a fresh set-up takes the CPU build.

Some tests run real programs of the system: a PostgreSQL server, an MQTT broker, a browser. On Debian and Ubuntu, as
root, `test` and `setup` install those that are missing; elsewhere they say which, and those tests are skipped. What the
reader in JavaScript (clients/node) runs on comes with npm, where there is one.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  the one line that an older Python has to understand
    sys.exit("makel needs Python 3.11 or newer, this is {}.{}: run dev.py with a newer one".format(*sys.version_info))

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "makel-setup.json"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

# One pair, pinned together: any other torchvision would bring a torch of its own.
TORCH, TORCHVISION = "2.13.0", "0.28.0"
TORCH_INDEX = "https://download.pytorch.org/whl"

# What each lock holds, as extras of makel. PyTorch is in none: its builds differ by index, so the pair above is pinned.
LOCKS = {"line": (), "station": ("station",)}

# Programs that tests run, by the Debian package that has them, and where they stand beside the usual places.
PROGRAMS = {
    "postgresql": ("initdb", "/usr/lib/postgresql/*/bin"),
    "mosquitto": ("mosquitto", "/usr/sbin"),
    "chromium": ("chromium", "/usr/lib/chromium"),
    "chromium-driver": ("chromedriver", "/usr/bin"),
}


def main():
    """Do what the command line asks and exit with the job's code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("demo", "test", "lint", "setup", "lock", "sbom"))
    known, arguments = parser.parse_known_args()
    job = known.job
    if arguments and job not in ("demo", "test"):
        parser.error(f"{job} takes no further arguments, but got {' '.join(arguments)}")
    set_up({"demo": [], "lock": ["dev", "release"], "sbom": ["dev"]}.get(job, ["dev"]))
    if job in ("lock", "sbom"):
        for name in LOCKS:
            lock(name) if job == "lock" else sbom(name)
    if job in ("test", "setup"):
        install_programs()
        install_node_packages()
    if job == "demo":
        sys.exit(call("demo", ["-m", "makel", "demo", *arguments]))
    if job == "test" and arguments:
        sys.exit(call("pytest", ["-m", "pytest", *arguments]))
    if job in ("lint", "test"):
        lint()
    if job == "test":
        sys.exit(call("pytest", ["-m", "pytest", "-n", "2", "--cov", "--cov-report=term:skip-covered"], threads=1))


def lint():
    """Run every check that needs no test; the first that fails ends the run."""
    for name, arguments in (
        ("ruff check", ["ruff", "check", "."]),
        ("ruff format", ["ruff", "format", "--check", "."]),
        ("mypy", ["mypy"]),
    ):
        code = call(name, ["-m", *arguments])
        if code:
            sys.exit(code)


def lock_file(name):
    """The file of a lock: requirements as pip reads them."""
    return ROOT / "locks" / f"{name}.txt"


def lock(name):
    """Write a lock anew, for every system and Python that makel runs on; what it has and still fits stays as it is."""
    extras = [word for extra in LOCKS[name] for word in ("--extra", extra)]
    wanted = ["--universal", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links", *extras]
    header = ["--custom-compile-command", "python3 dev.py lock"]
    code = call(
        f"locks/{name}.txt",
        ["-m", "uv", "pip", "compile", "--quiet", "pyproject.toml", *wanted, *header, "--output-file", lock_file(name)],
    )
    if code:
        sys.exit(code)


def sbom(name):
    """Write the bill of materials of what a lock installs, found by installing it."""
    out = ROOT / "dist" / f"makel-{name}.cdx.json"
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder, PYTHON.relative_to(VENV))
        subprocess.run([str(PYTHON), "-m", "venv", "--without-pip", folder], check=True)
        pip("--require-hashes", "--requirement", lock_file(name), into=python)
        pip("--no-deps", ROOT, into=python)
        code = call(str(out.relative_to(ROOT)), bill(python, out))
    if code:
        sys.exit(code)


def bill(python, out):
    """The module and arguments that write down what an environment holds; the same every time."""
    kind = ["--gather-license-texts", "--output-reproducible", "--pyproject", ROOT / "pyproject.toml"]
    return ["-m", "cyclonedx_py", "environment", *kind, "--output-format", "JSON", "--output-file", out, python]


def call(name, arguments, threads=2):
    """Run the environment's Python with `arguments` under a headline, and return its exit code."""
    print(f"== {name}", flush=True)
    # A fixed number of threads, so that time and last digit of a result do not depend on how many cores stand idle.
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return subprocess.call([str(PYTHON), *map(str, arguments)], cwd=ROOT, env={**limits, **os.environ})


def set_up(groups):
    """Bring `.venv` to what pyproject.toml asks for, plus dependency groups; nothing to do if it is there already."""
    stamp = json.loads(STAMP.read_text()) if STAMP.is_file() and works() else {}
    build = os.environ.get("MAKEL_TORCH") or stamp.get("torch", "cpu")
    if build not in ("cpu", "cuda"):
        sys.exit(f"MAKEL_TORCH is {build!r}: set it to cpu or cuda, or leave it out")
    if build == "cuda" and sys.platform == "darwin":
        sys.exit("there is no CUDA build of torch for macOS: leave MAKEL_TORCH out")
    groups = sorted({*groups, *stamp.get("groups", [])})
    if stamp == {"torch": build, "inputs": inputs(), "groups": groups}:
        return
    began = time.monotonic()
    if not works():
        create()
    STAMP.unlink(missing_ok=True)  # a set-up that breaks off halfway counts as none
    locked = "station" if "dev" in groups else "line"
    step(f"what makel runs on, as locks/{locked}.txt has it")
    pip("--require-hashes", "--requirement", lock_file(locked))
    install_torch(build)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = [requirement for group in groups for requirement in project["dependency-groups"][group]]
    step("makel and what it needs")
    pip("--editable", f"{ROOT}[fit]", *needed, f"torch=={TORCH}", f"torchvision=={TORCHVISION}")
    STAMP.write_text(json.dumps({"torch": build, "inputs": inputs(), "groups": groups}))
    step(f"ready after {time.monotonic() - began:.0f} s")


def install_programs():
    """Install the system's programs that tests need, where this can be done unasked; otherwise say what is skipped."""
    missing = missing_programs()
    if missing and shutil.which("apt-get") and os.name == "posix" and os.geteuid() == 0:
        step(f"{', '.join(missing)} from the system's packages")
        # Without a network this gives up soon, and the tests are skipped as on any other system.
        patience = ("-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for order in (("update",), ("install", "--yes", "--no-install-recommends", *missing)):
            command = ["apt-get", *patience, "-qq", *order]
            subprocess.run(command, env=environment, capture_output=True, check=False)
        missing = missing_programs()
    if missing:
        step(f"not installed: {', '.join(missing)}; the tests that need them are skipped")


def missing_programs():
    """The packages whose program is not on this machine."""
    return [
        package
        for package, (program, place) in PROGRAMS.items()
        if not shutil.which(program) and not list(Path("/").glob(f"{place[1:]}/{program}"))
    ]


def install_node_packages():
    """Install what the reader in JavaScript runs on, where there is npm; otherwise say that its test is skipped."""
    client = ROOT / "clients" / "node"
    packages = json.loads((client / "package.json").read_text())["dependencies"]
    files = [client / "node_modules" / name / "package.json" for name in packages]
    if [json.loads(file.read_text())["version"] for file in files if file.is_file()] == list(packages.values()):
        return
    npm = shutil.which("npm")
    if npm:
        step(f"{', '.join(packages)} with npm (300 MB)")
        patience = ("--fetch-retries=1", "--fetch-timeout=60000")
        command = [npm, "install", "--no-audit", "--no-fund", *patience]
        done = subprocess.run(command, cwd=client, capture_output=True, check=False)
        if not done.returncode:
            return
    reason = "npm install failed there" if npm else "npm is not installed"
    step(f"clients/node has no packages, {reason}; its test is skipped")


def inputs():
    """Hash of everything a set-up depends on: this file, pyproject.toml, the locks, and the environment's Python."""
    parts = [Path(__file__), ROOT / "pyproject.toml", *map(lock_file, LOCKS), VENV / "pyvenv.cfg"]
    return hashlib.sha256(b"\0".join(part.read_bytes() if part.is_file() else b"" for part in parts)).hexdigest()


def works():
    """Whether `.venv` has a Python that runs and is new enough."""
    if not PYTHON.is_file():
        return False
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([str(PYTHON), "-c", check], capture_output=True, check=False).returncode == 0


def create():
    """Make `.venv` afresh with the Python that runs this file."""
    step(f"virtual environment with Python {sys.version_info[0]}.{sys.version_info[1]}")
    if VENV.exists():
        shutil.rmtree(VENV)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode:
        sys.exit(f"{made.stdout}{made.stderr}\nmaking {VENV} failed: on Debian and Ubuntu, install python3-venv first")


def install_torch(build):
    """Install torch and torchvision, the given build of both."""
    step(f"torch {TORCH} ({build} build; a few hundred MB, several GB with CUDA)")
    index = ()
    if sys.platform == "darwin" or (build, os.name) == ("cpu", "nt"):
        pip(f"torch=={TORCH}")  # what the package index has is the CPU build
    elif build == "cuda" and os.name != "nt":
        pip(f"torch==={TORCH}")  # likewise the CUDA build; === does not take a local CPU build for it
    else:
        # PyTorch's own index has the builds that the package index lacks. Where it cannot be reached pip warns and
        # looks on in what else it knows, such as a mirror or a folder of wheels.
        local = "cpu" if build == "cpu" else "cu130"
        index = ("--extra-index-url", f"{TORCH_INDEX}/{local}", "--retries", "2")
        if not pip(f"torch=={TORCH}+{local}", *index, required=build == "cuda"):
            index = ()
            step(f"no CPU build of torch {TORCH} within reach; taking the package index's, which may be the CUDA one")
            pip(f"torch=={TORCH}")
    pip("--no-deps", f"torchvision=={TORCHVISION}", *index)  # its own wish for a torch has just been met


def pip(*arguments, required=True, into=None):
    """Run pip install in the environment, or for another's Python; show its words only if its failure is the end."""
    place = ["--python", into] if into else []
    options = ["--quiet", "--disable-pip-version-check", "--no-input"]
    command = [str(word) for word in (PYTHON, "-m", "pip", *place, "install", *options, *arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode and required:
        sys.exit(f"{done.stdout}\nset-up failed in: {' '.join(command)}")
    return done.returncode == 0


def step(text):
    """Say what the set-up is doing."""
    print(f"-- set-up: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
