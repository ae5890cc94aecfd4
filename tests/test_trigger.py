"""One picture for one part."""

import threading

import pytest

import tiny_model
from makel.errors import Overloaded
from makel.station.station import Station
from makel.station.trigger import BusyError, Trigger
from test_watch import drop, picture
from waiting import until

DEADLINE_S = 0.5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model.write(tmp_path_factory.mktemp("models") / "parts")


@pytest.fixture
def station(tmp_path, model):
    with Station.open(tmp_path / "station") as opened:
        opened.add("parts", model, by="test", role="engineer")
        yield opened


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "arriving"
    path.mkdir()
    return path


@pytest.fixture
def trigger(folder, station, tmp_path):
    made = Trigger(folder, station, model="parts", done=tmp_path / "done", deadline_s=DEADLINE_S, settle_s=0.0)
    made.start()
    yield made
    made.stop()


def take_with(trigger, *files, **how):
    """Trigger, and let files arrive when the trigger waits for them."""
    outcomes = []
    armed = threading.Event()
    taking = threading.Thread(target=lambda: outcomes.append(trigger.take(armed=armed.set, **how)))
    taking.start()
    armed.wait()
    for folder, name, data in files:
        drop(folder, name, data)
    taking.join()
    return outcomes[0].recorded.decision


def test_the_picture_after_a_trigger_is_that_part(trigger, folder, tmp_path):
    part = take_with(trigger, (folder, "a.png", picture(128)), part="serial 7")
    assert (part.name, part.source, part.verdict, part.reason) == ("serial 7", "trigger", "pass", "")
    assert part.arrival.startswith("a.png@")
    assert take_with(trigger, (folder, "b.png", picture(0))).name == "b.png"
    assert [path.name for path in sorted((tmp_path / "done").rglob("*.png"))] == ["000001_a.png", "000002_b.png"]


def test_without_a_picture_the_part_is_a_reject_that_says_so(trigger):
    part = trigger.take(part="serial 7").recorded.decision
    assert (part.verdict, part.reason) == ("reject", "no picture within 500 ms of the trigger")
    assert (part.name, part.image_sha256, part.model_id, part.score) == ("serial 7", "", "", None)


def test_a_picture_without_a_trigger_is_never_the_next_part(trigger, folder, station):
    drop(folder, "early.png", picture(128))
    assert take_with(trigger, (folder, "mine.png", picture(0))).name == "mine.png"
    until(lambda: station.store.count() == 2)
    stray = station.store.get(2).decision
    assert (stray.name, stray.verdict) == ("early.png", "reject")
    assert stray.reason == "early.png belongs to no part: it came without a trigger, or too late for it"


def test_a_picture_may_lead_its_trigger_where_that_is_said(folder, station):
    trigger = Trigger(folder, station, model="parts", deadline_s=DEADLINE_S, settle_s=0.0, lead_s=5.0)
    drop(folder, "a.png", picture(128))
    assert trigger.take().recorded.decision.verdict == "pass"


def test_two_pictures_for_one_part_reject_it(folder, station):
    trigger = Trigger(folder, station, model="parts", deadline_s=DEADLINE_S, settle_s=0.0, lead_s=5.0)
    drop(folder, "a.png", picture(128))
    drop(folder, "b.png", picture(128, number=1))
    part = trigger.take().recorded.decision
    assert (part.verdict, part.reason) == ("reject", "2 pictures for one part: a.png, b.png")


def test_a_picture_that_does_not_become_whole_in_time_is_a_reject_that_says_so(trigger, folder):
    part = take_with(trigger, (folder, "a.png", picture(128)[:-20]))
    assert part.reason == (
        "no picture within 500 ms of the trigger: a.png is cut short: it ends before its IEND chunk; copy it again"
    )


def test_one_part_at_a_time(trigger):
    armed = threading.Event()
    taking = threading.Thread(target=trigger.take, kwargs={"armed": armed.set})
    taking.start()
    armed.wait()
    with pytest.raises(BusyError, match="the part before is not decided yet"):
        trigger.take()
    taking.join()


def test_a_model_that_does_not_answer_in_time_is_a_reject_that_says_so(trigger, folder, station):
    begun, go = threading.Event(), threading.Event()
    hanging = station.line("parts").run(lambda _: (begun.set(), go.wait(20)))
    begun.wait()
    part = take_with(trigger, (folder, "a.png", picture(128)))
    go.set()
    hanging.result()
    assert (part.verdict, part.score) == ("reject", None)
    assert part.reason.startswith("no decision within ")


def test_a_part_that_cannot_even_be_recorded_is_an_error(trigger, station):
    station.close()
    with pytest.raises(Overloaded, match="the station is being closed: nothing is recorded any more"):
        trigger.take()
