"""Federated rounds of `motion_forecast` in one process, without links, to find defaults that gain in every region.

    python benchmarks/federated_sim.py [--scenarios FOLDER] [--rounds 10] [--seeds 1,2] [--only NAME,…] [--json]

12 vehicles fine-tune from the published vector and send sparse sign updates with error feedback; FedAvg by examples in
each region, regions merged with equal weight, a server learning rate, and an 8-bit downlink with its own residual, as
the server does. `ratio_up` counts codec payloads without envelope, against dense float32. One row per variant and seed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfleet.codec.payload import decode
from fedfleet.codec.residual import encode_with_feedback
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server.export import Exported, export
from fedfleet.models import scoring
from fedfleet.models.layout import patch
from fedfleet.models.settings import TrainSettings
from fedfleet.models.task import Floats, Samples, Task, load
from fedfleet.models.training import fine_tune
from fedfleet.scenarios.pack import sumo_pack
from fedfleet.scenarios.partition import partition


@dataclass(frozen=True)
class Variant:
    """One set of defaults on trial."""

    training: TrainSettings
    up: Settings
    down: Settings
    server_learning_rate: float


DEFAULT = Variant(
    training=TrainSettings(),
    up=Settings(density=0.02),
    down=Settings(value="int8", density=0.1),
    server_learning_rate=2.0,
)
DENSE = Settings(index="dense", value="float32")
VARIANTS: Mapping[str, Variant] = {
    "default": DEFAULT,
    "top-1%": replace(DEFAULT, up=Settings(density=0.01)),
    "top-5%": replace(DEFAULT, up=Settings(density=0.05)),
    "int8-2%": replace(DEFAULT, up=Settings(value="int8", density=0.02)),
    "dense": replace(DEFAULT, up=DENSE, down=DENSE, server_learning_rate=1.0),
    "server-lr-1": replace(DEFAULT, server_learning_rate=1.0),
    "server-lr-3": replace(DEFAULT, server_learning_rate=3.0),
    "epochs-1": replace(DEFAULT, training=TrainSettings(epochs=1)),
    "epochs-3": replace(DEFAULT, training=TrainSettings(epochs=3)),
    "lr-0.05": replace(DEFAULT, training=TrainSettings(learning_rate=0.05)),
    "batch-32": replace(DEFAULT, training=TrainSettings(batch_size=32)),
    "adam": replace(DEFAULT, training=TrainSettings(optimizer="adam", learning_rate=1e-3, clip_norm=0)),
}
VEHICLES = 12


@dataclass(frozen=True, eq=False)
class Data:
    """Each vehicle's region and samples, and the test samples of each region."""

    vehicles: Mapping[str, tuple[str, Samples]]
    tests: Mapping[str, Samples]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Simulate federated rounds.")
    parser.add_argument("--scenarios", type=Path, default=sumo_pack())
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--only", default=",".join(VARIANTS), help="names of variants (default: all)")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    task = load("motion_forecast")
    rows = []
    for seed in map(int, given.seeds.split(",")):
        data, first = _data(task, given.scenarios, seed=seed), export(task, seed=seed)
        for name in given.only.split(","):
            rows.append(
                {"variant": name, "seed": seed, **run(task, data, first, VARIANTS[name], given.rounds)}
            )
            if not given.json:
                print(_line(rows[-1]), flush=True)
    if given.json:
        print(json.dumps(rows, indent=1))


def run(task: Task, data: Data, first: Exported, variant: Variant, rounds: int) -> dict[str, Any]:
    """Run the rounds; ADE by region after each, and the bytes of both ways."""
    x, error = first.initial, np.zeros_like(first.initial)
    residuals = {vehicle: np.zeros_like(x) for vehicle in data.vehicles}
    start, up_bytes, down_bytes = time.perf_counter(), 0, 0
    history = [_ade(task, data.tests, patch(first.onnx, first.layout, x))]
    for number in range(rounds):
        updates: dict[str, list[tuple[int, Floats]]] = {}
        for turn, (vehicle, (region, samples)) in enumerate(data.vehicles.items()):
            trained = fine_tune(task, x, samples, variant.training, seed=1000 * number + turn)
            payload, residuals[vehicle] = encode_with_feedback(
                trained.delta, residuals[vehicle], variant.up, steps=trained.steps, examples=trained.examples
            )
            up_bytes += len(payload)
            updates.setdefault(region, []).append(
                (trained.examples, decode(payload, size=x.size).delta.dense())
            )
        step = variant.server_learning_rate * _merge(list(updates.values()))
        payload, error = encode_with_feedback(
            step.astype(np.float32), error, variant.down, steps=0, examples=0
        )
        down_bytes += len(payload)
        x = x + decode(payload, size=x.size).delta.dense()
        history.append(_ade(task, data.tests, patch(first.onnx, first.layout, x)))
    dense = 4 * x.size * rounds
    return {
        "ade": {region: [round(each[region], 3) for each in history] for region in data.tests},
        "gain_percent": {r: round(100 * (1 - history[-1][r] / history[0][r]), 1) for r in data.tests},
        "worst_step_percent": round(_worst_step(history), 1),
        "ratio_up": round(dense * len(data.vehicles) / up_bytes, 1),
        "ratio_down": round(dense / down_bytes, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _data(task: Task, folder: Path, *, seed: int) -> Data:
    split = partition(task.index(folder).drives, vehicles=VEHICLES, seed=seed)
    vehicles = {
        vehicle: (region, task.samples(folder, drives))
        for vehicle, (region, drives) in split.vehicles.items()
    }
    return Data(vehicles, {region: task.samples(folder, drives) for region, drives in split.test.items()})


def _merge(regions: Sequence[Sequence[tuple[int, Floats]]]) -> NDArray[np.float64]:
    """FedAvg by examples within each region, regions with equal weight."""
    means = [np.average([d for _, d in each], axis=0, weights=[n for n, _ in each]) for each in regions]
    merged: NDArray[np.float64] = np.mean(means, axis=0)
    return merged


def _ade(task: Task, tests: Mapping[str, Samples], model: bytes) -> dict[str, float]:
    session = scoring.new_session(model)
    sums = {region: scoring.score(session, task, samples)["ADE"] for region, samples in tests.items()}
    return {region: total / count for region, (total, count) in sums.items()}


def _worst_step(history: Sequence[Mapping[str, float]]) -> float:
    """The largest loss of a region from one round to the next, in percent: what a gate must tolerate."""
    return max(100 * (new[region] / old[region] - 1) for old, new in pairwise(history) for region in new)


def _line(row: Mapping[str, Any]) -> str:
    gains = ", ".join(f"{region} {gain:+.1f} %" for region, gain in row["gain_percent"].items())
    ratios = f"{row['ratio_up']:.0f}× up, {row['ratio_down']:.0f}× down"
    return f"{row['variant']} seed {row['seed']}: ADE gain {gains}; {ratios}; worst step {row['worst_step_percent']} %"


if __name__ == "__main__":
    main()
