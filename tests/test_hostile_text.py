"""Text that vehicles, recordings or file names bring is shown in every view and report, and obeyed in none."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import tiny_task
from server_world import configuration
from sqlalchemy import update
from test_coordinator import World
from typer.testing import CliRunner

from fedfleet.cli import evidence, inspect, live, page, tables
from fedfleet.cli.main import app
from fedfleet.cli.progress import steps
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server import gauges, logs, schema, store_quarantine, store_updates
from fedfleet.fleet_server.config_observe import LogsConfig
from fedfleet.fleet_server.status import snapshot
from fedfleet.models.task import Metric
from fedfleet.protocol.printable import printable

TITLE = "\x1b]0;owned\x07"  # sets a terminal's title
FORGED = "\r\n2026 forged line <script>alert(1)</script> $\\frac"
HOSTILE = f"[/oops] [bold]:skull: {TITLE}\x1b[31;5;7m\x9b2J\u202egnp.exe\u200b{FORGED}"
OBEYED = (TITLE, "\x1b[31;5;7m", "\x9b", "\u202e", "\u200b", "\r", "\n2026 forged", "\x07")
SHOWN = "[/oops] [bold]:skull: \\x1b]0;owned"


def is_only_shown(text: str, *, where: str = "") -> None:
    for raw in OBEYED:
        assert raw not in text, f"{where}: {raw!r} is in {text!r}"
    assert SHOWN in " ".join(text.split()), f"{where}: {text!r}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fleet's folder in whose store every text that somebody else wrote is hostile."""
    place = tmp_path_factory.mktemp("fleet")
    world = World(configuration(place))
    world.drive("n-0", "n-1", "n-2", "s-0", "s-1")
    world.turn(12)
    with world.parts.store.write() as connection:
        connection.execute(update(schema.vehicle).values(reason=HOSTILE, eligible=False))
        connection.execute(update(schema.round_).values(reason=HOSTILE))
        store_updates.count(connection, f"refused:{HOSTILE}", 3)
        bad = store_quarantine.Quarantined(
            1.0, HOSTILE, HOSTILE, HOSTILE, HOSTILE, sha256=HOSTILE, size_bytes=3, head=b"abc"
        )
        store_quarantine.put_aside(connection, [bad], keep=10, keep_bytes=1000)
    (place / "fedfleet.toml").write_text(f'work_dir = "{place}"\n', encoding="utf-8")
    yield place
    world.parts.close()


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        ("server", "rounds"),
        ("server", "vehicles"),
        ("server", "quarantine", "list"),
        ("server", "quarantine", "show", "1"),
        ("status",),
    ],
    ids=" ".join,
)
def test_a_view_of_the_store_shows_it(folder: Path, words: tuple[str, ...], terminal: bool) -> None:
    env = {"COLUMNS": "1000", **({"FORCE_COLOR": "1"} if terminal else {})}
    config = ["--config", str(folder / "fedfleet.toml")]
    words = (words[0], *config, *words[1:])
    done = CliRunner().invoke(app, words, env=env)
    assert done.exit_code == 0, done.output
    is_only_shown(done.stdout, where=" ".join(words))
    done = CliRunner().invoke(app, [*words, "--json"], env=env)
    assert done.exit_code == 0, done.output
    assert done.stdout.rstrip("\n").isprintable()
    assert "forged line" in done.stdout


def test_the_live_table_and_its_line_show_it(folder: Path) -> None:
    found = snapshot(folder / "server", 1e9)
    found["regions"] = {HOSTILE: next(iter(found["regions"].values())) | {"state": HOSTILE}}
    found["fleet"] = found["task"] = HOSTILE
    found["metric"] = {**found["metric"], "name": HOSTILE, "unit": HOSTILE}
    is_only_shown(drawn(live.view(found, width=2000, note=HOSTILE)))
    console = Terminal()
    console.file = io.StringIO()
    console.say(live.line(found))
    is_only_shown(console.file.getvalue())


def drawn(renderable: Any) -> str:
    console = Terminal()
    console.file, console.width = io.StringIO(), 2000
    console.print(renderable)
    return console.file.getvalue()


def test_a_table_shows_it_in_title_heading_and_cells() -> None:
    for terminal in (False, True):
        console = Terminal()
        console.file, console.width, console._force_terminal = io.StringIO(), 2000, terminal
        tables.show(console, HOSTILE, [tables.Column(HOSTILE)], [[HOSTILE]])
        is_only_shown(console.file.getvalue())
        assert console.file.getvalue().count("forged") >= 2


def test_progress_shows_it() -> None:
    for terminal in (False, True):
        console = Terminal(stderr=True)
        console.file, console.width, console._force_terminal = io.StringIO(), 2000, terminal
        with steps("reading", console) as tell:
            tell(1, 2, HOSTILE)
        is_only_shown(console.file.getvalue())


# --- recordings and file names ---


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder with a hostile name, of recordings whose names, and so regions and drives, are hostile."""
    place = tmp_path / HOSTILE.replace("/", "⁄")
    tiny_task.generate(tmp_path / "plain", regions=("north",), drives=3)
    place.mkdir()
    for number, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        name = HOSTILE.replace("/", "⁄").replace("script", "b")
        (place / f"{name}--drive{number}{name}.npy").write_bytes(file.read_bytes())
    return place


@pytest.mark.parametrize(
    "words",
    [("scenarios", "list"), ("scenarios", "check"), ("status", "-c"), ("inspect",), ("replay", "--model")],
    ids=" ".join,
)
def test_names_of_folders_and_files_are_shown(recordings: Path, words: tuple[str, ...]) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(tiny_task.__file__).parent), "COLUMNS": "1000"}
    if words[0] == "scenarios":
        words = (*words, "--task", "tiny_task:TASK", "-s", str(recordings))
    else:
        words = (*words, str(recordings / f"{HOSTILE.replace('/', '⁄')}.bin"))
    done = subprocess.run(
        [sys.executable, "-m", "fedfleet.cli.main", *words], env=env, capture_output=True, check=False
    )
    text = (done.stdout + done.stderr).decode()
    assert "Traceback" not in text
    assert done.returncode == (0 if words[0] == "scenarios" else 2), text
    for raw in OBEYED:
        assert raw not in text, f"{raw!r} is in {text!r}"
    assert "\\x1b]0;owned" in text


def test_a_name_that_is_not_unicode_is_shown(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    os.close(os.open(os.fsencode(tmp_path / "bad") + b"/x\xff\x1b[31m.parquet", os.O_CREAT | os.O_WRONLY))
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [sys.executable, "-m", "fedfleet.cli.main", "scenarios", "list", "-s", "bad"],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2
        text = done.stderr.decode()
        assert "Traceback" not in text
        assert text.count("\n") == 1
        assert "x\\udcff\\x1b[31m.parquet" in text


# --- pages ---


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.tags.append(tag)


def test_pages_show_it() -> None:
    text = page.document(
        HOSTILE,
        page.tiles([(HOSTILE, HOSTILE)])
        + page.grid([HOSTILE], [[HOSTILE]])
        + evidence.provenance({HOSTILE: HOSTILE})
        + f"<p>{page.escape(HOSTILE)}",
    )
    reader = Tags()
    reader.feed(text)
    assert "script" not in reader.tags
    for raw in OBEYED:
        assert raw not in text
    assert text.count("\\x1b]0;owned") == 8


def test_pictures_show_it(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def draw(axes: Any) -> None:
        axes.bar([HOSTILE, "\udcff"], [1.0, 2.0], label=HOSTILE)
        axes.set(title=HOSTILE, xlabel=HOSTILE)
        axes.set_xticks([0, 1], labels=[HOSTILE, "\udcff"])
        axes.legend()

    assert "<script" not in page.svg(draw)
    page.png(draw, tmp_path / "x.png")
    rows = np.ones((5, 3))
    page.svg(
        lambda axes: evidence.draw_map(
            axes, rows, region=HOSTILE, metric=Metric(HOSTILE, HOSTILE, "lower"), top=1.0
        )
    )


def test_every_page_escapes_through_one_function() -> None:
    for path in (Path(page.__file__).parent).glob("*.py"):
        found = re.findall(r"html\.escape|\bConsole\b|\bmarkup=True", path.read_text(encoding="utf-8"))
        assert not found or path.name in {"page.py", "terminal.py"}, f"{path.name}: {found}"
        said = re.findall(
            r"typer\.echo\((?!\s*json\.dumps|text, nl|\()[^\n]*", path.read_text(encoding="utf-8")
        )
        allowed = {'typer.echo(keys.load_or_create(settings.work_dir / "vehicles" / vehicle).public.hex())'}
        assert set(said) <= allowed, f"{path.name}: {said}"


# --- what an update holds, the log, Prometheus ---


def test_inspect_shows_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspect.Inspected(10, HOSTILE, HOSTILE, message={HOSTILE: [HOSTILE]})
    inspect._show(Terminal(), found)
    text = capsys.readouterr().out
    is_only_shown(text.splitlines()[0])
    for raw in OBEYED:
        assert raw not in text


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_line_of_the_log_stays_one_line(form: str) -> None:
    stream = io.StringIO()
    logs.configure(LogsConfig(format=form, level="debug"), stream)
    try:
        structlog.get_logger().bind().warning(
            HOSTILE, vehicle=HOSTILE, reason=HOSTILE, half="\udcff", grüße="ä"
        )
    finally:
        structlog.reset_defaults()
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert "grüße" in line
    if form == "json":
        assert json.loads(line)["vehicle"] == HOSTILE
    stream.getvalue().encode()


def test_a_label_of_prometheus_is_read_back_as_it_was(folder: Path) -> None:
    client = pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    from fedfleet.fleet_server import telemetry

    made = telemetry.Telemetry(folder / "server", ("north", "south"), waiting=lambda: 0, overflows=lambda: 0)
    text = client.generate_latest(made.registry).decode()
    found = [
        sample
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "fedfleet_messages_refused_total"
    ]
    assert [sample.labels["reason"] for sample in found if sample.value == 3] == [printable(HOSTILE)]
    assert gauges.OTHER not in {sample.labels["reason"] for sample in found}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ✓ ünï 漢字 עברית", "plain ✓ ünï 漢字 עברית"),
        ("\x00\x1b\x7f\x9b", "\\x00\\x1b\\x7f\\x9b"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\u202e\u200f\u2066\ufeff\u2028", "\\u202e\\u200f\\u2066\\ufeff\\u2028"),
        ("\udc80", "\\udc80"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_shown_of_a_character(text: str, shown: str) -> None:
    assert printable(text) == shown
