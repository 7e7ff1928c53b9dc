"""What every store promises, in a SQLite file and in PostgreSQL."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from server_world import EPOCH, FLEET, key_of, sealed_update
from test_ingest import PLAN, TASK, to_topic
from test_store import prepared_ingest

from fedfleet.fleet_server import (
    migrations,
    schema,
    store_blobs,
    store_models,
    store_quarantine,
    store_rounds,
    store_updates,
    store_vehicles,
)
from fedfleet.fleet_server.store import Store, open_reader, open_store, save_start
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.fleet_server.store_properties import properties
from fedfleet.fleet_server.store_quarantine import Quarantined
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId

Open = Callable[..., Store]


@pytest.fixture
def opened(tmp_path: Path, address: Address | None) -> Open:
    def open_(**arguments: object) -> Store:
        told = {"fleet": FLEET, "task": "linear_test", "address": address} | arguments
        return open_store(tmp_path / "store", **told)  # type: ignore[arg-type]

    return open_


@pytest.fixture
def store(opened: Open) -> Iterator[Store]:
    made = opened()
    yield made
    made.close()


def test_a_second_server_is_told_who_has_the_store(store: Store, opened: Open) -> None:
    with pytest.raises(UsageError, match=rf"store .* is in use by .*\b{os.getpid()}\b"):
        opened()
    # but a command beside the server may write, and a reader may read
    beside = opened(exclusive=False)
    with beside.write() as connection:
        store_updates.count(connection, "seen")
    beside.close()
    reader = open_reader(store.folder)
    with reader.read() as connection:
        assert store_updates.counters(connection) == {"seen": 1}
    reader.close()
    # and once the first is gone, the second may come
    store.close()
    opened().close()


def test_the_lock_goes_with_its_process(
    tmp_path: Path, address: Address | None, opened: Open, wait_until: Callable[..., None]
) -> None:
    # given a process that opens the store and is killed
    code = (
        "import sys, signal, os; from pathlib import Path\n"
        "from fedfleet.fleet_server.store import open_store\n"
        "from fedfleet.fleet_server.store_postgres import Address\n"
        "address = Address(sys.argv[2]) if sys.argv[2] else None\n"
        f"open_store(Path(sys.argv[1]), fleet={FLEET!r}, task='linear_test', address=address)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    where = address.url if address else ""
    command = [sys.executable, "-c", code, str(tmp_path / "store"), where]
    ended = subprocess.run(command, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL

    # then the next one may have it (PostgreSQL notices a moment later)
    def may_open() -> bool:
        try:
            opened().close()
        except UsageError:
            return False
        return True

    wait_until(may_open, "the lock of a killed process is free")


def test_another_fleet_or_task_is_refused(store: Store, opened: Open) -> None:
    store.close()
    with pytest.raises(UsageError, match="expected fleet other, it has test-fleet"):
        opened(fleet="other")
    with pytest.raises(UsageError, match="expected task other, it has linear_test"):
        opened(task="other")


def test_a_store_of_a_newer_version_is_refused_and_told_how(store: Store, opened: Open) -> None:
    with store.write() as connection:
        newer = schema.property_.update().where(schema.property_.c.name == "schema").values(value="99")
        connection.execute(newer)
    told = f"has schema 99, this fedfleet knows up to {migrations.VERSION}: start the fedfleet that wrote it"
    store.close()
    with pytest.raises(UsageError, match=told):
        opened()
    with pytest.raises(UsageError, match=told):
        open_reader(store.folder)


def count_and_fail(store: Store) -> None:
    """A transaction that writes, then fails."""
    with store.write() as connection:
        store_updates.count(connection, "lost")
        store_vehicles.deny(connection, "nobody")


def test_what_is_committed_survives_and_what_is_not_does_not(store: Store, opened: Open) -> None:
    # given a committed count and one whose transaction fails
    with store.write() as connection:
        store_updates.count(connection, "kept")
        store_updates.count_all(connection, {"kept": 2, "other": 1})
    with pytest.raises(UsageError, match="nobody"):
        count_and_fail(store)
    # when the store is opened again
    store.close()
    again = opened()
    with again.read() as connection:
        assert store_updates.counters(connection) == {"kept": 3, "other": 1}
    again.close()


def test_a_reader_sees_one_view_while_others_write(store: Store) -> None:
    with store.write() as connection:
        store_updates.count(connection, "seen")
    reader = open_reader(store.folder)
    with reader.read() as connection:
        assert store_updates.counters(connection) == {"seen": 1}
        with store.write() as writing:
            store_updates.count(writing, "seen")
        assert store_updates.counters(connection) == {"seen": 1}
    with reader.read() as connection:
        assert store_updates.counters(connection) == {"seen": 2}
    reader.close()


def test_properties_are_replaced(store: Store) -> None:
    for value in ("{}", '{"started_at_s": 1}'):
        with store.write() as connection:
            save_start(connection, value)
    with store.read() as connection:
        found = properties(connection)
    assert (found["start"], found["schema"]) == ('{"started_at_s": 1}', str(migrations.VERSION))


def test_cleared_topics_are_remembered_once(store: Store) -> None:
    with store.write() as connection:
        assert store_blobs.to_clear(connection, ["b", "a", "b"]) == ["a", "b"]
        assert store_blobs.to_clear(connection, ["a"]) == ["a", "b"]
        store_blobs.cleared(connection, ["a"])
        assert store_blobs.to_clear(connection) == ["b"]


def refused(number: int, size: int = 100) -> Quarantined:
    head = bytes([number % 256]) * size
    return Quarantined(float(number), "truncated", "of \0 v-1 \udcff", "v-1", "t", "0" * 64, size, head)


def test_the_quarantine_is_bounded_in_number_and_bytes(store: Store) -> None:
    with store.write() as connection:
        many = [refused(number) for number in range(8)]
        store_quarantine.put_aside(connection, many, keep=5, keep_bytes=10_000)
        kept = store_quarantine.quarantined(connection, limit=99)
        assert [one.at_s for one in kept] == [7, 6, 5, 4, 3]
        assert kept[0].detail == "of \ufffd v-1 ?"
        assert store_quarantine.totals(connection) == (5, 500)
        # what is large pushes older ones out; of one message only the beginning is kept
        store_quarantine.put_aside(connection, [refused(9, 70_000)], keep=5, keep_bytes=64_250)
        kept = store_quarantine.quarantined(connection, limit=99)
        assert [(one.at_s, one.size_bytes, len(one.head)) for one in kept] == [
            (9, 70_000, 64_000),
            (7, 100, 100),
            (6, 100, 100),
        ]
        assert store_quarantine.find(connection, kept[0].number) == kept[0]
        assert store_quarantine.find(connection, 1) is None
        # and where nothing may be kept, nothing is
        store_quarantine.put_aside(connection, [refused(10)], keep=5, keep_bytes=0)
        assert store_quarantine.totals(connection) == (0, 0)


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
        old, live = (store_blobs.put(connection, "full", data) for data in (b"old", b"live"))
        keep = [store_blobs.ref(connection, live)]
        assert store_blobs.retire(connection, keep, round_=5, grace_rounds=2) == []
        assert store_blobs.retire(connection, keep, round_=6, grace_rounds=2) == []
        assert store_blobs.content(connection, old) == b"old"
        # one that is wanted again before its time stays
        assert store_blobs.put(connection, "full", b"old") == old
        assert store_blobs.retire(connection, keep, round_=7, grace_rounds=2) == []
        gone = store_blobs.retire(connection, keep, round_=9, grace_rounds=2)
        assert [ref.sha256 for ref in gone] == [old]
        assert [ref.sha256 for ref in store_blobs.kept(connection)] == [live]
