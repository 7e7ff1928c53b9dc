"""A world for the closed loop without SUMO: a straight road east, others that do as they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedfleet.scenarios.closed_loop_road import Road
from fedfleet.scenarios.closed_loop_world import Seen, Vehicle

LENGTH_M, WIDTH_M, LANE_M = 4.6, 1.8, 3.2


@dataclass(frozen=True)
class Other:
    """Where it begins (metres along, lane to the left of the target lane), and its speed at a time (s)."""

    start_m: float
    lane: float
    speed: Callable[[float], float]


class StraightRoad:
    """The port `World` in a few lines: the ego moves as it is told, sideways at 1 m/s at most."""

    def __init__(
        self,
        others: Mapping[str, Other],
        *,
        speed_ms: float = 25.0,
        lane: float = 0.0,
        end_m: float | None = None,
        leaves_at_s: float = np.inf,
    ) -> None:
        line = np.array([[x, 0.0] for x in range(-500, 4000, 10)], dtype=float)
        own = None if end_m is None else np.array([[x, -LANE_M] for x in (-500.0, end_m)])
        self.road = Road.of(line, own)
        self._others, self._leaves_at_s = others, leaves_at_s
        self._start = (speed_ms, lane * LANE_M)
        self._reset()
        self.before = [self._seen() for _ in range(20) if self._step(speed_ms, 0.0)]
        self._handover = (self._now, self._x, self._y, self._speed, dict(self._at))
        self.asked: list[float] = []

    def _reset(self) -> None:
        self._now, self._x = -2.0, -2.0 * self._start[0]
        self._speed, self._y = self._start
        self._at = {name: one.start_m - 2.0 * one.speed(0.0) for name, one in self._others.items()}

    def next(self) -> Seen | None:
        return None if self._now > self._leaves_at_s else self._seen()

    def act(self, speed_ms: float, shift_m: float) -> None:
        self.asked.append(speed_ms)
        self._step(speed_ms, shift_m)

    def again(self) -> None:
        self._now, self._x, self._y, self._speed, at = self._handover
        self._at = dict(at)

    def _step(self, speed_ms: float, shift_m: float) -> bool:
        self._now = round(self._now + 0.1, 1)
        self._speed = speed_ms
        self._x += speed_ms * 0.1
        self._y += float(np.clip(shift_m, -0.1, 0.1))
        for name, one in self._others.items():
            self._at[name] += one.speed(self._now) * 0.1
        return True

    def _seen(self) -> Seen:
        others = {
            name: Vehicle(self._at[name], one.lane * LANE_M, 0.0, one.speed(self._now), LENGTH_M, WIDTH_M)
            for name, one in self._others.items()
        }
        return Seen(self._now, Vehicle(self._x, self._y, 0.0, self._speed, LENGTH_M, WIDTH_M), others)
