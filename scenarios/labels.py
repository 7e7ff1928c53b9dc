"""Which tracks can teach: labels come from the future of the recording, so bad tracks are left out, with a reason.

May live here: quality filters on one scenario, each with its reason. numpy only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.records import Scenario

__all__ = [
    "GAP",
    "JERK",
    "JUMP",
    "MAX_ACCELERATION_MPS2",
    "MAX_SPEED_MPS",
    "TOO_SHORT",
    "WRONG_RATE",
    "Verdict",
    "judge",
]

MAX_SPEED_MPS: Final = 60.0
"""A faster step between two observed frames is a measurement error, or two objects under one name."""
MAX_ACCELERATION_MPS2: Final = 30.0
"""No tyre holds three times its load; positions of a tracker that say so are wrong."""
STEADY_S: Final = 0.5
"""Speeds are means over so long: from one frame to the next, most of an acceleration is noise of the positions."""

WRONG_RATE: Final = "wrong-rate"
JUMP: Final = "jump"
JERK: Final = "impossible-acceleration"
TOO_SHORT: Final = "too-short"
GAP: Final = "gap"


@dataclass(frozen=True)
class Verdict:
    """On the tracks of one scenario, bool[tracks] each.

    `sound` tracks may be looked at, `labelled` ones are also observed in every frame of the window;
    `problems` counts, by reason, the tracks that are not labelled.
    """

    sound: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    problems: Counter[str]


def judge(scenario: Scenario, *, frames: int, rate_hz: float, start: int = 0) -> Verdict:
    """Judge each track against a window of `frames` frames at `rate_hz`, from frame `start` on.

    The first of these reasons counts, for the tracks that are seen in the window at all: `wrong-rate` (of the
    scenario), `jump` (above MAX_SPEED_MPS), `too-short` (seen without a gap, but not in every frame of the window),
    `gap` (not seen in some frame in between), `impossible-acceleration` (above MAX_ACCELERATION_MPS2 in the window;
    such a track may be looked at).
    """
    count = len(scenario.track_ids)
    if abs(scenario.rate_hz - rate_hz) > 1e-3 * rate_hz:
        nothing = np.zeros(count, dtype=np.bool_)
        return Verdict(nothing, nothing, Counter({WRONG_RATE: count} if start == 0 else {}))
    seen = ~np.isnan(scenario.xy[..., 0])
    jump = _jumps(scenario.xy, seen, rate_hz)
    within = seen[:, start : start + frames]
    present = within.any(axis=1)
    whole = within.all(axis=1) & (scenario.frames >= start + frames)
    # A gap is a frame that was not seen, with frames that were seen before and after it.
    before = np.logical_or.accumulate(seen, axis=1)
    after = np.logical_or.accumulate(seen[:, ::-1], axis=1)[:, ::-1]
    gap = present & (before & after & ~seen)[:, start : start + frames].any(axis=1)
    reasons = Counter({JUMP: int((present & jump).sum()), GAP: int((gap & ~jump).sum())})
    reasons[TOO_SHORT] = int((present & ~whole & ~gap & ~jump).sum())
    labelled = whole & ~jump
    wild = np.zeros(count, dtype=np.bool_)
    wild[labelled] = _is_wild(scenario.xy[labelled, start : start + frames], rate_hz)
    reasons[JERK] = int(wild.sum())
    return Verdict(~jump, labelled & ~wild, +reasons)


def _is_wild(xy: NDArray[np.float64], rate_hz: float) -> NDArray[np.bool_]:
    """Which of float64[tracks, frames, 2], seen throughout, change their mean speed faster than a car can."""
    step = max(1, round(STEADY_S * rate_hz))
    if xy.shape[1] <= 2 * step:
        return np.zeros(len(xy), dtype=np.bool_)
    speed = (xy[:, step:] - xy[:, :-step]) * (rate_hz / step)
    change = (speed[:, step:] - speed[:, :-step]) * (rate_hz / step)
    return np.asarray(np.hypot(change[..., 0], change[..., 1]).max(axis=1) > MAX_ACCELERATION_MPS2)


def _jumps(xy: NDArray[np.float64], seen: NDArray[np.bool_], rate_hz: float) -> NDArray[np.bool_]:
    """Which of float64[tracks, frames, 2] move faster than MAX_SPEED_MPS between two frames in which they were seen."""
    track, frame = np.nonzero(seen)
    same = track[1:] == track[:-1]
    metres = np.hypot(*np.diff(xy[track, frame], axis=0).T)
    fast = same & (metres * rate_hz > MAX_SPEED_MPS * np.diff(frame))
    jumps = np.zeros(len(xy), dtype=np.bool_)
    jumps[track[1:][fast]] = True
    return jumps
