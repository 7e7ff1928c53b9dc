"""The SUMO side of a closed-loop episode: a process of its own that `closed_loop_world` starts (imports libsumo only).

May live here: driving libsumo for one episode. Runs alone because libsumo's Arrow library must not share a process
with pyarrow. stdin: one JSON order, then one line per step; stdout: the road, then what is there after each step.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, Final, TextIO

import numpy as np

__all__ = ["EGO", "STEP_S", "main"]

STEP_S: Final = 0.1
EGO: Final = "ego"
SENT_M: Final = 250.0
PATIENCE_S: Final = 30.0
LEADER_M: Final = 150.0
DEFAULT_MODE: Final = 31
BRAKING_MODE: Final = 27
"""SUMO's speed mode without its limit on deceleration, which is that of comfortable driving."""


def main() -> None:
    """Run one episode.

    Order: {net, routes, seed, start_s, history_s, ego: {edges, lane, type}, reference, own: lists of lane ids,
    handover: edge or "", events: [{at_s, to, braking_ms2, hold_s}], times}. Answers: {"road": {reference, own}}; per
    step until the handover, while SUMO drives, {"time_s", "vehicles": {id: [x, y, heading, speed, length, width]}}
    (centre, metres, radians, m/s), then {"handover": true} or {"end": reason}. From there the episode is driven so many
    times, each in a copy of this process: the same answers per step, each followed by a line of stdin, {"speed": m/s,
    "shift": metres to the left} or {"stop": true}; {"end": reason} when the ego is gone.
    """
    say = _Speaker(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what SUMO itself prints must not come between the answers
    order = json.loads(sys.stdin.readline())
    import libsumo

    libsumo.start(["sumo", *_options(order)])
    say({"road": {part: _path(libsumo, order[part]) for part in ("reference", "own")}})
    libsumo.simulation.step(order["start_s"])
    _add(libsumo, order["ego"])
    episode = _Episode(libsumo, order, say)
    if not episode.approach():
        return
    for _ in range(order["times"]):
        child = os.fork()
        if not child:
            episode.drive()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(1)


class _Speaker:
    """Writes one JSON line at a time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Write it now."""
        self._stream.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._stream.flush()


class _Episode:
    """From the ego's entry to its end: SUMO drives it up to the handover, then the lines of stdin do."""

    def __init__(self, sumo: Any, order: Mapping[str, Any], say: _Speaker) -> None:  # noqa: ANN401  libsumo
        self._sumo, self._order, self._say = sumo, order, say
        self._sizes: dict[str, tuple[float, float]] = {}
        self._entered_s: float | None = None
        self._begin_s = 0.0
        self._leader = ""
        self._events = [dict(event) for event in order["events"]]
        self._held: list[tuple[float, float]] = []

    def approach(self) -> bool:
        """Let SUMO drive up to the handover; False when the ego never came, or left before."""
        while True:
            self._sumo.simulation.step()
            now_s = self._sumo.simulation.getTime()
            if EGO not in self._sumo.vehicle.getIDList():
                if self._entered_s is None and now_s < self._order["start_s"] + PATIENCE_S:
                    continue
                self._say({"end": "never-entered" if self._entered_s is None else "left-the-road"})
                return False
            self._entered_s = now_s if self._entered_s is None else self._entered_s
            if self._is_there(now_s):
                self._take_over(now_s)
                self._say({"handover": True})
                return True
            self._say({"time_s": round(now_s, 1), "vehicles": self._vehicles()})

    def drive(self) -> None:
        """Do what stdin says, step by step, until it says stop or ends, or the ego is gone."""
        while EGO in self._sumo.vehicle.getIDList():
            now_s = self._sumo.simulation.getTime()
            self._disturb(now_s - self._begin_s)
            self._say({"time_s": round(now_s, 1), "vehicles": self._vehicles()})
            said = json.loads(sys.stdin.readline() or '{"stop":true}')
            if said.get("stop"):
                return
            self._sumo.vehicle.setSpeed(EGO, said["speed"])
            self._sumo.vehicle.changeSublane(EGO, said["shift"])
            self._sumo.simulation.step()
        self._say({"end": "left-the-road"})

    def _is_there(self, now_s: float) -> bool:
        handover = self._order["handover"]
        seen = now_s >= (self._entered_s or 0.0) + self._order["history_s"] - 1e-6
        return seen and (not handover or self._sumo.vehicle.getRoadID(EGO) == handover)

    def _take_over(self, now_s: float) -> None:
        vehicle = self._sumo.vehicle
        self._begin_s = now_s
        vehicle.setSpeedMode(EGO, 0)
        vehicle.setLaneChangeMode(EGO, 0)
        ahead = vehicle.getLeader(EGO, LEADER_M)
        self._leader = ahead[0] if ahead else ""

    def _disturb(self, at_s: float) -> None:
        """Let the vehicle that was ahead at the handover brake, keep its low speed and go on, at the order's times."""
        vehicle = self._sumo.vehicle
        if self._leader not in vehicle.getIDList():
            return
        while self._held and at_s >= self._held[0][0]:
            _, speed_ms = self._held.pop(0)
            vehicle.setSpeed(self._leader, speed_ms)
            if speed_ms < 0:
                vehicle.setSpeedMode(self._leader, DEFAULT_MODE)
        while self._events and at_s >= self._events[0]["at_s"]:
            event = self._events.pop(0)
            speed_ms = vehicle.getSpeed(self._leader)
            slow_s = max(STEP_S, speed_ms * (1.0 - event["to"]) / event["braking_ms2"])
            vehicle.setSpeedMode(self._leader, BRAKING_MODE)
            vehicle.slowDown(self._leader, event["to"] * speed_ms, slow_s)
            self._held += [(at_s + slow_s, event["to"] * speed_ms), (at_s + slow_s + event["hold_s"], -1.0)]

    def _vehicles(self) -> dict[str, list[float]]:
        vehicle = self._sumo.vehicle
        seen = {name: vehicle.getPosition(name) for name in vehicle.getIDList()}
        x0, y0 = seen[EGO]
        near = [name for name, (x, y) in seen.items() if abs(x - x0) < SENT_M and abs(y - y0) < SENT_M]
        return {name: self._one(name, seen[name]) for name in sorted(near)}

    def _one(self, name: str, front: tuple[float, float]) -> list[float]:
        vehicle = self._sumo.vehicle
        if name not in self._sizes:
            self._sizes[name] = (vehicle.getLength(name), vehicle.getWidth(name))
        length, width = self._sizes[name]
        heading = float(np.deg2rad(90.0 - vehicle.getAngle(name)))
        x = front[0] - 0.5 * length * np.cos(heading)
        y = front[1] - 0.5 * length * np.sin(heading)
        return [float(x), float(y), heading, vehicle.getSpeed(name), length, width]


def _add(sumo: Any, ego: Mapping[str, Any]) -> None:  # noqa: ANN401  the libsumo module
    sumo.route.add("ego-route", ego["edges"])
    sumo.vehicle.add(
        EGO, "ego-route", typeID=ego["type"], departLane=str(ego["lane"]), departPos="base", departSpeed="avg"
    )


def _path(sumo: Any, lanes: list[str]) -> list[list[float]]:  # noqa: ANN401  the libsumo module
    """The centre lines of lanes one after the other."""
    return [[float(x), float(y)] for lane in lanes for x, y in sumo.lane.getShape(lane)]


def _options(order: Mapping[str, Any]) -> list[str]:
    return [
        f"--net-file={order['net']}",
        f"--route-files={order['routes']}",
        f"--seed={order['seed']}",
        f"--step-length={STEP_S}",
        "--lateral-resolution=0.8",
        "--time-to-teleport=-1",
        "--collision.action=none",
        "--max-depart-delay=20",
        "--ignore-route-errors=true",
        "--xml-validation=never",
        "--no-step-log=true",
        "--no-warnings=true",
        "--duration-log.disable=true",
    ]


if __name__ == "__main__":
    main()
