"""The result of closed-loop episodes: figures with intervals as JSON, tables, pictures."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fedfleet.cli.page import COLOURS, png
from fedfleet.cli.tables import Column
from fedfleet.cli.tables import show as show_table
from fedfleet.cli.terminal import Terminal
from fedfleet.cli.versions import versions
from fedfleet.models import extras
from fedfleet.scenarios.closed_loop_figures import MEASURES, difference, percentiles
from fedfleet.scenarios.closed_loop_measure import TTC_CAP_S
from fedfleet.scenarios.closed_loop_plan import NET

if TYPE_CHECKING:
    from fedfleet.cli.closed_loop import Run

__all__ = ["NET", "draw", "result", "show"]

FORMAT: Final = 1
_TITLES: Final = {"gap": "Keeping a gap", "merge": "Merging"}
_ONLY_MERGE: Final = {"merged", "merged_s"}


def result(
    runs: "Sequence[Run]", *, arms: Sequence[str], seed: int, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything as values for JSON; the same episodes give the same values."""
    situations = dict.fromkeys(run.plan.situation for run in runs)
    return {
        "format": FORMAT,
        **about,
        "seed": seed,
        "situations": {name: _situation(name, runs, arms, seed) for name in situations},
        "episodes": [_episode(run) for run in runs],
        "versions": {**versions(), "libsumo": importlib.metadata.version("libsumo")},
    }


def show(console: Terminal, found: Mapping[str, Any]) -> None:
    """Print a table for each situation and comparison."""
    for name, part in found["situations"].items():
        for other, measures in part["against"].items():
            title = f"{_TITLES[name]}: {part['episodes']} episodes, model and {other} on the same traffic"
            columns = [
                Column("figure"),
                Column("model", is_number=True),
                Column(other, is_number=True),
                Column("difference", is_number=True),
                Column("95 % interval", is_number=True),
                Column("p", is_number=True),
            ]
            if not console.is_terminal:
                console.say(title)
            show_table(console, title, columns, [_row(key, values) for key, values in measures.items()])
        if part["void"]:
            console.say(f"{len(part['void'])} episodes left out: no room for the ego")


def draw(folder: Path, runs: "Sequence[Run]", arms: Sequence[str]) -> list[Path]:
    """Write a picture of the times to collision of each situation; none without matplotlib."""
    if not extras.is_installed("matplotlib"):
        return []
    files = []
    for name in dict.fromkeys(run.plan.situation for run in runs):
        files.append(folder / f"ttc-{name}.png")
        png(partial(_draw, name=name, runs=runs, arms=arms), files[-1])
    return files


def _situation(name: str, runs: "Sequence[Run]", arms: Sequence[str], seed: int) -> dict[str, Any]:
    here = [run for run in runs if run.plan.situation == name]
    whole = [run.outcomes for run in here if run.outcomes]
    ours, *others = arms
    measures = [each for each in MEASURES if name == "merge" or each.name not in _ONLY_MERGE]
    return {
        "episodes": len(whole),
        "void": [run.plan.number for run in here if not run.outcomes],
        "min_ttc_s": {arm: percentiles([each[arm] for each in whole]) for arm in arms},
        "against": {
            other: {
                each.name: difference([(one[ours], one[other]) for one in whole], each, seed=seed)
                for each in measures
            }
            for other in others
        },
    }


def _episode(run: "Run") -> dict[str, Any]:
    plan = run.plan
    return {
        "situation": plan.situation,
        "number": plan.number,
        "carriageway": plan.way,
        "flow_per_s": plan.flow_per_s,
        "start_s": plan.start_s,
        "events": list(plan.events),
        "outcomes": {arm: outcome.as_json() for arm, outcome in run.outcomes.items()},
    }


def _row(key: str, values: Mapping[str, Any]) -> list[str]:
    measure = next(each for each in MEASURES if each.name == key)
    interval = "–" if values["low"] is None else f"{values['low']:+.3f} … {values['high']:+.3f}"
    numbers = [_number(values["model"]), _number(values["against"])]
    gap = "–" if values["difference"] is None else f"{values['difference']:+.3f}"
    p = values.get("p")
    return [f"{measure.title} [{measure.unit}]", *numbers, gap, interval, "–" if p is None else f"{p:.3f}"]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _draw(axes: Any, *, name: str, runs: "Sequence[Run]", arms: Sequence[str]) -> None:  # noqa: ANN401 - matplotlib
    for place, arm in enumerate(arms):
        values = sorted(
            run.outcomes[arm].min_ttc_s for run in runs if run.plan.situation == name and run.outcomes
        )
        if values:
            shares = [(at + 1) / len(values) for at in range(len(values))]
            axes.step([0.0, *values], [0.0, *shares], where="post", color=COLOURS[place], label=arm, lw=1.6)
    axes.axvline(1.5, color="#999999", lw=0.8, ls=":")
    axes.set(
        title=f"{_TITLES[name]}: smallest time to collision",
        xlabel=f"s, {TTC_CAP_S:g} = that or more",
        ylabel="share of episodes",
        xlim=(0, TTC_CAP_S),
        ylim=(0, 1),
    )
    axes.legend(frameon=False, fontsize=8)
