"""A line that stays what it is, and lines on which one thing changes: what is found, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.stats import betabinom, mannwhitneyu

import tiny_model
from conftest import GOOD, SETTINGS, serving, wait_for
from makel.calibration import calibrate
from makel.images import Preparation, read
from makel.model import folder, golden
from makel.model.inspector import Inspector
from makel.station.causes import Finding, explain
from makel.station.decisions import Decision, Recorded
from makel.station.drift import BLOCK, EVERY, Drift, Watch, at_least
from makel.station.look import Look, Observer
from makel.station.rank_sum import rank_sum
from makel.station.reference import Reference
from makel.station.station import Station

SIZE_PX, SIDE_PX = 64, 96
N_CALIBRATE = 60


def part(rng, *, product="ring", light=1.0, blur=0.0, shift=(0.0, 0.0), worn=0.0):
    """A photograph of a part, each a little different: position, light, noise. What may change is a keyword."""
    drawn = np.full((SIDE_PX, SIDE_PX), 105, np.float32)
    if product == "ring":
        cv2.circle(drawn, (48, 48), 30, 150, 9)
        for angle in range(0, 360, 60):
            x, y = 48 + 30 * np.cos(np.radians(angle)), 48 + 30 * np.sin(np.radians(angle))
            cv2.circle(drawn, (round(x), round(y)), 3, 85, -1)
    else:
        for x in range(14, 90, 16):
            cv2.line(drawn, (x, 10), (x, 86), 150, 5)
    if worn:
        drawn[20:76, 20:76] += rng.normal(0, worn, (56, 56))
    x, y = rng.normal(0, 0.5, 2) + SIDE_PX * np.array(shift)
    drawn = cv2.warpAffine(drawn, np.array([[1, 0, x], [0, 1, y]]), (SIDE_PX, SIDE_PX), borderMode=cv2.BORDER_REPLICATE)
    if blur:
        drawn = cv2.GaussianBlur(drawn, (0, 0), blur)
    drawn = drawn * (light * rng.normal(1, 0.01)) + rng.normal(0, 2, drawn.shape)
    return np.clip(drawn, 0, 255).astype(np.uint8)


def model_of(target, images, preparation):
    """A model that is calibrated on images, of which the first four are golden."""
    size = preparation.shape
    plain = Inspector.load(tiny_model.write(target, size=size, preprocessing=preparation))
    prepared = np.stack([plain.prepare(image).image for image in images])
    scores = plain.scores(prepared).image
    with folder.staging(target) as stage:
        tiny_model.fill(stage, size=size)
        for path in (stage / "golden").iterdir():
            path.unlink()
        (stage / "golden").rmdir()
        stored = golden.quantise(prepared[:4])
        golden.write(stage, stored, tiny_model.expected(golden.restore(stored)))
        calibration = calibrate(scores, scores, false_reject=0.05)
        folder.write(target, stage, tiny_model.draft(size=size, preprocessing=preparation, calibration=calibration))
    return Inspector.load(target, threads=1)


@pytest.fixture(scope="module")
def inspector(tmp_path_factory):
    """A model of the ring, calibrated on 60 images."""
    rng = np.random.default_rng(7)
    images = [part(rng) for _ in range(N_CALIBRATE)]
    return model_of(tmp_path_factory.mktemp("drift") / "ring", images, Preparation(SIZE_PX, SIZE_PX, "grey"))


def decided(inspector, observer, image):
    prepared = inspector.prepare(image)
    (verdict,) = inspector.judge([prepared])
    return Decision(
        at="2026-11-25T14:30:00.000001+00:00",
        model="ring",
        model_id=verdict.model_id,
        source="http",
        name="",
        image_sha256="",
        verdict=verdict.verdict,
        reason="",
        score=verdict.score,
        threshold=verdict.threshold,
        p_value=verdict.p_value,
        regions=(),
        latency_ms=1.0,
        look=observer.look(prepared),
    )


def run(inspector, seed, n_parts, watch=None, begin=0, **changes):
    """Parts through a watch, from a number on; gives the watch."""
    rng, watch, observer = np.random.default_rng(seed), watch or Watch("ring", inspector), Observer(inspector)
    for number in range(begin + 1, begin + n_parts + 1):
        watch.add(number, decided(inspector, observer, part(rng, **changes)))
    return watch


def test_a_line_that_does_not_change_raises_no_alarm_in_20_runs(inspector):
    for seed in range(20):
        state = run(inspector, 100 + seed, 200).state()
        assert [block.findings for block in state.blocks] == [()] * 4
        assert (state.changed, state.causes, state.learning) == (False, (), 0)
    assert state.words == "The line is what the model was calibrated for, as far as these numbers tell."


CHANGES = {
    "darker": ({"light": 0.85}, "light", "darker"),
    "brighter": ({"light": 1.1}, "light", "brighter"),
    "defocused": ({"blur": 2.0}, "focus", "less fine detail"),
    "camera moved": ({"shift": (0.04, -0.02)}, "position", "further right"),
    "camera far off": ({"shift": (-0.1, 0.0)}, "position", "further left"),
    "other product": ({"product": "comb"}, "product", "matches less well"),
    "other surface": ({"worn": 6.0}, None, ""),
}


@pytest.mark.parametrize("known", [False, True], ids=["from the first part on", "in production"])
@pytest.mark.parametrize("change", list(CHANGES))
def test_what_changed_is_named(inspector, change, known):
    changes, cause, said = CHANGES[change]
    watch = run(inspector, 5, 100) if known else Watch("ring", inspector)
    begin = 100 if known else 0
    state = run(inspector, 6, BLOCK, watch, begin, **changes).state()
    assert state.changed
    assert state.since == begin + 1
    if cause is not None:
        assert [each.cause for each in state.causes] == [cause]
        assert said in state.causes[0].words
        assert state.words.startswith(f"{cause.capitalize()} changed, since about part {begin + 1}. ")
    else:
        assert {each.cause for each in state.causes} & {"product", "focus"}
    assert not any("nan" in each.words for each in state.causes)


def moved(image, right_px, down_px):
    size = image.shape[1], image.shape[0]
    return cv2.warpAffine(image, np.array([[1.0, 0, right_px], [0, 1, down_px]]), size, borderMode=cv2.BORDER_REPLICATE)


@pytest.mark.real
def test_what_changed_is_named_on_real_parts(tmp_path, real_data):
    paths = sorted((real_data / "toothbrush/train/good").iterdir())[:44]
    images = [cv2.resize(read(path), (512, 512), interpolation=cv2.INTER_AREA) for path in paths]
    model = model_of(tmp_path / "toothbrush", images[:14], Preparation(256, 256, "rgb"))
    observer = Observer(model)
    for expected, change in (
        ([], lambda image: image),
        (["light"], lambda image: (image * 0.8).astype(np.uint8)),
        (["focus"], lambda image: cv2.GaussianBlur(image, (0, 0), 4)),
        (["position"], lambda image: moved(image, 20, -12)),
    ):
        watch = Watch("toothbrush", model, block=30)
        for number, image in enumerate(images[14:], start=1):
            looked = decided(model, observer, change(image))
            # The tiny model's scores say little about real parts; what is tested here is what the images look like.
            watch.add(number, replace(looked, score=model.calibration.image_scores[number % 14], verdict="pass"))
        assert [each.cause for each in watch.state().causes] == expected


def test_two_causes_are_both_named(inspector):
    state = run(inspector, 6, BLOCK, light=0.85, shift=(0.05, 0)).state()
    assert [each.cause for each in state.causes] == ["light", "position"]


def test_a_line_that_was_mended_is_no_longer_said_to_differ(inspector):
    watch = run(inspector, 6, BLOCK, light=0.8)
    assert watch.state().changed
    state = run(inspector, 7, BLOCK, watch, BLOCK).state()
    assert (state.changed, state.since, state.parts) == (False, None, 2 * BLOCK)
    assert [bool(block.findings) for block in state.blocks] == [True, False]


def test_what_was_wrong_from_the_start_does_not_become_the_measure(inspector):
    watch = run(inspector, 6, 2 * BLOCK, light=1.1)
    assert watch.state().learning == 100
    state = run(inspector, 7, 4 * BLOCK, watch, 2 * BLOCK).state()
    assert [bool(block.findings) for block in state.blocks] == [True] * 2 + [False] * 4
    assert state.learning == 0


def test_the_first_parts_here_are_known_after_a_restart(tmp_path, inspector, monkeypatch):
    rng = np.random.default_rng(12)
    with Station.open(tmp_path / "station", SETTINGS) as station:
        station.add("ring", inspector.folder.path, by="test", role="engineer")
        monitor = Drift(station)
        for _ in range(3 * BLOCK):
            station.decide(cv2.imencode(".png", part(rng))[1].tobytes(), source="http")
        wait_for(lambda: monitor.states()[0].parts == 3 * BLOCK)
        assert monitor.states()[0].learning == 0
    monkeypatch.setattr("makel.station.drift._REREAD", 10)
    with Station.open(tmp_path / "station") as again:
        (state,) = Drift(again).states()
        assert (state.parts, state.learning) == (3 * BLOCK, 0)
    (kept,) = (tmp_path / "station" / "drift").iterdir()
    memory = json.loads(kept.read_text())
    for written, expected in (
        ({key: memory[key] for key in ("scores", "looks")}, (10, 0)),  # what was kept before there was more
        (memory | {"last": [3 * BLOCK, "0" * 64]}, (10, 0)),  # of another record
        (memory | {"last": [9 * BLOCK, memory["last"][1]]}, (10, 0)),  # of a record that was longer
        ({}, (10, 100)),
    ):
        kept.write_text(json.dumps(written))
        with Station.open(tmp_path / "station") as again:
            (state,) = Drift(again).states()
            assert (state.parts, state.learning) == expected


def test_a_watch_goes_on_from_its_memory_as_if_nothing_had_been_between(inspector):
    rng, observer, number = np.random.default_rng(21), Observer(inspector), 0
    whole, halves = Watch("ring", inspector), Watch("ring", inspector)
    for light, n_parts in ((1.0, 2 * BLOCK), (0.8, BLOCK + 20), (1.0, 10), (0.8, 2 * BLOCK)):
        taken = []
        for _ in range(n_parts):
            number += 1
            decision = decided(inspector, observer, part(rng, light=light))
            taken.append(Recorded(number, decision, ""))
            whole.add(number, decision)
            halves.add(number, decision)
        memory = json.loads(json.dumps(halves.memory()))
        again = Watch("ring", inspector, start=Reference.from_json(memory))
        again.recall(memory, [each for each in taken if each.number in memory["waiting"]] if memory["waiting"] else [])
        if len(memory["waiting"]) <= n_parts:
            halves = again
        assert halves.state() == whole.state()
    assert (whole.state().changed, whole.state().since) == (True, 2 * BLOCK + 1)


def test_what_people_try_by_hand_is_no_part_of_the_line(inspector):
    watch, observer, rng = Watch("ring", inspector), Observer(inspector), np.random.default_rng(3)
    for number in range(1, BLOCK + 1):
        watch.add(number, replace(decided(inspector, observer, part(rng, light=0.5)), source="manual"))
    state = watch.state()
    assert (state.parts, state.of, state.changed, state.blocks) == (0, 0, False, ())


def test_a_change_begins_where_it_began_however_long_it_lasts(inspector, monkeypatch):
    monkeypatch.setattr("makel.station.drift._BLOCKS_KEPT", 2)
    state = run(inspector, 6, 4 * BLOCK, light=0.8).state()
    assert (len(state.blocks), state.changed, state.since) == (2, True, 1)


def test_a_change_outlives_restarts_and_other_versions(tmp_path, inspector, monkeypatch):
    rng, folder = np.random.default_rng(11), tmp_path / "station"
    other = model_of(tmp_path / "other", [part(rng) for _ in range(20)], Preparation(SIZE_PX, SIZE_PX, "grey"))

    def judge(station, monitor, n_parts, light):
        model_id, before = station.line("ring").inspector.model_id, monitor.states()[0].parts
        for _ in range(n_parts):
            station.decide(cv2.imencode(".png", part(rng, light=light))[1].tobytes(), source="http")
        wait_for(lambda: monitor.states()[0].parts == before + n_parts)
        assert monitor.states()[0].model_id == model_id

    with Station.open(folder, SETTINGS) as station:
        station.add("ring", inspector.folder.path, by="test", role="engineer")
        station.add("ring", other.folder.path, by="test", role="engineer")
        monitor = Drift(station)
        judge(station, monitor, BLOCK, 1.0)
        judge(station, monitor, BLOCK + 20, 0.8)
        before = monitor.states()
        assert (before[0].changed, before[0].since, before[0].parts) == (True, BLOCK + 1, 2 * BLOCK + 20)
    with Station.open(folder, SETTINGS) as station:
        monitor = Drift(station)
        assert monitor.states() == before
        station.activate("ring", 2, by="test", role="engineer")
        (state,) = monitor.states()
        assert (state.changed, state.since, state.parts, state.blocks) == (True, BLOCK + 1, 0, ())
        assert state.words.endswith(f"So said another version; {BLOCK} more parts are needed for this one to tell.")
        assert monitor.gauge("makel_drift") == {"ring": 1.0}
        assert any("Light changed" in each for each in station.warnings())
    monkeypatch.setattr("makel.station.drift._REREAD", 1)  # as if the other version had judged thousands of parts
    with Station.open(folder, SETTINGS) as station:
        monitor = Drift(station)
        assert monitor.states() == [state]
        station.rollback("ring", by="test", role="engineer")
        assert monitor.states() == before
        judge(station, monitor, BLOCK - 20, 0.8)
        assert (len(monitor.states()[0].blocks), monitor.states()[0].since) == (3, BLOCK + 1)
        judge(station, monitor, BLOCK, 1.0)
        assert (monitor.states()[0].changed, monitor.states()[0].since) == (False, None)


def test_a_version_that_judges_again_does_not_clear_what_another_saw(tmp_path, inspector):
    watch, seen = run(inspector, 5, BLOCK), run(inspector, 6, BLOCK, light=0.8)
    assert not watch.state().changed
    watch.inherited = seen.change
    state = watch.state()
    assert (state.changed, state.since, state.causes) == (True, 1, seen.state().causes)
    assert run(inspector, 7, BLOCK, watch, BLOCK).state().changed is False


def test_more_rejects_than_promised_are_put_down_to_defects_where_all_else_is_as_it_was(inspector):
    watch, observer, rng = Watch("ring", inspector), Observer(inspector), np.random.default_rng(3)
    for number in range(1, BLOCK + 1):
        decision = decided(inspector, observer, part(rng))
        if number % 3 == 0:
            decision = replace(decision, score=9.0, verdict="reject")
        watch.add(number, decision)
    state = watch.state()
    assert [finding.what for finding in state.findings] == ["rejects"]
    assert "most likely more parts are defective" in state.causes[0].words
    low, high = state.reject_interval_95
    assert low < state.reject_rate < high
    assert state.rejects / state.of == state.reject_rate


def test_decisions_of_other_versions_and_fail_safe_rejects_say_nothing(inspector):
    watch, observer = Watch("ring", inspector), Observer(inspector)
    decision = decided(inspector, observer, part(np.random.default_rng(0)))
    assert watch.add(1, replace(decision, model_id="other")) is None
    assert watch.add(2, replace(decision, score=None, verdict="reject", reason="no decision within 10 ms")) is None
    assert watch.state().parts == 0
    assert watch.state().words == f"Nothing can be said yet: {BLOCK} more parts are needed."


def test_the_chance_of_a_false_alarm_is_what_is_said(inspector):
    """Blocks and calibrations drawn anew each time; the bound on the three tests of numbers is 3 / 5 of the level."""
    rng, alarms, n_runs = np.random.default_rng(0), 0, 4000
    state = Watch("ring", inspector).state()
    assert state.level == BLOCK / EVERY
    for _ in range(n_runs):
        scores = np.sort(rng.normal(size=60 + BLOCK))
        rng.shuffle(scores)
        known = calibrate(scores[:60], scores[:60], false_reject=0.05)
        block = scores[60:]
        passed = block[block <= known.image_threshold]
        below = [score for score in known.image_scores if score < known.image_threshold]
        alarms += rank_sum(below, passed) <= 0.02 or at_least(BLOCK - len(passed), BLOCK, 3, 60) <= 0.02
    assert alarms / n_runs <= 0.04 + 3 * np.sqrt(0.04 * 0.96 / n_runs)
    assert alarms / n_runs > 0.02  # and it is not so careful that it would never find anything


@pytest.mark.parametrize(("n", "m"), [(4, 50), (3, 5), (11, 40), (60, 50), (1, 1)])
def test_the_rank_sum_test_is_scipys(n, m):
    rng = np.random.default_rng(n)
    for apart in (0, 1, 3):
        one, other = rng.normal(size=n), rng.normal(apart, 2, size=m)
        method = "exact" if min(n, m) < 12 else "asymptotic"
        assert rank_sum(one, other) == pytest.approx(mannwhitneyu(one, other, method=method).pvalue, rel=1e-9)
    tied, others = rng.integers(0, 5, 20), rng.integers(1, 6, 30)
    assert rank_sum(tied, others) == pytest.approx(mannwhitneyu(tied, others, method="asymptotic").pvalue)


def test_equal_numbers_of_small_samples_are_ordered_as_speaks_least():
    assert rank_sum([1, 2, 3], [3, 4, 5, 5]) == rank_sum([1, 2, 3.1], [3, 4, 5, 6])
    assert rank_sum([1, 2, 3], [5, 5, 6, 6]) == rank_sum([1, 2, 3], [5, 7, 6, 8]) == 2 / 35


def test_samples_that_say_nothing_have_the_p_value_one():
    assert rank_sum([], [1.0]) == rank_sum([2.0] * 5, [2.0] * 9) == 1.0


def test_the_rejects_of_a_block_are_beta_binomial():
    for count in (0, 1, 5, 50):
        assert at_least(count, 50, 3, 60) == pytest.approx(betabinom.sf(count - 1, 50, 3, 58), rel=1e-9)


def test_a_look_measures_what_it_says(inspector):
    observer = Observer(inspector)
    grey = observer.look(inspector.prepare(np.full((96, 96), 102, np.uint8)))
    assert (grey.brightness, grey.contrast, grey.sharpness, grey.match) == (0.4, 0.0, 0.0, 0.0)
    rng = np.random.default_rng(1)
    still, moved = (
        observer.look(inspector.prepare(part(np.random.default_rng(1), shift=at))) for at in ((0, 0), (0.05, -0.03))
    )
    assert moved.shift_x - still.shift_x == pytest.approx(0.05, abs=0.006)
    assert moved.shift_y - still.shift_y == pytest.approx(-0.03, abs=0.006)
    dim = observer.look(inspector.prepare((part(rng) * 0.5).astype(np.uint8)))
    assert dim.brightness == pytest.approx(still.brightness / 2, rel=0.05)
    assert dim.contrast == pytest.approx(still.contrast, rel=0.05)
    assert min(still.match, dim.match) > 0.9
    assert len(observer.golden) == 4
    assert Look.from_json(still.to_json()) == still
    with pytest.raises(ValueError, match="it has six"):
        Look.from_json([0.1, 0.2])
    with pytest.raises(ValueError, match="not finite"):
        Look.from_json([0.1, 0.2, float("nan"), None, None, None])


def test_images_in_tiles_have_a_look_without_a_position(tmp_path):
    from makel.model.tiling import Tiling

    model = Inspector.load(tiny_model.write(tmp_path / "tiled", tiling=Tiling(32, 8)))
    observer = Observer(model)
    pixels = np.full((300, 700, 3), 51, np.uint8)
    pixels[:, 350:] = 153
    look = observer.look(model.prepare(pixels))
    assert look.brightness == pytest.approx(0.4, abs=0.002)
    assert look.contrast == pytest.approx(0.5, abs=0.005)
    assert (look.shift_x, look.shift_y, look.match, observer.golden) == (None, None, None, ())


def test_no_part_is_rejected_for_want_of_a_look(station, monkeypatch):
    def fail(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(Observer, "look", fail)
    decision = station.decide(GOOD, source="http").decision
    assert (decision.verdict, decision.reason, decision.look) == ("pass", "", None)


def test_another_product_hides_what_else_differs():
    findings = [Finding(what, "fit", 1e-6, 1.0, 0.5, what) for what in ("brightness", "match", "score")]
    assert [each.cause for each in explain(findings)] == ["product"]
    assert explain([]) == []


def test_the_station_tells_of_a_change_over_http_and_after_a_restart(tmp_path, inspector):
    rng = np.random.default_rng(11)
    pictures = [cv2.imencode(".png", part(rng, light=0.8))[1].tobytes() for _ in range(BLOCK)]
    with Station.open(tmp_path / "station") as station:
        station.add("ring", inspector.folder.path, by="test", role="engineer")
        with serving(station) as client:
            assert client.get("/drift").json()["models"][0]["changed"] is False
            for picture in pictures:
                station.decide(picture, source="http")
            wait_for(lambda: client.get("/drift").json()["models"][0]["parts"] == BLOCK)
            state = client.get("/drift").json()["models"][0]
            assert (state["changed"], state["since"], state["causes"][0]["cause"]) == (True, 1, "light")
            assert (state["block"], state["false_alarm_every"]) == (BLOCK, EVERY)
            metrics = client.get("/metrics").text
            assert 'makel_drift{model="ring"} 1.0' in metrics
            assert 'makel_reject_rate{model="ring"}' in metrics
            assert any("Light changed" in each for each in client.get("/readyz").json()["warnings"])
        look = station.store.get(1).decision.look
        assert look is not None
        assert station.store.verify() is None
    with Station.open(tmp_path / "station") as again:
        (found,) = Drift(again).states()
        assert (found.changed, found.parts) == (True, BLOCK)
