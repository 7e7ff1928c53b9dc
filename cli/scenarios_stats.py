"""``fedfleet scenarios stats``: what moves in a folder of recordings, and how, as tables and pictures."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.box import SIMPLE
from rich.table import Table

from fedfleet.cli import scenarios_stats_samples as samples
from fedfleet.cli.config import load
from fedfleet.cli.options import ConfigFile, Json, ScenariosDir, TaskName, pack_dir
from fedfleet.cli.page import COLOURS, Draw, document, escape, grid, png, svg
from fedfleet.cli.progress import steps
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server.files import write_file
from fedfleet.models import extras
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.reading import stream
from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.stats import CLOSE_M, CONFLICT_M, CONFLICT_S, Tally, tally

__all__ = ["stats"]

PAGE: Final = "stats.html"
_TITLES: Final = {
    "speed_mps": ("Speed", "m/s"),
    "acceleration_mps2": ("Acceleration along the way", "m/s²"),
    "track_m": ("Length of tracks", "m"),
    "track_s": ("Time that tracks are seen", "s"),
}
_NARROW: Final = {
    "scenarios": "scena-\nrios",
    "seconds": "s",
    "standing": "stand-\ning",
    "m/s p50": "m/s\np50",
    "p95": "m/s\np95",
    "m/s² p95": "m/s²\np95",
    "conflicts": "con-\nflicts",
}


def stats(
    config: ConfigFile = None,
    scenarios: ScenariosDir = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for stats.html and a picture of each figure.", show_default=False),
    ] = None,
    task: TaskName = None,
    as_json: Json = False,
) -> None:
    """Count what moves in a folder, and how: speeds, accelerations, lengths of tracks, encounters.

    For a task whose recordings are no tracks (`camera_steering`): its samples, their targets and slices.
    """
    settings = load(config, task=task)
    folder = scenarios or settings.data.scenarios or pack_dir()
    if out is not None:
        extras.need("matplotlib", what="--out")
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out {out}: expected a folder, got a file")
    learned = tasks.load(settings.task)
    if not getattr(learned, "reads_tracks", False):
        _of_samples(learned, folder, out, as_json=as_json)
        return
    found = tally(_told(stream(folder)))
    if not found:
        raise UsageError(f"{folder}: no scenario")
    if as_json:
        regions = {region: _figures(each) for region, each in found.items()}
        typer.echo(json.dumps({"folder": str(folder), "regions": regions}, indent=2))
    else:
        _show(Terminal(), folder, found)
    if out is not None:
        names = _write(out, folder, found)
        if not as_json:
            Terminal().say(f"written: {', '.join(str(name) for name in names)}")


def _of_samples(learned: tasks.Task, folder: Path, out: Path | None, *, as_json: bool) -> None:
    index = learned.index(folder)
    found = samples.measured(learned, folder, index.drives)
    if as_json:
        regions = {region: samples.figures(one) for region, one in found.items()}
        typer.echo(json.dumps({"folder": str(folder), "task": learned.name, "regions": regions}, indent=2))
    else:
        samples.show(Terminal(), learned, folder, found)
    if out is not None:
        heads, rows = samples.heads_and_rows(learned, found)
        names = _write_page(out, folder, (heads, rows, ""), samples.draws(learned, found))
        if not as_json:
            Terminal().say(f"written: {', '.join(str(name) for name in names)}")


def _told(scenarios: Iterable[Scenario]) -> Iterator[Scenario]:
    with steps("reading") as progress:
        count = 0
        for count, scenario in enumerate(scenarios, start=1):
            if count % 500 == 0:
                progress(count, count, f"scenarios, now {scenario.region}/{scenario.drive}")
            yield scenario
        progress(count, count, "scenarios")


def _figures(one: Tally) -> dict[str, Any]:
    return {
        "drives": len(one.drives),
        "scenarios": one.scenarios,
        "seconds": round(one.seconds, 3),
        "tracks": one.tracks,
        "types": dict(sorted(one.types.items())),
        "standing_tracks": one.standing,
        "close_pairs": one.close,
        "conflicts": one.conflicts,
        **{
            name: {
                "mean": each.mean,
                "p5": each.quantile(0.05),
                "p50": each.quantile(0.5),
                "p95": each.quantile(0.95),
                "p99": each.quantile(0.99),
            }
            for name, each in one.histograms.items()
        },
    }


def _rows(found: Mapping[str, Tally]) -> tuple[list[str], list[list[str]]]:
    heads = [
        "region",
        "scenarios",
        "seconds",
        "tracks",
        "standing",
        "m/s p50",
        "p95",
        "m/s² p95",
        "close",
        "conflicts",
    ]
    rows = []
    for region, one in found.items():
        speed, change = one.histograms["speed_mps"], one.histograms["acceleration_mps2"]
        cells = [f"{one.scenarios:,}", f"{one.seconds:,.0f}", f"{one.tracks:,}", f"{one.standing:,}"]
        figures = [speed.quantile(0.5), speed.quantile(0.95), change.quantile(0.95)]
        cells += ["–" if value is None else f"{value:.1f}" for value in figures]
        rows.append([region, *cells, f"{one.close:,}", f"{one.conflicts:,}"])
    return heads, rows


def _show(console: Terminal, folder: Path, found: Mapping[str, Tally]) -> None:
    heads, rows = _rows(found)
    table = Table(title=str(folder), title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for place, head in enumerate(heads):
        table.add_column(_NARROW.get(head, head), justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.say(_note())


def _note() -> str:
    return (
        f"close: pairs of moving tracks that come within {CLOSE_M:g} m; conflicts: pairs that would come within "
        f"{CONFLICT_M:g} m in the next {CONFLICT_S:g} s if both went on as they do"
    )


def _write(out: Path, folder: Path, found: Mapping[str, Tally]) -> list[Path]:
    draws: dict[str, Draw] = {name: partial(_draw, found=found, name=name) for name in _TITLES}
    draws["encounters"] = partial(_draw_encounters, found=found)
    heads, rows = _rows(found)
    return _write_page(out, folder, (heads, rows, f"<p>{escape(_note())}.</p>"), draws)


def _write_page(
    out: Path, folder: Path, table: tuple[list[str], list[list[str]], str], draws: Mapping[str, Draw]
) -> list[Path]:
    """Write a page of a table (heads, rows, HTML below it) and pictures, and each picture as PNG."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name, draw in draws.items():
        files.append(out / f"{name}.png")
        png(draw, files[-1])
    heads, rows, note = table
    plots = "".join(map(svg, draws.values()))
    body = (
        f"<h1>Recordings in {escape(folder.name)}</h1>{grid(heads, rows)}{note}"
        f'<div class="plots">{plots}</div>'
    )
    write_file(out / PAGE, document("fedfleet scenarios stats", body).encode())
    return [out / PAGE, *files]


def _draw(axes: Any, found: Mapping[str, Tally], name: str) -> None:  # noqa: ANN401 - matplotlib's axes
    """Draw one line per region: the share of its values in each bin."""
    title, unit = _TITLES[name]
    for number, (region, one) in enumerate(found.items()):
        histogram = one.histograms[name]
        share = histogram.counts / max(1, histogram.count)
        colour = COLOURS[number % len(COLOURS)]
        axes.stairs(100 * share, histogram.edges, color=colour, lw=1.4, label=region if number < 12 else None)
    if name.startswith("track_"):
        axes.set_xscale("symlog", linthresh=1.0)
    if name == "speed_mps":
        top = max(one.histograms[name].quantile(0.999) or 1.0 for one in found.values())
        axes.set_xlim(0, max(5.0, float(np.ceil(top))))
    axes.set(title=title, xlabel=unit, ylabel="% of values")
    axes.legend(frameon=False, fontsize=8)


def _draw_encounters(axes: Any, found: Mapping[str, Tally]) -> None:  # noqa: ANN401 - matplotlib's axes
    """Draw bars of encounters per minute of recording."""
    places = np.arange(len(found))
    minutes = [max(one.seconds, 1e-9) / 60 for one in found.values()]
    for number, (name, counts) in enumerate(
        {
            "close": [one.close for one in found.values()],
            "conflicts": [one.conflicts for one in found.values()],
        }.items()
    ):
        heights = [count / minute for count, minute in zip(counts, minutes, strict=True)]
        axes.bar(places + (number - 0.5) * 0.38, heights, 0.36, color=COLOURS[number], label=name)
    axes.set_xticks(places, list(found), fontsize=7, rotation=30 if len(found) > 4 else 0)
    axes.set(title="Encounters per minute of recording", ylabel="pairs a minute")
    axes.legend(frameon=False, fontsize=8)
