import threading
from concurrent.futures import Future
from contextlib import closing

import cv2
import numpy as np
import pytest

import tiny_model
from conftest import DEFECT, GOOD, held
from makel.errors import Overloaded
from makel.images import decode
from makel.model.inspector import Inspector
from makel.model.tiling import Tiling
from makel.station.decoding import Decoders, LargeImageError
from makel.station.line import Line


@pytest.fixture
def make_line(models):
    lines = []

    def make(model="first", **options):
        line = Line("part", Inspector.load(models[model], threads=1), **options)
        lines.append(line)
        return line

    yield make
    for line in lines:
        line.close()


def send(line, image, **options):
    """Submit; gives the ticket and a future of what became of it."""
    future = Future()
    return line.submit(image, name="a.png", done=future.set_result, **options), future


def test_images_are_judged_as_the_inspector_judges_them(make_line):
    line = make_line()
    verdicts = [send(line, image)[1] for image in (GOOD, DEFECT, GOOD)]
    assert [future.result(30).verdict.verdict for future in verdicts] == ["pass", "reject", "pass"]
    judged = verdicts[1].result()
    assert (judged.reason, judged.inspector) == ("", line.inspector)
    assert judged.verdict.score == pytest.approx(0.5, abs=1e-3)
    assert judged.latency_ms >= judged.verdict.elapsed_ms / 2  # its share of a batch


@pytest.mark.parametrize(
    ("image", "reason"),
    [(b"GIF89a", "a.png is GIF: convert it to"), (GOOD[:-30], "a.png is cut short"), (b"", "a.png is empty")],
)
def test_what_is_no_image_is_a_fail_safe_reject(make_line, image, reason):
    judged = send(make_line(), image)[1].result(30)
    assert (judged.verdict, judged.inspector) == (None, None)
    assert judged.reason.startswith(reason)


def test_an_image_over_the_pixel_cap_is_a_fail_safe_reject(make_line):
    judged = send(make_line(decode=lambda data, *, name, large: decode(data, name=name, max_pixels=1000)), GOOD)[
        1
    ].result(30)
    assert "at most 1000 are read" in judged.reason


def test_a_model_that_breaks_is_a_fail_safe_reject_and_the_line_goes_on(make_line, models, tmp_path):
    broken = tiny_model.write(tmp_path / "broken", model=tiny_model.onnx_bytes(gain=float("inf")))
    line = make_line(batch=4)
    line.swap(Inspector.load(broken, threads=1))
    with held(line):
        futures = [send(line, GOOD)[1] for _ in range(3)]
    assert all("not finite" in future.result(30).reason for future in futures)
    line.swap(Inspector.load(models["first"], threads=1))
    assert send(line, GOOD)[1].result(30).verdict.verdict == "pass"


def test_the_queue_is_bounded_from_end_to_end(make_line):
    line = make_line(queue=5, batch=2, workers=1)
    with held(line):  # counts as one
        futures = [send(line, GOOD)[1] for _ in range(4)]
        with pytest.raises(Overloaded, match="part has 5 images under way, at most 5"):
            send(line, GOOD)
        assert line.depth == 5
        assert not any(future.done() for future in futures)
    assert [future.result(30).verdict.verdict for future in futures] == ["pass"] * 4
    assert line.drain(30)
    assert line.depth == 0


def test_a_done_that_waits_holds_its_place_in_the_queue(make_line):
    line, go = make_line(queue=1), threading.Event()
    line.submit(GOOD, name="", done=lambda _: go.wait(30))
    with pytest.raises(Overloaded):
        send(line, GOOD)
    go.set()
    assert line.drain(30)


def test_a_deadline_is_kept_while_the_model_is_busy(make_line):
    line = make_line(queue=3)
    with held(line):
        late = [send(line, GOOD, deadline_s=deadline)[1] for deadline in (0.02, 0.01)]
        assert [future.result(30).reason for future in late] == ["no decision within 20 ms", "no decision within 10 ms"]
        in_time = send(line, GOOD, deadline_s=60)[1]
    assert in_time.result(30).verdict.verdict == "pass"
    assert line.drain(30)


def test_what_was_not_begun_can_be_taken_back(make_line):
    line = make_line(queue=9, batch=1, workers=1)  # decodes two ahead
    with held(line):
        sent = [send(line, GOOD) for _ in range(6)]
        assert [line.cancel(ticket) for ticket, _ in sent[3:]] == [True] * 3
        assert not line.cancel(sent[5][0])
        assert line.depth == 4
    assert line.drain(30)
    assert [future.done() for _, future in sent] == [True] * 3 + [False] * 3
    assert not line.cancel(sent[0][0])


def test_a_swap_drops_nothing(make_line, models):
    line = make_line(queue=32, workers=1)
    first, second = line.inspector, Inspector.load(models["second"], threads=1)
    with held(line):
        before = [send(line, DEFECT)[1]]
        assert send(line, b"text")[1].result(30).reason  # the one thread that decodes has prepared the one before
        assert line.swap(second) is first
        after = [send(line, DEFECT)[1] for _ in range(10)]
    results = [future.result(30) for future in before + after]
    assert all(judged.verdict.model_id == judged.inspector.model_id for judged in results)
    assert [judged.inspector for judged in results] == [first] + [second] * 10
    assert [judged.verdict.verdict for judged in results] == ["reject"] + ["pass"] * 10  # it rejects above 0.9


def test_errands_run_between_batches_and_carry_their_errors(make_line):
    line = make_line()
    assert line.run(lambda inspector: inspector.model_id).result(30) == line.inspector.model_id
    with pytest.raises(ZeroDivisionError):
        line.run(lambda _: 1 / 0).result(30)
    assert line.drain(30)


def test_a_line_that_closes_finishes_what_it_accepted_and_takes_no_more(make_line):
    line = make_line()
    with held(line):
        futures = [send(line, GOOD)[1] for _ in range(4)]
        assert not line.drain(0.01)
        with pytest.raises(Overloaded, match="part is being closed"):
            send(line, GOOD)
    assert line.drain(30)
    assert all(future.done() for future in futures)


def test_a_done_that_fails_does_not_end_the_line(make_line):
    line = make_line()
    line.submit(GOOD, name="a", done=lambda _: 1 / 0)
    assert send(line, GOOD)[1].result(30).verdict.verdict == "pass"
    assert line.drain(30)


def test_a_large_image_is_decoded_and_judged_beside_the_others(make_line):
    """What is small passes it, also at the model."""
    go, begun = threading.Event(), threading.Event()

    def slowly(data, *, name, large):
        if data == DEFECT and not large:
            raise LargeImageError
        if data == DEFECT:
            begun.set()
            go.wait(30)
        return decode(data, name=name)

    line = make_line(decode=slowly)
    large = [send(line, DEFECT)[1] for _ in range(3)]
    assert begun.wait(30)
    assert [send(line, GOOD)[1].result(30).verdict.verdict for _ in range(3)] == ["pass"] * 3
    go.set()
    assert [future.result(30).verdict.verdict for future in large] == ["reject"] * 3


@pytest.mark.parametrize(("kind", "deadline_s"), [("judged in tiles", 600), ("refused", None)])
def test_a_large_image_leaves_its_room_to_the_next(tmp_path, kind, deadline_s):
    """There is room for one: whoever decoded, judged or watches the clock keeps no pixels of one that is done with."""
    tiling, depth = (Tiling(1024, 64), np.uint8) if kind == "judged in tiles" else (None, np.uint16)
    model = tiny_model.write(tmp_path / "model", size=64, tiling=tiling)
    plain = np.full((3400, 3400 if depth is np.uint8 else 1700, 3), 128, depth)  # 35 MB
    image = cv2.imencode(".bmp" if depth is np.uint8 else ".png", plain)[1].tobytes()
    with closing(Decoders(2, max_pixels=12_000_000)) as decoders:
        line = Line("part", Inspector.load(model, threads=1), decode=decoders.decode)
        try:
            said = [send(line, image, deadline_s=deadline_s)[1].result(20) for _ in range(3)]
        finally:
            line.close()
    assert [judged.verdict is not None for judged in said] == [kind == "judged in tiles"] * 3
    assert all(kind == "judged in tiles" or "is 16-bit" in judged.reason for judged in said)
