"""Decisions as a table for other programs: CSV with the standard library, Parquet with pyarrow.

pyarrow is heavy, but it is Parquet's own library, needs no other package, and writes one group of rows after the other,
so that a million decisions need the memory of one group. The lighter writers need pandas, or a second copy on the disk.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from makel.errors import MissingExtraError, StoreError, UsageError
from makel.escapes import cell
from makel.station.database import Database
from makel.station.decisions import Recorded
from makel.station.entries import storable
from makel.station.filters import DECISIONS, Filter, recorded
from makel.station.tables import ENTRIES

COLUMNS = {
    "number": "int64",
    "at": "timestamp",
    "model": "string",
    "model_id": "string",
    "source": "string",
    "name": "string",
    "image_sha256": "string",
    "verdict": "string",
    "reason": "string",
    "score": "float64",
    "threshold": "float64",
    "p_value": "float64",
    "latency_ms": "float64",
    "regions": "string",
    "arrival": "string",
    "look": "string",
    "zones": "string",
    "answer": "string",
    "hash": "string",
}
"""The columns of a table and their types; `regions`, `look` and `zones` are the JSON text of a list."""

_PAGE = 2000


def export(database: Database, path: Path, filter: Filter, progress: Callable[[int, int], None]) -> int:  # noqa: A002
    """Write decisions to a table; see `Store.export`."""
    writers = {".csv": _write_csv, ".parquet": _write_parquet}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise UsageError(f"{path} ends in {path.suffix!r}: a record is exported to .csv or .parquet")
    if writer is _write_parquet and find_spec("pyarrow") is None:
        raise MissingExtraError("an export to Parquet", "parquet")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        n_rows = writer(temporary, _pages(database, filter, progress))
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return n_rows


def _pages(
    database: Database,
    filter: Filter,  # noqa: A002
    progress: Callable[[int, int], None],
) -> Iterator[list[Recorded]]:
    """All decisions that meet a filter, oldest first, at least one page."""
    chosen = DECISIONS.where(*filter.conditions()).order_by(ENTRIES.c.number)
    with database.read() as connection:
        total = connection.execute(select(func.count()).select_from(ENTRIES).where(*filter.conditions())).scalar_one()
    done, last = 0, 0
    while True:
        with database.read() as connection:
            rows = connection.execute(chosen.where(ENTRIES.c.number > last).limit(_PAGE)).all()
        yield [recorded(database, row) for row in rows]
        done += len(rows)
        progress(done, max(total, done))
        if len(rows) < _PAGE:
            return
        last = rows[-1].number


def _cells(item: Recorded) -> dict[str, Any]:
    found = item.to_json()
    for name in ("regions", "look", "zones"):
        found[name] = None if found[name] is None else json.dumps(found[name])
    return {name: storable(value) if isinstance(value, str) else value for name, value in found.items()}


def _write_csv(path: Path, pages: Iterator[list[Recorded]]) -> int:
    n_rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for page in pages:
            table.writerows({name: cell(value) for name, value in _cells(item).items()} for item in page)
            n_rows += len(page)
    return n_rows


def _write_parquet(path: Path, pages: Iterator[list[Recorded]]) -> int:
    import pyarrow
    from pyarrow import parquet

    types = {
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
        "string": pyarrow.string(),
        "timestamp": pyarrow.timestamp("us", tz="UTC"),
    }
    schema = pyarrow.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    n_rows = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as file:
        for page in pages:
            cells = [_cells(item) | {"at": datetime.fromisoformat(item.decision.at)} for item in page]
            file.write_table(pyarrow.Table.from_pylist(cells, schema))
            n_rows += len(page)
    return n_rows
