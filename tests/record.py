"""Decisions for tests, and processes that write them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import sqlalchemy as sa

from makel.station.decisions import Decision
from makel.types import Region, ZoneVerdict

DECISION = Decision(
    at="2026-11-25T14:30:00.000001+00:00",
    model="screw",
    model_id="0123abcd",
    source="http",
    name="part 7.png",
    image_sha256="ab" * 32,
    verdict="reject",
    reason="",
    score=1.25,
    threshold=1.0,
    p_value=0.003,
    regions=(Region((1, 2, 5, 7), 13, 2.5),),
    latency_ms=17.0,
    zones=(ZoneVerdict("bore", "reject", 2.5, 2.0, 0.001), ZoneVerdict("rim", "pass", 0.5, 2.0, 0.7)),
)

_WRITER = """
import sys
from dataclasses import replace
from record import decision
from makel.station.store import Store
store = Store.open(sys.argv[1], create=False, timeout_s=30)
for index in range(int(sys.argv[2])):
    print(store.append(replace(decision(index), name=sys.argv[3])).number, flush=True)
"""


def decision(index):
    """One of up to 3,600 decisions, a second apart."""
    return replace(DECISION, at=f"2026-11-25T14:{index // 60:02}:{index % 60:02}.000000+00:00", score=index / 7)


def writer(where, n_decisions, name):
    """A process that writes decisions one by one and prints the number of each when it is in."""
    return script(_WRITER, where, n_decisions, name)


def script(text, *arguments):
    """A process that runs a text of Python with this folder's modules at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])},
    )


def engine_of(where):
    """SQLAlchemy's own way to a record, past the store."""
    url = str(where).replace("postgresql:", "postgresql+psycopg:") if "://" in str(where) else f"sqlite:///{where}"
    return sa.create_engine(url)


def sql(where, *statements):
    """Run statements past the store, in one transaction, and give the rows of the last if it has any."""
    engine = engine_of(where)
    with engine.begin() as connection:
        for statement in statements:
            found = connection.exec_driver_sql(statement)
        rows = found.all() if found.returns_rows else None
    engine.dispose()
    return rows
