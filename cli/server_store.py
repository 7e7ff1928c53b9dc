"""``fedfleet server quarantine``, ``check``, ``backup`` and ``restore``: the store, looked at and looked after."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from fedfleet.cli.config import load
from fedfleet.cli.launch import server_dir, server_place
from fedfleet.cli.options import ConfigFile, Json
from fedfleet.cli.tables import Column, moment, show
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server import store_quarantine
from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.store import open_older, open_reader, open_store
from fedfleet.fleet_server.store_files import UPDATES
from fedfleet.fleet_server.store_quarantine import Quarantined
from fedfleet.fleet_server.store_updates import counters
from fedfleet.protocol.errors import UsageError

__all__ = ["ahead", "backup", "check", "quarantine", "rekey", "restore"]

FIRST_BYTES = 64
_AHEAD = 1000
NAMES_SHOWN = 20
quarantine = typer.Typer(help="Look at the messages that were refused.", invoke_without_command=True)

Reason = Annotated[str, typer.Option(help="Only those refused for this reason.", show_default=False)]


@contextmanager
def _store(config: Path | None) -> Iterator[Connection]:
    store = open_reader(server_dir(load(config)))
    try:
        with store.read() as connection:
            yield connection
    finally:
        store.close()


@quarantine.callback()
def look(context: typer.Context, config: ConfigFile = None) -> None:
    """Look at the messages that were refused; alone it is `list`."""
    if context.invoked_subcommand is None:
        list_(config=config)


@quarantine.command("list")
def list_(
    reason: Reason = "",
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="How many, the newest.")] = 20,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Show the newest refused messages and how many were refused for which reason since the store began."""
    with _store(config) as connection:
        found = store_quarantine.quarantined(connection, limit=last, reason=reason)
        kept, kept_bytes = store_quarantine.totals(connection)
        reasons = {
            name.removeprefix("refused:"): count
            for name, count in counters(connection).items()
            if name.startswith("refused:")
        }
    if as_json:
        told = {"kept": kept, "kept_bytes": kept_bytes, "refused": reasons}
        typer.echo(json.dumps({**told, "messages": [_plain(one) for one in found]}))
        return
    columns = [
        Column("number", is_number=True),
        Column("refused (UTC)"),
        Column("reason"),
        Column("vehicle"),
        Column("bytes", is_number=True),
        Column("detail"),
    ]
    rows = [
        [str(one.number), moment(one.at_s), one.reason, one.vehicle or "–", str(one.size_bytes), one.detail]
        for one in found
    ]
    show(Terminal(), f"Quarantine: {kept} messages, {kept_bytes / 1000:.0f} kB kept", columns, rows)
    if reasons:
        Terminal().say(
            "refused so far: " + ", ".join(f"{name} {count}" for name, count in sorted(reasons.items()))
        )


@quarantine.command("show")
def show_(
    number: Annotated[int, typer.Argument(help="Its number in the list.", show_default=False)],
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Show one refused message: why, from where, its digest and how it begins."""
    with _store(config) as connection:
        one = store_quarantine.find(connection, number)
    if one is None:
        raise UsageError(f"quarantine: no message {number}")
    if as_json:
        typer.echo(json.dumps({**_plain(one), "head_hex": one.head.hex()}))
        return
    console = Terminal()
    for name, value in _plain(one).items():
        console.say(f"{name:12} {value}")
    console.say(f"{'begins':12} {one.head[:FIRST_BYTES].hex(' ', 8)}")


@quarantine.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="New folder.", show_default=False)],
    reason: Reason = "",
    config: ConfigFile = None,
) -> None:
    """Write all kept messages to a folder: N.bin with the bytes that were kept, and index.json."""
    if folder.exists():
        raise UsageError(f"{folder}: is there already; the messages are written to a new folder")
    with _store(config) as connection:
        kept, _ = store_quarantine.totals(connection)
        found = store_quarantine.quarantined(connection, limit=kept + 1, reason=reason)
    folder.mkdir(parents=True, mode=0o700)
    for one in found:
        write_file(folder / f"{one.number}.bin", one.head)
    write_file(folder / "index.json", json.dumps([_plain(one) for one in found], indent=1).encode())
    Terminal().say(f"{len(found)} messages in {folder}")


def _plain(one: Quarantined) -> dict[str, Any]:
    return {
        "number": one.number,
        "at_s": one.at_s,
        "reason": one.reason,
        "detail": one.detail,
        "vehicle": one.vehicle,
        "topic": one.topic,
        "sha256": one.sha256,
        "size_bytes": one.size_bytes,
        "kept_bytes": len(one.head),
    }


def check(as_json: Json = False, config: ConfigFile = None) -> None:
    """Check the store: the file, the audit chain, every update's one fate, updates' files, blobs, models by digest.

    The exit code is 1 when something is wrong. The server may go on running.
    """
    from fedfleet.fleet_server import store_check

    with _store(config) as connection:
        found, unnamed = store_check.problems(connection), store_check.orphans(connection)
    if found or unnamed:  # a running server may have forgotten, or named, a file in between
        with _store(config) as connection:
            again, unnamed_now = store_check.problems(connection), store_check.orphans(connection)
        found = [line for line in found if line in again]
        unnamed = [name for name in unnamed if name in unnamed_now]
    if as_json:
        typer.echo(json.dumps({"whole": not found, "problems": found, "unnamed_files": unnamed}))
    else:
        more = [
            f"{UPDATES}/{name}: no row names it; the server removes it when it starts" for name in unnamed
        ]
        if len(more) > NAMES_SHOWN:
            more[NAMES_SHOWN:] = [f"… and {len(unnamed) - NAMES_SHOWN} more files that no row names"]
        Terminal().say_all([*(found or ["the store is whole"]), *more])
    if found:
        raise typer.Exit(1)


def backup(
    folder: Annotated[Path, typer.Argument(help="New folder for the backup.", show_default=False)],
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Back the server up, also while it runs: store and signing key, checked, with a digest of every file.

    The folder holds the server's secret key: keep it as safe as the server.
    """
    from fedfleet.fleet_server import store_backup

    manifest = store_backup.backup(server_dir(load(config)), folder, now_s=time.time())
    told = f"round {manifest.newest_round}, version {manifest.newest_version}, {manifest.updates} updates"
    if as_json:
        typer.echo(json.dumps(asdict(manifest)))
    else:
        Terminal().say(f"{folder}: {told}")


def ahead(
    by: Annotated[
        int,
        typer.Option(min=1, max=1_000_000, help="Numbers to leave out beyond the newest that was published."),
    ] = 1000,
    config: ConfigFile = None,
) -> None:
    """Go on from a store that went back in time, at numbers that no vehicle has seen. The server must not run.

    Its newest model gets a new number and is what the fleet trains on; rounds that ran are abandoned, their updates
    returned. Bring the newer store back instead where you have it: what happened after this one is lost to the server.
    """
    from fedfleet.fleet_server import store_ahead, store_published

    place = server_place(load(config))
    if not (place.data_dir / store_published.FILE).exists():
        open_reader(place.data_dir).close()  # where there was none, none is made
    store = open_older(place.data_dir, fleet=place.fleet, task=place.task, address=place.address)
    try:
        with store.write() as connection:
            store_ahead.step_beyond(connection, store_published.read(place.data_dir), by=by)
            now = store_published.of_store(connection)
            begin = store_published.planned_begin(connection)
    finally:
        store.close()
    goes_on = f"goes on at version {now.version}, round {now.round}"
    Terminal().say(f"{place.data_dir}: {f'its first model will be version {begin}' if begin else goes_on}")


def rekey(
    sure: Annotated[
        bool, typer.Option("--yes", help="Make the new key; without it, only say what it means.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Give a server whose key is lost a new one. Every vehicle must then enrol again. The server must not run.

    Vehicles believe the key that they pinned when they enrolled: until they enrol again, each in an empty folder and
    with a fresh code, they take nothing from the server, and train nothing. Restore server.key from a backup instead
    where there is one.
    """
    from fedfleet.fleet_server.keys import make_anew

    place = server_place(load(config))
    open_reader(place.data_dir).close()  # where there is none, none is made
    if not sure:
        raise UsageError(
            f"{place.data_dir}: with a new key every vehicle must enrol again, in an empty folder and with a fresh "
            "code: restore server.key from a backup if there is one, else add --yes"
        )
    store = open_store(place.data_dir, fleet=place.fleet, task=place.task, address=place.address)
    try:
        before, now = make_anew(store, os.urandom)
    finally:
        store.close()
    told = f"{before[:12]}… is no longer its key" if before else "its key before is not known"
    Terminal().say(f"{place.data_dir}: new key {now}; {told}; now every vehicle must enrol again")


def restore(
    folder: Annotated[Path, typer.Argument(help="Folder of the backup.", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Only compare every byte of the backup.")] = False,
    ahead: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1_000_000,
            help="Numbers of rounds and versions to leave out: vehicles may have seen them after the backup. "
            "0: nothing happened since; without it 1000.",
            show_default=False,
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Bring a backup back as the server's store; the server's folder, or its database, must hold none yet."""
    from fedfleet.fleet_server import store_backup

    if verify and ahead is not None:
        raise UsageError("--ahead: goes with a backup that is brought back, not with --verify")
    settings = load(config)
    if verify:
        manifest = store_backup.verify(folder)
    else:
        address = settings.server.store.address()
        manifest = store_backup.restore(
            folder, server_dir(settings), ahead=_AHEAD if ahead is None else ahead, address=address
        )
    told = f"round {manifest.newest_round}, version {manifest.newest_version}, {manifest.updates} updates"
    Terminal().say(f"{folder}: {'whole' if verify else 'restored'}: {told}")
