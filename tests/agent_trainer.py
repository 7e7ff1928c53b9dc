"""A trainer without torch: its delta follows from the seed. What the id of a job asks for, it does.

``argv[1]`` may be ``crash`` (die at each job) or ``hang`` (never answer).
"""

import sys

import numpy as np

from fedfleet.vehicle_agent.jobs import Order, Told


def main() -> None:
    manner = sys.argv[1] if len(sys.argv) > 1 else "work"
    for line in sys.stdin:
        job = Order.model_validate_json(line).job
        if job is None or manner == "hang":
            continue
        if manner == "crash":
            sys.exit(3)
        base = np.load(job.base)
        delta = np.random.default_rng(job.seed).normal(size=base.size).astype(np.float32)
        np.save(job.out, delta)
        for told in (
            Told(kind="progress", id=job.id, step=1, steps=2),
            Told(kind="done", id=job.id, steps=2, examples=64),
        ):
            sys.stdout.write(told.model_dump_json() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
