"""A store of an older version is brought up to date when its server starts, and only then; a newer one is refused."""

import sqlite3
from pathlib import Path

import pytest
from server_world import EPOCH, FLEET
from sqlalchemy import Connection, inspect

from fedfleet.fleet_server import migrations, store_models, store_quarantine, store_updates, store_vehicles
from fedfleet.fleet_server.store import FILE, StoreFailed, open_reader, open_store
from fedfleet.fleet_server.store_properties import properties
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId

GOLDEN = Path(__file__).parent / "golden" / "store-v1.sql"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The folder of a store that version 1 wrote."""
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.executescript(GOLDEN.read_text(encoding="utf-8"))
    connection.close()
    return tmp_path


def shape(connection: Connection) -> dict[str, set[tuple[str, str, bool]]]:
    found = inspect(connection)
    return {
        table: {
            (column["name"], str(column["type"]), bool(column["nullable"]))
            for column in found.get_columns(table)
        }
        for table in found.get_table_names()
    }


def indexes(connection: Connection) -> dict[str, set[str | None]]:
    found = inspect(connection)
    return {table: {each["name"] for each in found.get_indexes(table)} for table in found.get_table_names()}


def test_an_old_store_is_brought_up_to_date_and_keeps_what_it_has(old: Path, tmp_path: Path) -> None:
    # when its server starts
    store = open_store(old, fleet=FLEET, task="linear_test")
    fresh = open_store(tmp_path / "fresh", fleet=FLEET, task="linear_test")
    # then it looks like one that was made today, and nothing is lost
    with store.read() as connection, fresh.read() as expected:
        assert shape(connection) == shape(expected)
        assert indexes(connection) == indexes(expected)
        assert properties(connection)["schema"] == str(migrations.VERSION)
        assert store_updates.known(connection, UpdateId("v-1", EPOCH, 5)) is not None
        assert store_vehicles.regions(connection) == {"v-1": "north", "v-2": "north"}
        assert [one.reason for one in store_quarantine.quarantined(connection, limit=9)] == ["truncated"]
        model = store_models.newest_model(connection)
        assert model is not None
        assert model.optimizer["momentum"].tolist() == [0, 1, 2, 3]
    fresh.close()
    store.close()
    # and it opens again, as it is
    open_store(old, fleet=FLEET, task="linear_test").close()


@pytest.mark.skipif(not migrations.STEPS, reason="there is one version only")
def test_only_its_server_brings_a_store_up_to_date(old: Path) -> None:
    before = (old / FILE).read_bytes()
    told = rf"has schema 1, this fedfleet needs {migrations.VERSION}: start its server once"
    with pytest.raises(UsageError, match=told):
        open_reader(old)
    with pytest.raises(UsageError, match=told):
        open_store(old, fleet=FLEET, task="linear_test", exclusive=False)
    assert (old / FILE).read_bytes()[100:] == before[100:]


def test_a_step_that_fails_leaves_the_store_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a version whose last step cannot be done
    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("create table half_way (x integer)")
        connection.exec_driver_sql("alter table nowhere add column x integer")

    with monkeypatch.context() as patched:
        patched.setattr(migrations, "STEPS", (*migrations.STEPS, fail))
        patched.setattr(migrations, "VERSION", migrations.VERSION + 1)
        with pytest.raises(StoreFailed, match="no such table: nowhere"):
            open_store(old, fleet=FLEET, task="linear_test")
    # then it is what it was, and today's version can still take it
    store = open_store(old, fleet=FLEET, task="linear_test")
    with store.read() as connection:
        assert "half_way" not in inspect(connection).get_table_names()
    store.close()
