"""What a task learns from in a folder of recordings, by region: for tasks whose recordings are no tracks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

from fedfleet.cli.page import COLOURS, Draw
from fedfleet.cli.progress import steps
from fedfleet.cli.terminal import Terminal
from fedfleet.models.task import Drive, Samples, Task

__all__ = ["Region", "draws", "figures", "heads_and_rows", "measured", "show"]

BINS: Final = 40
_QUANTILES: Final = (0.05, 0.5, 0.95)


@dataclass
class Region:
    """One region: its drives, its samples, their targets f32[samples, values], and samples by slice and name."""

    drives: int = 0
    seconds: float = 0.0
    samples: int = 0
    judged: int = 0
    targets: list[NDArray[np.float32]] = field(default_factory=list)
    slices: dict[str, Counter[str]] = field(default_factory=dict)
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, task: Task, drive: Drive, samples: Samples) -> None:
        """Count a drive."""
        self.drives += 1
        self.seconds += drive.seconds
        self.samples += len(samples)
        self.judged += int(np.asarray(samples.judged).sum())
        self.targets.append(np.asarray(samples.targets, dtype=np.float32).reshape(len(samples), -1))
        self.problems.update(samples.problems)
        for name, slicer in getattr(task, "slices", {}).items():
            if len(samples):
                self.slices.setdefault(name, Counter()).update(slicer(samples).tolist())

    @property
    def values(self) -> NDArray[np.float32]:
        """All targets, f32[samples × values]."""
        return np.concatenate([np.empty(0, np.float32), *(each.ravel() for each in self.targets)])


def measured(task: Task, folder: Path, drives: Sequence[Drive]) -> dict[str, Region]:
    """Read all samples, drive after drive; of inputs nothing is kept."""
    found: dict[str, Region] = {}
    shown = steps("reading") if Terminal(stderr=True).is_terminal else nullcontext(lambda *_: None)
    with shown as progress:
        for done, drive in enumerate(drives):
            progress(done, len(drives), drive.key)
            found.setdefault(drive.region, Region()).add(task, drive, task.samples(folder, [drive.key]))
    return dict(sorted(found.items()))


def figures(one: Region) -> dict[str, Any]:
    """One region as plain values."""
    values = one.values
    some = {"mean": float(values.mean()), "std": float(values.std())} if len(values) else {}
    quantiles = {f"p{100 * q:.0f}": float(np.quantile(values, q)) for q in _QUANTILES} if len(values) else {}
    return {
        "drives": one.drives,
        "seconds": round(one.seconds, 3),
        "samples": one.samples,
        "judged": one.judged,
        "targets": {**some, **quantiles},
        "slices": {name: dict(sorted(counts.items())) for name, counts in one.slices.items()},
        "left_out": dict(sorted(one.problems.items())),
    }


def heads_and_rows(task: Task, found: Mapping[str, Region]) -> tuple[list[str], list[list[str]]]:
    """The table for a terminal and for a page."""
    target = task.specification.output_name
    rows = []
    for region, one in found.items():
        told = figures(one)
        each = [told["targets"].get(name) for name in ("mean", "std", "p5", "p50", "p95")]
        cells = ["–" if value is None else f"{round(value, 6):.3g}" for value in each]
        rows.append([region, f"{one.drives:,}", f"{one.seconds:,.0f}", f"{one.samples:,}", *cells])
    return ["region", "drives", "s", "samples", f"{target} mean", "std", "p5", "p50", "p95"], rows


def show(console: Terminal, task: Task, folder: Path, found: Mapping[str, Region]) -> None:
    """Print the table, shares of slices, and what was left out."""
    heads, rows = heads_and_rows(task, found)
    table = Table(title=f"{folder}: {task.name}", title_justify="left", box=SIMPLE, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for region, one in found.items():
        for name, counts in one.slices.items():
            parts = ", ".join(
                f"{key} {count / one.samples:.0%}" for key, count in sorted(counts.items()) if key
            )
            console.say(f"{region}: {name}: {parts}")
    problems = sum((one.problems for one in found.values()), Counter[str]())
    for reason, count in sorted(problems.items()):
        console.say(f"left out: {count} × {reason}")


def draws(task: Task, found: Mapping[str, Region]) -> dict[str, Draw]:
    """The picture: how targets are spread, a line for each region."""
    return {"targets": partial(_draw, name=task.specification.output_name, found=found)}


def _draw(axes: Any, name: str, found: Mapping[str, Region]) -> None:  # noqa: ANN401 - matplotlib's axes
    low = min(float(one.values.min(initial=0.0)) for one in found.values())
    high = max(float(one.values.max(initial=0.0)) for one in found.values())
    edges = np.linspace(low, high if high > low else low + 1.0, BINS + 1)
    for number, (region, one) in enumerate(found.items()):
        counts, _ = np.histogram(one.values, edges)
        share = 100 * counts / max(1, len(one.values))
        label = region if number < 12 else None
        axes.stairs(share, edges, color=COLOURS[number % len(COLOURS)], lw=1.4, label=label)
    axes.set(title=f"Targets: {name}", xlabel=name, ylabel="% of samples")
    axes.legend(frameon=False, fontsize=8)
