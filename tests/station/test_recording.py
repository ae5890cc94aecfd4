"""Whoever has been answered finds the picture, at once."""

import hashlib
from dataclasses import replace

from conftest import GOOD
from makel.station.decisions import now
from makel.station.journal import Journal, Recorder
from makel.station.pictures import Pictures
from makel.station.recording import Entry, Recording
from makel.station.store import Store
from record import DECISION


def test_the_picture_is_waited_for_from_the_answer_on(tmp_path):
    pictures, found = Pictures(tmp_path / "pictures"), []
    name = hashlib.sha256(GOOD).hexdigest()
    with (
        Store.open(tmp_path / "store.sqlite") as store,
        Recorder(store, Journal(tmp_path / "journal", 10_000)) as recorder,
    ):
        recording = Recording(recorder, pictures, lambda _: None)

        def settle(result):  # on the thread that answers: what follows the answer at the soonest
            recording.wait_for_picture(name)
            found.append((result.number, name in pictures))

        recording.put(Entry(replace(DECISION, at=now()), GOOD, settle))
        recording.close()
    assert found == [(1, True)]
