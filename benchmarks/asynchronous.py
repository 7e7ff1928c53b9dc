"""Time to a target loss, synchronous and buffered-asynchronous, when the slowest vehicle takes ten times the fastest.

``python benchmarks/asynchronous.py --json``: the real server and agents in virtual time; a small convex task with real
gradient descent (linear regression, 27 parameters, 20 vehicles, each with 64 noisy samples of its own), training times
log-uniform from 10 to 100 s. The target is the validation loss (mean distance) that the synchronous run reaches after
``--rounds`` rounds, each of all vehicles. Keys, over all ``--repeats`` seeds: ``sync_s`` and ``buffered_s`` (virtual
seconds to the target), ``ratio`` (of the sums; must be at most 0.6), ``staleness`` (mean, in versions, of the folded
updates), ``updates`` that each took.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import structlog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from server_world import INPUTS, OUTPUTS, Floats, answer
from sim_fleet import VirtualFleet, VirtualTrainers
from sim_world import Template

from fedfleet.fleet_server import store_models

VEHICLES, SAMPLES, EPOCHS, RATE = 20, 64, 2, 0.02
FASTEST_S, SPREAD, STEP_S, MOST_S = 10.0, 10.0, 1.0, 20_000.0
REGIONS = {"north": tuple(f"v-{n:02d}" for n in range(VEHICLES))}
SYNC: dict[str, Any] = {
    "deadline_s": FASTEST_S * SPREAD * 1.5,
    "lease_s": FASTEST_S * SPREAD * 1.2,
    "quorum": 2,
}
BUFFERED: dict[str, Any] = {**SYNC, "mode": "buffered", "buffer": 5, "max_staleness": 20}


def training(repeat: int) -> tuple[Callable[[str, Floats, int], tuple[Floats, int]], Callable[[str], float]]:
    """Return what a vehicle's training finds, and how long it takes."""
    chance = np.random.default_rng(repeat)
    data = {}
    for vehicle in REGIONS["north"]:
        inputs = chance.normal(chance.normal(0, 0.5, INPUTS), 1.0, (SAMPLES, INPUTS))
        data[vehicle] = inputs, answer(inputs) + chance.normal(0, 0.3, (SAMPLES, OUTPUTS))
    ranks = chance.permutation(VEHICLES) / (VEHICLES - 1)
    takes_s = {
        vehicle: FASTEST_S * SPREAD**rank for vehicle, rank in zip(REGIONS["north"], ranks, strict=True)
    }

    def train(vehicle: str, base: Floats, seed: int) -> tuple[Floats, int]:
        (inputs, targets), x = data[vehicle], base.astype(np.float64)
        order = np.random.default_rng(seed)
        for _ in range(EPOCHS):
            for batch in np.array_split(order.permutation(SAMPLES), 4):
                weights, bias = x[: INPUTS * OUTPUTS].reshape(INPUTS, OUTPUTS), x[INPUTS * OUTPUTS :]
                off = inputs[batch] @ weights + bias - targets[batch]
                slope = np.concatenate([(inputs[batch].T @ off).ravel(), off.sum(axis=0)]) * 2 / len(batch)
                x = x - RATE * slope
        return (x - base).astype(np.float32), SAMPLES

    return train, lambda vehicle: takes_s[vehicle]


def loss(fleet: VirtualFleet) -> float:
    """Return the validation loss of the newest version."""
    with fleet.parts.store.read() as connection:
        total, count = store_models.scores(connection, fleet.parts.coordinator.model.version)["north"][
            "distance"
        ]
    return total / count


def staleness(fleet: VirtualFleet) -> tuple[float, int]:
    """Return by how many versions folded updates were behind on average, and how many there are."""
    query = (
        "select s.version - 1 - u.base_version from member m "
        "join \"update\" u on u.id = m.update_id and u.fate = 'folded' join model s on s.round = m.round"
    )
    with fleet.parts.store.read() as connection:
        found = connection.exec_driver_sql(query).scalars().all()
    return float(np.mean(found)), len(found)


def run(
    folder: Path,
    template: Template,
    repeat: int,
    *,
    rounds: dict[str, Any],
    is_done: Callable[[VirtualFleet], bool],
) -> tuple[float, float, float, int]:
    """Run until it is done; return virtual seconds, loss, mean staleness and the number of folded updates."""
    told = {"total": 0, "start_wait_s": 5.0, **rounds}
    codec = {"index": "dense", "value": "float32", "density": 1.0}
    changes: dict[str, Any] = {"codec": codec, "downlink": {"value": "float32"}, "gate": {"tolerance": 1.0}}
    with VirtualFleet(folder, template, VirtualTrainers(*training(repeat)), rounds=told, **changes) as fleet:
        while not is_done(fleet):
            fleet.step(STEP_S)
            if fleet.now_s > MOST_S:
                raise RuntimeError(f"no end after {MOST_S} virtual seconds, loss {loss(fleet):.4f}")
        return fleet.now_s, loss(fleet), *staleness(fleet)


def main() -> int:
    """Print the figures; exit code 1 when the ratio is above 0.6."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found = []
    with tempfile.TemporaryDirectory() as name:
        template = Template(Path(name) / "template", REGIONS)
        for repeat in range(told.repeats):
            folder = Path(name) / str(repeat)
            sync_s, target, _, needed = run(
                folder / "sync",
                template,
                repeat,
                rounds=SYNC,
                is_done=lambda fleet: fleet.parts.coordinator.model.version >= told.rounds,
            )
            buffered_s, _, behind, took = run(
                folder / "buffered",
                template,
                repeat,
                rounds=BUFFERED,
                is_done=lambda fleet, target=target: loss(fleet) <= target,  # type: ignore[misc]
            )
            sys.stderr.write(f"asynchronous: loss {target:.4f} after {sync_s:.0f} s and {buffered_s:.0f} s\n")
            one = {"seed": repeat, "target": target, "sync_s": sync_s, "buffered_s": buffered_s}
            found.append({**one, "staleness": round(behind, 2), "updates": [needed, took]})
    sums = [sum(each[key] for each in found) for key in ("sync_s", "buffered_s")]
    result = {"task": "linear regression, convex", "spread": SPREAD, "sync_s": sums[0], "buffered_s": sums[1]}
    result |= {"ratio": round(sums[1] / sums[0], 3), "runs": found}
    print(json.dumps(result, indent=None if told.json else 2))
    return 0 if sums[1] <= 0.6 * sums[0] else 1


if __name__ == "__main__":
    sys.exit(main())
