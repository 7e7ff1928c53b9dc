"""``fedfleet scenarios``: what is in a folder of recordings, what is wrong with it, and the shipped pack made again."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from fedfleet.cli import scenarios_partition, scenarios_plot, scenarios_stats
from fedfleet.cli.config import load
from fedfleet.cli.options import ConfigFile, Json, ScenariosDir, TaskName, pack_dir, unused
from fedfleet.cli.progress import steps
from fedfleet.cli.terminal import Terminal
from fedfleet.models import task as tasks
from fedfleet.models import task_check
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.account import Account
from fedfleet.scenarios.formats import READERS
from fedfleet.scenarios.reading import open_recordings

__all__ = ["app"]

NAMED = 20

app = typer.Typer(
    help="Look into folders of driving scenarios, check, split and draw them, generate the shipped pack.",
    no_args_is_help=True,
)


@app.callback()
def scenarios_group(config: ConfigFile = None) -> None:
    """Look into folders of driving scenarios, check, split and draw them, generate the shipped pack."""
    del config  # the commands find it in their context


app.command("partition")(scenarios_partition.partition)
app.command("stats")(scenarios_stats.stats)
app.command("plot")(scenarios_plot.plot)


@app.command("list")
def list_(
    config: ConfigFile = None, scenarios: ScenariosDir = None, task: TaskName = None, as_json: Json = False
) -> None:
    """List regions, drives, recordings and seconds of a folder."""
    settings = load(config, task=task)
    folder = scenarios or settings.data.scenarios or pack_dir()
    learned = tasks.load(settings.task)
    index = learned.index(folder)
    regions: dict[str, list[tasks.Drive]] = defaultdict(list)
    for drive in index.drives:
        regions[drive.region].append(drive)
    rows = {
        region: {
            "drives": len(drives),
            "recordings": sum(drive.recordings for drive in drives),
            "seconds": round(sum(drive.seconds for drive in drives), 1),
        }
        for region, drives in sorted(regions.items())
    }
    counted = dict(index.problems) if index.is_counted else None
    found = _formats(folder, learned)
    if as_json:
        result = {
            "folder": str(folder),
            "formats": found,
            "regions": rows,
            "problems": counted,
            "not_read": _not_read(index.account),
        }
        typer.echo(json.dumps(result, indent=2))
        return
    table = Table("region", "drives", "recordings", "seconds", title=str(folder))
    for region, row in rows.items():
        table.add_row(region, *(str(value) for value in row.values()))
    console = Terminal()
    console.print(table)
    _print_formats(console, found)
    _print_account(console, index.account)
    if counted is None:
        console.say("not read yet: `fedfleet scenarios check` reads all and counts what is left out")
    else:
        _print_problems(console, counted)


@app.command("check")
def check(
    config: ConfigFile = None,
    scenarios: ScenariosDir = None,
    task: TaskName = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail when a file of the folder is not read, whatever the reason."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Read everything in a folder and count what is left out, by reason; fails when nothing is usable or judged."""
    settings = load(config, task=task)
    folder = scenarios or settings.data.scenarios or pack_dir()
    learned = tasks.load(settings.task)
    index = learned.index(folder)
    samples: dict[str, int] = {}
    judged = 0
    counted: Counter[str] = Counter()
    shown = steps("reading") if Terminal(stderr=True).is_terminal else nullcontext(lambda *_: None)
    with shown as progress:
        for done, drive in enumerate(index.drives):
            progress(done, len(index.drives), drive.key)
            read = learned.samples(folder, [drive.key])
            task_check.check_samples(learned, read)
            samples[drive.key] = len(read)
            judged += int(read.judged.sum())
            counted.update(read.problems)
    problems = dict(index.problems) if index.is_counted else dict(sorted(counted.items()))
    empty = sorted(key for key, count in samples.items() if not count)
    result: dict[str, Any] = {
        "folder": str(folder),
        "drives": len(samples),
        "samples": sum(samples.values()),
        "judged": judged,
        "formats": _formats(folder, learned),
        "drives_without_samples": empty,
        "problems": problems,
        "not_read": _not_read(index.account),
    }
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        console = Terminal()
        counts = f"{result['samples']} samples, {judged} of them judged,"
        console.say(f"{folder}: {len(samples)} drives, {counts} for task {learned.name}")
        _print_formats(console, result["formats"])
        if empty:
            console.say(f"{len(empty)} drives without a usable sample: {', '.join(empty[:5])}")
        _print_problems(console, problems)
        _print_account(console, index.account)
    if not result["samples"]:
        raise UsageError(f"{folder}: no sample is usable for task {learned.name}")
    if not judged:
        text = f"none of {result['samples']} samples is judged by task {learned.name}"
        raise UsageError(f"{folder}: {text}: no model could be judged on it")
    if strict and index.account is not None and index.account.worst is not None:
        count = sum(index.account.counts.values())
        raise UsageError(f"{folder}: {count} files are not read: {index.account.worst.text}")


@app.command("convert")
def convert(
    folder: Annotated[Path, typer.Argument(help="Folder of recordings of any format.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to write tables into.", show_default=False)],
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Write recordings as fedfleet's own Parquet tables, one per region; whatever their format."""
    from fedfleet.scenarios import convert as converter

    unused(config, "convert")

    with steps("converting recordings") as progress:
        made = converter.convert(folder, out, report=progress)
    if as_json:
        typer.echo((out / converter.RECORD_FILE).read_text(encoding="utf-8").rstrip())
        return
    console = Terminal()
    for region, row in made.regions.items():
        text = f"{out / region}.parquet: {row['scenarios']} scenarios, {row['tracks']} tracks"
        console.say(text)
    _print_problems(console, made.problems)


@app.command("generate")
def generate(
    out: Annotated[Path, typer.Argument(help="Folder to write the pack into.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Seed of the traffic; the shipped pack has seed 1.")] = 1,
    config: ConfigFile = None,
) -> None:
    """Generate the pack of four regions with Eclipse SUMO (needs the [sumo] extra; takes minutes)."""
    from fedfleet.scenarios import generate as generator

    unused(config, "generate")

    with steps("generating scenarios") as progress:
        record = generator.generate(out, seed=seed, progress=progress)
    Terminal().say(f"{out}: table hash {record['table_sha256']}")


@app.command("formats")
def formats(as_json: Json = False, config: ConfigFile = None) -> None:
    """List the formats of recordings that are read, and how their files are found."""
    unused(config, "formats")
    cameras = {
        "Donkey tub": "zips or folders with manifest.json",
        "Camera bag": "*.mcap or *.db3 with images",
    }
    rows = [("motion_forecast", reader.format, reader.files) for reader in READERS]
    rows += [("camera_steering", name, files) for name, files in cameras.items()]
    if as_json:
        typer.echo(
            json.dumps([dict(zip(("task", "format", "files"), row, strict=True)) for row in rows], indent=2)
        )
        return
    console = Terminal()
    for task, name, files in rows:
        console.say(f"{task}: {name}: {files}")


def _formats(folder: Path, task: tasks.Task) -> list[dict[str, object]]:
    """What each reader found; nothing for a task that has a reader of its own, such as one of camera images."""
    if not getattr(task, "reads_tracks", False):
        return []
    return [part.summary() for part in open_recordings(folder).parts]


def _print_formats(console: Terminal, formats: Sequence[Mapping[str, object]]) -> None:
    for row in formats:
        text = (
            f"{row['format']}: {row['recordings']} recordings in {row['drives']} drives, {row['seconds']} s"
        )
        if row["drives_read"]:
            rates = ", ".join(f"{rate:g}" for rate in cast("list[float]", row["rates_hz"]))
            text += f"; {row['tracks']} tracks read, at {rates} Hz"
        problems = cast("Mapping[str, int]", row["problems"])
        left_out = "".join(f", left out {count} × {name}" for name, count in problems.items())
        console.say(f"{text}{left_out}")


def _not_read(account: Account | None) -> list[dict[str, object]]:
    return list(account.summary()) if account is not None else []


def _print_account(console: Terminal, account: Account | None) -> None:
    """Name what is not read, a line each, as far as a terminal has room."""
    if account is None or not account.rows:
        return
    count = sum(account.counts.values())
    console.say(f"not read: {count} file{'s' * (count != 1)}")
    console.say_all(f"  {line}" for line in account.lines(NAMED))


def _print_problems(console: Terminal, problems: Mapping[str, int]) -> None:
    for reason, count in sorted(problems.items()):
        console.say(f"left out: {count} × {reason}")
