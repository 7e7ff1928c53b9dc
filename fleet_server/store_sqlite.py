"""The store in one SQLite file: WAL, ``synchronous=FULL``, a lock file that keeps a second server away."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from fedfleet.protocol.errors import UsageError

__all__ = ["FILE", "LOCK_FILE", "engine", "keep_private", "lock", "reader"]

FILE = "store.sqlite"
LOCK_FILE = "store.lock"
BUSY_TIMEOUT_MS = 10_000


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


def keep_private(path: Path) -> None:
    """Make the file, if there is none, and see that only its owner may read it; its log gets the same mode.

    Raises UsageError where that is not possible.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        for name in ("", "-wal", "-shm"):
            file = path.with_name(path.name + name)
            with suppress(FileNotFoundError):
                if file.stat().st_mode & 0o077:  # made by an earlier version, or copied
                    file.chmod(0o600)
    except OSError as error:
        raise UsageError(f"store {path} cannot be opened: {error.strerror}") from error


def engine(path: Path, *, max_pages: int = 0) -> Engine:
    """Return the engine that reads and writes the file, making it when there is none.

    ``max_pages`` bounds the file's pages as a full disk would (0: no bound).
    """
    pragmas = ["journal_mode=WAL", "synchronous=FULL"]
    if max_pages:
        pragmas.append(f"max_page_count={max_pages}")
    return _engine(f"sqlite:///{path}", pragmas)


def reader(path: Path) -> Engine:
    """Return an engine that only reads the file, beside a running server."""
    return _engine(f"sqlite:///file:{path}?mode=ro&uri=true", [])


def _engine(url: str, pragmas: list[str]) -> Engine:
    made = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})

    def configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own type
        connection.isolation_level = None  # transactions begin below, not where the driver thinks
        cursor = connection.cursor()
        for pragma in (f"busy_timeout={BUSY_TIMEOUT_MS}", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    event.listen(made, "connect", configure)
    event.listen(made, "begin", begin)
    return made
