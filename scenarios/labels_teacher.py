"""Labels that a teacher does not believe: a model that already drives answers, and what it is far from is left out.

Only training samples are filtered, never those that a model is judged on. A good teacher finds wrong labels; it also
holds back what is new to it. So this is an option, and off by default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models import scoring
from fedfleet.models.task import Frames, Samples, Task
from fedfleet.protocol.errors import PeerError, UsageError

__all__ = ["DISAGREES", "Teacher", "believed", "kept"]

DISAGREES: Final = "teacher-disagrees"


@dataclass(frozen=True)
class Teacher:
    """A model file of the task, and the primary metric of one sample beyond which its label is not believed."""

    model: bytes
    limit: float


def believed(teacher: Teacher, task: Task, samples: Samples) -> NDArray[np.bool_]:
    """Which samples the teacher agrees with, bool[N]; UsageError when it is no model of the task."""
    try:
        session = scoring.new_session(teacher.model)
        scoring.check(session, task)
        outputs = scoring.infer(session, task, samples.inputs)
    except PeerError as error:
        raise UsageError(f"teacher: {error.detail}") from error
    metric, yes = task.metrics[0], np.ones(1, dtype=np.bool_)
    values = np.empty(len(samples))
    for row in range(len(samples)):
        one = slice(row, row + 1)
        sums = task.score_all(outputs[one], Samples(samples.inputs[one], samples.targets[one], yes))
        value = metric.value(sums)
        values[row] = np.nan if value is None else value
    near = values <= teacher.limit if metric.better == "lower" else values >= teacher.limit
    return np.asarray(near, dtype=np.bool_)


def kept(samples: Samples, frames: Frames | None, rows: NDArray[np.bool_]) -> tuple[Samples, Frames | None]:
    """Keep some samples, count the others, and let the frames point to where the samples are now."""
    problems = {**samples.problems, DISAGREES: int((~rows).sum())}
    left = Samples(samples.inputs[rows], samples.targets[rows], np.asarray(samples.judged[rows]), problems)
    if frames is None:
        return left, None
    place = np.where(rows, rows.cumsum(dtype=np.int64) - 1, -1)
    place = np.append(place, -1)  # a frame without a sample, -1, finds the last: none
    return left, replace(frames, sample=place[frames.sample])
