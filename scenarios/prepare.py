"""Prepares recordings as arrays: `python -m fedfleet.scenarios.prepare`, a process that ends when they are written.

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

from fedfleet.models import prepared
from fedfleet.models.prepared import PARTS, Meta, Part
from fedfleet.models.task import Index, Samples, Task, load
from fedfleet.protocol.errors import UsageError

__all__ = ["Job", "main", "prepare", "read_jobs"]


Report = Callable[[int, int, str], None]


class Job(BaseModel):
    """A folder to write: these parts of these drives (`region/drive`); None means all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Path
    drives: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    parts: Annotated[tuple[Part, ...], Field(min_length=1)]


def prepare(task: Task, scenarios: Path, jobs: Sequence[Job], *, report: Report | None = None) -> list[Meta]:
    """Write every job's folder, each whole or not at all; folders written before a failure stay.

    `report` is called with (done, total, name of the folder) before each job. Raises UsageError for a folder without
    recordings, a malformed recording and an unknown drive.
    """
    index = task.index(scenarios)
    everything = tuple(drive.key for drive in index.drives)
    metas: list[Meta] = []
    for job in jobs:
        if report is not None:
            report(len(metas), len(jobs), job.out.name)
        metas.append(_prepare_one(task, scenarios, job, everything=everything, index=index))
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
        metas = prepare(load(given.task), given.scenarios, jobs, report=_tell if given.progress else None)
    except (UsageError, OSError) as error:
        sys.stderr.write(f"prepare: {error}\n")
        return 2
    folders = {str(job.out): dict(meta.counts) for job, meta in zip(jobs, metas, strict=True)}
    problems = {name: dict(meta.problems) for name, meta in zip(folders, metas, strict=True)}
    sys.stdout.write(json.dumps({"folders": folders, "problems": problems}) + "\n")
    return 0


def _prepare_one(task: Task, scenarios: Path, job: Job, *, everything: tuple[str, ...], index: Index) -> Meta:
    drives = job.drives or everything
    parts = tuple(part for part in PARTS if part in job.parts)
    counts: dict[str, int] = {}
    samples: dict[Part, Samples] = {}
    problems = index.problems
    if parts != ("frames",):
        read = task.samples(scenarios, drives)
        problems = index.problems if index.is_counted else read.problems
        for part in parts:
            if part != "frames":
                samples[part] = read
                counts[f"{part}_samples"], counts[f"{part}_judged"] = len(read), int(read.judged.sum())
    frames = task.frames(scenarios, drives) if "frames" in parts else None
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
    prepared.write(job.out, meta, samples=samples, frames=frames)
    return meta


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
    parser.add_argument("--progress", action="store_true", help="tell on stderr which folder comes next")
    return parser


def _tell(done: int, total: int, text: str) -> None:
    sys.stderr.write(f"{done}/{total} {text}\n")
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
