"""Sections of an evidence report: per-slice bars, differences of two models, curves, maps, pictures, what it came from.

HTML and drawings for `cli/page.py`; equal figures give equal text. matplotlib is imported by the page that draws.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.cli.page import COLOURS, GREY, Draw, escape, grid
from fedfleet.cli.verdicts import GAIN, gain_text, interval_text
from fedfleet.models import task as tasks
from fedfleet.models.bootstrap import Difference, Estimate
from fedfleet.models.slices import ALL
from fedfleet.models.task import Case, Metric

__all__ = [
    "Series",
    "difference_table",
    "draw_differences",
    "draw_distribution",
    "draw_map",
    "estimates_json",
    "picture",
    "provenance",
    "slice_charts",
    "slice_table",
    "unit_of",
    "worst_cases",
]

VERDICTS: Final = {
    "better": "better",
    "worse": "worse",
    "no-difference-shown": "no difference shown",
}
_COLOUR: Final = {"better": "#0a7a3d", "worse": "#b3261e", "no-difference-shown": GREY}
MAP_POINTS: Final = 20_000


@dataclass(frozen=True)
class Series:
    """One model's figures by slice: its name, its colour, its estimates of all metrics."""

    name: str
    colour: str
    found: Mapping[str, tuple[Estimate, ...]]

    def of(self, slice_: str, metric: Metric) -> Estimate | None:
        """Return the estimate of a metric on a slice, where there is one."""
        return next((one for one in self.found.get(slice_, ()) if one.metric == metric.name), None)


def unit_of(metric: Metric) -> str:
    """Return a metric's name with its unit."""
    return f"{metric.name} [{metric.unit}]" if metric.unit else metric.name


def slice_charts(series: Sequence[Series], metric: Metric) -> list[Draw]:
    """Return a drawing for each dimension: bars of every series on its slices, with 95 % intervals and counts."""
    names = list(series[0].found)
    dimensions = sorted({name.partition("=")[0] for name in names if name != ALL})
    return [
        partial(_draw_dimension, series=series, metric=metric, dimension=dimension)
        for dimension in dimensions
    ]


def slice_table(series: Sequence[Series], metrics: Sequence[Metric], *, worst: str | None, noun: str) -> str:
    """Return the table of slices: counts, the first series with intervals, the primary metric of the others."""
    first, *others = series
    head = ["slice", noun, "drives"]
    head += [unit_of(metric) for metric in metrics] + [f"{one.name}, {metrics[0].name}" for one in others]
    rows = []
    for name, found in first.found.items():
        cells = [f"{name} (worst)" if name == worst else name, f"{found[0].samples:,}", str(found[0].drives)]
        cells += [_with_interval(one) for one in found]
        rows.append([*cells, *(_number(_value(one.of(name, metrics[0]))) for one in others)])
    return grid(head, rows)


def difference_table(found: Mapping[str, Difference], metric: Metric, *, names: tuple[str, str]) -> str:
    """Return the table of a second model's gains over a first one, by slice."""
    unit = f" [{metric.unit}]" if metric.unit else ""
    head = ["slice", "samples", "drives", *names, f"{GAIN}{unit}", "95 % interval", "worse in drives"]
    rows = [
        [
            one.slice,
            f"{one.samples:,}",
            str(one.drives),
            _number(one.value),
            _number(one.other),
            gain_text(one),
            interval_text(one),
            f"{one.drives_worse} of {one.drives}",
            f"{one.p_corrected:.4f}",
            VERDICTS[one.verdict],
        ]
        for one in found.values()
    ]
    return grid([*head, "p, corrected", f"{names[1]} is"], rows)


def draw_differences(axes: Any, found: Mapping[str, Difference], metric: Metric) -> None:  # noqa: ANN401 - matplotlib's
    """Draw every slice's gain with its interval, better to the right, coloured by what may be said."""
    rows = list(found.values())[::-1]
    _resize(axes, 0.22 * len(rows) + 1.0)
    for place, one in enumerate(rows):
        low, high = one.gain_interval or (one.gain, one.gain)
        colour = _COLOUR[one.verdict]
        axes.plot([low, high], [place, place], color=colour, lw=2.2, solid_capstyle="butt")
        axes.plot(one.gain, place, "o", ms=5, color=colour)
    axes.axvline(0, color="#555f6b", lw=0.8)
    axes.set_yticks(range(len(rows)), [one.slice for one in rows], fontsize=7)
    axes.set(title="Second model against first, by slice", xlabel=f"{GAIN}: {unit_of(metric)}")


def draw_distribution(axes: Any, errors: Mapping[str, NDArray[np.float64]], metric: Metric) -> None:  # noqa: ANN401 - matplotlib's
    """Draw the share of judged answers that are no worse than an error, as one curve each."""
    top = 0.0
    for number, (name, values) in enumerate(errors.items()):
        finite = np.sort(values[np.isfinite(values)])
        if len(finite):
            top = max(top, float(np.quantile(finite, 0.99)))
            at = np.linspace(0, len(finite) - 1, min(400, len(finite))).astype(np.int64)
            colour = GREY if number == 1 else COLOURS[number]
            axes.plot(finite[at], (at + 1) / len(finite), color=colour, lw=1.8, label=name)
    axes.set(
        title="Share of answers that are no worse", xlabel=unit_of(metric), xlim=(0, top or 1), ylim=(0, 1)
    )
    axes.legend(frameon=False, fontsize=8)


def draw_map(axes: Any, rows: NDArray[np.float64], *, region: str, metric: Metric, top: float) -> None:  # noqa: ANN401 - matplotlib's
    """Draw where the errors are: rows (x_m, y_m, error) float64[N, 3], east to the right, the worst on top."""
    shown = rows[np.isfinite(rows).all(axis=1)]
    shown = shown[:: max(1, len(shown) // MAP_POINTS)]
    shown = shown[np.argsort(shown[:, 2], kind="stable")]
    if not len(shown):
        axes.set(title=f"{region}: no place known")
        return
    x, y = (shown[:, axis] - np.median(shown[:, axis]) for axis in (0, 1))
    dots = axes.scatter(x, y, c=shown[:, 2], s=7, cmap="viridis_r", vmin=0, vmax=top, lw=0, rasterized=True)
    axes.figure.colorbar(dots, ax=axes, label=unit_of(metric))
    axes.set_aspect("equal", adjustable="datalim")
    axes.set(title=region, xlabel="m east of the middle", ylabel="m north")


def picture(path: Path, caption: str = "") -> str:
    """Return a PNG as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def provenance(rows: Mapping[str, str]) -> str:
    """Return where the report comes from, one line each: commands, hashes, versions."""
    lines = (f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in rows.items())
    return f'<h2>What this was made from</h2><dl class="from">{"".join(lines)}</dl>'


def worst_cases(plot: str, metric: Metric, worst: Sequence[tuple[float, Case]], scenarios: Path) -> str:
    """Return pictures of the worst answers, the worst first, by the task's `plot`; nothing where there is none."""
    if not plot or not worst:
        return ""
    with TemporaryDirectory(prefix="fedfleet-") as folder:
        files = tasks.resolve(plot)([case for _, case in worst], scenarios=scenarios, out=Path(folder))
        captions = [f"{case.drive}: {metric.name} {value:.3f} {metric.unit}".strip() for value, case in worst]
        single = files[len(files) - len(worst) :]  # a sheet of all may come first
        figures = [picture(file, text) for file, text in zip(single, captions, strict=True)]
    return f'<h2>Worst answers</h2><div class="plots cases">{"".join(figures)}</div>'


def estimates_json(found: Mapping[str, tuple[Estimate, ...]]) -> dict[str, Any]:
    """Return the slices for programs: counts, and by metric (lower case) value, low, high."""
    return {
        name: {
            "samples": each[0].samples,
            "drives": each[0].drives,
            **{one.metric.lower(): {"value": one.value, "low": one.low, "high": one.high} for one in each},
        }
        for name, each in found.items()
    }


def _draw_dimension(axes: Any, series: Sequence[Series], metric: Metric, dimension: str) -> None:  # noqa: ANN401 - matplotlib's
    names = [name for name in series[0].found if name.partition("=")[0] == dimension]
    names = [*names, ALL] if ALL in series[0].found else names
    _resize(axes, (0.13 * len(series) + 0.16) * len(names) + 1.1)
    height = 0.8 / len(series)
    for number, one in enumerate(series):
        for place, name in enumerate(reversed(names)):
            found = one.of(name, metric)
            if found is None or found.value is None:
                continue
            at = place + 0.4 - (number + 0.5) * height
            label = one.name if place == len(names) - 1 else None
            axes.barh(at, found.value, height * 0.92, color=one.colour, label=label)
            if found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [at, at], color="#1b2430", lw=1.1)
    counts = [series[0].found[name][0] for name in reversed(names)]
    labels = [f"{one.slice.partition('=')[2] or one.slice}\n{one.samples:,}" for one in counts]
    axes.set_yticks(range(len(names)), labels, fontsize=7.5)
    axes.set(title=f"{metric.name} by {dimension}", xlabel=unit_of(metric))
    handles = axes.get_legend_handles_labels()
    axes.figure.legend(*handles, loc="outside lower center", ncols=len(series), frameon=False, fontsize=7.5)


def _resize(axes: Any, inches: float) -> None:  # noqa: ANN401 - matplotlib's
    axes.figure.set_size_inches(5.6, max(2.2, min(16.0, inches)))


def _value(one: Estimate | None) -> float | None:
    return None if one is None else one.value


def _with_interval(one: Estimate) -> str:
    if one.value is None or one.low is None or one.high is None:
        return _number(one.value)
    return f"{one.value:.3f} ({one.low:.3f} … {one.high:.3f})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
