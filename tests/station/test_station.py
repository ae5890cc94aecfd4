import json
import shutil
import threading

import pytest

from conftest import DEFECT, GOOD, held, picture, wait_for
from makel.errors import ModelFolderError, NotFoundError, Overloaded, UsageError
from makel.station.station import Settings, Station


def test_a_decision_is_recorded_before_it_is_answered(station):
    outcome = station.decide(DEFECT, source="http", name="007.png")
    assert station.store.get(1) == outcome.recorded
    decision = outcome.decision
    assert (decision.model, decision.source, decision.name, decision.verdict) == ("part", "http", "007.png", "reject")
    assert decision.model_id == outcome.verdict.model_id == outcome.inspector.model_id
    assert (decision.score, decision.regions) == (outcome.verdict.score, outcome.verdict.regions)
    assert station.picture(outcome.recorded) == DEFECT


def test_what_is_no_image_is_recorded_as_a_reject_with_its_reason(station):
    decision = station.decide(b"text", source="watch", name="a.txt", arrival="x").decision
    assert (decision.verdict, decision.score, decision.model_id, decision.arrival) == ("reject", None, "", "x")
    assert decision.reason == "a.txt is text: convert it to JPEG, PNG, BMP, TIFF, WebP, PNM, JPEG 2000"
    assert station.store.count() == 1


def test_no_decision_in_time_is_a_recorded_reject(station):
    with held(station.line()):
        decision = station.decide(GOOD, source="http", deadline_s=0.01).decision
    assert (decision.verdict, decision.reason) == ("reject", "no decision within 10 ms")
    assert station.store.get(1).decision == decision


def test_bursts_are_recorded_without_a_gap_or_a_double(station):
    futures = [station.submit(picture(spot), source="http", name=str(spot)) for spot in (0, 250, 251, 252, 253, 254)]
    recorded = sorted((future.result(30).recorded for future in futures), key=lambda each: each.number)
    assert [each.number for each in recorded] == [1, 2, 3, 4, 5, 6]
    assert {each.decision.name for each in recorded} == {"0", "250", "251", "252", "253", "254"}
    assert station.store.find() == recorded[::-1]


def test_a_full_queue_refuses_and_records_nothing(station):
    with held(station.line()):
        futures = [station.submit(GOOD, source="http") for _ in range(7)]
        with pytest.raises(Overloaded):
            station.submit(GOOD, source="http")
        assert station.refused == 1
    assert {future.result(30).decision.verdict for future in futures} == {"pass"}
    assert station.store.count() == 7


def test_the_bytes_under_way_are_bounded(tmp_path, models):
    with Station.open(tmp_path / "small", Settings(max_held_bytes=len(GOOD) + 1, threads=1)) as small:
        small.add("part", models["first"], by="test", role="engineer")
        with held(small.line()):
            future = small.submit(GOOD, source="http")
            with pytest.raises(Overloaded, match="images under way hold"):
                small.submit(GOOD, source="http")
        assert future.result(30).decision.verdict == "pass"
        wait_for(lambda: small.held_bytes == 0)
        assert small.decide(GOOD, source="http").decision.verdict == "pass"


def test_an_image_taken_back_is_not_recorded_and_leaves_its_room(station):
    with held(station.line()):
        futures = [station.submit(GOOD, source="http") for _ in range(7)]
        assert futures[-1].cancel()
        station.submit(GOOD, source="http", name="in its place")
    assert station.line().drain(30)
    assert [future.result(30).decision.verdict for future in futures[:-1]] == ["pass"] * 6
    station.close()
    with Station.open(station.folder) as again:
        assert again.store.count() == 7


def test_models_are_found_by_name(station, models):
    with pytest.raises(NotFoundError, match="there is no model 'other' here; there are: part"):
        station.decide(GOOD, model="other", source="http")
    station.add("other", models["second"], by="test", role="engineer")
    with pytest.raises(UsageError, match="which model\\? There are other, part"):
        station.decide(GOOD, source="http")
    assert station.decide(DEFECT, model="other", source="http").decision.verdict == "pass"
    assert station.decide(DEFECT, model="part", source="http").decision.verdict == "reject"


def test_models_are_swapped_and_rolled_back_without_a_dropped_image(station, models):
    version, new = station.add("part", models["second"], by="ada", role="engineer")
    assert (version.version, version.active, new) == (2, False, True)
    futures, stop = [], threading.Event()

    def feed():
        while not stop.is_set():
            try:
                futures.append(station.submit(DEFECT, source="http"))
            except Overloaded:
                futures[-1].result(30)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert station.activate("part", 2, by="ada", role="engineer").active
    second = station.decide(DEFECT, source="http", name="mine") if station.line().depth < 8 else None
    assert station.rollback("part", by="ada", role="engineer").version == 1
    stop.set()
    feeder.join()
    ids = {version.model_id: version.version for version in station.registry.versions("part")}
    said = {(ids[each.result(30).decision.model_id], each.result(30).decision.verdict) for each in futures}
    assert said <= {(1, "reject"), (2, "pass")}  # nothing judged by one model with the thresholds of the other
    assert second is None or second.decision.verdict == "pass"
    assert station.store.count() == len(futures) + (second is not None)
    changes = [(audit.by, audit.action, audit.detail["version"]) for audit in station.store.audits()]
    assert changes == [
        ("ada", "roll back", 1),
        ("ada", "activate", 2),
        ("ada", "add model", 2),
        ("test", "add model", 1),
    ]
    said = "version 1 of part has followed no other that judged here: there is no way back from it. Activate version 2"
    with pytest.raises(UsageError, match=said):
        station.rollback("part", by="ada", role="engineer")


def test_a_model_that_is_here_already_is_not_copied_again(station, models):
    version, new = station.add("part", models["first"], by="test", role="engineer")
    assert (version.version, new) == (1, False)


def test_a_restart_serves_what_was_active(station, models):
    station.add("part", models["second"], by="test", role="engineer")
    station.activate("part", 2, by="test", role="engineer")
    station.decide(DEFECT, source="http")
    station.close()
    with Station.open(station.folder) as again:
        outcome = again.decide(DEFECT, source="http")
        assert (outcome.recorded.number, outcome.decision.verdict) == (2, "pass")
        assert again.rollback("part", by="test", role="engineer").version == 1


def test_a_folder_damaged_while_serving(station, models):
    station.add("part", models["second"], by="test", role="engineer")
    first, second = (version.path / "model.onnx" for version in station.registry.versions("part"))
    for path in (first, second):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert station.decide(GOOD, source="http").decision.verdict == "pass"
    assert station.obstacles() == []
    (warning,) = station.warnings()
    assert warning.startswith("part goes on from memory, but its folder no longer verifies:")
    assert "model.onnx was changed" in warning
    with pytest.raises(ModelFolderError, match=r"model\.onnx was changed"):
        station.activate("part", 2, by="test", role="engineer")
    assert station.registry.version("part").version == 1
    station.close()
    with Station.open(station.folder) as again:
        assert again.obstacles() == ["no model is served"]
        assert again.warnings()[0].startswith("part is not served:")
        with pytest.raises(ModelFolderError, match=r"part is not served: .*model\.onnx was changed"):
            again.decide(GOOD, model="part", source="http")


def test_decisions_go_on_while_the_record_is_away(station):
    heard, all_heard = [], threading.Event()

    def hear(recorded):
        heard.append((recorded.number, recorded.decision.name))
        if len(heard) == 4:
            all_heard.set()

    station.listen(hear)
    station.decide(GOOD, source="http", name="before")
    record, away = station.folder / "store.sqlite", station.folder / "away.sqlite"
    record.rename(away)
    outcomes = [station.decide(GOOD, source="http", name=name) for name in ("during", "still")]
    assert [outcome.recorded.number for outcome in outcomes] == [0, 0]
    assert [outcome.decision.verdict for outcome in outcomes] == ["pass", "pass"]
    assert station.waiting == 2
    assert station.obstacles() == []
    assert station.warnings()[0].startswith("2 decisions wait for the record since")
    away.rename(record)
    station.decide(GOOD, source="http", name="after")
    assert all_heard.wait(30)
    assert heard == [(1, "before"), (2, "during"), (3, "still"), (4, "after")]
    assert (station.waiting, station.warnings()) == (0, [])


def test_a_slow_listener_holds_nobody_up(station):
    go, heard = threading.Event(), []

    def slow(recorded):
        go.wait(30)
        heard.append(recorded.number)

    stop = station.listen(slow)
    assert [station.decide(GOOD, source="http").recorded.number for _ in range(3)] == [1, 2, 3]
    assert heard == []
    go.set()
    stop()
    assert heard == [1, 2, 3]
    station.decide(GOOD, source="http")
    assert heard == [1, 2, 3]


def test_closing_finishes_what_was_accepted(station):
    with held(station.line()) as go:
        futures = [station.submit(GOOD, source="http") for _ in range(5)]
        closing = threading.Thread(target=station.close)
        closing.start()
        go.set()
    closing.join()
    assert {future.result(0).recorded.number for future in futures} == {1, 2, 3, 4, 5}
    with pytest.raises(Overloaded):
        station.submit(GOOD, source="http")


def test_the_way_back_leads_to_a_version_that_is_there(station, models):
    with pytest.raises(UsageError, match="It has no other version"):
        station.rollback("part", by="ada", role="engineer")
    assert station.registry.earlier("part") is None
    station.add("part", models["second"], by="ada", role="engineer")
    assert station.registry.earlier("part") is None  # it has never judged
    station.activate("part", 2, by="ada", role="engineer")
    assert station.registry.earlier("part") == 1
    shutil.rmtree(station.registry.version("part", 1).path)
    assert station.registry.earlier("part") is None
    with pytest.raises(UsageError, match="version 2 of part has followed no other"):
        station.rollback("part", by="ada", role="engineer")


def test_whoever_follows_hears_of_decisions_answers_and_versions_in_their_order(station, models):
    heard = []
    station.follow(heard.append)
    station.decide(DEFECT, source="http")
    station.answer(1, "good", "ada")
    station.answer(1, None, "ada")
    station.add("part", models["second"], by="ada", role="engineer")
    station.activate("part", 2, by="ada", role="engineer")
    station.rollback("part", by="ada", role="engineer")
    wait_for(lambda: len(heard) == 6)
    assert [each.what for each in heard[1:]] == ["answer", "answer", "models", "models", "models"]
    assert [each.detail["answer"] for each in heard[1:3]] == ["good", None]
    assert heard[-1].detail == {"model": "part"}


def test_an_answer_is_added_and_the_picture_is_kept_longest(station):
    station.decide(DEFECT, source="http")
    assert station.answer(1, "good", "ada").answer == "good"
    assert station.pictures.usage()["answered"][0] == 1


def test_an_earlier_decision_is_drawn_by_the_model_that_made_it(station, models):
    first = station.decide(DEFECT, source="http").decision
    station.add("part", models["second"], by="test", role="engineer")
    station.activate("part", 2, by="test", role="engineer")
    inspector = station.inspector_of(first)
    assert inspector.model_id == first.model_id != station.line().inspector.model_id
    assert station.look(inspector, station.decode(DEFECT)).score == first.score


def test_a_state_file_that_is_damaged_is_said_so(station):
    state = station.folder / "models" / "part" / "active.json"
    assert json.loads(state.read_text()) == {"active": 1, "before": []}
    state.write_text("{")
    with pytest.raises(ModelFolderError, match=r"active\.json is damaged"):
        station.registry.version("part")
