"""One `tf.Example` of Waymo Open Motion (waymo.com/open, "Motion dataset", tf.Example format), by its wire format.

The 128 tracks of 10 past, 1 current and 80 future frames are flat lists (`state/past/x` and so on, float32, metres);
places that are not valid, and tracks without an id, were not seen.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.protobuf_wire import fields, floats, whole
from fedfleet.scenarios.records import MAX_FRAMES, MAX_TRACKS, Scenario, ScenarioError
from fedfleet.scenarios.waymo_scenario import TYPES
from fedfleet.scenarios.windows import Observations, clock, single

__all__ = ["example_extent", "parse_example"]

RATE_HZ: Final = 10.0
_TIMES: Final = ("past", "current", "future")
_EACH: Final = ("x", "y", "valid", "timestamp_micros")
_ONCE: Final = ("state/id", "state/type", "state/is_sdc", "state/tracks_to_predict")
_WANTED: Final = {f"state/{time}/{name}" for time in _TIMES for name in _EACH} | set(_ONCE) | {"scenario/id"}


def example_extent(data: bytes, where: str) -> tuple[str, int]:
    """Its scenario id and its number of frames."""
    found = _features(data, where, {"scenario/id", "state/id", *(f"state/{time}/valid" for time in _TIMES)})
    tracks = max(len(found["state/id"]), 1)
    return _name(found, where), sum(len(found[f"state/{time}/valid"]) // tracks for time in _TIMES)


def parse_example(data: bytes, where: str, region: str, drive: str) -> Scenario:
    """The scenario of an example; tracks sorted by id. Raises ScenarioError as `parse_scenario`."""
    found = _features(data, where, _WANTED)
    tracks = len(found["state/id"])
    if not 1 <= tracks <= MAX_TRACKS:
        raise ScenarioError("bad-track-count", f"{where}: expected 1 to {MAX_TRACKS} tracks, got {tracks}")
    for name in _ONCE:
        _shaped(found[name], (tracks, 1), f"{where}: {name}")
    columns = {name: _joined(found, name, tracks, where) for name in _EACH}
    valid = columns["valid"] == 1
    if not valid.any() or valid.shape[1] > MAX_FRAMES:
        text = f"{where}: expected valid states in 1 to {MAX_FRAMES} frames, got {valid.shape[1]} frames"
        raise ScenarioError("bad-frame-count", text)
    _check_clock(columns["timestamp_micros"], valid, where)
    track, frame = np.nonzero(valid)
    present = np.unique(track)
    xy = np.stack([columns["x"][valid], columns["y"][valid]], axis=1).astype(np.float64)
    flags = {name: np.flatnonzero(np.asarray(found[name]) == 1) for name in _ONCE[2:]}
    sdc = [int(i) for i in flags["state/is_sdc"] if i in present]
    seen = Observations(
        where,
        region,
        drive,
        RATE_HZ,
        0.0,
        [str(int(one)) for one in found["state/id"]],
        [TYPES.get(int(kind), "unknown") for kind in found["state/type"]],
        track.astype(np.int64),
        frame.astype(np.int64),
        xy,
        av=sdc[0] if sdc else None,
        targets={int(i) for i in flags["state/tracks_to_predict"]},
    )
    return single(seen, _name(found, where), valid.shape[1])


def _features(data: bytes, where: str, wanted: set[str]) -> dict[str, Any]:
    """The wanted features: Example.features (1), a map (1) of name (1) to bytes (1), floats (2) or ints (3)."""
    found: dict[str, Any] = {}
    for number, _, value in fields(data, where):
        if number == 1 and isinstance(value, bytes):
            for _, _, entry in fields(value, where):
                if isinstance(entry, bytes):
                    pair = {n: v for n, _, v in fields(entry, where)}
                    name = bytes(pair.get(1, b"") or b"").decode(errors="replace")
                    if name in wanted and isinstance(pair.get(2), bytes):
                        found[name] = _values(pair[2], f"{where}: {name}")
    missing = sorted(wanted - set(found))
    if missing:
        raise ScenarioError("missing-column", f"{where}: expected feature {missing[0]}, got none")
    return found


def _values(feature: Any, where: str) -> Any:  # noqa: ANN401 - one of three kinds of lists
    for number, _, listed in fields(feature, where):
        inner = (
            [value for n, _, value in fields(listed, where) if n == 1] if isinstance(listed, bytes) else []
        )
        if number == 1:
            return inner
        if number == 2:
            return np.concatenate([np.empty(0, dtype=np.float32), *(floats(each, where) for each in inner)])
        if number == 3:
            return np.array([one for each in inner for one in whole(each, where)], dtype=np.int64)
    return np.empty(0)


def _name(found: dict[str, Any], where: str) -> str:
    listed = found["scenario/id"]
    if len(listed) != 1:
        raise ScenarioError("missing-value", f"{where}: expected one scenario/id, got {len(listed)}")
    return bytes(listed[0]).decode(errors="replace")


def _joined(found: dict[str, Any], name: str, tracks: int, where: str) -> NDArray[Any]:
    """Past, current and future side by side: [tracks, frames]."""
    parts = []
    for time in _TIMES:
        values = found[f"state/{time}/{name}"]
        frames = len(found[f"state/{time}/valid"]) // tracks
        parts.append(_shaped(values, (tracks, frames), f"{where}: state/{time}/{name}"))
    return np.concatenate(parts, axis=1)


def _shaped(values: Any, shape: tuple[int, int], where: str) -> NDArray[Any]:  # noqa: ANN401 - a list or an array
    if len(values) != shape[0] * shape[1]:
        text = f"{where}: expected {shape[0]} × {shape[1]} values, got {len(values)}"
        raise ScenarioError("uneven-lists", text)
    return np.asarray(values).reshape(shape)


def _check_clock(stamps: NDArray[Any], valid: NDArray[np.bool_], where: str) -> None:
    """Frames that any track was seen in are 0.1 s apart."""
    micros = np.where(valid, stamps, -1).max(axis=0)
    seen = micros[micros >= 0].astype(np.float64)
    clock(seen * 1e-6, where, rate_hz=RATE_HZ)
