"""Which images a report shows, and how they are drawn."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from makel.calibration import calibrate
from makel.evaluation.pictures import PICTURE_PX, Gallery, Heat, colours, data_uri, outline_truth, thumbnail

CALIBRATION = calibrate((0.1, 0.2, 0.3), (0.1, 0.2, 0.3), false_reject=0.25)  # rejects above 0.3
IMAGE = np.full((20, 30, 3), 128, np.uint8)


def offer(gallery, name, kind, score, anomaly_map=None, truth=None):
    anomaly_map = np.full((8, 8), score, np.float32) if anomaly_map is None else anomaly_map
    verdict = {"rejected": score > 0.3, "p_value": CALIBRATION.p_value(score)}
    gallery.offer(Path(name), kind, score, IMAGE, anomaly_map, truth, **verdict)


def shown(gallery):
    return [(exhibit.group, exhibit.path.name) for exhibit in gallery.exhibits()]


class TestGallery:
    def test_every_image_lands_where_it_belongs(self):
        gallery = Gallery(white_level=None)
        offer(gallery, "reject", "good", 0.31)
        offer(gallery, "at", "good", 0.3)  # at the threshold: passes
        offer(gallery, "miss", "scratch", 0.3)
        offer(gallery, "hit", "scratch", 0.31)
        assert shown(gallery) == [
            ("missed", "miss"),
            ("false reject", "reject"),
            ("barely caught", "hit"),
            ("nearly rejected", "at"),
        ]

    @pytest.mark.parametrize("step", [1, -1, 7])
    def test_the_most_telling_are_kept_whatever_the_order(self, step):
        gallery = Gallery(white_level=None)
        for index in range(0, 20 * step, step):
            place = index % 20
            offer(gallery, f"miss{place:02}", "hole", 0.1 + place / 1000)
            offer(gallery, f"hit{place:02}", "hole", 0.4 + place / 1000)
            offer(gallery, f"pass{place:02}", "good", 0.1 + place / 1000)
            offer(gallery, f"reject{place:02}", "good", 0.4 + place / 1000)
        assert shown(gallery) == [
            *(("missed", f"miss{place:02}") for place in range(6)),  # the lowest first
            *(("false reject", f"reject{place:02}") for place in range(19, 13, -1)),  # the highest first
            *(("barely caught", f"hit{place:02}") for place in range(3)),
            *(("nearly rejected", f"pass{place:02}") for place in range(19, 16, -1)),
            *(("clearly caught", f"hit{place:02}") for place in range(19, 16, -1)),
        ]

    def test_no_image_twice(self):
        gallery = Gallery(white_level=None)
        for place in range(4):
            offer(gallery, f"hit{place}", "hole", 0.4 + place / 10)
        assert shown(gallery) == [
            ("barely caught", "hit0"),
            ("barely caught", "hit1"),
            ("barely caught", "hit2"),
            ("clearly caught", "hit3"),
        ]

    def test_an_exhibit_keeps_what_it_was_given(self):
        gallery = Gallery(white_level=None)
        anomaly_map, truth = np.full((8, 8), 0.2, np.float32), np.ones((8, 8), np.uint8)
        offer(gallery, "a.png", "hole", 0.2, anomaly_map, truth)
        anomaly_map[:] = 9
        (exhibit,) = gallery.exhibits()
        assert (exhibit.score, exhibit.p_value, exhibit.kind) == (0.2, 0.75, "hole")
        assert exhibit.anomaly_map.max() == np.float32(0.2)
        assert exhibit.truth is truth
        assert exhibit.image.shape == (149, 224, 3)

    def test_empty(self):
        assert Gallery(white_level=None).exhibits() == ()


class TestHeat:
    def test_over(self):
        maps = [np.float32([[0, 1, 1, 5]]), np.float32([[2, 2, 3, 4]]), np.float32([[0, 0, 0, 9]])]
        assert Heat.over(maps, 4.0) == Heat(typical=1.0, threshold=4.0, hottest=9.0)
        assert Heat.over([], 4.0) == Heat(4.0, 4.0, 4.0)

    def test_levels(self):
        heat = Heat(typical=1.0, threshold=3.0, hottest=33.0)
        levels = heat.level(np.float32([[0, 1, 2, 3, 9, 33, 99]]))[0]
        # Linear to the threshold; above it, twice the excess is the same step each time: 1, 4, 16 spans.
        assert levels == pytest.approx([0, 0, 0.25, 0.5, 0.5 + 0.5 * np.log(4) / np.log(16), 1, 1])

    def test_what_stays_below_the_threshold_is_not_made_hot(self):
        heat = Heat(typical=1.0, threshold=3.0, hottest=2.0)
        assert heat.end == 5.0
        assert heat.level(np.float32([[2.0]])) == pytest.approx(0.25)
        assert heat.level(np.float32([[5.0]])) == pytest.approx(1.0)
        assert Heat(1.0, 3.0, 33.0).end == 33.0

    def test_without_room_below_the_threshold_only_two_levels_are_left(self):
        heat = Heat(typical=4.0, threshold=3.0, hottest=9.0)
        assert heat.level(np.float32([[2, 3, 4, 9]])).tolist() == [[0, 0, 1, 1]]

    def test_equal_scores_have_equal_colours_in_every_picture(self):
        heat = Heat(0.0, 1.0, 8.0)
        calm = heat.draw(np.full((8, 8), 0.5, np.float32), (20, 20))
        wild = np.full((8, 8), 0.5, np.float32)
        wild[:2] = 8
        assert (heat.draw(wild, (20, 20))[-5:] == calm[-5:]).all()

    @pytest.mark.parametrize("shape", [(16, 16), (31, 57), (5, 40)])
    def test_draw_outlines_what_exceeds_the_threshold(self, shape):
        anomaly_map = np.zeros((16, 16), np.float32)
        anomaly_map[4:12, 4:12] = 5
        picture = Heat(0.0, 1.0, 5.0).draw(anomaly_map, shape)
        assert (picture.shape, picture.dtype) == ((*shape, 3), np.uint8)
        middle = shape[0] // 2, shape[1] // 2
        assert picture[middle].tolist() == colours(np.array([1.0]))[0].tolist()
        assert (picture == 255).all(axis=2).any()
        assert picture[0, 0].tolist() == colours(np.array([0.0]))[0].tolist()

    def test_a_region_of_one_pixel_stays_visible(self):
        anomaly_map = np.zeros((16, 16), np.float32)
        anomaly_map[8, 5] = 9
        picture = Heat(0.0, 1.0, 9.0).draw(anomaly_map, (16, 16))
        assert picture[8, 5].tolist() == colours(np.array([1.0]))[0].tolist()
        assert (picture[7:10, 4:7] == 255).all(axis=2).sum() == 8
        assert (picture[6:11, 3:8] == 0).all(axis=2).sum() == 16  # the dark seam


class TestThumbnail:
    @pytest.mark.parametrize(
        ("shape", "small"),
        [((448, 448, 3), (224, 224)), ((100, 50), (224, 112)), ((30, 3000, 3), (2, 224)), ((5000, 7, 1), (224, 1))],
    )
    def test_longer_side_and_aspect(self, shape, small):
        picture = thumbnail(np.full(shape, 77, np.uint8))
        assert (picture.shape, picture.dtype) == ((*small, 3), np.uint8)
        assert max(small) == PICTURE_PX
        assert (picture == 77).all()

    def test_types(self):
        assert (thumbnail(np.full((9, 9), 2048, np.uint16), white_level=4095) == 128).all()
        assert (thumbnail(np.full((9, 9), 4095, np.uint16), white_level=1023) == 255).all()
        half = np.full((8, 8), 300, np.uint16)
        half[:, :4] = 600
        assert {*thumbnail(half)[:, [0, -1]].ravel().tolist()} == {128, 255}  # the brightest pixel is white
        assert (thumbnail(np.zeros((9, 9), np.uint16)) == 0).all()
        assert (thumbnail(np.full((9, 9, 3), 0.5, np.float32)) == 128).all()

    def test_colours_stay_in_their_channels(self):
        image = np.zeros((10, 10, 3), np.uint8)
        image[:] = (200, 100, 50)
        assert thumbnail(image)[0, 0].tolist() == [200, 100, 50]


class TestTruth:
    def test_marked_stays_bright_and_the_rest_is_dimmed(self):
        image, truth = np.full((40, 60, 3), 100, np.uint8), np.zeros((16, 16), np.uint8)
        truth[4:8, 4:8] = 1
        picture = outline_truth(image, truth)
        assert (picture[10:20, 15:30] == 100).all()
        assert (picture[30:, 40:] == 50).all()
        assert (picture[9, 15:30] == 255).all()
        assert (picture[8, 15:30] == 0).all()
        assert (image == 100).all()

    def test_nothing_marked_and_everything_marked(self):
        image = np.full((8, 8, 3), 100, np.uint8)
        assert (outline_truth(image, np.zeros((4, 4), np.uint8)) == 50).all()
        assert (outline_truth(image, np.ones((4, 4), np.uint8)) == 100).all()


class TestColours:
    def test_order_shape_and_ends(self):
        ladder = colours(np.linspace(0, 1, 256))
        assert (ladder.shape, ladder.dtype) == ((256, 3), np.uint8)
        luma = ladder @ np.array([0.2126, 0.7152, 0.0722])
        assert (np.diff(luma) > -0.5).all()  # lighter all the way, rounding aside: it reads without colour too
        assert luma[0] < 3
        assert luma[-1] > 240
        assert colours(np.zeros((2, 5))).shape == (2, 5, 3)
        assert colours(np.array([0.45]))[0].argmax() == 0  # RGB, not BGR: the middle of inferno is red

    def test_a_picture_in_the_page_decodes_to_itself(self):
        picture = np.zeros((24, 32, 3), np.uint8)
        picture[:, :16] = (220, 40, 40)
        kind, _, data = data_uri(picture).partition(";base64,")
        assert kind == "data:image/jpeg"
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert decoded.shape == picture.shape
        assert np.abs(decoded[:, :14].astype(int) - picture[:, :14]).max() < 12
