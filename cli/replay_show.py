"""What a replay found, as one value, and what a person sees of it on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table

from fedfleet.cli import replay_result as result
from fedfleet.cli.replay_report import Findings
from fedfleet.cli.replay_run import Way
from fedfleet.cli.replay_slices import Gathered
from fedfleet.cli.terminal import Terminal
from fedfleet.models import task as tasks
from fedfleet.models.task import Case, Drive, Task

__all__ = ["Replayed", "announce", "no_frames", "show"]


@dataclass(frozen=True)
class Replayed:
    """Figures by region and of all together, the worst judged answers first, and what was left out, by reason."""

    regions: Mapping[str, result.Part]
    total: result.Part
    worst: Sequence[tuple[float, Case]]
    empty: Sequence[str]
    """Drives without a frame."""
    problems: Mapping[str, int]
    gathered: Gathered


def announce(console: Terminal, drives: Sequence[Drive], way: Way) -> None:
    """Say what is about to be replayed."""
    seconds = sum(drive.seconds for drive in drives)
    regions = len({drive.region for drive in drives})
    pace = (
        "as fast as possible"
        if way.speed is None
        else f"at speed {way.speed:g}: at most {seconds / way.speed:.0f} s"
    )
    text = f"{len(drives)} drives in {regions} regions, {seconds:.0f} s of recordings, {pace}"
    console.say(text, mark="replay")


def show(console: Terminal, task: Task, done: Replayed, found: Findings) -> None:
    """Print the tables."""
    rows = dict(done.regions)
    if len(rows) > 1:
        rows["all"] = done.total
    for which in ("judged", "all"):
        console.print(result.score_table(task, rows, which))
    console.print(_slice_table(task, found))
    console.print(result.pace_table(task, rows))
    if found.worst is not None:
        console.say(f"worst slice: {found.worst}")
    if done.total.unanswered:
        text = f"{done.total.unanswered} {tasks.noun(task)} are not in the errors: their frame was skipped for lateness"
        console.say(text)
    if done.empty:
        some = ", ".join(done.empty[:5])
        console.say(f"{len(done.empty)} drives without a frame: {some}")


def no_frames(task: Task, folder: Path, problems: Mapping[str, int]) -> str:
    """Say that there is nothing to replay, and why."""
    why = ", ".join(f"{count} × {reason}" for reason, count in sorted(problems.items()))
    left_out = f": {tasks.noun(task)} left out: {why}" if why else ""
    return f"{folder}: no frame to replay for task {task.name}{left_out}"


def _slice_table(task: Task, found: Findings) -> Table:
    """Return the table of slices: intervals and the baseline, or instead another model and whether it differs."""
    metric, against = task.metrics[0], bool(found.differences)
    title = f"{task.name}, {metric.name} of judged {tasks.noun(task)} by slice"
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("slice", no_wrap=True)
    heads = ["against", "difference", "p"] if against else ["95 % interval", "baseline"]
    for head in [tasks.noun(task), "drives", metric.name, *heads]:
        table.add_column(head, justify="right", no_wrap=True)
    if against:
        table.add_column("which is", no_wrap=True)
    for name, each in found.model.items():
        one, beside = each[0], found.trivial[name][0]
        cells = [f"{one.samples:,}", str(one.drives), _figure(one.value)]
        if not against:
            interval = "–" if one.low is None or one.high is None else f"{one.low:.3f} … {one.high:.3f}"
            cells += [interval, _figure(beside.value)]
        elif name in found.differences:
            other = found.differences[name]
            cells += [_figure(other.other), f"{other.difference:+.3f}", f"{other.p_corrected:.4f}"]
            cells.append("–" if other.verdict == "no-difference-shown" else other.verdict)
        table.add_row(name, *cells)
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
