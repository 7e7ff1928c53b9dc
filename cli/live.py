"""The live view of a fleet: a snapshot of the server's store as a table, or in one line where there is no terminal."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table

from fedfleet.cli import health as healths
from fedfleet.cli.health import Health
from fedfleet.cli.tables import Column
from fedfleet.protocol.printable import printable

__all__ = ["driving", "gain", "heading", "line", "progress", "refusals", "table", "troubles", "view"]

Snapshot = Mapping[str, Any]
"""What ``fleet_server.status.snapshot`` returns."""
Region = Mapping[str, Any]


@dataclass(frozen=True)
class _Shown(Column):
    """A column of the table: what it says of a region, and its rank, the lower the sooner it is left out."""

    rank: int = 3
    text: Callable[[Region], str] = lambda _: ""


def view(snapshot: Snapshot, health: Health | None = None, *, width: int, note: str = "") -> RenderableType:
    """Return what a person looks at: who is alive first, then the rounds, a row per region, and what was refused."""
    above = [*(_alive(snapshot, health) if health else ()), *heading(snapshot, present=health is None)]
    below = filter(None, (driving(snapshot), refusals(snapshot), troubles(snapshot), note))
    return Group(*map(printable, above), table(snapshot, width=width), *map(printable, below))


def table(snapshot: Snapshot, *, width: int = 1000) -> Table:
    """Return the table of a snapshot, one row per region, with the columns for which this width has room."""
    regions = [{"name": name, **region} for name, region in sorted(snapshot["regions"].items())]
    columns = list(_columns(snapshot["metric"]))
    while len(columns) > 1 and _natural_width(columns, regions) > width:
        least = min(column.rank for column in columns)
        columns.remove([column for column in columns if column.rank == least][-1])
    shown = Table(expand=False, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    for column in columns:
        shown.add_column(
            printable(column.heading),
            justify="right" if column.is_number else "left",
            no_wrap=column.is_number,
            overflow="fold",
        )
    for region in regions:
        shown.add_row(*(printable(column.text(region)) for column in columns))
    return shown


def _natural_width(columns: Sequence[_Shown], regions: Sequence[Region]) -> int:
    cells = ([column.heading, *(column.text(region) for region in regions)] for column in columns)
    return sum(max(cell_len(printable(cell)) for cell in each) + 3 for each in cells)


def _columns(metric: Mapping[str, str]) -> Sequence[_Shown]:
    return (
        _Shown("region", text=lambda one: str(one["name"])),
        _Shown("state", text=lambda one: str(one["state"] or "waiting")),
        _Shown("online", is_number=True, text=lambda one: f"{one['online']}/{one['enrolled']}"),
        _Shown("training", is_number=True, rank=1, text=lambda one: str(one["training"])),
        _Shown("received", is_number=True, text=lambda one: f"{one['received']}/{one['target']}"),
        _Shown(f"{metric['name']} now", is_number=True, text=lambda one: _figure(one["score"])),
        _Shown("baseline", is_number=True, rank=2, text=lambda one: _figure(one["baseline"])),
        _Shown("gain", is_number=True, text=lambda one: gain(one, metric["better"])),
        _Shown("up kB", is_number=True, rank=2, text=lambda one: f"{one['bytes_up'] / 1000:.1f}"),
        _Shown("down kB", is_number=True, rank=1, text=lambda one: f"{one['bytes_down'] / 1000:.0f}"),
        _Shown(
            "ratio", is_number=True, rank=0, text=lambda one: f"{one['ratio']:.0f} ×" if one["ratio"] else "–"
        ),
        _Shown("p50 ms", is_number=True, rank=0, text=lambda one: _figure(one["p50_ms"])),
        _Shown("p99 ms", is_number=True, rank=1, text=lambda one: _figure(one["p99_ms"])),
    )


def line(snapshot: Snapshot, health: Health | None = None) -> str:
    """Return a snapshot in one line, for logs and pipes."""
    parts = [*(_alive(snapshot, health) if health else ()), *heading(snapshot, present=health is None)]
    for name, region in sorted(snapshot["regions"].items()):
        score = f"{_figure(region['score'])}/{_figure(region['baseline'])}"
        better = gain(region, snapshot["metric"]["better"])
        parts.append(
            f"{name}: {region['state'] or 'waiting'} {region['received']}/{region['target']} {score} ({better})"
        )
    return " · ".join([*parts, *filter(None, (refusals(snapshot), troubles(snapshot)))])


def _alive(snapshot: Snapshot, health: Health) -> list[str]:
    online, enrolled = _present(snapshot)
    now_s = snapshot["at_s"]
    words = (
        healths.server_words(health.server, now_s),
        healths.broker_words(health, now_s),
        healths.vehicles_words(health, online=online, enrolled=enrolled),
    )
    return [" · ".join(words)]


def _present(snapshot: Snapshot) -> tuple[int, int]:
    regions = snapshot["regions"].values()
    return sum(region["online"] for region in regions), sum(region["enrolled"] for region in regions)


def heading(snapshot: Snapshot, *, present: bool = True) -> list[str]:
    """Return whose fleet it is and how far it is: the round, or that all are done; versions, the rate of updates.

    ``present`` adds how many vehicles are online.
    """
    online, enrolled = _present(snapshot)
    parts = [
        f"version {snapshot['version']} (drives: {snapshot['released']})",
        *([f"{online}/{enrolled} online"] if present else []),
        f"{snapshot['updates_per_s']:.2g} updates/s",
    ]
    return [f"{snapshot['fleet']} · {snapshot['task']} · {progress(snapshot)}", " · ".join(parts)]


def progress(snapshot: Snapshot) -> str:
    """Return how far the rounds are, with those that published nothing."""
    total, published = snapshot["rounds_total"], snapshot["rounds_published"]
    void = snapshot["rounds_run"] - published
    told = f"{published} version{'' if published == 1 else 's'} published"
    if void:
        told += f", {void} round{'' if void == 1 else 's'} published nothing"
    if snapshot["is_done"]:
        return f"ALL {total} ROUNDS ARE DONE: {told}"
    return f"round {snapshot['round']}{f' of {total}' if total else ''}: {told}"


def driving(snapshot: Snapshot) -> str:
    """Return which versions the vehicles that are online drive with, the newest first; empty when none is."""
    online = [each["active_version"] for each in snapshot["vehicles"].values() if each["state"] == "ONLINE"]
    counted = sorted(Counter(online).items(), reverse=True)
    return ", ".join(f"{number} drive with version {version}" for version, number in counted)


def refusals(snapshot: Snapshot) -> str:
    """Return what was refused, by reason, the most frequent first; empty when nothing was."""
    counters = snapshot["counters"].items()
    found = [(name.partition(":")[2], number) for name, number in counters if name.startswith("refused:")]
    shown = sorted(found, key=lambda each: (-each[1], each[0]))
    return "refused: " + ", ".join(f"{number} {reason}" for reason, number in shown) if shown else ""


def troubles(snapshot: Snapshot) -> str:
    """Return what vehicles say has gone wrong with them, and with how many; empty when nothing has."""
    told = snapshot.get("troubles", "")
    return f"vehicles report: {told}" if told else ""


def gain(region: Mapping[str, Any], better: str) -> str:
    """Return how much better than the baseline a region's score is, in percent."""
    score, baseline = region["score"], region["baseline"]
    if score is None or not baseline:
        return "–"
    share = (baseline - score) / baseline
    return f"{100 * (share if better == 'lower' else -share):+.1f} %"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
