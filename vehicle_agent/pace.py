"""The pace at which recorded frames become due: the clock on the wall, or a clock that jumps to the next frame."""

from collections.abc import Callable
from typing import Protocol

from fedfleet.vehicle_agent.runtime import Replay

__all__ = ["Jumping", "Pace", "Wall", "run_once"]


class Pace(Protocol):
    """A clock, and how to wait for a time on it."""

    def now_s(self) -> float:
        """Return the time in seconds."""
        ...

    def wait_until(self, due_s: float) -> None:
        """Return when this time has come; at once when it is over."""
        ...


class Wall:
    """Real time: frames that cannot be answered in time are late, and may be skipped."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
        self._clock, self._sleep = clock, sleep

    def now_s(self) -> float:
        """Return the time of the clock."""
        return self._clock()

    def wait_until(self, due_s: float) -> None:
        """Sleep until then."""
        if (left_s := due_s - self._clock()) > 0:
            self._sleep(left_s)


class Jumping:
    """As fast as possible: waiting sets the clock to the time waited for, so no frame is late before it begins.

    In between it runs as the real clock does: a latency is what the computation took, and a frame that took longer
    than a period is missed, but the next one is not skipped.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ahead_s = 0.0

    def now_s(self) -> float:
        """Return the time of the clock, moved by all jumps."""
        return self._clock() + self._ahead_s

    def wait_until(self, due_s: float) -> None:
        """Jump there, forward or back."""
        self._ahead_s = due_s - self._clock()


def run_once(replay: Replay, pace: Pace) -> None:
    """Run every frame of a replay (made with ``seen`` and this pace's clock) once, each when it is due."""
    replay.due_s = pace.now_s()
    while not replay.is_over:
        pace.wait_until(replay.due_s)
        replay.run_due()
