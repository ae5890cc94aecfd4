import subprocess
import sys

import pytest

from makel.training import torchvision_import
from makel.training.torchvision_import import import_timm


def test_imports_timm_and_a_working_torchvision():
    timm = import_timm()
    import torchvision

    assert timm.create_model("resnet18").num_classes == 1000
    assert torchvision.transforms.Resize(8) is not None


def test_declares_nothing_where_torchvision_imports_by_itself(monkeypatch):
    import_timm()  # from here on torchvision is in sys.modules, so its import succeeds
    monkeypatch.setattr(torchvision_import, "_declare_operators", lambda: pytest.fail("declared without need"))
    import_timm()


def test_other_import_failures_are_passed_on(monkeypatch):
    def broken(name):
        raise RuntimeError("CUDA driver initialisation failed")

    monkeypatch.setattr(torchvision_import.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="CUDA driver"):
        import_timm()


@pytest.mark.parametrize("absent", ["torchvision", "timm"])
def test_a_missing_package_names_the_extra(absent):
    code = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        "from makel.errors import MissingExtraError\n"
        "from makel.training.torchvision_import import import_timm\n"
        "try: import_timm()\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a backbone needs the 'fit' extra, which is not installed: pip install 'makel[fit]'\n"
