"""The public names: lazy, and clear about what is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

import makel
import makel.api
import tiny_model
from makel import methods
from makel.errors import DatasetError, MissingExtraError, UsageError


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_importing_makel_imports_nothing_else() -> None:
    code = "import sys, makel; print(sorted({'numpy', 'cv2', 'onnxruntime', 'pydantic', 'torch'} & set(sys.modules)))"
    assert run(code) == "[]"


def test_the_inspecting_half_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import makel, makel.methods; "
        "makel.Inspector; makel.evaluate; print(makel.methods.names() != ())"
    )
    assert run(code) == "True"


@pytest.mark.parametrize("call", ["makel.fit", "makel.methods.load('skip_ae')"])
def test_the_fitting_half_without_torch_says_what_to_install(call: str) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import makel, makel.methods\n"
        f"try:\n    {call}\n"
        "except makel.errors.MissingExtraError as error:\n    print(error)"
    )
    assert "pip install 'makel[fit]'" in run(code)
    assert MissingExtraError("x", "fit").extra == "fit"


def test_public_names_are_listed_and_others_refused() -> None:
    assert {"Inspector", "evaluate", "fit", "__version__"} <= set(dir(makel))
    assert set(makel.__all__) <= set(dir(makel))
    with pytest.raises(AttributeError, match="no attribute 'inspector_'"):
        _ = makel.inspector_


@pytest.mark.parametrize("name", methods.names())
def test_every_method_file_gives_its_one_detector(name: str) -> None:
    from makel.training.detector import Detector

    found = methods.load(name)
    assert issubclass(found, Detector)
    assert found.__module__ == f"makel.methods.{name}"


@pytest.mark.parametrize("name", ["layers", "os", "", "__init__", "..skip_ae"])
def test_no_other_module_can_be_loaded_as_a_method(name: str) -> None:
    with pytest.raises(UsageError, match="is not known: choose one of"):
        methods.load(name)


def test_evaluate_without_labelled_images_says_what_to_give(tmp_path) -> None:
    from PIL import Image

    model = tiny_model.write(tmp_path / "model")
    for i in range(3):
        (tmp_path / "parts").mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / "parts" / f"{i}.png")
    with pytest.raises(DatasetError, match="no labelled test images"):
        makel.evaluate(model, tmp_path / "parts")
