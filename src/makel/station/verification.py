"""Checking the record entry by entry, a page at a time: a million of them need no more memory than one page."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import func, inspect, select

from makel.station.database import Database
from makel.station.decisions import START, Broken, Head, link
from makel.station.entries import columns
from makel.station.tables import ENTRIES, HEAD, HEAD_ROW

_PAGE = 2000


def verify(database: Database, noted: Head | None, progress: Callable[[int, int], None]) -> Broken | None:
    """The first entry that is not as it was written, or None; see `Store.verify`."""
    if why := database.own_check():
        return Broken(None, f"the database's own check says: {why}")
    with database.read() as connection:  # one state of both: what others add after this is not looked at
        if missing := {ENTRIES.name, HEAD.name} - set(inspect(connection).get_table_names()):
            return Broken(None, f"the table {min(missing)!r} was removed")
        ends = connection.execute(HEAD_ROW).all()
        last = connection.execute(select(func.max(ENTRIES.c.entry))).scalar_one() or 0
    if len(ends) != 1:
        how = "was emptied" if not ends else f"has {len(ends)} rows where it had one"
        return Broken(None, f"the table 'head', which says where the record ends, {how}")
    head = Head(*ends[0])
    if [type(value) for value in (head.entry, head.number, head.hash)] != [int, int, str]:
        return Broken(None, f"the table 'head', which says where the record ends, was changed: it says {head}")
    if noted is not None and noted.entry > head.entry:
        return Broken(head.entry + 1, f"missing: the record had {noted.entry} entries when its head was noted")
    at = Head(0, 0, START)
    while at.entry < head.entry:
        query = select(ENTRIES).where(ENTRIES.c.entry > at.entry, ENTRIES.c.entry <= head.entry)
        with database.read() as connection:
            rows = connection.execute(query.order_by(ENTRIES.c.entry).limit(_PAGE)).all()
        for row in rows:
            why = _wrong(at, row)
            if why:
                return Broken(at.entry + 1, why)
            at = Head(row.entry, row.number if row.kind == "decision" else at.number, row.hash)
            if noted is not None and noted.entry == at.entry and noted.hash != at.hash:
                return Broken(at.entry, f"its hash is {at.hash}, but was {noted.hash} when it was noted")
        if not rows:
            return Broken(at.entry + 1, f"missing, with all after it: the record had {head.entry} entries")
        del rows, row  # before the next page comes
        progress(at.entry, head.entry)
    if at != head:
        return Broken(at.entry, f"the head says {head.hash} and {head.number} decisions, the entries do not")
    if last > head.entry:
        return Broken(head.entry + 1, "added behind the end of the record")
    with database.read() as connection:
        if connection.execute(select(func.min(ENTRIES.c.entry))).scalar_one_or_none() not in (1, None):
            return Broken(1, "an entry stands before the first")
    return None


def _wrong(before: Head, row: Any) -> str:
    """What is wrong with the entry that should follow `before`; "" for nothing."""
    if row.entry != before.entry + 1:
        missing = row.entry - before.entry - 1
        return "missing" if missing == 1 else f"missing, with the {missing - 1} after it"
    try:
        if link(before.hash, row.body) != row.hash:
            return "its content, its hash or its place in the chain was changed"
        body = json.loads(row.body)
        expected = columns(body) | {"entry": body["entry"]}
    except (ValueError, KeyError, TypeError, AttributeError):  # text that was never written by makel
        return "its content was changed"
    differing = [name for name, value in expected.items() if getattr(row, name) != value]
    if differing:
        return f"its column {differing[0]!r} was changed: the hashed content says otherwise"
    if row.kind == "decision" and row.number != before.number + 1:
        return f"decision {row.number} stands where decision {before.number + 1} should"
    return ""
