"""From scores to verdicts, computed by hand: thresholds, zones, budgets, minimum areas."""

from __future__ import annotations

from math import inf, nextafter

import numpy as np
import pytest

import tiny_model
from makel.calibration import calibrate
from makel.model.rules import Rules
from makel.model.zones import Zone, Zones
from makel.types import Region

SIZE = tiny_model.SIZE
OURS = (0.1, 0.2, 0.3)
"""Scores of good images: with three of them and a budget of 25 % whatever is above 0.3 is rejected."""


def square(x0: float, y0: float, x1: float, y1: float) -> tuple[tuple[float, float], ...]:
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def inspected(name: str, polygon, scores=(1.0, 2.0, 3.0, 4.0), peaks=None, false_reject: float = 0.4) -> Zone:
    found = calibrate(scores, scores if peaks is None else peaks, false_reject=false_reject)
    return Zone(name=name, kind="inspect", polygon=polygon, false_reject=false_reject, calibration=found)


def rules(*zones: Zone, scores=OURS, **more) -> Rules:
    """Rules on a 16 x 16 input; zones are drawn on 16 x 16 as well."""
    return Rules(tiny_model.draft(image_scores=scores, zones=Zones(image_size_px=(SIZE, SIZE), zones=zones, **more)))


EDGE = inspected("edge", square(0, 0, 4, 16))
"""Judged above 3.0: of five ranks 40 % are two, so its threshold is the second highest, and 40 % is promised."""


def map_of(**points: float) -> np.ndarray:
    """A map that is zero but at x3y5=value and the like."""
    drawn = np.zeros((SIZE, SIZE), np.float32)
    for place, value in points.items():
        x, _, y = place[1:].partition("y")
        drawn[int(y), int(x)] = value
    return drawn


class TestScoreAlone:
    def test_above_is_a_reject_and_equal_a_pass(self) -> None:
        own = Rules(tiny_model.draft(image_scores=OURS))
        assert own.names == ("",)
        for score, rejected, p_value in ((0.3, False, 0.5), (0.31, True, 0.25), (0.0, False, 1.0), (0.15, False, 0.75)):
            found = own.decide(score, map_of())
            assert (found.rejected, found.score, found.p_value, found.zones) == (rejected, score, p_value, ())

    def test_with_a_minimum_area_a_reject_has_to_show_a_region(self) -> None:
        own = rules(min_area_px=3)
        region = Region((0, 0, 2, 2), 4, 9.0)
        assert own.decide(0.9, map_of(), [region]).rejected
        assert not own.decide(0.9, map_of(), []).rejected
        assert not own.decide(0.9, map_of()).rejected
        assert not own.decide(0.2, map_of(), [region]).rejected

    def test_without_one_regions_say_nothing(self) -> None:
        assert Rules(tiny_model.draft(image_scores=OURS)).decide(0.9, map_of(), []).rejected


class TestZones:
    def test_each_part_is_judged_by_its_own_threshold(self) -> None:
        own = rules(EDGE)
        assert own.names == ("", "edge")
        for edge, score, rejected in (
            (3.0, 0.3, ()),
            (3.5, 0.1, ("edge",)),
            (2.0, 0.4, ("",)),
            (5.0, 0.4, ("", "edge")),
        ):
            found = own.decide(score, map_of(x1y1=edge))
            assert found.rejected == bool(rejected)
            (zone,) = found.zones
            assert (zone.name, zone.score, zone.threshold) == ("edge", edge, 3.0)
            assert zone.verdict == ("reject" if "edge" in rejected else "pass")

    def test_p_values_are_weighted_by_the_budgets(self) -> None:
        own = rules(EDGE)
        total = 0.25 + 0.4
        found = own.decide(0.15, map_of(x1y1=3.5))  # 3 + 1 of 4, and 1 + 1 of 5
        assert found.zones[0].p_value == pytest.approx(2 / 5)
        assert found.p_value == pytest.approx(min(0.75 * total / 0.25, 0.4 * total / 0.4))
        found = own.decide(0.31, map_of())
        assert found.p_value == pytest.approx(0.25 * total / 0.25)
        assert own.decide(0.0, map_of()).p_value == 1.0

    def test_the_score_is_that_of_the_worst_part_in_the_images_units(self) -> None:
        own = rules(EDGE)
        assert own.decide(0.2, map_of(x1y1=6)).score == pytest.approx(6 * 0.3 / 3)
        assert own.decide(0.2, map_of(x1y1=1)).score == 0.2
        assert own.decide(0.9, map_of(x1y1=6)).score == 0.9

    def test_what_a_part_says_of_a_map_without_one_is_nothing(self) -> None:
        found = rules(EDGE).decide(0.2, None)
        assert (found.zones, found.score) == ((), 0.2)

    def test_two_zones_keep_their_order_and_their_peaks(self) -> None:
        own = rules(EDGE, inspected("core", square(8, 8, 12, 12), scores=(5.0, 6.0, 7.0), false_reject=0.25))
        found = own.decide(0.1, map_of(x1y1=2, x9y9=8, x14y2=100))
        assert [(zone.name, zone.score, zone.verdict) for zone in found.zones] == [
            ("edge", 2.0, "pass"),
            ("core", 8.0, "reject"),
        ]
        assert found.rejected
        assert found.score == pytest.approx(8 * 0.3 / 7)

    def test_with_a_minimum_area_a_zone_has_to_show_a_region_of_its_own(self) -> None:
        own = rules(EDGE, min_area_px=3)
        elsewhere, inside = Region((8, 8, 10, 10), 4, 9.0, ""), Region((0, 0, 2, 2), 4, 9.0, "edge")
        assert not own.decide(0.1, map_of(x1y1=9), [elsewhere]).rejected
        found = own.decide(0.1, map_of(x1y1=9), [inside])
        assert (found.rejected, found.zones[0].verdict) == (True, "reject")
        assert not own.decide(0.9, map_of(), [inside]).rejected  # the rest shows none

    def test_a_region_of_a_zone_without_a_budget_is_one_of_the_rest(self) -> None:
        plain = Zone(name="face", kind="include", polygon=square(0, 0, 16, 16))
        own = rules(plain, min_area_px=3)
        assert own.decide(0.9, map_of(), [Region((0, 0, 2, 2), 4, 9.0, "face")]).rejected


class TestUnits:
    """A zone's score on the image's scale is above its threshold exactly where the zone rejects."""

    @pytest.mark.parametrize("theirs", [0.7, 3.0, 1e-3, 12345.678, 5e-324, 1e300])
    @pytest.mark.parametrize("ours", [0.3, 0.1, 7.7])
    def test_rounding_never_takes_it_to_the_other_side(self, theirs: float, ours: float) -> None:
        own = rules(scores=(ours / 4, ours / 2, ours))
        other = calibrate([theirs], [theirs], false_reject=0.5)
        at = own._in_units_of_score(theirs, other)
        above = own._in_units_of_score(nextafter(theirs, inf), other)
        assert at <= ours < above
        assert np.isfinite([at, above]).all()
        assert own._in_units_of_score(0.0, other) <= ours

    def test_it_is_clamped_on_either_side(self) -> None:
        """0.3 / 0.1 is more than 3, and three tenths of it more than 0.3."""
        own = rules(scores=(0.1, 0.2, 0.3))
        for theirs in np.linspace(0.05, 2, 200).tolist():
            other = calibrate([theirs], [theirs], false_reject=0.5)
            assert own._in_units_of_score(theirs, other) <= 0.3
            assert own._in_units_of_score(nextafter(theirs, inf), other) > 0.3

    def test_its_own_score_stays_what_it_is(self) -> None:
        own = rules()
        assert own._in_units_of_score(0.123, own.calibration) == 0.123

    @pytest.mark.parametrize(
        ("ours", "theirs", "value", "expected"),
        [
            (0.3, 0.0, 0.5, 0.8),
            (0.3, 0.0, 0.0, 0.3),
            (0.0, 0.5, 0.75, 0.25),
            (0.0, 0.5, 0.25, -0.25),
            (0.3, -1.0, -0.5, 0.8),
            (0.3, -1.0, -2.0, -0.7),
            (-0.3, 0.5, 0.6, -0.2),
            (0.0, 0.0, 0.5, 0.5),
        ],
    )
    def test_thresholds_that_are_not_above_zero_are_shifted(self, ours, theirs, value, expected) -> None:
        own = rules(scores=(ours - 2, ours - 1, ours))
        other = calibrate([theirs], [theirs], false_reject=0.5)
        assert own._in_units_of_score(value, other) == pytest.approx(expected)

    def test_a_zone_whose_threshold_is_zero_is_judged_all_the_same(self) -> None:
        own = rules(inspected("dark", square(0, 0, 4, 16), scores=(0.0, 0.0, 0.0), false_reject=0.25))
        found = own.decide(0.1, map_of(x1y1=0.5))
        assert (found.rejected, found.zones[0].verdict, found.score) == (True, "reject", pytest.approx(0.8))
        found = own.decide(0.1, map_of())
        assert (found.rejected, found.zones[0].verdict, found.score) == (False, "pass", 0.3)


class TestMaps:
    """The map at the image's own size, here twice the input's."""

    PIXELS = (2 * SIZE, 2 * SIZE)

    def test_enlarged_it_is_zero_where_nothing_is_inspected(self) -> None:
        own = rules(Zone(name="clamp", kind="ignore", polygon=square(0, 0, 8, 16)))
        found = own.enlarge(np.ones((SIZE, SIZE), np.float32), 2 * SIZE, SIZE)
        assert found.shape == (SIZE, 2 * SIZE)
        assert found.dtype == np.float32
        assert (found[:, :16] == 0).all()
        assert (found[:, 16:] == 1).all()
        plain = Rules(tiny_model.draft()).enlarge(map_of(x3y5=1), *self.PIXELS)
        assert plain[11, 7] == pytest.approx(0.75 * 0.75)  # linear: a quarter of a pixel off in both directions

    def test_each_zone_has_its_own_level(self) -> None:
        own = rules(
            inspected("edge", square(0, 0, 4, 16), peaks=(1.0, 2.0, 5.0, 6.0)),
            Zone(name="face", kind="include", polygon=square(0, 0, 12, 16)),
        )
        levels = own.thresholds(own._place(SIZE, SIZE))
        assert levels.dtype == np.float32
        assert (levels[:, :4] == 5).all()
        assert (levels[:, 4:12] == np.float32(0.3)).all()
        assert np.isinf(levels[:, 12:]).all()

    def test_regions_are_above_the_level_of_their_zone(self) -> None:
        own = rules(EDGE)
        drawn = map_of(x1y1=2.9, x1y6=3.1, x9y9=0.4, x14y14=0.3)
        assert own.find(drawn) == (
            Region((1, 6, 2, 7), 1, pytest.approx(3.1), "edge"),
            Region((9, 9, 10, 10), 1, pytest.approx(0.4), ""),
        )
        assert np.argwhere(own.mask(drawn)).tolist() == [[6, 1], [9, 9]]

    def test_small_regions_are_dropped_by_their_area_on_the_reference_image(self) -> None:
        own = rules(min_area_px=2, mm_per_px=0.5)
        drawn = np.zeros(self.PIXELS, np.float32)
        drawn[3, 2:9] = 1  # seven pixels here are less than two there
        drawn[10:12, 2:6] = 2  # eight are two
        (found,) = own.find(drawn)
        assert (found.box_px, found.area_px) == ((2, 10, 6, 12), 8)
        assert found.area_mm2 == pytest.approx(8 / 4 * 0.25)
        assert own.mask(drawn).sum() == 8
        assert own.mask(drawn)[10:12, 2:6].all()
        assert own.mask(drawn).dtype == bool

    def test_without_a_minimum_every_pixel_above_is_in_the_mask(self) -> None:
        drawn = map_of(x1y1=0.31, x3y3=0.3, x8y2=9)
        assert np.argwhere(Rules(tiny_model.draft()).mask(drawn)).tolist() == [[1, 1], [2, 8]]

    def test_a_map_that_comes_in_bands_has_the_same_minimum(self) -> None:
        own = rules(min_area_px=2)
        stream = own.follow(*self.PIXELS)
        drawn = np.zeros(self.PIXELS, np.float32)
        drawn[3, 2:9], drawn[10:12, 2:6] = 1, 2
        for band in np.split(drawn, 4):
            stream.add(band)
        assert [region.area_px for region in stream.finish()] == [8]
        every = Rules(tiny_model.draft()).follow(*self.PIXELS)
        every.add(drawn)
        assert [region.area_px for region in every.finish()] == [8, 7]

    def test_without_a_minimum_a_single_pixel_is_a_region_on_an_image_of_any_size(self) -> None:
        own, drawn = rules(mm_per_px=0.1), np.zeros(self.PIXELS, np.float32)
        drawn[5, 7] = 1
        stream = own.follow(*self.PIXELS)
        stream.add(drawn)
        assert [region.area_px for region in stream.finish()] == [1]
        assert [region.area_px for region in own.find(drawn)] == [1]
        assert own.mask(drawn).sum() == 1

    def test_areas_have_a_scale_only_where_one_was_given(self) -> None:
        region = Region((0, 0, 4, 2), 8, 1.0)
        assert rules(min_area_px=1).measure((region,), *self.PIXELS) == (region,)
        (found,) = rules(mm_per_px=0.1).measure((region,), *self.PIXELS)
        assert found.area_mm2 == pytest.approx(8 / 4 * 0.01)

    def test_judged_without_regions_it_is_as_with_them(self) -> None:
        own = rules(min_area_px=2)
        wide = map_of(x1y1=1, x2y1=1, x3y1=1)
        assert own.judge(0.9, wide, SIZE, SIZE).rejected
        assert not own.judge(0.9, map_of(x1y1=1), SIZE, SIZE).rejected
        assert Rules(tiny_model.draft(image_scores=OURS)).judge(0.9, map_of(), SIZE, SIZE).rejected
