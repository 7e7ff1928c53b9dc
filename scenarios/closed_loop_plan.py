"""Which episodes there are: place, traffic, disturbances and seed of each, by number.

May live here: parameters of the two situations on the pack's motorway, and the order for the SUMO process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedfleet.scenarios.closed_loop_sumo import EGO
from fedfleet.scenarios.pack import sumo_pack
from fedfleet.scenarios.sumo_traffic import REGIONS, routes

__all__ = ["NET", "SITUATIONS", "WANTED_MS", "Plan", "order", "plan"]

NET: Final = sumo_pack() / "networks" / "motorway.net.xml.gz"
SITUATIONS: Final = ("gap", "merge")
DRIVEN_S: Final = {"gap": 30.0, "merge": 25.0}
WANTED_MS: Final = 33.3
HISTORY_S: Final = 2.0
WARM_UP_S: Final = (35.0, 60.0)
FLOW_PER_S: Final = (1.2, 2.2)
_EDGES: Final = 9
_EGO: Final = (
    f'<vType id="{EGO}" vClass="passenger" length="4.6" width="1.82" maxSpeed="36" accel="2.5" decel="4.5" '
    'emergencyDecel="9" sigma="0" tau="1.2" speedFactor="1" speedDev="0" maxSpeedLat="1.0" latAlignment="center"/>'
)


@dataclass(frozen=True)
class Plan:
    """One episode: situation, carriageway, seed, traffic (vehicles per second), start, what the leader will do."""

    situation: str
    number: int
    seed: int
    way: str
    flow_per_s: float
    start_s: float
    events: tuple[dict[str, float], ...]

    @property
    def driven_s(self) -> float:
        """How long the policy drives."""
        return DRIVEN_S[self.situation]


def plan(situation: str, number: int, *, seed: int) -> Plan:
    """Draw an episode; the same for the same arguments, whatever other episodes are asked for."""
    place = SITUATIONS.index(situation)
    rng = np.random.default_rng([seed, place, number])
    events = _events(rng) if situation == "gap" else ()
    return Plan(
        situation,
        number,
        int(np.random.SeedSequence([seed, place, number]).generate_state(1)[0] % 2**31),
        str(rng.choice(["e", "w"])),
        round(float(rng.uniform(*FLOW_PER_S)), 3),
        round(float(rng.uniform(*WARM_UP_S)), 1),
        events,
    )


def _events(rng: np.random.Generator) -> tuple[dict[str, float], ...]:
    """Once the vehicle that is ahead at the handover brakes with 2 to 6 m/s², to 0 to 60 % of its speed."""
    return (
        {
            "at_s": round(float(rng.uniform(4.0, 12.0)), 1),
            "to": round(float(rng.uniform(0.0, 0.6)), 3),
            "braking_ms2": round(float(rng.uniform(2.0, 6.0)), 2),
            "hold_s": round(float(rng.uniform(1.0, 4.0)), 1),
        },
    )


def order(what: Plan, folder: Path, *, times: int) -> dict[str, Any]:
    """Write the episode's traffic into `folder`; return the order for the SUMO process, to drive it so many times."""
    region = replace(
        REGIONS["motorway"], flow_per_s=(2.0 * what.flow_per_s,)
    )  # routes are for both carriageways
    rng = np.random.default_rng([what.seed, 1])
    text = routes(region, NET, run=0, until_s=what.start_s + 60.0, rng=rng)
    lines = [
        line for line in text.splitlines() if not line.startswith("<trip") or f'from="{what.way}' in line
    ]
    lines.insert(1, _EGO)
    file = folder / "traffic.rou.xml"
    file.write_text("\n".join(lines), encoding="utf-8")
    is_merge = what.situation == "merge"
    ramp, lane = f"{what.way}-ramp-1", 0 if is_merge else 1
    through = [f"{what.way}{edge}" for edge in range(_EDGES)]
    lanes = _lanes(what.way, lane)
    return {
        "net": str(NET),
        "routes": str(file),
        "seed": what.seed,
        "start_s": what.start_s,
        "history_s": HISTORY_S,
        "ego": {"type": EGO, "lane": lane, "edges": [ramp, *through[1:]] if is_merge else through},
        "reference": lanes,
        "own": [f"{ramp}_0", f"{what.way}1_0"] if is_merge else [],
        "handover": f"{what.way}1" if is_merge else "",
        "events": list(what.events),
        "times": times,
    }


def _lanes(way: str, lane: int) -> list[str]:
    """The lanes that continue lane `lane` of the first edge; edges 1, 3 and 5 have one more to the right."""
    return [f"{way}{edge}_{lane + edge % 2}" for edge in range(6)]
