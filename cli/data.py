"""The recordings of a configuration: how they are split, and their preparation as arrays for vehicles and server."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile

from fedfleet.cli.config import Settings
from fedfleet.cli.options import pack_dir
from fedfleet.cli.processes import run
from fedfleet.cli.progress import Report, steps
from fedfleet.cli.terminal import Terminal
from fedfleet.models import prepared, task_check
from fedfleet.models import task as tasks
from fedfleet.models.task import Drive, Samples
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.partition import Dealing, Partition, partition
from fedfleet.scenarios.partition_feed import starving, usable
from fedfleet.scenarios.partition_file import read_split

__all__ = [
    "Job",
    "calibration_dir",
    "calibration_job",
    "dealt",
    "held_out_jobs",
    "jobs_of",
    "prepare",
    "scenarios_dir",
    "split",
    "test_dir",
    "validation_dir",
    "vehicle_dir",
]

PREPARE_LIMIT_S = 1800.0
REFUSED_SHOWN = 5


@dataclass(frozen=True)
class Job:
    """A folder to prepare: these parts of these drives."""

    out: Path
    drives: Sequence[str]
    parts: Sequence[prepared.Part]


def scenarios_dir(settings: Settings, chosen: Path | None = None) -> Path:
    """Return the folder of recordings: the chosen one, the configured one, or the shipped pack."""
    return chosen or settings.data.scenarios or pack_dir()


def split(settings: Settings, folder: Path) -> Partition:
    """Share the drives of a folder out among vehicles, validation and test, the same for every command.

    A region that cannot feed the vehicles wanted there gets fewer, or is left out; that is told on stderr.
    """
    task = tasks.load(settings.task)
    index = task.index(folder)
    task_check.check_index(task, index)
    if index.account is not None and index.account.sentence:
        Terminal(stderr=True).say(index.account.sentence)
    drives, data = index.drives, settings.data
    if data.split_file is not None:
        return read_split(data.split_file, drives)
    dealing = Dealing(by=data.partition, regions=data.regions)
    parts = dealt(settings, drives, dealing, read=lambda drive: task.samples(folder, [drive]))
    for note in parts.notes:
        Terminal(stderr=True).say(f"note: {note}")
    return parts


def dealt(
    settings: Settings, drives: Sequence[Drive], dealing: Dealing, *, read: Callable[[str], Samples]
) -> Partition:
    """Deal drives out as the configuration says, but this way; ``read`` gives the samples of a drive.

    Where nobody chose a number of vehicles, a region with fewer training drives gets a vehicle for each of them, and
    one with too few for validation and test as well is left out. Where someone would have no usable sample, all drives
    of the region are read, and dealt by what is in them.
    """
    if "vehicles_per_region" not in settings.data.model_fields_set:
        dealing = replace(dealing, leave_out=True)
    parts = _dealt(settings, drives, dealing)
    hungry = starving(parts, read)
    if not hungry:
        return parts
    known = usable((drive.key for drive in drives if dealing.region(drive) in hungry), read)
    return _dealt(settings, drives, replace(dealing, usable=known))


def _dealt(settings: Settings, drives: Sequence[Drive], dealing: Dealing) -> Partition:
    data = settings.data
    regions = sorted({dealing.region(drive) for drive in drives})
    train = 1.0 - data.validation - data.test
    return partition(
        drives,
        vehicles=dict.fromkeys(regions, data.vehicles_per_region),
        seed=data.seed,
        fractions=(train, data.validation, data.test),
        fewer="vehicles_per_region" not in data.model_fields_set,
        dealing=dealing,
    )


def vehicle_dir(settings: Settings, vehicle: str) -> Path:
    """Return the folder of a vehicle's prepared data."""
    return settings.work_dir / "data" / "vehicles" / vehicle


def validation_dir(settings: Settings) -> Path:
    """Return the folder that holds one prepared validation folder for each region."""
    return settings.work_dir / "data" / "validation"


def calibration_dir(settings: Settings) -> Path:
    """Return the folder of the samples that set the ranges of the int8 variant."""
    return settings.server.int8.calibration_dir or settings.work_dir / "data" / "calibration"


def calibration_job(settings: Settings, parts: Partition) -> list[Job]:
    """Return what the int8 variant needs, where it is wanted and nobody chose a folder: a training drive per region."""
    int8 = settings.server.int8
    if not int8.enabled or int8.calibration_dir is not None:
        return []
    first = {region: drives[0] for _, (region, drives) in sorted(parts.vehicles.items(), reverse=True)}
    return [Job(calibration_dir(settings), sorted(first.values()), ("train",))]


def test_dir(settings: Settings) -> Path:
    """Return the folder that holds one prepared test folder for each region."""
    return settings.work_dir / "data" / "test"


def prepare(settings: Settings, folder: Path, jobs: Sequence[Job]) -> None:
    """Prepare what is not there yet, in one process that ends afterwards."""
    tasks.load(settings.task)
    missing = [job for job in jobs if not _is_prepared(job)]
    if not missing:
        return
    rows = [{"out": str(job.out), "drives": list(job.drives), "parts": list(job.parts)} for job in missing]
    (settings.work_dir / "data").mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", suffix=".json", dir=settings.work_dir / "data", encoding="utf-8") as listed:
        json.dump(rows, listed)  # a file of our own: another command may prepare other vehicles now
        listed.flush()
        arguments = ["--task", settings.task, "--scenarios", str(folder), "--jobs", listed.name, "--progress"]
        if settings.data.teacher is not None:
            limit = str(settings.data.teacher_limit)
            arguments += ["--teacher", str(settings.data.teacher), "--teacher-limit", limit]
        with steps("preparing recordings") as report:
            told = run(
                "fedfleet.scenarios.prepare",
                arguments,
                timeout_s=PREPARE_LIMIT_S,
                heard=lambda line: _pass_on(line, report),
            )
        refused = json.loads(told)["refused"]
        for line in refused[:REFUSED_SHOWN]:
            Terminal(stderr=True).say(f"not read: {line}")
        if len(refused) > REFUSED_SHOWN:
            Terminal(stderr=True).say(f"not read: {len(refused) - REFUSED_SHOWN} more recordings")


def _pass_on(line: str, report: Report) -> None:
    """Tell what the process told as `3/14 v04`; what is no progress is its error, which stays for the last line."""
    counted, _, name = line.partition(" ")
    done, slash, total = counted.partition("/")
    if slash and done.isdecimal() and total.isdecimal():
        report(int(done), int(total), name)


def _is_prepared(job: Job) -> bool:
    if not (job.out / "meta.json").is_file():
        return False
    meta = prepared.open_meta(job.out)
    if set(meta.drives) != set(job.drives):
        raise UsageError(f"{job.out} was prepared from other drives: remove it, or choose another work_dir")
    return set(job.parts) <= set(meta.parts)


def jobs_of(settings: Settings, parts: Partition, vehicles: Sequence[str]) -> list[Job]:
    """Return what these vehicles need: their training samples and the frames that they replay."""
    known: Mapping[str, tuple[str, tuple[str, ...]]] = parts.vehicles
    for vehicle in vehicles:
        if vehicle not in known:
            raise UsageError(
                f"no vehicle {vehicle!r} in this split: expected one of {', '.join(sorted(known))}"
            )
    return [
        Job(vehicle_dir(settings, vehicle), known[vehicle][1], ("train", "frames")) for vehicle in vehicles
    ]


def held_out_jobs(settings: Settings, parts: Partition, *, test: bool) -> list[Job]:
    """Return what the server needs: validation drives by region; with ``test`` also the test drives."""
    jobs = [
        Job(validation_dir(settings) / region, drives, ("validation",))
        for region, drives in parts.validation.items()
    ]
    jobs += calibration_job(settings, parts)
    if test:
        jobs += [Job(test_dir(settings) / region, drives, ("test",)) for region, drives in parts.test.items()]
    return jobs
