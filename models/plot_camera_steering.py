"""Pictures of `camera_steering`: a frame as the network sees it, how the driver steered, and how the model would have.

The only file that imports matplotlib for this task; reached through the task's `plot`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from fedfleet.models.camera_steering import COLUMNS, ROWS, sampled
from fedfleet.models.task import Case
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.printable import printable
from fedfleet.scenarios.donkey import open_tubs, shots

__all__ = ["View", "draw", "views"]

DRIVEN: Final = "#12c281"
PREDICTED: Final = "#ff5a1f"
INK: Final = "#1b2a3d"
FULL_LOCK: Final = math.radians(60)
"""How far to the side an angle of 1 is drawn."""
REACH: Final = 44.0
"""Length of the drawn way, in rows."""
SHEET_COLUMNS: Final = 3
DPI: Final = 120
CONTACT: Final = "worst.png"
OURS: Final = re.compile(r"worst(-\d{3}-.*)?\.png")


@dataclass(frozen=True, eq=False)
class View:
    """One frame: image uint8[rows, columns, 3], and both angles, -1 (left) … 1."""

    drive: str
    number: int
    image: NDArray[np.uint8]
    driven: float
    predicted: float


def draw(cases: Sequence[Case], *, scenarios: Path, out: Path) -> list[Path]:
    """Draw every case into a file of its own, in the order given, and all on one sheet, whose path comes first.

    Pictures of an earlier call in `out` are removed. No case gives no file. Raises UsageError for a case that the
    recordings do not have.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in [path for path in out.iterdir() if OURS.fullmatch(path.name)]:
        old.unlink()
    seen = views(cases, scenarios)
    if not seen:
        return []
    files = [_draw_sheet(seen, out / CONTACT)]
    for place, view in enumerate(seen, start=1):
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{view.drive}-{view.number}")[:100]
        files.append(_draw_one(view, out / f"worst-{place:03d}-{name}.png", place=place))
    return files


def views(cases: Sequence[Case], scenarios: Path) -> list[View]:
    """Find the frame of every case again, in the order given; UsageError when there is none."""
    blocks = open_tubs(scenarios)
    found: dict[int, View] = {}
    order = sorted(range(len(cases)), key=lambda place: cases[place].drive)
    for drive, places in groupby(order, key=lambda place: cases[place].drive):
        if drive not in blocks:
            raise UsageError(f"{scenarios}: no drive {drive}")
        seen = shots(blocks[drive], rows=ROWS, columns=COLUMNS)
        rows = sampled(seen)
        for place in places:
            case = cases[place]
            if case.sample >= len(rows):
                raise UsageError(f"drive {drive} has {len(rows)} samples, none of number {case.sample}")
            row = rows[case.sample]
            image = np.ascontiguousarray(seen.images[row].transpose(1, 2, 0))
            angles = float(seen.angles[row]), float(case.output[0])
            found[place] = View(drive, int(seen.numbers[row]), image, *angles)
    return [found[place] for place in range(len(cases))]


def _draw_one(view: View, path: Path, *, place: int) -> Path:
    figure = Figure(figsize=(7.2, 3.5))
    axes = figure.add_axes((0.02, 0.12, 0.96, 0.68))
    _scene(axes, view, size=1.0)
    off = abs(view.predicted - view.driven)
    figure.text(0.02, 0.91, f"{place}. off by {off:.2f}", fontsize=14, fontweight="bold", color=INK)
    title = printable(f"{view.drive} · frame {view.number}")
    axes.set_title(title, parse_math=False, fontsize=9.5, loc="left", color="#46525f")
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=2, frameon=False, fontsize=9)
    return _save(figure, path)


def _draw_sheet(seen: Sequence[View], path: Path) -> Path:
    columns = min(SHEET_COLUMNS, len(seen))
    rows = math.ceil(len(seen) / columns)
    engine = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.05)
    figure = Figure(figsize=(3.9 * columns, 1.75 * rows + 0.5), layout=engine)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (axes, view) in enumerate(zip(grid, seen, strict=False), start=1):
        _scene(axes, view, size=0.7)
        axes.set_title(
            f"{place}. {printable(view.drive)} frame {view.number}: {view.driven:+.2f}, model {view.predicted:+.2f}",
            parse_math=False,
            fontsize=8,
            loc="left",
        )
    for axes in grid[len(seen) :]:
        axes.set_axis_off()
    handles = _handles(grid[0])
    figure.legend(*handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return _save(figure, path)


def _scene(axes: Axes, view: View, *, size: float) -> None:
    """Draw the frame, and over it from the middle of its lower edge both ways, bent as the wheels would be."""
    axes.imshow(view.image, interpolation="bilinear", aspect="equal")
    for angle, colour, name in (
        (view.driven, DRIVEN, f"driver {view.driven:+.2f}"),
        (view.predicted, PREDICTED, f"model {view.predicted:+.2f}"),
    ):
        x, y = _way(angle)
        axes.plot(x, y, color="white", lw=6.0 * size, solid_capstyle="round", alpha=0.55)
        axes.plot(x, y, color=colour, lw=3.6 * size, solid_capstyle="round", label=name)
        axes.plot(x[-1:], y[-1:], "o", ms=7 * size, color=colour, mec="white", mew=size)
    axes.set(xticks=[], yticks=[], xlim=(0, COLUMNS - 1), ylim=(ROWS - 1, 0))
    for spine in axes.spines.values():
        spine.set_color("#b8c2cc")


def _way(angle: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """An arc of constant length that ends turned by the angle, in pixels; 0 goes straight up."""
    turn = np.clip(angle, -1.5, 1.5) * FULL_LOCK
    step = np.linspace(0.0, turn, 24)
    x, y = np.sin(step).cumsum(), np.cos(step).cumsum()
    return COLUMNS / 2 + x * REACH / 24, ROWS - 1 - y * REACH / 24


def _handles(axes: Axes) -> tuple[list[Any], list[str]]:
    """Return the lines of both ways, named without their angles."""
    handles, names = axes.get_legend_handles_labels()
    return handles, [name.rpartition(" ")[0] for name in names]


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path
