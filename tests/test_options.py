"""Options go where people write them: `-c` before or after any command, `-h`, `--version`, completion."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from server_world import configuration
from test_coordinator import World
from typer.testing import CliRunner

from fedfleet.cli.main import app
from fedfleet.cli.reference import paths
from fedfleet.protocol.errors import UsageError

COMMANDS = list(paths(typer.main.get_command(app), ()))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A configuration file, elsewhere, of a fleet with a store."""
    place = tmp_path_factory.mktemp("fleet")
    world = World(configuration(place))
    world.drive("n-0", "n-1", "n-2", "s-0", "s-1")
    world.turn(3)
    (place / "here.toml").write_text(f'work_dir = "{place}"\n', encoding="utf-8")
    yield place / "here.toml"
    world.parts.close()


def said(*words: str) -> Any:
    return CliRunner().invoke(app, words)


READING = [
    ("server", "rounds"),
    ("server", "vehicles"),
    ("server", "models"),
    ("server", "check"),
    ("server", "quarantine"),
    ("server", "quarantine", "list"),
    ("status",),
]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_the_configuration_may_stand_at_any_place(fleet: Path, words: tuple[str, ...]) -> None:
    for place in range(len(words) + 1):
        for option in (["-c", str(fleet)], ["--config", str(fleet)], [f"--config={fleet}"]):
            done = said(*words[:place], *option, *words[place:])
            assert done.exit_code == 0, f"{words} {place}: {done.output} {done.exception}"
    # twice the same is the same, two are a mistake
    assert said("-c", str(fleet), *words, "-c", str(fleet)).exit_code == 0
    done = said("-c", "other.toml", *words, "-c", str(fleet))
    assert isinstance(done.exception, UsageError)
    assert "the configuration was named before: other.toml" in str(done.exception)


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "fedfleet")
def test_every_command_has_help_and_a_configuration(path: tuple[str, ...]) -> None:
    for option in ("-h", "--help"):
        done = said(*path, option)
        assert done.exit_code == 0, done.output
        assert "Usage" in done.output
    assert (
        "--config" in CliRunner().invoke(app, [*path, "-h"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    )


def test_quarantine_alone_lists(fleet: Path) -> None:
    assert (
        said("server", "quarantine", "-c", str(fleet)).output
        == said("server", "quarantine", "list", "-c", str(fleet)).output
    )


@pytest.mark.parametrize(
    "words",
    [
        *READING,
        ("server", "enrol", "v01", "--region", "north", "--key", "00" * 32),
        ("server", "deny", "v01"),
        ("server", "backup", "copy"),
        ("server", "quarantine", "show", "1"),
        ("server", "quarantine", "export", "kept"),
    ],
    ids=" ".join,
)
def test_without_a_fleet_a_command_refuses_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = said(*words)
    assert isinstance(done.exception, UsageError), done.output
    assert "no fleet server has kept its store here" in str(done.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [("--wait",), ("-s", "folder")], ids=" ".join)
def test_an_option_of_the_server_alone_is_refused_before_its_commands(
    fleet: Path, option: tuple[str, ...]
) -> None:
    done = said("server", "-c", str(fleet), *option, "rounds")
    assert isinstance(done.exception, UsageError)
    assert "goes with `fedfleet server` alone, not with `rounds`" in str(done.exception)


def test_a_command_that_takes_nothing_from_a_configuration_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "fedfleet.cli.main", "inspect", "x.bin", "-c", "fleet.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[0] == (
        "note: inspect takes nothing from a configuration: fleet.toml is not read"
    )


def test_the_version_is_told() -> None:
    done = said("--version")
    assert done.exit_code == 0
    assert done.output.startswith("fedfleet 0.")
    assert "Python 3." in done.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    words = {"bash": {"COMP_WORDS": "fedfleet sta", "COMP_CWORD": "1"}}.get(
        shell, {"_TYPER_COMPLETE_ARGS": "fedfleet sta"}
    )
    env = {
        **os.environ,
        "_FEDFLEET_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        **words,
    }
    script = Path(sys.executable).with_name("fedfleet")
    done = subprocess.run([str(script)], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "status" in done.stdout, done.stderr
    assert "scenarios" not in done.stdout
    env = {**os.environ, "SHELL": f"/bin/{shell}"}
    command = [str(script), "--show-completion"]
    shown = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert "_FEDFLEET_COMPLETE" in shown.stdout or "shell" in (shown.stdout + shown.stderr).lower()
