"""The store: one file that is the truth, for one server at a time, and honest about a full disk."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from server_world import EPOCH, FLEET, SIZE, key_of, sealed_update
from test_ingest import PLAN, SERVER_KEY, TASK, to_topic

from fedfleet.fleet_server import store_models, store_quarantine, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.keys import load_key
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


def test_a_second_server_is_told_who_has_the_store(store: Store) -> None:
    with pytest.raises(UsageError, match=rf"store .*store is in use by process {os.getpid()}$"):
        opened(store.folder)
    # but a command beside the server may write, and a reader may read
    with opened(store.folder, exclusive=False).write() as connection:
        store_updates.count(connection, "seen")
    reader = open_reader(store.folder)
    with reader.read() as connection:
        assert store_updates.counters(connection) == {"seen": 1}
    reader.close()


def test_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    # given a process that opens the store and is killed
    code = (
        "import sys, signal, os; from pathlib import Path\n"
        "from fedfleet.fleet_server.store import open_store\n"
        f"open_store(Path(sys.argv[1]), fleet={FLEET!r}, task='linear_test')\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert ended.returncode == -9
    # then the next one may have it
    opened(tmp_path).close()


def test_another_schema_fleet_or_task_is_refused(store: Store) -> None:
    store.close()
    with pytest.raises(UsageError, match="expected fleet other, it has test-fleet"):
        open_store(store.folder, fleet="other", task="linear_test")
    with pytest.raises(UsageError, match="expected task other, it has linear_test"):
        open_store(store.folder, fleet=FLEET, task="other")
    with sqlite3.connect(store.folder / FILE) as connection:
        connection.execute("update property set value = '99' where name = 'schema'")
    connection.close()
    with pytest.raises(UsageError, match="has schema 99, this fedfleet knows up to"):
        opened(store.folder)
    with pytest.raises(UsageError, match="has schema 99, this fedfleet knows up to"):
        open_reader(store.folder)


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


def test_the_audit_chain_can_be_recomputed(store: Store) -> None:
    ingest = prepared_ingest(store)
    sealed = [sealed_update(name, PLAN) for name in ("v-1", "v-2")]
    ingest.receive([to_topic(name, one) for name, one in zip(("v-1", "v-2"), sealed, strict=True)], 1.0)
    leaf = ""
    for name, one in zip(("v-1", "v-2"), sealed, strict=True):
        text = f"{leaf}\n{UpdateId(name, EPOCH, 5)}\n{sha256(one).hexdigest()}"
        leaf = sha256(text.encode()).hexdigest()
    with store.read() as connection:
        assert store_updates.audit_head(connection) == (2, leaf)


def test_enrolling_is_strict(store: Store) -> None:
    with store.write() as connection:
        store_vehicles.enrol(connection, "v-1", region="north", public_key=key_of("v-1").public, now_s=1.0)
        store_vehicles.enrol(connection, "v-1", region="south", public_key=key_of("v-1").public, now_s=2.0)
        assert store_vehicles.regions(connection) == {"v-1": "south"}
        with pytest.raises(UsageError, match="v-1 is enrolled with another key"):
            store_vehicles.enrol(connection, "v-1", region="north", public_key=key_of("x").public, now_s=3.0)
        with pytest.raises(UsageError, match="expected 1 to 36"):
            store_vehicles.enrol(connection, "V 1", region="north", public_key=key_of("x").public, now_s=3.0)
        with pytest.raises(UsageError, match="the server's own name"):
            store_vehicles.enrol(
                connection, "fleet-server", region="n", public_key=key_of("x").public, now_s=3.0
            )
        with pytest.raises(UsageError, match="expected 32"):
            store_vehicles.enrol(connection, "v-2", region="north", public_key=b"short", now_s=3.0)
        with pytest.raises(UsageError, match="v-7 is not enrolled"):
            store_vehicles.deny(connection, "v-7")


def test_members_come_in_fold_order_whatever_the_sequence(store: Store) -> None:
    # given updates of one vehicle with the numbers 9, 10, 11, stored in another order
    with store.write() as connection:
        for sequence in (10, 9, 11):
            id_ = UpdateId("v-1", EPOCH, sequence)
            manifest = store_updates.Manifest(id_, TASK, "north", round=5, base_version=4)
            one = store_updates.StoredUpdate(manifest, b"x", 1, sequence, "0" * 64, 1)
            store_updates.add_update(connection, one, now_s=1.0)
        store_rounds.add_round(connection, Round(PLAN, "open", frozenset(), None, 1.0))
        found = store_updates.pending(connection, round_=5, region="north")
        store_rounds.close(
            connection,
            Round(PLAN, "open", frozenset(), None, 1.0),
            state="closing",
            members=found,
            now_s=2.0,
            reason="target",
        )
        members = list(store_updates.members(connection, round_=5, region="north"))
    # then they are in the order of the numbers
    assert [id_.sequence for id_ in found] == [9, 10, 11]
    assert [examples for _, _, examples in members] == [9, 10, 11]


def test_a_model_comes_back_bit_for_bit(store: Store) -> None:
    rng = np.random.default_rng(1)
    vector, error = rng.normal(size=(2, 50)).astype(np.float32)
    model = store_models.Model(
        3, vector, error, {"momentum": rng.normal(size=50)}, "a" * 64, "b" * 64, None, 3, 9.0
    )
    with store.write() as connection:
        store_models.save_model(connection, model)
    with store.read() as connection:
        found = store_models.newest_model(connection)
    assert found is not None
    assert found.vector.tobytes() == vector.tobytes()
    assert found.error.tobytes() == error.tobytes()
    assert found.optimizer["momentum"].tobytes() == model.optimizer["momentum"].tobytes()
    assert (found.version, found.vector_sha256, found.round) == (3, model.vector_sha256, 3)


def test_blobs_retire_and_go_after_their_grace(store: Store) -> None:
    with store.write() as connection:
        old, live = (store_models.put_blob(connection, "full", data) for data in (b"old", b"live"))
        keep = [store_models.ref(connection, live)]
        assert store_models.retire_blobs(connection, keep, round_=5, grace_rounds=2) == []
        assert store_models.retire_blobs(connection, keep, round_=6, grace_rounds=2) == []
        assert store_models.blob_bytes(connection, old) == b"old"
        # one that is wanted again before its time stays
        assert store_models.put_blob(connection, "full", b"old") == old
        assert store_models.retire_blobs(connection, keep, round_=7, grace_rounds=2) == []
        gone = store_models.retire_blobs(connection, keep, round_=9, grace_rounds=2)
        assert [ref.sha256 for ref in gone] == [old]
        assert [ref.sha256 for ref in store_models.kept_blobs(connection)] == [live]


def test_the_server_key_is_made_once_and_kept_secret(tmp_path: Path) -> None:
    key = load_key(tmp_path, lambda n: b"7" * n)
    assert load_key(tmp_path, lambda _: b"").public == key.public
    assert (tmp_path / "server.pub").read_text() == f"{key.public.hex()}\n"
    assert (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "server.key").chmod(0o644)
    with pytest.raises(UsageError, match="only its owner may read"):
        load_key(tmp_path, lambda _: b"")
    (tmp_path / "server.key").write_text("zz")
    (tmp_path / "server.key").chmod(0o600)
    with pytest.raises(UsageError, match="expected 32 bytes in hex"):
        load_key(tmp_path, lambda _: b"")


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
