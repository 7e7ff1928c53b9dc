"""The server's key: made once, secret, and never another one in silence."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_world import FLEET, configuration
from test_coordinator import ALL, World
from typer.testing import CliRunner

from fedfleet.cli.main import app
from fedfleet.fleet_server.keys import PRIVATE, PUBLIC, load_key, make_anew
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.fleet_server.store_backup import backup, restore
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.protocol.errors import UsageError

WAY_OUT = (
    "restore server.key from a backup of this server, or .*`fedfleet server rekey`.*every vehicle must enrol"
)


def never(_count: int) -> bytes:
    raise AssertionError("a key was made")


@pytest.fixture
def store(tmp_path: Path, address: Address | None) -> Iterator[Store]:
    made = open_store(tmp_path, fleet=FLEET, task="t", address=address)
    yield made
    made.close()


def test_it_is_made_once_with_its_store_and_kept_secret(store: Store) -> None:
    folder = store.folder
    key = load_key(store, lambda n: b"7" * n)
    assert load_key(store, never).public == key.public
    assert (folder / PUBLIC).read_text() == f"{key.public.hex()}\n"
    assert (folder / PRIVATE).stat().st_mode & 0o777 == 0o600
    # a start that was killed after the key was written goes on with it
    other = open_store(folder / "other", fleet=FLEET, task="t")
    (folder / "other" / PRIVATE).write_bytes((folder / PRIVATE).read_bytes())
    (folder / "other" / PRIVATE).chmod(0o600)
    assert load_key(other, never).public == key.public
    other.close()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "gone": (lambda path: path.unlink(), rf"server.key: the server's key \(\w{{12}}…\) is gone; {WAY_OUT}"),
    "another fleet's": (
        lambda path: path.write_text("07" * 32),
        rf"server.key: is \w{{12}}…, the vehicles of this store believe \w{{12}}…; {WAY_OUT}",
    ),
    "half-written": (
        lambda path: path.write_text("37" * 20),
        rf"server.key: expected 64 hex digits, got 40 characters; {WAY_OUT}",
    ),
    "empty": (lambda path: path.write_bytes(b""), "expected 64 hex digits, got 0 characters"),
    "no text": (lambda path: path.write_bytes(b"\xff" * 64), "expected 64 hex digits"),
    "open to others": (lambda path: path.chmod(0o644), "only its owner may read"),
    "a folder": (lambda path: (path.unlink(), path.mkdir(mode=0o700)), "cannot be read: Is a directory"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_key_that_is_not_whole_is_refused_in_one_line(how: str, store: Store) -> None:
    # given a server that has begun with a key
    public = load_key(store, lambda n: b"7" * n).public.hex()
    break_, words = BROKEN[how]
    path = store.folder / PRIVATE
    # when its file is not what it was
    break_(path)
    before = path.read_bytes() if path.is_file() else None
    # then it does not start, says what to do, and touches neither half
    with pytest.raises(UsageError, match=words):
        load_key(store, never)
    assert (path.read_bytes() if path.is_file() else None) == before
    assert (store.folder / PUBLIC).read_text().strip() == public


def test_a_store_of_an_earlier_version_knows_its_key_by_the_public_file(store: Store) -> None:
    # given a folder as an earlier version left it: the public half is in its file only, and the key is gone
    (store.folder / PUBLIC).write_text("ab" * 32 + "\n")
    with pytest.raises(UsageError, match=r"server's key \(abababababab…\) is gone"):
        load_key(store, never)


def test_a_server_that_has_begun_makes_no_other_key(tmp_path: Path) -> None:
    # given a fleet that has published, then lost its key with its public half
    world = World(configuration(tmp_path))
    world.drive(*ALL)
    world.turn(10)
    world.kill()
    for name in (PRIVATE, PUBLIC):
        (world.config.data_dir / name).unlink()
    # then the server does not start with another one
    with pytest.raises(UsageError, match=r"the server's key .* is gone"):
        world.start()
    assert not (world.config.data_dir / PRIVATE).exists()


def test_a_new_key_is_made_when_it_is_asked_for(store: Store) -> None:
    # given a lost key
    old = load_key(store, lambda n: b"7" * n).public.hex()
    (store.folder / PRIVATE).unlink()
    # when a new one is made, then the server starts with it
    before, now = make_anew(store, lambda n: b"8" * n)
    assert before == old != now
    assert load_key(store, never).public.hex() == now
    assert (store.folder / PUBLIC).read_text().strip() == now
    # and a key that is replaced though it is there is kept aside, as secret as before
    make_anew(store, lambda n: b"9" * n)
    kept = store.folder / f"{PRIVATE}.old"
    assert kept.read_text().strip() == (b"8" * 32).hex()
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_backup_brings_the_key_that_its_store_knows(tmp_path: Path) -> None:
    store = open_store(tmp_path / "server", fleet=FLEET, task="t")
    key = load_key(store, lambda n: b"7" * n)
    store.close()
    backup(tmp_path / "server", tmp_path / "backup", now_s=7.0)
    restore(tmp_path / "backup", tmp_path / "restored")
    restored = open_store(tmp_path / "restored", fleet=FLEET, task="t")
    assert load_key(restored, never).public == key.public
    restored.close()


def test_the_commands_of_a_last_resort_ask_first_and_say_what_they_did(tmp_path: Path) -> None:
    # given a server's folder with a store, and one without
    config = tmp_path / "fedfleet.toml"
    config.write_text(f'fleet = "{FLEET}"\nwork_dir = "{tmp_path / "work"}"\n')
    command = ("server", "--config", str(config))
    for name in (("rekey", "--yes"), ("ahead",)):
        nothing = CliRunner().invoke(app, [*command, *name])
        assert "no fleet server has kept its store here" in str(nothing.exception)
    store = open_store(tmp_path / "work" / "server", fleet=FLEET, task="motion_forecast")
    old = load_key(store, lambda n: b"7" * n).public.hex()
    store.close()
    # then a new key is made only when it is asked for twice
    with pytest.raises(UsageError, match=r"every vehicle must enrol again.* else add --yes"):
        CliRunner().invoke(app, [*command, "rekey"], catch_exceptions=False)
    done = CliRunner().invoke(app, [*command, "rekey", "--yes"], catch_exceptions=False)
    assert f"{old[:12]}… is no longer its key" in done.output.replace("\n", " ")
    # and a store that has no model yet will begin with the number that it is told
    done = CliRunner().invoke(app, [*command, "ahead", "--by", "50"], catch_exceptions=False)
    assert "its first model will be version 50" in done.output.replace("\n", " ")
