"""Drives through a model in the agent's own runtime, frame by frame, and what came out of each."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive, Floats, Frames, Samples, Task
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.vehicle_agent.pace import Jumping, Pace, Wall, run_once
from fedfleet.vehicle_agent.runtime import Answer, Replay, Run
from fedfleet.vehicle_agent.swap import Sessions

__all__ = ["Driven", "Model", "Way", "load_model", "replay_drive"]

_REASONS = {
    "unloadable-model": "not a model that ONNX Runtime can load: ",
    "model-mismatch": "",
}


@dataclass(frozen=True)
class Model:
    """A model file that fits the task, loaded as the agent loads it."""

    run: Run
    sha256: str


@dataclass(frozen=True)
class Way:
    """How to replay: the time to measure with, how to sleep, and how many times faster than real; None = at most."""

    clock: Callable[[], float]
    sleep: Callable[[float], None]
    speed: float | None

    def pace(self) -> Pace:
        """Return a new pace."""
        return Jumping(self.clock) if self.speed is None else Wall(self.clock, self.sleep)


@dataclass(frozen=True, eq=False)
class Driven:
    """One drive, replayed: ``answered`` int64[K] are the rows of ``samples`` that ``outputs`` f32[K, *out] answer."""

    drive: Drive
    frames: int
    missed: int
    predictions: int
    seconds: float
    latencies_ms: Floats
    samples: Samples
    answered: NDArray[np.int64]
    outputs: Floats


def load_model(path: Path, task: Task) -> Model:
    """Return the model of a file; UsageError when it cannot be read, is no model, or is none for this task."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--model {path}: cannot be read: {error.strerror}") from error
    digest = sha256(data).hexdigest()
    try:
        return Model(Sessions(task).load(data, digest), digest)
    except PeerError as error:
        raise UsageError(f"--model {path}: {_REASONS.get(error.reason, '')}{error.detail}") from error


def replay_drive(task: Task, folder: Path, drive: Drive, *, run: Run, way: Way) -> Driven:
    """Prepare one drive as a vehicle does, and replay it once; only the replay is timed.

    Raises UsageError for outputs that are not finite, PeerError when the model fails.
    """
    samples, frames = task.samples(folder, [drive.key]), task.frames(folder, [drive.key])
    log = _Log(task, frames, drive)
    pace = way.pace()
    rate_hz = frames.rate_hz * (way.speed or 1.0)
    replay = Replay(task, frames, None, clock=pace.now_s, rate_hz=rate_hz, seen=log.add)
    replay.swap_ends(run)
    begin_s = way.clock()
    run_once(replay, pace)
    seconds = way.clock() - begin_s
    figures, latencies = replay.figures(), np.array(log.latencies_ms, dtype=np.float32)
    counts = (figures.frames, figures.missed, log.predictions)
    return Driven(drive, *counts, seconds, latencies, samples, *log.answers())


class _Log:
    """Keeps the latency of every answer, and the outputs whose truth is known."""

    def __init__(self, task: Task, frames: Frames, drive: Drive) -> None:
        self._sample, self._drive = np.asarray(frames.sample), drive
        self._shape = task.specification.output_shape
        self._rows: list[NDArray[np.int64]] = []
        self._outputs: list[Floats] = []
        self.latencies_ms: list[float] = []
        self.predictions = 0

    def add(self, answer: Answer) -> None:
        """Take one answer."""
        self.latencies_ms.append(answer.latency_ms)
        if answer.outputs is None:
            return
        self.predictions += len(answer.outputs)
        sample = self._sample[answer.rows]
        known = np.flatnonzero(sample >= 0)
        if len(known):
            outputs = answer.outputs[known]
            if not np.isfinite(outputs).all():
                raise UsageError(
                    f"drive {self._drive.key}, frame {answer.frame}: the model's output is not finite"
                )
            self._rows.append(sample[known])
            self._outputs.append(outputs)

    def answers(self) -> tuple[NDArray[np.int64], Floats]:
        """Return the rows of the samples, and the outputs for them."""
        none = np.empty((0, *self._shape), dtype=np.float32)
        rows = np.concatenate([np.empty(0, dtype=np.int64), *self._rows])
        return rows, np.concatenate([none, *self._outputs])
