"""A journal that is damaged is kept aside, and the vehicle begins anew; what may not go back is in ``floors``."""

import sqlite3
from pathlib import Path

__all__ = ["check", "is_damage", "set_aside"]

JOURNAL = "journal.sqlite"
PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)
"""Errors that say nothing against the file itself."""


class Damaged(sqlite3.DatabaseError):
    """The pages of a journal do not fit together."""


def is_damage(error: sqlite3.Error) -> bool:
    """Tell whether an error means that the file is no sound database."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return isinstance(error, sqlite3.DatabaseError) and code & 0xFF not in PASSING


def check(db: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError when pages or rows of a database do not fit together."""
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise Damaged(str(found)[:200])


def set_aside(folder: Path) -> Path:
    """Rename a journal's files, so that nothing of them is lost or read again; returns the new name."""
    number = 1
    while (kept := folder / f"journal.damaged-{number}.sqlite").exists():
        number += 1
    for ending in ("-wal", "-shm", ""):  # the journal itself last: until then it is not a whole one
        file = folder / f"{JOURNAL}{ending}"
        if file.exists():
            file.replace(folder / f"{kept.name}{ending}")
    return kept
