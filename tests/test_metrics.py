"""Metrics against scikit-learn, a brute-force loop, numbers worked out by hand, and properties."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from makel.errors import UsageError
from makel.evaluation import metrics
from makel.evaluation.metrics import PLOT_POINTS, PixelCurves, rank_images, rate_interval

EXACT = 1e-12


def reference(good, defect):
    """AUROC, AP and F1-max of scikit-learn."""
    labels = np.r_[np.zeros(len(good)), np.ones(len(defect))]
    scores = np.r_[good, defect]
    precision, recall, _ = precision_recall_curve(labels, scores)
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    return roc_auc_score(labels, scores), average_precision_score(labels, scores), f1.max()


def brute_aupro(maps, regions, limit):
    """Mean overlap over the false-positive rate, one threshold and one region after another."""
    good = np.concatenate([each[marked == 0] for each, marked in zip(maps, regions, strict=True)])
    areas = [
        each[marked == number]
        for each, marked in zip(maps, regions, strict=True)
        for number in np.unique(marked)
        if number
    ]
    thresholds = np.unique(np.concatenate([each.ravel() for each in maps]))[::-1]
    points = [(0.0, 0.0)] + [
        (np.mean(good >= threshold), np.mean([np.mean(area >= threshold) for area in areas]))
        for threshold in thresholds
    ]
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def sample(seed, *, decimals=2, n_maps=7, shape=(17, 23), low=-1.0):
    """Maps with ties, and regions of 1 to 29 pixels; every third map is of a good image."""
    rng = np.random.default_rng(seed)
    maps, regions = [], []
    for index in range(n_maps):
        marked = np.zeros(shape, np.uint8)
        if index % 3 != 2:
            for _ in range(3):
                y, x = rng.integers(0, shape[0] - 5), rng.integers(0, shape[1] - 5)
                marked[y : y + rng.integers(1, 6), x : x + rng.integers(1, 6)] = 1
        scores = low + rng.random(shape) + 0.6 * marked
        maps.append(np.float32(scores if decimals is None else scores.round(decimals)))
        regions.append(cv2.connectedComponents(marked, connectivity=8, ltype=cv2.CV_32S)[1])
    return maps, regions


def curves_of(maps, regions, **settings):
    curves = PixelCurves(**settings)
    for each, marked in zip(maps, regions, strict=True):
        curves.add(each, marked if marked.any() else None)
    return curves


def numbers(curves):
    return [curves.auroc, curves.ap, curves.f1_max, curves.aupro_30, curves.aupro_05]


class TestImages:
    def test_by_hand(self):
        curves = rank_images([1, 2, 3], [2, 4])
        # Pairs: 2 beats 1, ties with 2, loses to 3; 4 beats all three.
        assert curves.auroc == pytest.approx(4.5 / 6, abs=EXACT)
        # At 4: precision 1, half of the recall; at 2: precision 2/4, the other half.
        assert curves.ap == pytest.approx(0.5 * 1 + 0.5 * 0.5, abs=EXACT)
        assert curves.f1_max == pytest.approx(2 / 3, abs=EXACT)  # both thresholds give it: 2*1/(1+2) and 2*2/(4+2)
        assert (curves.n_good, curves.n_defect, curves.n_regions, curves.exact) == (3, 2, 0, True)
        assert (curves.aupro_30, curves.aupro_05) == (None, None)
        assert curves.roc.tolist() == [[0, 0], [0, 0], [0, 0.5], [1 / 3, 0.5], [2 / 3, 1], [1, 1]]
        assert curves.pro.shape == (0, 2)

    @pytest.mark.parametrize("seed", range(8))
    def test_equals_scikit_learn(self, seed):
        rng = np.random.default_rng(seed)
        good, defect = rng.normal(-1, 1, 211), rng.normal(0, 1, 97)
        if seed % 2:
            good, defect = good.round(1), defect.round(1)  # ties within and between
        curves = rank_images(good, defect)
        assert [curves.auroc, curves.ap, curves.f1_max] == pytest.approx(reference(good, defect), abs=EXACT)

    @settings(deadline=None)
    @given(st.lists(st.integers(-3, 3), min_size=1, max_size=20), st.lists(st.integers(-3, 3), min_size=1, max_size=20))
    def test_equals_scikit_learn_whatever_the_ties(self, good, defect):
        curves = rank_images(good, defect)
        assert [curves.auroc, curves.ap, curves.f1_max] == pytest.approx(reference(good, defect), abs=EXACT)

    @settings(deadline=None)
    @given(
        st.lists(st.integers(-1000, 1000), min_size=1, max_size=20),
        st.lists(st.integers(-1000, 1000), min_size=1, max_size=20),
    )
    def test_only_the_order_counts(self, good, defect):
        curves = rank_images(good, defect)
        bent = rank_images(np.exp(np.array(good) / 100), np.exp(np.array(defect) / 100))
        assert (bent.auroc, bent.ap, bent.f1_max) == (curves.auroc, curves.ap, curves.f1_max)
        assert rank_images(defect, good).auroc == pytest.approx(1 - curves.auroc, abs=EXACT)
        assert rank_images(good[::-1], sorted(defect)).auroc == curves.auroc

    @pytest.mark.parametrize(
        ("good", "defect", "counts"), [([], [], (0, 0)), ([1.0, 2.0], [], (2, 0)), ([], [3.0], (0, 1))]
    )
    def test_with_one_label_nothing_is_defined(self, good, defect, counts):
        curves = rank_images(good, defect)
        assert numbers(curves) == [None] * 5
        assert (curves.n_good, curves.n_defect) == counts
        assert curves.roc.shape == curves.pro.shape == (0, 2)

    def test_equal_scores_are_guessing(self):
        curves = rank_images([5.0] * 30, [5.0] * 10)
        assert curves.auroc == pytest.approx(0.5, abs=EXACT)
        assert curves.ap == pytest.approx(0.25, abs=EXACT)

    def test_zero_has_one_sign(self):
        assert rank_images([-0.0], [0.0]).auroc == 0.5

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_refuses_what_is_not_finite(self, bad):
        for good, defect in (([bad], [1.0]), ([1.0], [bad])):
            with pytest.raises(UsageError, match="NaN or infinity; expected finite numbers"):
                rank_images(good, defect)

    def test_drawn_curves_are_short_and_rise(self):
        rng = np.random.default_rng(0)
        curves = rank_images(rng.normal(0, 1, 5000), rng.normal(1, 1, 3000))
        assert 100 < len(curves.roc) <= PLOT_POINTS
        assert curves.roc[0].tolist() == [0, 0]
        assert curves.roc[-1].tolist() == [1, 1]
        assert (np.diff(curves.roc, axis=0) >= 0).all()
        # Thinned to what the eye tells apart: the area of what is drawn is the area that is reported.
        assert np.trapezoid(curves.roc[:, 1], curves.roc[:, 0]) == pytest.approx(curves.auroc, abs=5e-4)


class TestRateInterval:
    @pytest.mark.parametrize(
        ("count", "of", "interval"),
        [
            # Newcombe, Statistics in Medicine 17 (1998), table I, method 3, to four digits
            (81, 263, (0.2553, 0.3662)),
            (15, 148, (0.0624, 0.1605)),
            (0, 20, (0.0, 0.1611)),
            (1, 29, (0.0061, 0.1718)),
            (29, 29, (0.8830, 1.0)),
        ],
    )
    def test_published_values(self, count, of, interval):
        assert rate_interval(count, of) == pytest.approx(interval, abs=5e-5)

    @settings(deadline=None)
    @given(st.integers(1, 5000).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
    def test_holds_the_rate_and_mirrors(self, pair):
        count, of = pair
        low, high = rate_interval(count, of)
        assert 0 <= low <= count / of <= high <= 1
        assert rate_interval(of - count, of) == pytest.approx((1 - high, 1 - low), abs=EXACT)

    def test_ends_are_exact(self):
        assert rate_interval(0, 7)[0] == 0.0
        assert rate_interval(7, 7)[1] == 1.0

    def test_nothing_has_no_interval(self):
        assert rate_interval(0, 0) is None

    @pytest.mark.parametrize(("count", "of"), [(-1, 5), (6, 5), (0, -1)])
    def test_refuses_what_is_no_rate(self, count, of):
        with pytest.raises(UsageError, match="expected 0 <= count <= of"):
            rate_interval(count, of)


class TestPixels:
    def test_by_hand(self):
        curves = PixelCurves()
        # Two regions: one pixel at 0.9; two pixels at 0.9 and 0.3. Good ones: 0.9 tied, then 0.5, 0.1, 0.0.
        curves.add(
            np.float32([[0.9, 0.9, 0.3], [0.9, 0.5, 0.1], [0.0, 0.0, 0.0]]),
            np.array([[1, 2, 2], [0, 0, 0], [0, 0, 0]]),
        )
        found = curves.results()
        assert (found.n_good, found.n_defect, found.n_regions, found.exact) == (6, 3, 2, True)
        # 0.9 against 0.9, 0.5, 0.1, 0, 0, 0: 5.5 of 6, twice; 0.3 beats four.
        assert found.auroc == pytest.approx((5.5 + 5.5 + 4) / 18, abs=EXACT)
        assert found.ap == pytest.approx(2 / 3 * 2 / 3 + 1 / 3 * 3 / 5, abs=EXACT)
        # Overlap: up to (1 + 1/2) / 2 = 0.75 at rate 1/6, level to 2/6, where it reaches 1.
        assert found.aupro_30 == pytest.approx((0.75 / 6 / 2 + 0.75 * (0.3 - 1 / 6)) / 0.3, abs=EXACT)
        assert found.aupro_05 == pytest.approx(0.75 * (0.05 * 6) / 2, abs=EXACT)
        assert found.pro == pytest.approx(np.array([[0, 0], [0, 0], [1 / 6, 0.75], [0.3, 0.75]]), abs=EXACT)

    @pytest.mark.parametrize("exact_pixels", [1 << 24, 500, 0])
    @pytest.mark.parametrize("decimals", [1, 2, None])
    def test_equals_scikit_learn_and_the_brute_force_loop(self, decimals, exact_pixels):
        maps, regions = sample(3, decimals=decimals, shape=(11, 13))
        found = curves_of(maps, regions, exact_pixels=exact_pixels).results()
        pixels, marked = np.concatenate([*map(np.ravel, maps)]), np.concatenate([*map(np.ravel, regions)]) > 0
        assert numbers(found)[:3] == pytest.approx(reference(pixels[~marked], pixels[marked]), abs=EXACT)
        assert found.aupro_30 == pytest.approx(brute_aupro(maps, regions, 0.30), abs=1e-10)
        assert found.aupro_05 == pytest.approx(brute_aupro(maps, regions, 0.05), abs=1e-10)
        assert found.exact
        assert found.n_regions == sum(int(each.max()) for each in regions)
        assert (found.n_good, found.n_defect) == (np.count_nonzero(~marked), np.count_nonzero(marked))
        assert found.pro[-1] == pytest.approx([0.3, np.interp(0.3, found.pro[:, 0], found.pro[:, 1])])

    @pytest.mark.parametrize("exact_pixels", [1 << 24, 0])
    def test_a_perfect_ranking_gives_exactly_1(self, exact_pixels):
        maps, regions = sample(37, decimals=None)
        apart = [each + np.float32(2) * (marked > 0) for each, marked in zip(maps, regions, strict=True)]
        assert numbers(curves_of(apart, regions, exact_pixels=exact_pixels).results()) == [1.0] * 5
        assert numbers(rank_images(range(100), np.linspace(100, 101, 77)))[:3] == [1.0] * 3

    def test_good_images_count_in_the_rate(self):
        maps, regions = sample(5, n_maps=5)
        without = curves_of(*zip(*[pair for pair in zip(maps, regions, strict=True) if pair[1].any()], strict=True))
        noisy = np.full((17, 23), 5, np.float32)  # hotter than every defect
        with_noise = curves_of([*maps, noisy], [*regions, np.zeros((17, 23), np.int32)]).results()
        assert with_noise.aupro_30 == pytest.approx(
            brute_aupro([*maps, noisy], [*regions, np.zeros((17, 23), int)], 0.3), abs=1e-10
        )
        assert with_noise.aupro_30 < without.results().aupro_30 - 0.1

    @given(
        arrays(np.float32, (4, 5, 7), elements=st.integers(-4, 4).map(float)),
        arrays(np.uint8, (4, 5, 7), elements=st.integers(0, 1)),
        st.permutations(range(4)),
        st.integers(0, 150),
    )
    @settings(max_examples=60, deadline=None)
    def test_order_and_pieces_change_nothing(self, maps, marks, order, exact_pixels):
        regions = [cv2.connectedComponents(each, connectivity=8, ltype=cv2.CV_32S)[1] for each in marks]
        at_once = curves_of(maps, regions).results()
        shuffled = curves_of([maps[i] for i in order], [regions[i] for i in order], exact_pixels=exact_pixels)
        pieces = curves_of(maps[:1], regions[:1], exact_pixels=exact_pixels)
        pieces.include(curves_of(maps[1:], regions[1:], exact_pixels=0 if order[0] % 2 else 1 << 24))
        for other in (shuffled.results(), pieces.results()):
            assert numbers(other) == pytest.approx(numbers(at_once), abs=EXACT)
            assert (other.n_good, other.n_defect, other.n_regions) == (
                at_once.n_good,
                at_once.n_defect,
                at_once.n_regions,
            )
        if at_once.auroc is not None:
            pixels, marked = maps.ravel(), marks.ravel() > 0
            assert numbers(at_once)[:3] == pytest.approx(reference(pixels[~marked], pixels[marked]), abs=EXACT)
            assert at_once.aupro_30 == pytest.approx(brute_aupro(maps, regions, 0.3), abs=1e-10)

    def test_only_the_order_of_scores_counts(self):
        maps, regions = sample(11)
        bent = [np.float32(np.exp(each)) for each in maps]
        assert numbers(curves_of(bent, regions).results()) == pytest.approx(
            numbers(curves_of(maps, regions).results()), abs=EXACT
        )

    def test_include_leaves_the_other_as_it_was(self):
        maps, regions = sample(13)
        for exact_pixels in (1 << 24, 0):
            part = curves_of(maps[:3], regions[:3], exact_pixels=exact_pixels)
            before = numbers(part.results())
            whole = PixelCurves()
            whole.include(part)
            whole.include(curves_of(maps[3:], regions[3:]))
            whole.add(maps[0], regions[0])
            assert numbers(part.results()) == before
            assert part.n_pixels == 3 * 17 * 23

    def test_results_in_between_change_nothing(self):
        maps, regions = sample(17)
        curves = PixelCurves(exact_pixels=500)
        for each, marked in zip(maps, regions, strict=True):
            curves.add(each, marked)
            curves.results()
        assert numbers(curves.results()) == pytest.approx(numbers(curves_of(maps, regions).results()), abs=EXACT)

    def test_regions_of_any_integer_type(self):
        maps, regions = sample(19)
        expected = numbers(curves_of(maps, regions).results())
        for dtype in (np.uint8, np.int16, np.uint32, np.int64, np.uint64):
            assert numbers(curves_of(maps, [each.astype(dtype) for each in regions]).results()) == expected

    def test_numbers_may_have_gaps_and_belong_to_one_map(self):
        curves = PixelCurves()
        curves.add(np.float32([[3, 1, 2]]), np.array([[3, 0, 1]]))
        curves.add(np.float32([[3, 1, 2]]), np.array([[3, 0, 1]]))
        assert curves.results().n_regions == 4

    def test_extreme_and_tiny_scores_are_told_apart(self):
        smallest, largest = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
        ladder = np.float32(
            [
                -largest,
                -1,
                -smallest,
                0.0,
                smallest,
                2 * smallest,
                1,
                np.nextafter(np.float32(1), np.float32(2)),
                largest,
            ]
        )
        for exact_pixels in (1 << 24, 0):
            for low, high in pairwise(ladder):
                curves = PixelCurves(exact_pixels=exact_pixels)
                curves.add(np.float32([[low, high]]), np.array([[0, 1]]))
                assert curves.results().auroc == 1.0
            curves = PixelCurves(exact_pixels=exact_pixels)
            curves.add(np.float32([[-0.0, 0.0]]), np.array([[0, 1]]))
            assert curves.results().auroc == 0.5

    def test_parts_of_larger_arrays(self):
        maps, regions = sample(23)
        wide = [np.repeat(np.repeat(each, 2, 0), 3, 1)[::2, ::3] for each in maps]
        assert not wide[0].flags.c_contiguous
        assert numbers(curves_of(wide, regions).results()) == numbers(curves_of(maps, regions).results())

    def test_with_one_label_nothing_is_defined(self):
        for marked in (None, np.zeros((2, 3), int), np.ones((2, 3), int)):
            for exact_pixels in (100, 0):
                curves = PixelCurves(exact_pixels=exact_pixels)
                curves.add(np.ones((2, 3), np.float32), marked)
                found = curves.results()
                assert numbers(found) == [None] * 5
                assert found.n_good + found.n_defect == 6
        assert numbers(PixelCurves().results()) == [None] * 5
        assert numbers(PixelCurves(exact_pixels=0).results()) == [None] * 5

    @pytest.mark.parametrize(
        ("anomaly_map", "regions", "said"),
        [
            (np.float32([[0, np.nan]]), None, "NaN or infinity"),
            (np.float32([[0, np.inf]]), None, "NaN or infinity"),
            (np.float32([[-np.inf, 1]]), None, "NaN or infinity"),
            (np.float64([[0, 1]]), None, r"float32 of shape \(H, W\), but got float64 of shape \(1, 2\)"),
            (np.zeros((1, 2, 3), np.float32), None, r"but got float32 of shape \(1, 2, 3\)"),
            (np.float32([[0, 1]]), np.array([[0], [1]]), r"shape \(1, 2\).*but got int64 of shape \(2, 1\)"),
            (np.float32([[0, 1]]), np.array([[False, True]]), "must be integers.*but got bool"),
            (np.float32([[0, 1]]), np.array([[-1, 0]]), "numbered from -1 to 0"),
            (np.float32([[0, 1]]), np.array([[0, 255]]), "numbered from 0 to 255"),
        ],
    )
    @pytest.mark.parametrize("exact_pixels", [1 << 24, 0])
    def test_refuses_and_stays_as_it_was(self, anomaly_map, regions, said, exact_pixels):
        curves = PixelCurves(exact_pixels=exact_pixels)
        curves.add(np.float32([[0.5, 0.1]]), np.array([[1, 0]]))
        before = curves.results()
        with pytest.raises(UsageError, match=said):
            curves.add(anomaly_map, regions)
        after = curves.results()
        assert numbers(after) == numbers(before)
        assert (after.n_good, after.n_defect, after.n_regions) == (1, 1, 1)


class TestBoundedMemory:
    """With 65,536 bins, each factor of 65,536 / 2**23 is already too wide: neighbouring floats share bins."""

    def test_scores_that_span_too_much_are_said_to_be_inexact(self):
        rng = np.random.default_rng(0)
        maps = [np.float32(10.0 ** rng.uniform(-20, 20, (40, 50))) * np.float32(rng.choice([-1, 1])) for _ in range(6)]
        marks = [rng.random((40, 50)) < 0.1 * (index % 2) for index in range(6)]
        maps = [np.where(marked, each * np.float32(7), each) for each, marked in zip(maps, marks, strict=True)]
        regions = [np.int32(marked) for marked in marks]
        exact = curves_of(maps, regions).results()
        small = curves_of(maps, regions, exact_pixels=0, max_bins=1 << 16)
        found = small.results()
        assert exact.exact
        assert not found.exact
        assert small._histogram._bins.size <= 1 << 16
        assert (found.n_good, found.n_defect, found.n_regions) == (exact.n_good, exact.n_defect, exact.n_regions)
        assert numbers(found) == pytest.approx(numbers(exact), abs=0.01)

        # What is told apart is what differs above the dropped bits, and nothing else is lost.
        def rounded(each):
            keys = each.view(np.int32) >> small._histogram.shift << small._histogram.shift
            # Below zero the order of the bits is reversed, so bits are dropped the other way round.
            filled = each.view(np.int32) | ((1 << small._histogram.shift) - 1)
            return np.where(each < 0, filled.view(np.float32), keys.view(np.float32))

        coarse = curves_of([rounded(each) for each in maps], regions).results()
        assert numbers(found) == pytest.approx(numbers(coarse), abs=EXACT)

        # The same, whichever way the maps come together.
        pieces = PixelCurves(exact_pixels=0, max_bins=1 << 18)
        pieces.include(curves_of(maps[:2], regions[:2], exact_pixels=0, max_bins=1 << 20))
        pieces.include(small)
        doubled = pieces.results()
        assert not doubled.exact
        assert doubled.n_defect == found.n_defect + sum(int(each.sum()) for each in regions[:2])
        halves = PixelCurves(exact_pixels=0, max_bins=1 << 16)
        halves.include(curves_of(maps[:3], regions[:3]))
        halves.include(curves_of(maps[3:], regions[3:], exact_pixels=0, max_bins=1 << 17))
        assert numbers(halves.results()) == pytest.approx(numbers(found), abs=EXACT)

    def test_what_includes_inexact_curves_is_inexact(self):
        maps, regions = sample(43, decimals=None, low=1.0)  # 1 to 2.6: more than one page, so bins are shared
        coarse = curves_of(maps, regions, exact_pixels=0, max_bins=1 << 16)
        whole = PixelCurves(exact_pixels=0)
        whole.include(coarse)
        assert not coarse.results().exact
        assert not whole.results().exact
        assert numbers(whole.results()) == numbers(coarse.results())

    def test_a_narrow_span_stays_exact(self):
        maps, regions = sample(29, low=1.0)
        maps = [np.float32(1 + each / 512) for each in maps]  # 1 to 1.008: one page of 65,536 floats
        found = curves_of(maps, regions, exact_pixels=0, max_bins=1 << 16).results()
        assert found.exact
        assert numbers(found) == pytest.approx(numbers(curves_of(maps, regions).results()), abs=EXACT)

    def test_maps_are_let_go(self):
        curves = PixelCurves(exact_pixels=1000)
        maps, regions = sample(31)
        for each, marked in zip(maps, regions, strict=True):
            curves.add(each, marked)
        assert curves._n_kept <= curves._buffer.size <= 1000
        curves.results()
        before = curves._histogram._bins.size
        for _ in range(20):
            for each, marked in zip(maps, regions, strict=True):
                curves.add(each, marked)
        assert curves._histogram._bins.size == before

    def test_equal_scores_of_defects_become_one_entry(self, monkeypatch):
        monkeypatch.setattr(metrics, "_MERGED_AT_ONCE", 100)
        maps, regions = sample(41, decimals=1)
        curves = curves_of(maps * 5, regions * 5, exact_pixels=0)
        assert sum(levels.keys.size for levels in curves._defects) < 200
        marked = np.concatenate([*map(np.ravel, regions)]) > 0
        pixels = np.concatenate([*map(np.ravel, maps)])
        found = curves.results()
        assert numbers(found)[:3] == pytest.approx(reference(pixels[~marked], pixels[marked]), abs=EXACT)
        assert found.aupro_30 == pytest.approx(brute_aupro(maps, regions, 0.3), abs=1e-10)
        assert found.n_defect == 5 * np.count_nonzero(marked)

    def test_a_score_that_outgrows_its_bin_is_counted_all_the_same(self):
        rng = np.random.default_rng(47)
        few = [np.float32(rng.integers(1, 4, (300, 301)) / 4) for _ in range(4)]
        few[0] = rng.random((300, 301), np.float32) + np.float32(0.25)  # fits bins of one byte
        regions = [np.int32(rng.random((300, 301)) < 0.05 * each) for each in few]
        curves = PixelCurves(exact_pixels=0)
        sizes = []
        for each, marked in zip(few, regions, strict=True):
            curves.add(each, marked)
            curves.results()
            sizes.append(curves._histogram._bins.itemsize)
        assert sizes == [1, 2, 2, 4]
        pixels, marked = np.concatenate([*map(np.ravel, few)]), np.concatenate([*map(np.ravel, regions)]) > 0
        exact = rank_images(pixels[~marked], pixels[marked])
        assert numbers(curves.results())[:3] == pytest.approx(numbers(exact)[:3], abs=EXACT)

    def test_more_pixels_than_32_bits_count(self):
        curves = PixelCurves(exact_pixels=0)
        curves.add(np.float32([[0.1, 0.5, 0.9]]), np.array([[0, 1, 0]]))
        for _ in range(33):  # doubles each time
            twice = PixelCurves(exact_pixels=0)
            twice.include(curves)
            twice.include(curves)
            twice._defects = [twice._defects[0]]
            curves = twice
        found = curves.results()
        assert found.n_good + found.n_defect == 3 << 33
        assert found.auroc == pytest.approx(0.5, abs=1e-9)

    @pytest.mark.parametrize("max_bins", [0, 1 << 15, 100_000, 1 << 33])
    def test_refuses_a_limit_that_cannot_be_kept(self, max_bins):
        with pytest.raises(UsageError, match=rf"max_bins is {max_bins}; expected a power of two from 65536"):
            PixelCurves(max_bins=max_bins)
