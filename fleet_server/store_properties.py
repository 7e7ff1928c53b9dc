"""Rows of properties: single values that belong to the whole store, as text by name."""

from sqlalchemy import Connection, select

from fedfleet.fleet_server.schema import property_
from fedfleet.fleet_server.upsert import insert

__all__ = ["get", "properties", "put"]


def properties(connection: Connection) -> dict[str, str]:
    """Return all of them."""
    rows = connection.execute(select(property_.c.name, property_.c.value))
    return {row.name: row.value for row in rows}


def get(connection: Connection, name: str) -> str | None:
    """Return one of them; None where it was never put."""
    return connection.execute(select(property_.c.value).where(property_.c.name == name)).scalar_one_or_none()


def put(connection: Connection, name: str, value: str) -> None:
    """Keep a value in place of the one before."""
    values = {"name": name, "value": value}
    statement = insert(connection, property_).values(**values)
    connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))
