"""The trainer: ``python -m fedfleet.vehicle_agent.trainer``, the vehicle's only process with torch.

Reads orders from stdin, tells on stdout (``jobs.py``). It stays warm between jobs, yields to others (``--nice``), and
ends with its parent, however that ends: by the end of stdin, and by the kernel's signal on the parent's death.
"""

import argparse
import ctypes
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from pydantic import ValidationError

from fedfleet.models import prepared
from fedfleet.models import task as tasks
from fedfleet.models.correction import Control
from fedfleet.models.settings import TrainSettings
from fedfleet.models.training import FineTuning, Trained, TrainingError
from fedfleet.protocol.errors import UsageError
from fedfleet.vehicle_agent.jobs import Job, Order, Told

__all__ = ["main", "perform"]

PR_SET_PDEATHSIG = 1
PROGRESS_PARTS = 10


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
            self._say(perform(job, self._say, is_cancelled=lambda job=job: job.id in self._cancelled))  # type: ignore[misc]
            self._cancelled.discard(job.id)

    def _say(self, told: Told) -> None:
        self._tell.write(told.model_dump_json() + "\n")
        self._tell.flush()


def perform(
    job: Job, tell: Callable[[Told], None], *, is_cancelled: Callable[[], bool] = lambda: False
) -> Told:
    """Do a job, telling its progress, and return its end: ``done`` or ``failed``; the same job gives the same bytes."""
    try:
        return _do(job, tell, is_cancelled)
    except (UsageError, ValidationError) as error:
        return _failed(job, "bad-job", error)
    except (TrainingError, _Cancelled) as error:
        return _failed(job, "cancelled" if isinstance(error, _Cancelled) else "training-failed", error)
    except Exception as error:  # noqa: BLE001 - the next job may be sound
        return _failed(job, "trainer-error", error)


def _do(job: Job, tell: Callable[[Told], None], is_cancelled: Callable[[], bool]) -> Told:
    task = tasks.load(job.task)
    folder = Path(job.data_dir)
    prepared.check(prepared.open_meta(folder), task)
    base = np.load(job.base, allow_pickle=False)
    settings = TrainSettings.model_validate(dict(job.settings))
    control = Control(*np.load(job.control, allow_pickle=False)) if job.control else None
    samples = prepared.open(folder, "train")
    tuning = FineTuning(task, base, samples, settings, seed=job.seed, control=control)
    while (progress := tuning.advance()) is not None:
        if is_cancelled():
            raise _Cancelled(job.id)
        if progress.step % max(1, progress.steps // PROGRESS_PARTS) == 0:
            tell(Told(kind="progress", id=job.id, step=progress.step, steps=progress.steps))
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
    parser.add_argument("--nice", type=int, default=10, help="how much to yield to other processes, 0 to 19")
    given = parser.parse_args()
    _end_with_parent(given.parent)
    os.nice(given.nice)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's to handle
    tell = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not get between the lines
    trainer = _Trainer(tell)
    threading.Thread(target=trainer.read, args=(sys.stdin,), name="orders", daemon=True).start()
    trainer.work()


if __name__ == "__main__":
    main()
