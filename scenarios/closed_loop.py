"""The loop: what the world shows, what the forecast makes of it, what the policy does, until the episode ends.

May live here: one episode with one predictor, on any `World`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from fedfleet.scenarios.closed_loop_forecast import Forecast, Tracks
from fedfleet.scenarios.closed_loop_measure import Meter, Outcome
from fedfleet.scenarios.closed_loop_plan import WANTED_MS, Plan
from fedfleet.scenarios.closed_loop_policy import STEP_S, Action, Ego, Others, keep_gap, merge
from fedfleet.scenarios.closed_loop_road import Doubles
from fedfleet.scenarios.closed_loop_world import Seen, World
from fedfleet.scenarios.records import ScenarioError

__all__ = ["Driver", "drive"]

ARRIVED_M: Final = 0.4


def drive(world: World, plan: Plan, forecast: Forecast) -> Outcome:
    """Drive an episode from its handover to its end, or to a collision, and go back to the handover.

    Raises ScenarioError when the ego leaves the road before its time.
    """
    driver = Driver(world, plan, forecast)
    for seen in world.before:
        driver.look(seen)
    for _ in range(round(plan.driven_s / STEP_S)):
        now = _next(world, plan)
        driver.look(now)
        driver.meter.see(now, s_m=driver.s_m)
        if driver.meter.touched:
            break
        world.act(*driver.act(now))
    else:
        _next(world, plan)
    world.again()
    return driver.meter.outcome(merged_s=driver.merged_s)


def _next(world: World, plan: Plan) -> Seen:
    seen = world.next()
    if seen is None:
        text = f"{plan.situation} episode {plan.number}: the ego left the road"
        raise ScenarioError("left-the-road", text)
    return seen


class Driver:
    """The ego of one episode: its tracks, its lane, its last acceleration."""

    def __init__(self, world: World, plan: Plan, forecast: Forecast) -> None:
        self._road, self._forecast = world.road, forecast
        self._tracks = Tracks(plan.seed)
        self._lane = "own" if plan.situation == "merge" else "target"
        self._acceleration_ms2 = 0.0
        self._begun_s: float | None = None
        self._d_m = 0.0
        self._is_placed = False
        self.s_m = 0.0
        self.meter = Meter(world.road, wanted_ms=WANTED_MS)
        self.merged_s: float | None = None

    def look(self, seen: Seen) -> None:
        """Take one frame."""
        near = self.s_m if self._is_placed else None
        place, left = self._road.project(np.array([[seen.ego.x_m, seen.ego.y_m]]), near_s_m=near)
        self.s_m, self._d_m, self._is_placed = float(place[0]), float(left[0]), True
        self._tracks.see({name: (each.x_m, each.y_m) for name, each in seen.others.items()})

    def act(self, seen: Seen) -> tuple[float, float]:
        """Return the speed for the next step and the shift to the left that begins now."""
        if self._begun_s is None:
            self._begun_s = seen.time_s
        if self._lane == "changing" and abs(self._d_m) < ARRIVED_M:
            self._lane, self.merged_s = "target", round(seen.time_s - self._begun_s, 1)
        action = self._decide(seen)
        if action.change:
            self._lane = "changing"
        # Said again at every step: what SUMO still has to do of a shift is lost where lanes begin.
        shift_m = 0.0 if self._lane == "own" else -self._d_m
        self._acceleration_ms2 = action.acceleration_ms2
        return max(0.0, seen.ego.speed_ms + action.acceleration_ms2 * STEP_S), shift_m

    def _decide(self, seen: Seen) -> Action:
        others, ego = self._others(seen), self._ego(seen)
        if self._lane == "own":
            return merge(ego, others, end_s_m=self._road.end_s_m)
        return keep_gap(ego, others, both_lanes=self._lane == "changing")

    def _ego(self, seen: Seen) -> Ego:
        return Ego(
            s_m=self.s_m,
            speed_ms=seen.ego.speed_ms,
            acceleration_ms2=self._acceleration_ms2,
            wanted_ms=WANTED_MS,
            length_m=seen.ego.length_m,
            width_m=seen.ego.width_m,
        )

    def _others(self, seen: Seen) -> Others:
        """Those that were seen for 2 s, where they are now by the track and then as predicted."""
        names, history = self._tracks.known()
        now_s, now_d = self._road.project(history[:, -1:], near_s_m=self.s_m)
        then_s, then_d = self._forecast(history, self._road, self.s_m)
        s, d = np.concatenate([now_s, then_s], axis=1), np.concatenate([now_d, then_d], axis=1)
        sizes: Doubles = np.array([(seen.others[n].length_m, seen.others[n].width_m) for n in names]).reshape(
            -1, 2
        )
        own = d if self._lane == "target" else d - self._road.own_d(s)
        return Others(s, own, d, sizes[:, 0], sizes[:, 1])
