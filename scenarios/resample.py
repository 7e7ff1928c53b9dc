"""Recordings of a higher rate at the rate that a task asks for: places in between are on the straight line.

At 25 Hz two frames are 40 ms apart; a car that brakes as hard as it can is at most 2 mm beside the line between them.
Lower rates stay as they are: nothing is made up between frames that are far apart. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from fedfleet.scenarios.records import Scenario

__all__ = ["at_rate", "resampled"]

_SAME = 1e-3


def at_rate(scenarios: Iterable[Scenario], rate_hz: float) -> Iterator[Scenario]:
    """Each scenario as `resampled` gives it."""
    return (resampled(scenario, rate_hz) for scenario in scenarios)


def resampled(scenario: Scenario, rate_hz: float) -> Scenario:
    """The scenario at `rate_hz`, from its first frame on; the same one when its rate is that, or lower.

    A track is there at a time when it was seen in the frames before and after it, or in the frame of that very time;
    one that is never there is left out. Where that is every track, the scenario stays as it is.
    """
    if scenario.rate_hz <= rate_hz * (1.0 + _SAME):
        return scenario
    frames = int(np.floor((scenario.frames - 1) / scenario.rate_hz * rate_hz + 1e-9)) + 1
    at = np.arange(frames) * (scenario.rate_hz / rate_hz)
    before = np.floor(at + 1e-9).astype(np.int64)
    share = np.maximum(at - before, 0.0)
    share[share < 1e-9] = 0.0
    after = np.minimum(before + (share > 0.0), scenario.frames - 1)
    weight = share[None, :, None]
    xy = scenario.xy[:, before] * (1.0 - weight) + scenario.xy[:, after] * weight
    kept = np.flatnonzero(~np.isnan(xy[..., 0]).all(axis=1))
    if not len(kept):
        return scenario
    return replace(
        scenario,
        rate_hz=rate_hz,
        track_ids=tuple(scenario.track_ids[i] for i in kept),
        kinds=tuple(scenario.kinds[i] for i in kept),
        types=tuple(scenario.types[i] for i in kept),
        xy=xy[kept],
    )
