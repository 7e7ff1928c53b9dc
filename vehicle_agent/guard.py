"""The latency guard: when a frame is late the trainer is stopped, and goes on after enough frames in time. Pure.

Whoever sees the frames calls ``step`` for each one and does what it says (``runtime.Watch``).
"""

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["GuardSettings", "GuardState", "Order", "is_late", "silent", "step"]

Order: TypeAlias = Literal["pause", "resume", "none"]


class GuardSettings(BaseModel):
    """When a frame counts as late, and how long the trainer then waits. ``docs/adr/0011`` has where these come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = Field(default=True, description="stop the trainer when a frame is late")
    late_ms: float = Field(
        default=3.0,
        gt=0,
        le=10_000,
        description="a frame is late when its result comes so much after its time",
    )
    resume_frames: int = Field(
        default=10, ge=1, le=100_000, description="frames in time after which the trainer goes on"
    )
    backoff: float = Field(
        default=2.0, ge=1, le=100, description="so many times more when it is late again soon after"
    )
    most_frames: int = Field(default=160, ge=1, le=1_000_000, description="but never more than so many")
    calm_frames: int = Field(
        default=100, ge=1, le=1_000_000, description="frames in time beside the trainer that end the back-off"
    )
    silence_s: float = Field(
        default=2.0, gt=0, le=3600, description="seconds without any frame after which the trainer goes on"
    )


@dataclass(frozen=True)
class GuardState:
    """What the guard remembers. ``good`` counts frames in time since the last late one, or the last order.

    ``wait`` is how many of them end the pause; 0 before the first one. ``frames`` counts those of this pause, ``deaf``
    those for which the guard does nothing, because a whole pause did not help. ``paused_s`` is the time of all pauses
    that are over.
    """

    paused: bool = False
    good: int = 0
    wait: int = 0
    frames: int = 0
    deaf: int = 0
    since_s: float = 0.0
    seen_s: float = 0.0
    pauses: int = 0
    paused_s: float = 0.0
    late: int = 0


def step(
    state: GuardState, late_s: float, now_s: float, *, settings: GuardSettings
) -> tuple[GuardState, Order]:
    """Take a frame whose result came ``late_s`` after its time, and say what the trainer is to do.

    The first late frame pauses it; ``wait`` frames in time in a row let it go on. When frames stay late for twice
    ``most_frames`` in a pause it is not the trainer who makes them so: it goes on, as long at least as it stood still.
    """
    late = is_late(late_s, settings)
    state = replace(
        state,
        late=state.late + late,
        good=0 if late else state.good + 1,
        frames=state.frames + state.paused,
        deaf=max(0, state.deaf - (not state.paused)),
        seen_s=now_s,
    )
    if state.paused:
        if state.good >= state.wait:
            return _resumed(state, now_s)
        if state.frames >= 2 * settings.most_frames:
            return _resumed(replace(state, deaf=2 * settings.most_frames), now_s)
        return state, "none"
    if late and not state.deaf:
        return _paused(state, now_s, settings)
    return (replace(state, wait=0) if state.good >= settings.calm_frames else state), "none"


def is_late(late_s: float, settings: GuardSettings) -> bool:
    """Tell whether a frame is late; NaN is."""
    return not late_s * 1e3 <= settings.late_ms


def silent(state: GuardState, now_s: float, *, settings: GuardSettings) -> tuple[GuardState, Order]:
    """Say what the trainer is to do between frames: when none comes any more, nothing is late."""
    if state.paused and not 0 <= now_s - max(state.seen_s, state.since_s) <= settings.silence_s:
        return _resumed(state, now_s)
    return state, "none"


def _paused(state: GuardState, now_s: float, settings: GuardSettings) -> tuple[GuardState, Order]:
    again = int(state.wait * settings.backoff)
    wait = min(max(settings.resume_frames, again), max(settings.most_frames, settings.resume_frames))
    pauses = state.pauses + 1
    return replace(state, paused=True, good=0, frames=0, wait=wait, since_s=now_s, pauses=pauses), "pause"


def _resumed(state: GuardState, now_s: float) -> tuple[GuardState, Order]:
    paused_s = state.paused_s + max(0.0, now_s - state.since_s)
    return replace(state, paused=False, good=0, paused_s=paused_s), "resume"
