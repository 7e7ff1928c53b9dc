"""Drives through a model in the agent's own runtime, frame by frame, one after another or several at once."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedfleet.models import onnx_file, task_check
from fedfleet.models.task import Drive, Floats, Frames, Samples, Task
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.vehicle_agent.pace import Jumping, Pace, Wall, run_once
from fedfleet.vehicle_agent.runtime import Answer, Replay, Run
from fedfleet.vehicle_agent.swap import Sessions

__all__ = ["Driven", "Model", "Predictions", "Way", "load_model", "replay_drive", "replay_drives"]

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
    """How to replay: the time to measure with, how to sleep, how many times faster than real (None = at most).

    ``jobs`` drives are replayed at once.
    """

    clock: Callable[[], float]
    sleep: Callable[[float], None]
    speed: float | None
    jobs: int = 1

    def pace(self) -> Pace:
        """Return a new pace."""
        return Jumping(self.clock) if self.speed is None else Wall(self.clock, self.sleep)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Every prediction of a drive: frame, number in it, sample (-1: none), all int64[P]; outputs f32[P, *out]."""

    frame: NDArray[np.int64]
    number: NDArray[np.int64]
    sample: NDArray[np.int64]
    outputs: Floats

    def __len__(self) -> int:
        """Return the number of predictions."""
        return len(self.frame)


@dataclass(frozen=True, eq=False)
class Driven:
    """One drive, replayed: ``answered`` int64[K] are the rows of ``samples`` that ``outputs`` f32[K, *out] answer."""

    drive: Drive
    frames: int
    missed: int
    seconds: float
    latencies_ms: Floats
    samples: Samples
    every: Predictions
    answered: NDArray[np.int64]
    outputs: Floats

    @property
    def predictions(self) -> int:
        """The number of predictions."""
        return len(self.every)

    @property
    def truth(self) -> Samples:
        """The samples that were answered, in the order of ``outputs``."""
        return self.samples.take(self.answered)


def load_model(path: Path, task: Task, *, option: str = "--model") -> Model:
    """Return the model of a file; UsageError when it cannot be read, is no model, or is none for this task."""
    data = onnx_file.read_model(path, option=option)
    digest = sha256(data).hexdigest()
    try:
        return Model(Sessions(task).load(data, digest), digest)
    except PeerError as error:
        raise UsageError(f"{option} {path}: {_REASONS.get(error.reason, '')}{error.detail}") from error


def replay_drive(task: Task, folder: Path, drive: Drive, *, run: Run, way: Way) -> Driven:
    """Prepare one drive as a vehicle does, and replay it once; only the replay is timed.

    Raises UsageError for outputs that are not finite, PeerError when the model fails.
    """
    return _through(task, _read(task, folder, drive), run, way)


def replay_drives(
    task: Task, folder: Path, drives: Sequence[Drive], *, models: Sequence[Model], way: Way
) -> Iterator[tuple[Driven, ...]]:
    """Replay every drive through every model, ``way.jobs`` drives at once, and give them in the order of the drives.

    The first model goes the ``way``, the others as fast as possible: of them only the answers count. What is given
    does not depend on the number of jobs; no more than twice as many drives are held. Raises as ``replay_drive``.
    """
    reading = threading.Lock()  # readers keep files open, and are not made for two threads

    def one(drive: Drive) -> tuple[Driven, ...]:
        with reading:
            opened = _read(task, folder, drive)
        ways = [way, *[replace(way, speed=None)] * (len(models) - 1)]
        return tuple(
            _through(task, opened, model.run, each) for model, each in zip(models, ways, strict=True)
        )

    if way.jobs == 1:
        yield from map(one, drives)
        return
    waiting: deque[Future[tuple[Driven, ...]]] = deque()
    with ThreadPoolExecutor(way.jobs, "replay") as pool:
        try:
            for drive in drives:
                if len(waiting) >= 2 * way.jobs:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(one, drive))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True, eq=False)
class _Opened:
    drive: Drive
    samples: Samples
    frames: Frames


def _read(task: Task, folder: Path, drive: Drive) -> _Opened:
    samples, frames = task.samples(folder, [drive.key]), task.frames(folder, [drive.key])
    task_check.check_samples(task, samples)
    task_check.check_frames(task, frames)
    return _Opened(drive, samples, frames)


def _through(task: Task, opened: _Opened, run: Run, way: Way) -> Driven:
    frames = opened.frames
    log = _Log(task, frames, opened.drive)
    pace = way.pace()
    rate_hz = frames.rate_hz * (way.speed or 1.0)
    replay = Replay(task, frames, None, clock=pace.now_s, rate_hz=rate_hz, seen=log.add)
    replay.swap_ends(run)
    begin_s = way.clock()
    run_once(replay, pace)
    seconds = way.clock() - begin_s
    figures, latencies = replay.figures(), np.array(log.latencies_ms, dtype=np.float32)
    every = log.predictions()
    known = np.flatnonzero(every.sample >= 0)
    answers = every.sample[known], every.outputs[known]
    return Driven(
        opened.drive, figures.frames, figures.missed, seconds, latencies, opened.samples, every, *answers
    )


class _Log:
    """Keeps the latency and the outputs of every answer."""

    def __init__(self, task: Task, frames: Frames, drive: Drive) -> None:
        self._frames, self._drive = frames, drive
        self._shape = task.specification.output_shape
        self._answers: list[tuple[int, slice, Floats]] = []
        self.latencies_ms: list[float] = []

    def add(self, answer: Answer) -> None:
        """Take one answer."""
        self.latencies_ms.append(answer.latency_ms)
        if answer.outputs is None:
            return
        if not np.isfinite(answer.outputs).all():
            raise UsageError(
                f"drive {self._drive.key}, frame {answer.frame}: the model's output is not finite"
            )
        self._answers.append((answer.frame, answer.rows, answer.outputs))

    def predictions(self) -> Predictions:
        """Return all of them, frame after frame."""
        none, nothing = np.empty((0, *self._shape), dtype=np.float32), np.empty(0, dtype=np.int64)
        counts = [(frame, len(outputs)) for frame, _, outputs in self._answers]
        sample = np.asarray(self._frames.sample)
        return Predictions(
            np.concatenate([nothing, *(np.full(count, frame) for frame, count in counts)]),
            np.concatenate([nothing, *(np.arange(count) for _, count in counts)]),
            np.concatenate([nothing, *(sample[rows] for _, rows, _ in self._answers)]),
            np.concatenate([none, *(outputs for _, _, outputs in self._answers)]),
        )
