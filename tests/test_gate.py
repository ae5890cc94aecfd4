"""The gate between a trained network and the file that is to run: what it lets through, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from makel.errors import ParityError
from makel.model.session import Session
from makel.training.export import BATCH
from makel.training.gate import FLIP_TOLERANCE, RELATIVE_TOLERANCE, check_parity, nudged
from makel.types import Scores
from tiny_model import SIZE, expected, onnx_bytes

N = BATCH + 3
HIGHEST = 0.5
"""The highest of the trained scores, which tolerances are shares of."""


def images(levels) -> np.ndarray:
    """Even pictures: the score of each is how far it is from mid grey."""
    return np.full((len(levels), 3, SIZE, SIZE), 0.5, np.float32) + np.float32(levels)[:, None, None, None]


LEVELS = np.linspace(0.1, HIGHEST, N)


def gate(session, threshold: float = 0.31, levels=LEVELS, trained: Scores | None = None, of_nudged=None):
    given = images(levels)
    names = [f"{i}.png" for i in range(len(given))]
    return check_parity(given, names, trained or expected(given), session, threshold, of_nudged=of_nudged)


def with_batch_factor(nodes: list[onnx.NodeProto]) -> bytes:
    """The tiny model, its map times what these nodes make of "n", the number of images, as "factor"."""
    model = onnx.load_from_string(onnx_bytes())
    sum_of_ones = helper.make_node("ReduceSum", ["ones"], ["n"], keepdims=0)
    ones = helper.make_node("ReduceMean", ["everywhere"], ["ones"], axes=[1, 2, 3], keepdims=0)
    everywhere = helper.make_node("Div", ["bright", "bright"], ["everywhere"])
    bright = helper.make_node("Add", ["image", "one"], ["bright"])
    factor = helper.make_node("Mul", ["plain", "factor"], ["anomaly_map"])
    at = next(index for index, node in enumerate(model.graph.node) if node.output == ["anomaly_map"])
    model.graph.node[at].output[:] = ["plain"]
    own = [*model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend([*own[: at + 1], bright, everywhere, ones, sum_of_ones, *nodes, factor, *own[at + 1 :]])
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1), "one"))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
    return model.SerializeToString()


def test_the_same_scores_pass_and_the_parity_says_by_how_much_it_may_differ() -> None:
    parity = gate(Session(onnx_bytes(), threads=1))
    mean_of_maps = float(expected(images(LEVELS)).anomaly_map.mean())
    assert parity.score_tolerance == pytest.approx(1e-3 * HIGHEST)
    assert parity.map_tolerance == pytest.approx(1e-2 * mean_of_maps)
    assert parity.worst_score_difference == parity.worst_map_difference == 0
    assert parity.n_images == N


def test_the_worst_difference_of_all_is_noted() -> None:
    parity = gate(Session(onnx_bytes(gain=1.0005), threads=1))
    assert parity.worst_score_difference == pytest.approx(0.0005 * HIGHEST, rel=1e-3)
    assert parity.worst_map_difference == pytest.approx(0.0005 * HIGHEST, rel=1e-3)


@pytest.mark.parametrize(("gain", "first"), [(1.0011, 10), (0.9989, 10), (2.0, 0), (0.0, 0)])
def test_scores_beyond_the_tolerance_fail(gain: float, first: int) -> None:
    with pytest.raises(ParityError, match=rf"scores {first}\.png .*, the trained one .*nothing was written"):
        gate(Session(onnx_bytes(gain=gain), threads=1), levels=[*LEVELS[:-1] * 0.8, HIGHEST])


def test_a_map_beyond_the_tolerance_fails_where_the_score_is_right() -> None:
    given = images(LEVELS)
    trained = expected(given)
    tolerance = 1e-2 * float(trained.anomaly_map.mean())
    for off, fails in ((0.9, False), (1.1, True)):
        shifted = trained.anomaly_map.copy()
        shifted[4, 0, 3, 5] -= np.float32(off * tolerance)
        moved = replace(trained, anomaly_map=shifted)
        if not fails:
            assert gate(Session(onnx_bytes(), threads=1), trained=moved).worst_map_difference > 0
            continue
        with pytest.raises(ParityError, match=r"4\.png .* their maps differ by 0\.0033"):
            gate(Session(onnx_bytes(), threads=1), trained=moved)


def test_scores_that_are_not_finite_fail() -> None:
    broken = expected(images(LEVELS))
    broken.image[2] = np.nan
    with pytest.raises(ParityError):
        gate(Session(onnx_bytes(), threads=1), trained=broken)
    with pytest.raises(ParityError, match="nan"):
        gate(Session(onnx_bytes(gain=float("nan")), threads=1))


def test_a_file_that_computes_several_images_otherwise_than_one_fails() -> None:
    """n / n of one image is 1, and (n + 1) / (2 n) of several is not: what a batch size taken for a constant does."""
    wrong_together = with_batch_factor(
        [
            helper.make_node("Add", ["n", "one"], ["more"]),
            helper.make_node("Mul", ["n", "two"], ["twice"]),
            helper.make_node("Div", ["more", "twice"], ["factor"]),
        ]
    )
    session = Session(wrong_together, threads=1)
    np.testing.assert_array_equal(session.run(images(LEVELS)[:1]).image, expected(images(LEVELS)[:1]).image)
    with pytest.raises(ParityError, match=r"0\.png"):
        gate(session)


def test_a_file_that_computes_one_image_otherwise_than_several_fails() -> None:
    """min(n, 2) - 1 is 0 of one image, and 1 of several."""
    wrong_alone = with_batch_factor(
        [helper.make_node("Clip", ["n", "one", "two"], ["most"]), helper.make_node("Sub", ["most", "one"], ["factor"])]
    )
    session, levels = Session(wrong_alone, threads=1), LEVELS[-BATCH:]  # no one is left over, in batches of any size
    np.testing.assert_array_equal(session.run(images(levels)).image, expected(images(levels)).image)
    with pytest.raises(ParityError, match=r"0\.png"):
        gate(session, levels=levels)


class TestRounding:
    """Where a millionth of full scale moves scores, four times as much is rounding: also for a verdict."""

    def of_nudged(self, score: float, anomaly_map: float) -> Scores:
        trained = expected(images(LEVELS))
        trained.image[3] -= np.float32(score)  # the largest difference counts, whichever way
        trained.anomaly_map[5] += np.float32(anomaly_map)
        return trained

    def test_scores_and_maps_may_differ_by_it(self) -> None:
        session = Session(onnx_bytes(gain=1.05), threads=1)  # up to 0.025
        parity = gate(session, of_nudged=self.of_nudged(0.007, 0.008))
        assert parity.score_tolerance == pytest.approx(0.028, rel=1e-4)
        assert parity.map_tolerance == pytest.approx(0.032, rel=1e-4)
        for of_nudged in (self.of_nudged(0.006, 0.008), self.of_nudged(0.007, 0.006), None):
            with pytest.raises(ParityError):
                gate(session, of_nudged=of_nudged)

    def test_a_difference_of_exactly_so_much_passes(self) -> None:
        """All in powers of two, so that nothing is rounded."""
        levels, allowed = [0.25, 0.5], 2.0**-5
        trained = expected(images(levels))
        trained.image[0] += np.float32(allowed)
        trained.anomaly_map[0] += np.float32(allowed)
        moved = replace(trained, image=trained.image + np.float32(allowed / 4))
        moved = replace(moved, anomaly_map=trained.anomaly_map + np.float32(allowed / 4))
        session = Session(onnx_bytes(), threads=1)
        # The file's score is the threshold, and the trained one a reject that lies above it by just so much.
        parity = gate(session, threshold=0.25, levels=levels, trained=trained, of_nudged=moved)
        assert parity.score_tolerance == parity.worst_score_difference == allowed
        assert parity.map_tolerance == parity.worst_map_difference == allowed

    def test_less_than_the_share_changes_nothing(self) -> None:
        own = gate(Session(onnx_bytes(), threads=1))
        assert gate(Session(onnx_bytes(), threads=1), of_nudged=self.of_nudged(1e-6, 1e-6)) == own

    def test_a_verdict_may_turn_round_within_it(self) -> None:
        session = Session(onnx_bytes(gain=1.02), threads=1)  # 0.51 of 0.5
        gate(session, threshold=0.505, of_nudged=self.of_nudged(0.007, 0.008))
        session = Session(onnx_bytes(gain=1.0005), threads=1)
        with pytest.raises(ParityError, match="flipped"):
            gate(session, threshold=HIGHEST * 1.0004, of_nudged=self.of_nudged(1e-6, 1e-6))

    def test_nudged_pixels_are_a_millionth_off_and_stay_pixels(self) -> None:
        given = np.random.default_rng(0).random((2, 3, 5, 7), dtype=np.float32)
        given[0, 0, 0], given[1, 2, 4] = 0, 1
        moved = nudged(given)
        assert (moved.dtype, moved.shape) == (np.float32, given.shape)
        off = np.abs(moved.astype(float) - given)
        assert ((off < 1.1e-6) & ((off > 0.8e-6) | (given == 0) | (given == 1))).all()
        assert (moved >= 0).all()
        assert (moved <= 1).all()
        assert (moved > given).any()
        assert (moved < given).any()


class TestFlips:
    """A verdict turns round: not allowed within the tolerance of scores either, but where rounding alone decides."""

    @pytest.mark.parametrize("shares", [0.2, 0.9])
    def test_a_shift_within_the_tolerance_that_turns_a_verdict_fails(self, shares: float) -> None:
        shift = shares * RELATIVE_TOLERANCE  # of the score, here the highest
        threshold = HIGHEST * (1 + shift * 0.8)  # the trained score is below by more than rounding
        session = Session(onnx_bytes(gain=1 + shift), threads=1)
        gate(session)  # the shift itself is allowed
        with pytest.raises(ParityError, match=r"10\.png .*verdict flipped\): nothing was written"):
            gate(session, threshold=threshold)

    def test_and_so_it_does_downwards(self) -> None:
        shift = 0.5 * RELATIVE_TOLERANCE
        with pytest.raises(ParityError, match="verdict flipped"):
            gate(Session(onnx_bytes(gain=1 - shift), threads=1), threshold=HIGHEST * (1 - shift * 0.8))

    def test_what_rounding_decides_is_a_tenth_of_what_scores_may_differ_by(self) -> None:
        assert pytest.approx(1e-3) == RELATIVE_TOLERANCE
        assert pytest.approx(1e-4) == FLIP_TOLERANCE

    def test_at_the_threshold_itself_rounding_decides(self) -> None:
        """The threshold is the score of one of these images, as the exported file gave it."""
        step = float(np.spacing(np.float32(HIGHEST)))
        gate(Session(onnx_bytes(), threads=1), threshold=HIGHEST - step)
        given = images(LEVELS)
        trained = expected(given)
        trained.image[-1] -= np.float32(4 * step)  # the trained score is the lower: a pass, and a reject of the file
        gate(Session(onnx_bytes(), threads=1), threshold=HIGHEST - step, trained=trained)
        trained.image[-1] = HIGHEST * (1 - 2 * FLIP_TOLERANCE)
        with pytest.raises(ParityError, match="verdict flipped"):
            gate(Session(onnx_bytes(), threads=1), threshold=HIGHEST - step, trained=trained)

    def test_a_score_that_is_equal_to_the_threshold_passes_on_both_sides(self) -> None:
        gate(Session(onnx_bytes(), threads=1), threshold=HIGHEST)
        trained = expected(images(LEVELS))
        trained.image[-1] = HIGHEST * (1 - 5 * FLIP_TOLERANCE)  # a pass by far, and the file's is one too
        gate(Session(onnx_bytes(), threads=1), threshold=HIGHEST, trained=trained)


def test_every_image_is_looked_at_alone_and_in_a_batch() -> None:
    for wrong in (0, BATCH - 1, BATCH, N - 1):
        trained = expected(images(LEVELS))
        trained.image[wrong] += np.float32(0.01)
        with pytest.raises(ParityError, match=rf"scores {wrong}\.png"):
            gate(Session(onnx_bytes(), threads=1), trained=trained)


def test_without_any_difference_from_zero_the_tolerances_are_not_zero() -> None:
    """A network that gives nothing but zeros, and a file that does."""
    parity = gate(Session(onnx_bytes(), threads=1), threshold=0.0, levels=np.zeros(3))
    assert parity.score_tolerance == pytest.approx(1e-9)
    assert parity.map_tolerance == pytest.approx(1e-8)


def test_the_tiny_model_is_what_this_file_takes_it_for() -> None:
    np.testing.assert_allclose(expected(images(LEVELS)).image, LEVELS, atol=1e-7)
