"""What a replay found, as one value, and what a person sees of it on the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from fedfleet.cli import replay_result as result
from fedfleet.cli.replay_report import Findings, said
from fedfleet.cli.replay_run import Way
from fedfleet.cli.replay_slices import Gathered
from fedfleet.cli.terminal import Terminal
from fedfleet.cli.verdicts import gain_text, interval_text
from fedfleet.models import task as tasks
from fedfleet.models.bootstrap import Difference
from fedfleet.models.task import Case, Drive, Task

__all__ = ["Replayed", "announce", "no_frames", "nothing_judged", "show"]


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


def show(
    console: Terminal, task: Task, done: Replayed, found: Findings, *, names: tuple[str, str | None]
) -> None:
    """Print the tables, and what they mean; ``names`` are the files of the model and of another one, if any."""
    rows = dict(done.regions)
    if len(rows) > 1:
        rows["all"] = done.total
    for which in ("judged", "all"):
        console.print(result.score_table(task, rows, which))
    for table in _slice_tables(task, found, names):
        console.print(table)
    console.print(result.pace_table(task, rows))
    console.say_all(said(task, found, model=names[0], other=names[1]))
    if found.worst is not None:
        console.say(f"worst slice: {found.worst}")
    if done.total.unanswered:
        text = f"{done.total.unanswered} {tasks.noun(task)} are not in the errors: their frame was skipped for lateness"
        console.say(text)
    if done.problems:
        why = ", ".join(f"{count} × {reason}" for reason, count in sorted(done.problems.items()))
        console.say(f"{tasks.noun(task)} left out: {why}")
    if done.empty:
        some = ", ".join(done.empty[:5])
        console.say(f"{len(done.empty)} drives without a frame: {some}")


def no_frames(task: Task, folder: Path, problems: Mapping[str, int]) -> str:
    """Say that there is nothing to replay, and why."""
    why = ", ".join(f"{count} × {reason}" for reason, count in sorted(problems.items()))
    left_out = f": {tasks.noun(task)} left out: {why}" if why else ""
    return f"{folder}: no frame to replay for task {task.name}{left_out}"


def nothing_judged(task: Task, folder: Path, total: result.Part) -> str:
    """Say that no answer counts for the metrics, and how many there were."""
    noun = tasks.noun(task)
    late = f", {total.unanswered} were skipped for lateness" if total.unanswered else ""
    return (
        f"{folder}: none of {total.tracks('all')} answered {noun} is judged by task {task.name}, so there is no "
        f"result{late}"
    )


def _slice_tables(task: Task, found: Findings, names: tuple[str, str | None]) -> list[Table]:
    """Return the model beside the trivial answer, and another model beside the model."""
    metric, noun = task.metrics[0].name, tasks.noun(task)
    trivial = tasks.trivial(task)
    title = f"{task.name}, {metric} by slice: the model against {trivial}"
    tables = [_gain_table(task, found.beside_trivial, title=title, model="model", other="base-\nline")]
    if names[1] is not None and found.differences:
        title = (
            f"{task.name}, {metric} of {noun} by slice: {Path(names[1]).name} against {Path(names[0]).name}"
        )
        tables.append(_gain_table(task, found.differences, title=title, model="other", other="model"))
    return tables


def _gain_table(task: Task, found: Mapping[str, Difference], *, title: str, model: str, other: str) -> Table:
    """Return the table of slices: `model` beside `other`, the gain with its interval, and whether it is for sure."""
    table = Table(title=f"\n{title}", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("slice", no_wrap=True)
    heads = (tasks.noun(task), "drives", model, other, "gain (+ better)\nand 95 % interval")
    for head in heads:
        table.add_column(head, justify="right")
    table.add_column("for\nsure")
    for name, one in found.items():
        verdict = "–" if one.verdict == "no-difference-shown" else one.verdict
        cells = (f"{one.other:.3f}", f"{one.value:.3f}", f"{gain_text(one)} ({interval_text(one)})")
        style = "red" if verdict == "worse" else "green" if verdict == "better" else None
        table.add_row(name, f"{one.samples:,}", str(one.drives), *cells, verdict, style=style)
    return table
