"""The int8 variant beside float32: size, bytes on the wire, latency, and what it loses on test drives.

    FEDFLEET_DATA=FOLDER python benchmarks/int8.py --json [--task motion_forecast --task camera_steering]

For each task a model is trained on all training drives (`motion_forecast`: the shipped pack; `camera_steering`: the
folder `donkey` of FEDFLEET_DATA), quantised as the server does, with the ranges of one training drive per region, and
judged on validation drives (which decide whether it is published) and on test drives. Latency is of one row, both files
in turns, one thread.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedfleet.cli.options import pack_dir
from fedfleet.fleet_server.export import export
from fedfleet.fleet_server.quantize import quantized
from fedfleet.models import bundle, layout, scoring
from fedfleet.models import task as tasks
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Task
from fedfleet.models.training import fine_tune
from fedfleet.scenarios.partition import Partition, partition

TRAINING: Mapping[str, Mapping[str, Any]] = {
    "motion_forecast": {"epochs": 6},
    "camera_steering": {
        "epochs": 8,
        "optimizer": "adam",
        "batch_size": 16,
        "learning_rate": 1e-3,
        "augment": "mirror-light",
        "schedule": "cosine",
    },
}
RUNS = 500


def measure(name: str, folder: Path, *, seed: int) -> dict[str, Any]:
    """Train, quantise and judge one task's model."""
    task = tasks.load(name)
    drives = task.index(folder).drives
    parts = partition(drives, vehicles=dict.fromkeys({d.region for d in drives}, 3), seed=seed, fewer=True)
    train = [drive for _, (_, own) in sorted(parts.vehicles.items()) for drive in own]
    told = export(task, seed=seed)
    samples = task.samples(folder, train)
    print(f"{name}: {len(samples)} samples of {len(train)} drives", file=sys.stderr)
    tuned = fine_tune(task, told.initial, samples, TrainSettings.model_validate(TRAINING[name]), seed=seed)
    file = layout.patch(told.onnx, told.layout, told.initial + tuned.delta)
    del samples
    calibration = task.samples(folder, _first(parts)).inputs
    began_s = time.perf_counter()
    made = quantized(file, task, calibration)
    took_s = time.perf_counter() - began_s
    return {
        "parameters": told.layout.size,
        "file_bytes": {"float32": len(file), "int8": len(made)},
        "blob_bytes": {
            "float32": len(bundle.pack_vector(told.initial + tuned.delta)),
            "int8": len(bundle.pack_file(made)),
        },
        "quantising_s": round(took_s, 2),
        "latency_ms": latency(task, file, made, calibration[:1]),
        "limit_pct": 100 * tasks.int8_loss(task),
        **{
            part: loss(task, folder, [d for own in held.values() for d in own], file, made)
            for part, held in (("validation", parts.validation), ("test", parts.test))
        },
    }


def _first(parts: Partition) -> list[str]:
    """Return one training drive of each region."""
    return sorted(
        {region: own[0] for _, (region, own) in sorted(parts.vehicles.items(), reverse=True)}.values()
    )


def loss(task: Task, folder: Path, drives: Sequence[str], before: bytes, after: bytes) -> dict[str, Any]:
    """Return the primary metric of both files, and by how much int8 is worse."""
    samples, metric = task.samples(folder, drives), task.metrics[0]
    old, new = (metric.value(scoring.score(file, task, samples)) for file in (before, after))
    trivial = metric.value(task.score(task.baseline(samples.inputs), samples))
    if old is None or new is None:
        raise SystemExit(f"{task.name}: nothing is judged")
    worse = (new - old) / old if metric.better == "lower" else (old - new) / old
    return {
        "metric": metric.name,
        "baseline": trivial,
        "float32": old,
        "int8": new,
        "loss_pct": round(100 * worse, 3),
    }


def latency(task: Task, before: bytes, after: bytes, row: Floats) -> dict[str, float]:
    """Return the median times of one row, in turns."""
    sessions = {"float32": scoring.new_session(before), "int8": scoring.new_session(after)}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(RUNS):
        for name, session in sessions.items():
            began_s = time.perf_counter()
            scoring.infer(session, task, np.asarray(row))
            times[name].append(1e3 * (time.perf_counter() - began_s))
    return {name: round(statistics.median(some), 4) for name, some in times.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--task", action="append", choices=list(TRAINING), help="task(s) to measure")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(argv)
    data = os.environ.get("FEDFLEET_DATA")
    found = {}
    for name in given.task or list(TRAINING):
        if name == "camera_steering" and not data:
            print("camera_steering: FEDFLEET_DATA is not set, left out", file=sys.stderr)
            continue
        folder = Path(str(data)) / "donkey" if name == "camera_steering" else pack_dir()
        found[name] = measure(name, folder, seed=given.seed)
    print(json.dumps(found, indent=None if given.json else 2))


if __name__ == "__main__":
    main()
