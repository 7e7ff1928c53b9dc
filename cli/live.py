"""The live view of a fleet: a snapshot of the server's store as a table, or in one line where there is no terminal."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table

__all__ = ["driving", "gain", "heading", "line", "refusals", "table"]

Snapshot = Mapping[str, Any]
"""What ``fleet_server.status.snapshot`` returns."""


def table(snapshot: Snapshot, *, note: str = "") -> Table:
    """Return the table of a snapshot, one row per region."""
    metric = snapshot["metric"]
    title = f"{snapshot['fleet']} · {snapshot['task']} · {heading(snapshot)}"
    caption = "\n".join(filter(None, (driving(snapshot), refusals(snapshot), note)))
    view = Table(title=title, caption=caption or None, expand=False)
    for column in ("region", "state"):
        view.add_column(column)
    numeric = (
        "online",
        "training",
        "received",
        f"{metric['name']} now",
        "baseline",
        "gain",
        "up kB",
        "down kB",
        "ratio",
        "p50 ms",
        "p99 ms",
    )
    for column in numeric:
        view.add_column(column, justify="right")
    for name, region in sorted(snapshot["regions"].items()):
        view.add_row(
            name,
            str(region["state"] or "waiting"),
            f"{region['online']}/{region['enrolled']}",
            str(region["training"]),
            f"{region['received']}/{region['target']}",
            _figure(region["score"]),
            _figure(region["baseline"]),
            gain(region, metric["better"]),
            f"{region['bytes_up'] / 1000:.1f}",
            f"{region['bytes_down'] / 1000:.0f}",
            f"{region['ratio']:.0f} ×" if region["ratio"] else "–",
            _figure(region["p50_ms"]),
            _figure(region["p99_ms"]),
        )
    return view


def line(snapshot: Snapshot) -> str:
    """Return a snapshot in one line, for logs and pipes."""
    parts = [heading(snapshot)]
    for name, region in sorted(snapshot["regions"].items()):
        score = f"{_figure(region['score'])}/{_figure(region['baseline'])}"
        better = gain(region, snapshot["metric"]["better"])
        parts.append(
            f"{name}: {region['state'] or 'waiting'} {region['received']}/{region['target']} {score} ({better})"
        )
    return " · ".join([*parts, *filter(None, (refusals(snapshot),))])


def heading(snapshot: Snapshot) -> str:
    """Return round, versions, vehicles online and the rate of updates."""
    regions = snapshot["regions"].values()
    online, enrolled = (sum(region[name] for region in regions) for name in ("online", "enrolled"))
    total = f"/{snapshot['rounds_total']}" if snapshot["rounds_total"] else ""
    return (
        f"round {snapshot['round']}{total} · version {snapshot['version']} (drives: {snapshot['released']}) · "
        f"{online}/{enrolled} online · {snapshot['updates_per_s']:.2g} updates/s"
    )


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


def gain(region: Mapping[str, Any], better: str) -> str:
    """Return how much better than the baseline a region's score is, in percent."""
    score, baseline = region["score"], region["baseline"]
    if score is None or not baseline:
        return "–"
    share = (baseline - score) / baseline
    return f"{100 * (share if better == 'lower' else -share):+.1f} %"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
