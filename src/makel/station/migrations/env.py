"""What alembic runs to bring a database up to date, in the transaction of `makel.station.database`."""

from alembic import context

from makel.station.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
