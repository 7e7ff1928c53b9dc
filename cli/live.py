"""The live view of a fleet: a snapshot of the server's store as a table, or in one line where there is no terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

__all__ = ["line", "table"]

Snapshot = Mapping[str, Any]
"""What ``fleet_server.status.snapshot`` returns."""


def table(snapshot: Snapshot, *, note: str = "") -> Table:
    """Return the table of a snapshot, one row per region."""
    metric = snapshot["metric"]
    title = f"{snapshot['fleet']} · {snapshot['task']} · round {snapshot['round']} · version {snapshot['version']}"
    view = Table(title=title, caption=note or None, expand=False)
    for heading in ("region", "state"):
        view.add_column(heading)
    numeric = (
        "online",
        "training",
        "received",
        f"{metric['name']} now",
        "baseline",
        "up kB",
        "down kB",
        "ratio",
        "p50 ms",
        "p99 ms",
    )
    for heading in numeric:
        view.add_column(heading, justify="right")
    for name, region in sorted(snapshot["regions"].items()):
        view.add_row(
            name,
            str(region["state"] or "waiting"),
            f"{region['online']}/{region['enrolled']}",
            str(region["training"]),
            f"{region['received']}/{region['target']}",
            _figure(region["score"]),
            _figure(region["baseline"]),
            f"{region['bytes_up'] / 1000:.1f}",
            f"{region['bytes_down'] / 1000:.0f}",
            f"{region['ratio']:.0f} ×" if region["ratio"] else "–",
            _figure(region["p50_ms"]),
            _figure(region["p99_ms"]),
        )
    return view


def line(snapshot: Snapshot) -> str:
    """Return a snapshot in one line, for logs and pipes."""
    parts = [f"round {snapshot['round']} version {snapshot['version']}"]
    for name, region in sorted(snapshot["regions"].items()):
        score = f"{_figure(region['score'])}/{_figure(region['baseline'])}"
        parts.append(
            f"{name}: {region['state'] or 'waiting'} {region['received']}/{region['target']} {score}"
        )
    return " · ".join(parts)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
