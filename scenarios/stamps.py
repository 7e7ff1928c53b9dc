"""The clock of messages: when each was made, where that clock was set, and which recordings follow each other.

Recorders stamp a message twice: its header tells when it was made (by a simulator: in the simulation's time, from 0
on), the container when it was written. numpy only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["BACK_S", "JOIN_S", "PAUSE_S", "Part", "follow", "natural", "stretches", "times", "trip_name"]

PAUSE_S: Final = 60.0
"""A longer step is the end of a trip, or a clock that was set: never some missing frames."""
BACK_S: Final = 1.0
"""Messages may overtake each other by less; a longer step back is a clock that was set."""
JOIN_S: Final = 1.0
"""A recording that begins so soon after the end of another of the same name is its next part."""
_SIMULATED_S: Final = 1e8
"""Wall clocks have been beyond this since 1973."""

Doubles = NDArray[np.float64]


def times(stamped_s: Doubles, written_s: Doubles) -> Doubles:
    """The time of each message, float64[N], in the clock of the headers where they tell one.

    `stamped_s` is NaN where a message has no header. A stamp of 0 is an empty header, unless it is the only one in the
    time of a simulation, which begins there. Messages without a stamp are placed between their neighbours as they were
    written; if none has one, the times are those of writing.
    """
    told = np.isfinite(stamped_s)
    zero = told & (stamped_s == 0.0)
    others = stamped_s[told & ~zero]
    if zero.any() and not (zero.sum() == 1 and len(others) and float(np.median(others)) < _SIMULATED_S):
        told &= ~zero
    if not told.any():
        return np.array(written_s)
    if told.all():
        return np.array(stamped_s)
    known, lacking = np.flatnonzero(told), np.flatnonzero(~told)
    found = np.array(stamped_s)
    after = np.searchsorted(known, lacking)
    left, right = known[np.maximum(after - 1, 0)], known[np.minimum(after, len(known) - 1)]
    span = written_s[right] - written_s[left]
    inside = (left != right) & (span > 0)
    share = np.where(inside, (written_s[lacking] - written_s[left]) / np.where(inside, span, 1.0), 0.0)
    between = stamped_s[left] + share * (stamped_s[right] - stamped_s[left])
    beside = stamped_s[left] + (written_s[lacking] - written_s[left])
    found[lacking] = np.where(inside, between, beside)
    return found


def stretches(times_s: Doubles, *, pause_s: float = PAUSE_S) -> list[tuple[int, int]]:
    """Half-open ranges of messages, in the order in which they came, within which the clock was not set.

    Cut where it steps by more than `pause_s`, or back by more than BACK_S.
    """
    steps = np.diff(times_s)
    cuts = (np.flatnonzero((steps > pause_s) | (steps < -BACK_S)) + 1).tolist()
    return [(start, end) for start, end in pairwise([0, *cuts, len(times_s)]) if end > start]


@dataclass(frozen=True)
class Part:
    """A recording that may be one part of a trip: its name and the times of its first and last message."""

    name: str
    first_s: float
    last_s: float


def follow(parts: Sequence[Part]) -> list[list[int]]:
    """Which recordings are one trip: their places in `parts`, the parts of each trip in the order of time.

    Parts have names that differ in numbers only (`run_0`, `run_1`), and each begins within JOIN_S after the one before
    it ended. A recorder splits so by size or time; what it says about it in `metadata.yaml` is lost with the power.
    """
    by_name: dict[str, list[int]] = {}
    for at, part in enumerate(parts):
        by_name.setdefault(re.sub(r"\d+", "#", part.name), []).append(at)
    trips = []
    for alike in by_name.values():
        trip: list[int] = []
        for at in sorted(alike, key=lambda each: (parts[each].first_s, parts[each].last_s)):
            if trip and not 0.0 <= parts[at].first_s - parts[trip[-1]].last_s <= JOIN_S:
                trips.append(trip)
                trip = []
            trip.append(at)
        trips.append(trip)
    return sorted(trips)


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A key that sorts `run_10` after `run_9`."""
    return tuple(
        (0, int(each)) if each.isdigit() else (1, each) for each in re.split(r"([0-9]+)", name) if each
    )


def trip_name(names: Sequence[str]) -> str:
    """The name of a trip from those of its parts: `run` of `run_0` and `run_1`; that of a single part as it is."""
    if len(names) == 1:
        return names[0]
    return re.sub(r"[ _.-]+\d+\Z", "", names[0]) or names[0]
