"""``fedfleet replay``: a model file drives recordings in the agent's runtime: how good, how fast, where it fails."""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fedfleet.cli import replay_result as result
from fedfleet.cli.config import load
from fedfleet.cli.options import ConfigFile, ScenariosDir, pack_dir
from fedfleet.cli.progress import steps
from fedfleet.cli.replay_run import Model, Way, load_model, replay_drive
from fedfleet.fleet_server.files import write_file
from fedfleet.models import task as tasks
from fedfleet.models.task import Case, Drive, Index, Task
from fedfleet.protocol.errors import UsageError

__all__ = ["Replayed", "drives_of", "replay", "replay_all"]

MAX = "max"
_REPORT_S = 2.0
Drawer = Callable[..., Sequence[Path]]


def replay(  # noqa: PLR0913 - the options of the command
    *,
    model: Annotated[Path, typer.Option(help="Model file (ONNX).", show_default=False)],
    scenarios: ScenariosDir = None,
    task: Annotated[
        str | None, typer.Option(help="Learning task; without it the configured one.", show_default=False)
    ] = None,
    speed: Annotated[
        str,
        typer.Option(
            metavar="N|max", help="1 = real time, 10 = ten times faster, max = as fast as possible."
        ),
    ] = "1",
    drives: Annotated[
        str | None,
        typer.Option(
            metavar="REGION/DRIVE,…", help="Only these drives; without it all of them.", show_default=False
        ),
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the worst answers.")] = False,
    worst: Annotated[int, typer.Option(min=1, max=200, help="How many of them.")] = 12,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out/replay"),
    as_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures here.", show_default=False),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Replay recordings through a model in the agent's own runtime: errors by region, missed frames, latency."""
    settings = load(config)
    chosen = tasks.load(task or settings.task)
    way = Way(time.perf_counter, time.sleep, _speed(speed))
    draw = _drawer(chosen, out) if plot else None
    _check_file(as_json)
    loaded = load_model(model, chosen)
    folder = scenarios or settings.data.scenarios or pack_dir()
    index = chosen.index(folder)
    wanted = drives_of(index, drives, folder=folder)
    console = Console()
    _announce(console, wanted, way)
    done = replay_all(chosen, folder, wanted, model=loaded, way=way, worst=worst)
    if not done.total.frames:
        raise UsageError(_no_frames(chosen, folder, done.problems))
    _show(console, chosen, done)
    pictures = draw([case for _, case in done.worst], scenarios=folder, out=out) if draw else ()
    if pictures:
        console.print(f"{len(pictures)} pictures: {pictures[0]} …", highlight=False, soft_wrap=True)
    if as_json is not None:
        about = {"model": str(model), "model_sha256": loaded.sha256, "scenarios": str(folder), "speed": speed}
        _write(as_json, chosen, done, {**about, "pictures": [str(path) for path in pictures]})


@dataclass(frozen=True)
class Replayed:
    """Figures by region and of all together, the worst judged answers first, and what was left out, by reason."""

    regions: Mapping[str, result.Part]
    total: result.Part
    worst: Sequence[tuple[float, Case]]
    empty: Sequence[str]
    """Drives without a frame."""
    problems: Mapping[str, int]


def drives_of(index: Index, wanted: str | None, *, folder: Path) -> list[Drive]:
    """Return the named drives (``region/drive``, separated by commas), or all; UsageError for an unknown one."""
    known = {drive.key: drive for drive in index.drives}
    if wanted is None:
        return [known[key] for key in sorted(known)]
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        shown = sorted(known)
        some = ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
        raise UsageError(
            f"--drives: {folder} has no drive {', '.join(unknown or [repr(wanted)])}: it has {some}"
        )
    return [known[name] for name in sorted(set(names))]


def replay_all(
    task: Task, folder: Path, drives: Sequence[Drive], *, model: Model, way: Way, worst: int
) -> Replayed:
    """Replay drive after drive and sum up; progress goes to stderr."""
    regions: dict[str, list[result.Part]] = defaultdict(list)
    cases: list[tuple[float, Case]] = []
    empty = []
    problems: Counter[str] = Counter()
    told_s = -math.inf
    with steps("replay") as progress:
        for count, drive in enumerate(drives, start=1):
            driven = replay_drive(task, folder, drive, run=model.run, way=way)
            regions[drive.region].append(result.part_of(task, driven))
            cases = result.merged(task, [*cases, *result.worst_of(task, driven, most=worst)], most=worst)
            problems.update(driven.samples.problems)
            if not driven.frames:
                empty.append(drive.key)
            if count == len(drives) or way.clock() - told_s >= _REPORT_S:
                told_s = way.clock()
                progress(count, len(drives), f"drives, last {drive.key}")
    parts = {region: result.add_up(each) for region, each in sorted(regions.items())}
    return Replayed(parts, result.add_up(list(parts.values())), cases, empty, problems)


def _speed(text: str) -> float | None:
    if text == MAX:
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not (math.isfinite(speed) and speed > 0):
        raise UsageError(f"--speed {text}: expected a number above 0 (1 = real time) or {MAX}")
    return speed


def _drawer(task: Task, out: Path) -> Drawer:
    """Return the task's function that draws, before anything is replayed."""
    name = getattr(task, "plot", "")
    if not name:
        raise UsageError(f"--plot: task {task.name} draws nothing, it names no function in `plot`")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a folder, got a file")
    return tasks.resolve(name)


def _check_file(path: Path | None) -> None:
    """Make the file's folder; UsageError, before anything is replayed, when that cannot be."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"--json {path}: expected a file, got a folder")
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--json {path}: cannot make its folder: {error.strerror}") from error


def _announce(console: Console, drives: Sequence[Drive], way: Way) -> None:
    seconds = sum(drive.seconds for drive in drives)
    regions = len({drive.region for drive in drives})
    pace = (
        "as fast as possible"
        if way.speed is None
        else f"at speed {way.speed:g}: at most {seconds / way.speed:.0f} s"
    )
    text = f"{len(drives)} drives in {regions} regions, {seconds:.0f} s of recordings, {pace}"
    console.print(f"[bold]replay[/] {text}", highlight=False, soft_wrap=True)


def _show(console: Console, task: Task, done: Replayed) -> None:
    rows = dict(done.regions)
    if len(rows) > 1:
        rows["all"] = done.total
    for which in ("judged", "all"):
        console.print(result.score_table(task, rows, which))
    console.print(result.pace_table(task, rows))
    if done.total.unanswered:
        text = f"{done.total.unanswered} {tasks.noun(task)} are not in the errors: their frame was skipped for lateness"
        console.print(text, highlight=False, soft_wrap=True)
    if done.empty:
        some = ", ".join(done.empty[:5])
        console.print(f"{len(done.empty)} drives without a frame: {some}", highlight=False, soft_wrap=True)


def _no_frames(task: Task, folder: Path, problems: Mapping[str, int]) -> str:
    why = ", ".join(f"{count} × {reason}" for reason, count in sorted(problems.items()))
    left_out = f": {tasks.noun(task)} left out: {why}" if why else ""
    return f"{folder}: no frame to replay for task {task.name}{left_out}"


def _write(path: Path, task: Task, done: Replayed, about: Mapping[str, Any]) -> None:
    content = {
        "format": 1,
        "task": task.name,
        **about,
        "overall": result.as_json(task, done.total),
        "regions": {region: result.as_json(task, part) for region, part in done.regions.items()},
        "worst": [{"drive": case.drive, "sample": case.sample, "value": value} for value, case in done.worst],
        "drives_without_frames": list(done.empty),
        "problems": dict(sorted(done.problems.items())),
    }
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())
