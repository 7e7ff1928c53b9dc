"""What a replay showed, summed up by region and overall: errors on judged and on all tracks, latency, throughput."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Table

from fedfleet.cli.replay_run import Driven
from fedfleet.cli.verdicts import percent_text
from fedfleet.models.task import Case, Floats, Metric, Samples, Sums, Task, added, noun, trivial

__all__ = [
    "Part",
    "add_up",
    "as_json",
    "merged",
    "pace_table",
    "part_of",
    "score_table",
    "values_of",
    "worst_of",
]


@dataclass(frozen=True, eq=False)
class Part:
    """Figures of some drives; ``sums`` has the metrics of the model and the baseline, on judged and on all tracks."""

    drives: int
    frames: int
    missed: int
    predictions: int
    unanswered: int
    seconds: float
    latencies_ms: Floats
    sums: Mapping[str, Sums]

    @property
    def per_second(self) -> float:
        """Predicted tracks per second of the replay."""
        return self.predictions / self.seconds if self.seconds > 0 else 0.0

    def latency_ms(self, percentile: float) -> float | None:
        """Return a percentile of the latency per frame; None without a frame."""
        return float(np.percentile(self.latencies_ms, percentile)) if len(self.latencies_ms) else None

    def tracks(self, which: str) -> int:
        """Return the number of tracks that were scored: ``judged`` or ``all``."""
        return max((count for _, count in self.sums[which].values()), default=0)

    def mean(self, which: str, metric: Metric) -> float | None:
        """Return a metric over the ``judged`` samples or ``all``; None where it has no value."""
        return metric.value(self.sums[which])


def part_of(task: Task, driven: Driven) -> Part:
    """Return the figures of one drive; tracks whose frame was skipped are counted as unanswered."""
    truth = driven.truth
    trivial = task.baseline(truth.inputs)
    sums = {
        "judged": task.score(driven.outputs, truth),
        "all": task.score_all(driven.outputs, truth),
        "judged_baseline": task.score(trivial, truth),
        "all_baseline": task.score_all(trivial, truth),
    }
    left = len(driven.samples) - len(driven.answered)
    counts = (driven.frames, driven.missed, driven.predictions, left)
    return Part(1, *counts, driven.seconds, driven.latencies_ms, sums)


def add_up(parts: Sequence[Part]) -> Part:
    """Return the figures of all parts together."""
    return Part(
        drives=sum(part.drives for part in parts),
        frames=sum(part.frames for part in parts),
        missed=sum(part.missed for part in parts),
        predictions=sum(part.predictions for part in parts),
        unanswered=sum(part.unanswered for part in parts),
        seconds=sum(part.seconds for part in parts),
        latencies_ms=np.concatenate([np.empty(0, dtype=np.float32), *(part.latencies_ms for part in parts)]),
        sums={key: added(part.sums[key] for part in parts) for key in parts[0].sums} if parts else {},
    )


def values_of(task: Task, outputs: Floats, samples: Samples) -> dict[str, NDArray[np.float64]]:
    """Return each metric that is a plain mean for every single sample, float64[N]; NaN where it has none."""
    found = {metric.name: np.full(len(samples), np.nan) for metric in task.metrics if metric.of is None}
    for row in range(len(samples)):
        sums = task.score_all(outputs[row : row + 1], samples.take(np.array([row])))
        for name, values in found.items():
            total, count = sums.get(name, (0.0, 0))
            values[row] = total / count if count else np.nan
    return found


def worst_of(
    task: Task, driven: Driven, values: NDArray[np.float64], *, most: int
) -> list[tuple[float, Case]]:
    """Return the judged answers of a drive with their primary metric (``values``), the worst first."""
    judged = np.asarray(driven.samples.judged)[driven.answered]
    cases = [
        (
            float(values[place]),
            Case(driven.drive.key, int(driven.answered[place]), driven.outputs[place]),
        )
        for place in np.flatnonzero(judged & np.isfinite(values))
    ]
    return merged(task, cases, most=most)


def merged(task: Task, cases: Sequence[tuple[float, Case]], *, most: int) -> list[tuple[float, Case]]:
    """Return the worst of some answers, the worst first."""
    sign = -1.0 if task.metrics[0].better == "lower" else 1.0
    return sorted(cases, key=lambda each: sign * each[0])[:most]


def as_json(task: Task, part: Part) -> dict[str, Any]:
    """Return the figures for programs: metrics of judged tracks on top, the same under ``all_tracks``."""
    return {
        **_metrics(task, part, "judged"),
        "all_tracks": _metrics(task, part, "all"),
        "drives": part.drives,
        "frames": part.frames,
        "missed": part.missed,
        "predictions": part.predictions,
        "unanswered_tracks": part.unanswered,
        "p50_ms": part.latency_ms(50),
        "p99_ms": part.latency_ms(99),
        "seconds": part.seconds,
        "tracks_per_s": part.per_second,
    }


def score_table(task: Task, rows: Mapping[str, Part], which: str) -> Table:
    """Return the table of errors on ``judged`` or ``all`` tracks: the model, and the trivial answer below it."""
    title = f"{task.name}, {which} {noun(task)}"
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, collapse_padding=True)
    for head in ("region", "answer"):
        table.add_column(head, no_wrap=True)
    table.add_column(noun(task), justify="right", no_wrap=True)
    for metric in task.metrics:
        table.add_column(_head(metric.name, metric.unit), justify="right", no_wrap=True)
    table.add_column("gain\n(+ better)", justify="right", no_wrap=True)
    primary = task.metrics[0]
    for name, part in rows.items():
        values = [part.mean(which, metric) for metric in task.metrics]
        beside = [part.mean(f"{which}_baseline", metric) for metric in task.metrics]
        gain = percent_text(primary.gain_percent(values[0], beside[0]))
        table.add_row(name, "model", f"{part.tracks(which):,}", *map(_number, values), gain)
        table.add_row("", trivial(task), "", *map(_number, beside), "", style="dim", end_section=True)
    return table


def pace_table(task: Task, rows: Mapping[str, Part]) -> Table:
    """Return the table of frames: how many, how late, how fast."""
    table = Table(title="latency of a frame (ms), throughput", title_justify="left")
    table.add_column("region", no_wrap=True)
    for head in ("frames", "missed", "predictions", "p50", "p99", f"{noun(task)}/s"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, part in rows.items():
        latencies = (_number(part.latency_ms(50)), _number(part.latency_ms(99)))
        counts = (part.frames, part.missed, part.predictions)
        table.add_row(name, *(f"{count:,}" for count in counts), *latencies, f"{part.per_second:,.0f}")
    return table


def _metrics(task: Task, part: Part, which: str) -> dict[str, Any]:
    baseline = {metric.name.lower(): part.mean(f"{which}_baseline", metric) for metric in task.metrics}
    means = {metric.name.lower(): part.mean(which, metric) for metric in task.metrics}
    return {**means, "tracks": part.tracks(which), "baseline": baseline}


def _head(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit not in {"", "share"} else name


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
