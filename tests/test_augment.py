from pathlib import Path

import numpy as np
import pytest

import makel
from makel.errors import ImageError, UsageError
from makel.training.augment import BLOCK, COPIES, jitter, with_copies


def image(seed, side=32):
    return np.random.default_rng(seed).random((3, side, side), np.float32)


def test_copies_follow_their_block_each_under_the_file_of_its_image():
    images = [(Path(f"{index}.png"), image(index)) for index in range(BLOCK)]
    rows = list(with_copies(iter(images), seed=0))
    assert len(rows) == BLOCK * (1 + COPIES)
    assert all(path == images[index % BLOCK][0] for index, (path, _) in enumerate(rows))
    for (path, original), (same_path, first) in zip(images, rows, strict=False):
        assert path == same_path
        assert first is original


def test_a_last_block_is_filled_as_far_as_it_goes_and_errors_are_passed_on():
    broken = ImageError("b.png is damaged")
    rows = list(with_copies(iter([(Path("a.png"), image(0)), (Path("b.png"), broken)]), seed=0))
    assert [path.name for path, _ in rows] == ["b.png", *["a.png"] * (1 + COPIES)]
    assert rows[0][1] is broken


def test_a_copy_is_a_little_different_and_drawn_by_the_seed():
    smooth = np.broadcast_to(np.linspace(0.2, 0.8, 64, dtype=np.float32), (3, 64, 64))
    one, again, other = (jitter(smooth, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one == again).all()
    assert one.shape == smooth.shape
    assert one.dtype == np.float32
    assert one.flags.c_contiguous
    for copy in (one, other):
        assert 0.002 < np.abs(copy - smooth).max() < 0.1
    assert np.abs(one - other).max() > 0.002


def test_copies_of_tiles_are_refused(tmp_path):
    with pytest.raises(UsageError, match="leave --augment, or --tile or features, out"):
        makel.fit(tmp_path, tmp_path / "model", augment=True, tile=64)
