import warnings
from itertools import combinations

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import nn

from makel.errors import UsageError, WeightsError
from makel.training import weights
from makel.training.backbones import Backbone, architecture, build, pad_within
from makel.training.facts import FACTS, facts_of
from makel.training.torchvision_import import import_timm

PAPER = ("mobilenet_v3_small", "mobilenet_v3_large", "vgg19", "resnext50", "resnext101")
CHANNELS = {  # of blocks 1 to 4, read off the papers' architecture tables
    "efficientnet_lite0": (24, 40, 112, 320),
    "efficientnet_lite1": (24, 40, 112, 320),
    "efficientnet_lite2": (24, 48, 120, 352),
    "mobilenet_v3_small": (16, 24, 48, 576),
    "mobilenet_v3_large": (24, 40, 112, 960),
    "vgg19": (256, 512, 512, 512),
    "resnext50": (256, 512, 1024, 2048),
    "resnext101": (256, 512, 1024, 2048),
}
COMBINATIONS = [chosen for size in (1, 2, 3) for chosen in combinations((1, 2, 3), size)]


@pytest.fixture(scope="module")
def lite0():
    return build("efficientnet_lite0", (1, 2, 3, 4))


@pytest.fixture(scope="module")
def photographs():
    """Two real photographs: a Chinese palace over a lake, and a dahlia with leaves."""
    return load_sample_images().images


def test_short_names_are_all_here():
    assert {facts.name for facts in FACTS} == CHANNELS.keys()


@pytest.mark.parametrize("name", CHANNELS)
def test_facts_agree_with_timm(name):
    facts = facts_of(name)
    settings = import_timm().get_pretrained_cfg(facts.tag)
    assert facts.normalisation == (tuple(settings.mean), tuple(settings.std))
    assert facts.licence == settings.license
    assert facts.hub_id == settings.hf_hub_id
    assert settings.num_classes == 1000


@pytest.mark.parametrize("name", CHANNELS)
def test_all_four_blocks(name):
    check_blocks(name, (1, 2, 3, 4))


@pytest.mark.parametrize("blocks", COMBINATIONS, ids=lambda blocks: "".join(map(str, blocks)))
@pytest.mark.parametrize("name", PAPER)
def test_blocks_in_any_combination(name, blocks):
    check_blocks(name, blocks)


def check_blocks(name, blocks):
    network, channels, strides = architecture(facts_of(name), blocks)
    assert channels == tuple(CHANNELS[name][block - 1] for block in blocks)
    assert strides == tuple(2 ** (block + 1) for block in blocks)
    with torch.device("meta"):
        features = network(torch.empty(2, 3, 96, 64))
    assert [tuple(feature.shape) for feature in features] == [
        (2, count, 96 // stride, 64 // stride) for count, stride in zip(channels, strides, strict=True)
    ]


def test_order_of_blocks_does_not_matter():
    backbone = build("efficientnet_lite0", (3, 1))
    assert (backbone.blocks, backbone.channels, backbone.strides) == ((1, 3), (24, 112), (4, 16))


def test_nothing_is_computed_beyond_the_last_block():
    network, _, _ = architecture(facts_of("efficientnet_lite0"), (1, 2))
    assert len(network.blocks) == 3  # stages 0, 1 and 2; the last has stride 8


@pytest.mark.parametrize(
    ("name", "blocks", "message"),
    [
        ("efficientnet_lite0", (), r"blocks \(none\) cannot be used: give some of 1,2,3,4"),
        ("efficientnet_lite0", (2, 2), "blocks 2,2 cannot be used"),
        ("efficientnet_lite0", (0, 1), "blocks 0,1 cannot be used"),
        ("efficientnet_lite0", (5,), "blocks 5 cannot be used"),
        ("efficientnet_lite", (1,), "'efficientnet_lite' is not known: did you mean efficientnet_lite"),
        ("resnet18.tv", (1,), "'resnet18.tv' is not known: did you mean resnet18.tv_in1k"),
        ("vit_small_patch16_224", (1,), "takes only 224 px images"),
    ],
)
def test_what_cannot_be_built_is_refused(name, blocks, message):
    with pytest.raises(UsageError, match=message):
        build(name, blocks)


def test_any_timm_name_has_facts():
    facts = facts_of("wide_resnet50_2.tv_in1k")
    assert (facts.name, facts.licence) == ("wide_resnet50_2.tv_in1k", "bsd-3-clause")
    assert architecture(facts, (1, 2))[1] == (256, 512)
    assert facts_of("resnet18").name == "resnet18.a1_in1k"  # timm's default weights, said in full


@pytest.mark.parametrize("name", ["efficientnet_lite0", "tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k"])
def test_the_embedded_backbone_has_one_name(name):
    assert facts_of(name).name == "efficientnet_lite0"


def test_records_where_its_weights_come_from(lite0):
    assert lite0.to_json() == {
        "name": "efficientnet_lite0",
        "blocks": [1, 2, 3, 4],
        "licence": "apache-2.0",
        "source": "package",
        "weights_sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    }


def test_stays_frozen(lite0):
    before = {key: value.clone() for key, value in lite0.state_dict().items()}
    lite0.train()
    assert not any(module.training for module in lite0.modules())
    assert not any(parameter.requires_grad for parameter in lite0.parameters())
    lite0(torch.rand(4, 3, 64, 64))
    assert all(torch.equal(value, before[key]) for key, value in lite0.state_dict().items())


def test_stays_frozen_inside_a_training_parent(lite0):
    parent = nn.ModuleDict({"backbone": lite0, "head": nn.BatchNorm2d(3)}).train()
    assert parent["head"].training
    assert not lite0.network.training


def test_batch_size_and_order_do_not_matter(lite0):
    image = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    together = lite0(image)
    for index in range(3):
        alone = lite0(image[index : index + 1])
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], many[index], rtol=1e-4, atol=1e-4)


def test_normalises_inside(lite0):
    seen = []
    probe = Backbone(
        Recorder(seen),
        name="recorder",
        blocks=(1,),
        channels=(3,),
        strides=(4,),
        normalisation=facts_of("vgg19").normalisation,
        licence="unknown",
        source="file",
        weights_sha256="",
    )
    probe(torch.full((1, 3, 4, 4), 0.485))
    torch.testing.assert_close(
        seen[0][0, :, 0, 0], torch.tensor([0.0, (0.485 - 0.456) / 0.224, (0.485 - 0.406) / 0.225])
    )


class Recorder(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, image):
        self.seen.append(image)
        return [image]


def test_wrap_freezes_any_module_and_fingerprints_it():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.BatchNorm2d(5))
    wrapped = Backbone.wrap(OneMap(network), name="tiny", channels=(5,), strides=(4,))
    assert wrapped.blocks == (1,)
    assert wrapped(torch.rand(2, 3, 8, 12))[0].shape == (2, 5, 2, 3)
    assert not wrapped.train().network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    first = wrapped.weights_sha256
    with torch.no_grad():
        network[0].bias[0] += 1
    assert Backbone.wrap(OneMap(network), name="tiny", channels=(5,), strides=(4,)).weights_sha256 != first


class OneMap(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return [self.network(image)]


@pytest.mark.parametrize("name", [*PAPER, "resnet18"])
def test_offline_and_without_weights_there_is_a_way_out_and_no_backbone(name):
    with pytest.raises(WeightsError, match=rf"no weights for backbone '{name}.*makel weights add {name}.* FILE"):
        build(name, (1, 2))


def test_builds_from_a_file_given_by_hand(tmp_path):
    torch.manual_seed(0)
    full = import_timm().create_model("mobilenetv3_small_100")
    torch.save(full.state_dict(), tmp_path / "mine.pth")
    backbone = build("mobilenet_v3_small", (1, 3), weights=tmp_path / "mine.pth")
    assert backbone.source == "file"
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in backbone.modules())  # all folded
    reference = full.eval().forward_intermediates(torch.full((1, 3, 64, 64), 0.5), intermediates_only=True)
    ours = backbone(torch.full((1, 3, 64, 64), 0.5) * backbone.std + backbone.mean)
    for out, expected in ((ours[0], reference[1]), (ours[1], reference[3])):  # but for weights in half precision
        assert (out - expected).norm() < 5e-3 * expected.norm()


def test_recognises_what_two_photographs_show(photographs):
    timm = import_timm()
    found = weights.find(facts_of("efficientnet_lite0"))
    classifier = timm.create_model("tf_efficientnet_lite0")
    classifier.load_state_dict(weights.load(found))
    names = timm.data.ImageNetInfo()
    said = []
    for photograph in photographs:
        height = photograph.shape[0]
        left = (photograph.shape[1] - height) // 2
        square = cv2.resize(photograph[:, left : left + height], (224, 224), interpolation=cv2.INTER_AREA)
        image = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            logits = classifier.eval()((image - 0.5) / 0.5)
        said.append(names.index_to_description(int(logits.argmax())))
    assert said == ["palace", "daisy"]


@pytest.mark.parametrize("side", [12, 13])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (3, 2, 2)])
def test_padding_within_a_convolution_is_the_one_before_it(side, kernel, stride, dilation, tmp_path):
    torch.manual_seed(0)
    before = import_timm().layers.create_conv2d(
        4, 4, kernel, stride=stride, dilation=dilation, padding="same", depthwise=True, bias=True
    )
    assert type(before).__name__ == "Conv2dSame"
    network = nn.Sequential(nn.Sequential(before)).requires_grad_(False)
    x = torch.randn(2, 4, side, side)
    expected = network(x)
    pad_within(network)
    assert torch.equal(network(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation notice
        torch.onnx.export(network, (x,), str(tmp_path / "n.onnx"), dynamo=False, do_constant_folding=False)
    assert [node.op_type for node in onnx.load(tmp_path / "n.onnx").graph.node] == ["Conv"]
    session = onnxruntime.InferenceSession(tmp_path / "n.onnx")
    out = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_features_tell_photographs_apart_where_random_weights_fail(lite0, photographs):
    assert wrong_neighbours(lite0, photographs) == [0, 0, 0, 0]
    for seed in range(2):
        torch.manual_seed(seed)
        network = import_timm().create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4))
        info = network.feature_info
        random = Backbone.wrap(network, name="random", channels=info.channels(), strides=info.reduction())
        assert sum(wrong_neighbours(random, photographs)) >= 12


def wrong_neighbours(backbone, photographs):
    """For each block, how many of 48 grey crops at varied scale and exposure have their nearest in the other photo."""
    random = np.random.default_rng(0)
    crops = []
    for photograph in photographs:
        grey = photograph.mean(axis=2)
        for _ in range(24):
            side = int(random.integers(160, 400))
            top = int(random.integers(0, grey.shape[0] - side))
            left = int(random.integers(0, grey.shape[1] - side))
            crop = cv2.resize(grey[top : top + side, left : left + side], (128, 128), interpolation=cv2.INTER_AREA)
            crops.append(crop / 255 * random.uniform(0.6, 1.0))
    images = torch.from_numpy(np.stack(crops)).float()[:, None].expand(-1, 3, -1, -1)
    owner = torch.arange(len(crops)) // 24
    wrong = []
    for features in backbone(images):
        vectors = features.mean(dim=(2, 3))
        vectors = (vectors - vectors.mean(dim=0)) / (vectors.std(dim=0) + 1e-6)
        distances = torch.cdist(vectors, vectors).fill_diagonal_(float("inf"))
        wrong.append(int((owner[distances.argmin(dim=1)] != owner).sum()))
    return wrong
