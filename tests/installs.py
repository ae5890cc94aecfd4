"""What `pip install '.[EXTRA]'` gives a reader, without a network: an environment of just what the extra brings.

Its packages are those of the environment the tests run in, as links; which of them belong there says each package's own
metadata, from pyproject.toml on. pip then installs makel's wheel, and refuses if one is missing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parent.parent
packages_distributions = cache(metadata.packages_distributions)

INSTALL = re.compile(r"""^(?:python -m )?pip install (['"]?)(?:\.|makel)(?:\[(?P<extras>[\w,]+)\])?\1(?:\s+#.*)?$""")
"""The line that installs makel, from a copy of its repository or into an environment that has it."""


def build(repository: Path, folder: Path) -> Path:
    """Build makel's wheel into a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def applying(texts: Iterable[str], extra: str = "") -> list[Requirement]:
    """Those of the requirements that hold on this system, with an extra of the project that has them or none."""
    found = map(Requirement, texts)
    return [each for each in found if not each.marker or each.marker.evaluate({"extra": extra})]


def brought(extras: Iterable[str]) -> set[str]:
    """The packages that makel with these extras brings on this system, by their normalised names."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    waiting = applying([*project["dependencies"], *(f"makel[{extra}]" for extra in extras)])
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name == "makel":
            waiting += [each for extra in requirement.extras for each in applying(optional[extra])]
            continue
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            waiting += applying(distribution(name).requires or (), extra)
    return {name for name, _ in seen}


class Environment:
    """A virtual environment with makel's wheel and what its extras bring, and nothing else."""

    def __init__(self, folder: Path, wheel: Path, extras: frozenset[str]) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        inside = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
        link(brought(extras), inside)
        wanted = f"{wheel}[{','.join(sorted(extras))}]" if extras else str(wheel)
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-index", "--no-compile"]
        done = subprocess.run(
            [*command, wanted], env=surroundings(self.bin), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def surroundings(programs: Path) -> dict[str, str]:
    """The variables of a shell in which an environment is active, without what this process has for its own Python."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "COV"))}
    return {**kept, "PATH": os.pathsep.join([str(programs), kept["PATH"]])}


def link(packages: set[str], folder: Path) -> None:
    """Put packages into a folder of packages, each file and folder at their top as a link; their scripts stay out."""
    for name in sorted(packages):
        tops = {file.parts[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}
        for top in sorted(tops):
            owners = {canonicalize_name(owner) for owner in packages_distributions().get(top, [name])}
            assert owners <= packages, f"{top} is of {sorted(owners)}, and not all of these belong there"
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution(name).locate_file(top))
