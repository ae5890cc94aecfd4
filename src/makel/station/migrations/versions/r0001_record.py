"""The chain of entries, its head, and the indexes that find decisions."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    position = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "entries",
        sa.Column("entry", position, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("number", sa.BigInteger),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("model", sa.Text),
        sa.Column("verdict", sa.String(6)),
        sa.Column("name", sa.Text),
        sa.Column("arrival", sa.String(64)),
        sa.Column("answer", sa.String(6)),
    )
    head = op.create_table(
        "head",
        sa.Column("one", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("entry", sa.BigInteger, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"one": 1, "entry": 0, "number": 0, "hash": "0" * 64}])
    for name, columns, unique, where in (
        ("decision_number", ["number"], True, "kind = 'decision'"),
        ("decision_at", ["at"], False, "kind = 'decision'"),
        ("decision_verdict", ["verdict", "number"], False, "kind = 'decision'"),
        ("decision_arrival", ["arrival"], False, "arrival != ''"),
        ("answer_number", ["number", "entry"], False, "kind = 'answer'"),
    ):
        only = sa.text(where)
        op.create_index(name, "entries", columns, unique=unique, sqlite_where=only, postgresql_where=only)


def downgrade() -> None:
    """A record is never taken back to an older form: that would lose what it holds."""
    raise NotImplementedError("a record has no way back: keep a copy from before the update")
