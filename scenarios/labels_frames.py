"""Which camera frames can teach: the label is the driver's angle, so frames that mislead are left out, with a reason.

May live here: quality filters on the frames of one recording, each with its reason. numpy only.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ANGLE_SPIKE",
    "AUTOPILOT",
    "BAD_ANGLE",
    "FROZEN",
    "SPIKE",
    "STEADY",
    "FrameVerdict",
    "judge_frames",
]

AUTOPILOT: Final = "autopilot"
BAD_ANGLE: Final = "bad-angle"
FROZEN: Final = "frozen-camera"
ANGLE_SPIKE: Final = "angle-outlier"

SPIKE: Final = 1.2
"""An angle this far from both its neighbours, which agree with each other to STEADY, was not steered."""
STEADY: Final = 0.3


@dataclass(frozen=True)
class FrameVerdict:
    """On the frames of one recording: `labelled` bool[frames] can teach; `problems` counts the others by reason."""

    labelled: NDArray[np.bool_]
    problems: Counter[str]


def judge_frames(
    angles: NDArray[np.float64], repeated: NDArray[np.bool_], autopilot: NDArray[np.bool_]
) -> FrameVerdict:
    """Judge consecutive frames by the driver's angles float64[frames], -1 … 1 (NaN = none).

    `repeated` bool[frames] says that a frame shows the very image of the frame before it, `autopilot` bool[frames]
    that the car steered itself. The first of these reasons counts: `autopilot` (the angle is the untouched stick),
    `bad-angle` (none, not finite, or outside -1 … 1), `frozen-camera` (a repeated image: what the driver answered to
    is not on it), `angle-outlier` (a single frame that leaps by more than SPIKE and back).
    """
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(angles) <= 1.0) & ~autopilot
        frozen = repeated & ~bad & ~autopilot
        spike = np.zeros(len(angles), dtype=np.bool_)
        if len(angles) > 2:
            before, here, after = angles[:-2], angles[1:-1], angles[2:]
            leap = np.minimum(np.abs(here - before), np.abs(here - after)) > SPIKE
            spike[1:-1] = leap & (np.abs(after - before) <= STEADY)
    spike &= ~bad & ~frozen & ~autopilot
    counts = {AUTOPILOT: autopilot, BAD_ANGLE: bad, FROZEN: frozen, ANGLE_SPIKE: spike}
    return FrameVerdict(
        ~(autopilot | bad | frozen | spike),
        +Counter({reason: int(found.sum()) for reason, found in counts.items()}),
    )
