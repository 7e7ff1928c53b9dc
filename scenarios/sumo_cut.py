"""From a recorded SUMO window to scenarios: who is the ego, what it sees, which tracks are judged.

May live here: pure numpy on the arrays that `sumo_run` writes; the random generator is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.records import Scenario

__all__ = ["FRAMES", "MANOEUVRES", "NOISE_M", "RATE_HZ", "SCENARIOS", "Drive", "Window", "cut"]

RATE_HZ: Final = 10.0
FRAMES: Final = 50
SCENARIOS: Final = 8
RANGE_M: Final = 100.0
KEEP_M: Final = 130.0
NOISE_M: Final = 0.03
MOST_TRACKS: Final = 56
MOST_AGENTS: Final = 4
WANTED_MOVING: Final = 21
MANOEUVRES: Final = {"turn": 3.0, "lane-change": 7.0, "stop": 2.5, "start": 2.0, "straight": 0.4}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """What SUMO did for `SCENARIOS` x `FRAMES` frames: cube f8[vehicles, frames, (x, y, speed, lane)], NaN = absent.

    x, y is the vehicle's centre in metres, speed in m/s, lane an index into `lanes` (SUMO lane ids).
    """

    ids: tuple[str, ...]
    cube: Floats
    lanes: tuple[str, ...]
    start_s: float


@dataclass(frozen=True)
class Drive:
    """The scenarios around one ego, in time order, and how many AGENT tracks do which manoeuvre."""

    name: str
    scenarios: tuple[Scenario, ...]
    manoeuvres: dict[str, int]


def cut(window: Window, *, region: str, name: str, rng: np.random.Generator) -> Drive:
    """Choose an ego at random among the busy ones and cut its time into scenarios of 5 s.

    A track belongs to a scenario when it comes within 100 m of the ego (nearest 56), is observed while within
    130 m, and carries Gaussian noise of 0.03 m. Up to four tracks are AGENT: seen in all frames, moving,
    interesting ones preferred.
    """
    ego = _choose_ego(window.cube, rng)
    scenarios, counts = [], dict.fromkeys(MANOEUVRES, 0)
    for number in range(SCENARIOS):
        cube = window.cube[:, number * FRAMES : (number + 1) * FRAMES]
        rows, xy = _seen(cube, ego, rng)
        agents = _choose_agents(cube[rows], xy, ego=rows.index(ego), lanes=window.lanes, rng=rng)
        kinds = ["AV" if row == ego else "OTHERS" for row in rows]
        for place, manoeuvre in agents.items():
            kinds[place] = "AGENT"
            counts[manoeuvre] += 1
        scenarios.append(
            Scenario(
                scenario_id=f"{name}-{number:02d}",
                region=region,
                drive=name,
                rate_hz=RATE_HZ,
                t0_s=round(window.start_s + number * FRAMES / RATE_HZ, 1),
                track_ids=tuple(window.ids[row] for row in rows),
                kinds=tuple(kinds),
                xy=xy,
            )
        )
    return Drive(name, tuple(scenarios), counts)


def _choose_ego(cube: Floats, rng: np.random.Generator) -> int:
    """A vehicle that is there all the time, drives, and mostly has enough moving neighbours."""
    steps = np.linalg.norm(np.diff(cube[..., :2], axis=1), axis=-1)
    whole = np.flatnonzero(~np.isnan(cube[..., 0]).any(axis=1) & (np.nan_to_num(steps).sum(axis=1) > 60.0))
    moving = np.array([[_moving_near(cube, int(ego), n) for n in range(SCENARIOS)] for ego in whole])
    busy = (moving >= WANTED_MOVING).sum(axis=1)
    good = whole[busy >= min(7, busy.max())]
    return int(rng.choice(good))


def _moving_near(cube: Floats, ego: int, number: int) -> int:
    part = cube[:, number * FRAMES : (number + 1) * FRAMES : 7, :2]
    gap = np.linalg.norm(part - part[ego], axis=-1)
    near = np.nan_to_num(gap, nan=np.inf).min(axis=1) < RANGE_M
    travelled = np.nansum(np.linalg.norm(np.diff(part, axis=1), axis=-1), axis=1)
    return int((near & (travelled > 2.0)).sum()) - 1


def _seen(cube: Floats, ego: int, rng: np.random.Generator) -> tuple[list[int], Floats]:
    """Rows of the tracks around the ego, and what a tracker would report of them."""
    gap = np.nan_to_num(np.linalg.norm(cube[..., :2] - cube[ego, :, :2], axis=-1), nan=np.inf)
    step = np.nan_to_num(np.linalg.norm(np.diff(cube[..., :2], axis=1), axis=-1))
    nearest = gap.min(axis=1)
    usable = (nearest < RANGE_M) & (step.max(axis=1) < 6.0) & ((gap < KEEP_M).sum(axis=1) >= 5)
    order = [int(row) for row in np.argsort(nearest, kind="stable") if usable[row]]
    rows = sorted(order[:MOST_TRACKS])
    xy = cube[rows][..., :2] + rng.normal(0.0, NOISE_M, (len(rows), cube.shape[1], 2))
    for place, row in enumerate(rows):
        inside = np.flatnonzero(gap[row] < KEEP_M)
        xy[place, : inside[0]] = np.nan
        xy[place, inside[-1] + 1 :] = np.nan
    return rows, np.ascontiguousarray(xy)


def _choose_agents(
    cube: Floats, xy: Floats, *, ego: int, lanes: tuple[str, ...], rng: np.random.Generator
) -> dict[int, str]:
    """Places of the judged tracks, never the ego, and what each of them does."""
    whole = ~np.isnan(xy[..., 0]).any(axis=1)
    places, names = [], []
    for place in np.flatnonzero(whole):
        track = cube[place]
        moved = np.linalg.norm(track[-1, :2] - track[0, :2])
        history = np.linalg.norm(track[19, :2] - track[0, :2])
        if place != ego and moved > 4.0 and history > 0.5:
            places.append(int(place))
            names.append(_manoeuvre(track, lanes))
    if not places:
        return {}
    weights = np.array([MANOEUVRES[name] for name in names])
    count = min(MOST_AGENTS, len(places))
    chosen = rng.choice(len(places), size=count, replace=False, p=weights / weights.sum())
    return {places[i]: names[i] for i in sorted(chosen)}


def _manoeuvre(track: Floats, lanes: tuple[str, ...]) -> str:
    """What a fully observed vehicle does in its 5 s, by SUMO's own lanes and speeds."""
    speed = track[:, 2]
    on = [lanes[int(lane)].rsplit("_", 1) for lane in track[:, 3]]
    ways = np.diff(track[:, :2], axis=0)[speed[1:] > 0.8]
    if len(ways) > 5:
        headings = np.unwrap(np.arctan2(ways[:, 1], ways[:, 0]))
        if np.ptp(headings) > np.deg2rad(30.0):
            return "turn"
    if any(a[0] == b[0] and a[1] != b[1] for a, b in pairwise(on)):
        return "lane-change"
    if speed[-1] - speed[0] < -4.0 or (speed[0] > 2.0 and speed[-1] < 0.5):
        return "stop"
    if speed[-1] - speed[0] > 4.0 or (speed[0] < 0.5 and speed[-1] > 2.0):
        return "start"
    return "straight"
