"""Split-conformal calibration: hand-computed ranks, the coverage it promises, and the words it uses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from makel.calibration import Calibration, _beta_quantile, calibrate, images_needed
from makel.errors import CalibrationError, UsageError

scores = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200)
budgets = st.floats(0.001, 0.999)


def calibration_of(values, **settings) -> Calibration:
    return calibrate(values, values, **settings)


def test_threshold_is_the_conformal_rank_by_hand() -> None:
    found = calibrate([5, 1, 4, 2, 3, 9, 8, 7, 6], [50, 10, 40, 20, 30, 90, 80, 70, 60], false_reject=0.2)
    # n = 9: m = floor(0.2 * 10) = 2, threshold the (10 - 2) = 8th smallest
    assert found.image_threshold == 8
    assert found.pixel_threshold == 80
    assert found.promised_false_reject == 0.2
    assert found.image_scores == (1, 2, 3, 4, 5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("n", "budget", "rank"),
    [
        (99, 0.01, 99),  # the fewest for 1 %
        (198, 0.01, 198),
        (199, 0.01, 198),
        (99, 0.07, 93),  # 0.07 * 100 is 7.000000000000001 in binary
        (99, 0.29, 71),  # 0.29 * 100 is 28.999999999999996: 29 may be rejected, not 28
        (99, 0.57, 43),
        (2, 1 / 3, 2),
        (29, 1 / 3, 20),
        (1, 0.5, 1),
    ],
)
def test_rank_does_not_slip_on_binary_fractions(n: int, budget: float, rank: int) -> None:
    assert calibration_of(range(1, n + 1), false_reject=budget).image_threshold == rank


def test_p_values_by_hand() -> None:
    found = calibration_of([1, 2, 2, 3])
    assert [found.p_value(score) for score in (0, 1, 1.5, 2, 2.5, 3, 3.1)] == [1, 1, 0.8, 0.8, 0.4, 0.4, 0.2]


def test_p_value_of_nan_is_refused() -> None:
    with pytest.raises(CalibrationError, match="NaN"):
        calibration_of([1, 2]).p_value(float("nan"))


@given(scores, budgets, st.floats(-1e6, 1e6, width=32))
def test_reject_means_p_value_within_the_promise(values, budget, score) -> None:
    found = calibration_of(values, false_reject=budget)
    for one in (score, found.image_threshold, *found.image_scores):
        assert (one > found.image_threshold) == (found.p_value(one) <= found.promised_false_reject)


@given(scores, st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_p_value_falls_as_the_score_rises(values, a, b) -> None:
    found = calibration_of(values)
    low, high = sorted((a, b))
    assert 1 / (found.n + 1) <= found.p_value(high) <= found.p_value(low) <= 1


@given(scores, budgets, budgets)
def test_a_larger_budget_never_raises_a_threshold(values, a, b) -> None:
    strict, loose = (calibration_of(values, false_reject=budget) for budget in sorted((a, b)))
    assert loose.image_threshold <= strict.image_threshold
    assert loose.pixel_threshold <= strict.pixel_threshold
    assert loose.promised_false_reject >= strict.promised_false_reject


@given(scores, budgets)
@example([0.0, 0.0], 1 / 3)
@example([0.0] * 99, 0.01)
def test_the_promise_keeps_the_budget_or_says_it_cannot(values, budget) -> None:
    found = calibration_of(values, false_reject=budget)
    if found.n >= images_needed(budget):
        assert found.promised_false_reject <= budget
        assert found.threshold_for(budget) == found.image_threshold
    else:
        assert found.promised_false_reject == 1 / (found.n + 1) > budget
        assert found.image_threshold == max(values)
        with pytest.raises(CalibrationError, match="at best"):
            found.threshold_for(budget)


@given(scores, budgets, st.randoms(use_true_random=False))
def test_order_of_the_images_does_not_matter(values, budget, random) -> None:
    shuffled = random.sample(values, len(values))
    assert calibration_of(values, false_reject=budget) == calibration_of(shuffled, false_reject=budget)


@given(scores, budgets, st.sampled_from(["holdout", "cross"]))
def test_json_round_trip_is_exact(values, budget, scheme) -> None:
    found = calibration_of(values, false_reject=budget, scheme=scheme)
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(("n", "budget"), [(19, 0.05), (40, 0.1), (99, 0.01), (10, 0.01)])
def test_coverage_on_the_line_is_what_is_promised(n: int, budget: float) -> None:
    random = np.random.default_rng(n)
    rounds = 20_000
    drawn = random.lognormal(size=(rounds, n + 1))
    rejected = 0
    for row in drawn:
        found = calibration_of(row[:-1], false_reject=budget)
        rejected += row[-1] > found.image_threshold
    spread = np.sqrt(found.promised_false_reject / rounds)
    assert rejected / rounds == pytest.approx(found.promised_false_reject, abs=4 * spread)


def test_stated_bound_holds_for_95_of_100_calibrations() -> None:
    random = np.random.default_rng(0)
    n, rounds = 60, 4000
    # Uniform scores: the rate on the line is one minus the threshold.
    rates = [1 - calibration_of(random.uniform(size=n), false_reject=0.05).image_threshold for _ in range(rounds)]
    found = calibration_of(random.uniform(size=n), false_reject=0.05)
    bound = _beta_quantile(0.95, 3, 58)
    assert np.mean(np.array(rates) < bound) == pytest.approx(0.95, abs=0.015)
    assert f"stays below {100 * bound:.1f} % with 95 % confidence" in found.explain()


def test_beta_quantile_of_one_rejection_in_closed_form() -> None:
    for n in (1, 10, 99, 2000):
        assert _beta_quantile(0.95, 1, n) == pytest.approx(1 - 0.05 ** (1 / n), rel=1e-9)


@pytest.mark.parametrize(("budget", "n"), [(0.5, 1), (0.3, 3), (0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999)])
def test_images_needed_is_the_smallest_that_carries_the_budget(budget: float, n: int) -> None:
    assert images_needed(budget) == n
    assert calibration_of(range(n), false_reject=budget).promised_false_reject <= budget
    if n > 1:
        assert calibration_of(range(n - 1), false_reject=budget).promised_false_reject > budget


def test_ten_images_for_one_per_cent_says_what_is_promised_instead() -> None:
    found = calibration_of(range(10), false_reject=0.01)
    assert found.image_threshold == 9
    assert found.promised_false_reject == 1 / 11
    assert found.explain().startswith(
        "10 held-out good images can promise a false-reject rate of 9.1 % (1 in 11) at best, not the 1.0 % asked for: "
        "99 are needed. Until then the threshold is the highest score among them."
    )


def test_a_promise_that_rounds_to_what_was_asked_for_does_not_deny_it() -> None:
    text = calibration_of(range(95), false_reject=0.01).explain()
    assert text.startswith(
        "95 held-out good images can promise a false-reject rate of 1.04 % (1 in 96) at best, not the 1.0 % asked for: "
    )


@pytest.mark.parametrize(
    ("n_above", "n", "expected"), [(0, 50, False), (1, 50, False), (2, 100, False), (30, 30, True), (10, 100, True)]
)
def test_more_rejects_than_luck_explains_contradict_a_promise(n_above: int, n: int, expected: bool) -> None:
    assert calibration_of(range(400), false_reject=0.01).contradicted_by(n_above, n) is expected


@pytest.mark.parametrize(("n_calibrate", "budget"), [(400, 0.01), (40, 0.05), (99, 0.01)])
@pytest.mark.parametrize("n", [30, 200, 1000])
def test_a_contradiction_is_what_luck_does_once_in_a_thousand_times(n_calibrate: int, budget: float, n: int) -> None:
    """Against SciPy: the fewest rejects that a line at the stated bound of its rate has in fewer than 0.1 % of days."""
    found = calibration_of(range(n_calibrate), false_reject=budget)
    allowed = round(found.promised_false_reject * (n_calibrate + 1))
    bound = scipy.stats.beta.ppf(0.95, allowed, n_calibrate + 1 - allowed)
    first = next(k for k in range(n + 1) if scipy.stats.binom.sf(k - 1, n, bound) < 0.001)
    assert first > 1
    assert not found.contradicted_by(first - 1, n)
    assert found.contradicted_by(first, n)
    assert not found.contradicted_by(0, n)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.001, 0.999))
@settings(max_examples=50)
def test_beta_quantiles_are_those_of_scipy(a: int, b: int, level: float) -> None:
    assert _beta_quantile(level, a, b) == pytest.approx(scipy.stats.beta.ppf(level, a, b), rel=1e-7, abs=1e-12)


def test_few_held_out_images_promise_too_little_to_be_contradicted_soon() -> None:
    few = calibration_of(range(10), false_reject=0.01)  # the rate stays below 26 %
    assert not few.contradicted_by(4, 12)
    assert few.contradicted_by(12, 12)


def test_explain_of_a_kept_budget_counts_what_lies_above() -> None:
    text = calibration_of(range(400), false_reject=0.01).explain()
    assert text.startswith(
        "400 held-out good images promise a false-reject rate of at most 1.0 % (4 in 401); 1.0 % was asked for. "
        "3 of them score above the threshold."
    )
    assert "nothing of how many defects are missed" in text


def test_a_budget_that_is_met_exactly_is_kept() -> None:
    text = calibration_of(range(99), false_reject=0.01).explain()
    assert text.startswith(
        "99 held-out good images promise a false-reject rate of at most 1.0 % (1 in 100); 1.0 % was asked for. "
        "0 of them score above the threshold."
    )


def test_cross_fitted_scores_are_never_called_a_promise() -> None:
    for n in (10, 150):
        text = calibration_of(range(n), false_reject=0.01, scheme="cross").explain()
        assert "promise" not in text
        assert f"{n} cross-fitted good images" in text
        assert "no guarantee" in text
        assert "Barber et al. 2021" in text
    assert "twice the rate, 1.3 %" in text


def test_threshold_for_says_the_best_that_can_be_had() -> None:
    with pytest.raises(
        CalibrationError, match=r"40 held-out good images can promise .* 2\.4 % at best, not 1\.0 %: 99"
    ):
        calibration_of(range(40)).threshold_for(0.01)


@pytest.mark.parametrize("budget", [0, 1, -0.1, 1.5, float("nan")])
def test_a_budget_that_is_no_share_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        calibration_of([1, 2], false_reject=budget)


@pytest.mark.parametrize(
    ("image_scores", "map_peaks", "words"),
    [
        ([], [], "at least one"),
        ([1, 2], [1], "2 image scores and 1 map peaks"),
        ([1, float("nan")], [1, 2], "image scores .* not all finite"),
        ([1, 2], [1, float("inf")], "map peaks .* not all finite"),
    ],
)
def test_scores_that_cannot_calibrate_are_refused(image_scores, map_peaks, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        calibrate(image_scores, map_peaks)


def test_thresholds_that_do_not_follow_from_the_scores_are_refused() -> None:
    found = calibration_of(range(150))
    with pytest.raises(CalibrationError, match="do not follow"):
        replace(found, image_threshold=1000.0)
    with pytest.raises(CalibrationError, match="do not follow"):
        replace(found, promised_false_reject=0.0001)
    with pytest.raises(CalibrationError, match="ascend"):
        replace(found, image_scores=found.image_scores[::-1])
    with pytest.raises(CalibrationError, match="extra"):
        Calibration.from_json({**found.to_json(), "extra": 1})


def test_float32_scores_keep_their_value() -> None:
    values = np.array([0.1, 0.2, 0.3], np.float32)
    found = calibration_of(values)
    assert np.float32(found.image_threshold) == values[2]
    assert found.p_value(float(values[2])) == 0.5
