"""One `Scenario` message of Waymo Open Motion (waymo-open-dataset, protos/scenario.proto), by its wire format.

Read are timestamps_seconds (1), tracks (2), scenario_id (5), sdc_track_index (6) and tracks_to_predict (11); maps and
lidar are stepped over. Of a track id (1), object_type (2) and states (3); of a state center_x (2), center_y (3) and
valid (11).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from fedfleet.scenarios.protobuf_wire import BYTES, VARINT, double, doubles, fields, signed
from fedfleet.scenarios.records import MAX_FRAMES, MAX_TRACKS, Scenario, ScenarioError
from fedfleet.scenarios.windows import Observations, clock, single

__all__ = ["TYPES", "is_scenario", "parse_scenario", "scenario_extent"]

RATE_HZ: Final = 10.0
TYPES: Final = {1: "vehicle", 2: "pedestrian", 3: "cyclist"}
_NUMBERS: Final = (1, 5)

_Track = tuple[int, int, list[tuple[int, float, float]], int]


def is_scenario(data: bytes, where: str) -> bool:
    """Whether a message is a Scenario, by its first field; a tf.Example has one field 1, which holds all of it."""
    first = next(iter(fields(data, where)), None)
    return first is None or not (first[:2] == (1, BYTES) and len(bytes(first[2])) > len(data) // 2)


def scenario_extent(data: bytes, where: str) -> tuple[str, int]:
    """Its id and its number of frames."""
    name, frames = "", 0
    for number, kind, value in fields(data, where):
        if number == 5 and isinstance(value, bytes):
            name = value.decode(errors="replace")
        elif number == 1:
            frames += len(doubles(value, where)) if kind != VARINT else 0
    if not name:
        raise ScenarioError("missing-value", f"{where}: expected a scenario_id, got none")
    return name, frames


def parse_scenario(data: bytes, where: str, region: str, drive: str) -> Scenario:
    """The scenario of a message; tracks sorted by id.

    Raises ScenarioError naming `where` for what is no such message, for time stamps of two rates, for a track with more
    or fewer states than time stamps, a NaN, and two tracks of one id.
    """
    stamps: list[float] = []
    tracks: list[_Track] = []
    targets: list[int] = []
    name, av = "", -1
    for number, _, value in fields(data, where):
        if number == 1:
            stamps += doubles(value, where).tolist()
        elif number == 2:
            tracks.append(_track(value, f"{where}: track {len(tracks)}"))
        elif number == 5 and isinstance(value, bytes):
            name = value.decode(errors="replace")
        elif number == 6 and isinstance(value, int):
            av = signed(value)
        elif number == 11 and isinstance(value, bytes):
            targets += [signed(v) for n, _, v in fields(value, where) if n == 1 and isinstance(v, int)]
        if len(tracks) > MAX_TRACKS or len(stamps) > MAX_FRAMES:
            raise ScenarioError(
                "bad-track-count", f"{where}: more than {MAX_TRACKS} tracks or {MAX_FRAMES} frames"
            )
    _, frames = clock(np.array(stamps), where, rate_hz=RATE_HZ)
    _check(tracks, len(stamps), where)
    rows = [(i, frame, x, y) for i, track in enumerate(tracks) for frame, x, y in track[2]]
    at = np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1, 2)
    seen = Observations(
        where,
        region,
        drive,
        RATE_HZ,
        stamps[0],
        [str(track[0]) for track in tracks],
        [TYPES.get(track[1], "unknown") for track in tracks],
        at[:, 0],
        frames[at[:, 1]],
        np.array([row[2:] for row in rows], dtype=np.float64).reshape(-1, 2),
        av=av if 0 <= av < len(tracks) else None,
        targets=set(targets),
    )
    return single(seen, name or drive, int(frames[-1]) + 1)


def _check(tracks: Sequence[_Track], frames: int, where: str) -> None:
    known: set[int] = set()
    for place, (one, _, _, states) in enumerate(tracks):
        if one in known:
            raise ScenarioError("duplicate-track", f"{where}: track {one} appears twice, expected once")
        known.add(one)
        if states != frames:
            text = f"{where}: track {place} (id {one}): expected {frames} states, one per time stamp, got {states}"
            raise ScenarioError("uneven-lists", text)


def _track(message: int | bytes, where: str) -> _Track:
    """Id, type, valid states as (number, x, y), and how many states there are."""
    if not isinstance(message, bytes):
        raise ScenarioError("malformed-protobuf", f"{where}: expected a message")
    one = kind = states = 0
    seen: list[tuple[int, float, float]] = []
    for number, _, value in fields(message, where):
        if number == 1 and isinstance(value, int):
            one = signed(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 3 and isinstance(value, bytes):
            place = _place(value, where)
            if place is not None:
                seen.append((states, *place))
            states += 1
    return one, kind, seen, states


def _place(state: bytes, where: str) -> tuple[float, float] | None:
    """The place of a valid state."""
    x = y = 0.0
    valid = False
    for number, _, value in fields(state, where):
        if number == 2:
            x = double(value, where)
        elif number == 3:
            y = double(value, where)
        elif number == 11:
            valid = bool(value)
    return (x, y) if valid else None
