"""Which Argoverse 1 scenarios were one drive, and in which half of its city: the rule for folders without an index.

The publisher names neither drive nor car. Two scenarios of a city are of one drive when their first frames are less
than 30 s apart and the test car is no farther from one place to the other than it can drive in that time (20 m/s and
10 m for noise), directly or through others in between. A city is cut at the median x of the test car's first
positions; a drive counts whole to the side where most of its scenarios begin, to the east when they are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["APART_M", "APART_S", "SPEED_MPS", "is_west", "same_drive"]

APART_S: Final = 30.0
SPEED_MPS: Final = 20.0
APART_M: Final = 10.0


def same_drive(t0_s: NDArray[np.float64], xy: NDArray[np.float64]) -> NDArray[np.int64]:
    """For float64[N] seconds and float64[N, 2] metres the drive of each, int64[N]: the place of its earliest one."""
    order = np.argsort(t0_s, kind="stable")
    times, places = t0_s[order], xy[order]
    parent = list(range(len(order)))
    ends = np.searchsorted(times, times + APART_S, side="left")
    for i, end in enumerate(ends):
        ahead = slice(i + 1, int(end))
        metres = np.hypot(*(places[ahead] - places[i]).T)
        near = metres <= APART_M + SPEED_MPS * (times[ahead] - times[i])
        for j in np.flatnonzero(near) + i + 1:
            one, other = sorted((_root(parent, i), _root(parent, int(j))))
            parent[other] = one
    drive = np.empty(len(order), dtype=np.int64)
    drive[order] = order[[_root(parent, i) for i in range(len(order))]]
    return drive


def is_west(x_m: NDArray[np.float64], drive: Sequence[int] | NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each of N scenarios of a city, whether its drive counts to the west; `drive` as `same_drive` gives it."""
    west = x_m < np.median(x_m)
    _, at = np.unique(np.asarray(drive), return_inverse=True)
    return np.asarray((2 * np.bincount(at, weights=west) > np.bincount(at))[at])


def _root(parent: list[int], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i
