"""The four road networks of the SUMO pack, built with SUMO's netconvert and netgenerate.

May live here: the roads of each region and the commands that turn them into `.net.xml.gz`. Not needed to
generate scenarios (the networks are kept in the pack); run it only to change a road:
`pip install eclipse-sumo` and `python -P -m fedfleet.scenarios.sumo_nets OUT_FOLDER`.
"""

from __future__ import annotations

import argparse
import gzip
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from fedfleet.scenarios.sumo_plan import COMMON, Plan, Points, beside, bowed, path, run_tool

__all__ = ["build"]


def build(out: Path) -> list[Path]:
    """Build all networks into folder `out`, one `<region>.net.xml.gz` each, with the same bytes each time."""
    out.mkdir(parents=True, exist_ok=True)
    makers = {
        "motorway": _motorway,
        "grid-city": _grid_city,
        "roundabouts-rural": _roundabouts_rural,
        "left-hand": _left_hand,
    }
    files = []
    for region, make in makers.items():
        plain = out / f"{region}.net.xml"
        make(plain)
        text = re.sub(r"<!--.*?-->\n*", "", plain.read_text(), flags=re.DOTALL)
        files.append(plain.with_name(plain.name + ".gz"))
        files[-1].write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
        plain.unlink()
    return files


# Motorway: two carriageways, each with pieces between 10 m marks; the number of lanes changes at ramps.
_BENDS: Final = [
    (500, 0.0),
    (900, 1 / 750),
    (500, 0.0),
    (800, -1 / 600),
    (500, 1 / 900),
    (900, -1 / 650),
    (700, 0.0),
]
_PIECES: Final = [  # end mark, lanes, what happens at the end: ramp in, ramp out, or the right lane ends
    (60, 3, "in"),
    (95, 4, "drop"),
    (150, 3, "in"),
    (200, 4, "out"),
    (258, 3, "in"),
    (292, 4, "drop"),
    (330, 3, "widen"),
    (360, 4, "out"),
    (480, 3, "end"),
]


def _motorway(out: Path) -> None:
    plan = Plan()
    centre = path(_BENDS)
    for way, line in (("e", beside(centre, -2.0)), ("w", beside(centre[::-1], -2.0))):
        _carriageway(plan, way, line)
    plan.convert(out)


def _carriageway(plan: Plan, way: str, line: Points) -> None:
    plan.node(f"{way}0", line[0])
    start, lanes_before, event = 0, 0, ""
    for i, (end, lanes, next_event) in enumerate(_PIECES):
        plan.node(f"{way}{i + 1}", line[end])
        plan.edge(
            f"{way}{i}",
            (f"{way}{i}", f"{way}{i + 1}"),
            line[start : end + 1],
            lanes=lanes,
            speed=33.3,
            rank=9,
        )
        if i:
            shift = lanes - lanes_before
            kept = {a: a + shift for a in range(lanes_before) if a + shift >= 0}
            plan.join(f"{way}{i - 1}", f"{way}{i}", kept | ({0: 0} if event == "widen" else {}))
        if event in {"in", "out"}:
            _ramp(plan, way, i, line=line, mark=start, lanes=lanes_before)
        start, lanes_before, event = end, lanes, next_event


def _ramp(plan: Plan, way: str, i: int, *, line: Points, mark: int, lanes: int) -> None:
    """A ramp that leaves to, or comes from, the right of the carriageway at node i."""
    joins = _PIECES[i - 1][2] == "in"
    width = 3.2 * (lanes if joins else lanes - 1)
    marks = np.arange(mark - 24, mark + 1) if joins else np.arange(mark, mark + 25)
    far = np.abs(marks - mark) / 24.0
    shape = beside(line[marks], -width - 85.0 * far**2.2)
    name, node = f"{way}-ramp-{i}", f"{way}-ramp-end-{i}"
    plan.node(node, shape[0] if joins else shape[-1])
    ends = (node, f"{way}{i}") if joins else (f"{way}{i}", node)
    plan.edge(name, ends, shape, lanes=1, speed=22.2, rank=5)
    plan.join(*((name, f"{way}{i}") if joins else (f"{way}{i - 1}", name)), {0: 0})


def _grid_city(out: Path) -> None:
    options = [
        "--grid",
        "--grid.x-number=6",
        "--grid.y-number=5",
        "--grid.x-length=120",
        "--grid.y-length=105",
    ]
    options += [
        "--grid.attach-length=130",
        "--default.lanenumber=2",
        "--default.speed=13.9",
        "--turn-lanes=1",
    ]
    options += ["--turn-lanes.length=35", "--perturb-x=norm(0,7)", "--perturb-y=norm(0,7)", "--seed=7"]
    options += [
        "--default-junction-type=traffic_light",
        "--tls.green.time=22",
        "--default.junctions.radius=7",
    ]
    run_tool(
        "netgenerate",
        [
            *options,
            *COMMON,
        ],
        out,
    )


# Roundabouts: centre (m), ring radius (m).
_RINGS: Final = {
    "a": (0, 0, 19),
    "b": (270, 60, 22),
    "c": (130, 290, 18),
    "d": (430, 310, 24),
    "e": (-170, 220, 17),
}
_ROADS: Final = [  # between rings, or to the fringe; sideways sweep in metres (one bow, two bows)
    ("a", "b", 0, 28),
    ("a", "c", 25, 14),
    ("b", "c", -22, 10),
    ("b", "d", 30, -18),
    ("c", "d", -24, 22),
    ("a", "e", 20, 16),
    ("c", "e", -26, 14),
]
_FRINGE: Final = {
    "a": (-90, -330),
    "b": (560, -120),
    "c": (60, 640),
    "d": (800, 420),
    "e": (-520, 240),
}


def _roundabouts_rural(out: Path) -> None:
    plan = Plan()
    centres = {name: np.array([x, y], dtype=float) for name, (x, y, _) in _RINGS.items()}
    arms: dict[str, list[tuple[float, str]]] = {name: [] for name in _RINGS}
    for a, b, *_ in _ROADS:
        arms[a].append((_bearing(centres[b] - centres[a]), f"{a}-{b}"))
        arms[b].append((_bearing(centres[a] - centres[b]), f"{b}-{a}"))
    for name, end in _FRINGE.items():
        arms[name].append((_bearing(np.array(end) - centres[name]), f"{name}-out"))
    gates: dict[str, Points] = {}
    for name, (_, _, radius) in _RINGS.items():
        gates |= _ring(plan, name, centre=centres[name], radius=float(radius), arms=sorted(arms[name]))
    for a, b, bow, swing in _ROADS:
        _country_road(plan, a, b, shape=bowed(gates[f"{a}-{b}"], gates[f"{b}-{a}"], bow, swing))
    for name, end in _FRINGE.items():
        plan.node(f"{name}-fringe", np.array(end, dtype=float))
        shape = bowed(gates[f"{name}-out"], np.array(end, dtype=float), 18, 22)
        _two_way(plan, f"{name}-out", (f"{name}-out", f"{name}-fringe"), shape)
    plan.convert(out)


def _bearing(way: Points) -> float:
    return math.atan2(way[1], way[0]) % (2 * math.pi)


def _on(centre: Points, radius: Points | float, angle: Points | float) -> Points:
    points: Points = centre + np.asarray(radius)[..., None] * np.stack(
        [np.cos(angle), np.sin(angle)], axis=-1
    )
    return points


def _ring(
    plan: Plan, name: str, *, centre: Points, radius: float, arms: list[tuple[float, str]]
) -> dict[str, Points]:
    """Draw a ring with an exit and an entry for each arm; return the gate (end of the road) of each arm."""
    gates, stops = {}, []
    spread = 9.0 / radius
    for angle, arm in arms:
        gates[arm] = _on(centre, radius + 38.0, angle)
        plan.node(arm, gates[arm])
        for side, turn in (("x", -spread), ("n", spread)):
            stops.append((angle + turn, f"{arm}-{side}"))
            plan.node(stops[-1][1], _on(centre, radius, angle + turn))
            middle = _on(
                centre, radius + np.array([6.0, 14.0, 24.0]), angle + turn * np.array([1.05, 0.72, 0.35])
            )
            shape = np.concatenate([_on(centre, radius, angle + turn)[None], middle, gates[arm][None]])
            ends = (f"{arm}-x", arm) if side == "x" else (arm, f"{arm}-n")
            flow = shape if side == "x" else shape[::-1]
            plan.edge(f"{arm}-{side}", ends, flow, lanes=1, speed=11.1, rank=2)
    stops.sort()
    for (start, before), (end, after) in zip(stops, [*stops[1:], stops[0]], strict=True):
        span = np.linspace(0.0, (end - start) % (2 * math.pi), 7)
        shape = _on(centre, radius, start + span)
        plan.edge(f"{name}-ring-{before}", (before, after), beside(shape, 1.6), lanes=1, speed=9.5, rank=8)
    return gates


def _two_way(plan: Plan, name: str, ends: tuple[str, str], shape: Points) -> None:
    plan.edge(name, ends, shape, lanes=1, speed=19.4, rank=4)
    plan.edge(f"-{name}", ends[::-1], shape[::-1], lanes=1, speed=19.4, rank=4)


def _country_road(plan: Plan, a: str, b: str, *, shape: Points) -> None:
    """A road between two rings, with a side road (priority junction) half way."""
    middle = len(shape) // 2
    junction, farm = f"{a}{b}-t", f"{a}{b}-farm"
    plan.node(junction, shape[middle], radius=6)
    ahead = shape[middle + 1] - shape[middle - 1]
    side = np.array([ahead[1], -ahead[0]]) / np.linalg.norm(ahead)
    plan.node(farm, shape[middle] + 75.0 * side)
    _two_way(plan, f"{a}-{b}-1", (f"{a}-{b}", junction), shape[: middle + 1])
    _two_way(plan, f"{a}-{b}-2", (junction, f"{b}-{a}"), shape[middle:])
    lane = bowed(shape[middle], shape[middle] + 75.0 * side, 0, 6)
    plan.edge(f"{a}{b}-farm", (junction, farm), lane, lanes=1, speed=13.9, rank=1)
    plan.edge(f"-{a}{b}-farm", (farm, junction), lane[::-1], lanes=1, speed=13.9, rank=1)


def _left_hand(out: Path) -> None:
    """An arterial with three lanes each way, a parallel street, and signalled cross streets; driven on the left."""
    plan = Plan()
    arterial = path(
        [(160, 0.0), (260, 1 / 320), (260, -1 / 280), (260, -1 / 420), (260, 1 / 300), (160, 0.0)]
    )
    marks = [0, 22, 39, 58, 75, 95, 114, len(arterial) - 1]
    for i, mark in enumerate(marks):
        inner = 0 < i < len(marks) - 1
        plan.node(
            f"m{i}", arterial[mark], kind="traffic_light" if inner else "priority", radius=9 if inner else 3
        )
        if inner:
            _cross_street(plan, i, at=mark, arterial=arterial)
    for i, (a, b) in enumerate(pairwise(marks)):
        _both(plan, f"m{i}-m{i + 1}", (f"m{i}", f"m{i + 1}"), arterial[a : b + 1], lanes=3, speed=16.7)
        if 0 < i < len(marks) - 2:
            back = beside(arterial[a : b + 1], 130.0)
            _both(plan, f"p{i}-p{i + 1}", (f"p{i}", f"p{i + 1}"), back, lanes=1, speed=11.1)
    plan.convert(out, "--lefthand=true", "--tls.default-type=actuated", "--tls.layout=opposites")


def _both(plan: Plan, name: str, ends: tuple[str, str], shape: Points, *, lanes: int, speed: float) -> None:
    plan.edge(name, ends, shape, lanes=lanes, speed=speed, rank=lanes)
    plan.edge(f"-{name}", ends[::-1], shape[::-1], lanes=lanes, speed=speed, rank=lanes)


def _cross_street(plan: Plan, i: int, *, at: int, arterial: Points) -> None:
    near, far, south = (beside(arterial, d)[at] for d in (130.0, 290.0, -190.0))
    plan.node(f"p{i}", near, radius=6)
    plan.node(f"n{i}", far)
    plan.node(f"s{i}", south)
    for name, a, b, pa, pb in (
        ("u", f"m{i}", f"p{i}", arterial[at], near),
        ("v", f"p{i}", f"n{i}", near, far),
    ):
        _both(plan, f"{name}{i}", (a, b), np.stack([pa, pb]), lanes=2 if name == "u" else 1, speed=13.9)
    _both(plan, f"w{i}", (f"m{i}", f"s{i}"), np.stack([arterial[at], south]), lanes=2, speed=13.9)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the road networks of the SUMO pack.")
    parser.add_argument("out", type=Path)
    for network in build(parser.parse_args().out):
        print(network)  # noqa: T201
