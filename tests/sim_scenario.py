"""What goes wrong in one simulated run: drawn from its seed, so that the number tells everything."""

import random
from dataclasses import dataclass
from typing import Any

from fedfleet.link.memory import Faults

REGIONS = {"north": ("n-0", "n-1"), "south": ("s-0",)}
VEHICLES = tuple(name for names in REGIONS.values() for name in names)
DEADLINE_S, LEASE_S = 20.0, 6.0


@dataclass(frozen=True)
class Driver:
    """One vehicle: how long a training takes, when it is away, how wrong its clock is, and its vices."""

    training_s: float
    away: tuple[tuple[float, float], ...]
    skew_s: float
    is_silent: bool
    is_bad: bool


@dataclass(frozen=True)
class Scenario:
    """One run: the server's settings, the broker's faults, the vehicles, and who is killed or jumps when.

    ``server_kills`` count the commits of the store after which (or, negative, just before which) the server dies,
    each from its last start; ``vehicle_kills`` count the words to the broker, by vehicle. ``jumps`` set a clock ("" is
    the server's) at a time by some seconds. ``losses`` are the times at which the broker loses all it has.
    """

    seed: int
    rounds: dict[str, Any]
    faults: Faults
    drivers: dict[str, Driver]
    server_kills: tuple[int, ...]
    vehicle_kills: dict[str, tuple[int, ...]]
    jumps: tuple[tuple[float, str, float], ...]
    losses: tuple[float, ...]


def draw(seed: int) -> Scenario:
    """Return the scenario of this seed."""
    chance = random.Random(f"scenario {seed}")
    return Scenario(
        seed=seed,
        rounds=_rounds(chance),
        faults=_faults(chance),
        drivers={name: _driver(chance) for name in VEHICLES},
        server_kills=tuple(
            chance.choice((1, -1)) * chance.randint(1, 30) for _ in range(chance.choice((0, 1, 1, 2, 4)))
        ),
        vehicle_kills={
            name: tuple(chance.randint(1, 25) for _ in range(chance.choice((0, 0, 0, 1, 3))))
            for name in VEHICLES
        },
        jumps=tuple(
            (
                chance.uniform(0, 45),
                chance.choice(("", *VEHICLES)),
                chance.choice((-1, 1)) * chance.uniform(1, 250),
            )
            for _ in range(chance.choice((0, 0, 0, 1, 2)))
        ),
        losses=tuple(chance.uniform(0, 45) for _ in range(chance.choice((0, 0, 0, 1)))),
    )


def _rounds(chance: random.Random) -> dict[str, Any]:
    mode = chance.choice(("sync", "sync", "buffered"))
    regions = chance.choice(("together", "together", "apart")) if mode == "sync" else "together"
    quorum = (
        1 if regions == "apart" else chance.choice((1, 2))
    )  # apart, a region with one vehicle would never open
    told: dict[str, Any] = {
        "total": chance.choice((1, 2, 2)) if mode == "sync" else 3,
        "quorum": quorum,
        "deadline_s": DEADLINE_S,
        "lease_s": LEASE_S,
        "start_wait_s": 4.0,
        "mode": mode,
        "max_staleness": chance.choice((0, 1, 2, 10)),
        "late": chance.choice(("return", "carry", "staleness-weighted")),
        "below_quorum": chance.choice(("skip", "carry")),
        "regions": regions,
        "buffer": 2,
        "interval_s": chance.choice((0.0, 0.0, 8.0)),
    }
    plain = (told["late"], told["below_quorum"], told["regions"]) == ("return", "skip", "together")
    if mode == "sync" and plain and chance.random() < 0.5:
        told |= {"contributors": {name: list(names) for name, names in REGIONS.items()}, "quorum": 1}
    return told


def _faults(chance: random.Random) -> Faults:
    if chance.random() < 0.3:
        return Faults()
    return Faults(
        drop=chance.choice((0.0, 0.05, 0.2)),
        duplicate=chance.choice((0.0, 0.1, 0.3)),
        reorder=chance.choice((0.0, 0.1, 0.5)),
        disconnect=chance.choice((0.0, 0.0, 0.02)),
    )


def _driver(chance: random.Random) -> Driver:
    kind = chance.choice(("fast", "fast", "fast", "slow", "late", "silent"))
    training_s = {"fast": 2.0, "slow": 8.0, "late": DEADLINE_S * 1.2, "silent": 1.0}[kind] * chance.uniform(
        0.5, 1.5
    )
    away = ()
    if chance.random() < 0.2:
        start_s = chance.uniform(0, 45)
        away = ((start_s, start_s + chance.uniform(1, 40)),)
    skew_s = chance.choice((0.0, 0.0, chance.uniform(-200, 200)))
    return Driver(training_s, away, skew_s, is_silent=kind == "silent", is_bad=chance.random() < 0.03)
