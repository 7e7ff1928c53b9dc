"""Backups are whole or refused, a restored server is the server that was, and the check finds what is broken."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from server_world import FLEET, configuration
from sqlalchemy import Connection, select, text
from test_coordinator import ALL, World

from fedfleet.fleet_server import schema, store_blobs, store_models, store_updates
from fedfleet.fleet_server.store import FILE, open_reader, open_store
from fedfleet.fleet_server.store_backup import MANIFEST, backup, restore, verify
from fedfleet.fleet_server.store_check import problems
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.protocol.errors import UsageError


def turn_until_published(world: World, rounds: int) -> None:
    for _ in range(100):
        if world.snapshot()["rounds_published"] >= rounds:  # type: ignore[operator]
            return
        world.turn(after_s=20.0)
    pytest.fail(f"{rounds} rounds were not published")


@pytest.fixture
def world(tmp_path: Path, address: Address | None) -> Iterator[World]:
    """A server that has published two rounds and is in its third."""
    store = {"url": address.url} if address else {}
    rounds = {"total": 9, "quorum": 2, "deadline_s": 60.0, "lease_s": 10.0, "start_wait_s": 5.0}
    made = World(configuration(tmp_path, store=store, rounds=rounds))
    made.drive(*ALL)
    turn_until_published(made, 2)
    yield made
    made.parts.close()


def content(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables."""
    store = open_reader(folder)
    with store.read() as connection:
        found = {
            table.name: sorted((tuple(row) for row in connection.execute(select(table))), key=repr)
            for table in schema.metadata.sorted_tables
        }
    store.close()
    return found


def wrongs(folder: Path) -> list[str]:
    store = open_reader(folder)
    with store.read() as connection:
        found = problems(connection)
    store.close()
    return found


def test_a_backup_of_a_running_server_is_the_server(world: World, tmp_path: Path) -> None:
    # given a backup made beside the running server, which goes on afterwards
    data_dir = world.config.data_dir
    before = content(data_dir)
    manifest = backup(data_dir, tmp_path / "kept" / "monday", now_s=7.0)
    world.turn(2)
    assert content(data_dir) != before
    # then it is whole, and holds what the store held
    assert verify(tmp_path / "kept" / "monday") == manifest
    assert (manifest.fleet, manifest.task, manifest.made_at_s) == (FLEET, "server_world:TASK", 7.0)
    assert manifest.newest_version >= 2
    assert manifest.updates == len(before["update"])
    assert content(tmp_path / "kept" / "monday") == before
    assert (tmp_path / "kept" / "monday").stat().st_mode & 0o077 == 0
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["monday"]
    # and restored elsewhere it is that server, with its key
    restored = tmp_path / "restored"
    restore(tmp_path / "kept" / "monday", restored, ahead=0)
    assert content(restored) == before
    assert (restored / "server.key").read_bytes() == (data_dir / "server.key").read_bytes()
    assert (restored / "server.key").stat().st_mode & 0o777 == 0o600
    assert wrongs(restored) == []
    # which goes on ahead of there, as the server did more since
    world.kill()
    restored = tmp_path / "ahead"
    restore(tmp_path / "kept" / "monday", restored)
    rounds = world.config.rounds.model_copy(update={"total": 0})
    changes = {"data_dir": restored, "store": type(world.config.store)(), "rounds": rounds}
    changed = world.config.model_copy(update=changes)
    world.config = changed
    world.start()
    turn_until_published(world, 4)
    assert wrongs(restored) == []


def test_a_restored_server_goes_on_where_no_vehicle_has_been(world: World, tmp_path: Path) -> None:
    # given vehicles that have gone on for rounds and versions after the backup
    manifest = backup(world.config.data_dir, tmp_path / "backup", now_s=7.0)
    turn_until_published(world, 6)
    seen = max(max(vehicle.plans) for vehicle in world.vehicles.values())
    assert seen > manifest.newest_round
    # when the server is restored from it
    world.kill()
    restore(tmp_path / "backup", tmp_path / "restored", ahead=100)
    changes = {"data_dir": tmp_path / "restored", "store": type(world.config.store)()}
    rounds = world.config.rounds.model_copy(update={"total": 0})
    world.config = world.config.model_copy(update={**changes, "rounds": rounds})
    world.start()
    before = world.snapshot()
    assert wrongs(tmp_path / "restored") == []
    assert before["version"] == before["released"] == manifest.newest_version + 100
    # then they take part in its next rounds at once, and nothing is without a fate
    turn_until_published(world, 4)
    assert wrongs(tmp_path / "restored") == []
    after = world.snapshot()
    assert after["version"] == manifest.newest_version + 102
    for vehicle in world.vehicles.values():
        assert max(vehicle.settlements) > manifest.newest_round + 100
    # what they still had for a round that the server does not know any more is refused by its reason
    waiting = [vehicle for vehicle in world.vehicles.values() if vehicle.outbox]
    for vehicle in waiting:
        vehicle.resend()
    world.turn(2)
    assert waiting
    assert all("round-unknown" in {one.reason for one in vehicle.receipts} for vehicle in waiting)


@pytest.mark.postgres
def test_a_backup_carries_a_store_into_postgres(tmp_path: Path, postgres: object) -> None:
    # given the backup of a server with an SQLite file
    made = World(configuration(tmp_path))
    made.drive(*ALL)
    made.turn(30)
    made.parts.close()
    backup(made.config.data_dir, tmp_path / "backup", now_s=7.0)
    # when it is restored into an empty database
    address = Address(postgres.database())  # type: ignore[attr-defined]
    restore(tmp_path / "backup", tmp_path / "moved", ahead=0, address=address)
    # then the rows are the same, new ones find their numbers, and a second restore is refused
    assert content(tmp_path / "moved") == content(tmp_path / "backup")
    store = open_store(tmp_path / "moved", fleet=FLEET, task="server_world:TASK", address=address)
    with store.write() as connection:
        store_updates.count(connection, "seen")
    store.close()
    with pytest.raises(UsageError, match="holds a store already; nothing was changed"):
        restore(tmp_path / "backup", tmp_path / "again", address=address)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A backup of a small store."""
    store = open_store(tmp_path / "server", fleet=FLEET, task="t")
    with store.write() as connection:
        store_updates.count(connection, "seen")
    store.close()
    backup(tmp_path / "server", tmp_path / "backup", now_s=7.0)
    return tmp_path / "backup"


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


HALF: dict[str, tuple[str, Callable[[Path], object]]] = {
    "no manifest": ("manifest.json is missing", lambda b: (b / MANIFEST).unlink()),
    "manifest cut": ("not a backup", lambda b: cut(b / MANIFEST, 40)),
    "store cut": ("store.sqlite is not what was written", lambda b: cut(b / FILE, 8192)),
    "store missing": ("store.sqlite is missing", lambda b: (b / FILE).unlink()),
    "a byte changed": (
        "store.sqlite is not what was written",
        lambda b: (b / FILE).write_bytes((b / FILE).read_bytes()[:-1] + b"\x07"),
    ),
    "of a later kind": (
        "this fedfleet reads 'fedfleet backup' up to version 2",
        lambda b: (b / MANIFEST).write_text(
            (b / MANIFEST).read_text().replace('"version": 2', '"version": 3')
        ),
    ),
    "without the store": (
        "store.sqlite is not what was written",
        lambda b: (b / MANIFEST).write_text(
            json.dumps(json.loads((b / MANIFEST).read_text()) | {"files": {}})
        ),
    ),
}


@pytest.mark.parametrize("what", HALF)
def test_half_a_backup_is_refused_and_nothing_is_restored(what: str, whole: Path, tmp_path: Path) -> None:
    words, break_ = HALF[what]
    break_(whole)
    with pytest.raises(UsageError, match=words):
        restore(whole, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_backup_that_was_interrupted_leaves_none(tmp_path: Path, whole: Path) -> None:
    # given what a killed backup leaves, and a store that does not pass its check
    (tmp_path / ".second.new").mkdir()
    (tmp_path / ".second.new" / FILE).write_bytes(b"half")
    backup(tmp_path / "server", tmp_path / "second", now_s=7.0)
    assert verify(tmp_path / "second")
    store = open_store(tmp_path / "server", fleet=FLEET, task="t")
    with store.write() as connection:
        digest = store_blobs.put(connection, "full", b"whole")
        connection.execute(schema.blob.update().values(data=b"other"))
    store.close()
    # then no backup is made of it, and none is written over another
    with pytest.raises(UsageError, match=f"does not pass the check.*blob {digest[:12]}"):
        backup(tmp_path / "server", tmp_path / "third", now_s=7.0)
    with pytest.raises(UsageError, match="is there already"):
        backup(tmp_path / "server", tmp_path / "second", now_s=7.0)
    assert {path.name for path in tmp_path.iterdir()} == {"server", "backup", "second"}
    assert whole.exists()


def test_a_store_is_not_replaced(whole: Path, tmp_path: Path) -> None:
    before = sha256((tmp_path / "server" / FILE).read_bytes()).hexdigest()
    with pytest.raises(UsageError, match=r"holds store.sqlite already.*nothing was changed"):
        restore(whole, tmp_path / "server")
    assert sha256((tmp_path / "server" / FILE).read_bytes()).hexdigest() == before


def spoil_audit(connection: Connection) -> None:
    connection.execute(schema.audit.delete().where(schema.audit.c.position == 2))


def spoil_leaf(connection: Connection) -> None:
    first = connection.execute(select(schema.audit.c.update_id).limit(1)).scalar_one()
    connection.execute(
        schema.update.update().where(schema.update.c.id == first).values(sealed_sha256="0" * 64)
    )


def spoil_fate(connection: Connection) -> None:
    connection.execute(schema.update.update().where(schema.update.c.round == 1).values(fate=None))


def spoil_other_fate(connection: Connection) -> None:
    connection.execute(schema.update.update().where(schema.update.c.round == 1).values(fate="dropped"))


def spoil_vector(connection: Connection) -> None:
    model = store_models.newest_model(connection)
    assert model is not None
    changed = replace(model, vector=model.vector + 1).vector
    newest = schema.model.c.version == model.version
    connection.execute(schema.model.update().where(newest).values(vector=changed.astype("<f4").tobytes()))


def spoil_blob(connection: Connection) -> None:
    connection.execute(schema.blob.update().where(schema.blob.c.kind == "delta").values(data=b"?"))


def spoil_full(connection: Connection) -> None:
    connection.execute(schema.blob.delete().where(schema.blob.c.kind == "full"))


SPOILS: dict[str, tuple[Callable[[Connection], None], str]] = {
    "a leaf is gone": (spoil_audit, "audit chain: leaf 2 is not what follows"),
    "an update has another digest": (spoil_leaf, "0 leaves in the audit chain, expected 1"),
    "an update has no fate": (spoil_fate, "is over and it has no fate"),
    "an update has another fate": (spoil_other_fate, "settled it as folded, its record says dropped"),
    "the vector is another": (spoil_vector, "its vector has digest"),
    "a blob is another": (spoil_blob, "1 bytes with digest"),
    "the blob is gone": (spoil_full, "is not there"),
}


@pytest.mark.parametrize("what", SPOILS)
def test_the_check_finds_what_is_wrong(what: str, tmp_path: Path) -> None:
    spoil, words = SPOILS[what]
    made = World(configuration(tmp_path))
    made.drive(*ALL)
    made.turn(30)
    assert wrongs(made.config.data_dir) == []
    with made.parts.store.write() as connection:
        spoil(connection)
    found = wrongs(made.config.data_dir)
    assert any(words in line for line in found), found
    made.parts.close()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    # given a store with a page in its middle overwritten
    store = open_store(tmp_path, fleet=FLEET, task="t")
    with store.write() as connection:
        for number in range(200):
            connection.execute(text("insert into counter values (:name, 1)"), {"name": f"n{number}" * 20})
    store.close()
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    pages = len(data) // 4096
    for page in range(pages - 3, pages):
        data[page * 4096 + 100 : page * 4096 + 300] = b"\xff" * 200
    path.write_bytes(data)
    # then the check says so
    assert any(line.startswith("file: ") for line in wrongs(tmp_path))
