"""What a replay leaves behind: `summary.json` and the evidence report, the same when the same is replayed again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedfleet.cli import evidence, verdicts
from fedfleet.cli.evidence import Series
from fedfleet.cli.page import COLOURS, GREY, Draw, document, escape, svg, tiles
from fedfleet.cli.replay_slices import Gathered
from fedfleet.fleet_server.files import write_file
from fedfleet.models import bootstrap, extras
from fedfleet.models import task as tasks
from fedfleet.models.bootstrap import Difference, Estimate
from fedfleet.models.task import Case, Task

__all__ = [
    "FRAMES",
    "PAGE",
    "SUMMARY",
    "About",
    "Findings",
    "baseline_json",
    "differences_json",
    "find",
    "said",
    "write_page",
    "write_summary",
]

FRAMES: Final = "frames.parquet"
SUMMARY: Final = "summary.json"
PAGE: Final = "report.html"
MAPS: Final = 8


@dataclass(frozen=True)
class About:
    """What was replayed, and by which command: strings of names, hashes and versions, told as they are."""

    command: str
    scenarios: str
    model: str
    model_sha256: str
    data_sha256: str
    seed: int
    versions: Mapping[str, str]
    against: str | None = None
    against_sha256: str | None = None


@dataclass(frozen=True, eq=False)
class Findings:
    """Figures by slice with intervals, of the model and the trivial answer; how the model differs from that.

    ``differences`` are those of another model from the model, if there is another.
    """

    model: Mapping[str, tuple[Estimate, ...]]
    trivial: Mapping[str, tuple[Estimate, ...]]
    worst: str | None
    beside_trivial: Mapping[str, Difference]
    differences: Mapping[str, Difference]


def find(task: Task, gathered: Gathered, *, seed: int) -> Findings:
    """Draw the intervals, and compare where there is another model."""
    model = bootstrap.estimates(gathered.model, task.metrics, seed=seed)
    differences = {}
    if gathered.theirs:
        differences = bootstrap.compare(gathered.ours, gathered.theirs, task.metrics[0], seed=seed)
    trivial = bootstrap.estimates(gathered.trivial, task.metrics, seed=seed)
    beside = bootstrap.compare(gathered.trivial, gathered.model, task.metrics[0], seed=seed)
    return Findings(model, trivial, bootstrap.worst(model, task.metrics[0]), beside, differences)


def said(task: Task, found: Findings, *, model: str, other: str | None) -> tuple[str, ...]:
    """Say how the model does against the trivial answer, and another model against it, if there is one."""
    metric, trivial = task.metrics[0], tasks.trivial(task)
    lines = verdicts.against(found.beside_trivial, metric, model=Path(model).name, other=trivial)
    if other is not None:
        names = {"model": Path(other).name, "other": Path(model).name}
        lines += verdicts.against(found.differences, metric, **names)
    return lines


def write_summary(
    path: Path, task: Task, found: Findings, about: About, *, figures: Mapping[str, Any]
) -> None:
    """Write the JSON; ``figures`` are counts and the worst cases, which stand in it as they are."""
    content: dict[str, Any] = {
        "format": 1,
        "task": task.name,
        "task_version": task.version,
        "scenarios": about.scenarios,
        "data_sha256": about.data_sha256,
        "model": about.model,
        "model_sha256": about.model_sha256,
        "seed": about.seed,
        "versions": dict(sorted(about.versions.items())),
        **figures,
        "slices": evidence.estimates_json(found.model),
        "baseline_slices": evidence.estimates_json(found.trivial),
        "worst_slice": found.worst,
        "against_baseline": baseline_json(task, found, model=about.model),
    }
    if about.against is not None:
        content |= {"against": about.against, "against_sha256": about.against_sha256}
        content["differences"] = differences_json(found)
    write_file(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def baseline_json(task: Task, found: Findings, *, model: str) -> dict[str, Any]:
    """Return how the model does against the trivial answer, for programs: + is better in `gain`, `low` and `high`."""
    names = {"model": Path(model).name, "other": tasks.trivial(task)}
    return {
        **verdicts.against_json(found.beside_trivial, task.metrics[0], **names),
        "gains": {
            name: {
                "gain": one.gain,
                "low": None if one.gain_interval is None else one.gain_interval[0],
                "high": None if one.gain_interval is None else one.gain_interval[1],
                "p_corrected": one.p_corrected,
                "drives": one.drives,
                "drives_worse": one.drives_worse,
                "model_is": one.verdict,
            }
            for name, one in found.beside_trivial.items()
        },
    }


def differences_json(found: Findings) -> dict[str, Any]:
    """Return how the other model differs, by slice, for programs."""
    return {
        name: {
            "samples": one.samples,
            "drives": one.drives,
            "model": one.value,
            "against": one.other,
            "difference": one.difference,
            "low": one.low,
            "high": one.high,
            "gain": one.gain,
            "drives_worse": one.drives_worse,
            "p": one.p,
            "p_corrected": one.p_corrected,
            "against_is": one.verdict,
        }
        for name, one in found.differences.items()
    }


def write_page(
    path: Path,
    task: Task,
    gathered: Gathered,
    *,
    found: Findings,
    about: About,
    worst: Sequence[tuple[float, Case]],
) -> bool:
    """Write the evidence report; False, and nothing is written, where matplotlib is not installed."""
    path.unlink(missing_ok=True)
    if not extras.is_installed("matplotlib"):
        return False
    metric, series = task.metrics[0], _series(task, found)
    charts = "".join(svg(draw) for draw in evidence.slice_charts(series, metric))
    body = (
        f"<h1>fedfleet replay: {escape(task.name)}</h1>{_lead(task, found, about)}{tiles(_tiles(task, found))}"
        f"<h2>Slices</h2><p>Bars with 95 % intervals, drawn over whole drives; numbers are {tasks.noun(task)}.</p>"
        f'<div class="plots">{charts}</div>'
        f"{evidence.slice_table(series, task.metrics, worst=found.worst, noun=tasks.noun(task))}"
        f"{_differences(task, found, about)}"
        f'<h2>Curves and maps</h2><div class="plots">{"".join(map(svg, _curves(task, gathered, about)))}</div>'
        f"{evidence.worst_cases(getattr(task, 'plot', ''), metric, worst, Path(about.scenarios))}"
        f"{evidence.provenance(_from(about))}"
    )
    write_file(path, document("fedfleet replay", body).encode())
    return True


def _series(task: Task, found: Findings) -> list[Series]:
    return [Series("model", COLOURS[0], found.model), Series(tasks.trivial(task), GREY, found.trivial)]


def _lead(task: Task, found: Findings, about: About) -> str:
    metric = task.metrics[0]
    lines = said(task, found, model=about.model, other=about.against)
    told = "".join(f"<p>{escape(line)}</p>" for line in lines)
    if found.worst is None:
        return told
    worst = next(one for one in found.model[found.worst] if one.metric == metric.name)
    value = f"{worst.value:.3f} {metric.unit}".strip()
    return told + (
        f"<p>The worst slice is <b>{escape(found.worst)}</b>: {escape(metric.name)} {escape(value)} "
        f"over {worst.samples:,} {escape(tasks.noun(task))} of {worst.drives} drives.</p>"
    )


def _tiles(task: Task, found: Findings) -> list[tuple[str, str]]:
    every = found.model.get("all", ())
    trivial = {one.metric: one for one in found.trivial.get("all", ())}
    told = []
    for one in every:
        beside = trivial[one.metric].value
        told.append((f"{one.metric}, {tasks.trivial(task)} {_short(beside)}", _short(one.value)))
    count = every[0].samples if every else 0
    drives = every[0].drives if every else 0
    return [*told, (tasks.noun(task), f"{count:,}"), ("drives", f"{drives:,}")]


def _differences(task: Task, found: Findings, about: About) -> str:
    """The model against the trivial answer, and another model against it."""
    model = Path(about.model).name
    parts = _paired(task, found.beside_trivial, (tasks.trivial(task), model))
    return parts + _paired(task, found.differences, (model, Path(about.against or "").name))


def _paired(task: Task, differences: Mapping[str, Difference], names: tuple[str, str]) -> str:
    if not differences:
        return ""
    metric = task.metrics[0]
    draw = partial(evidence.draw_differences, found=differences, metric=metric)
    sure = sum(one.verdict != "no-difference-shown" for one in differences.values())
    return (
        f"<h2>{escape(names[1])} against {escape(names[0])}</h2>"
        f"<p>+ is better. {sure} of {len(differences)} slices differ for sure: paired bootstrap over drives, p values "
        "corrected for the number of slices (Holm), 5 %. What is not for sure may be chance.</p>"
        f'<div class="plots">{svg(draw)}</div>'
        f"{evidence.difference_table(differences, metric, names=names)}"
    )


def _curves(task: Task, gathered: Gathered, about: About) -> list[Draw]:
    metric = task.metrics[0]
    named = {"model": "model", "trivial": tasks.trivial(task), "other": Path(about.against or "").name}
    errors = {named[who]: np.concatenate(parts) for who, parts in gathered.errors.items()}
    draws: list[Draw] = [partial(evidence.draw_distribution, errors=errors, metric=metric)]
    everything = np.concatenate([*gathered.errors["model"], np.zeros(1)])
    top = float(np.quantile(everything[np.isfinite(everything)], 0.95)) or 1.0
    for region, parts in sorted(gathered.places.items())[:MAPS]:
        rows = np.concatenate(parts)
        draws.append(partial(evidence.draw_map, rows=rows, region=region, metric=metric, top=top))
    return draws


def _from(about: About) -> dict[str, str]:
    rows = {
        "command": about.command,
        "recordings": about.scenarios,
        "data, SHA-256": about.data_sha256,
        "model": about.model,
        "model, SHA-256": about.model_sha256,
    }
    if about.against is not None and about.against_sha256 is not None:
        rows |= {"against": about.against, "against, SHA-256": about.against_sha256}
    versions = ", ".join(f"{name} {version}" for name, version in sorted(about.versions.items()))
    return {**rows, "seed": str(about.seed), "versions": versions}


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
