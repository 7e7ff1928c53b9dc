"""Backups: a folder with the store as one SQLite file, its files, the server's key, and a manifest of every byte.

Made beside a running server, on one unchanging view. It is built under another name, synced, checked and renamed: a
folder without a manifest that fits is no backup. A store in PostgreSQL is backed up into the same form, so a backup
also carries a store from one kind of database to the other.
"""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, text

from fedfleet.fleet_server import (
    schema,
    store_models,
    store_published,
    store_rounds,
    store_sqlite,
    store_updates,
)
from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.store import FILE, Store, address_of, open_older, open_reader, open_store
from fedfleet.fleet_server.store_ahead import step_beyond
from fedfleet.fleet_server.store_check import problems
from fedfleet.fleet_server.store_files import UPDATES
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.fleet_server.store_properties import properties
from fedfleet.fleet_server.store_published import Published
from fedfleet.protocol.errors import UsageError

__all__ = ["AHEAD", "MANIFEST", "Manifest", "backup", "restore", "verify"]

MANIFEST = "manifest.json"
AHEAD = 1000
FORMAT = "fedfleet backup"
VERSION = 2
READ = (1, 2)
"""1 had no files of updates."""
KEYS = {"server.key": 0o600, "server.pub": 0o644}
ROWS = 500
BLOCK_BYTES = 1 << 20
IN_UPDATES = re.compile(rf"{UPDATES}/[0-9a-f]{{64}}")
RESTORING = ".restore.new"


@dataclass(frozen=True)
class Manifest:
    """What a backup holds. ``files`` has size and SHA-256 by name; the audit chain's head names all updates."""

    fleet: str
    task: str
    schema: int
    made_at_s: float
    newest_round: int
    newest_version: int
    updates: int
    audit_position: int
    audit_leaf: str
    files: Mapping[str, Mapping[str, Any]]


def backup(data_dir: Path, destination: Path, *, now_s: float) -> Manifest:
    """Write a backup of the server in ``data_dir``, which may be running, to the new folder ``destination``.

    Raises UsageError when there is no store, it does not pass its check, or the destination is there already.
    """
    if destination.exists():
        raise UsageError(f"{destination}: is there already; a backup is written to a new folder")
    building = destination.with_name(f".{destination.name}.new")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True, mode=0o700)
    try:
        manifest = _build(data_dir, building, now_s=now_s)
        told = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
        write_file(building / MANIFEST, json.dumps(told, indent=1).encode())
        building.rename(destination)
        _sync(destination.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return manifest


def _build(data_dir: Path, folder: Path, *, now_s: float) -> Manifest:
    source = open_reader(data_dir)
    try:
        if address_of(data_dir) is None:
            _copy_store(data_dir / FILE, folder / FILE)
        else:
            _copy_out(source, folder)
    finally:
        source.close()
    _copy_updates(data_dir, folder)
    for name, mode in KEYS.items():
        if (data_dir / name).exists():
            write_file(folder / name, (data_dir / name).read_bytes(), mode=mode)
    _sync(folder / FILE)
    copied = open_reader(folder)
    try:
        with copied.read() as connection:
            updates = (f"{UPDATES}/{digest}" for digest in sorted(store_updates.named_files(connection)))
            names = (*(name for name in (FILE, *KEYS) if (folder / name).exists()), *updates)
            files = {name: _digest(folder / name) for name in names if (folder / name).exists()}
            if wrong := problems(connection):
                raise UsageError(f"{data_dir}: its store does not pass the check, no backup made: {wrong[0]}")
            return _describe(connection, files, now_s)
    finally:
        copied.close()


def _copy_store(path: Path, copy: Path) -> None:
    source = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    store_sqlite.keep_private(copy)
    target = sqlite3.connect(copy)
    try:
        source.backup(target)  # in one step: one view, and no writer waits for it
        target.execute("PRAGMA journal_mode=DELETE")  # one file, complete in itself
    finally:
        target.close()
        source.close()


def _copy_updates(data_dir: Path, folder: Path) -> None:
    """Copy the files that the copied store names."""
    copied = open_reader(folder)
    with copied.read() as connection:
        named = store_updates.named_files(connection)
    copied.close()
    gone = [digest for digest in sorted(named) if not _copied(data_dir, folder, digest)]
    file = sqlite3.connect(folder / FILE)
    try:
        with file:
            # whose bytes the server has forgotten meanwhile; the check finds any other
            forget = 'UPDATE "update" SET payload_at = NULL WHERE sealed_sha256 = ? AND fate IS NOT NULL'
            file.executemany(forget, [(digest,) for digest in gone])
    finally:
        file.close()


def _copied(source: Path, folder: Path, digest: str) -> bool:
    (folder / UPDATES).mkdir(mode=0o700, exist_ok=True)
    try:
        _place(source / UPDATES / digest, folder / UPDATES / digest)
    except FileNotFoundError:
        return False
    return True


def _copy_out(source: Store, folder: Path) -> None:
    with source.read() as reading:
        told = properties(reading)
        target = open_store(folder, fleet=told["fleet"], task=told["task"], exclusive=False)
        try:
            with target.write() as writing:
                _copy_rows(reading, writing)
        finally:
            target.close()
    _make_single(folder / FILE)


def _copy_rows(reading: Connection, writing: Connection) -> None:
    """Copy all rows of all tables into a store that has none but its properties."""
    writing.execute(schema.property_.delete())
    for table in schema.metadata.sorted_tables:
        rows = reading.execution_options(yield_per=ROWS).execute(select(table)).mappings()
        for part in rows.partitions(ROWS):
            writing.execute(table.insert(), [dict(row) for row in part])
    if writing.dialect.name == "postgresql":
        number = schema.quarantine.c.number
        last = writing.execute(select(func.max(number))).scalar_one()
        if last is not None:
            sequence = text("SELECT setval(pg_get_serial_sequence('quarantine', 'number'), :last)")
            writing.execute(sequence, {"last": last})


def _describe(connection: Connection, files: Mapping[str, Mapping[str, Any]], now_s: float) -> Manifest:
    told = properties(connection)
    position, leaf = store_updates.audit_head(connection)
    version = store_models.newest_version(connection)
    return Manifest(
        fleet=told["fleet"],
        task=told["task"],
        schema=int(told["schema"]),
        made_at_s=now_s,
        newest_round=store_rounds.newest(connection),
        newest_version=-1 if version is None else version,
        updates=connection.execute(select(func.count()).select_from(schema.update)).scalar_one(),
        audit_position=position,
        audit_leaf=leaf,
        files=files,
    )


def verify(folder: Path) -> Manifest:
    """Return a backup's manifest after every byte of it was compared; UsageError for one that is not whole."""
    try:
        told = json.loads((folder / MANIFEST).read_bytes())
        kind, version = told.pop("format"), told.pop("version")
        if kind != FORMAT or version not in READ:
            raise UsageError(
                f"{folder}: {kind!r} version {version}, this fedfleet reads {FORMAT!r} up to version {VERSION}"
            )
        manifest = Manifest(**told)
        names = {name for name in manifest.files if name in (FILE, *KEYS) or IN_UPDATES.fullmatch(name)}
        wrong = [name for name in sorted(names) if _digest(folder / name) != manifest.files[name]]
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise UsageError(f"{folder}: not a whole backup: {missing} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder}: not a backup: {error}") from error
    if FILE not in names or wrong:
        raise UsageError(f"{folder}: not a whole backup: {(wrong or [FILE])[0]} is not what was written")
    return manifest


def restore(folder: Path, data_dir: Path, *, ahead: int = AHEAD, address: Address | None = None) -> Manifest:
    """Make the server's folder ``data_dir``, or the empty database at ``address``, what the backup says.

    So many numbers of rounds, versions and releases are left out ``ahead``, beyond those that are noted as published,
    as vehicles may have seen some of them since (see `store_ahead`); 0 where the server has done nothing since the
    backup, and the store is to be the same. The store gets its place last, when all else is on the disk: killed
    before, this may be done again. Raises UsageError for a backup that is not whole, and when the server has a store
    already: nothing is replaced.
    """
    manifest = verify(folder)
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_free(folder, data_dir)
    if not ahead:
        _check_newest(data_dir, manifest)
    for name in KEYS.keys() & manifest.files.keys():
        write_file(data_dir / name, (folder / name).read_bytes(), mode=KEYS[name])
    if address is None:
        _place_store(folder, data_dir, manifest, ahead=ahead)
    else:
        _fill(folder, data_dir, manifest, ahead=ahead, address=address)
    return manifest


def _check_free(folder: Path, data_dir: Path) -> None:
    """Raise UsageError when there is a store already, or the key of another server."""
    taken = [
        name for name in KEYS if (data_dir / name).exists() and not _same(folder / name, data_dir / name)
    ]
    if (data_dir / FILE).exists():
        taken.insert(0, FILE)
    if taken:
        raise UsageError(f"{data_dir}: holds {taken[0]} already; move it away first, nothing was changed")


def _place_updates(folder: Path, data_dir: Path, manifest: Manifest) -> None:
    (data_dir / UPDATES).mkdir(exist_ok=True, mode=0o700)
    for name in manifest.files:
        if IN_UPDATES.fullmatch(name):
            _place(folder / name, data_dir / name)


def _check_newest(data_dir: Path, manifest: Manifest) -> None:
    """Raise UsageError when the server has published more since the backup."""
    noted = store_published.read(data_dir)
    kept = Published(manifest.newest_round, manifest.newest_version, noted.release)
    if noted.above(kept):
        told = f"published since the backup: {noted.told_beside(kept)}"
        raise UsageError(f"{data_dir}: {told}: restore without --ahead 0, nothing was changed")


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.read_bytes() == other.read_bytes()


def _place_store(folder: Path, data_dir: Path, manifest: Manifest, *, ahead: int) -> None:
    """Step the store ahead beside its place, then give it the place."""
    _place_updates(folder, data_dir, manifest)
    building = data_dir / RESTORING
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode=0o700)
    _place(folder / FILE, building / FILE)
    if ahead:
        store = open_store(building, fleet=manifest.fleet, task=manifest.task)
        try:
            with store.write() as connection:
                step_beyond(connection, store_published.read(data_dir), by=ahead)
        finally:
            store.close()
        _make_single(building / FILE)
        _sync(building / FILE)
    (building / FILE).replace(data_dir / FILE)
    _sync(data_dir)
    shutil.rmtree(building, ignore_errors=True)


def _fill(folder: Path, data_dir: Path, manifest: Manifest, *, ahead: int, address: Address) -> None:
    """Copy the store into an empty database, in one transaction."""
    target = open_older(data_dir, fleet=manifest.fleet, task=manifest.task, address=address)
    source = open_reader(folder)
    try:
        with target.write() as writing, source.read() as reading:
            if store_models.newest_version(writing) is not None or store_updates.audit_head(writing)[0]:
                raise UsageError(f"{address}: holds a store already; nothing was changed")
            _place_updates(folder, data_dir, manifest)
            _copy_rows(reading, writing)
            if ahead:
                step_beyond(writing, store_published.read(data_dir), by=ahead)
    finally:
        source.close()
        target.close()


def _make_single(path: Path) -> None:
    """Make a store one file that is complete in itself, without a log beside it."""
    file = sqlite3.connect(path)
    try:
        file.execute("PRAGMA journal_mode=DELETE")
    finally:
        file.close()


def _place(source: Path, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    shutil.copyfile(source, temporary)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _digest(path: Path) -> dict[str, Any]:
    digest, size = sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return {"size_bytes": size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
