"""``fedfleet closed-loop``: SUMO vehicles driven with a model's forecasts, against the same policy with others."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from fedfleet.cli import closed_loop_report as report
from fedfleet.cli.config import Settings, load
from fedfleet.cli.launch import server_dir
from fedfleet.cli.options import ConfigFile, Json, unused
from fedfleet.cli.progress import steps
from fedfleet.cli.replay_run import Model, load_model
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server import views
from fedfleet.fleet_server.files import write_file
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import closed_loop_forecast as forecasts
from fedfleet.scenarios.closed_loop import drive
from fedfleet.scenarios.closed_loop_measure import Outcome
from fedfleet.scenarios.closed_loop_plan import SITUATIONS, Plan, plan
from fedfleet.scenarios.closed_loop_world import SumoWorld, require_sumo
from fedfleet.scenarios.records import ScenarioError

__all__ = ["MODEL", "Run", "closed_loop", "drive_all", "drive_one", "released"]

TASK = "motion_forecast"
MODEL = "model"
NEWEST = "newest"
_KNOWN = {"constant-velocity": forecasts.constant_velocity, "road-velocity": forecasts.road_velocity}


@dataclass(frozen=True)
class Run:
    """One episode and what came of it with each predictor; no outcome where the ego never came onto the road."""

    plan: Plan
    outcomes: Mapping[str, Outcome]


def closed_loop(  # noqa: PLR0913 - the options of the command
    *,
    model: Annotated[
        Path | None, typer.Option(help="Model file (ONNX) of motion_forecast.", show_default=False)
    ] = None,
    release: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION|newest",
            help="Instead: a version that the configured server has released.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="constant-velocity|road-velocity|FILE",
            help="What the same policy is compared with; may be given again. Without it: constant-velocity.",
            show_default=False,
        ),
    ] = None,
    situation: Annotated[
        list[str] | None,
        typer.Option(
            metavar="gap|merge", help="Only this situation; may be given again.", show_default=False
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, max=10_000, help="Episodes of each situation.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="Seed of traffic, disturbances, noise and intervals.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for result.json and the pictures.")] = Path(
        "out/closed-loop"
    ),
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Drive SUMO vehicles with a model's forecasts in the loop: collisions, time to collision, harsh braking."""
    situations = _situations(situation)
    if (model is None) == (release is None):
        raise UsageError("expected one of --model FILE and --release VERSION")
    if model is not None:
        unused(config, "closed-loop --model")
    chosen = tasks.load(TASK)
    file = model if model is not None else released(load(config), str(release))
    loaded = load_model(file, chosen)
    arms, others = {MODEL: forecasts.by_model(loaded.run)}, []
    for name in against or ["constant-velocity"]:
        label, forecast, about = _other(name, taken=arms)
        arms[label] = forecast
        others.append(about)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: expected a folder, got a file")
    require_sumo()
    plans = [plan(each, number, seed=seed) for each in situations for number in range(episodes)]
    runs = drive_all(plans, arms)
    result = report.result(runs, arms=list(arms), seed=seed, about=_about(file, loaded, others))
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    write_file(out / "result.json", text.encode())
    pictures = report.draw(out, runs, list(arms))
    if as_json:
        typer.echo(text, nl=False)
        return
    console = Terminal()
    report.show(console, result)
    for path in (out / "result.json", *pictures):
        console.say(str(path))


def drive_all(plans: Sequence[Plan], arms: Mapping[str, forecasts.Forecast]) -> list[Run]:
    """Drive every episode with every predictor, one after the other; progress goes to stderr."""
    runs = []
    with steps("closed loop") as progress:
        for count, each in enumerate(plans, start=1):
            runs.append(drive_one(each, arms))
            progress(count, len(plans), f"{each.situation} {each.number}")
    return runs


def drive_one(each: Plan, arms: Mapping[str, forecasts.Forecast]) -> Run:
    """Drive one episode with every predictor. Raises UsageError when SUMO fails, or the ego leaves the road."""
    try:
        with SumoWorld(each, times=len(arms)) as world:
            before = bool(world.before)
            return Run(each, {name: drive(world, each, arms[name]) for name in arms if before})
    except ScenarioError as error:
        raise UsageError(str(error)) from error


def _situations(wanted: Sequence[str] | None) -> list[str]:
    for name in wanted or ():
        if name not in SITUATIONS:
            raise UsageError(f"--situation {name}: expected one of {', '.join(SITUATIONS)}")
    return [name for name in SITUATIONS if not wanted or name in wanted]


def _other(name: str, *, taken: Mapping[str, object]) -> tuple[str, forecasts.Forecast, dict[str, str]]:
    """Return label, predictor and what the result says of it."""
    if name in taken:
        raise UsageError(f"--against {name}: given twice")
    if name in _KNOWN:
        return name, _KNOWN[name], {"name": name}
    path = Path(name)
    if not path.is_file():
        raise UsageError(f"--against {name}: expected {', '.join(_KNOWN)} or a model file")
    try:
        loaded = load_model(path, tasks.load(TASK))
    except UsageError as error:
        raise UsageError(str(error).replace("--model", "--against", 1)) from error
    label = path.name if path.name not in taken else f"{path.name} ({loaded.sha256[:8]})"
    if label in taken:
        raise UsageError(f"--against {name}: given twice")
    return label, forecasts.by_model(loaded.run), {"name": label, "sha256": loaded.sha256}


def released(settings: Settings, wanted: str) -> Path:
    """Return the file of a released version; UsageError when there is none, or it is not kept."""
    folder = server_dir(settings)
    with views.begun(folder) as (connection, _):
        versions = [one["version"] for one in views.models(connection) if one["released"]]
    if not versions:
        raise UsageError(f"--release {wanted}: {folder} has released no version yet")
    if wanted != NEWEST and wanted not in map(str, versions):
        some = ", ".join(map(str, versions[-5:]))
        raise UsageError(f"--release {wanted}: expected {NEWEST} or a released version ({some})")
    file = folder / "models" / f"{max(versions) if wanted == NEWEST else wanted}.onnx"
    if not file.is_file():
        raise UsageError(f"--release {wanted}: {file} is not kept any more; name a file with --model")
    return file


def _about(file: Path, loaded: Model, others: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    return {
        "task": TASK,
        "model": {"name": file.name, "sha256": loaded.sha256},
        "against": list(others),
        "road_sha256": sha256(report.NET.read_bytes()).hexdigest(),
    }
