"""What a comparison found: one value, its JSON, and the table on the terminal."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE
from rich.table import Table

from fedfleet.cli import compare_slices
from fedfleet.cli.compare_arms import Judged, Point, Scores, mean
from fedfleet.cli.compare_settings import ArmSettings
from fedfleet.cli.compare_slices import Answered, Sliced
from fedfleet.cli.verdicts import against, against_json, percent_text
from fedfleet.models.task import Metric, Sums

__all__ = ["ARMS", "Result", "as_json", "table", "verdicts", "write_json"]

ARMS: Final[Mapping[str, str]] = {
    "constant_velocity": "trivial answer",
    "centralised": "centralised",
    "on_site": "on-site only",
    "federated": "federated",
}
"""Key of an arm -> its name for people, in the order in which they are shown; `Result.arm` knows the task's own.

The first is the task's trivial answer, whatever it is: the key is that of the first task, and `baseline` says the same.
"""


@dataclass(frozen=True)
class Result:
    """Everything that was measured. ``tests`` and ``curves`` are by arm; ``told`` goes into the JSON as it is.

    ``told`` holds versions, seeds, data, notes: what someone needs to repeat it.
    """

    task: str
    metrics: tuple[Metric, ...]
    tests: Mapping[str, Judged]
    curves: Mapping[str, tuple[Point, ...]]
    chosen: Mapping[str, float]
    arms: ArmSettings
    rounds: int
    bytes_up: int
    bytes_down: int
    seconds: float
    told: Mapping[str, Any]
    noun: str = "samples"
    trivial: str = ARMS["constant_velocity"]
    sliced: Sliced | None = None
    answered: Answered | None = None
    plot: str = ""
    """`module:function` that draws answers, where the task has one."""

    def arm(self, key: str) -> str:
        """The name of an arm for people."""
        return self.trivial if key == "constant_velocity" else ARMS[key]

    @property
    def regions(self) -> list[str]:
        """The regions of the test, by name."""
        return sorted(self.tests["federated"].judged)


def verdicts(result: Result) -> tuple[str, ...]:
    """Say how the federated arm does against the trivial answer, and which other arm is worse than that overall."""
    if result.sliced is None:
        return ()
    metric, found = result.metrics[0], result.sliced.differences.get("constant_velocity", {})
    said = list(against(found, metric, model="federated", other=result.trivial))
    trivial = mean(result.tests["constant_velocity"].judged, metric)
    for arm in ("centralised", "on_site"):
        gain = metric.gain_percent(mean(result.tests[arm].judged, metric), trivial)
        if gain is not None and gain < 0:
            said.append(f"{result.arm(arm)} is worse than {result.trivial} overall ({percent_text(gain)})")
    return tuple(said)


def as_json(result: Result) -> dict[str, Any]:
    """The comparison as JSON: by arm ``overall`` and ``regions`` with metrics in lower case and ``all_tracks``."""
    found: dict[str, Any] = {"format": 1, "task": result.task}
    for arm in ARMS:
        test = result.tests[arm]
        found[arm] = {
            "overall": _figures(test, list(test.judged), result.metrics),
            "regions": {name: _figures(test, [name], result.metrics) for name in sorted(test.judged)},
        }
        if result.sliced is not None:
            found[arm]["slices"] = compare_slices.slices_json(result.sliced, arm)
        if arm in result.chosen:
            found[arm]["chosen_epoch"] = result.chosen[arm]
        if arm in result.curves:
            found[arm]["curve"] = [_point(point, result.metrics) for point in result.curves[arm]]
    found["baseline"] = {"name": result.trivial, **found["constant_velocity"]}
    if result.sliced is not None:
        found |= compare_slices.as_json(result.sliced)
        trivial = result.sliced.differences.get("constant_velocity", {})
        told = against_json(trivial, result.metrics[0], model="federated", other=result.trivial)
        found["against_baseline"] = {**told, "said": list(verdicts(result))}
    return {
        **found,
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "rounds": result.rounds,
        "seconds": round(result.seconds, 3),
        "settings": result.arms.model_dump(mode="json"),
        **result.told,
    }


def write_json(path: Path, result: Result) -> None:
    """Write the JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(as_json(result), indent=2, allow_nan=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(path)


def table(result: Result) -> Table:
    """The table for the terminal: arms by region, with gains in the primary metric over two of the arms."""
    view = Table(
        title=f"{result.task}: test drives that no arm has seen",
        expand=False,
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    view.add_column("region", no_wrap=True)
    view.add_column("arm", no_wrap=True)
    for metric in result.metrics:
        view.add_column(f"{metric.name}\n{metric.unit}", justify="right", no_wrap=True)
    for other in (result.trivial.replace(" ", "\n", 1), "central-\nised"):
        view.add_column(f"vs {other}\n(+ better)", justify="right", no_wrap=True)
    for name in ("all", *result.regions):
        for arm in ARMS:
            values = [mean(_part(result, arm, name), metric) for metric in result.metrics]
            primary = result.metrics[0]
            gains = [
                primary.gain_percent(values[0], mean(_part(result, other, name), primary))
                for other in ("constant_velocity", "centralised")
            ]
            style = "bold" if arm == "federated" else None
            cells = [*map(_number, values), *map(percent_text, gains)]
            view.add_row(
                name if arm == "constant_velocity" else "",
                result.arm(arm),
                *cells,
                style=style,
                end_section=arm == "federated",
            )
    return view


def _part(result: Result, arm: str, region: str) -> Scores:
    judged = result.tests[arm].judged
    return judged if region == "all" else {region: judged[region]}


def _figures(test: Judged, regions: list[str], metrics: tuple[Metric, ...]) -> dict[str, Any]:
    of_all = {region: test.everything[region] for region in regions}
    judged = {region: test.judged[region] for region in regions}
    return {
        **_means(judged, metrics),
        "tracks": _count(judged, metrics[0]),
        "all_tracks": {**_means(of_all, metrics), "tracks": _count(of_all, metrics[0])},
    }


def _means(scores: Mapping[str, Sums], metrics: tuple[Metric, ...]) -> dict[str, float | None]:
    return {metric.name.lower(): mean(scores, metric) for metric in metrics}


def _count(scores: Mapping[str, Sums], metric: Metric) -> int:
    return sum(sums[metric.name][1] for sums in scores.values())


def _point(point: Point, metrics: tuple[Metric, ...]) -> dict[str, Any]:
    regions = {name: _means({name: sums}, metrics) for name, sums in sorted(point.scores.items())}
    return {"epochs": point.epochs, "validation": _means(point.scores, metrics), "regions": regions}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
