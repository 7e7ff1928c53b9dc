"""The agent's handle on its trainers: started when first needed, bounded, never waited for.

``poll`` does all the work and takes the time as argument. A trainer that dies fails its job; the next one starts
after a growing pause. A trainer without work for ``idle_s`` seconds is ended.
"""

import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import ValidationError

from fedfleet.vehicle_agent.jobs import Job, Order, Told

__all__ = ["TrainerPool", "Trainers", "trainer_command"]

MAX_LINE_BYTES = 65_536
CANCEL_S = 10.0
STOP_S = 5.0
BACKOFF_S = 0.5
BACKOFF_CAP_S = 30.0
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Trainers(Protocol):
    """Does trainings for the vehicles of a process: ``TrainerPool`` here, or one without processes of its own."""

    def submit(self, job: Job) -> None:
        """Queue a job; its end comes from ``poll`` as ``done`` or ``failed``."""

    def cancel(self, job_id: str) -> None:
        """Give a job up. If it has started, its ``failed`` (cancelled) still comes, or its ``done``."""

    def poll(self, now_s: float) -> list[Told]:
        """Return what was told about jobs since the last call."""

    def close(self) -> None:
        """End all, and forget all jobs."""


def trainer_command(nice: int) -> tuple[str, ...]:
    """Return the command line of our own trainer."""
    module = "fedfleet.vehicle_agent.trainer"
    return (sys.executable, "-m", module, "--parent", str(os.getpid()), "--nice", str(nice))


@dataclass
class _Trainer:
    process: "subprocess.Popen[bytes]"
    job: Job | None = None
    buffer: bytearray = field(default_factory=bytearray)
    idle_since_s: float = 0.0
    kill_at_s: float | None = None

    def send(self, order: Order) -> bool:
        try:
            os.write(self.process.stdin.fileno(), order.model_dump_json().encode() + b"\n")  # type: ignore[union-attr]
        except OSError:  # it is gone, or does not read: poll finds out
            return False
        return True

    def lines(self) -> list[bytes]:
        with suppress(BlockingIOError):
            while data := os.read(self.process.stdout.fileno(), MAX_LINE_BYTES):  # type: ignore[union-attr]
                self.buffer += data
        *whole, rest = bytes(self.buffer).split(b"\n")
        self.buffer[:] = rest[:MAX_LINE_BYTES]
        return whole

    def end(self) -> None:
        """Ask it to end by closing its stdin."""
        with suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]

    def close(self) -> None:
        """See it end, killed if it must be."""
        self.end()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()  # type: ignore[union-attr]


class TrainerPool:
    """At most ``max_trainers`` warm trainers and a queue of jobs; used from the process's main thread only.

    (The kernel ends a trainer with the thread that started it.)
    """

    def __init__(self, command: Sequence[str], *, max_trainers: int, idle_s: float) -> None:
        self._command, self._max, self._idle_s = tuple(command), max_trainers, idle_s
        self._waiting: deque[Job] = deque()
        self._trainers: list[_Trainer] = []
        self._leaving: list[_Trainer] = []
        self._deaths = 0
        self._start_at_s = 0.0

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the trainers that are warm."""
        return tuple(trainer.process.pid for trainer in self._trainers)

    def submit(self, job: Job) -> None:
        """Queue a job; its end comes from ``poll`` as ``done`` or ``failed``."""
        self._waiting.append(job)

    def cancel(self, job_id: str) -> None:
        """Give a job up. If it has started, its ``failed`` (cancelled) still comes, or its ``done``."""
        self._waiting = deque(job for job in self._waiting if job.id != job_id)
        for trainer in self._trainers:
            if trainer.job is not None and trainer.job.id == job_id:
                trainer.send(Order(cancel=job_id))
                trainer.kill_at_s = -1.0

    def poll(self, now_s: float) -> list[Told]:
        """Return what trainers told since the last call; start, feed and end trainers."""
        told: list[Told] = []
        for trainer in list(self._trainers):
            told += self._hear(trainer, now_s)
            self._watch(trainer, told, now_s)
        self._feed(now_s)
        for trainer in list(self._leaving):
            if trainer.process.poll() is not None:
                trainer.close()
                self._leaving.remove(trainer)
        return told

    def close(self) -> None:
        """End all trainers and forget all jobs."""
        self._waiting.clear()
        for trainer in (*self._trainers, *self._leaving):
            trainer.end()
        for trainer in (*self._trainers, *self._leaving):
            trainer.close()
        self._trainers.clear()
        self._leaving.clear()

    def _hear(self, trainer: _Trainer, now_s: float) -> list[Told]:
        heard = []
        for line in trainer.lines():
            try:
                told = Told.model_validate_json(line)
            except ValidationError:
                trainer.process.kill()  # not our trainer's language: it is broken
                continue
            self._deaths = 0 if told.kind == "done" else self._deaths
            if told.kind in {"done", "failed"}:
                trainer.job, trainer.idle_since_s, trainer.kill_at_s = None, now_s, None
            if told.id:
                heard.append(told)
        return heard

    def _watch(self, trainer: _Trainer, told: list[Told], now_s: float) -> None:
        if trainer.process.poll() is not None:
            told += self._hear(trainer, now_s)
            if trainer.job is not None:
                detail = f"trainer {trainer.process.pid} ended with code {trainer.process.returncode}"
                told.append(Told(kind="failed", id=trainer.job.id, reason="trainer-died", detail=detail))
            self._trainers.remove(trainer)
            trainer.close()
            self._start_at_s = now_s + min(BACKOFF_CAP_S, BACKOFF_S * 2.0 ** min(self._deaths, 10))
            self._deaths += 1
        elif trainer.kill_at_s is not None:
            trainer.kill_at_s = now_s + CANCEL_S if trainer.kill_at_s < 0 else trainer.kill_at_s
            if now_s > trainer.kill_at_s:
                trainer.process.kill()
        elif trainer.job is None and not self._waiting and now_s - trainer.idle_since_s > self._idle_s:
            trainer.end()
            self._trainers.remove(trainer)
            self._leaving.append(trainer)

    def _feed(self, now_s: float) -> None:
        for trainer in self._trainers:
            if self._waiting and trainer.job is None and trainer.send(Order(job=self._waiting[0])):
                trainer.job = self._waiting.popleft()
        if self._waiting and len(self._trainers) < self._max and now_s >= self._start_at_s:
            trainer = _Trainer(self._spawn(), idle_since_s=now_s)
            self._trainers.append(trainer)
            if trainer.send(Order(job=self._waiting[0])):
                trainer.job = self._waiting.popleft()

    def _spawn(self) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **ONE_THREAD},
            bufsize=0,
        )
        os.set_blocking(process.stdout.fileno(), False)  # type: ignore[union-attr]
        os.set_blocking(process.stdin.fileno(), False)  # type: ignore[union-attr]
        return process
