"""Connections to the database of the record: an SQLite file or a PostgreSQL server, opened, migrated, and found again.

SQLite runs in WAL mode with synchronous=FULL: readers never wait for the writer, and what was committed is on the disk
even when the power fails. NORMAL would survive a killed process, but a power cut takes the last commits with it, and a
station is switched off at the main switch. FULL costs one flush of the disk a commit, which `Store` shares among all
callers that wait.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from makel.errors import MissingExtraError, StoreError, UsageError

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x6D616B656C  # "makel": the number of an advisory lock of PostgreSQL
_migrating = threading.Lock()  # alembic keeps its context in module globals


class Database:
    """An SQLite file or a PostgreSQL database. Thread-safe.

    After a StoreError the same object works again as soon as its cause is away.
    """

    def __init__(
        self, where: str | Path, *, create: bool = True, read_only: bool = False, timeout_s: float = 5.0
    ) -> None:
        """Open and migrate, or where nothing may be written look whether that is needed; see `Store.open`."""
        self._read_only = read_only
        self._timeout_s = timeout_s
        self._path: Path | None = None
        self._file: tuple[int, int] | None = None
        if str(where).startswith(("postgresql:", "postgresql+", "postgres:")):
            self.name, self._engine = self._postgresql(str(where))
        elif "://" in str(where):
            raise UsageError(f"{_without_password(str(where))}: a record is the path of a file or postgresql://...")
        else:
            self._path = Path(where).absolute()
            self.name, self._engine = str(where), self._sqlite(self._path, create and not read_only)
        event.listen(self._engine, "begin", self._begin)
        try:
            self._check_revision() if read_only else self._migrate()
        except BaseException:
            self._engine.dispose()
            raise
        self._file = self._identity()

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the database.

        Raises:
            StoreError: The database cannot be read now.
        """
        with self._explained():
            self._check_in_place()
            with self._engine.connect() as connection:
                yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """The one connection that may write, among all processes; commits at the end, and is then on the disk.

        Raises:
            StoreError: The database cannot be written now; nothing was.
        """
        with self._explained():
            file = self._check_in_place()
            with self._writing_connection() as connection:
                yield connection
            # On Linux an open file can be deleted or replaced; a commit into it would be lost without a word.
            if self._identity() != file:
                raise StoreError(f"{self.name} was replaced by another file while it was written")

    def own_check(self) -> str:
        """What the database's own check finds wrong with its pages, and its indexes beside its rows; "" for nothing.

        PostgreSQL has no such check for whoever reads it: there, its administrators have `pg_amcheck`.

        Raises:
            StoreError: The database cannot be read now.
        """
        if self._path is None:
            return ""
        with self.read() as connection:
            try:
                found = [str(line) for line in connection.exec_driver_sql("PRAGMA integrity_check(3)").scalars()]
            except DBAPIError as error:
                if not str(getattr(error.orig, "sqlite_errorname", "")).startswith("SQLITE_CORRUPT"):
                    raise
                found = [str(error.orig)]
        return "" if found == ["ok"] else "; ".join(" ".join(line.split()) for line in found)

    def _sqlite(self, path: Path, create: bool) -> Engine:
        if not path.is_file():
            if not create:
                raise StoreError(f"{path}: there is no record here; give the path of a station's store.sqlite")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"{path.parent} cannot be made: {error.strerror}") from error

        def opened(how: str, *statements: str) -> sqlite3.Connection:
            connection = sqlite3.connect(
                f"{path.as_uri()}?{how}",
                uri=True,
                timeout=self._timeout_s,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                # Damage may have left what is no text: it is to be found, not to stop whoever looks for it.
                connection.text_factory = lambda content: content.decode("utf-8", "surrogateescape")
                for statement in statements:
                    connection.execute(statement)
            except BaseException:
                connection.close()
                raise
            return connection

        def connect() -> sqlite3.Connection:
            if not self._read_only:
                # Only while opening may a missing file be made: a later one was taken away, and must not come back
                # empty.
                mode = "rwc" if create and self._file is None else "rw"
                return opened(f"mode={mode}", "PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL")
            try:
                # With "ro" SQLite would leave beside the record what it takes away again in this way.
                return opened("mode=rw", "PRAGMA query_only=ON", "SELECT 1 FROM sqlite_master")
            except sqlite3.OperationalError as error:
                if not error.sqlite_errorname.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY")):
                    raise
            # In WAL mode even a reader writes a file beside it, unless it is told that nobody writes here.
            log = path.with_name(f"{path.name}-wal")
            if log.is_file() and log.stat().st_size:
                raise StoreError(
                    f"{path} cannot be read here: what was written last is still in {log.name} beside it, and SQLite "
                    "takes it from there only where it may write. Copy both to another folder"
                )
            return opened("mode=ro&immutable=1", "SELECT 1 FROM sqlite_master")

        return create_engine("sqlite://", creator=connect, poolclass=_queue_pool(), max_overflow=-1)

    def _postgresql(self, where: str) -> tuple[str, Engine]:
        if find_spec("psycopg") is None:
            raise MissingExtraError("a record on PostgreSQL", "postgresql")
        try:
            url = make_url(where).set(drivername="postgresql+psycopg")
        except ArgumentError as error:
            raise UsageError(f"{_without_password(where)} is no URL of a database: {error}") from None
        wait_ms = int(self._timeout_s * 1000)
        options = url.query.get("options", "")
        options = options if isinstance(options, str) else " ".join(options)
        options += " -c default_transaction_read_only=on" if self._read_only else ""
        engine = create_engine(
            url,
            pool_pre_ping=True,  # a server that was restarted costs no failed call
            max_overflow=-1,
            connect_args={
                "connect_timeout": max(2, int(self._timeout_s)),
                # A server that lost its power does not say so: without these, a call would wait for it a quarter hour.
                "tcp_user_timeout": 2 * wait_ms,
                "keepalives_idle": 5,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "options": f"{options} -c lock_timeout={wait_ms} -c synchronous_commit=on -c timezone=UTC".strip(),
            },
        )
        return url.set(drivername="postgresql").render_as_string(hide_password=True), engine

    def _begin(self, connection: Connection) -> None:
        if self._path is not None:
            writes = connection.get_execution_options().get("makel_writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with self._explained(), _migrating, self._writing_connection() as connection:
            if self._path is None:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise StoreError(f"{self.name} was written by a newer makel ({error}): update makel") from error

    def _check_revision(self) -> None:
        """Make sure that the tables are those of this makel, where they may not be brought up to date."""
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        scripts = ScriptDirectory(str(MIGRATIONS))
        with self._explained(), self._engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found is None:
            raise StoreError(f"{self.name} holds no record of makel: give a station's folder, or its store.sqlite")
        if found not in {script.revision for script in scripts.walk_revisions()}:
            raise StoreError(f"{self.name} was written by a newer makel ({found}): update makel")
        if found != scripts.get_current_head():
            raise StoreError(f"{self.name} was written by an older makel: serve it once, which brings it up to date")

    @contextmanager
    def _writing_connection(self) -> Iterator[Connection]:
        with self._engine.connect().execution_options(makel_writes=True) as connection, connection.begin():
            yield connection

    def _identity(self) -> tuple[int, int] | None:
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError as error:
            raise StoreError(f"{self.name} is gone ({error.strerror}): bring it back, or start a new record") from error
        return found.st_dev, found.st_ino

    def _check_in_place(self) -> tuple[int, int] | None:
        """Make sure that the path still names the file the connections have open; gives the file."""
        found = self._identity()
        if found != self._file:
            self._engine.dispose()  # before others take the new file for the one they have open
            self._file = found
            raise StoreError(f"{self.name} was replaced by another file; the next call opens that one")
        return found

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:  # SQLite quotes its damaged schema, and Python cannot read the message
            raise StoreError(f"{self.name}: {_WORDS['SQLITE_CORRUPT']}") from error
        except SQLAlchemyError as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            self._engine.dispose()  # what the connections know may have gone with the cause
            raise StoreError(f"{self.name}: {_explain(reason)}") from error


def _explain(error: BaseException | None) -> str:
    """What went wrong and what to do, in one line, from the database's own error."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    code = getattr(error, "sqlite_errorname", None) or getattr(error, "sqlstate", None) or ""
    for start, words in _WORDS.items():
        if code.startswith(start):
            return f"{words} ({said})"
    if type(error).__name__ == "OperationalError":
        return f"the database cannot be reached or used now ({said})"
    return f"the database refused ({said})"


_WORDS = {
    "SQLITE_BUSY": "another program holds the record locked; it is free again once that one is done",
    "SQLITE_LOCKED": "another program holds the record locked; it is free again once that one is done",
    "SQLITE_FULL": "the disk is full; free some space",
    "SQLITE_IOERR": "the disk cannot be read or written, or is full; look at its space and health",
    "SQLITE_CANTOPEN": "the file cannot be opened; look at the folder and its permissions",
    "SQLITE_READONLY": "the file may not be written; look at its permissions",
    "SQLITE_PERM": "the file may not be opened; look at its permissions",
    "SQLITE_CORRUPT": "the file is damaged; bring back a copy",
    "SQLITE_NOTADB": "the file is no SQLite database",
    "55P03": "another program holds the record locked; it is free again once that one is done",
    "53100": "the disk of the server is full; free some space",
    "28": "the server does not let this user in; look at user and password",
    "3D000": "the server has no such database; make it with createdb",
    "42501": "this user may not do that; grant it the tables of the record",
}


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url.split("://")[0] + "://..."


def _queue_pool() -> Any:
    from sqlalchemy.pool import QueuePool

    return QueuePool
