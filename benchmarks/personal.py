"""What a head of its own brings a vehicle: how many are kept, and what those are worth on drives of the region unseen.

    python benchmarks/personal.py --json [--seeds 3]

`motion_forecast` on the shipped pack: one model trained on all training drives, then each of twelve vehicles tunes the
head to its own drives as the trainer does, and keeps it by the default rule. The region's test drives tell whether that
rule chooses well; a vehicle has no such drives.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedfleet.cli.options import pack_dir
from fedfleet.fleet_server.export import Exported, export
from fedfleet.models import layout, scoring
from fedfleet.models import task as tasks
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples, Task
from fedfleet.models.training import fine_tune
from fedfleet.scenarios.partition import partition
from fedfleet.vehicle_agent.personal import PersonalSettings, judge
from fedfleet.vehicle_agent.personal_training import scored, split

RULE = PersonalSettings(enabled=True)


def run(task: Task, seed: int) -> list[dict[str, Any]]:
    """Train the model of all, then every vehicle's head."""
    folder = pack_dir()
    drives = task.index(folder).drives
    vehicles = dict.fromkeys({drive.region for drive in drives}, 3)
    parts = partition(drives, vehicles=vehicles, seed=seed, fewer=True)
    told = export(task, seed=seed)
    train = [drive for _, (_, own) in sorted(parts.vehicles.items()) for drive in own]
    tuned = fine_tune(task, told.initial, task.samples(folder, train), TrainSettings(epochs=6), seed=seed)
    base = told.initial + tuned.delta
    tests = {region: task.samples(folder, own) for region, own in parts.test.items()}
    return [
        {"vehicle": vehicle, **head(task, told, base, task.samples(folder, own), tests[region])}
        for vehicle, (region, own) in sorted(parts.vehicles.items())
    ]


def head(task: Task, told: Exported, base: Floats, own: Samples, test: Samples) -> dict[str, Any]:
    """Tune one head and judge it."""
    train, judged_by = split(own, RULE.validation_share)
    settings = TrainSettings(epochs=RULE.epochs, learning_rate=RULE.learning_rate, trainable="head")
    delta = fine_tune(task, base, train, settings, seed=1).delta
    files = [layout.patch(told.onnx, told.layout, vector) for vector in (base, base + delta)]
    validation = [scored(file, task, judged_by) for file in files]
    metric = task.metrics[0]
    found = {}
    for name, sums in (("own", validation), ("test", [scoring.score(file, task, test) for file in files])):
        old, new = (metric.value(each) for each in sums)
        found[f"{name}_pct"] = None if not old or new is None else round(100 * (new / old - 1), 2)
    return {"reason": judge(*validation, metrics=task.metrics, settings=RULE), **found}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seeds", type=int, default=3, help="splits and trainings, from seed 1 on")
    given = parser.parse_args(argv)
    task, rows = tasks.load("motion_forecast"), list[dict[str, Any]]()
    for seed in range(1, given.seeds + 1):
        print(f"seed {seed} of {given.seeds}", file=sys.stderr)
        rows += [{"seed": seed, **row} for row in run(task, seed)]
    kept = [row for row in rows if not row["reason"]]
    told = {
        "vehicles": len(rows),
        "kept": len(kept),
        "kept_own_pct": round(statistics.mean(row["own_pct"] for row in kept), 2) if kept else None,
        "kept_test_pct": round(statistics.mean(row["test_pct"] for row in kept), 2) if kept else None,
        "all_test_pct": round(float(np.mean([row["test_pct"] for row in rows])), 2),
    }
    print(json.dumps({**told, "rows": rows} if given.json else told, indent=None if given.json else 2))


if __name__ == "__main__":
    main()
