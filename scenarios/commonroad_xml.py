"""One scenario of CommonRoad: XML, version 2020a (commonroad.in.tum.de, "CommonRoad: XML format 2020a", section 2).

Of a `dynamicObstacle` the initial state and the states of its trajectory are read: exact positions (`point`, metres in
the scenario's own frame) at whole time steps of `timeStepSize` seconds. An obstacle whose positions are areas or whose
motion is a set or a distribution has no recorded track, and is refused. Lanelets and signs are not read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from typing import Final
from xml.etree.ElementTree import Element

import numpy as np

from fedfleet.scenarios.markup import parse_xml
from fedfleet.scenarios.records import MAX_FRAMES, Scenario, ScenarioError
from fedfleet.scenarios.windows import kinds_of

__all__ = ["TYPES", "extent", "parse"]

VERSIONS: Final = ("2020a", "2018b")
TYPES: Final = {
    "car": "vehicle",
    "taxi": "vehicle",
    "priorityVehicle": "vehicle",
    "truck": "truck",
    "bus": "bus",
    "motorcycle": "motorcycle",
    "bicycle": "cyclist",
    "pedestrian": "pedestrian",
    "parkedVehicle": "static",
    "constructionZone": "static",
}
_STEP: Final = re.compile(rb"timeStepSize\s*=\s*[\"']([0-9.eE+-]+)[\"']")
_TIME: Final = re.compile(rb"<time>\s*<exact>\s*(\d{1,9})\s*</exact>\s*</time>")

State = tuple[int, float, float]


def extent(data: bytes, where: str) -> float:
    """Seconds from the first to the last time step of a file, found without building its tree."""
    step = _STEP.search(data)
    times = [int(found) for found in set(_TIME.findall(data))]
    if step is None or not times:
        text = f"{where}: expected timeStepSize and states with exact times, got none"
        raise ScenarioError("missing-value", text)
    return (max(times) - min(times) + 1) * float(step[1])


def parse(data: bytes, where: str, region: str, drive: str) -> Scenario:
    """The scenario in a file; tracks sorted by id; judged are vehicles that are seen in all of its frames.

    Raises ScenarioError naming `where` and the obstacle for anything but the format above, a NaN, two states of one
    obstacle at one time, two obstacles of one id.
    """
    root = parse_xml(data, where)
    version = root.get("commonRoadVersion")
    if root.tag != "commonRoad" or version not in VERSIONS:
        text = (
            f"{where}: expected <commonRoad> of version {' or '.join(VERSIONS)}, got <{root.tag}> {version}"
        )
        raise ScenarioError("unknown-version", text)
    step_s = _number(root.get("timeStepSize"), f"{where}: timeStepSize")
    if step_s <= 0:
        raise ScenarioError("bad-rate", f"{where}: expected a timeStepSize above 0, got {step_s}")
    obstacles = [each for each in root if each.tag in ("dynamicObstacle", "obstacle")]
    moving = [each for each in obstacles if each.findtext("role") != "static"]
    tracks = {str(each.get("id")): _states(each, f"{where}: obstacle {each.get('id')}") for each in moving}
    _check_ids(moving, where)
    first, frames = _frames(tracks, where)
    names = sorted(tracks)
    xy = np.full((len(names), frames, 2), np.nan)
    for row, name in enumerate(names):
        for time, x, y in tracks[name]:
            xy[row, time - first] = x, y
    kind = {
        str(each.get("id")): TYPES.get((each.findtext("type") or "").strip(), "unknown") for each in moving
    }
    types = tuple(kind[name] for name in names)
    name = str(root.get("benchmarkID") or where)
    try:
        rate_hz = _rate(step_s)
        kinds = kinds_of(types, xy, rate_hz)
        return Scenario(name, region, drive, rate_hz, first * step_s, tuple(names), kinds, xy, types)
    except ScenarioError as error:
        raise ScenarioError(error.reason, f"{where}: {error.detail}") from None


def _states(obstacle: Element, where: str) -> list[State]:
    """Time step, x and y of each state, in order of time."""
    trajectory = obstacle.find("trajectory")
    if trajectory is None:
        got = next((e.tag for e in obstacle if e.tag in ("occupancySet", "probabilityDistribution")), "none")
        raise ScenarioError("no-trajectory", f"{where}: expected a trajectory, got {got}")
    initial = obstacle.find("initialState")
    elements = [*([] if initial is None else [initial]), *trajectory]
    states = [_state(element, where) for element in elements]
    for (before, _, _), (after, _, _) in pairwise(states):
        if after <= before:
            text = f"{where}: expected rising time steps, got {after} after {before}"
            raise ScenarioError("duplicate-row" if after == before else "shuffled-frames", text)
    return states


def _state(element: Element, where: str) -> State:
    time = element.findtext("time/exact")
    if time is None or not time.strip().isdecimal():
        raise ScenarioError("missing-value", f"{where}: expected an exact time step, got {time!r:.40}")
    point = element.find("position/point")
    if point is None:
        raise ScenarioError(
            "missing-value", f"{where} time {time.strip()}: expected an exact position (point)"
        )
    x, y = (_number(point.findtext(axis), f"{where} time {time.strip()}: {axis}") for axis in ("x", "y"))
    return int(time), x, y


def _frames(tracks: dict[str, list[State]], where: str) -> tuple[int, int]:
    """The first time step and the number of them."""
    if not tracks:
        raise ScenarioError("no-tracks", f"{where}: expected at least 1 moving obstacle, got none")
    times = [time for states in tracks.values() for time in (states[0][0], states[-1][0])]
    first, frames = min(times), max(times) - min(times) + 1
    if frames > MAX_FRAMES:
        raise ScenarioError("bad-frame-count", f"{where}: expected 1 to {MAX_FRAMES} frames, got {frames}")
    return first, frames


def _check_ids(obstacles: list[Element], where: str) -> None:
    name, times = (
        Counter(str(each.get("id")) for each in obstacles).most_common(1)[0] if obstacles else ("", 0)
    )
    if times > 1:
        raise ScenarioError(
            "duplicate-track", f"{where}: obstacle {name} appears {times} times, expected once"
        )


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ScenarioError("nan-value", f"{where}: expected a finite number, got {text!r:.40}")
    return value


def _rate(step_s: float) -> float:
    """Frames per second: a whole number where it is one but for rounding."""
    rate = 1.0 / step_s
    return float(round(rate)) if abs(rate - round(rate)) < 1e-9 * rate else rate
