"""What the ego believes that its neighbours will do: tracks with a tracker's noise, and three ways to predict them.

May live here: track keeping and predictors on a road. Features and frames are those of the task `motion_forecast`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias
from zlib import crc32

import numpy as np

from fedfleet.models.motion_forecast import BACK, FUTURE, PAST, TASK, agent_frame
from fedfleet.models.task import Floats
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.closed_loop_road import Doubles, Road
from fedfleet.scenarios.sumo_cut import NOISE_M

__all__ = ["Forecast", "Tracks", "by_model", "constant_velocity", "road_velocity"]

Forecast: TypeAlias = Callable[[Doubles, Road, float], tuple[Doubles, Doubles]]
"""From histories f64[N, 20, 2] (metres, world) on a road near `s` metres: f64[N, 30] metres along and to the left."""


class Tracks:
    """The last 2 s of every vehicle, with Gaussian noise of 0.03 m as in the pack.

    The noise of a vehicle depends on seed and name only, so that two runs of one episode see the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._chance: dict[str, np.random.Generator] = {}
        self._past: dict[str, list[Doubles]] = {}

    def see(self, positions: Mapping[str, tuple[float, float]]) -> None:
        """Take one frame; who is not in it is forgotten."""
        past = {}
        for name, xy in positions.items():
            if name not in self._chance:
                self._chance[name] = np.random.default_rng([self._seed, crc32(name.encode())])
            noisy = np.array(xy) + self._chance[name].normal(0.0, NOISE_M, 2)
            past[name] = [*self._past.get(name, [])[1 - PAST :], noisy]
        self._past = past

    def known(self) -> tuple[list[str], Doubles]:
        """Names of those that were seen for 2 s, and their histories f64[N, 20, 2]."""
        names = [name for name, points in self._past.items() if len(points) == PAST]
        return names, np.array([self._past[name] for name in names]).reshape(-1, PAST, 2)


def by_model(run: Callable[[Floats], Floats]) -> Forecast:
    """Predict with a model of the task: inputs f32[N, 20, 2] to outputs f32[N, 30, 2] in each track's own frame.

    The forecast raises UsageError for outputs that are not finite.
    """

    def forecast(history: Doubles, road: Road, near_s_m: float) -> tuple[Doubles, Doubles]:
        local = run(agent_frame(history, history))
        if not np.isfinite(local).all():
            raise UsageError("the model's output is not finite")
        last = history[:, -1:]
        axes = agent_frame(history, last + np.eye(2)).astype(
            np.float64
        )  # where one metre east and north come to lie
        world = last + np.einsum("ntj,nij->nti", local.astype(np.float64), axes)
        return road.project(world, near_s_m=near_s_m)

    return forecast


constant_velocity: Final[Forecast] = by_model(TASK.baseline)
"""The task's own trivial answer: straight on at the mean velocity of the last 0.5 s."""


def road_velocity(history: Doubles, road: Road, near_s_m: float) -> tuple[Doubles, Doubles]:
    """Constant velocity along the road: the mean speed of the last 0.5 s, at the distance from the line of now."""
    s, d = road.project(history[:, [-1 - BACK, -1]], near_s_m=near_s_m)
    steps = np.arange(1, FUTURE + 1)
    ahead = s[:, 1:] + (s[:, 1:] - s[:, :1]) / BACK * steps
    return ahead, np.repeat(d[:, 1:], FUTURE, axis=1)
