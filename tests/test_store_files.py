"""Large updates are files beside the store: never a row without its whole file, never a file for ever without a row."""

from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from server_world import EPOCH, FLEET, key_of
from sqlalchemy import select
from test_ingest import NOW_S, PLAN, SERVER_KEY, TASK, to_topic, told

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server import (
    schema,
    store_retention,
    store_rounds,
    store_updates,
    store_vehicles,
)
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.config_store import RetentionConfig
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store import FILE, Store, StoreFailed, open_reader, open_store
from fedfleet.fleet_server.store_backup import backup, restore, verify
from fedfleet.fleet_server.store_check import orphans, problems
from fedfleet.fleet_server.store_files import FILE_BYTES, UPDATES
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol import chunks, envelope, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import UpdateId

PARAMETERS = 100_000
LIMITS = Limits(1_000_000, PARAMETERS, 100)
Open = Callable[[], Store]


def large(vehicle: str, *, sequence: int = 5) -> bytes:
    """A dense update of 400 kB."""
    id_ = UpdateId(vehicle, EPOCH, sequence)
    delta = np.random.default_rng(sequence).normal(size=PARAMETERS).astype(np.float32)
    data = payload.encode(delta, Settings("dense", "float32"), steps=5, examples=10)
    body = update.pack(update.Manifest(id_, TASK, "north", round=5, base_version=4), data)
    return envelope.seal(body, key_of(vehicle), kind=Kind.UPDATE, sender=vehicle, fleet=FLEET)


@pytest.fixture
def opened(tmp_path: Path, address: Address | None) -> Open:
    return lambda: open_store(tmp_path / "server", fleet=FLEET, task="linear_test", address=address)


@pytest.fixture
def store(opened: Open) -> Iterator[Store]:
    made = opened()
    with made.write() as connection:
        for name in ("v-1", "v-2"):
            store_vehicles.enrol(connection, name, region="north", public_key=key_of(name).public, now_s=1.0)
        store_rounds.add_round(connection, Round(PLAN, "open", frozenset(), None, NOW_S))
    yield made
    made.close()


def ingest_of(store: Store) -> Ingest:
    return Ingest(store, Party(FLEET, TASK, SERVER_KEY, {}), LIMITS)


def send(store: Store, vehicle: str, sealed: bytes, *, bare: bool = False) -> list[str]:
    """Send an update, in pieces unless it is bare; return the outcomes of the receipts."""
    frames = (sealed,) if bare else chunks.split(sealed)
    batch = [to_topic(vehicle, frame, number=number) for number, frame in enumerate(frames)]
    return [receipt.outcome for receipt in told(ingest_of(store).receive(batch, NOW_S))]


def files(store: Store) -> list[str]:
    return sorted(store.files.names())


def close_round(store: Store) -> list[tuple[UpdateId, bytes | None, int]]:
    """Freeze the stored updates and return them as the fold gets them."""
    with store.write() as connection:
        ids = store_updates.pending(connection, round_=5, region="north")
        one = Round(PLAN, "open", frozenset(), None, NOW_S)
        store_rounds.close(connection, one, state="closing", members=ids, now_s=2.0, reason="target")
        return list(store_updates.members(connection, round_=5, region="north"))


@pytest.mark.parametrize("bare", [True, False])
def test_a_large_update_is_one_file_with_the_bytes_that_came(bare: bool, store: Store) -> None:
    # given a large update, sent whole or in pieces
    sealed = large("v-1")
    assert send(store, "v-1", sealed, bare=bare) == ["stored"]
    # then its file is the message, named by its digest, for the owner only; the row has no bytes
    (name,) = files(store)
    path = store.folder / UPDATES / name
    assert (name, path.read_bytes()) == (sha256(sealed).hexdigest(), sealed)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with store.read() as connection:
        assert connection.execute(select(schema.update.c.payload)).scalars().all() == [None]
        assert problems(connection) == []
    # and the fold gets the payload
    ((_, data, examples),) = close_round(store)
    assert data is not None
    assert (payload.decode(data, size=PARAMETERS).delta.size, examples) == (PARAMETERS, 10)
    # and what comes again is answered, not written again
    before = path.stat().st_mtime_ns
    assert send(store, "v-1", sealed, bare=bare) == ["stored"]
    assert (files(store), path.stat().st_mtime_ns) == ([name], before)


def test_a_piece_that_comes_later_does_not_touch_what_is_stored(store: Store) -> None:
    # given a stored update that came in pieces
    sealed = large("v-1")
    send(store, "v-1", sealed)
    # when its vehicle sends a piece with the same name and other bytes
    frame = bytearray(chunks.split(sealed)[1])
    frame[-1000:] = bytes(1000)
    ingest_of(store).receive([to_topic("v-1", bytes(frame), number=1)], NOW_S)
    # then what was stored is what it was
    with store.read() as connection:
        assert problems(connection) == []
        assert orphans(connection) == []


def test_an_undone_transaction_leaves_no_file_and_may_be_done_again(store: Store) -> None:
    class StopError(Exception):
        pass

    # given a transaction that is undone after it wrote a file
    sealed = large("v-1")
    digest = sha256(sealed).hexdigest()

    def undone() -> None:
        with store.write():
            store.files.put(digest, sealed)
            raise StopError

    with pytest.raises(StopError):
        undone()
    # then there is no file of it, and the same again succeeds, over what a killed one left as well
    assert files(store) == []
    store.files.path(digest).write_bytes(b"half")
    assert send(store, "v-1", sealed) == ["stored"]
    assert store.files.path(digest).read_bytes() == sealed


def test_a_file_that_is_offered_is_taken_as_it_is_and_only_once(store: Store) -> None:
    # given a file that begins with an update, as the pieces of one are kept
    sealed = large("v-1")
    digest = sha256(sealed).hexdigest()
    offered = store.folder / "pieces"
    offered.write_bytes(sealed + b"more")
    # when the update is stored, then the file has its name too, and nothing behind it
    with store.write():
        store.files.offer(digest, offered)
        store.files.put(digest, sealed)
    assert store.files.path(digest).read_bytes() == sealed
    assert offered.stat().st_ino == store.files.path(digest).stat().st_ino
    # and what is offered is forgotten with its transaction
    offered.unlink()
    with store.write():
        store.files.offer(digest, offered)
    with store.write():
        store.files.put(digest, sealed)
    assert store.files.path(digest).read_bytes() == sealed


def test_a_folder_that_cannot_be_written_is_a_store_that_failed(store: Store) -> None:
    # given something in the way of the folder
    (store.folder / UPDATES).write_text("not a folder")
    with pytest.raises(StoreFailed, match=rf"store .*{UPDATES}/.*: File exists"):
        send(store, "v-1", large("v-1"), bare=True)
    # then nothing is stored, and all is once it can be
    with store.read() as connection:
        assert store_updates.audit_head(connection) == (0, "")
    (store.folder / UPDATES).unlink()
    assert send(store, "v-1", large("v-1"), bare=True) == ["stored"]


def test_files_that_no_row_names_go_when_a_server_starts(store: Store, opened: Open) -> None:
    # given what a killed server leaves: an update that was not committed
    send(store, "v-1", large("v-1"))
    kept = files(store)
    (store.folder / UPDATES / ("0" * 64)).write_bytes(b"half")
    with store.read() as connection:
        assert orphans(connection) == ["0" * 64]
    # when one only reads, or writes beside the server, they stay
    open_reader(store.folder).close()
    # when the server starts again, then they are gone, and nothing else is
    store.close()
    again = opened()
    assert files(again) == kept
    with again.read() as connection:
        assert problems(connection) == []
    again.close()


def test_files_go_with_the_bytes_of_settled_updates(store: Store) -> None:
    # given a settled update and a pending one of the same round
    send(store, "v-1", large("v-1"))
    send(store, "v-2", large("v-2", sequence=6))
    with store.write() as connection:
        store_updates.set_fates(connection, {UpdateId("v-1", EPOCH, 5): ("folded", "")})
    # when their round is long over
    with store.write() as connection:
        store_retention.retire(connection, RetentionConfig(), oldest_round=100, newest_version=1)
    # then only what is not settled has its file
    assert files(store) == [sha256(large("v-2", sequence=6)).hexdigest()]
    # and a record goes with its file, whatever is kept longer
    with store.write() as connection:
        store_updates.set_fates(connection, {UpdateId("v-2", EPOCH, 6): ("folded", "")})
        store_rounds.set_state(connection, 5, "north", "published")
        config = RetentionConfig(payload_rounds=1000, record_rounds=10)
        store_retention.retire(connection, config, oldest_round=100, newest_version=1)
    assert files(store) == []


SPOILS: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "damaged": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"),
}


@pytest.mark.parametrize("how", SPOILS)
def test_a_lost_file_is_named_and_its_update_goes_back_to_its_vehicle(how: str, store: Store) -> None:
    # given two updates, and the file of one gone or changed
    first, second = large("v-1"), large("v-2", sequence=6)
    send(store, "v-1", first)
    send(store, "v-2", second)
    name = sha256(first).hexdigest()
    SPOILS[how](store.folder / UPDATES / name)
    # then the check names it, the fold sees that its bytes are gone, and has the other's
    with store.read() as connection:
        (line,) = problems(connection)
    assert line == f"update {UpdateId('v-1', EPOCH, 5)}: its file {UPDATES}/{name} is {how}"
    assert [data is None for _, data, _ in close_round(store)] == [True, False]


def test_a_backup_has_the_files_and_restore_brings_them(store: Store, tmp_path: Path) -> None:
    # given two updates in files
    send(store, "v-1", large("v-1"))
    send(store, "v-2", large("v-2", sequence=6))
    # when it is backed up
    manifest = backup(store.folder, tmp_path / "backup", now_s=7.0)
    names = [f"{UPDATES}/{name}" for name in files(store)]
    assert sorted(manifest.files) == sorted([FILE, *names])
    assert verify(tmp_path / "backup") == manifest
    # and restored, then it is whole
    restore(tmp_path / "backup", tmp_path / "restored", ahead=0)
    restored = open_store(tmp_path / "restored", fleet=FLEET, task="linear_test")
    with restored.read() as connection:
        assert problems(connection) == []
        assert store_updates.audit_head(connection)[0] == 2
    assert files(restored) == files(store)
    assert len(close_round(restored)) == 2
    restored.close()
    # and with a byte changed in one of them it is no backup
    path = tmp_path / "backup" / names[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(UsageError, match=f"{names[0]} is not what was written"):
        restore(tmp_path / "backup", tmp_path / "again")


def test_a_file_that_is_forgotten_while_a_backup_is_made_is_forgotten_there_too(
    store: Store, tmp_path: Path
) -> None:
    # given a settled update whose file is gone, as retention leaves it right after a backup's view was taken
    send(store, "v-1", large("v-1"))
    with store.write() as connection:
        store_updates.set_fates(connection, {UpdateId("v-1", EPOCH, 5): ("folded", "")})
    (store.folder / UPDATES / files(store)[0]).unlink()
    # then the backup is whole without it
    backup(store.folder, tmp_path / "backup", now_s=7.0)
    copied = open_reader(tmp_path / "backup")
    with copied.read() as connection:
        assert problems(connection) == []
    copied.close()


def test_a_small_update_stays_in_its_row(store: Store) -> None:
    sealed = large("v-1")
    assert len(sealed) >= FILE_BYTES
    stored = store_updates.StoredUpdate(
        update.Manifest(UpdateId("v-1", EPOCH, 1), TASK, "north", round=5, base_version=4),
        b"payload",
        1,
        1,
        "0" * 64,
        FILE_BYTES - 1,
        bytes(FILE_BYTES - 8) + b"payload",
    )
    with store.write() as connection:
        store_updates.add_update(connection, stored, now_s=1.0)
    assert files(store) == []
