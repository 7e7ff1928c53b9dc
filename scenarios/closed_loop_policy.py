"""How the ego drives: one acceleration out of many, by what the others are predicted to do.

May live here: pure functions of positions and predictions on a road. Who predicted is not known here, so two
predictors are compared by nothing but their predictions. All constants were chosen once, from the literature on car
following and gap acceptance; none was fitted to a predictor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.closed_loop_road import Doubles

__all__ = ["HARDEST_MS2", "STEP_S", "Action", "Ego", "Others", "keep_gap", "merge"]

STEP_S: Final = 0.1
HARDEST_MS2: Final = -8.0
CHOICES_MS2: Final = np.arange(HARDEST_MS2, 2.01, 0.25)
STANDSTILL_M: Final = 2.0
HEADWAY_S: Final = 1.2
COMFORT_MS2: Final = 2.0
FIRM_MS2: Final = 4.0
REACTION_S: Final = 1.0
SIDE_M: Final = 0.3
COMING_S: Final = 1.5
"""Who is predicted to come into a lane within this time counts; later, predictions sideways are too unsure."""
ACCEPTED_S: Final = 0.6
"""Time gap to the new leader and from the new follower that a merging driver accepts."""
CROSSING_S: Final = 1.0
"""From the start of a lane change until the ego is in the way of the new lane."""
LEFT_S: Final = 2.2
"""From the start of a lane change until the ego is out of the old lane."""

COST_ACCELERATION: Final = 0.1
COST_CHANGE: Final = 0.2
COST_SPEED: Final = 1.0
COST_GAP: Final = 30.0
COST_STOP: Final = 2.0
COST_UNSAFE: Final = 4.0
COST_TOUCH: Final = 1000.0
COST_WAIT: Final = 0.5
COST_SHORT: Final = 0.1
GAIN_MERGED: Final = 3.0

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Ego:
    """The ego now: metres along the road, m/s, the acceleration it had last, its size in metres."""

    s_m: float
    speed_ms: float
    acceleration_ms2: float
    wanted_ms: float
    length_m: float
    width_m: float


@dataclass(frozen=True, eq=False)
class Others:
    """The neighbours, now (column 0) and as predicted for each 0.1 s: f64[N, T + 1] metres.

    `own_m` and `target_m` are distances to the left of the ego's own lane's centre and of the target lane's;
    `length_m` and `width_m` f64[N].
    """

    s_m: Doubles
    own_m: Doubles
    target_m: Doubles
    length_m: Doubles
    width_m: Doubles


@dataclass(frozen=True)
class Action:
    """Acceleration for the next 0.1 s, and whether to begin a change into the target lane."""

    acceleration_ms2: float
    change: bool = False


def keep_gap(ego: Ego, others: Others, *, both_lanes: bool = False) -> Action:
    """Follow whoever is, or is predicted to come, into the ego's lane; `both_lanes` while it changes lanes.

    Each constant acceleration from −8 to 2 m/s² is tried over the horizon: it costs acceleration, its change, slowness,
    a gap below 2 m + 1.2 s, a touch, the braking above 2 m/s² that would be needed after the horizon behind a leader
    that keeps its predicted last speed, and that above 4 m/s² that would be needed in 1 s if the leader, at its
    predicted next speed, braked with 4 m/s² from now on (after the safe distance of Shalev-Shwartz et al. 2017).
    """
    s, v = _rolled(ego, others.s_m.shape[1])
    blocking = _blocking(others, others.own_m, ego)
    if both_lanes:
        blocking |= _blocking(others, others.target_m, ego)
    cost = _comfort(ego, v) + _danger(s, v, ego, others, blocking)
    return Action(float(CHOICES_MS2[cost.argmin()]))


def merge(ego: Ego, others: Others, *, end_s_m: float) -> Action:
    """Drive in a lane that ends at `end_s_m` and change into the target lane when a gap in it is predicted to hold.

    A gap holds when at all times from 1 s after the begin of the change the new leader and the new follower are 2 m
    + 0.6 s away and neither the ego nor the follower has to brake harder than 2 m/s² after the horizon. An acceleration
    that brings such a gap later costs the time until then; one that brings none, what is missing to the nearest.
    """
    frames = others.s_m.shape[1]
    s, v = _rolled(ego, frames)
    comfort = _comfort(ego, v)
    own = _blocking(others, others.own_m, ego)
    missing_m = _missing(s, v, ego, others)
    stay = comfort + _danger(s, v, ego, others, own) + _lane_end(s, v, ego, end_s_m)
    stay += COST_WAIT * _wait_s(missing_m) + COST_SHORT * missing_m[:, -1]
    early = np.arange(frames) * STEP_S < LEFT_S
    new = _blocking(others, others.target_m, ego)
    change = comfort + _danger(s, v, ego, others, (own & early) | new) - GAIN_MERGED
    change = np.where(_wait_s(missing_m) <= 0.0, change, np.inf)
    if change.min() < stay.min():
        return Action(float(CHOICES_MS2[change.argmin()]), change=True)
    return Action(float(CHOICES_MS2[stay.argmin()]))


def _rolled(ego: Ego, frames: int) -> tuple[Doubles, Doubles]:
    """Where each choice brings the ego, and how fast: f64[A, T + 1]. It never drives backwards."""
    t = np.arange(frames) * STEP_S
    v = np.maximum(0.0, ego.speed_ms + CHOICES_MS2[:, None] * t)
    way = np.cumsum((v[:, 1:] + v[:, :-1]) / 2.0, axis=1) * STEP_S
    s = ego.s_m + np.concatenate([np.zeros((len(v), 1)), way], axis=1)
    return s, v


def _comfort(ego: Ego, v: Doubles) -> Doubles:
    slow = (ego.wanted_ms - v[:, -1]) / 10.0
    change = CHOICES_MS2 - ego.acceleration_ms2
    return np.asarray(
        COST_ACCELERATION * CHOICES_MS2**2 + COST_CHANGE * change**2 + COST_SPEED * slow**2, dtype=np.float64
    )


def _blocking(others: Others, offset_m: Doubles, ego: Ego) -> Flags:
    """From when on each vehicle ahead is in a lane: bool[N, T + 1]. Who is in it, or comes, is counted on to stay."""
    inside = np.abs(offset_m) < (others.width_m[:, None] + ego.width_m) / 2.0 + SIDE_M
    inside[:, round(COMING_S / STEP_S) + 1 :] = False
    ahead = others.s_m[:, :1] > ego.s_m
    return np.asarray(np.logical_or.accumulate(inside, axis=1) & ahead, dtype=np.bool_)


def _danger(s: Doubles, v: Doubles, ego: Ego, others: Others, blocking: Flags) -> Doubles:
    """Cost f64[A] of what lies ahead."""
    cost, soon = np.zeros(len(s)), round(REACTION_S / STEP_S)
    for row in np.flatnonzero(blocking.any(axis=1)):
        when = blocking[row]
        gap = others.s_m[row] - s - (others.length_m[row] + ego.length_m) / 2.0
        wanted = STANDSTILL_M + HEADWAY_S * v
        short = np.where(when, np.maximum(0.0, 1.0 - gap / wanted), 0.0)
        last_ms = max(0.0, _speed(others.s_m[row], -1))
        braking = _braking(v[:, -1] - last_ms, gap[:, -1]) if when[-1] else 0.0
        here = COST_GAP * (np.minimum(short, 2.0) ** 2).mean(axis=1)
        here += COST_STOP * np.maximum(0.0, braking - COMFORT_MS2) ** 2
        if when[soon]:
            stop_m = others.s_m[row, 0] + max(0.0, _speed(others.s_m[row], 5)) ** 2 / (2.0 * FIRM_MS2)
            left = stop_m - s[:, soon] - (others.length_m[row] + ego.length_m) / 2.0
            here += COST_UNSAFE * np.maximum(0.0, _braking(v[:, soon], left) - FIRM_MS2) ** 2
        touch = when & (gap < 0.5)
        # Of two choices that touch, the one that touches later and slower is better.
        here += np.where(touch.any(axis=1), COST_TOUCH + 10.0 * np.where(touch, v, 0.0).sum(axis=1), 0.0)
        cost = np.maximum(cost, here)
    return cost


def _lane_end(s: Doubles, v: Doubles, ego: Ego, end_s_m: float) -> Doubles:
    """Cost f64[A] of coming to the end of the lane too fast."""
    left = end_s_m - s - ego.length_m / 2.0
    braking = _braking(v[:, -1], left[:, -1])
    over = np.where((left < 0.5).any(axis=1), COST_TOUCH, 0.0)
    return np.asarray(COST_STOP * np.maximum(0.0, braking - COMFORT_MS2) ** 2 + over, dtype=np.float64)


def _missing(s: Doubles, v: Doubles, ego: Ego, others: Others) -> Doubles:
    """Metres that the target lane's gap lacks, f64[A, T + 1]: before the ego and behind it, at its worst neighbour."""
    missing = np.zeros_like(s)
    inside = np.abs(others.target_m) < (others.width_m[:, None] + ego.width_m) / 2.0 + SIDE_M
    for row in np.flatnonzero(inside.any(axis=1)):
        speed = np.maximum(0.0, np.gradient(others.s_m[row], STEP_S))
        between = others.s_m[row] - s
        size = (others.length_m[row] + ego.length_m) / 2.0
        front = STANDSTILL_M + ACCEPTED_S * v + _stopping(v - speed) - (between - size)
        rear = STANDSTILL_M + ACCEPTED_S * speed + _stopping(speed - v) - (-between - size)
        short = np.where(between > 0.0, front, rear)
        missing = np.maximum(missing, np.where(inside[row], short, 0.0))
    return missing


def _wait_s(missing_m: Doubles) -> Doubles:
    """When the change may begin, f64[A] seconds from now; the horizon where no gap holds until its end."""
    frames = missing_m.shape[1]
    bad = missing_m > 0.0
    last_bad = np.where(bad.any(axis=1), frames - 1 - bad[:, ::-1].argmax(axis=1), -1)
    wait = np.maximum(0.0, (last_bad + 1) * STEP_S - CROSSING_S)
    return np.where(last_bad == frames - 1, frames * STEP_S, wait)


def _stopping(closing_ms: Doubles) -> Doubles:
    """Metres that braking comfortably takes away from a gap."""
    return np.asarray(np.maximum(0.0, closing_ms) ** 2 / (2.0 * COMFORT_MS2), dtype=np.float64)


def _braking(closing_ms: Doubles, gap_m: Doubles) -> Doubles:
    """Deceleration that keeps 2 m of a gap, m/s², at most 20."""
    room = np.maximum(gap_m - STANDSTILL_M, 0.1)
    return np.asarray(np.minimum(20.0, np.maximum(0.0, closing_ms) ** 2 / (2.0 * room)), dtype=np.float64)


def _speed(s_m: Doubles, frame: int) -> float:
    """Speed in the 0.5 s up to a frame of a prediction."""
    return float((s_m[frame] - s_m[frame - 5]) / (5 * STEP_S))
