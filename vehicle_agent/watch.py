"""The guard at work: fed with every frame by the thread of the frames, it stops and continues the trainers."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from fedfleet.vehicle_agent.guard import GuardSettings, GuardState, Order, is_late, silent, step

__all__ = ["Pausable", "Watch"]


class Pausable(Protocol):
    """Trainers that can be stopped and continued at once, from any thread."""

    @property
    def is_busy(self) -> bool:
        """Whether one is at work."""
        ...

    def pause(self) -> None:
        """Stop all."""

    def resume(self) -> None:
        """Let all go on."""


class Watch:
    """One guard for all vehicles of a process. ``tell`` is a hook for who measures; it gets every order."""

    def __init__(self, settings: GuardSettings, trainers: Pausable) -> None:
        self._settings, self._trainers = settings, trainers
        self._lock = threading.Lock()
        self.state = GuardState()
        self.tell: Callable[[Order, float], None] = lambda _order, _now_s: None

    def frame(self, late_s: float, now_s: float) -> None:
        """Take a frame whose result came ``late_s`` after its time. A late one stops trainers at work."""
        if not self._settings.enabled:
            return
        with self._lock:
            if not self.state.paused and not self._trainers.is_busy:
                late = is_late(late_s, self._settings)
                self.state = replace(self.state, late=self.state.late + late)
            else:
                self.state, order = step(self.state, late_s, now_s, settings=self._settings)
                self._do(order, now_s)

    def tick(self, now_s: float) -> None:
        """Let trainers go on when no frame comes any more, or none of them is left."""
        with self._lock:
            self.state, order = silent(self.state, now_s, settings=self._settings)
            self._do(order, now_s)

    def figures(self) -> dict[str, Any]:
        """Return the counts for the metrics."""
        state = self.state
        return {"late": state.late, "pauses": state.pauses, "paused_s": state.paused_s}

    def _do(self, order: Order, now_s: float) -> None:
        if order == "pause":
            self._trainers.pause()
        elif order == "resume":
            self._trainers.resume()
        if order != "none":
            self.tell(order, now_s)
