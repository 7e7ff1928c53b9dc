"""The store: one file that is the truth, for one server at a time, and honest about a full disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_world import EPOCH, FLEET, SIZE, key_of, sealed_update
from test_ingest import PLAN, SERVER_KEY, TASK, to_topic

from fedfleet.fleet_server import store_quarantine, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.status import snapshot
from fedfleet.fleet_server.store import FILE, Store, StoreFailed, open_reader, open_store
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId


def opened(folder: Path, **arguments: object) -> Store:
    return open_store(folder, fleet=FLEET, task="linear_test", **arguments)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = opened(tmp_path / "store")
    yield made
    made.close()


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database, but a letter" * 100)
    with pytest.raises(UsageError, match="cannot be opened: file is not a database"):
        opened(tmp_path)
    with pytest.raises(UsageError, match="cannot be read"):
        open_reader(tmp_path)
    assert (tmp_path / FILE).read_bytes().startswith(b"not a database")


def test_status_of_a_folder_without_server_is_one_clear_line(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="no fleet server has kept its store here"):
        snapshot(tmp_path / "nowhere", 0.0)
    with pytest.raises(UsageError, match="has not begun yet"):
        snapshot(store.folder, 0.0)


def count_and_fail(store: Store) -> None:
    """A transaction that writes, then fails."""
    with store.write() as connection:
        store_updates.count(connection, "lost")
        store_vehicles.deny(connection, "nobody")


def test_what_is_committed_survives_and_what_is_not_does_not(store: Store) -> None:
    # given a committed count and one whose transaction fails
    with store.write() as connection:
        store_updates.count(connection, "kept")
    with pytest.raises(UsageError, match="nobody"):
        count_and_fail(store)
    # when the store is opened again
    store.close()
    again = opened(store.folder)
    with again.read() as connection:
        assert store_updates.counters(connection) == {"kept": 1}
        assert connection.exec_driver_sql("pragma journal_mode").scalar_one() == "wal"
        assert connection.exec_driver_sql("pragma synchronous").scalar_one() == 2
    again.close()


def prepared_ingest(store: Store) -> Ingest:
    with store.write() as connection:
        for name in ("v-1", "v-2"):
            store_vehicles.enrol(connection, name, region="north", public_key=key_of(name).public, now_s=1.0)
        store_rounds.add_round(connection, Round(PLAN, "open", frozenset(), None, 1.0))
    return Ingest(store, Party(FLEET, TASK, SERVER_KEY, {}), Limits(100_000, SIZE, 100))


def test_a_full_disk_takes_nothing_of_a_batch_and_says_so(store: Store) -> None:
    # given a store in which a stored update is, and that cannot grow
    ingest = prepared_ingest(store)
    ingest.receive([to_topic("v-1", sealed_update("v-1", PLAN))], 1.0)
    store.close()
    full = opened(store.folder, max_pages=1)
    with full.read() as connection:
        pages = connection.exec_driver_sql("pragma page_count").scalar_one()
        assert connection.exec_driver_sql("pragma max_page_count").scalar_one() == pages
    ingest = Ingest(full, ingest.party, ingest.limits)
    # when a batch comes with a good update, and bad messages that need room
    junk = [to_topic("v-2", bytes(4096)) for _ in range(100)]
    with pytest.raises(StoreFailed, match=r"store .*store.sqlite: database or disk is full"):
        ingest.receive([to_topic("v-2", sealed_update("v-2", PLAN)), *junk], 2.0)
    # then nothing of it is there, and what was there is
    with full.read() as connection:
        assert store_updates.audit_head(connection)[0] == 1
        assert store_quarantine.quarantined(connection, limit=9) == []
        assert store_updates.known(connection, UpdateId("v-2", EPOCH, 5)) is None
        assert store_updates.known(connection, UpdateId("v-1", EPOCH, 5)) is not None
    full.close()


def test_a_file_is_old_or_new_but_never_part(tmp_path: Path) -> None:
    # given a file, and the left-over of a write that was killed
    path = tmp_path / "model.onnx"
    write_file(path, b"old")
    (tmp_path / ".model.onnx.new").write_bytes(b"half")
    # when a write fails at its last step (the place is taken by a folder), the old one stays
    blocked = tmp_path / "blocked"
    (blocked / "x").mkdir(parents=True)
    with pytest.raises(OSError, match="irectory"):
        write_file(blocked, b"new")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert not (tmp_path / ".model.onnx.new").exists()
