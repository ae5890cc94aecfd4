"""Zones: the file and what it refuses, where zones lie, what they do to verdicts, and a fit with them."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import guides
import tiny_model
from makel import Inspector
from makel.calibration import calibrate
from makel.datasets import synthetic
from makel.errors import CalibrationError, ImageError, UsageError
from makel.evaluation.protocol import evaluate
from makel.images import read as read_image
from makel.model import overlay
from makel.model.layout import outline, place, place_on_input
from makel.model.rules import Rules
from makel.model.zones import Zone, Zones, read
from makel.types import Sample

PAGE = Path(__file__).resolve().parent.parent / "docs" / "zones.md"
SQUARE = ((2.0, 1.0), (6.0, 1.0), (6.0, 4.0), (2.0, 4.0))


def zone(kind="ignore", name="a", polygon=SQUARE, **more):
    return Zone(name=name, kind=kind, polygon=polygon, **more)


def judged(name="own", polygon=SQUARE, peaks=(0.1, 0.2, 0.3)):
    calibration = calibrate(peaks, peaks, false_reject=0.25)
    return zone("inspect", name, polygon, false_reject=0.25, calibration=calibration)


def on(size, *zones, **more):
    return Zones(image_size_px=size, zones=zones, **more)


class TestFile:
    def say(self, folder, text):
        (folder / "zones.toml").write_text(text, encoding="utf-8")
        return folder / "zones.toml"

    def test_everything_it_can_say(self, tmp_path):
        mask = np.zeros((30, 40), np.uint8)
        mask[10:20, 5:9] = 1
        cv2.imwrite(str(tmp_path / "edge.png"), mask)
        zones = read(
            self.say(
                tmp_path,
                "image_size_px = [80, 60]\nmm_per_px = 0.5\nmin_area_mm2 = 2\n"
                '[[zone]]\nname = "clamp"\nkind = "ignore"\npolygon = [[0, 0], [9, 0], [0, 8.5]]\n'
                '[[zone]]\nname = "edge"\nkind = "inspect"\nmask = "edge.png"\nfalse_reject = 0.05\n',
            )
        )
        assert (zones.image_size_px, zones.mm_per_px, zones.min_area_px) == ((80, 60), 0.5, 8.0)
        assert zones.zones[0].polygon == ((0, 0), (9, 0), (0, 8.5))
        assert zones.judged == (zones.zones[1],)
        np.testing.assert_array_equal(zones.zones[1].mask > 0, mask > 0)
        assert Zones.model_validate_json(zones.model_dump_json()) == zones

    def test_with_masks_alone_the_largest_is_the_reference(self, tmp_path):
        for name, shape in (("a", (15, 20)), ("b", (60, 80))):
            mask = np.full(shape, 255, np.uint8)
            mask[0] = 0
            cv2.imwrite(str(tmp_path / f"{name}.png"), mask)
        text = "".join(f'[[zone]]\nname = "{name}"\nkind = "include"\nmask = "{name}.png"\n' for name in "ab")
        assert read(self.say(tmp_path, text)).image_size_px == (80, 60)

    SIZE = "image_size_px = [80, 60]\n"
    HEAD = SIZE + '[[zone]]\nname = "a"\n'

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("min_area = 3", "key 'min_area' is not known: did you mean 'min_area_px'?"),
            (HEAD + 'kind = "ignore"\npoligon = []', "key 'poligon' of zone 1 is not known: did you mean 'polygon'?"),
            (
                HEAD + 'kind = "skip"',
                "kind of zone 1: input should be 'ignore', 'include' or 'inspect', but got",
            ),
            ("mm_per_px = 0", "mm_per_px: input should be greater than 0, but got 0"),
            ("", "it says nothing: give at least one [[zone]], or a minimum area"),
            ("zone = 3 4", "is not TOML"),
            ("min_area_px = 3\nmin_area_mm2 = 1", "min_area_px and min_area_mm2 are both given"),
            ("min_area_mm2 = 1", "min_area_mm2 needs a scale: give mm_per_px as well"),
            (HEAD + 'kind = "ignore"', "zone 'a' needs a polygon or a mask, and not both"),
            (
                HEAD + 'kind = "ignore"\npolygon = [[0, 0], [9, 9]]',
                "has 2 corners: a polygon needs at least 3",
            ),
            (
                HEAD + 'kind = "ignore"\npolygon = [[0, 0], [81, 0], [9, 9]]',
                "zone 'a' has a corner at 81, 0, outside the image of 80x60 px",
            ),
            (HEAD + 'kind = "ignore"\npolygon = [[0, 0], [4, 4], [9, 9]]', "zone 'a' encloses nothing"),
            (
                '[[zone]]\nname = "a"\nkind = "ignore"\npolygon = [[0, 0], [4, 0], [9, 9]]',
                "say what image it was drawn on, image_size_px = [width, height]",
            ),
            (HEAD + 'kind = "ignore"\nmask = "none.png"', "the mask of zone 'a' cannot be used: "),
            (
                HEAD + 'kind = "ignore"\nmask = "wide.png"',
                "zone 'a' is 80x20 and the reference image 80x60",
            ),
            (HEAD + 'kind = "ignore"\nmask = "empty.png"', "the mask of zone 'a' marks nothing"),
            (HEAD + 'kind = "ignore"\nmask = "full.png"', "has the values 1, none of them 0"),
            (HEAD + 'kind = "ignore"\nmask = "inverted.png"', "marks 99 % of the image: it is inverted, or"),
            (HEAD + 'kind = "inspect"\nmask = "full.png"', "give its false_reject, such as 0.01"),
            (HEAD + 'kind = "inspect"\nmask = "full.png"\nfalse_reject = 1', "false_reject 1 cannot be kept"),
            (HEAD + 'kind = "ignore"\nmask = "full.png"\nfalse_reject = 0.1', "only 'inspect' has its own budget"),
            (SIZE + 2 * '[[zone]]\nname = "a"\nkind = "ignore"\nmask = "full.png"\n', "two zones have the name 'a'"),
        ],
    )
    def test_what_it_refuses_in_one_line(self, tmp_path, text, said):
        for name, shape, value in (("wide", (20, 80), 1), ("empty", (60, 80), 0), ("full", (60, 80), 1)):
            mask = np.full(shape, value, np.uint8)
            mask[:10] = 0 if name == "wide" else value
            cv2.imwrite(str(tmp_path / f"{name}.png"), mask)
        inverted = np.full((60, 80), 255, np.uint8)
        inverted[:5, :5] = 0
        cv2.imwrite(str(tmp_path / "inverted.png"), inverted)
        with pytest.raises(UsageError, match=re.escape(said)) as caught:
            read(self.say(tmp_path, text))
        assert "zones.toml" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file"):
            read(tmp_path / "none.toml")


class TestLayout:
    def test_a_pixel_is_inside_if_its_centre_is(self):
        inside = outline(on((8, 5), zone()), zone(), 8, 5)
        expected = np.zeros((5, 8), bool)
        expected[1:4, 2:6] = True
        np.testing.assert_array_equal(inside, expected)
        np.testing.assert_array_equal(outline(on((8, 5), zone()), zone(), 16, 10), np.kron(expected, np.ones((2, 2))))

    @given(
        corners=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 17)), min_size=3, max_size=7),
        first=st.integers(0, 16),
        count=st.integers(1, 17),
    )
    def test_polygons_are_filled_by_the_even_odd_rule_and_bands_are_parts_of_the_whole(self, corners, first, count):
        shape = zone(polygon=tuple((x + 0.25, y + 0.25) for x, y in corners))
        zones = on((23, 17), shape)
        whole = outline(zones, shape, 23, 17)
        for y in range(17):
            for x in range(23):
                ends = zip(shape.polygon, (*shape.polygon[1:], shape.polygon[0]), strict=True)
                crossed = 0
                for (x0, y0), (x1, y1) in ends:
                    if min(y0, y1) <= y + 0.5 < max(y0, y1):
                        crossed += x0 + (y + 0.5 - y0) * (x1 - x0) / (y1 - y0) <= x + 0.5
                assert whole[y, x] == bool(crossed % 2)
        band = slice(first, first + count)
        np.testing.assert_array_equal(outline(zones, shape, 23, 17, band), whole[band])
        np.testing.assert_array_equal(place(zones, 23, 17, band).ignored, place(zones, 23, 17).ignored[band])

    def test_ignored_goes_before_inspected_and_that_before_included_and_the_first_before_the_next(self):
        column = [((float(x), 0.0), (8.0, 0.0), (8.0, 1.0), (float(x), 1.0)) for x in range(8)]
        layout = place(
            on(
                (8, 1),
                zone("include", "rest", column[1]),
                judged("first", column[4]),
                judged("second", column[2]),
                zone("ignore", "end", column[6]),
            ),
            8,
            1,
        )
        assert layout.labels.tolist() == [[0, 1, 3, 3, 2, 2, 0, 0]]
        assert layout.ignored.tolist() == [[True, False, False, False, False, False, True, True]]

    def test_a_model_pixel_that_touches_what_is_ignored_is_ignored(self):
        layout = place_on_input(on((64, 64), zone(polygon=((0, 0), (9, 0), (9, 16), (0, 16)))), (16, 16))
        expected = np.ones((16, 16), bool)
        expected[:4, :3] = False  # 9 pixels are two and a quarter of the model's
        np.testing.assert_array_equal(layout.seen, expected)

    def test_zones_lie_at_their_place_on_an_input_of_another_aspect(self):
        left = ((0, 0), (9, 0), (9, 16), (0, 16))
        right = ((80, 32), (100, 32), (100, 40), (80, 40))
        layout = place_on_input(on((100, 40), zone(polygon=left), judged("right", right)), (10, 50))
        seen, labels = np.ones((10, 50), bool), np.zeros((10, 50), np.uint8)
        seen[:4, :5] = False  # a pixel of the model is 2 wide and 4 high
        labels[8:, 40:] = 2
        np.testing.assert_array_equal(layout.seen, seen)
        np.testing.assert_array_equal(layout.labels, labels)

    @pytest.mark.parametrize(
        ("zones", "said"),
        [
            ([zone(polygon=((0, 0), (64, 0), (64, 64), (0, 64)))], "leave nothing to inspect"),
            ([zone("include", polygon=((0, 0), (3, 0), (3, 3), (0, 3)))], "leave nothing to inspect"),
            ([judged("tiny", ((1, 1), (2, 1), (2, 2)))], "zone 'tiny' has no pixel left"),
            ([judged("all", ((0, 0), (64, 0), (64, 64), (0, 64)))], "leave nothing to the image score"),
        ],
    )
    def test_nothing_left_is_refused(self, zones, said):
        with pytest.raises(UsageError, match=said):
            place_on_input(on((64, 64), *zones), (16, 16))


class TestRules:
    """On a tiny model's input of 16 x 16; the image is rejected above 0.3, a zone above its own threshold."""

    LEFT = ((0, 0), (8, 0), (8, 16), (0, 16))

    def rules(self, *zones, **more):
        return Rules(tiny_model.draft(zones=on((16, 16), *zones, **more)))

    def map_with(self, **spots):
        """Background 0.05; spot=(y, x, side, value)."""
        anomaly_map = np.full((16, 16), 0.05, np.float32)
        for y, x, side, value in spots.values():
            anomaly_map[y : y + side, x : x + side] = value
        return anomaly_map

    def test_without_zones_a_verdict_rests_on_the_score_alone(self):
        rules = Rules(tiny_model.draft())
        assert rules.decide(0.31, self.map_with()).rejected
        passed = rules.decide(0.3, self.map_with(a=(2, 2, 5, 9.0)))
        assert (passed.rejected, passed.score, passed.p_value, passed.zones) == (False, 0.3, 0.5, ())

    @pytest.mark.parametrize("peaks", [(0.1, 0.2, 0.7), (0.01, 0.02, 0.03)])
    def test_an_image_is_rejected_if_any_part_is(self, peaks):
        rules, own = self.rules(judged("left", self.LEFT, peaks)), peaks[-1]
        for score, peak, expected in (
            (0.2, own, "pass"),
            (0.2, np.nextafter(np.float32(own), np.float32(1)), "reject"),
            (0.31, own, "pass"),
        ):
            spot = self.map_with()
            spot[:, :8] = 0.005
            spot[4, 4] = peak
            found = rules.decide(score, spot)
            assert found.zones[0].verdict == expected
            assert found.rejected == (score > 0.3 or expected == "reject")
            assert found.rejected == (found.score > 0.3)
            assert found.rejected == (found.p_value <= 0.5 + 1e-12)  # a quarter for each part

    def test_what_is_ignored_is_no_region_and_zero_in_the_map(self):
        rules = self.rules(zone("ignore", polygon=self.LEFT))
        anomaly_map = rules.enlarge(self.map_with(a=(2, 2, 3, 0.9), b=(2, 10, 3, 0.8)), 32, 32)
        assert not anomaly_map[:, :16].any()
        (region,) = rules.find(anomaly_map)
        assert region.box_px[0] >= 16
        assert not rules.mask(anomaly_map)[:, :16].any()

    def test_regions_have_the_threshold_name_and_area_of_their_zone(self):
        rules = self.rules(judged("left", self.LEFT, (0.1, 0.2, 0.7)), mm_per_px=0.5)
        spots = self.map_with(a=(2, 1, 3, 0.6), b=(8, 1, 3, 0.8), c=(2, 12, 2, 0.6), d=(12, 6, 3, 0.9))
        found = {region.box_px[:2]: region for region in rules.find(spots)}
        assert {place: region.zone for place, region in found.items()} == {(1, 8): "left", (12, 2): "", (6, 12): "left"}
        assert found[12, 2].area_px == 4
        assert found[12, 2].area_mm2 == 1.0

    def test_of_an_image_twice_as_large_pixels_count_a_quarter(self):
        rules = self.rules(min_area_px=4, mm_per_px=0.5)
        double = np.kron(self.map_with(a=(2, 2, 2, 0.9), b=(10, 10, 1, 0.8)), np.ones((2, 2), np.float32))
        (region,) = rules.find(double)
        assert (region.area_px, region.area_mm2) == (16, 1.0)
        assert rules.mask(double).sum() == 16

    def test_what_is_below_the_minimum_area_rejects_nothing(self):
        rules = self.rules(judged("left", self.LEFT), min_area_px=4)
        small, large = self.map_with(a=(2, 10, 1, 0.9)), self.map_with(a=(2, 10, 2, 0.9))
        in_zone = self.map_with(a=(2, 2, 1, 0.9), b=(2, 10, 2, 0.9))
        assert not rules.judge(0.5, small, 16, 16).rejected
        assert rules.judge(0.5, large, 16, 16).rejected
        assert not rules.judge(0.2, large, 16, 16).rejected
        # The large region is not of the zone whose score is high.
        assert not rules.judge(0.2, in_zone, 16, 16).rejected

    @given(score=st.floats(0, 1), side=st.integers(1, 6), area=st.integers(1, 40), value=st.floats(0, 1, width=32))
    def test_a_minimum_area_only_ever_lowers_rejects(self, score, side, area, value):
        spot = self.map_with(a=(3, 3, side, value))
        strict = self.rules(judged("left", self.LEFT))
        lenient = self.rules(judged("left", self.LEFT), min_area_px=area)
        assert lenient.judge(score, spot, 16, 16).rejected <= strict.judge(score, spot, 16, 16).rejected

    def test_what_parts_promise_together_is_the_sum(self):
        rules = self.rules(judged("a", self.LEFT), judged("b", ((9, 9), (12, 9), (12, 12), (9, 12))))
        assert rules.zones.promise(rules.calibration) == 0.75
        assert "all parts together: at most 75 % false rejects" in rules.zones.lines(rules.calibration)


class TestInspector:
    def test_an_image_of_another_aspect_is_refused(self, tmp_path):
        model = tiny_model.write(tmp_path / "model", zones=on((16, 16), zone()))
        inspector = Inspector.load(model)
        inspector.inspect(np.zeros((160, 160, 3), np.uint8))
        with pytest.raises(ImageError, match="image is 200x160; the zones of this model were drawn on 16x16"):
            inspector.inspect(np.zeros((160, 200, 3), np.uint8))

    def test_ignored_pixels_are_no_part_of_the_figures(self, tmp_path):
        """A defect in what is ignored is a blank mask; its pixels neither help nor hurt."""
        model = tiny_model.write(
            tmp_path / "model", zones=on((16, 16), zone(polygon=((0, 0), (8, 0), (8, 16), (0, 16))))
        )
        grey, spot, mask = np.full((16, 16, 3), 128, np.uint8), np.full((16, 16, 3), 128, np.uint8), np.zeros((16, 16))
        spot[2:5, 2:5] = 255
        mask[2:5, 2:5] = 255
        for name, pixels in (("good", grey), ("spot", spot), ("mask", mask)):
            cv2.imwrite(str(tmp_path / f"{name}.png"), pixels)
        found = evaluate(
            Inspector.load(model),
            [
                Sample(tmp_path / "good.png", "good", "good"),
                Sample(tmp_path / "spot.png", "defect", "spot", tmp_path / "mask.png"),
            ],
        )
        assert found.blank_masks == (tmp_path / "mask.png",)
        assert (found.pixel.n_good, found.pixel.n_defect) == (128, 0)

    def test_zones_are_drawn_and_what_is_ignored_is_dark(self):
        picture = np.full((160, 160, 3), 200, np.uint8)
        zones = on((16, 16), zone(name="clamp"), judged("own", ((8, 8), (14, 8), (14, 14), (8, 14))))
        drawn = overlay.draw_zones(picture, zones, name=False)
        assert (picture == 200).all()
        assert (drawn[20:30, 30:50] == 90).all()  # inside the ignored one, away from its outline
        assert (drawn[100:120, 100:120] == 200).all()
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 4  # two outlines beside bright and dark
        assert (overlay.draw_zones(picture, zones) != drawn).any()  # the names
        assert overlay.draw_zones(picture, Zones()) is picture


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The worked example of docs/zones.md: a made-up line, the zones file of the page, and its mask."""
    root = tmp_path_factory.mktemp("example")
    synthetic.write(root / "parts", n_fit=24, n_good=3, n_defect=5, size_px=128)
    (root / "zones.toml").write_text(guides.blocks(PAGE.read_text(encoding="utf-8"), "toml")[0], encoding="utf-8")
    bore = np.zeros((64, 64), np.uint8)
    cv2.circle(bore, (32, 32), 13, 255, -1)
    cv2.imwrite(str(root / "bore.png"), bore)
    return root


@pytest.fixture(scope="module")
def model(parts):
    """A fit of the example, by a method without an export, which would take longer than all else in here.

    That an exported model ignores the same is shown in contract/.
    """
    from makel.training.fit import fit

    return fit(
        parts / "parts",
        parts / "model",
        method="anogan",
        size=64,
        settings={"width": 4, "latent": 4, "updates": 2, "batch_size": 8, "search_steps": 2},
        false_reject=0.1,
        holdout=0.4,
        zones=parts / "zones.toml",
    )


class TestExample:
    def test_the_summary_says_what_zones_promise(self, model):
        calibration = model.manifest.calibration
        own = model.manifest.zones.judged[0].calibration
        assert calibration.n == own.n == 10
        assert own.promised_false_reject == pytest.approx(1 / 11)
        text = "\n".join(model.lines())
        assert "clamp is ignored" in text
        assert "all parts together: at most 18 % false rejects" in text
        assert "regions below 25 px (1 mm²) are dropped" in text

    def test_what_is_ignored_changes_no_bit(self, model, parts):
        inspector = Inspector.load(model.path)
        image = read_image(parts / "parts" / "test" / "good" / "000.png")
        before = inspector.inspect(image)
        image[:20, :30] = 255
        after = inspector.inspect(image)
        assert (after.score, after.zones, after.regions) == (before.score, before.zones, before.regions)
        np.testing.assert_array_equal(after.anomaly_map, before.anomaly_map)
        assert not after.anomaly_map[:20, :30].any()

    def test_a_blot_in_the_zone_is_that_zones_reject(self, model, parts):
        image = read_image(parts / "parts" / "test" / "good" / "000.png")
        image[57:71, 57:71] = 255  # brighter than any part of the product
        said = json.loads(json.dumps(Inspector.load(model.path).inspect(image).to_json()))
        assert (said["verdict"], said["zones"][0]["name"], said["zones"][0]["verdict"]) == ("reject", "bore", "reject")
        assert said["regions"][0]["zone"] == "bore"
        # The picture has half the side of the one the zones were drawn on: a pixel of it is 0.4 mm.
        assert said["regions"][0]["area_mm2"] == pytest.approx(0.16 * said["regions"][0]["area_px"])

    def test_the_commands_of_the_page(self, model, parts, makel_says, monkeypatch):
        monkeypatch.chdir(parts)
        monkeypatch.setattr("makel.evaluation.protocol.LATENCY_CALLS", 3)
        code, out, _ = makel_says("inspect", "model", "parts/test/hole", "--json", "--out", "found")
        assert code == 0
        assert {region["zone"] for region in json.loads(out)["regions"]} <= {"", "bore"}
        assert (parts / "found" / "000_overlay.png").is_file()
        code, out, _ = makel_says("evaluate", "model", "parts")
        assert (code, "report  " in out) == (0, True)
        assert "bore is judged by itself above" in makel_says("info", "model")[1]
        assert "golden images replayed" in makel_says("verify", "model")[1]
        for report in ("model/report.html", "model-evaluation/report.html"):
            page = (parts / report).read_text(encoding="utf-8")
            assert "<h2>Zones</h2>" in page
            assert '<th scope="row">bore</th><td>inspect</td>' in page
            assert "at most 18.2 % false rejects" in page

    def test_good_images_of_another_aspect_are_refused_before_anything_is_spent(self, parts, makel_says):
        wide = parts / "wide.toml"
        wide.write_text('image_size_px = [40, 30]\n[[zone]]\nname="a"\nkind="ignore"\npolygon=[[0,0],[9,0],[9,9]]\n')
        code, _, error = makel_says("fit", parts / "parts", "--out", parts / "no", "--zones", wide, "--size", 64)
        assert code == 3
        assert "is 128x128; the zones of this model were drawn on 40x30" in error
        assert not (parts / "no").exists()


def test_the_keys_of_the_file_are_documented(tmp_path):
    tables = guides.tables(guides.section(PAGE.read_text(encoding="utf-8"), "The file"))
    for rows, text in zip(tables, ("x = 1", '[[zone]]\nname = "a"\nkind = "ignore"\nx = 1'), strict=True):
        (tmp_path / "zones.toml").write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match="is not known: known are ") as caught:
            read(tmp_path / "zones.toml")
        known = str(caught.value).rpartition("known are ")[2].split(", ")
        assert {row[0].strip("`") for row in rows} == set(known)


def test_a_zone_in_which_the_map_says_nothing_is_refused():
    zones = on((16, 16), zone("inspect", "own", false_reject=0.25))
    found = calibrate((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), false_reject=0.25)
    with pytest.raises(CalibrationError, match="are zero in zone 'own'"):
        zones.calibrated(found, {"own": calibrate((0, 0, 0), (0, 0, 0), false_reject=0.25)})
