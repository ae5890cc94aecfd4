"""Features that fits share: computed once, whole or not there, the same as one's own."""

from __future__ import annotations

from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from makel.datasets import load, split, synthetic
from makel.errors import DatasetError, UsageError
from makel.images import Preparation
from makel.methods import load as load_method
from makel.training.features import Extraction, extract, extract_shared
from makel.training.fit import build_detector, choose_device, fit

CPU = choose_device("cpu")
PREPARATION = Preparation(64, 64, "rgb")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    root = tmp_path_factory.mktemp("line") / "flange"
    synthetic.write(root, n_fit=11, n_good=1, n_defect=1, size_px=64)
    return load(root)


def detector(method="skip_ae", seed=0, **changes):
    cls = load_method(method)
    return build_detector(cls, cls.config_class.preset("fast", size=64, **changes), seed)


def share(line, folder, part=None, **changes) -> Extraction:
    return extract_shared(
        detector(**changes),
        part or line.good,
        line.good,
        PREPARATION,
        device=CPU,
        folder=folder,
        progress=lambda *_: None,
    )


def places(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir())


def test_a_part_of_the_images_takes_its_rows(line, tmp_path):
    part = split(line, seed=3).fit[::-1]
    shared = share(line, tmp_path, part)
    paths = [sample.image_path for sample in part]
    own = extract(detector(), paths, PREPARATION, device=CPU, folder=tmp_path / "own", progress=lambda *_: None)
    assert list(shared.paths) == paths
    assert len(shared.cache) == len(part)
    for ours, theirs in zip(own.cache.batch(range(len(part))), shared.cache.batch(range(len(part))), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=2e-3, atol=1e-3)  # batches were cut elsewhere


def test_seed_and_training_share_frozen_halves_that_differ_do_not(line, tmp_path):
    share(line, tmp_path)
    first = places(tmp_path)
    assert len(first) == 1
    written = (first[0] / "0.npy").stat().st_mtime_ns
    share(line, tmp_path, seed=5)
    share(line, tmp_path, epochs=3, learning_rate=1e-4)
    assert places(tmp_path) == first
    assert (first[0] / "0.npy").stat().st_mtime_ns == written
    share(line, tmp_path, blocks=(1, 2))
    share(line, tmp_path, project=64)
    assert len(places(tmp_path)) == 3
    share(replace(line, good=line.good[1:]), tmp_path)
    assert len(places(tmp_path)) == 4


def test_methods_on_raw_pixels_share_too(line, tmp_path):
    share(line, tmp_path, method="ganomaly")
    share(line, tmp_path, method="skip_ganomaly")
    assert len(places(tmp_path)) == 1


def test_an_unreadable_image_is_named_and_the_rest_goes_on(line, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    good = (*line.good, replace(line.good[0], image_path=broken))
    shared = share(replace(line, good=good), tmp_path / "features")
    assert len(shared.cache) == len(line.good)
    assert [str(broken) in str(error) for error in shared.unreadable] == [True]
    with pytest.raises(DatasetError, match=r"none of 1 images can be read.*broken\.png"):
        share(replace(line, good=good), tmp_path / "features", good[-1:])


def _in_a_process(line, folder):
    share(line, folder)


def test_two_processes_may_start_at_once(line, tmp_path):
    folder = tmp_path / "features"
    processes = [get_context("spawn").Process(target=_in_a_process, args=(line, folder)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(places(folder)) == 1  # neither left anything half done
    assert len(share(line, folder).cache) == len(line.good)


QUICK = {"method": "ganomaly", "size": 32, "settings": {"updates": 2, "width": 8}}


def test_a_fit_with_shared_features_gives_the_same_model(line, tmp_path):
    alone = fit(line, tmp_path / "alone", **QUICK).manifest.calibration
    shared = fit(line, tmp_path / "shared", features=tmp_path / "features", **QUICK).manifest.calibration
    assert alone == shared  # raw pixels: there is no batch that rounding could depend on


def test_any_setting_of_the_method_can_be_given(line, tmp_path):
    summary = fit(line, tmp_path / "model", **QUICK)
    assert summary.manifest.method.config["width"] == 8
    with pytest.raises(UsageError, match="'widht' is not known: did you mean 'width'"):
        fit(line, tmp_path / "other", method="ganomaly", settings={"widht": 8})
