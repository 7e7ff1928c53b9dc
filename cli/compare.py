"""``fedfleet compare``: what federation gives on these recordings, against three other ways, on equal budget."""

import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import structlog
import typer

from fedfleet.cli import (
    compare_federation,
    compare_models,
    compare_processes,
    compare_report,
    compare_result,
    preflight,
    suits,
)
from fedfleet.cli.compare_arms import Point, baseline, centralised, check_training, judge, on_site
from fedfleet.cli.compare_asked import check_asked, unheeded
from fedfleet.cli.compare_choice import last_refusal
from fedfleet.cli.compare_data import Data, load
from fedfleet.cli.compare_federation import Federated
from fedfleet.cli.compare_models import FEDERATED, ON_SITE
from fedfleet.cli.compare_remarks import check_published, remarks
from fedfleet.cli.compare_result import Result
from fedfleet.cli.compare_settings import ArmSettings, Rounds
from fedfleet.cli.compare_slices import answered, slice_up
from fedfleet.cli.config import Settings
from fedfleet.cli.config import load as load_settings
from fedfleet.cli.data import scenarios_dir
from fedfleet.cli.launch import server_dir
from fedfleet.cli.options import ConfigFile, ScenariosDir
from fedfleet.cli.progress import steps
from fedfleet.cli.terminal import Terminal
from fedfleet.cli.versions import versions
from fedfleet.fleet_server import initial
from fedfleet.fleet_server.initial import Export
from fedfleet.models import task as tasks
from fedfleet.protocol.errors import UsageError

__all__ = ["chosen", "compare", "measure"]

MARK: Final = "compare.mark"
"""A file that says that a work folder is ours to remove."""


def compare(  # noqa: PLR0913 - the options of the command
    *,
    scenarios: ScenariosDir = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Judge on all drives of this folder; without it on drives kept from --scenarios.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(help="File for the figures. Without it: compare.json in --out.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report, pictures and work.")] = Path("out/compare"),
    rounds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help="Rounds of the federated arm, as many at most as --epochs allow.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="Passes of every arm over the training data.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the split and of the first model.", show_default=False)
    ] = None,
    vehicles_per_region: Annotated[
        int | None,
        typer.Option(min=1, max=10_000, help="Simulated vehicles in each region.", show_default=False),
    ] = None,
    participation: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the vehicles that a round asks, drawn anew each time, at least one of each region. "
            "Without it as configured, else all.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Learning task; without it the configured one.", show_default=False)
    ] = None,
    broker: Annotated[
        bool, typer.Option("--broker", help="Federate over a real broker, with processes.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Train centralised, on-site only and federated on the same recordings and budget, and judge all on test drives."""
    begun = time.monotonic()
    settings = load_settings(config)
    changed = {"seed": seed, "vehicles_per_region": vehicles_per_region}
    data = settings.data.model_copy(update={name: v for name, v in changed.items() if v is not None})
    console = Terminal()
    settings = settings.model_copy(update={"data": data, "task": task or settings.task})
    check_asked(settings)
    notes = unheeded(settings, broker=broker, test_folder=test is not None)
    settings = settings.model_copy(update={"work_dir": out / "work"})
    folder, target = scenarios_dir(settings, scenarios), json or out / "compare.json"
    target.unlink(missing_ok=True)  # an old result must not pass for the one of a run that fails
    compare_models.remove(out)
    arms = chosen(settings, rounds=rounds, epochs=epochs, participation=participation)
    _preflight(settings, broker=broker)
    _clean(settings.work_dir)
    for note in notes:
        Terminal(stderr=True).say(f"note: {note}")
    result = measure(settings, arms, folder, test, broker=broker)
    files = compare_models.Models(settings.work_dir / "models").place(out)
    told = {**result.told, "models": dict(files), "notes": [*notes, *result.told["notes"]]}
    result = replace(result, seconds=time.monotonic() - begun, told=told)
    _show(console, result, out, target, (folder, test))


def _show(
    console: Terminal, result: Result, out: Path, target: Path, scenarios: tuple[Path, Path | None]
) -> None:
    """Write report and figures, and print what a person wants to know."""
    command = shlex.join(["fedfleet", *sys.argv[1:]])
    files = compare_report.write(out, result, command=command, scenarios=scenarios)
    compare_result.write_json(target, result)
    console.print(compare_result.table(result))
    console.say_all(compare_result.verdicts(result))
    if result.sliced is not None and result.sliced.worst is not None:
        console.say(f"worst slice of federated: {result.sliced.worst}")
    for note in result.told["notes"]:
        console.say(f"note: {note}")
    sent = f"{result.bytes_up / 1e6:.2f} MB up, {result.bytes_down / 1e6:.2f} MB down"
    console.say(f"{result.rounds} rounds, {sent}, {result.seconds:.0f} s")
    models = f"{out / 'federated.onnx'}, centralised.onnx, {ON_SITE}/"
    console.say(f"results: {', '.join(map(str, (*files, target)))}; models: {models}")


def _preflight(settings: Settings, *, broker: bool) -> None:
    """Raise UsageError for what would end the comparison only after minutes."""
    preflight.task_is_usable(settings)
    preflight.can_export(settings)
    preflight.can_draw("the comparison's report")
    preflight.has_space(settings.work_dir)
    if broker:
        preflight.has_broker(settings, "compare --broker")


def chosen(
    settings: Settings, *, rounds: int | None, epochs: int | None, participation: float | None = None
) -> ArmSettings:
    """Return the arms as they are asked for: what the configuration says of the server, then the command line.

    Raises UsageError when the rounds do not fit into the budget.
    """
    arms = suits.arms(tasks.load(settings.task))
    told = settings.server.model_fields_set - {"rounds", "enrolment"}
    federated = arms.federated.model_copy(update={name: getattr(settings.server, name) for name in told})
    if participation is not None and participation <= 0:
        raise UsageError(f"--participation {participation:g}: expected a share above 0 and up to 1")
    shared = {"participation": participation, "share_wanted": settings.server.rounds.share_wanted}
    arms = arms.model_copy(update={"federated": federated, **shared})
    if arms.local_steps:
        told_steps = federated.training.get("max_steps") or arms.local_steps
        short = {"epochs": epochs or arms.epochs, "local_steps": told_steps, "most_rounds": rounds}
        return arms.model_copy(update=short)
    if participation is not None or arms.share_wanted is not None:
        budget = epochs or arms.epochs
        fewer = {"local_epochs": min(arms.local_epochs, budget), "most_rounds": rounds}
        return arms.model_copy(update={"epochs": budget, **fewer})
    budget = epochs or (max(rounds, arms.epochs) if rounds else arms.epochs)
    if rounds is not None and rounds > budget:
        raise UsageError(
            f"--rounds {rounds}: expected at most --epochs {budget}: a round takes one pass or more"
        )
    local = budget // rounds if rounds else min(arms.local_epochs, budget)
    return arms.model_copy(update={"epochs": budget, "local_epochs": local})


def measure(
    settings: Settings, arms: ArmSettings, folder: Path, test: Path | None, *, broker: bool
) -> Result:
    """Run all arms on the recordings of ``folder``; everything is kept under ``settings.work_dir``."""
    seed = settings.data.seed
    with steps("prepare") as tell:
        tell(0, 2, f"reading {folder}")
        data = load(settings, folder, test)
        asked = _asked(data, arms)
        taken = arms.rounds(data.sizes, asked=asked)
        tell(1, 2, "exporting the first model")
        first = _first(settings)
        check_training(data, first, arms, seed=seed)
        keep = compare_models.Models(settings.work_dir / "models").keep
        tell(2, 2, f"{len(data.vehicles)} vehicles in {len(data.regions)} regions")
    with steps("centralised") as tell:
        central = centralised(data, first, arms, seed=seed, tell=tell, keep=keep)
    with steps("on-site only") as tell:
        alone = on_site(data, first, arms, seed=seed, tell=tell, keep=keep)
    with steps("federated") as tell, _logged(settings.work_dir / "logs" / "compare.log"):
        way = compare_processes if broker else compare_federation
        together = way.run(settings, data.parts, arms, taken, tell=tell)
    check_published(together.end, why=last_refusal(server_dir(settings)))
    keep(FEDERATED, together.model)
    tests = {
        "constant_velocity": baseline(data),
        "centralised": central.test,
        "on_site": alone.test,
        "federated": judge(together.model, data.task, data.test, sliced=True),
    }
    return Result(
        task=data.task.name,
        metrics=data.task.metrics,
        tests=tests,
        curves={
            "centralised": central.curve,
            "on_site": alone.curve,
            "federated": _curve(together, data, taken),
        },
        chosen={
            "centralised": central.chosen_epoch,
            "on_site": alone.chosen_epoch,
            "federated": _epoch(together, taken),
        },
        arms=arms,
        rounds=together.end["rounds_run"],
        bytes_up=together.bytes_up,
        bytes_down=together.bytes_down,
        seconds=0.0,
        told=_told(settings, data, together, broker=broker)
        | {"notes": [*data.notes, *remarks(data, first, together, asked=asked)]},
        noun=tasks.noun(data.task),
        trivial=tasks.trivial(data.task),
        sliced=slice_up(data.task, tests, seed=seed),
        plot=getattr(data.task, "plot", ""),
        answered=answered(together.model, data.task, data.test, most=compare_report.CASES),
    )


def _asked(data: Data, arms: ArmSettings) -> int:
    """Return how many vehicles take part in a round."""
    sizes = Counter(region for region, _ in data.vehicles.values()).values()
    wanted = arms.wanted(sizes)
    return sum(min(size, wanted or size) for size in sizes)


def _first(settings: Settings) -> Export:
    """Export the first model where the server will look for it, so that all arms start from the same."""
    folder = server_dir(settings)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / ".export.new"
    command = initial.export_command(settings.task, seed=settings.data.seed, out=fresh)
    return initial.prepare_export(folder / "export", command, out=fresh)


def _curve(together: Federated, data: Data, taken: Rounds) -> tuple[Point, ...]:
    """What the server wrote down when it judged each version on the validation drives."""
    counts = {region: int(samples.judged.sum()) for region, samples in data.validation.items()}
    return tuple(
        Point(
            (entry["round"] or 0) * taken.passes,
            {
                region: {
                    name: ((value or 0.0) * counts[region], counts[region]) for name, value in means.items()
                }
                for region, means in entry["metrics"].items()
            },
        )
        for entry in together.end["history"]
    )


def _epoch(together: Federated, taken: Rounds) -> float:
    """The passes after which the chosen version was published."""
    rounds = {entry["version"]: entry["round"] or 0 for entry in together.end["history"]}
    return float(rounds[together.version] * taken.passes)


def _told(settings: Settings, data: Data, together: Federated, *, broker: bool) -> dict[str, Any]:
    parts = data.parts
    return {
        "link": "broker" if broker else "memory",
        "model_sha256": sha256(together.model).hexdigest(),
        "final_model_sha256": sha256(together.final).hexdigest(),
        "rounds_published": together.end["rounds_published"],
        "seed": settings.data.seed,
        "data": {
            "sha256": data.sha256,
            "vehicles": {vehicle: region for vehicle, (region, _) in sorted(parts.vehicles.items())},
            "training_samples": {
                vehicle: len(samples) for vehicle, (_, samples) in sorted(data.vehicles.items())
            },
            "validation_samples": {region: len(samples) for region, samples in data.validation.items()},
            "test_samples": {region: len(samples) for region, samples in data.test.items()},
            "left_out": dict(data.problems),
        },
        "versions": versions(),
    }


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Let the server in this process write its log to a file while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        structlog.configure(logger_factory=structlog.WriteLoggerFactory(stream))
        try:
            yield
        finally:
            structlog.reset_defaults()


def _clean(work_dir: Path) -> None:
    """Remove an earlier comparison's work, so that this one starts from nothing."""
    if work_dir.exists() and any(work_dir.iterdir()) and not (work_dir / MARK).exists():
        raise UsageError(f"{work_dir}: not a folder of an earlier comparison, so it is not removed")
    shutil.rmtree(work_dir, ignore_errors=True)
    work_dir.mkdir(parents=True)
    (work_dir / MARK).touch()
