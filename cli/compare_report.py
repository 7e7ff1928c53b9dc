"""The report of a comparison: pictures as PNG, and one self-contained HTML page."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedfleet.cli import evidence
from fedfleet.cli.compare_arms import mean
from fedfleet.cli.compare_result import ARMS, Result, verdicts
from fedfleet.cli.evidence import Series
from fedfleet.cli.page import COLOURS, GREY, Draw, document, escape, grid, png, svg, tiles
from fedfleet.cli.verdicts import percent_text

__all__ = ["CASES", "write"]

CASES: Final = 6
"""Worst answers that are shown."""
MAPS: Final = 8

_ARM_COLOURS: Final = {
    "constant_velocity": GREY,
    "centralised": COLOURS[0],
    "on_site": COLOURS[1],
    "federated": COLOURS[2],
}


def write(
    folder: Path, result: Result, *, command: str = "", scenarios: tuple[Path, Path | None] | None = None
) -> tuple[Path, ...]:
    """Write ``report.html`` and the pictures into ``folder``; return the files, the page first.

    ``scenarios`` are the folders of recordings and of the test, where it has its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: Mapping[str, Draw] = {
        "curves": partial(_draw_curves, result=result),
        "regions": partial(_draw_regions, result=result),
        "learning_by_region": partial(_draw_by_region, result=result),
    }
    files = []
    for name, draw in pictures.items():
        files.append(folder / f"{name}.png")
        png(draw, files[-1])
    page = folder / "report.html"
    more = _slices(result) + _maps(result) + _worst(result, scenarios) + _from(result, command, scenarios)
    page.write_text(_page(result, "".join(map(svg, pictures.values())), more), encoding="utf-8")
    return (page, *files)


def _page(result: Result, plots: str, more: str) -> str:
    told = result.told
    notes = "".join(f"<p>{escape(note)}</p>" for note in (*verdicts(result), *told["notes"]))
    vehicles = told["data"]["vehicles"]
    body = (
        f"<h1>fedfleet compare: {escape(result.task)}</h1>"
        f"<p>{len(vehicles)} vehicles in {len(set(vehicles.values()))} regions. Every arm learns from at most "
        f"{result.arms.epochs} times as many samples as there are training samples; whole drives are "
        f"split into training, validation and test.</p>{notes}{tiles(_tiles(result))}"
        f'<div class="plots">{plots}</div><h2>Test drives that no arm has seen</h2>{_table(result)}{more}'
    )
    return document("fedfleet compare", body)


def _slices(result: Result) -> str:
    """Bars and table of the slices, and where the federated arm differs from each other."""
    if result.sliced is None:
        return ""
    found, metric = result.sliced.found, result.metrics[0]
    order = ["federated", *(arm for arm in ARMS if arm != "federated")]
    series = [Series(result.arm(arm), _ARM_COLOURS[arm], found[arm]) for arm in order]
    charts = "".join(svg(draw) for draw in evidence.slice_charts(series, metric))
    worst = escape(result.sliced.worst or "none")
    lead = (
        f"<h2>Slices</h2><p>The worst slice of the federated arm is <b>{worst}</b>. Bars with 95 % intervals, "
        f"drawn over whole drives; numbers are {escape(result.noun)}.</p>"
    )
    table = evidence.slice_table(series, result.metrics, worst=result.sliced.worst, noun=result.noun)
    parts = [lead, f'<div class="plots">{charts}</div>', table]
    for arm, differences in result.sliced.differences.items():
        if differences:
            draw = partial(evidence.draw_differences, found=differences, metric=metric)
            names = (result.arm(arm), result.arm("federated"))
            parts.append(
                f"<h2>Federated against {escape(result.arm(arm))}</h2><p>Paired bootstrap over drives, p values "
                f'corrected for the number of slices (Holm), 5 %.</p><div class="plots">{svg(draw)}</div>'
                f"{evidence.difference_table(differences, metric, names=names)}"
            )
    return "".join(parts)


def _maps(result: Result) -> str:
    """Where the federated arm's errors are, where the task tells places."""
    if result.answered is None or not result.answered.places:
        return ""
    metric, places = result.metrics[0], result.answered.places
    errors = np.concatenate([rows[:, 2] for rows in places.values()])
    errors = errors[np.isfinite(errors)]
    top = float(np.quantile(errors, 0.95)) if len(errors) else 1.0
    draws = [
        partial(evidence.draw_map, rows=rows, region=region, metric=metric, top=top or 1.0)
        for region, rows in sorted(places.items())[:MAPS]
    ]
    return f'<h2>Where the federated arm errs</h2><div class="plots">{"".join(map(svg, draws))}</div>'


def _worst(result: Result, scenarios: tuple[Path, Path | None] | None) -> str:
    """Pictures of the federated arm's worst answers, where the task can draw."""
    if result.answered is None or scenarios is None:
        return ""
    folder = scenarios[1] or scenarios[0]
    return evidence.worst_cases(result.plot, result.metrics[0], result.answered.worst, folder)


def _from(result: Result, command: str, scenarios: tuple[Path, Path | None] | None) -> str:
    told = result.told
    versions = ", ".join(f"{name} {version}" for name, version in sorted(told["versions"].items()))
    rows = {"command": command} if command else {}
    for name, folder in zip(("recordings", "test recordings"), scenarios or (), strict=False):
        if folder is not None:
            rows[name] = str(folder)
    return evidence.provenance(
        {
            **rows,
            "data, SHA-256": told["data"]["sha256"],
            "federated model, SHA-256": told["model_sha256"],
            "seed": str(told["seed"]),
            "versions": versions,
        }
    )


def _tiles(result: Result) -> list[tuple[str, str]]:
    metric = result.metrics[0]
    value = {arm: mean(test.judged, metric) for arm, test in result.tests.items()}
    against = {
        f"{metric.name}, federated vs {result.arm(arm)} (+ is better)": metric.gain_percent(
            value["federated"], value[arm]
        )
        for arm in ("constant_velocity", "centralised", "on_site")
    }
    return [
        *((name, percent_text(gain)) for name, gain in against.items()),
        ("rounds", str(result.rounds)),
        ("sent by all vehicles", f"{result.bytes_up / 1e6:.2f} MB"),
        ("received by all vehicles", f"{result.bytes_down / 1e6:.2f} MB"),
        ("seconds", f"{result.seconds:.0f}"),
    ]


def _table(result: Result) -> str:
    units = [f"{metric.name} [{metric.unit}]" for metric in result.metrics]
    head = [
        "region",
        "arm",
        *units,
        *(f"{unit}, all {result.noun}" for unit in units),
        "vs centralised (+ is better)",
    ]
    rows = []
    for region in ("all", *result.regions):
        for arm in ARMS:
            test, other = result.tests[arm], result.tests["centralised"]
            names = result.regions if region == "all" else [region]
            judged = {name: test.judged[name] for name in names}
            everything = {name: test.everything[name] for name in names}
            gain = result.metrics[0].gain_percent(
                mean(judged, result.metrics[0]),
                mean({name: other.judged[name] for name in names}, result.metrics[0]),
            )
            values = [mean(part, metric) for part in (judged, everything) for metric in result.metrics]
            numbers = ["–" if value is None else f"{value:.3f}" for value in values]
            rows.append([region, result.arm(arm), *numbers, percent_text(gain)])
    return grid(head, rows)


def _draw_curves(axes: Any, result: Result) -> None:  # noqa: ANN401 - matplotlib's axes
    metric = result.metrics[0]
    for arm, curve in result.curves.items():
        points = [(point.epochs, mean(point.scores, metric)) for point in curve]
        axes.plot(*zip(*points, strict=True), color=_ARM_COLOURS[arm], label=result.arm(arm), lw=1.6)
    axes.set(title=f"Validation {metric.name}", xlabel="passes over the training data", ylabel=metric.unit)
    axes.legend(frameon=False, fontsize=8)


def _draw_by_region(axes: Any, result: Result) -> None:  # noqa: ANN401 - matplotlib's axes
    metric, curve = result.metrics[0], result.curves["federated"]
    for number, region in enumerate(sorted({name for point in curve for name in point.scores})):
        points = [
            (point.epochs, mean({region: point.scores[region]}, metric))
            for point in curve
            if region in point.scores
        ]
        axes.plot(*zip(*points, strict=True), color=COLOURS[number % len(COLOURS)], label=region, lw=1.6)
    axes.set(title=f"Federated, validation {metric.name} by region", xlabel="passes", ylabel=metric.unit)
    axes.legend(frameon=False, fontsize=8)


def _draw_regions(axes: Any, result: Result) -> None:  # noqa: ANN401 - matplotlib's axes
    metric, places = result.metrics[0], range(len(result.regions))
    for number, arm in enumerate(ARMS):
        judged = result.tests[arm].judged
        heights = [mean({name: judged[name]}, metric) or 0.0 for name in result.regions]
        left = [place + (number - 1.5) * 0.2 for place in places]
        axes.bar(left, heights, 0.2, color=_ARM_COLOURS[arm], label=result.arm(arm))
    axes.set_xticks(list(places), result.regions, fontsize=8)
    axes.set(title=f"Test {metric.name} by region", ylabel=metric.unit)
    axes.legend(frameon=False, fontsize=8)
