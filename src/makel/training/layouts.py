"""The naming schemes that weight files come in, brought into timm's.

Nothing is dropped or added here: what is not understood keeps its name, and the strict match afterwards reports it.
"""

from __future__ import annotations

import re

from torch import Tensor, nn

State = dict[str, Tensor]


def translate(state: State, model: nn.Module) -> State:
    """The tensors of a weight file under the names of timm's full `model`.

    Args:
        state: Tensors under timm's names, those of a Lite package, or those of torchvision. Its ResNeXts are named as
            timm's are, its VGGs are not.
        model: The timm model, with its classifier.
    """
    if "_conv_stem.weight" in state:
        return _from_lite_package(state, model)
    if "classifier.6.weight" in state:
        return _from_torchvision_vgg(state)
    return state


# The Lite packages number all blocks in one row and name layers by their role, timm counts stages and layers. A block
# without expansion (the first) has no 1x1 convolution in front, so timm numbers its layers from the next one on.
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def _from_lite_package(state: State, model: nn.Module) -> State:
    places: list[tuple[str, dict[str, str]]] = []  # where timm has block n, and what it calls the layers in there
    stages = getattr(model, "blocks", nn.Sequential())
    for stage, blocks in enumerate(stages.children()):
        for number, block in enumerate(blocks.children()):
            places.append((f"blocks.{stage}.{number}", _EXPANDING if hasattr(block, "conv_pwl") else _PLAIN))

    def name(key: str) -> str:
        inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if inside is None:
            layer, _, kind = key.partition(".")
            return f"{_ENDS.get(layer, layer)}.{kind}"
        if int(inside[1]) >= len(places):
            return key
        place, layers = places[int(inside[1])]
        return f"{place}.{layers.get(inside[2], inside[2])}.{inside[3]}"

    return {name(key): value for key, value in state.items()}


# timm runs torchvision's first two linear layers as convolutions, over the whole 7x7 map and over 1x1.
_VGG = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
_KERNELS = {"classifier.0.weight": 7, "classifier.3.weight": 1}


def _from_torchvision_vgg(state: State) -> State:
    renamed = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        side = _KERNELS.get(key)
        if side and value.dim() == 2 and value.shape[1] % (side * side) == 0:
            value = value.reshape(len(value), -1, side, side)
        renamed[f"{_VGG.get(layer, layer)}.{kind}"] = value
    return renamed
