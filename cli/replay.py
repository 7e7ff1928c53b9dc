"""``fedfleet replay``: a model file drives recordings in the agent's runtime: how good, how fast, where it fails."""

import json
import math
import shlex
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from fedfleet.cli import replay_report as report
from fedfleet.cli import replay_result as result
from fedfleet.cli.config import load
from fedfleet.cli.evidence import estimates_json
from fedfleet.cli.options import ConfigFile, ScenariosDir, pack_dir
from fedfleet.cli.progress import steps
from fedfleet.cli.replay_frames import FramesFile
from fedfleet.cli.replay_run import Model, Way, load_model, replay_drives
from fedfleet.cli.replay_show import Replayed, announce, no_frames, nothing_judged, show
from fedfleet.cli.replay_slices import Gathered
from fedfleet.cli.terminal import Terminal
from fedfleet.cli.versions import versions
from fedfleet.fleet_server.files import write_file
from fedfleet.models import extras
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
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Another model file: compare both slice by slice, and say which differences are significant.",
            show_default=False,
        ),
    ] = None,
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
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Drives that are replayed at once.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws for intervals and differences.")] = 1,
    plot: Annotated[
        bool, typer.Option("--plot", help="Keep pictures of the worst answers as PNG files.")
    ] = False,
    worst: Annotated[
        int, typer.Option(min=1, max=200, help="How many of them, there and in the report.")
    ] = 12,
    out: Annotated[
        Path, typer.Option(help="Folder for frames.parquet, summary.json, report.html and pictures.")
    ] = Path("out/replay"),
    evidence: Annotated[
        bool, typer.Option("--report/--no-report", help="Write the first three of them.")
    ] = True,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write the figures here.", show_default=False),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Replay recordings through a model in the agent's own runtime: errors by region and slice, latency, a report."""
    settings = load(config)
    chosen = tasks.load(task or settings.task)
    way = Way(time.perf_counter, time.sleep, _speed(speed), jobs)
    draw = _drawer(chosen) if plot else None
    if plot or evidence:
        _check_folder(out)
    _check_file(as_json)
    models = [load_model(model, chosen)]
    if against is not None:
        models.append(load_model(against, chosen, option="--against"))
    folder = scenarios or settings.data.scenarios or pack_dir()
    index = chosen.index(folder)
    wanted = drives_of(index, drives, folder=folder)
    console = Terminal()
    announce(console, wanted, way)
    with ExitStack() as stack:
        has_parquet = extras.is_installed("pyarrow")
        kept = FramesFile(out / report.FRAMES, chosen) if evidence and has_parquet else None
        frames = stack.enter_context(kept) if kept else None
        done = replay_all(chosen, folder, wanted, models=models, way=way, worst=worst, frames=frames)
        if not done.total.frames:
            raise UsageError(no_frames(chosen, folder, done.problems))
        if not done.total.tracks("judged"):
            raise UsageError(nothing_judged(chosen, folder, done.total))
    found = report.find(chosen, done.gathered, seed=seed)
    if index.account is not None and index.account.sentence:  # complete once all was read
        console.say(index.account.sentence)
    show(console, chosen, done, found, names=(str(model), None if against is None else str(against)))
    about = report.About(
        command=shlex.join(["fedfleet", *sys.argv[1:]]),
        scenarios=str(folder),
        model=str(model),
        model_sha256=models[0].sha256,
        data_sha256=done.gathered.data_sha256,
        seed=seed,
        versions=versions(),
        against=None if against is None else str(against),
        against_sha256=None if against is None else models[1].sha256,
    )
    if evidence:
        _write_evidence(console, chosen, done, found, about=about, out=out)
    pictures = draw([case for _, case in done.worst], scenarios=folder, out=out) if draw else ()
    if pictures:
        console.say(f"{len(pictures)} pictures: {pictures[0]} …")
    if as_json is not None:
        told = {
            "model": str(model),
            "model_sha256": models[0].sha256,
            "scenarios": str(folder),
            "speed": speed,
            "slices": estimates_json(found.model),
            "worst_slice": found.worst,
            "against_baseline": report.baseline_json(chosen, found, model=str(model)),
        }
        if against is not None:
            told |= {"against": str(against), "differences": report.differences_json(found)}
        _write(as_json, chosen, done, {**told, "pictures": [str(path) for path in pictures]})


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


def replay_all(  # noqa: PLR0913 - what is replayed, through what, how, and what is kept of it
    task: Task,
    folder: Path,
    drives: Sequence[Drive],
    *,
    models: Sequence[Model],
    way: Way,
    worst: int,
    frames: FramesFile | None = None,
) -> Replayed:
    """Replay every drive and sum up, in their order however many are replayed at once; progress goes to stderr.

    Of two models the second is only compared with the first.
    """
    regions: dict[str, list[result.Part]] = defaultdict(list)
    cases: list[tuple[float, Case]] = []
    empty = []
    problems: Counter[str] = Counter()
    gathered = Gathered(task)
    told_s = -math.inf
    with steps("replay") as progress:
        for count, each in enumerate(replay_drives(task, folder, drives, models=models, way=way), start=1):
            driven = each[0]
            regions[driven.drive.region].append(result.part_of(task, driven))
            answers = gathered.add(driven, each[1] if len(each) > 1 else None)
            errors = answers.values[task.metrics[0].name]
            cases = result.merged(
                task, [*cases, *result.worst_of(task, driven, errors, most=worst)], most=worst
            )
            if frames is not None:
                frames.add(driven, answers.values, answers.labels)
            problems.update(driven.samples.problems)
            if not driven.frames:
                empty.append(driven.drive.key)
            if count == len(drives) or way.clock() - told_s >= _REPORT_S:
                told_s = way.clock()
                progress(count, len(drives), f"drives, last {driven.drive.key}")
    parts = {region: result.add_up(each) for region, each in sorted(regions.items())}
    return Replayed(parts, result.add_up(list(parts.values())), cases, empty, problems, gathered)


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


def _drawer(task: Task) -> Drawer:
    """Return the task's function that draws, before anything is replayed."""
    name = getattr(task, "plot", "")
    if not name:
        raise UsageError(f"--plot: task {task.name} draws nothing, it names no function in `plot`")
    return tasks.resolve(name)


def _check_folder(out: Path) -> None:
    """Make the folder, and remove an earlier run's files: they must not pass for those of one that fails."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a folder, got a file")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot make this folder: {error.strerror}") from error
    for name in (report.FRAMES, report.SUMMARY, report.PAGE):
        (out / name).unlink(missing_ok=True)


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


def _write_evidence(
    console: Terminal, task: Task, done: Replayed, found: report.Findings, *, about: report.About, out: Path
) -> None:
    total = done.total
    figures = {
        "drives": total.drives,
        "frames": total.frames,
        "predictions": total.predictions,
        "unanswered": total.unanswered,
        "regions": {region: part.tracks("judged") for region, part in done.regions.items()},
        "worst": [{"drive": case.drive, "sample": case.sample, "value": value} for value, case in done.worst],
        "drives_without_frames": list(done.empty),
        "problems": dict(sorted(done.problems.items())),
    }
    report.write_summary(out / report.SUMMARY, task, found, about, figures=figures)
    is_written = report.write_page(
        out / report.PAGE, task, done.gathered, found=found, about=about, worst=done.worst
    )
    files = [name for name in (report.FRAMES, report.SUMMARY, report.PAGE) if (out / name).exists()]
    text = f"results: {', '.join(str(out / name) for name in files)}"
    if report.FRAMES not in files:
        text += f"; no {report.FRAMES}: it needs `pip install 'fedfleet[scenarios]'`"
    if not is_written:
        text += f"; no {report.PAGE}: it needs `pip install 'fedfleet[viz]'`"
    console.say(text)


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
