"""Rounds with vehicles that never answer: the real server and 200 real agents in virtual time.

``python benchmarks/stragglers.py --json``: 200 vehicles in two regions, 40 % silent (they take a lease and never
send), 10 % late (their training ends after the deadline); each late policy in turn. Keys, by policy: ``rounds`` closed,
``worst_overrun_s`` (latest close after a deadline; must be at most 1), ``quorum_met`` (every round of every region
published), ``fates``. Virtual seconds; the trainer is a stand-in.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import structlog

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from server_world import SIZE, TRUTH, Floats
from sim_fleet import VirtualFleet, VirtualTrainers
from sim_world import Template

from fedfleet.fleet_server import store_rounds

DEADLINE_S, LEASE_S, STEP_S, ROUNDS = 60.0, 30.0, 0.5, 5
POLICIES = ("return", "carry", "staleness-weighted")


def names(vehicles: int) -> dict[str, tuple[str, ...]]:
    """Return the vehicles of two regions."""
    return {region: tuple(f"{region}-{n:03d}" for n in range(vehicles // 2)) for region in ("north", "south")}


def duration_s(vehicle: str) -> float | None:
    """Return how long a vehicle trains: of ten, four never end, one is late, five take 3 to 35 s."""
    number = int(vehicle.rpartition("-")[2])
    if number % 10 < 4:
        return None
    return DEADLINE_S * 1.3 if number % 10 == 4 else 3.0 + 32.0 * (number * 7 % 50) / 50


def train(_vehicle: str, base: Floats, seed: int) -> tuple[Floats, int]:
    """Return a step towards the truth, with noise."""
    noise = np.random.default_rng(seed).normal(0, 0.05, SIZE)
    return (0.15 * (TRUTH - base) + noise).astype(np.float32), 10


def run(folder: Path, template: Template, policy: str, quorum: int) -> dict[str, Any]:
    """Run all rounds under one late policy."""
    rounds = {
        "total": ROUNDS,
        "quorum": quorum,
        "deadline_s": DEADLINE_S,
        "lease_s": LEASE_S,
        "start_wait_s": 5.0,
        "late": policy,
    }
    with VirtualFleet(folder, template, VirtualTrainers(train, duration_s), rounds=rounds) as fleet:
        while fleet.now_s < ROUNDS * (DEADLINE_S + 10):
            fleet.step(STEP_S)
        with fleet.parts.store.read() as connection:
            found = store_rounds.rounds(connection)
            fates = Counter(
                f"{fate} {reason}".strip()
                for fate, reason in connection.exec_driver_sql('select fate, reason from "update"').all()
            )
    over = [(one.closed_at_s or float("inf")) - one.plan.deadline_s for one in found]
    return {
        "rounds": len(found),
        "worst_overrun_s": round(max(over), 3),
        "quorum_met": all(one.state == "published" for one in found),
        "fates": dict(sorted(fates.items())),
    }


def main() -> int:
    """Print the figures; exit code 1 when a round ended late or below its quorum."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vehicles", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    told = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found: dict[str, Any] = {"vehicles": told.vehicles, "silent": 0.4, "late": 0.1, "deadline_s": DEADLINE_S}
    with tempfile.TemporaryDirectory() as folder:
        template = Template(Path(folder) / "template", names(told.vehicles))
        for policy in POLICIES:
            sys.stderr.write(f"stragglers: late policy {policy}\n")
            found[policy] = run(Path(folder) / policy, template, policy, told.vehicles // 5)
    print(json.dumps(found, indent=None if told.json else 2))
    good = all(found[policy]["worst_overrun_s"] <= 1 and found[policy]["quorum_met"] for policy in POLICIES)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
