"""Frozen ImageNet backbones: an image in [0, 1] in, features of chosen blocks out.

Block b is the last feature map of stride 2^(b+1): block 1 has stride 4, block 2 stride 8, block 3 stride 16 and block 4
stride 32, for every backbone. timm builds the architecture, `makel.training.weights` finds the weights.

The exception is "vgg19_dfr", VGG19 as DFR takes features from it: its blocks are VGG's own stages 1 to 5 (strides 1 to
16), each with all of its ReLU outputs concatenated, and zero padding is replaced by reflection. Stages 1 to 4 are the
12 layers relu1_1 to relu4_4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from makel.errors import UsageError, WeightsError
from makel.training.facts import VGG19_DFR, BackboneFacts, facts_of
from makel.training.torchvision_import import import_timm
from makel.training.weights import find, from_file, load

BLOCKS = (1, 2, 3, 4)
STAGES = (1, 2, 3, 4, 5)


class Backbone(nn.Module):
    """A frozen network that gives features of chosen blocks. It never trains: no gradients, always in eval mode.

    Attributes:
        name: Name of the backbone.
        blocks: The blocks features are taken from, finest first.
        channels: Channels of each block's features.
        strides: Input pixels a feature position, for each block.
        licence: SPDX identifier of the weights' licence.
        source: Where the weights came from: "package", "added", "hub" or "file".
        weights_sha256: SHA-256 of the weight file, in hex.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        blocks: Sequence[int],
        channels: Sequence[int],
        strides: Sequence[int],
        normalisation: tuple[Sequence[float], Sequence[float]],
        licence: str,
        source: str,
        weights_sha256: str,
    ) -> None:
        super().__init__()
        self.network = network
        self.name = name
        self.blocks = tuple(blocks)
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.licence = licence
        self.source = source
        self.weights_sha256 = weights_sha256
        for key, values in zip(("mean", "std"), normalisation, strict=True):
            self.register_buffer(key, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1))
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def wrap(cls, network: nn.Module, *, name: str, channels: Sequence[int], strides: Sequence[int]) -> Self:
        """A backbone around any module that maps (N, 3, H, W) images to a sequence of features, one a block.

        Args:
            network: The module; its parameters as they are, without normalisation in front.
            name: What to call it.
            channels: Channels of each feature map.
            strides: Stride of each feature map, 4 for block 1, 8 for block 2 and so on.
        """
        digest = hashlib.sha256()
        for key, value in network.state_dict().items():
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
        return cls(
            network,
            name=name,
            blocks=[stride.bit_length() - 2 for stride in strides],
            channels=channels,
            strides=strides,
            normalisation=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
            licence="unknown",
            source="file",
            weights_sha256=digest.hexdigest(),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Features of the chosen blocks, finest first.

        Args:
            image: (N, 3, H, W) float32 RGB in [0, 1].

        Returns:
            For each block (N, C, H / stride, W / stride) float32, sizes rounded up where they do not divide.
        """
        return tuple(self.network((image - self.mean) / self.std))[: len(self.blocks)]

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """Stay in eval mode, whatever `mode` says: the statistics of a frozen backbone never move."""
        return super().train(False)

    def to_json(self) -> dict[str, Any]:
        """What a model folder records about its backbone."""
        return {
            "name": self.name,
            "blocks": list(self.blocks),
            "licence": self.licence,
            "source": self.source,
            "weights_sha256": self.weights_sha256,
        }


def build(name: str, blocks: Sequence[int], *, weights: Path | None = None) -> Backbone:
    """A backbone with its ImageNet weights.

    Args:
        name: A short name ("efficientnet_lite0", "resnext101"), any convolutional timm name, or "vgg19_dfr".
        blocks: Blocks to take features from, 1 (stride 4) to 4 (stride 32), in any combination; of "vgg19_dfr" 1
            (stride 1) to 5 (stride 16).
        weights: A weight file to use in place of the package, the added file or the hub.

    Raises:
        UsageError: No such backbone, or it lacks one of the blocks.
        WeightsError: No weights, or not the right ones. There is no way to get random ones.
        MissingExtraError: timm is not installed.
    """
    facts = facts_of(name)
    dense = name == VGG19_DFR
    network, channels, strides = dense_architecture(facts, blocks) if dense else architecture(facts, blocks)
    found = from_file(facts, weights) if weights else find(facts)
    state = load(found)
    # timm renames "features.0" to "features_0" when it cuts a model down to its features.
    by_name = {key.replace(".", "_"): value for key, value in state.items()}
    # Keys the features do not need (classifier, later blocks) are dropped here; `load` has matched them all before.
    chosen = {key: by_name[key.replace(".", "_")] for key in network.state_dict() if key.replace(".", "_") in by_name}
    missing = network.load_state_dict(chosen, strict=False, assign=True).missing_keys
    missing += [key for key, value in network.named_buffers() if value.is_meta]
    if missing:
        raise WeightsError(
            f"{found.path} gives no value for {', '.join(missing[:3])} of {facts.name}: choose another backbone"
        )
    return Backbone(
        _settle(network),
        name=name if dense else facts.name,
        blocks=sorted(blocks),
        channels=channels,
        strides=strides,
        normalisation=facts.normalisation,
        licence=facts.licence,
        source=found.source,
        weights_sha256=found.sha256,
    )


def _settle(network: nn.Module) -> nn.Module:
    """A network that will never be trained, in the form in which it is fastest and smallest.

    Every BatchNorm is folded into the convolution before it. Weights are rounded to half precision, in which a model
    folder stores them: rounded here, before anything is learned from the features, they are the same in both. Laid out
    with channels last they make PyTorch's convolutions on a CPU two to three times as fast.
    """
    fold_batch_norm(network.eval())
    pad_within(network)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(layer.weight.half().float())
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def fold_batch_norm(network: nn.Module) -> None:
    """Fold every BatchNorm that directly follows a convolution into it, in place; the activation some have stays."""
    children = list(network.named_children())
    for (conv_name, conv), (norm_name, norm) in pairwise(children):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            setattr(network, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(network, norm_name, getattr(norm, "act", nn.Identity()))
    for _, child in children:
        fold_batch_norm(child)


def pad_within(network: nn.Module) -> None:
    """Give every convolution that timm pads by a step of its own, as TensorFlow does, its padding back, in place."""
    import_timm()
    from timm.layers.conv2d_same import Conv2dSame

    for name, child in network.named_children():
        if isinstance(child, Conv2dSame):
            setattr(network, name, SameConv2d(child))
        else:
            pad_within(child)


class SameConv2d(nn.Module):
    """A convolution with TensorFlow's padding SAME: a pixel more at the right and at the bottom where it halves an even
    side. PyTorch has no such convolution and pads in a step of its own; ONNX has, and there that step would take a
    quarter of an EfficientNet-Lite0's time.

    Args:
        convolution: The weights and everything but the padding.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight = convolution.weight
        self.bias = convolution.bias
        self.kernel_size = convolution.kernel_size
        self.stride = convolution.stride
        self.dilation = convolution.dilation
        self.groups = convolution.groups

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H / stride, W / stride), sizes rounded up."""
        pads: list[int] = []  # left, right, top, bottom
        for side, kernel, stride, apart in zip(
            map(int, x.shape[-2:]), self.kernel_size, self.stride, self.dilation, strict=True
        ):
            pad = max((-(-side // stride) - 1) * stride + apart * (kernel - 1) + 1 - side, 0)
            pads = [pad // 2, pad - pad // 2, *pads]
        out: Tensor = _PaddedConvolution.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.stride, tuple(pads), self.dilation, self.groups
        )
        return out


class _PaddedConvolution(torch.autograd.Function):
    """Pad and convolve; one node in ONNX."""

    @staticmethod
    def forward(
        _: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        pads: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        return F.conv2d(F.pad(x, pads), weight, bias, stride, 0, dilation, groups)

    @staticmethod
    def symbolic(
        graph: Any,
        x: Any,
        weight: Any,
        bias: Any,
        stride: tuple[int, ...],
        pads: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Any:
        """The node, for torch's exporter."""
        left, right, top, bottom = pads
        return graph.op(
            "Conv",
            *((x, weight) if bias is None else (x, weight, bias)),
            strides_i=list(stride),
            pads_i=[top, left, bottom, right],
            dilations_i=list(dilation),
            group_i=groups,
        )


def architecture(facts: BackboneFacts, blocks: Sequence[int]) -> tuple[nn.Module, tuple[int, ...], tuple[int, ...]]:
    """The network that gives the features of `blocks`, without numbers in it, its channels and its strides.

    It stands on the meta device: until weights are assigned there is nothing it could compute with, so nothing random
    can slip through, and nothing is spent on filling it.

    Raises:
        UsageError: Blocks that are not there, or a model timm cannot take features from.
    """
    timm = import_timm()
    _check_blocks(blocks, BLOCKS)
    try:
        with torch.device("meta"):
            every = timm.create_model(facts.tag, pretrained=False, features_only=True).feature_info
            strides = every.reduction()
            last = {stride: index for index, stride in enumerate(strides)}
            wanted = [2 ** (block + 1) for block in sorted(blocks)]
            absent = [stride.bit_length() - 2 for stride in wanted if stride not in last]
            if absent:
                have = [block for block in BLOCKS if 2 ** (block + 1) in last]
                raise UsageError(f"backbone {facts.name!r} has no block {_join(absent)}: choose from {_join(have)}")
            network = timm.create_model(
                facts.tag,
                pretrained=False,
                features_only=True,
                out_indices=[last[stride] for stride in wanted],
            )
    except RuntimeError as error:  # timm's answer for a model that has no feature maps
        raise UsageError(
            f"backbone {facts.name!r} gives no feature maps ({error}): choose a convolutional one"
        ) from error
    modules = network.feature_info.module_name()
    if modules[-1].startswith("blocks."):
        # timm's EfficientNets and MobileNets would go on computing to their last block.
        network.blocks = network.blocks[: int(modules[-1].split(".")[1]) + 1]
    return network, tuple(network.feature_info.channels()), tuple(wanted)


class DenseStages(nn.Module):
    """A VGG cut into its stages: for each chosen one all of its ReLU outputs, concatenated; every pad is a reflection.

    Args:
        features: The convolutions, ReLUs and poolings of a VGG, in its order.
        stages: The stages wanted; a pooling ends a stage, 1 is the first.
    """

    def __init__(self, features: nn.Sequential, stages: Sequence[int]) -> None:
        super().__init__()
        self.stages = frozenset(stages)
        ends = [index for index, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
        self.features = nn.Sequential(*list(features)[: ends[max(stages) - 1] + 1])
        for layer in self.features:
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = "reflect"

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) of each chosen stage, finest first."""
        outputs: list[Tensor] = []
        taps: list[Tensor] = []
        stage = 1
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                if stage in self.stages:
                    outputs.append(torch.cat(taps, 1))
                taps, stage = [], stage + 1
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                taps.append(x)
        return outputs


def dense_architecture(
    facts: BackboneFacts, blocks: Sequence[int]
) -> tuple[DenseStages, tuple[int, ...], tuple[int, ...]]:
    """What `architecture` gives, for the VGG of `facts` as DFR takes features from it.

    Raises:
        UsageError: Blocks that are not there.
    """
    _check_blocks(blocks, STAGES)
    with torch.device("meta"):
        features: nn.Sequential = import_timm().create_model(facts.tag, pretrained=False).features
    channels = dict.fromkeys(STAGES, 0)
    stage = 1
    for layer in features:
        stage += isinstance(layer, nn.MaxPool2d)
        if isinstance(layer, nn.Conv2d):
            channels[stage] += layer.out_channels
    wanted = sorted(blocks)
    return (
        DenseStages(features, wanted),
        tuple(channels[stage] for stage in wanted),
        tuple(2 ** (stage - 1) for stage in wanted),
    )


def _check_blocks(blocks: Sequence[int], there: Sequence[int]) -> None:
    if not blocks or len(set(blocks)) != len(blocks) or not set(blocks) <= set(there):
        raise UsageError(f"blocks {_join(blocks)} cannot be used: give some of {_join(there)}, each once, such as 2,3")


def _join(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers)) or "(none)"
