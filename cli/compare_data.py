"""The data of a comparison: split by whole drives, prepared as arrays, checked so that no arm starts on a half set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from fedfleet.cli import data as shared
from fedfleet.cli.config import Settings
from fedfleet.models import prepared
from fedfleet.models import task as tasks
from fedfleet.models.task import Index, Samples, Task
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import is_id
from fedfleet.scenarios import prepare as preparation
from fedfleet.scenarios.labels import WRONG_RATE
from fedfleet.scenarios.labels_teacher import DISAGREES, Teacher
from fedfleet.scenarios.partition import Partition

__all__ = ["Data", "load"]


@dataclass(frozen=True, eq=False)
class Data:
    """What the arms train and are judged on; ``sha256`` is of all arrays, ``notes`` what a reader should know."""

    task: Task
    parts: Partition
    vehicles: Mapping[str, tuple[str, Samples]]
    validation: Mapping[str, Samples]
    test: Mapping[str, Samples]
    problems: Mapping[str, int]
    sha256: str
    notes: tuple[str, ...]

    @property
    def regions(self) -> list[str]:
        """The regions that have vehicles, by name."""
        return sorted(self.validation)

    @property
    def sizes(self) -> list[int]:
        """How many training samples each vehicle has."""
        return [len(samples) for _, samples in self.vehicles.values()]


def load(settings: Settings, folder: Path, test_folder: Path | None) -> Data:
    """Split and prepare everything under ``settings.work_dir``; with a test folder, its drives are the test.

    Raises UsageError, one line, for data on which an arm could not be trained or judged.
    """
    task = tasks.load(settings.task)
    if test_folder is not None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"test": 0.0})})
    index = task.index(folder)
    parts = shared.split(settings, folder)
    jobs = [*shared.held_out_jobs(settings, parts, test=True)]
    jobs += [
        shared.Job(shared.vehicle_dir(settings, vehicle), drives, ("train",))
        for vehicle, (_, drives) in parts.vehicles.items()
    ]
    tests, notes = [region for region, drives in parts.test.items() if drives], list[str]()
    if test_folder is not None:
        tests, notes = _prepare_test(settings, task, test_folder, index)
    teacher = preparation.open_teacher(settings.data.teacher, settings.data.teacher_limit)
    problems = _prepare(task, folder, [job for job in jobs if job.drives], index, teacher)
    if index.account is not None and index.account.sentence:
        notes.append(index.account.sentence)
    vehicles = {
        vehicle: (region, prepared.open(shared.vehicle_dir(settings, vehicle), "train"))
        for vehicle, (region, _) in parts.vehicles.items()
    }
    validation = {
        region: prepared.open(shared.validation_dir(settings) / region, "validation")
        for region in sorted(parts.validation)
    }
    test = {region: prepared.open(shared.test_dir(settings) / region, "test") for region in sorted(tests)}
    _check(vehicles, validation, test)
    digest = _digest([*(one for _, one in vehicles.values()), *validation.values(), *test.values()])
    return Data(task, parts, vehicles, validation, test, problems, digest, (*parts.notes, *notes))


def _prepare(
    task: Task, folder: Path, jobs: Sequence[shared.Job], index: Index, teacher: Teacher | None = None
) -> dict[str, int]:
    """Prepare in this process, which has read the recordings for the index; return what was left out, by reason."""
    made = [preparation.Job(out=job.out, drives=tuple(job.drives), parts=tuple(job.parts)) for job in jobs]
    metas = preparation.prepare(task, folder, made, teacher=teacher, index=index)
    problems = Counter(index.problems)
    for meta in metas:
        problems.update(
            {
                reason: count
                for reason, count in meta.problems.items()
                if not index.is_counted or reason == DISAGREES
            }
        )
    if wrong := problems[WRONG_RATE]:
        raise UsageError(f"{folder}: {wrong} tracks are at another sampling rate than {task.name} needs")
    return dict(sorted(problems.items()))


def _prepare_test(
    settings: Settings, task: Task, folder: Path, trained: Index
) -> tuple[list[str], list[str]]:
    """Prepare all drives of the test folder; return its regions, and what is remarkable about them."""
    index = task.index(folder)
    regions: dict[str, tuple[str, ...]] = {}
    for drive in index.drives:
        if not is_id(drive.region):
            raise UsageError(f"--test {folder}: region {drive.region!r} is not a name of a-z, 0-9 and '-'")
        regions[drive.region] = (*regions.get(drive.region, ()), drive.key)
    place = shared.test_dir(settings)
    jobs = [shared.Job(place / name, drives, ("test",)) for name, drives in regions.items()]
    _prepare(task, folder, jobs, index)
    notes = []
    if unknown := sorted(set(regions) - {drive.region for drive in trained.drives}):
        names = ", ".join(unknown)
        notes.append(f"no vehicle trained in {names}: on-site there is the mean over all vehicles")
    if same := sorted({drive.key for drive in trained.drives} & {drive.key for drive in index.drives}):
        notes.append(f"{len(same)} drives of --test have names of drives in training, such as {same[0]}")
    return sorted(regions), notes


def _check(
    vehicles: Mapping[str, tuple[str, Samples]],
    validation: Mapping[str, Samples],
    test: Mapping[str, Samples],
) -> None:
    """Raise UsageError when someone has nothing to train or to be judged on."""
    for vehicle, (region, samples) in vehicles.items():
        if not len(samples):
            text = (
                "no usable sample in its training drives: choose fewer vehicles per region, or other drives"
            )
            raise UsageError(f"vehicle {vehicle} of region {region}: {text} in the split file")
    for part, regions in (("validation", validation), ("test", test)):
        for region, samples in regions.items():
            if not len(samples):
                raise UsageError(f"region {region}: no usable sample in its {part} drives")
    for region, samples in validation.items():
        if not samples.judged.any():
            text = f"none of {len(samples)} samples in its validation drives counts for the metrics"
            raise UsageError(f"region {region}: {text}, so no version could be accepted")
    if not any(samples.judged.any() for samples in test.values()):
        raise UsageError("no test drive has a sample that counts for the metrics")


def _digest(parts: Sequence[Samples]) -> str:
    digest = sha256()
    for part in parts:
        for array in (part.inputs, part.targets, part.judged):
            digest.update(f"{array.dtype.str}{list(array.shape)}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
