"""The agent's handle on its trainers: started when first needed, bounded, watched, never waited for.

``poll`` does all the work and takes the time as argument. A trainer that dies, hangs or eats memory fails its job; the
next one starts after a growing pause. A trainer without work for ``idle_s`` seconds is ended. ``pause`` and ``resume``
are the latency guard's, from any thread: time in a pause is not held against a trainer.
"""

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from fedfleet.models.interpreter import module_command
from fedfleet.vehicle_agent.jobs import Job, Order, Told
from fedfleet.vehicle_agent.scheduling import Scheduling
from fedfleet.vehicle_agent.trainer_handle import Signals, TrainerHandle, rss_bytes, spawn

__all__ = ["TrainerPool", "Trainers", "Watched", "trainer_command"]

BACKOFF_S = 0.5
BACKOFF_CAP_S = 30.0
HELD_S = 1.0
"""So often at least a job is told of a pause."""


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


@dataclass(frozen=True)
class Watched:
    """What a trainer may do: ``cancel_s`` to give a job up, ``hang_s`` without a word, resident memory in bytes."""

    cancel_s: float = 1.5
    hang_s: float = 120.0
    memory_bytes: int = 4 << 30


def trainer_command() -> tuple[str, ...]:
    """Return the command line of our own trainer."""
    module = "fedfleet.vehicle_agent.trainer"
    return module_command(module, "--parent", str(os.getpid()))


class TrainerPool:
    """At most ``max_trainers`` warm trainers and a queue of jobs; used from the process's main thread only.

    (The kernel ends a trainer with the thread that started it.) Only ``pause`` and ``resume`` may come from others.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        max_trainers: int,
        idle_s: float,
        scheduling: Scheduling | None = None,
        watched: Watched | None = None,
    ) -> None:
        self._command, self._max, self._idle_s = tuple(command), max_trainers, idle_s
        self._scheduling, self._watched = scheduling or Scheduling(), watched or Watched()
        self._waiting: deque[Job] = deque()
        self._trainers: list[TrainerHandle] = []
        self._leaving: list[TrainerHandle] = []
        self._signals = Signals()
        self._held_from_s: float | None = None
        self._deaths = 0
        self._start_at_s = 0.0

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the trainers that are warm."""
        return tuple(trainer.pid for trainer in self._trainers)

    @property
    def is_busy(self) -> bool:
        """Whether a trainer is at work, or starts."""
        return bool(self._trainers) and any(trainer.job is not None for trainer in tuple(self._trainers))

    def warm(self, number: int, now_s: float) -> None:
        """Start so many trainers, as far as there may be so many, before there is a job for them."""
        while len(self._trainers) < min(number, self._max) and now_s >= self._start_at_s:
            trainer = spawn(self._command, self._signals, self._scheduling)
            trainer.idle_since_s = trainer.heard_s = now_s
            self._trainers.append(trainer)

    @property
    def is_warm(self) -> bool:
        """Whether every trainer that was started has imported what it needs."""
        return all(trainer.is_ready for trainer in self._trainers)

    def pause(self) -> None:
        """Stop all trainers at once."""
        self._signals.set(stopped=True)

    def resume(self) -> None:
        """Let them go on."""
        self._signals.set(stopped=False)

    def submit(self, job: Job) -> None:
        """Queue a job; its end comes from ``poll`` as ``done`` or ``failed``."""
        self._waiting.append(job)

    def cancel(self, job_id: str) -> None:
        """Give a job up. If it has started, its ``failed`` (cancelled) still comes, or its ``done``.

        A trainer that does not give it up in time, or is in a pause, is killed: its last checkpoint stays.
        """
        self._waiting = deque(job for job in self._waiting if job.id != job_id)
        for trainer in self._trainers:
            if trainer.job is not None and trainer.job.id == job_id:
                trainer.send(Order(cancel=job_id))
                trainer.kill_at_s = -1.0

    def poll(self, now_s: float) -> list[Told]:
        """Return what trainers told since the last call; start, feed, watch and end trainers."""
        told: list[Told] = []
        held_s = self._held(now_s)
        for trainer in list(self._trainers):
            told += self._hear(trainer, now_s)
            if held_s and trainer.job is not None:
                trainer.heard_s += held_s
                told.append(Told(kind="held", id=trainer.job.id, seconds=held_s))
            self._watch(trainer, told, now_s)
        self._feed(now_s)
        for trainer in list(self._leaving):
            if trainer.is_gone:
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

    def _held(self, now_s: float) -> float:
        """Return the seconds of a pause since they were told last, when it is time to tell."""
        if self._held_from_s is None:
            self._held_from_s = now_s if self._signals.stopped else None
            return 0.0
        held_s, over = max(0.0, now_s - self._held_from_s), not self._signals.stopped
        if not over and held_s < HELD_S:
            return 0.0
        self._held_from_s = None if over else now_s
        return held_s

    def _hear(self, trainer: TrainerHandle, now_s: float) -> list[Told]:
        heard = []
        for line in trainer.lines():
            trainer.heard_s = now_s
            try:
                told = Told.model_validate_json(line)
            except ValidationError:
                trainer.kill("trainer-garbled")  # not our trainer's language: it is broken
                continue
            self._deaths = 0 if told.kind == "done" else self._deaths
            trainer.is_ready |= told.kind == "ready"
            if told.kind in {"done", "failed"}:
                trainer.job, trainer.idle_since_s, trainer.kill_at_s = None, now_s, None
            if told.id:
                heard.append(told)
        return heard

    def _watch(self, trainer: TrainerHandle, told: list[Told], now_s: float) -> None:
        if trainer.is_gone:
            told += self._hear(trainer, now_s)
            self._bury(trainer, told, now_s)
        elif trainer.kill_at_s is not None:
            trainer.kill_at_s = now_s + self._watched.cancel_s if trainer.kill_at_s < 0 else trainer.kill_at_s
            if now_s > trainer.kill_at_s or self._signals.stopped:
                trainer.kill()
        elif trainer.job is None and not self._waiting and now_s - trainer.idle_since_s > self._idle_s:
            trainer.end()
            self._trainers.remove(trainer)
            self._leaving.append(trainer)
        elif trainer.job is not None and now_s - trainer.heard_s > self._watched.hang_s:
            trainer.kill("trainer-hung")
        elif rss_bytes(trainer.pid) > self._watched.memory_bytes:
            trainer.kill("trainer-memory")

    def _bury(self, trainer: TrainerHandle, told: list[Told], now_s: float) -> None:
        if trainer.job is not None:
            detail = f"trainer {trainer.pid} ended with code {trainer.process.returncode}"
            reason = trainer.verdict or "trainer-died"
            told.append(Told(kind="failed", id=trainer.job.id, reason=reason, detail=detail))
        self._trainers.remove(trainer)
        trainer.close()
        self._start_at_s = now_s + min(BACKOFF_CAP_S, BACKOFF_S * 2.0 ** min(self._deaths, 10))
        self._deaths += 1

    def _feed(self, now_s: float) -> None:
        for trainer in self._trainers:
            if self._waiting and trainer.job is None and not trainer.verdict:
                self._give(trainer, now_s)
        if self._waiting and len(self._trainers) < self._max and now_s >= self._start_at_s:
            trainer = spawn(self._command, self._signals, self._scheduling)
            trainer.idle_since_s = now_s
            self._trainers.append(trainer)
            self._give(trainer, now_s)

    def _give(self, trainer: TrainerHandle, now_s: float) -> None:
        if trainer.send(Order(job=self._waiting[0])):
            trainer.job, trainer.heard_s = self._waiting.popleft(), now_s
