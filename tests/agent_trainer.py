"""A trainer without torch: its delta follows from the seed. What the id of a job asks for, it does.

``argv[1]`` may be ``crash`` (die at each job), ``hang`` (never answer), ``eat`` (take 200 MB and keep it), ``slow``
(take some tenths of a second, and give a job up when it is told to) or ``echo`` (learn what it
began from, and 1, 2, 3 …).
"""

import ctypes
import os
import select
import signal
import sys

import numpy as np

from fedfleet.vehicle_agent.jobs import Job, Order, Told

PR_SET_PDEATHSIG = 1
PARTS = 6
PART_S = 0.06


def say(told: Told) -> None:
    sys.stdout.write(told.model_dump_json() + "\n")
    sys.stdout.flush()


def delta_of(seed: int, size: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """What a training with this seed learns."""
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def ramp(size: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """Count from 1."""
    return np.arange(1, size + 1, dtype=np.float32)


def is_cancelled(job: Job) -> bool:
    """Wait for a part of a slow training, or until it is given up."""
    ready, _, _ = select.select([sys.stdin], [], [], PART_S)
    return bool(ready) and Order.model_validate_json(sys.stdin.readline() or os._exit(0)).cancel == job.id


def train(job: Job, manner: str) -> None:
    for part in range(PARTS if manner == "slow" else 1):
        if manner == "slow" and is_cancelled(job):
            say(Told(kind="failed", id=job.id, reason="cancelled"))
            return
        say(Told(kind="progress", id=job.id, step=1 + part, steps=PARTS))
    base = np.load(job.base)
    np.save(job.out, base + ramp(base.size) if manner == "echo" else delta_of(job.seed, base.size))
    say(Told(kind="done", id=job.id, steps=2, examples=64))


def main() -> None:
    # Stopped or not, it ends with its parent.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    manner = sys.argv[1] if len(sys.argv) > 1 else "work"
    eaten = []
    while line := sys.stdin.readline():
        job = Order.model_validate_json(line).job
        if manner == "eat":
            eaten.append(np.ones(25_000_000))
        if job is None or manner in {"hang", "eat"}:
            continue
        if manner == "crash":
            sys.exit(3)
        train(job, manner)


if __name__ == "__main__":
    main()
