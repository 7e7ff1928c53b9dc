"""The trainer: ``python -P -m fedfleet.vehicle_agent.trainer``, the vehicle's only process with torch.

Reads orders from stdin, tells on stdout (``jobs.py``). It stays warm between jobs, and ends with its parent, however
that ends: by the end of stdin, and by the kernel's signal on the parent's death. Its parent sets how it is scheduled.
"""

import argparse
import ctypes
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import ValidationError

from fedfleet.models import checkpoint, prepared
from fedfleet.models import task as tasks
from fedfleet.models.correction import Control
from fedfleet.models.settings import TrainSettings
from fedfleet.models.training import FineTuning, Progress, Trained, TrainingError
from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent import personal_training
from fedfleet.vehicle_agent.jobs import Job, Order, Told

__all__ = ["main", "perform"]

PR_SET_PDEATHSIG = 1
PROGRESS_PARTS = 10
PROGRESS_S = 1.0
"""So often at least a running job says that it lives."""


class _Cancelled(Exception):  # noqa: N818 - it is an order, not an error
    """The agent gave the job up."""


class _Trainer:
    """Does jobs one after the other; a thread reads the orders, so that a job can be given up in its middle."""

    def __init__(self, tell: IO[str]) -> None:
        self._tell = tell
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._cancelled: set[str] = set()

    def read(self, orders: IO[str]) -> None:
        for line in orders:
            order = Order.model_validate_json(line)
            if order.cancel:
                self._cancelled.add(order.cancel)
            if order.job is not None:
                self._jobs.put(order.job)
        os._exit(0)  # the agent has closed its end: there is no one to work for

    def work(self) -> None:
        self._say(Told(kind="ready"))
        while True:
            job = self._jobs.get()
            cancelled = partial(self._is_cancelled, job.id)
            self._say(perform(job, self._say, is_cancelled=cancelled, clock=time.monotonic))
            self._cancelled.discard(job.id)

    def _is_cancelled(self, job_id: str) -> bool:
        return job_id in self._cancelled

    def _say(self, told: Told) -> None:
        self._tell.write(told.model_dump_json() + "\n")
        self._tell.flush()


def perform(
    job: Job,
    tell: Callable[[Told], None],
    *,
    is_cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = lambda: 0.0,
) -> Told:
    """Do a job, telling its progress, and return its end: ``done`` or ``failed``; the same job gives the same bytes.

    That holds for one that goes on from its checkpoint too; not for one that its budget ends.
    """
    try:
        return _do(job, _Course(job, tell, is_cancelled, clock))
    except (UsageError, ValidationError) as error:
        return _failed(job, "bad-job", error)
    except (TrainingError, _Cancelled) as error:
        return _failed(job, "cancelled" if isinstance(error, _Cancelled) else "training-failed", error)
    except Exception as error:  # noqa: BLE001 - the next job may be sound
        return _failed(job, "trainer-error", error)


@dataclass
class _Course:
    """The course of a job: what it tells, when it keeps its place, when its time is over."""

    job: Job
    tell: Callable[[Told], None]
    is_cancelled: Callable[[], bool]
    clock: Callable[[], float]
    identity: str = ""
    began_s: float = 0.0
    told_s: float = 0.0
    kept_s: float = 0.0
    spent_s: float = 0.0

    def resume(self, tuning: FineTuning, identity: str) -> None:
        """Begin, or go on where the checkpoint is."""
        self.began_s = self.told_s = self.kept_s = self.clock()
        self.identity = identity
        found = checkpoint.read(Path(self.job.checkpoint), job=identity) if self.job.checkpoint else None
        if found is not None:
            with suppress(ValueError, KeyError):  # else from the beginning
                tuning.restore(found[0])
                self.spent_s = found[1]

    def goes_on(self, tuning: FineTuning, progress: Progress) -> bool:
        """Take a step that was made; False when the budget is spent. Raises when the job is given up."""
        now_s = self.clock()
        if self.is_cancelled():
            self.keep(tuning, now_s)
            raise _Cancelled(self.job.id)
        if now_s - self.kept_s >= self.job.checkpoint_s:
            self.keep(tuning, now_s)
            self.kept_s = self.clock()
        is_part = progress.step % max(1, progress.steps // PROGRESS_PARTS) == 0
        if is_part or now_s - self.told_s >= PROGRESS_S:
            self.told_s = now_s
            self.tell(Told(kind="progress", id=self.job.id, step=progress.step, steps=progress.steps))
        return not 0 < self.job.budget_s <= self.spent_s + now_s - self.began_s

    def keep(self, tuning: FineTuning, now_s: float) -> None:
        """Write a checkpoint, where one is wanted; without room for it the work goes on without."""
        if self.job.checkpoint:
            spent_s = self.spent_s + max(0.0, now_s - self.began_s)
            with suppress(OSError):
                checkpoint.write(
                    Path(self.job.checkpoint), tuning.snapshot(), job=self.identity, spent_s=spent_s
                )


def _do(job: Job, course: _Course) -> Told:
    task = tasks.load(job.task)
    folder = Path(job.data_dir)
    prepared.check(meta := prepared.open_meta(folder), task)
    base = np.load(job.base, allow_pickle=False)
    settings = TrainSettings.model_validate(dict(job.settings))
    controls = np.load(job.control, allow_pickle=False) if job.control else None
    control = None if controls is None else Control(*controls)
    samples = held_back = prepared.open(folder, "train")
    if job.personal is not None:
        samples, held_back = personal_training.split(samples, job.personal.validation_share)
    tuning = FineTuning(task, base, samples, settings, seed=job.seed, control=control)
    told = {"task": job.task, "seed": job.seed, "settings": settings.model_dump(), "data": str(meta)}
    if job.personal is not None:
        told["validation_share"] = job.personal.validation_share
    course.resume(tuning, checkpoint.identity(told, base, controls))
    while (progress := tuning.advance()) is not None and course.goes_on(tuning, progress):
        pass
    if job.personal is not None:
        return personal_training.finish(job, job.personal, tuning, task=task, judged_by=held_back)
    return _finish(job, tuning.result())


def _failed(job: Job, reason: str, error: Exception) -> Told:
    return Told(kind="failed", id=job.id, reason=reason, detail=str(error)[:300])


def _finish(job: Job, trained: Trained) -> Told:
    out = Path(job.out)
    fresh = out.with_suffix(".new.npy")
    control = trained.control
    found = trained.delta if control is None else np.stack([trained.delta, control])
    np.save(fresh, found, allow_pickle=False)
    fresh.replace(out)
    return Told(
        kind="done",
        id=job.id,
        steps=trained.steps,
        examples=trained.examples,
        loss_before=trained.loss_before,
        loss_after=trained.loss_after,
    )


def _end_with_parent(parent: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)


def main() -> None:
    """Serve one agent until its end of stdin closes, or it dies."""
    parser = argparse.ArgumentParser(description="Fine-tunes models for a vehicle agent.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the agent")
    given = parser.parse_args()
    _end_with_parent(given.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's to handle
    tell = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not get between the lines
    trainer = _Trainer(tell)
    threading.Thread(target=trainer.read, args=(sys.stdin,), name="orders", daemon=True).start()
    trainer.work()


if __name__ == "__main__":
    main()
