"""How tracks of `motion_forecast` are cut: by manoeuvre, speed, density of traffic and type of agent. Plain functions.

A manoeuvre is told by geometry alone, without a map: what the track does in the 3 s that are to be predicted, seen from
its own frame (origin at its last known point, x axis along its heading).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Samples, Slicer

__all__ = ["NEAR_M", "OF_ALL", "SLICES", "agent_type", "density", "manoeuvre", "speed", "standing"]

RATE_HZ: Final = 10.0
HALF_S: Final = 5
"""Frames over which a speed is taken."""
STANDS_MPS: Final = 1.0
MOVES_MPS: Final = 2.5
STILL_M: Final = 1.0
TURN_RAD: Final = np.radians(25.0)
PARALLEL_RAD: Final = np.radians(12.0)
LANE_M: Final = (1.5, 6.0)
"""Sideways metres of a lane change: from about half a lane to less than two."""
LANE_MPS: Final = 4.0
NEAR_M: Final = 30.0
SPEEDS_MPS: Final = (1, 5, 10, 15)
SPEED_NAMES: Final = ("00-01", "01-05", "05-10", "10-15", "15+")
NEIGHBOURS: Final = (1, 5, 10, 20)
DENSITIES: Final = ("00", "01-04", "05-09", "10-19", "20+")


def manoeuvre(samples: Samples) -> NDArray[np.str_]:
    """Name what each track does: the first of standing, stop, start, turn-left, turn-right, lane-change; else straight.

    standing: less than 1 m in all 5 s. stop: from 2.5 m/s or more to below 1 m/s; start: the other way round. turn: the
    direction of its last second is 25° or more from its heading before. lane-change: faster than 4 m/s, ends 1.5 to 6 m
    beside the line of its heading and within 12° of it.
    """
    past, future = np.asarray(samples.inputs, np.float64), np.asarray(samples.targets, np.float64)
    whole = np.concatenate([past, future], axis=1)
    span = np.hypot(*np.moveaxis(whole - whole[:, :1], -1, 0)).max(axis=1)
    before, after = _speed(past), _speed(future)
    way = future[:, -1] - future[:, -11]
    turned = np.where(np.hypot(*way.T) >= STILL_M, np.arctan2(way[:, 1], way[:, 0]), 0.0)
    aside = np.abs(future[:, -1, 1])
    changes = (
        (aside >= LANE_M[0]) & (aside <= LANE_M[1]) & (np.abs(turned) < PARALLEL_RAD) & (before > LANE_MPS)
    )
    rules = [
        (span < STILL_M, "standing"),
        ((before >= MOVES_MPS) & (after < STANDS_MPS), "stop"),
        ((before < STANDS_MPS) & (after >= MOVES_MPS), "start"),
        (turned >= TURN_RAD, "turn-left"),
        (turned <= -TURN_RAD, "turn-right"),
        (changes, "lane-change"),
    ]
    return np.asarray(np.select([rule for rule, _ in rules], [name for _, name in rules], "straight"))


def speed(samples: Samples) -> NDArray[np.str_]:
    """Name the band of the last known speed: 00-01, 01-05, 05-10, 10-15 or 15+ m/s."""
    metres_per_s = _speed(np.asarray(samples.inputs, np.float64))
    return np.array(SPEED_NAMES)[np.searchsorted(SPEEDS_MPS, metres_per_s, side="right")]


def density(samples: Samples) -> NDArray[np.str_]:
    """Name the band of the number of other tracks within 30 m; none where it is not told."""
    neighbours = samples.traits.get("neighbours")
    if neighbours is None:
        return np.full(len(samples), "")
    return np.array(DENSITIES)[np.searchsorted(NEIGHBOURS, np.asarray(neighbours), side="right")]


def agent_type(samples: Samples) -> NDArray[np.str_]:
    """Name what moves: vehicle, truck, bus, motorcycle, cyclist, pedestrian, static, unknown."""
    types = samples.traits.get("type")
    return np.full(len(samples), "") if types is None else np.asarray(types, dtype=np.str_)


def standing(samples: Samples) -> NDArray[np.str_]:
    """Name what moves less than 1 m in all 5 s by its type: cars that are parked or wait, whoever is judged."""
    types = samples.traits.get("type")
    names = np.full(len(samples), "unknown") if types is None else np.asarray(types, dtype=np.str_)
    return np.where(manoeuvre(samples) == "standing", np.where(names == "", "unknown", names), "")


SLICES: Final[Mapping[str, Slicer]] = {
    "manoeuvre": manoeuvre,
    "speed_mps": speed,
    "density": density,
    "type": agent_type,
    "standing": standing,
}
OF_ALL: Final = ("standing",)
"""Dimensions that look at all tracks: recordings judge those that drive, but a model must leave the others in place."""


def _speed(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """m/s over the last half second of float64[N, T, 2]."""
    metres = np.hypot(*np.moveaxis(points[:, -1] - points[:, -1 - HALF_S], -1, 0))
    return np.asarray(metres * (RATE_HZ / HALF_S))
