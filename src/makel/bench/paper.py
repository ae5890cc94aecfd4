"""The values the paper prints, as data: `paper_tables.json` says where they come from and under what licence."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

AVERAGE = "Average"

METHODS = {
    # ours: the paper's name, in the order of its columns
    "anogan": "AnoGAN",
    "ganomaly": "GANomaly",
    "skip_ganomaly": "Skip-GANomaly",
    "dfr": "DFR",
    "skip_ae": "Proposed Method",
}
LEVEL_UNSTATED = ("ganomaly", "skip_ganomaly")
"""Whether their areas are those of pixels or of images is not stated, and their numbers do not settle it. Those of DFR
and AnoGAN agree with what others printed at pixel level (DFR's own paper; Bergmann et al., CVPR 2019)."""

BACKBONES = {
    "mobilenet_v3_small": "MobileNet (S)",
    "mobilenet_v3_large": "MobileNet (L)",
    "vgg19": "VGG19",
    "resnext50": "ResNeXt50",
    "resnext101": "ResNeXt101",
}
BLOCKS = ("1", "2", "3", "1,2", "2,3", "1,2,3")


@cache
def load() -> dict[str, Any]:
    """The tables by number: "2", "3", "5" and "6" map category → column → area, "4" maps method → ms."""
    loaded: dict[str, Any] = json.loads(files("makel.bench").joinpath("paper_tables.json").read_text(encoding="utf-8"))
    return loaded


def table(number: str) -> dict[str, dict[str, float]]:
    """Category → column → area under the ROC curve, without the average."""
    return {name: row for name, row in load()[number].items() if name != AVERAGE}


def average(number: str) -> dict[str, float]:
    """The row "Average" as printed."""
    printed: dict[str, float] = load()[number][AVERAGE]
    return printed


def same_name(name: str) -> str:
    """A category's name as the paper and a folder share it: "Metal nut" is metal_nut, "Glass (PL)" is glass_pl."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
