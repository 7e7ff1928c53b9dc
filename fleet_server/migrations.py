"""The versions of the store: steps that bring an older one to the schema of today, each in the opening's transaction.

A change of `schema` comes with one step appended to ``STEPS`` (never edit or reorder one). A new column is nullable or
has a ``server_default``, so that old rows get a value: ``add_column(schema.round_.c.late_policy)``.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Connection, Index, Table, inspect
from sqlalchemy.schema import CreateColumn

from fedfleet.fleet_server import schema

__all__ = ["STEPS", "VERSION", "Step", "add_column", "add_index", "add_table", "drop_table", "migrate"]

Step = Callable[[Connection], None]


def add_column(column: Column[Any]) -> Step:
    """Return the step that adds a column of `schema` to the table of an older store, unless it is there."""

    def step(connection: Connection) -> None:
        table = column.table
        assert isinstance(table, Table)  # noqa: S101 - a column of the schema
        if column.name in {each["name"] for each in inspect(connection).get_columns(table.name)}:
            return
        dialect = connection.dialect
        name = dialect.identifier_preparer.format_table(table)
        told = CreateColumn(column).compile(dialect=dialect)
        connection.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {told}")

    return step


def add_table(table: Table) -> Step:
    """Return the step that makes a table of `schema`, with its indexes, in an older store."""

    def step(connection: Connection) -> None:
        table.create(connection, checkfirst=True)

    return step


def add_index(index: Index) -> Step:
    """Return the step that makes an index of `schema` in an older store, unless it is there."""

    def step(connection: Connection) -> None:
        index.create(connection, checkfirst=True)

    return step


def drop_table(name: str) -> Step:
    """Return the step that drops a table which `schema` has no more, with what is in it."""

    def step(connection: Connection) -> None:
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")

    return step


STEPS: tuple[Step, ...] = (
    add_table(schema.pack),
    add_table(schema.regional),
    add_column(schema.vehicle.c.region_before),
    add_column(schema.vehicle.c.moved_round),
    add_column(schema.model.c.step_norm),
    add_table(schema.variant),
    add_index(schema.pending_updates),
    add_index(schema.carried_updates),
    add_index(schema.payload_updates),
    add_index(schema.rounds_by_state),
    drop_table("chunk"),  # pieces of updates are files since; their vehicles send them again
    add_column(schema.update.c.payload_at),
    add_index(schema.file_updates),
    add_column(schema.vehicle.c.metrics_before),
    add_column(schema.update.c.norm),
    add_column(schema.vehicle.c.process),
    add_column(schema.vehicle.c.process_before),
    add_column(schema.vehicle.c.shared_at_s),
    add_table(schema.made_code),
    add_table(schema.guess),
)
"""Step i leads from version i + 1 to i + 2. Append only."""

VERSION = 1 + len(STEPS)


def migrate(connection: Connection, found: int) -> None:
    """Bring a store of the older version ``found`` to `VERSION`; undone with its transaction when a step fails."""
    for step in STEPS[found - 1 :]:
        step(connection)
    values = {"value": str(VERSION)}
    connection.execute(schema.property_.update().where(schema.property_.c.name == "schema").values(**values))
