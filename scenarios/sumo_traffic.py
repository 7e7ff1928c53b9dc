"""Who drives in the SUMO pack: regions, driver and vehicle types, trips.

May live here: the parameters of each region and the text of a SUMO route file made from them. Pure: the random
generator is an argument, libsumo is not imported.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import numpy as np

__all__ = ["REGIONS", "Region", "gates", "routes"]


@dataclass(frozen=True)
class Region:
    """Traffic of one region: `flow_per_s` new vehicles per second over all entries, run by run in turn."""

    name: str
    flow_per_s: tuple[float, ...]
    warm_up_s: float
    mix: tuple[tuple[str, float], ...]
    speed_factor: tuple[float, float]


_TOWN: Final = (("car", 0.77), ("van", 0.11), ("truck", 0.04), ("bus", 0.03), ("motorcycle", 0.05))
_ROAD: Final = (("car", 0.76), ("van", 0.11), ("truck", 0.1), ("motorcycle", 0.03))

REGIONS: Final = {
    region.name: region
    for region in (
        Region("motorway", (1.8, 1.6, 2.05), 170.0, _ROAD, (1.08, 0.14)),
        Region("grid-city", (2.4, 2.1, 2.8), 200.0, _TOWN, (0.97, 0.12)),
        Region("roundabouts-rural", (1.2, 1.05, 1.3), 200.0, _TOWN, (0.95, 0.12)),
        Region("left-hand", (1.5, 1.3, 1.65), 180.0, _TOWN, (0.98, 0.12)),
    )
}

# Per class: length m, width m, top speed m/s, acceleration and deceleration m/s² (mean), headway s (mean).
_CLASSES: Final = {
    "car": ("passenger", 4.6, 1.82, 47.0, 2.4, 3.2, 1.25),
    "van": ("delivery", 5.9, 2.05, 38.0, 2.0, 3.0, 1.35),
    "truck": ("truck", 12.0, 2.5, 25.0, 1.1, 2.5, 1.7),
    "bus": ("bus", 12.0, 2.55, 24.0, 1.2, 2.4, 1.5),
    "motorcycle": ("motorcycle", 2.2, 0.9, 50.0, 3.4, 3.8, 1.1),
}
_VARIANTS: Final = 20


def gates(net: Path) -> dict[str, dict[str, float]]:
    """Per edge by which vehicles enter a `.net.xml.gz`: the edges by which they may leave, and their weights.

    A weight is (lanes x speed)^0.7 of entry times that of exit, so that small roads get more than their share;
    places that cannot be reached, and turning back, are left out.
    """
    root = ET.fromstring(gzip.decompress(net.read_bytes()))  # noqa: S314  a file of the pack
    ends = {node.get("id") for node in root.iter("junction") if node.get("type") == "dead_end"}
    entries, exits = {}, {}
    for edge in root.iter("edge"):
        lanes = edge.findall("lane")
        weight = (len(lanes) * float(lanes[0].get("speed", "0"))) ** 0.7
        if edge.get("from") in ends:
            entries[str(edge.get("id"))] = weight
        if edge.get("to") in ends:
            exits[str(edge.get("id"))] = weight
    after: dict[str, set[str]] = {}
    for link in root.iter("connection"):
        after.setdefault(str(link.get("from")), set()).add(str(link.get("to")))
    found = {}
    for start, weight in entries.items():
        reached = _reachable(start, after)
        found[start] = {
            end: weight * exits[end]
            for end in exits
            if end in reached and end.lstrip("-") != start.lstrip("-")
        }
    return found


def _reachable(start: str, after: dict[str, set[str]]) -> set[str]:
    reached, edge_of_search = {start}, [start]
    while edge_of_search:
        new = after.get(edge_of_search.pop(), set()) - reached
        reached |= new
        edge_of_search += new
    return reached


def routes(region: Region, net: Path, *, run: int, until_s: float, rng: np.random.Generator) -> str:
    """Text of a SUMO route file: drivers of many minds, and trips that arrive as a Poisson process."""
    trips = [(start, end, weight) for start, ends in gates(net).items() for end, weight in ends.items()]
    chance = np.array([weight for *_, weight in trips])
    kinds = [kind for kind, _ in region.mix]
    shares = np.array([share for _, share in region.mix])
    lines = ["<routes>", *(_driver(region, kind, i, rng) for kind in kinds for i in range(_VARIANTS))]
    flow = region.flow_per_s[run % len(region.flow_per_s)]
    time, number = rng.exponential(1.0 / flow), 0
    while time < until_s:
        start, end, _ = trips[rng.choice(len(trips), p=chance / chance.sum())]
        kind = f"{kinds[rng.choice(len(kinds), p=shares / shares.sum())]}-{rng.integers(_VARIANTS)}"
        lines.append(
            f'<trip id="v{number:04d}" type="{kind}" depart="{time:.1f}" from="{start}" to="{end}" '
            'departLane="best" departSpeed="avg" departPos="base"/>'
        )
        number += 1
        time += rng.exponential(1.0 / flow)
    return "\n".join([*lines, "</routes>\n"])


def _driver(region: Region, kind: str, i: int, rng: np.random.Generator) -> str:
    vclass, length, width, top, accel, decel, tau = _CLASSES[kind]
    mean, spread = region.speed_factor
    values = {
        "id": f"{kind}-{i}",
        "vClass": vclass,
        "length": f"{length * rng.uniform(0.9, 1.1):.2f}",
        "width": f"{width:.2f}",
        "maxSpeed": f"{top * rng.uniform(0.92, 1.08):.2f}",
        "accel": f"{accel * rng.uniform(0.7, 1.35):.2f}",
        "decel": f"{decel * rng.uniform(0.8, 1.3):.2f}",
        "emergencyDecel": "8.0",
        "tau": f"{tau * rng.uniform(0.75, 1.4):.2f}",
        "minGap": f"{rng.uniform(1.5, 3.0):.2f}",
        "speedFactor": f"{np.clip(rng.normal(mean, spread), 0.7, 1.35):.3f}",
        "speedDev": "0.03",
        "lcSpeedGain": f"{rng.uniform(1.0, 5.0):.2f}",
        "lcKeepRight": f"{rng.uniform(0.2, 1.2):.2f}",
        "lcStrategic": f"{rng.uniform(0.6, 2.0):.2f}",
        "lcCooperative": f"{rng.uniform(0.5, 1.0):.2f}",
        "lcAssertive": f"{rng.uniform(1.0, 1.8):.2f}",
        "lcSublane": "0.8",
        "maxSpeedLat": f"{rng.uniform(0.9, 1.5):.2f}",
        "latAlignment": "center",
        "jmTimegapMinor": f"{rng.uniform(0.5, 1.1):.2f}",
        "impatience": f"{rng.uniform(0.0, 0.5):.2f}",
    }
    if i % 2:
        values["carFollowModel"] = "IDM"
    else:
        values |= {"carFollowModel": "Krauss", "sigma": f"{rng.uniform(0.2, 0.6):.2f}", "sigmaStep": "1.0"}
    return "<vType " + " ".join(f'{key}="{value}"' for key, value in values.items()) + "/>"
