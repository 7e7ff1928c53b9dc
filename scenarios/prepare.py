"""Prepares recordings as arrays: `python -P -m fedfleet.scenarios.prepare`, a process that ends when they are written.

So the agent and the server need neither pyarrow nor the recordings. One call can prepare many folders (`--jobs`): the
recordings are then found once, and each is read when its job comes, so that memory holds one job at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedfleet.models import prepared, task_check
from fedfleet.models.onnx_file import read_model
from fedfleet.models.prepared import PARTS, Meta, Part
from fedfleet.models.task import Frames, Index, Samples, Task, load
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.printable import printable
from fedfleet.scenarios.labels_teacher import DISAGREES, Teacher, believed, kept

__all__ = ["Job", "main", "open_teacher", "prepare", "read_jobs"]


Report = Callable[[int, int, str], None]


class Job(BaseModel):
    """A folder to write: these parts of these drives (`region/drive`); None means all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path
    drives: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]


def prepare(
    task: Task,
    scenarios: Path,
    jobs: Sequence[Job],
    *,
    report: Report | None = None,
    teacher: Teacher | None = None,
    index: Index | None = None,
) -> list[Meta]:
    """Write every job's folder, each whole or not at all; folders written before a failure stay.

    `report` is called with (done, total, name of the folder) before each job. With a `teacher`, training samples that
    it is far from are left out and counted. `index` is that of the folder, if it is known. Raises UsageError for a
    folder in which nothing can be read, an unknown drive, and a teacher that is no model of the task.
    """
    index = index or task.index(scenarios)
    everything = tuple(drive.key for drive in index.drives)
    metas: list[Meta] = []
    for job in jobs:
        if report is not None:
            report(len(metas), len(jobs), job.out.name)
        read = _read(task, scenarios, job, job.drives or everything, teacher)
        metas.append(_write(task, job, job.drives or everything, read, index))
    return metas


def read_jobs(path: Path) -> list[Job]:
    """The jobs in a JSON file, a list of {"out", "drives", "parts"}; UsageError naming job and key otherwise."""
    try:
        return TypeAdapter(list[Job]).validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"{path}: job {where}: {first['msg']}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, tell one line of JSON; 2 and one line on stderr when the user erred."""
    given = _parser().parse_args(arguments)
    try:
        jobs = _jobs(given.out, given.drives, given.parts, given.jobs)
        tell, teach = _tell if given.progress else None, open_teacher(given.teacher, given.teacher_limit)
        task = load(given.task)
        index = task.index(given.scenarios)
        known = len(index.account.rows) if index.account is not None else 0
        metas = prepare(task, given.scenarios, jobs, report=tell, teacher=teach, index=index)
    except (UsageError, OSError) as error:
        sys.stderr.write(f"prepare: {printable(str(error))}\n")
        return 2
    folders = {str(job.out): dict(meta.counts) for job, meta in zip(jobs, metas, strict=True)}
    problems = {name: dict(meta.problems) for name, meta in zip(folders, metas, strict=True)}
    refused = [row.text for row in index.account.rows[known:]] if index.account is not None else []
    sys.stdout.write(json.dumps({"folders": folders, "problems": problems, "refused": refused}) + "\n")
    return 0


def _read(
    task: Task, scenarios: Path, job: Job, drives: tuple[str, ...], teacher: Teacher | None
) -> tuple[Samples | None, Frames | None]:
    """Read the samples and the frames that a job asks for."""
    samples = task.samples(scenarios, drives) if set(job.parts) - {"frames"} else None
    frames = task.frames(scenarios, drives) if "frames" in job.parts else None
    if samples is not None:
        task_check.check_samples(task, samples)
    if frames is not None:
        task_check.check_frames(task, frames)
    if teacher is None or samples is None or "train" not in job.parts:
        return samples, frames
    if set(job.parts) & {"validation", "test"}:
        raise UsageError(f"{job.out}: a teacher chooses what to train on, never what to be judged on")
    return kept(samples, frames, believed(teacher, task, samples))


def _write(
    task: Task,
    job: Job,
    drives: tuple[str, ...],
    read: tuple[Samples | None, Frames | None],
    index: Index,
) -> Meta:
    samples, frames = read
    parts = tuple(part for part in PARTS if part in job.parts)
    counts: dict[str, int] = {}
    problems = dict(index.problems)
    named: dict[Part, Samples] = {}
    if samples is not None:
        held_back = {name: count for name, count in samples.problems.items() if name == DISAGREES}
        problems = {**problems, **held_back} if index.is_counted else dict(samples.problems)
        for part in parts:
            if part != "frames":
                named[part] = samples
                counts[f"{part}_samples"], counts[f"{part}_judged"] = len(samples), int(samples.judged.sum())
    if frames is not None:
        counts["frames"], counts["frames_inputs"] = len(frames), len(frames.inputs)
    meta = Meta(
        task=task.name,
        task_version=task.version,
        drives=drives,
        parts=parts,
        counts=counts,
        problems=problems,
        rate_hz=None if frames is None else frames.rate_hz,
    )
    prepared.write(job.out, meta, samples=named, frames=frames)
    return meta


def open_teacher(model: Path | None, limit: float | None) -> Teacher | None:
    """The teacher of a model file, where one is given; UsageError for an unreadable file, or one without the other."""
    if (model is None) != (limit is None):
        raise UsageError("expected --teacher and --teacher-limit together")
    return None if model is None or limit is None else Teacher(read_model(model, option="teacher"), limit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedfleet.scenarios.prepare", description="Prepare recordings as arrays."
    )
    parser.add_argument("--task", required=True, help="name of an installed task, or module:ATTRIBUTE")
    parser.add_argument("--scenarios", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--out", type=Path, help="folder to write")
    parser.add_argument("--drives", default="", help="region/drive,… (default: all)")
    parser.add_argument("--parts", default="", help=f"of {','.join(PARTS)}, separated by commas")
    parser.add_argument("--jobs", type=Path, help='instead: JSON list of {"out", "drives", "parts"}')
    parser.add_argument("--teacher", type=Path, help="model file whose answers training labels must be near")
    parser.add_argument("--teacher-limit", type=float, help="primary metric beyond which they are not")
    parser.add_argument("--progress", action="store_true", help="tell on stderr which folder comes next")
    return parser


def _tell(done: int, total: int, text: str) -> None:
    sys.stderr.write(f"{done}/{total} {printable(text)}\n")
    sys.stderr.flush()


def _jobs(out: Path | None, drives: str, parts: str, listed: Path | None) -> list[Job]:
    if listed is not None:
        if out is not None or drives or parts:
            raise UsageError("--jobs stands alone: expected no --out, --drives or --parts beside it")
        return read_jobs(listed)
    if out is None or not parts:
        raise UsageError("expected --out and --parts, or --jobs")
    unknown = [part for part in parts.split(",") if part not in PARTS]
    if unknown:
        raise UsageError(f"--parts {parts}: no part {unknown[0]!r}, expected of {', '.join(PARTS)}")
    row = {
        "out": out,
        "drives": tuple(drives.split(",")) if drives else None,
        "parts": tuple(parts.split(",")),
    }
    return [Job.model_validate(row)]


if __name__ == "__main__":
    sys.exit(main())
