"""What server and vehicle keep is for their own user, whatever the umask of who started them allows."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_site import ALL, Site
from server_world import FLEET
from test_ingest import NOW_S, to_topic
from test_store_files import ingest_of, large, send
from test_store_files import opened as opened  # noqa: PLC0414 - fixtures
from test_store_files import store as store  # noqa: PLC0414
from typer.testing import CliRunner

from fedfleet.cli.processes import start
from fedfleet.fleet_server import registry
from fedfleet.fleet_server.files import write_file
from fedfleet.fleet_server.keys import PUBLIC, load_key
from fedfleet.fleet_server.registry import Place
from fedfleet.fleet_server.store import FILE, Store, open_store
from fedfleet.fleet_server.store_backup import backup, restore
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.protocol import chunks
from fedfleet.vehicle_agent.journal import Journal


@pytest.fixture
def permissive() -> Iterator[None]:
    """A umask that takes nothing away."""
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """All files and folders below that others than the owner may read, write or enter."""
    found = [path for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077]
    return sorted(str(path.relative_to(folder.parent)) for path in found if not path.is_symlink())


def test_a_server_process_keeps_everything_to_itself(
    tmp_path: Path, processes: Any, mosquitto_binary: Path
) -> None:
    # given a server that is started with a permissive umask, runs a round, and is looked at while it runs
    assert mosquitto_binary.exists()
    site = Site(tmp_path, processes, rounds=2)
    try:
        site.server.terminate()
        site.server.wait(10)
        site.start_server(before=("bash", "-c", 'umask 000; exec "$@"', "-"))
        site.drive()
        site.run_until(lambda: site.shown().get("version") == 2, "two versions are published")
        folder = site.config.data_dir
        assert (folder / f"{FILE}-wal").exists()
        assert (folder / "model.onnx").exists()
        found = open_to_others(folder)
        assert len(ALL) == site.shown()["updates"] / 2
    finally:
        site.close()
        site.server.kill()
        site.server.wait(10)
    # then nothing but its public key is for others; the rest was there before it
    made_by_the_test = {"server", "server/export"} | {
        f"server/export/{each.name}" for each in (folder / "export").iterdir()
    }
    assert set(found) - made_by_the_test == {f"server/{PUBLIC}"}


@pytest.mark.usefixtures("permissive")
@pytest.mark.parametrize("address", [None])
def test_store_files_pieces_backups_and_keys_are_private(
    store: Store, tmp_path: Path, address: Address | None
) -> None:
    # given a store with an update in a file, pieces of another, a key; and a backup, brought back
    assert address is None
    send(store, "v-1", large("v-1"))
    ingest_of(store).receive([to_topic("v-2", chunks.split(large("v-2"))[0])], NOW_S)
    load_key(store, lambda n: b"7" * n)
    backup(store.folder, tmp_path / "backup", now_s=7.0)
    restore(tmp_path / "backup", tmp_path / "restored")
    assert sum(path.is_file() for path in store.folder.rglob("*")) >= 7
    for folder in (store.folder, tmp_path / "backup", tmp_path / "restored"):
        assert open_to_others(folder) == [f"{folder.name}/{PUBLIC}"]


@pytest.mark.usefixtures("permissive")
def test_an_operators_command_that_makes_the_store_makes_it_private(tmp_path: Path) -> None:
    place = Place(tmp_path / "server", FLEET, "t")
    registry.enrol(place, "v-1", region="north", public_key=b"k" * 32, now_s=1.0)
    assert open_to_others(tmp_path / "server") == []


@pytest.mark.usefixtures("permissive")
def test_a_store_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    open_store(tmp_path / "server", fleet=FLEET, task="t").close()
    (tmp_path / "server" / FILE).chmod(0o644)
    open_store(tmp_path / "server", fleet=FLEET, task="t").close()
    assert open_to_others(tmp_path / "server") == []


@pytest.mark.usefixtures("permissive")
def test_a_journal_is_private_and_one_that_was_not_is_closed(tmp_path: Path) -> None:
    folder = tmp_path / "v01"
    for _ in range(2):
        journal = Journal(folder, vehicle="v01", task="t", epoch=1, seed=b"k" * 32)
        assert open_to_others(folder) == []
        journal.close()
        assert open_to_others(folder) == []
        (folder / "journal.sqlite").chmod(0o644)
    assert sqlite3.connect(folder / "journal.sqlite").execute("select 1").fetchone() == (1,)


@pytest.mark.usefixtures("permissive")
def test_logs_of_processes_and_written_files_are_private(tmp_path: Path) -> None:
    child = start("one", "fedfleet.fleet_server", ["--help"], log_dir=tmp_path / "logs")
    child.process.wait(30)
    assert child.log.read_text().startswith("usage")
    write_file(tmp_path / "logs" / "file", b"x")
    assert open_to_others(tmp_path / "logs") == []


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    from fedfleet.protocol.errors import UsageError

    (tmp_path / FILE).mkdir()
    with pytest.raises(UsageError, match=rf"store .*{FILE} cannot be opened: Is a directory"):
        open_store(tmp_path, fleet=FLEET, task="t")


@pytest.mark.usefixtures("permissive")
def test_exported_messages_are_private(tmp_path: Path) -> None:
    from fedfleet.cli.main import app

    work = tmp_path / "work"
    registry.enrol(
        Place(work / "server", "demo", "motion_forecast"), "v-1", region="r", public_key=b"k" * 32, now_s=1.0
    )
    config = tmp_path / "fedfleet.toml"
    config.write_text(f'fleet = "demo"\nwork_dir = "{work}"\n')
    done = CliRunner().invoke(
        app, ["server", "--config", str(config), "quarantine", "export", str(tmp_path / "kept")]
    )
    assert done.exit_code == 0, done.output
    assert open_to_others(tmp_path / "kept") == []
