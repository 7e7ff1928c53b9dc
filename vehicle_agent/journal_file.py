"""The file of a journal: opened, brought up to date, checked, or set aside; transactions that are whole or not at all.

SQLite with WAL and synchronous=FULL. What fails in it is a JournalError, reading or writing.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import SigningKey
from fedfleet.vehicle_agent import salvage
from fedfleet.vehicle_agent.floors import Floors, FloorsFile
from fedfleet.vehicle_agent.keys import KEY_FILE, load_or_create, lock
from fedfleet.vehicle_agent.schema import STEPS, TABLES, VERSION

__all__ = ["JournalError", "JournalFile"]

REASONS = {
    sqlite3.SQLITE_FULL: "disk-full",
    sqlite3.SQLITE_CORRUPT: "journal-corrupt",
    sqlite3.SQLITE_NOTADB: "journal-corrupt",
}


LOST_KEY = "0" * 64
"""In the floors, when the key that a vehicle enrolled with was lost before it was noted there."""


class JournalError(Exception):
    """The journal could not be read or written; nothing of a change remains. ``reason`` is a short code."""

    def __init__(self, reason: str, detail: str) -> None:
        """Keep the reason and the detail; ``str()`` joins them."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class JournalFile:
    """The open file; one thread of one process at a time."""

    def __init__(
        self, folder: Path, *, vehicle: str, task: str, epoch: int, seed: bytes, has_code: bool = False
    ) -> None:
        """Open the journal in ``folder``, or create it with this epoch (64 bits) and this seed of its key.

        ``has_code``: if the key that the vehicle enrolled with is gone, another may take its place (``rekeyed``).

        ``salvaged`` is where a damaged one was put, in whose place this one begins anew; None mostly. ``restored``
        has the last update's number here and the last that was used, when this one is an older copy.
        Raises UsageError when another process holds it, or it is another vehicle's.
        """
        self._folder, self._task, self._vehicle = folder, task, vehicle
        self.salvaged: Path | None = None
        self.restored: tuple[int, int] | None = None
        held = ExitStack()  # the lock, let go when anything of it fails
        try:
            with held:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._lock = lock(folder, vehicle)
                held.callback(os.close, self._lock)
                self.floors = FloorsFile(folder)
                self.key = self._key(seed, has_code=has_code)
                self._begin(epoch)
                held.pop_all()
        except (OSError, sqlite3.Error, JournalError) as error:
            raise UsageError(f"vehicle {vehicle}: journal {folder} cannot be opened: {error}") from error

    def _key(self, seed: bytes, *, has_code: bool) -> SigningKey:
        had_one = (self._folder / KEY_FILE).exists()
        key = load_or_create(self._folder, draw=lambda _: seed, floors=self.floors, has_code=has_code)
        if (
            self.floors.now.enrolled and not self.floors.now.vehicle_key
        ):  # a program that kept none enrolled it
            known = key.public.hex() if had_one else LOST_KEY
            self.floors.change(replace(self.floors.now, vehicle_key=known))
        return key

    def _begin(self, epoch: int) -> None:
        """Open the file, or a fresh one in the place of a damaged one."""
        try:
            self._open(epoch)
        except (JournalError, sqlite3.Error, ValueError) as error:
            cause = error.__cause__ if isinstance(error, JournalError) else error
            if isinstance(cause, sqlite3.Error) and not salvage.is_damage(cause):
                raise cause from error
            self._db.close()
            self.salvaged = salvage.set_aside(self._folder)
            self._open(epoch)
        self._compare(epoch)

    @property
    def rekeyed(self) -> bool:
        """Whether the server knows this vehicle by another key than it has now."""
        known = self.floors.now
        return known.enrolled and known.vehicle_key not in {"", self.key.public.hex()}

    def _open(self, epoch: int) -> None:
        path = self._folder / "journal.sqlite"
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        elif path.is_file() and path.stat().st_mode & 0o077:  # made by an earlier version, or copied
            path.chmod(0o600)
        self._db = sqlite3.connect(
            path, isolation_level=None, cached_statements=0
        )  # a statement that is kept keeps the last vector that it wrote
        self._prepare(epoch)
        self.epoch, _ = int(self._meta("epoch"), 16), self.sequence  # ValueError: it has lost them

    def _compare(self, epoch: int) -> None:
        """Begin a new epoch when numbers were used that the journal does not know: it is an older copy of itself."""
        last = self.sequence
        used = self.floors.now.sequences.get(f"{self.epoch:016x}", last)
        if used > last:
            self.restored = (last, used)
            self.begin_epoch(epoch, last=max(last, used))
        else:
            self._raise(self.floors.now.counting(self.epoch, last))

    @property
    def sequence(self) -> int:
        """The number of the last update."""
        return int(self._meta("sequence"))

    def begin_epoch(self, epoch: int, *, last: int | None = None) -> None:
        """Number what follows under another epoch (64 bits), from ``last`` + 1; what waits keeps its id."""
        number = self.sequence if last is None else last
        with self._change():
            self._set("epoch", f"{epoch:016x}")
            self._set("sequence", str(number))
        self.epoch = epoch
        self._raise(self.floors.now.counting(epoch, number))

    def _raise(self, floors: Floors) -> None:
        """Keep these floors; JournalError when they cannot be written."""
        try:
            self.floors.change(floors)
        except OSError as error:
            reason = "disk-full" if error.errno == errno.ENOSPC else "floors-failed"
            where = f"vehicle {self._vehicle}: floors in {self._folder} cannot be written"
            raise JournalError(reason, f"{where}: {error.strerror}; inference goes on") from error

    def _prepare(self, epoch: int) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-128", "wal_autocheckpoint=256"):
            self._db.execute(f"PRAGMA {pragma}")
        salvage.check(self._db)
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            first = {"vehicle": self._vehicle, "epoch": f"{epoch:016x}", "session": "0", "sequence": "0"}
            known = self.floors.now
            if known.enrolled:
                first |= {"server_key": known.server_key, "enrolled": "1"}
            values = ",".join(f"('{name}', '{value}')" for name, value in first.items())
            self._db.executescript(
                f"BEGIN IMMEDIATE; {TABLES} INSERT INTO meta VALUES {values}; PRAGMA user_version={VERSION}; COMMIT;"  # noqa: S608
            )
        elif version < VERSION:
            steps = "".join(STEPS[version - 1 :])
            self._db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version={VERSION}; COMMIT;")
        elif version > VERSION:
            raise UsageError(f"journal {self._folder} has version {version}, this program writes {VERSION}")
        if not self._meta("vehicle"):
            raise ValueError("the journal does not say whose it is")
        if self._meta("vehicle") != self._vehicle:
            raise UsageError(
                f"journal {self._folder} is that of vehicle {self._meta('vehicle')}, not {self._vehicle}"
            )

    def close(self) -> None:
        """Let the journal go; another process may open it."""
        self._db.close()
        os.close(self._lock)

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return what a query finds."""
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._failure(error, "read") from error

    def _row(self, query: str, *values: object) -> tuple[Any, ...] | None:
        """Return the first row that a query finds."""
        return next(iter(self._rows(query, *values)), None)

    def _meta(self, name: str) -> str:
        row = self._row("SELECT value FROM meta WHERE name = ?", name)
        return str(row[0]) if row else ""

    def _set(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Run one transaction, whole or not at all."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
            try:
                self._db.execute("COMMIT")
            except sqlite3.Error:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise self._failure(error, "written") from error

    def _failure(self, error: sqlite3.DatabaseError, what: str) -> JournalError:
        code = getattr(
            error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT
        )  # without one: bytes of no such type
        reason = REASONS.get(code & 0xFF, "journal-failed")
        where = f"vehicle {self._vehicle}: journal {self._folder} cannot be {what}"
        text = f"{where}: {error}; inference goes on, what was learned is given up"
        return JournalError(reason, text)
