"""Inserts in the words of the store's database: ``ON CONFLICT`` is alike in SQLite and PostgreSQL, not portable."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["Insert", "insert", "insert_many"]

Insert = sqlite.Insert | postgresql.Insert


def insert(connection: Connection, table: Table) -> Insert:
    """Return an insert that knows ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def insert_many(connection: Connection, table: Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert many rows, each with a value for every column: the statement is written once, the driver gets it as it is.

    The values must be what the driver takes: numbers, text, bytes, None.
    """
    statement, names = _statement(connection.dialect, table)
    if names is None:
        connection.exec_driver_sql(statement, [dict(row) for row in rows])
    else:
        connection.exec_driver_sql(statement, [tuple([row[name] for name in names]) for row in rows])


@lru_cache(maxsize=64)
def _statement(dialect: Dialect, table: Table) -> tuple[str, tuple[str, ...] | None]:
    """Return the insert of all columns, and the order of its values; None where the driver takes them by name."""
    compiled = table.insert().compile(dialect=dialect, column_keys=[column.name for column in table.columns])
    return str(compiled), tuple(compiled.positiontup) if compiled.positiontup else None
