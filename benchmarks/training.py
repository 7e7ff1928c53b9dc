"""Central training of `motion_forecast` on the shipped pack, against constant velocity; and what the model file costs.

    python benchmarks/training.py [--scenarios FOLDER] [--epochs 20] [--seed 1] [--json]

One network on the train drives of all vehicles together, scored in ONNX Runtime on the test drives of each region; the
time of one epoch, of preparing the arrays, of the export, and of patching new weights into the file. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedfleet.fleet_server.export import export
from fedfleet.models import scoring
from fedfleet.models.layout import patch
from fedfleet.models.onnx_runtime import ort
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Samples, Task, load
from fedfleet.models.training import FineTuning
from fedfleet.scenarios.pack import sumo_pack
from fedfleet.scenarios.partition import partition

VEHICLES = 12
PATCHES = 100


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure central training and the model file.")
    parser.add_argument("--scenarios", type=Path, default=sumo_pack())
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    report = measure(given.scenarios, epochs=given.epochs, seed=given.seed)
    print(json.dumps(report, indent=1) if given.json else text(report))


def measure(folder: Path, *, epochs: int, seed: int) -> dict[str, Any]:
    """The whole report as JSON-ready values."""
    task = load("motion_forecast")
    start = time.perf_counter()
    split = partition(task.index(folder).drives, vehicles=VEHICLES, seed=seed)
    train = task.samples(folder, [drive for _, drives in split.vehicles.values() for drive in drives])
    tests = {region: task.samples(folder, drives) for region, drives in split.test.items()}
    read = time.perf_counter()
    first = export(task, seed=seed)
    exported = time.perf_counter()
    for _ in range(PATCHES):
        patch(first.onnx, first.layout, first.initial)
    patched = time.perf_counter()
    settings = TrainSettings(epochs=epochs, optimizer="adam", learning_rate=1e-3, clip_norm=0)
    tuning = FineTuning(task, first.initial, train, settings, seed=seed)
    began = time.perf_counter()
    while tuning.advance() is not None:
        pass
    ended = time.perf_counter()
    trained = tuning.result()
    model = scoring.new_session(patch(first.onnx, first.layout, first.initial + trained.delta))
    return {
        "seed": seed,
        "parameters": first.layout.size,
        "train_samples": len(train),
        "epochs": epochs,
        "seconds_per_epoch": round((ended - began) / epochs, 3),
        "read_and_label_s": round(read - start, 2),
        "export_s": round(exported - read, 2),
        "patch_ms": round((patched - exported) / PATCHES * 1e3, 3),
        "file_bytes": first.layout.file_bytes,
        "graph_bytes": first.layout.file_bytes - 4 * first.layout.size,
        "regions": {region: _scores(model, task, samples) for region, samples in tests.items()},
    }


def _scores(model: ort.InferenceSession, task: Task, samples: Samples) -> dict[str, Any]:
    found = scoring.score(model, task, samples)
    trivial = task.score(task.baseline(samples.inputs), samples)
    means = {name: round(total / count, 3) for name, (total, count) in found.items()}
    of_trivial = {name: round(total / count, 3) for name, (total, count) in trivial.items()}
    judged = int(np.count_nonzero(samples.judged))
    return {"judged": judged, "trained": means, "constant_velocity": of_trivial}


def text(report: dict[str, Any]) -> str:
    """The report as lines."""
    lines = [f"{name}: {value}" for name, value in report.items() if name != "regions"]
    for region, found in report["regions"].items():
        new, old = found["trained"]["ADE"], found["constant_velocity"]["ADE"]
        lines.append(
            f"{region}: ADE {new:.2f} m, constant velocity {old:.2f} m ({100 * (new / old - 1):+.0f} %)"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
