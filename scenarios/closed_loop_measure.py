"""What happened in an episode, by the world's own positions: contact, time to collision, braking, speed.

May live here: pure measures on values of a world. Nothing of a prediction or of a noisy track comes in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from fedfleet.scenarios.closed_loop_road import Doubles, Road
from fedfleet.scenarios.closed_loop_world import Seen, Vehicle

__all__ = ["TTC_CAP_S", "Meter", "Outcome", "touch"]

STEP_S: Final = 0.1
TTC_CAP_S: Final = 10.0
HARSH_MS2: Final = -4.0
FOLLOWER_M: Final = 60.0
TOUCH_M: Final = 25.0


@dataclass(frozen=True)
class Outcome:
    """One episode with one predictor.

    `min_ttc_s` to the vehicle ahead, `min_ttc_rear_s` of the vehicle behind to the ego, both at most 10 (no closing).
    `harsh` counts how often the ego began to brake harder than 4 m/s², `follower_harsh` the same of whoever followed
    it. `merged_s` is None where there was nothing to merge or it did not happen.
    """

    collision: bool
    collision_with: str
    min_ttc_s: float
    min_ttc_rear_s: float
    harsh: int
    harsh_s: float
    follower_harsh: int
    hardest_ms2: float
    mean_speed_ms: float
    time_lost_s: float
    merged_s: float | None
    driven_s: float

    def as_json(self) -> dict[str, Any]:
        """Return it with figures rounded to a millionth."""
        return {
            key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()
        }


class Meter:
    """Sums up the frames that the policy drives, one after the other."""

    def __init__(self, road: Road, *, wanted_ms: float) -> None:
        self._road, self._wanted_ms = road, wanted_ms
        self._speeds: list[float] = []
        self._ttc = [TTC_CAP_S, TTC_CAP_S]
        self._before: Mapping[str, float] = {}
        self._braking = {"": False}
        self._harsh = {"ego": 0, "follower": 0}
        self._harsh_frames = 0
        self.touched = ""

    def see(self, seen: Seen, *, s_m: float) -> None:
        """Take one frame; `s_m` is the ego's place on the road."""
        ego = seen.ego
        self._speeds.append(ego.speed_ms)
        self._brakes("ego", "", ego.speed_ms, self._speeds[-2] if len(self._speeds) > 1 else None)
        names = list(seen.others)
        if names:
            s, d = self._road.project(_centres(seen.others), near_s_m=s_m)
            (own_s,), (own_d,) = self._road.project(np.array([[ego.x_m, ego.y_m]]), near_s_m=s_m)
            follower = self._near(names, seen, along=s - own_s, aside=d - own_d)
            if follower:
                speed = seen.others[follower].speed_ms
                self._brakes("follower", follower, speed, self._before.get(follower))
        self._before = {name: each.speed_ms for name, each in seen.others.items()}
        if not self.touched:
            close = (name for name in names if np.hypot(*_apart(ego, seen.others[name])) < TOUCH_M)
            self.touched = next((name for name in close if touch(ego, seen.others[name])), "")

    def _near(self, names: list[str], seen: Seen, *, along: Doubles, aside: Doubles) -> str:
        """Take the times to collision with whoever shares the ego's lane; return who follows, or nothing."""
        ego, follower, nearest = seen.ego, "", FOLLOWER_M
        for name, ahead, side in zip(names, along, aside, strict=True):
            other = seen.others[name]
            if abs(side) >= (ego.width_m + other.width_m) / 2.0:
                continue
            gap = abs(ahead) - (ego.length_m + other.length_m) / 2.0
            is_rear = bool(ahead < 0.0)
            closing = other.speed_ms - ego.speed_ms if is_rear else ego.speed_ms - other.speed_ms
            if closing > 0.0:
                self._ttc[is_rear] = min(self._ttc[is_rear], float(max(0.0, gap) / closing))
            if is_rear and gap < nearest:
                follower, nearest = name, gap
        return follower

    def _brakes(self, who: str, name: str, speed_ms: float, before_ms: float | None) -> None:
        is_harsh = before_ms is not None and (speed_ms - before_ms) / STEP_S < HARSH_MS2
        self._harsh[who] += is_harsh and not self._braking.get(name, False)
        self._harsh_frames += is_harsh and who == "ego"
        self._braking[name] = is_harsh

    def outcome(self, *, merged_s: float | None) -> Outcome:
        """Return what happened."""
        speeds = np.array(self._speeds)
        steps = np.diff(speeds) / STEP_S
        return Outcome(
            collision=bool(self.touched),
            collision_with=self.touched,
            min_ttc_s=0.0 if self.touched else self._ttc[0],
            min_ttc_rear_s=self._ttc[1],
            harsh=self._harsh["ego"],
            harsh_s=self._harsh_frames * STEP_S,
            follower_harsh=self._harsh["follower"],
            hardest_ms2=float(steps.min(initial=0.0)),
            mean_speed_ms=float(speeds.mean()),
            time_lost_s=float(np.sum(1.0 - speeds / self._wanted_ms) * STEP_S),
            merged_s=merged_s,
            driven_s=len(speeds) * STEP_S,
        )


def touch(one: Vehicle, other: Vehicle) -> bool:
    """Whether two vehicles, as oriented rectangles, overlap (separating axes)."""
    a, b = _corners(one), _corners(other)
    for heading in (one.heading, other.heading):
        for angle in (heading, heading + np.pi / 2.0):
            axis = np.array([np.cos(angle), np.sin(angle)])
            on_a, on_b = a @ axis, b @ axis
            if on_a.max() <= on_b.min() or on_b.max() <= on_a.min():
                return False
    return True


def _corners(one: Vehicle) -> Doubles:
    ahead = np.array([np.cos(one.heading), np.sin(one.heading)]) * one.length_m / 2.0
    left = np.array([-np.sin(one.heading), np.cos(one.heading)]) * one.width_m / 2.0
    around: Doubles = np.array([ahead + left, ahead - left, -ahead - left, left - ahead])
    return np.asarray(around + np.array([one.x_m, one.y_m]), dtype=np.float64)


def _apart(one: Vehicle, other: Vehicle) -> tuple[float, float]:
    return one.x_m - other.x_m, one.y_m - other.y_m


def _centres(vehicles: Mapping[str, Vehicle]) -> Doubles:
    return np.array([[each.x_m, each.y_m] for each in vehicles.values()])
