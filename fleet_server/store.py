"""The store: one SQLite file that is the truth. WAL, ``synchronous=FULL``: a commit survives kill -9 and power loss.

Rows are read and written by functions of a connection in ``store_updates``, ``store_rounds`` and ``store_models``;
here are opening, the lock that keeps a second server away, and transactions.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, inspect, select
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.pool import StaticPool

from fedfleet.fleet_server import migrations, schema
from fedfleet.fleet_server.upsert import insert
from fedfleet.protocol.errors import UsageError

__all__ = [
    "FILE",
    "START",
    "Store",
    "StoreFailed",
    "lock",
    "open_reader",
    "open_store",
    "properties",
    "save_start",
]

FILE = "store.sqlite"
LOCK_FILE = "store.lock"
START = "start"
BUSY_TIMEOUT_MS = 10_000


class StoreFailed(Exception):  # noqa: N818 - the state of a disk, not a mistake of anyone
    """The store cannot be written (a full disk, a failing one); the transaction left no trace."""


class Store:
    """An open store. ``write`` and ``read`` are transactions; close it to let another server in."""

    def __init__(self, engine: Engine, folder: Path, *, lock_file: int | None) -> None:
        self.folder = folder
        self._engine = engine
        self._lock_file = lock_file

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Run a transaction: committed to the disk when the block ends, undone when it raises.

        Raises StoreFailed, nothing applied, when the disk is full or fails.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as error:
            raise StoreFailed(f"store {self.folder / FILE}: {error.orig}") from error

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run a transaction that only reads, on one unchanging view."""
        with self._engine.connect().execution_options(reading=True) as connection, connection.begin():
            yield connection

    def change_stamp(self) -> int:
        """Return a number that changes when another process has changed the store."""
        with self._engine.connect().execution_options(reading=True) as connection:
            return int(connection.exec_driver_sql("PRAGMA data_version").scalar_one())

    def close(self) -> None:
        """Close the file and release the lock."""
        self._engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


def lock(folder: Path) -> int:
    """Take the exclusive lock of a store's folder; UsageError naming the process that holds it."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise UsageError(f"store {folder} is in use by process {holder}") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def open_store(folder: Path, *, fleet: str, task: str, exclusive: bool = True, max_pages: int = 0) -> Store:
    """Open the store of a server in ``folder``, making it when there is none.

    ``exclusive`` takes the lock of a running server; commands that add a row beside one do without. ``max_pages``
    bounds the file's pages as a full disk would (0: no bound). Raises UsageError: in use, another schema version,
    fleet or task, not a database.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock_file = lock(folder) if exclusive else None
    engine = _engine(f"sqlite:///{folder / FILE}", max_pages=max_pages)
    store = Store(engine, folder, lock_file=lock_file)
    try:
        _prepare(store, {"fleet": fleet, "task": task}, may_migrate=exclusive)
    except BaseException:
        store.close()
        raise
    return store


def open_reader(folder: Path) -> Store:
    """Open the store of ``folder`` for reading only, beside a running server; UsageError when there is none."""
    path = folder / FILE
    if not path.is_file():
        raise UsageError(f"{folder}: no fleet server has kept its store here ({FILE} is missing)")
    store = Store(_engine(f"sqlite:///file:{path}?mode=ro&uri=true", reader=True), folder, lock_file=None)
    try:
        with store.read() as connection:
            _check(connection, folder, {})
    except (DatabaseError, sqlite3.DatabaseError) as error:
        store.close()
        cause = error.orig if isinstance(error, DatabaseError) else error
        raise UsageError(f"store {path} cannot be read: {cause}") from error
    except UsageError:
        store.close()
        raise
    return store


def _engine(url: str, *, reader: bool = False, max_pages: int = 0) -> Engine:
    engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})

    def configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own type
        connection.isolation_level = None  # transactions begin below, not where the driver thinks
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        if not reader:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute("PRAGMA synchronous=FULL")
        if max_pages:
            cursor.execute(f"PRAGMA max_page_count={max_pages}")
        cursor.close()

    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    event.listen(engine, "connect", configure)
    event.listen(engine, "begin", begin)
    return engine


def _prepare(store: Store, expected: dict[str, str], *, may_migrate: bool) -> None:
    try:
        with store.write() as connection:
            if not inspect(connection).has_table(schema.property_.name):
                schema.metadata.create_all(connection)
                told = {"schema": str(migrations.VERSION), **expected}
                rows = [{"name": name, "value": value} for name, value in told.items()]
                connection.execute(schema.property_.insert(), rows)
            _check(connection, store.folder, expected, may_migrate=may_migrate)
    except (DatabaseError, sqlite3.DatabaseError) as error:
        cause = error.orig if isinstance(error, DatabaseError) else error
        raise UsageError(f"store {store.folder / FILE} cannot be opened: {cause}") from error


def save_start(connection: Connection, value: str) -> None:
    """Keep what the server says of its start (JSON), in place of what it said before."""
    values = {"name": START, "value": value}
    statement = insert(connection, schema.property_).values(**values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))


def properties(connection: Connection) -> dict[str, str]:
    """Return the store's properties: schema, fleet, task, and ``start``."""
    rows = connection.execute(select(schema.property_.c.name, schema.property_.c.value))
    return {row.name: row.value for row in rows}


def _check(
    connection: Connection, folder: Path, expected: dict[str, str], *, may_migrate: bool = False
) -> None:
    found = properties(connection)
    for name, value in expected.items():
        if found.get(name) != value:
            raise UsageError(f"store {folder}: expected {name} {value}, it has {found.get(name, 'none')}")
    version, known = int(found.get("schema", "0")), migrations.VERSION
    if version > known:
        told = f"has schema {version}, this fedfleet knows up to {known}"
        raise UsageError(
            f"store {folder}: {told}: start the fedfleet that wrote it, or restore an older backup"
        )
    if version < known:
        if not may_migrate:
            told = f"has schema {version}, this fedfleet needs {known}"
            raise UsageError(
                f"store {folder}: {told}: start its server once, which brings the store up to date"
            )
        migrations.migrate(connection, version)
