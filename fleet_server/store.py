"""The store: the database that is the truth. A commit survives kill -9 and power loss.

One SQLite file in the server's folder, or a PostgreSQL database: ``store.json`` in the folder says which, so that
whoever reads the store beside the server finds it. Large updates are files in the same folder (`store_files`). Rows
are read and written by functions of a connection in the other ``store_…`` files; here are opening, schema versions
and transactions.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect
from sqlalchemy.exc import DBAPIError, OperationalError

from fedfleet.fleet_server import (
    migrations,
    schema,
    store_postgres,
    store_properties,
    store_published,
    store_sqlite,
    store_updates,
)
from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.stopwatch import Watch, unwatched
from fedfleet.fleet_server.store_files import Files, FilesFailed
from fedfleet.fleet_server.store_postgres import Address, ConnectionLost
from fedfleet.fleet_server.store_sqlite import FILE
from fedfleet.protocol.errors import UsageError

__all__ = [
    "ADDRESS_FILE",
    "FILE",
    "START",
    "Store",
    "StoreFailed",
    "StoreLost",
    "address_of",
    "open_older",
    "open_reader",
    "open_store",
    "save_start",
]

START = "start"
ADDRESS_FILE = "store.json"


class StoreFailed(Exception):  # noqa: N818 - the state of a disk, not a mistake of anyone
    """The store cannot be written (a full disk, a failing one); the transaction left no trace."""


class StoreLost(StoreFailed):
    """The store is out of reach, and what is known of it may be out of date: open it anew."""


class Store:
    """An open store. ``write`` and ``read`` are transactions; close it to let another server in.

    ``folder`` is the server's, ``files`` are large updates in it, ``name`` says in messages which store it is,
    ``watch`` measures commits, ``commits`` counts them.
    """

    def __init__(self, engine: Engine, folder: Path, *, name: str, lock_file: int | None = None) -> None:
        self.folder, self.name = folder, name
        self.files = Files(folder)
        self.watch: Watch = unwatched
        self.commits = 0
        self._engine = engine
        self._lock_file = lock_file

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Run a transaction: committed to the disk when the block ends, undone when it raises.

        Raises StoreFailed, nothing applied, when the disk is full or fails; StoreLost when the database is gone.
        """
        is_committing = False
        try:
            with self._connect() as connection, connection.begin() as transaction:
                yield connection
                with self.watch("commit"):
                    self.files.sync()
                    is_committing = True
                    transaction.commit()
                self.commits += 1
        except BaseException as error:
            self.files.undo(is_certain=not is_committing)
            if (failed := self._failed(error)) is not None:
                raise failed from error
            raise
        self.files.keep()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run a transaction that only reads, on one unchanging view; StoreLost when the database is gone."""
        try:
            with self._connect(reading=True) as connection, connection.begin():
                yield connection
        except (ConnectionLost, DBAPIError) as error:
            failed = self._failed(error)
            if isinstance(failed, StoreLost):
                raise failed from error
            raise

    def _connect(self, *, reading: bool = False) -> Connection:
        return self._engine.connect().execution_options(reading=reading, files=self.files)

    def _failed(self, error: BaseException) -> "StoreFailed | None":
        """Return what an error says of the store; None when it says nothing."""
        if isinstance(error, ConnectionLost):
            return StoreLost(str(error))
        if isinstance(error, FilesFailed):
            return StoreFailed(f"store {error}")
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            return StoreLost(f"store {self.name}: the connection was lost: {_cause(error)}")
        if isinstance(error, OperationalError):
            return StoreFailed(f"store {self.name}: {_cause(error)}")
        return None

    def close(self) -> None:
        """Close the database and release the lock."""
        self._engine.dispose()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


def open_store(
    folder: Path,
    *,
    fleet: str,
    task: str,
    address: Address | None = None,
    exclusive: bool = True,
    max_pages: int = 0,
) -> Store:
    """Open the store of a server in ``folder``, making it when there is none; with ``address`` in PostgreSQL.

    ``exclusive`` takes the lock of a running server, brings an older store up to date, refuses one that is behind what
    was published (see `open_older`) and removes files that no row names; commands that add a row beside one do
    without. ``max_pages`` bounds the SQLite file's pages as a full disk would (0: no bound). Raises UsageError: in
    use, behind, a newer schema, another fleet or task, not a database; StoreFailed.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not exclusive:
        address = address or address_of(folder)
        store = _open(folder, address, exclusive=False, max_pages=max_pages)
        return _ready(store, {"fleet": fleet, "task": task}, may_migrate=False)
    store = _open_exclusive(folder, {"fleet": fleet, "task": task}, address=address, max_pages=max_pages)
    try:
        with store.read() as connection:
            store_published.check(folder, connection, store=store.name)
            store.files.sweep(store_updates.named_files(connection))
    except BaseException:
        store.close()
        raise
    return store


def open_older(folder: Path, *, fleet: str, task: str, address: Address | None = None) -> Store:
    """Open a store as a server does, also one that is behind what was published, to step it ahead."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _open_exclusive(folder, {"fleet": fleet, "task": task}, address=address)


def _open_exclusive(
    folder: Path, expected: dict[str, str], *, address: Address | None, max_pages: int = 0
) -> Store:
    _check_address(folder, address)
    store = _ready(_open(folder, address, exclusive=True, max_pages=max_pages), expected, may_migrate=True)
    if address is not None:
        _note_address(folder, address)
    return store


def _ready(store: Store, expected: dict[str, str], *, may_migrate: bool) -> Store:
    try:
        _prepare(store, expected, may_migrate=may_migrate)
    except BaseException:
        store.close()
        raise
    return store


def _open(folder: Path, address: Address | None, *, exclusive: bool, max_pages: int) -> Store:
    if address is None:
        lock_file = store_sqlite.lock(folder) if exclusive else None
        path = folder / FILE
        store_sqlite.keep_private(path)
        return Store(
            store_sqlite.engine(path, max_pages=max_pages), folder, name=str(path), lock_file=lock_file
        )
    engine = store_postgres.engine(address, exclusive=exclusive)
    if exclusive:
        try:
            store_postgres.lock(engine, address)
        except DBAPIError as error:
            raise UsageError(f"store {address} cannot be opened: {_cause(error)}") from error
        except BaseException:
            engine.dispose()
            raise
    return Store(engine, folder, name=str(address))


def open_reader(folder: Path) -> Store:
    """Open the store of ``folder`` for reading only, beside a running server; UsageError when there is none."""
    address, path = address_of(folder), folder / FILE
    if address is None and not path.is_file():
        raise UsageError(f"{folder}: no fleet server has kept its store here ({FILE} is missing)")
    if address is None:
        store = Store(store_sqlite.reader(path), folder, name=str(path))
    else:
        store = Store(store_postgres.engine(address, exclusive=False), folder, name=str(address))
    try:
        with store.read() as connection:
            _check(connection, store.name, {})
    except (DBAPIError, sqlite3.DatabaseError, StoreLost) as error:
        store.close()
        raise UsageError(f"store {store.name} cannot be read: {_cause(error)}") from error
    except UsageError:
        store.close()
        raise
    return store


def address_of(folder: Path) -> Address | None:
    """Return the PostgreSQL database that the server of this folder uses; None for the SQLite file in it."""
    try:
        told = json.loads((folder / ADDRESS_FILE).read_bytes())
        return Address(told["url"], Path(told["password_file"]) if told["password_file"] else None)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / ADDRESS_FILE}: cannot be read: {error}") from error


def _check_address(folder: Path, address: Address | None) -> None:
    """Raise UsageError when this folder's store was kept elsewhere: a server must not begin anew by mistake."""
    before = address_of(folder)
    if address is None and before is not None:
        told = f"its store is {before}, the configuration names none"
        raise UsageError(f"{folder}: {told}: set store.url, or remove {ADDRESS_FILE} to begin a new one")
    if address is not None and (folder / FILE).exists():
        raise UsageError(f"{folder}: holds {FILE}, the configuration names {address}: use another folder")
    if address is not None and before is not None and before.url != address.url:
        told = f"its store is {before}, the configuration names {address}"
        raise UsageError(f"{folder}: {told}: move the data, then remove {ADDRESS_FILE}")


def _note_address(folder: Path, address: Address) -> None:
    file = address.password_file
    told = json.dumps({"url": address.url, "password_file": str(file.resolve()) if file else None})
    write_file(folder / ADDRESS_FILE, told.encode())


def _prepare(store: Store, expected: dict[str, str], *, may_migrate: bool) -> None:
    try:
        with store.write() as connection:
            if not inspect(connection).has_table(schema.property_.name):
                schema.metadata.create_all(connection)
                told = {"schema": str(migrations.VERSION), **expected}
                rows = [{"name": name, "value": value} for name, value in told.items()]
                connection.execute(schema.property_.insert(), rows)
            _check(connection, store.name, expected, may_migrate=may_migrate)
    except (DBAPIError, sqlite3.DatabaseError, StoreLost) as error:
        raise UsageError(f"store {store.name} cannot be opened: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def save_start(connection: Connection, value: str) -> None:
    """Keep what the server says of its start (JSON), in place of what it said before."""
    store_properties.put(connection, START, value)


def _check(
    connection: Connection, store: str, expected: dict[str, str], *, may_migrate: bool = False
) -> None:
    found = store_properties.properties(connection)
    for name, value in expected.items():
        if found.get(name) != value:
            raise UsageError(f"store {store}: expected {name} {value}, it has {found.get(name, 'none')}")
    version, known = int(found.get("schema", "0")), migrations.VERSION
    if version > known:
        told = f"has schema {version}, this fedfleet knows up to {known}"
        raise UsageError(
            f"store {store}: {told}: start the fedfleet that wrote it, or restore an older backup"
        )
    if version < known:
        if not may_migrate:
            told = f"has schema {version}, this fedfleet needs {known}"
            raise UsageError(
                f"store {store}: {told}: start its server once, which brings the store up to date"
            )
        migrations.migrate(connection, version)
