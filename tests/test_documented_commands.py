"""The commands in README and docs are commands: every one is parsed, the quick ones are run word for word."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from crash_site import python_path
from server_world import configuration
from test_cli import scenario
from test_coordinator import World

from fedfleet.cli.main import app
from fedfleet.scenarios.table import write_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/README.md"))]
BLOCK = re.compile(r"```(?:bash|sh)\n(.*?)```", re.DOTALL)
INDENTED = re.compile(r"^    (fedfleet .*)$", re.MULTILINE)
INLINE = re.compile(r"`(fedfleet [^`]+)`")


def words_of(line: str) -> list[list[str]]:
    """The words after `fedfleet`, with and without what stands in brackets."""
    text = line.partition(" #")[0]
    both = {re.sub(r"\[[^]]*\]", "", text), text.replace("[", "").replace("]", "")}
    return [shlex.split(one)[1:] for one in sorted(both)]


def documented() -> Iterator[tuple[str, str, bool]]:
    """Page, command, and whether it is whole: prose may name a command without its arguments."""
    for page in PAGES:
        if page.name == "cli.md":
            continue
        text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
        for block in BLOCK.findall(text):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("fedfleet "):
                    yield name, line, True
        for line in INDENTED.findall(text):
            yield name, line, True
        for line in INLINE.findall(text):
            yield name, line, False


AT_ONCE = {"--install-completion", "--show-completion", "--version"}
"""Options that act, and end the command, while they are parsed: it is enough that they are there."""


def parse(words: list[str]) -> None:
    """Resolve commands and check options and arguments, as far as that goes without running anything."""
    command: Any = typer.main.get_command(app)
    known = {name for parameter in command.params for name in parameter.opts}
    if words and words[0] in AT_ONCE & known:
        return
    context: Any = None
    name = "fedfleet"
    while True:
        context = command.make_context(name, list(words), parent=context)
        words = [*context._protected_args, *context.args]
        if not hasattr(command, "commands") or not words:
            return
        name, command, words = command.resolve_command(context, words)


ALL = sorted(set(documented()))


@pytest.mark.parametrize(
    ("page", "line", "whole"), ALL, ids=[f"{page}: {line[:70]}" for page, line, _ in ALL]
)
def test_a_documented_command_can_be_parsed(page: str, line: str, whole: bool) -> None:
    for words in words_of(line):
        try:
            parse(words)
        except Exception as error:  # noqa: BLE001 - Typer vendors those of click
            told = f"{type(error).__name__} {error}"
            if whole or "MissingParameter" not in told:
                pytest.fail(f"{page}: {line}: {told}")


def test_a_command_that_there_is_not_would_be_found() -> None:
    for words in (["statuss"], ["status", "--wach"], ["server", "quarantine", "lst"], ["agent"]):
        with pytest.raises(Exception, match=r".*"):
            parse(words)


# --- run, word for word ---


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the documented commands name: FOLDER with recordings, and a fleet with a region `coast`."""
    place = tmp_path_factory.mktemp("scratch")
    (place / "FOLDER").mkdir()
    for region in ("coast", "hills"):
        rows = [scenario(f"d{n}", k, region) for n in range(6) for k in range(2)]
        write_table(place / "FOLDER" / f"{region}.parquet", rows)
    regions = {"coast": ("n-0", "n-1", "n-2"), "hills": ("s-0", "s-1")}
    world = World(configuration(place / "out" / "fleet", regions=regions))
    world.turn(3)
    yield place
    world.parts.close()


def quick() -> list[tuple[str, str]]:
    prefixes = (
        "fedfleet scenarios list",
        "fedfleet scenarios check",
        "fedfleet scenarios convert",
        "fedfleet scenarios stats",
        "fedfleet scenarios plot",
        "fedfleet scenarios partition",
        "fedfleet server rounds",
        "fedfleet server vehicles",
        "fedfleet server models",
        "fedfleet server quarantine",
        "fedfleet server check",
        "fedfleet status",
    )
    needs = ("--watch", "FEDFLEET_DATA", "--task", "17", "examples/", "quarantine show", "quarantine export")
    return [
        (page, line)
        for page, line, whole in documented()
        if whole and line.startswith(prefixes) and not any(word in line for word in needs)
    ]


@pytest.mark.parametrize(("page", "line"), quick(), ids=[line[:70] for _, line in quick()])
def test_a_quick_one_runs_word_for_word(scratch: Path, page: str, line: str) -> None:
    beside = Path(sys.executable).parent
    env = {
        **os.environ,
        "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": python_path(),
        "COLUMNS": "200",
    }
    if "--file split.json" in line:  # which the line before it makes
        before = "fedfleet scenarios partition --by dirichlet --alpha 0.1 --out split.json"
        subprocess.run(["bash", "-euc", before], cwd=scratch, env=env, capture_output=True, check=True)
    text = re.sub(r"\[([^]]*)\]", r"\1", line)
    done = subprocess.run(
        ["bash", "-euc", text], cwd=scratch, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, f"{page}: {line}\n{done.stdout}\n{done.stderr}"
    assert done.stdout
