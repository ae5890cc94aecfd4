"""What the tests of single methods share: one thread, a backbone of nothing but its shape, and features as a cache."""

import numpy as np
import pytest
import torch
from torch import nn

from makel.training.backbones import Backbone
from makel.training.features import FeatureCache


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """For every test of a method."""


@pytest.fixture
def shaped_backbone():
    """A function of channels and strides: a backbone that states them, for tests that bring their own features."""

    def make(channels, strides):
        return Backbone.wrap(nn.Identity(), name="shaped", channels=channels, strides=strides)

    return make


@pytest.fixture
def as_cache():
    """A function of (N, C, H, W) levels: the cache they are fitted from, and what half precision left of them."""

    def make(*levels):
        halves = [level.half() for level in levels]
        arrays = [half.numpy() for half in halves]
        cache = FeatureCache(arrays, torch.device("cpu"), rows=np.arange(len(arrays[0])))
        return cache, tuple(half.float() for half in halves)

    return make


@pytest.fixture
def steps():
    """A function of a detector and features: its training step's losses by optimiser, with no step taken."""

    def run(detector, *features):
        return {name: (loss.item(), parts) for name, loss, parts in detector.training_step(features)}

    return run


@pytest.fixture
def seen_batches():
    """A function of a detector: a list that fills with the sizes of the batches it is trained on."""

    def watch(detector):
        sizes, train = [], detector.training_step

        def training_step(features):
            sizes.append(len(features[0]))
            return train(features)

        detector.training_step = training_step
        return sizes

    return watch
