"""What every method promises, checked on a tiny backbone and tiny images.

`makel.methods.names()` decides what is tested: a new method is in here from its first line on, and needs a row in TINY.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from sklearn.metrics import roc_auc_score
from torch import nn

from makel import methods
from makel.errors import TrainingError, UsageError
from makel.model.session import Session
from makel.training import loop
from makel.training.backbones import Backbone
from makel.training.detector import Detector
from makel.training.export import export_onnx
from makel.training.features import FeatureCache
from makel.training.gate import RELATIVE_TOLERANCE
from makel.types import Scores

SIZE = 64
N_FIT = 24


@dataclass(frozen=True)
class Tiny:
    """How a method is tested.

    Attributes:
        settings: Changes to its preset `fast` under which it fits in about a second.
        longer: Further changes where planted defects are to be found, for a method that needs more training for it.
        image_floor: AUROC of image scores that planted defects must reach.
        pixel_floor: AUROC of map values, likewise.
    """

    settings: dict = field(default_factory=dict)
    longer: dict = field(default_factory=dict)
    image_floor: float = 0.95
    pixel_floor: float = 0.9


_FEATURES = {"size": SIZE, "backbone": "tiny", "blocks": (1, 2, 3)}
_ADVERSARIAL = {"size": SIZE, "width": 8, "latent": 8, "batch_size": 8, "updates": 60}

TINY = {
    "dfr": Tiny({**_FEATURES, "epochs": 20, "region": 4}),
    "nearest": Tiny({**_FEATURES, "bank": 300, "candidates": 2_000, "chunk": 128}),
    "pca": Tiny({**_FEATURES, "variance": 0.9}),
    "skip_ae": Tiny({**_FEATURES, "epochs": 10, "widths": (8, 16, 16), "skips": (0, 8)}),
    # Sixty updates teach these little: the floors only say that a defect is not taken for better than good.
    "anogan": Tiny({**_ADVERSARIAL, "search_steps": 20}, image_floor=0.6, pixel_floor=0.6),
    "skip_ganomaly": Tiny(_ADVERSARIAL, image_floor=0.8),
    # Its image score compares two codes and no part of the image: after 60 updates three seeds gave 0.49, 0.49 and
    # 0.55 (chance), after 240 they gave 0.76, 0.98 and 0.82. The map, a difference of images, found all after 60.
    "ganomaly": Tiny(_ADVERSARIAL, longer={"updates": 240}, image_floor=0.6),
}

pytestmark = pytest.mark.usefixtures("one_thread")
every_method = pytest.mark.parametrize("name", methods.names())


class TinyNetwork(nn.Module):
    """Features of strides 4, 8 and 16 from random filters, with BatchNorm statistics that are not the initial ones."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, side, stride, pad), nn.BatchNorm2d(after), nn.ReLU())
            for before, after, side, stride, pad in ((3, 12, 8, 4, 2), (12, 16, 3, 2, 1), (16, 20, 3, 2, 1))
        )
        self.train()
        for _ in range(20):
            self(torch.rand(4, 3, SIZE, SIZE))

    def forward(self, x):
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def build(name, seed=0, *, longer=False, **changes):
    """An unfitted detector of a method, by its row in TINY and these changes."""
    if name not in TINY:
        pytest.fail(f"method {name!r} has no tiny settings: add its row to TINY in {__file__}")
    detector_class = methods.load(name)
    tiny = TINY[name]
    config = detector_class.config_class.preset(
        "fast", **{**tiny.settings, **(tiny.longer if longer else {}), **changes}
    )
    backbone = None
    if config.backbone:
        backbone = Backbone.wrap(TinyNetwork(), name="tiny", channels=(12, 16, 20), strides=(4, 8, 16))
    torch.manual_seed(seed)
    return detector_class(config, backbone)


def make_good(n, seed, shape=(SIZE, SIZE)):
    """(n, 3, *shape) images of stripes: phase, brightness and noise vary."""
    random = np.random.default_rng(seed)
    x = np.arange(shape[1], dtype=np.float32)
    images = []
    for _ in range(n):
        stripes = 0.5 + 0.2 * np.sin(2 * np.pi * (x / 16 + random.uniform()))
        image = np.outer(np.ones(shape[0]), stripes)[None] * np.array([1.0, 0.9, 0.7])[:, None, None]
        images.append(image * random.uniform(0.95, 1.05) + random.normal(0, 0.02, (3, *shape)))
    return torch.from_numpy(np.clip(np.stack(images), 0, 1).astype(np.float32))


def plant_defects(images, seed):
    """A spot of another colour, 16 pixels wide, somewhere on each image; and where it is, (n, SIZE, SIZE)."""
    random = np.random.default_rng(seed)
    images, masks = images.clone(), np.zeros((len(images), SIZE, SIZE), bool)
    for image, mask in zip(images, masks, strict=True):
        top, left = random.integers(4, SIZE - 20, 2)
        image[:, top : top + 16, left : left + 16] = torch.tensor([0.1, 0.2, 0.95])[:, None, None]
        mask[top : top + 16, left : left + 16] = True
    return images, masks


def make_cache(detector, images):
    with torch.no_grad():
        features = detector.features(images)
    levels = [level.half().numpy() for level in features]
    return FeatureCache(levels, torch.device("cpu"), rows=np.arange(len(images)))


def fit(detector, *, seed=0, progress=lambda *_: None, **checkpoint):
    return loop.train(detector, make_cache(detector, make_good(N_FIT, 1)), seed=seed, progress=progress, **checkpoint)


@cache
def fitted(name):
    """A fitted detector that the tests share; none of them may change it."""
    detector = build(name)
    fit(detector)
    return detector


def score(detector, images):
    with torch.no_grad():
        return detector(images)


def states_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


@every_method
def test_both_presets_are_there(name):
    config_class = methods.load(name).config_class
    assert set(config_class.presets) == {"fast", "paper"}
    assert config_class.preset("fast") != config_class.preset("paper")


@every_method
def test_an_unknown_setting_names_the_nearest(name):
    config_class = methods.load(name).config_class
    with pytest.raises(UsageError, match="setting 'epoch' is not known: did you mean 'epochs'"):
        config_class.preset("fast", epoch=3)
    with pytest.raises(UsageError, match="preset 'fastest' is not known: choose one of fast, paper"):
        config_class.preset("fastest")


@every_method
def test_same_seed_same_weights(name):
    again = build(name)
    fit(again)
    assert states_equal(fitted(name).learned_state(), again.learned_state())


@every_method
def test_an_interrupted_fit_ends_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 0.0)
    checkpoint = loop.Checkpoint(tmp_path / "checkpoint.pt", "key")

    def stop_after_two(_stage, done, _total):
        if done == 3:
            raise KeyboardInterrupt

    detector = build(name)
    if type(detector).training_step is Detector.training_step:
        pytest.skip("closed form: there is nothing to interrupt")
    with pytest.raises(KeyboardInterrupt):
        fit(detector, progress=stop_after_two, checkpoint=checkpoint)
    resumed = build(name)
    fit(resumed, checkpoint=checkpoint, resume=True)
    assert states_equal(fitted(name).learned_state(), resumed.learned_state())


@every_method
def test_a_loaded_state_scores_exactly_the_same(name):
    state = {key: value.contiguous() for key, value in fitted(name).learned_state().items()}
    other = build(name, seed=1).eval()
    result = other.load_state_dict(load_tensors(save_tensors(state)), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("backbone.") for key in result.missing_keys)
    images, _ = plant_defects(make_good(3, 2), 3)
    expected, found = score(fitted(name), images), score(other, images)
    assert torch.equal(expected.image, found.image)
    assert torch.equal(expected.anomaly_map, found.anomaly_map)


@every_method
def test_unfitted_is_an_error(name, tmp_path):
    detector = build(name).eval()
    with pytest.raises(TrainingError, match="is not fitted"):
        detector(make_good(1, 2))
    with pytest.raises(TrainingError, match="is not fitted"):
        export_onnx(detector, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@every_method
def test_what_is_frozen_stays_as_it_is(name):
    detector = build(name)
    if not detector.frozen:
        pytest.skip("learns everything it uses: nothing is frozen")
    before = [{key: value.clone() for key, value in module.state_dict().items()} for module in detector.frozen]
    fit(detector)
    detector.train()
    assert not any(part.training for module in detector.frozen for part in module.modules())
    assert not any(parameter.requires_grad for module in detector.frozen for parameter in module.parameters())
    assert all(states_equal(old, module.state_dict()) for old, module in zip(before, detector.frozen, strict=True))


@every_method
def test_scoring_leaves_the_detector_and_its_inputs_alone(name):
    detector, images = fitted(name), make_good(2, 2)
    features = detector.extract(images)
    inputs = [images, *features]
    before, state = [each.clone() for each in inputs], {k: v.clone() for k, v in detector.state_dict().items()}
    score(detector, images)
    with torch.no_grad():
        detector.score(features)
    assert all(torch.equal(old, each) for old, each in zip(before, inputs, strict=True))
    assert states_equal(state, detector.state_dict())


@every_method
def test_batch_size_and_order_do_not_change_scores(name):
    images = torch.cat([make_good(3, 2), plant_defects(make_good(2, 3), 4)[0]])
    together = score(fitted(name), images)
    assert together.image.shape == (5,)
    assert together.anomaly_map.shape == (5, 1, SIZE, SIZE)
    assert together.image.dtype == together.anomaly_map.dtype == torch.float32
    backwards = score(fitted(name), images.flip(0))
    alone = [score(fitted(name), image[None]) for image in images]
    for other in (
        Scores(image=backwards.image.flip(0), anomaly_map=backwards.anomaly_map.flip(0)),
        Scores(
            image=torch.cat([each.image for each in alone]), anomaly_map=torch.cat([each.anomaly_map for each in alone])
        ),
    ):
        torch.testing.assert_close(other.image, together.image, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(other.anomaly_map, together.anomaly_map, rtol=1e-3, atol=1e-3)


@every_method
def test_a_constant_image_has_finite_scores(name):
    images = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, SIZE, SIZE).contiguous()
    scores = score(fitted(name), images)
    assert torch.isfinite(scores.image).all()
    assert torch.isfinite(scores.anomaly_map).all()


@every_method
def test_planted_defects_score_higher(name):
    good = make_good(20, 5)
    defects, masks = plant_defects(make_good(20, 6), 7)
    detector = fitted(name)
    if TINY[name].longer:
        detector = build(name, longer=True)
        fit(detector)
    of_good, of_defects = score(detector, good), score(detector, defects)
    labels = np.repeat([0, 1], 20)
    image = roc_auc_score(labels, torch.cat([of_good.image, of_defects.image]))
    pixel = roc_auc_score(masks.ravel(), of_defects.anomaly_map.flatten())
    assert image >= TINY[name].image_floor
    assert pixel >= TINY[name].pixel_floor


@every_method
def test_good_images_cannot_be_told_from_one_another(name):
    scores = score(fitted(name), make_good(80, 8)).image
    # Were labels given by chance, the area would have a standard deviation of 0.065 here.
    assert abs(roc_auc_score(np.repeat([0, 1], 40), scores) - 0.5) < 0.2


@every_method
def test_the_exported_model_scores_the_same_at_any_batch_size(name, tmp_path):
    detector = fitted(name)
    if not detector.exports:
        pytest.skip("runs in torch: its scores need gradients")
    export_onnx(detector, tmp_path / "model.onnx")
    session = Session((tmp_path / "model.onnx").read_bytes(), threads=1)
    images = torch.cat([make_good(3, 2), plant_defects(make_good(2, 3), 4)[0]])
    expected = score(detector, images)
    for batch in (1, 2, 5):
        found = session.run(images[:batch].numpy())
        assert found.image.shape == (batch,)
        assert found.anomaly_map.shape == (batch, 1, SIZE, SIZE)
        # Relative, for each number: a planted defect scores up to 10,000 times what a good image does.
        np.testing.assert_allclose(found.image, expected.image[:batch], rtol=RELATIVE_TOLERANCE)
        for got, wanted in zip(found.anomaly_map, expected.anomaly_map.numpy(), strict=False):
            np.testing.assert_allclose(
                got, wanted, rtol=10 * RELATIVE_TOLERANCE, atol=RELATIVE_TOLERANCE * float(np.median(wanted))
            )


@pytest.mark.parametrize("name", [name for name in methods.names() if "backbone" in TINY[name].settings])
@pytest.mark.parametrize("shape", [(96, 160), (160, 64), (72, 100)])
def test_a_rectangle_is_scored_at_its_place_and_exported(name, shape, tmp_path):
    detector = build(name, size=shape)
    loop.train(detector, make_cache(detector, make_good(8, 1, shape)), seed=0, progress=lambda *_: None)
    images = make_good(2, 2, shape)
    top, left = shape[0] - 28, shape[1] - 24
    images[1, :, top : top + 16, left : left + 16] = torch.tensor([0.1, 0.2, 0.95])[:, None, None]
    expected = score(detector, images)
    assert expected.anomaly_map.shape == (2, 1, *shape)
    assert expected.image[1] > expected.image[0]
    row, column = divmod(int(expected.anomaly_map[1, 0].argmax()), shape[1])
    assert top - 8 <= row < top + 24
    assert left - 8 <= column < left + 24
    export_onnx(detector, tmp_path / "model.onnx")
    session = Session((tmp_path / "model.onnx").read_bytes(), threads=1)
    for batch in (1, 2):
        found = session.run(images[:batch].numpy())
        np.testing.assert_allclose(found.image, expected.image[:batch], rtol=RELATIVE_TOLERANCE)
        for got, wanted in zip(found.anomaly_map, expected.anomaly_map.numpy(), strict=False):
            tolerance = RELATIVE_TOLERANCE * float(np.median(wanted))
            np.testing.assert_allclose(got, wanted, rtol=10 * RELATIVE_TOLERANCE, atol=tolerance)


@every_method
def test_what_is_ignored_changes_no_bit_of_score_or_map(name):
    seen = np.ones((SIZE, SIZE), bool)
    seen[:24, 24:] = False
    scored = seen.copy()
    scored[40:, :24] = False
    detector = deepcopy(fitted(name))
    detector.restrict(seen, scored)
    before = make_good(3, 9)
    after = before.clone()
    after[:, :, :24, 24:] = torch.rand(3, 3, 24, SIZE - 24)
    first, second = score(detector, before), score(detector, after)
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.anomaly_map, second.anomaly_map)
    assert not first.anomaly_map[:, 0, :24, 24:].any()
    assert first.anomaly_map[:, 0, 24:].min() >= 0
    assert first.anomaly_map[:, 0, 40:, :24].any()  # inspected, though no part of the image score


def test_an_exported_model_takes_its_score_from_the_same_part(tmp_path):
    seen = np.ones((SIZE, SIZE), bool)
    seen[:24, 24:] = False
    scored = seen.copy()
    scored[40:, :24] = False
    detector = deepcopy(fitted("skip_ae"))
    detector.restrict(seen, scored)
    images = make_good(3, 9)
    trained = score(detector, images)
    export_onnx(detector, tmp_path / "model.onnx")
    exported = Session((tmp_path / "model.onnx").read_bytes(), threads=1).run(images.numpy())
    tolerance = RELATIVE_TOLERANCE * trained.image.median().item()
    np.testing.assert_allclose(exported.image, trained.image, rtol=0, atol=tolerance)
    np.testing.assert_allclose(exported.anomaly_map, trained.anomaly_map, rtol=0, atol=10 * tolerance)
    assert not np.allclose(score(fitted("skip_ae"), images).image, trained.image, rtol=0.01)
