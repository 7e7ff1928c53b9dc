"""The store in a PostgreSQL database: the same tables, one server at a time by an advisory lock of its session.

Writers take turns, as in SQLite: each transaction that writes holds a second advisory lock. So what a function reads
before it writes is still so when it commits, and an operator's command may write beside the server.
"""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import StaticPool

from fedfleet.protocol.errors import UsageError

__all__ = ["Address", "ConnectionLost", "engine"]

SERVER_LOCK = 0x66656466_6C656574  # "fedfleet"
WRITER_LOCK = SERVER_LOCK + 1
CONNECT_TIMEOUT_S = 10
_HOLDER = text(
    "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
    "WHERE l.locktype = 'advisory' AND l.classid = :high AND l.objid = :low AND l.granted"
)


class ConnectionLost(Exception):  # noqa: N818 - the state of a network, not a mistake of anyone
    """The session that held the lock is gone: another server may have had the store since."""


@dataclass(frozen=True)
class Address:
    """Where the database is: ``postgresql://user@host:port/database``, and a file with the password if it needs one.

    Without a file, libpq's own ways hold: ``PGPASSWORD``, ``PGPASSFILE``, ``~/.pgpass``, a peer on a local socket.
    """

    url: str
    password_file: Path | None = None

    def __str__(self) -> str:
        return self.url

    def parsed(self) -> URL:
        """Return the URL with the password in it; UsageError for what is no such URL, or names a password."""
        try:
            url = make_url(self.url)
        except ArgumentError as error:
            raise UsageError(f"store.url {self.url!r}: not a URL") from error
        if url.get_backend_name() != "postgresql" or not url.database:
            raise UsageError(f"store.url {self.url!r}: expected postgresql://user@host:port/database")
        if url.password is not None or "password" in url.query:
            raise UsageError(
                "store.url: a password does not belong here: use store.password_file or PGPASSWORD"
            )
        if self.password_file is not None:
            try:
                url = url.set(password=self.password_file.read_text(encoding="utf-8").strip())
            except OSError as error:
                raise UsageError(f"store.password_file {self.password_file}: {error.strerror}") from error
        return url.set(drivername="postgresql+psycopg")


def engine(address: Address, *, exclusive: bool) -> Engine:
    """Return an engine with one session; an ``exclusive`` one holds the server's lock as long as it lives.

    Its first use raises UsageError naming who holds the lock, or SQLAlchemy's errors for a database that is not
    there. Once an exclusive session is lost, every further use raises ConnectionLost.
    """
    told = {"application_name": f"fedfleet {os.getpid()} on {platform.node()}"[:63]}
    arguments = {"connect_timeout": CONNECT_TIMEOUT_S, **told}
    try:
        made = create_engine(address.parsed(), poolclass=StaticPool, connect_args=arguments)
    except ImportError as error:
        raise UsageError(
            f"store {address}: psycopg is not installed: pip install 'fedfleet[scale]'"
        ) from error
    sessions = 0

    def configure(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's own type
        nonlocal sessions
        if exclusive and sessions:
            raise ConnectionLost(f"store {address}: the connection was lost")
        sessions += 1
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SET synchronous_commit = on")
            if cursor.execute("SHOW fsync").fetchone()[0] != "on":
                raise UsageError(
                    f"store {address}: its database runs with fsync off: nothing there is durable"
                )
        connection.autocommit = False

    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("reading", False):
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})")

    event.listen(made, "connect", configure)
    event.listen(made, "begin", begin)
    return made


def lock(made: Engine, address: Address) -> None:
    """Take the server's lock for the session of this engine; UsageError naming the process that holds it."""
    with made.connect().execution_options(reading=True) as connection:
        if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": SERVER_LOCK}).scalar_one():
            return
        halves = {"high": SERVER_LOCK >> 32, "low": SERVER_LOCK & 0xFFFFFFFF}
        holder = connection.execute(_HOLDER, halves).scalar() or "another process"
    raise UsageError(f"store {address} is in use by {holder}")
