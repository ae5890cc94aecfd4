"""The tables of the record. `migrations` makes them; a test holds both to be the same."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    literal_column,
    select,
)

METADATA = MetaData()

_POSITION = BigInteger().with_variant(Integer, "sqlite")  # SQLite's own row number, which costs no index

ENTRIES = Table(
    "entries",
    METADATA,
    Column("entry", _POSITION, primary_key=True, autoincrement=False),
    Column("hash", String(64), nullable=False),
    Column("body", Text, nullable=False),  # the canonical JSON; all columns below repeat what is in it, to find by
    Column("kind", String(8), nullable=False),
    Column("number", BigInteger),  # of the decision, or of the one an answer is about
    Column("at", String(32), nullable=False),
    Column("model", Text),
    Column("verdict", String(6)),
    Column("name", Text),
    Column("arrival", String(64)),  # its fingerprint: an index of PostgreSQL takes no text of any length
    Column("answer", String(6)),
)
"""The chain: only ever added to."""

HEAD = Table(
    "head",
    METADATA,
    Column("one", SmallInteger, primary_key=True, autoincrement=False),
    Column("entry", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)
"""One row: where the chain ends. Whoever adds to the chain holds its lock, so that the chain cannot fork."""

HEAD_ROW = select(HEAD.c.entry, HEAD.c.number, HEAD.c.hash)
"""What a `Head` is made of."""

# Written out, not as parameters of a statement: databases use a partial index only where they see that it applies.
IS_DECISION = ENTRIES.c.kind == literal_column("'decision'")
IS_ANSWER = ENTRIES.c.kind == literal_column("'answer'")
HAS_ARRIVAL = ENTRIES.c.arrival != literal_column("''")

Index("decision_number", ENTRIES.c.number, unique=True, sqlite_where=IS_DECISION, postgresql_where=IS_DECISION)
Index("decision_at", ENTRIES.c.at, sqlite_where=IS_DECISION, postgresql_where=IS_DECISION)
Index(
    "decision_verdict",
    ENTRIES.c.verdict,
    ENTRIES.c.number,
    sqlite_where=IS_DECISION,
    postgresql_where=IS_DECISION,
)
Index("decision_arrival", ENTRIES.c.arrival, sqlite_where=HAS_ARRIVAL, postgresql_where=HAS_ARRIVAL)
Index("answer_number", ENTRIES.c.number, ENTRIES.c.entry, sqlite_where=IS_ANSWER, postgresql_where=IS_ANSWER)
