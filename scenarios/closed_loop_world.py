"""The world of an episode as the loop sees it, and SUMO behind it in a process of its own.

May live here: the port `World`, its values, and the pipe to `closed_loop_sumo`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from fedfleet.models import extras
from fedfleet.models.interpreter import module_command
from fedfleet.scenarios.closed_loop_plan import Plan, order
from fedfleet.scenarios.closed_loop_road import Road
from fedfleet.scenarios.closed_loop_sumo import EGO
from fedfleet.scenarios.records import ScenarioError

__all__ = ["Seen", "SumoWorld", "Vehicle", "World", "require_sumo"]


@dataclass(frozen=True)
class Vehicle:
    """Where a vehicle is: centre in metres, heading in radians from east, m/s, size in metres."""

    x_m: float
    y_m: float
    heading: float
    speed_ms: float
    length_m: float
    width_m: float


@dataclass(frozen=True)
class Seen:
    """One frame: the ego and the others near it."""

    time_s: float
    ego: Vehicle
    others: Mapping[str, Vehicle]


class World(Protocol):
    """One episode of a world in steps of 0.1 s, driven several times from the same handover."""

    @property
    def road(self) -> Road:
        """Return the road."""

    @property
    def before(self) -> Sequence[Seen]:
        """Return the frames before the handover; none when the ego never came."""

    def next(self) -> Seen | None:
        """Return the frame to act on; None when the ego has left the road."""

    def act(self, speed_ms: float, shift_m: float) -> None:
        """Drive the next 0.1 s at this speed, and shift so many metres to the left from now on."""

    def again(self) -> None:
        """Go back to the handover."""


class SumoWorld:
    """SUMO for one episode that is driven `times` times; use it in a `with`.

    Raises UsageError without the extra, ScenarioError when SUMO fails.
    """

    def __init__(self, plan: Plan, *, times: int) -> None:
        require_sumo()
        self._plan, self._times = plan, times
        self.before: list[Seen] = []

    def __enter__(self) -> Self:
        """Start the process and let SUMO drive up to the handover."""
        self._folder = tempfile.TemporaryDirectory(prefix="fedfleet-closed-loop-")
        folder = Path(self._folder.name)
        self._log = folder / "errors.txt"
        with self._log.open("wb") as errors:
            self._child = subprocess.Popen(
                module_command("fedfleet.scenarios.closed_loop_sumo"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self._say(order(self._plan, folder, times=self._times))
            roads = {part: np.array(points) for part, points in self._hear()["road"].items()}
            self.road = Road.of(roads["reference"], roads["own"] if len(roads["own"]) else None)
            while "vehicles" in (heard := self._hear()):
                self.before.append(_seen(heard))
            if "end" in heard:
                self.before = []
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process; a copy of it that still drives ends with its input."""
        self._child.kill()
        self._child.communicate()
        self._folder.cleanup()

    def next(self) -> Seen | None:
        """Return the frame to act on; None when the ego has left the road."""
        heard = self._hear()
        return None if "end" in heard else _seen(heard)

    def act(self, speed_ms: float, shift_m: float) -> None:
        """Drive the next 0.1 s at this speed, and shift so many metres to the left from now on."""
        self._say({"speed": speed_ms, "shift": shift_m})

    def again(self) -> None:
        """Go back to the handover; the last frame was not acted on."""
        self._say({"stop": True})

    def _say(self, line: Mapping[str, Any]) -> None:
        pipe = self._child.stdin
        try:
            if pipe is not None:
                pipe.write(json.dumps(line) + "\n")
                pipe.flush()
        except OSError as error:
            raise self._failed() from error

    def _hear(self) -> dict[str, Any]:
        line = self._child.stdout.readline() if self._child.stdout is not None else ""
        if not line:
            raise self._failed()
        heard: dict[str, Any] = json.loads(line)
        return heard

    def _failed(self) -> ScenarioError:
        status = self._child.wait()
        said = self._log.read_text(errors="replace").strip().splitlines()
        last = said[-1] if said else "no message"
        return ScenarioError(
            "simulation-failed",
            f"{self._plan.situation} episode {self._plan.number}: SUMO ended with status {status}: {last:.200}",
        )


def _seen(heard: Mapping[str, Any]) -> Seen:
    others = {name: Vehicle(*values) for name, values in heard["vehicles"].items()}
    ego = others.pop(EGO)
    return Seen(heard["time_s"], ego, others)


def require_sumo() -> None:
    """Raise UsageError unless libsumo is installed."""
    extras.need("libsumo", what="the closed loop")
