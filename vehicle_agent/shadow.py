"""A candidate beside the active model, on the frames that come: what it would have said, how fast, how differently.

Only counts leave this room, never an input or an output. Pure: times are measured by who runs the models.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fedfleet.models.task import Floats, Task

__all__ = ["Differ", "Shadow", "ShadowSettings", "compare", "differing", "verdict"]

TYPICAL_ROWS = 256
Differ: TypeAlias = Callable[[Floats, Floats], NDArray[np.bool_]]
"""Takes the outputs f32[N, *out] of the active model and of the candidate, tells which answers disagree: bool[N]."""


class ShadowSettings(BaseModel):
    """How long a release runs beside the active model before it drives, and what it must not do."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    frames: int = Field(
        default=10, ge=0, le=100_000, description="frames beside the active model before the switch; 0: none"
    )
    tolerance: float = Field(
        default=3.0,
        gt=0,
        le=1e6,
        description="an answer disagrees when it is so many times the typical size of the truth away",
    )
    most_disagreeing: float = Field(
        default=0.1, ge=0, le=1, description="largest share of answers that may disagree"
    )
    most_of_frame: float = Field(
        default=0.5, gt=0, le=100, description="largest share of a frame's time that the candidate may take"
    )


@dataclass(frozen=True)
class Shadow:
    """What was seen so far: frames, answers compared, those that disagree, those that are no numbers, times."""

    frames: int = 0
    answers: int = 0
    disagreed: int = 0
    not_finite: int = 0
    times_s: tuple[float, ...] = ()


def differing(task: Task, targets: Floats | None, tolerance: float) -> Differ:
    """Return how answers are told to disagree: as the task says (``differ``), else by their distance.

    The distance is ``tolerance`` × the typical size of the truth f32[N, *out], the root of its mean square (1 where
    there is none), so a task whose outputs are not in the unit of its targets must have ``differ``.
    """
    own: Differ | None = getattr(task, "differ", None)
    if own is not None:
        return own
    typical = 1.0
    if targets is not None and len(targets):
        some = np.asarray(targets[:: max(1, len(targets) // TYPICAL_ROWS)], dtype=np.float64)
        size = float(np.sqrt(np.mean(some**2)))
        typical = size if np.isfinite(size) and size > 0 else 1.0
    limit = tolerance * typical
    return lambda active, candidate: (
        ~(np.abs(candidate - active).reshape(len(candidate), -1).max(axis=1) <= limit)
    )


def compare(
    shadow: Shadow, active: Floats | None, candidate: Floats | None, *, took_s: float, differ: Differ
) -> Shadow:
    """Add a frame: outputs f32[N, *out] of both, None for a frame without a row."""
    if active is None or candidate is None or not len(candidate):
        return replace(shadow, frames=shadow.frames + 1)
    finite = np.isfinite(candidate).reshape(len(candidate), -1).all(axis=1)
    disagreed = ~finite | differ(active, candidate)
    return Shadow(
        shadow.frames + 1,
        shadow.answers + len(candidate),
        shadow.disagreed + int(disagreed.sum()),
        shadow.not_finite + int((~finite).sum()),
        (*shadow.times_s, took_s),
    )


def verdict(shadow: Shadow, settings: ShadowSettings, *, period_s: float) -> tuple[str, str]:
    """Return reason and detail of the refusal, or two empty texts."""
    if shadow.not_finite:
        return "not-finite", f"{shadow.not_finite} of {shadow.answers} answers are not finite"
    if shadow.answers and shadow.disagreed > settings.most_disagreeing * shadow.answers:
        return (
            "disagreement",
            f"{shadow.disagreed} of {shadow.answers} answers disagree with the active model",
        )
    if shadow.times_s and median(shadow.times_s) > settings.most_of_frame * period_s:
        took_ms, period_ms = 1e3 * median(shadow.times_s), 1e3 * period_s
        return "too-slow", f"a frame takes {took_ms:.1f} ms (median), they come every {period_ms:.1f} ms"
    return "", ""
