"""What the trainer does for a head of the vehicle's own: hold samples back, tune, score release and head on them."""

import math
from hashlib import sha256
from pathlib import Path

import numpy as np

from fedfleet.models import layout, scoring
from fedfleet.models.task import Floats, Numbers, Samples, Sums, Task
from fedfleet.models.training import FineTuning, TrainingError
from fedfleet.vehicle_agent.jobs import Job, PersonalJob, Told
from fedfleet.vehicle_agent.personal import Head

__all__ = ["finish", "scored", "split"]

GAP_SHARE = 0.02
"""Between the two parts so many samples are left out: neighbours are of one scene."""
CANARY_ROWS = 8


def split(samples: Samples, share: float) -> tuple[Samples, Samples]:
    """Return what to train on and what to judge by: the last ``share`` of the samples, as they were recorded."""
    count = len(samples)
    start = count - max(1, round(share * count))
    end = max(0, start - max(1, round(GAP_SHARE * count)))
    return _part(samples, 0, end), _part(samples, start, count)


def _part(samples: Samples, start: int, end: int) -> Samples:
    rows = slice(start, end)
    return Samples(samples.inputs[rows], samples.targets[rows], np.asarray(samples.judged[rows]))


def finish(job: Job, asked: PersonalJob, tuning: FineTuning, *, task: Task, judged_by: Samples) -> Told:
    """Write the better of the tuned head and the one held before to ``out``, and tell its and the release's scores.

    ``out`` has ``places``, ``values``, ``inputs`` and ``outputs`` (the file's own answers). Raises TrainingError when a
    score is not finite, PeerError for a file that the runtime cannot run.
    """
    base, trained = np.load(job.base, allow_pickle=False), tuning.result()
    places = np.flatnonzero(tuning.learns)
    told = layout.read(Path(asked.layout).read_bytes())
    release = Path(asked.model).read_bytes()
    heads = [Head(places, (base + trained.delta)[places])]
    if asked.held:
        with np.load(asked.held, allow_pickle=False) as file:
            heads.append(Head(file["places"], file["values"]))
    files = [layout.patch(release, told, head.over(base)) for head in heads]
    before, *after = (scored(file, task, judged_by) for file in (release, *files))
    best = min(range(len(files)), key=lambda each: _cost(task, after[each]))
    _write(Path(job.out), heads[best], files[best], task, judged_by.inputs[:CANARY_ROWS])
    return Told(
        kind="done",
        id=job.id,
        steps=trained.steps,
        examples=trained.examples,
        loss_before=trained.loss_before,
        loss_after=trained.loss_after,
        onnx_sha256=sha256(files[best]).hexdigest(),
        scores={"released": dict(before), "personal": dict(after[best])},
    )


def scored(file: bytes, task: Task, samples: Samples) -> Sums:
    """Return the sums over all samples held back: those that count for the fleet's metrics are few in one vehicle."""
    session = scoring.new_session(file)
    scoring.check(session, task)
    sums = task.score_all(scoring.infer(session, task, samples.inputs), samples)
    if wrong := [name for name, (total, _) in sums.items() if not math.isfinite(total)]:
        raise TrainingError(f"{wrong[0]} on the own validation split is not finite")
    return sums


def _cost(task: Task, sums: Sums) -> float:
    """Return what to minimise: the primary metric, or its negative."""
    metric = task.metrics[0]
    value = metric.value(sums)
    return math.inf if value is None else value if metric.better == "lower" else -value


def _write(out: Path, head: Head, file: bytes, task: Task, inputs: Numbers) -> None:
    some: Floats = np.ascontiguousarray(inputs, dtype=np.float32)
    outputs = scoring.infer(scoring.new_session(file), task, some)
    fresh = out.with_suffix(".new.npz")
    with fresh.open("wb") as stream:
        np.savez(
            stream, allow_pickle=False, places=head.places, values=head.values, inputs=some, outputs=outputs
        )
    fresh.replace(out)
