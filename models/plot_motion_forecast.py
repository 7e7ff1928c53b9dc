"""Pictures of `motion_forecast`: one track seen from above, with what was known, what came, and what was predicted.

The only file that imports matplotlib here; reached through the task's `plot`. North is up, metres on both axes.
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

from fedfleet.models.motion_forecast import PAST, RATE_HZ, WINDOW, agent_frame, constant_velocity, windows
from fedfleet.models.task import Case, Floats
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.printable import printable
from fedfleet.scenarios.reading import read
from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.resample import at_rate

__all__ = ["View", "draw", "views"]

Doubles = NDArray[np.float64]

HISTORY: Final = "#1b2a3d"
TRUTH: Final = "#0a8f5b"
PREDICTION: Final = "#d9480f"
STRAIGHT: Final = "#8a97a6"
OTHERS: Final = "#c6cfd9"
MIN_SIDE_M: Final = 24.0
MARGIN: Final = 1.3
COLUMNS: Final = 4
DPI: Final = 120
CONTACT: Final = "worst.png"
OURS: Final = re.compile(r"worst(-\d{3}-.*)?\.png")


@dataclass(frozen=True, eq=False)
class View:
    """One track in its scenario; positions in metres east and north of its last known one."""

    region: str
    drive: str
    scenario: str
    track: str
    history: Doubles
    truth: Doubles
    prediction: Doubles
    straight: Doubles
    others: Doubles
    """float64[tracks, 50, 2], NaN where not seen."""

    @property
    def errors_m(self) -> tuple[float, float]:
        """ADE and FDE of the prediction."""
        return _errors(self.prediction, self.truth)

    @property
    def straight_errors_m(self) -> tuple[float, float]:
        """ADE and FDE of constant velocity."""
        return _errors(self.straight, self.truth)


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
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{view.region}-{view.scenario}-{view.track[-12:]}")[:100]
        files.append(_draw_one(view, out / f"worst-{place:03d}-{name}.png", place=place))
    return files


def views(cases: Sequence[Case], scenarios: Path) -> list[View]:
    """Find the track of every case again, in the order given; UsageError when there is none."""
    found: dict[int, View] = {}
    order = sorted(range(len(cases)), key=lambda place: cases[place].drive)
    for drive, places in groupby(order, key=lambda place: cases[place].drive):
        tracks = _tracks(scenarios, drive)
        for place in places:
            case = cases[place]
            if case.sample >= len(tracks):
                raise UsageError(
                    f"drive {drive} has {len(tracks)} tracks with a truth, none of number {case.sample}"
                )
            found[place] = _view(*tracks[case.sample], output=case.output)
    return [found[place] for place in range(len(cases))]


def _tracks(folder: Path, drive: str) -> list[tuple[Scenario, int, int]]:
    """Return scenario, first frame of the window and track of every row of the drive's samples."""
    return [
        (scenario, start, int(track))
        for scenario in at_rate(read(folder, [drive]), RATE_HZ)
        for start, verdict in windows(scenario)
        for track in np.flatnonzero(verdict.labelled)
    ]


def _view(scenario: Scenario, start: int, track: int, *, output: Floats) -> View:
    window = scenario.xy[:, start : start + WINDOW] - scenario.xy[track, start + PAST - 1]
    own = window[track]
    history = own[None, :PAST]
    east_north = np.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    turn = agent_frame(history, east_north)[0, 1:].astype(
        np.float64
    )  # rows: east and north in the agent's frame
    local = agent_frame(history, history)
    others = np.delete(window, track, axis=0)
    return View(
        region=scenario.region,
        drive=scenario.drive,
        scenario=scenario.scenario_id,
        track=scenario.track_ids[track],
        history=own[:PAST],
        truth=own[PAST:],
        prediction=output @ turn.T,
        straight=constant_velocity(local)[0] @ turn.T,
        others=others,
    )


def _errors(points: Doubles, truth: Doubles) -> tuple[float, float]:
    metres = np.hypot(*(points - truth).T)
    return float(metres.mean()), float(metres[-1])


def _draw_one(view: View, path: Path, *, place: int) -> Path:
    figure = Figure(figsize=(7.2, 8.2))
    axes = figure.add_axes((0.1, 0.14, 0.86, 0.755))  # a square
    _scene(axes, view, size=1.0)
    (ade, fde), (straight_ade, straight_fde) = view.errors_m, view.straight_errors_m
    headline = f"{place}. ADE {ade:.2f} m, FDE {fde:.2f} m"
    figure.text(0.1, 0.957, headline, fontsize=15, fontweight="bold", color=HISTORY)
    axes.set_title(
        f"{view.region} · {_short(view.drive)} · scenario {_short(view.scenario)} · track {_short(view.track)}\n"
        f"constant velocity: ADE {straight_ade:.2f} m, FDE {straight_fde:.2f} m",
        parse_math=False,
        fontsize=9.5,
        loc="left",
        color="#46525f",
    )
    axes.set_xlabel("m east of the last known position; a dot each second", fontsize=9)
    axes.set_ylabel("m north", fontsize=9)
    figure.legend(*_legend(axes), loc="lower center", ncols=3, frameon=False, fontsize=9)
    return _save(figure, path)


def _draw_sheet(seen: Sequence[View], path: Path) -> Path:
    columns = min(COLUMNS, len(seen))
    rows = math.ceil(len(seen) / columns)
    engine = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.06)
    figure = Figure(figsize=(3.3 * columns, 3.65 * rows + 0.5), layout=engine)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for place, (axes, view) in enumerate(zip(grid, seen, strict=False), start=1):
        _scene(axes, view, size=0.75)
        axes.set(xticks=[], yticks=[])
        ade, fde = view.errors_m
        axes.set_title(
            f"{place}. {view.region}, scenario {_short(view.scenario, 18)}\nADE {ade:.1f} m, FDE {fde:.1f} m",
            parse_math=False,
            fontsize=8,
            loc="left",
        )
    for axes in grid[len(seen) :]:
        axes.set_axis_off()
    ncols = min(6, max(2, columns * 3 // 2))
    figure.legend(*_legend(grid[0]), loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)
    return _save(figure, path)


def _scene(axes: Axes, view: View, *, size: float) -> None:
    """Draw the whole scene; `size` scales lines and marks."""
    for other in view.others:
        axes.plot(*other.T, color=OTHERS, lw=1.2 * size, zorder=1, solid_capstyle="round")
    axes.plot(*view.others[:, PAST - 1].T, "o", ms=4 * size, color=OTHERS, zorder=1, label="others")
    start = view.history[-1:]
    straight, truth, prediction = (
        np.concatenate([start, each]) for each in (view.straight, view.truth, view.prediction)
    )
    axes.plot(*straight.T, "--", color=STRAIGHT, lw=1.3 * size, zorder=2, label="constant velocity")
    axes.plot(*view.straight[-1], "o", ms=5 * size, mfc="white", mec=STRAIGHT, zorder=2)
    for points, colour, name in (
        (view.history, HISTORY, "history, 2 s"),
        (truth, TRUTH, "truth, 3 s"),
        (prediction, PREDICTION, "prediction, 3 s"),
    ):
        axes.plot(*points.T, color=colour, lw=2.4 * size, zorder=3, label=name, solid_capstyle="round")
        axes.plot(
            *points[10:-1:10].T, "o", ms=5.5 * size, color=colour, mec="white", mew=0.8 * size, zorder=5
        )
        axes.plot(*points[-1], "o", ms=8 * size, color=colour, mec="white", mew=size, zorder=6)
    ends = np.stack([view.truth[-1], view.prediction[-1]])
    axes.plot(*ends.T, ":", color=PREDICTION, lw=1.2 * size, zorder=2, label="error after 3 s")
    _frame(axes, view, size=size)


def _legend(axes: Axes) -> tuple[list[Any], list[str]]:
    """Return handles and names, what matters most first."""
    by_name = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = ("history", "truth", "prediction", "constant", "error", "others")
    names = sorted(by_name, key=lambda name: order.index(re.split(r"[, ]", name)[0]))
    return [by_name[name] for name in names], names


def _frame(axes: Axes, view: View, *, size: float) -> None:
    """Set a square view that holds the track, and a bar to measure with."""
    points = np.concatenate([view.history, view.truth, view.prediction, view.straight])
    low, high = points.min(axis=0), points.max(axis=0)
    middle = (low + high) / 2
    half = max(MIN_SIDE_M, float((high - low).max()) * MARGIN) / 2
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set_aspect("equal")
    axes.grid(visible=True, color="#eef1f4", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color="#b8c2cc")
    for spine in axes.spines.values():
        spine.set_color("#b8c2cc")
    _scale_bar(axes, half, middle, size=size)


def _scale_bar(axes: Axes, half: float, middle: Doubles, *, size: float) -> None:
    bar = _round_length(half * 0.5)
    left, bottom = middle[0] - half * 0.92, middle[1] - half * 0.92
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
    axes.plot(
        [left, left + bar], [bottom, bottom], color=HISTORY, lw=3 * size, solid_capstyle="butt", zorder=8
    )
    axes.text(
        left + bar / 2,
        bottom + half * 0.03,
        f"{bar:g} m",
        ha="center",
        va="bottom",
        fontsize=9 * max(size, 0.85),
        color=HISTORY,
        bbox=box,
        zorder=8,
    )


def _round_length(metres: float) -> float:
    """Return the longest of 1, 2, 5, 10, 20, … that is not longer."""
    power = 10.0 ** math.floor(math.log10(metres))
    return power * max(step for step in (1, 2, 5) if step * power <= metres * (1 + 1e-9))


def _short(text: str, most: int = 24) -> str:
    shown = printable(text)
    return shown if len(shown) <= most else f"…{shown[1 - most :]}"


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path
