"""The record of one driving scenario: tracks of positions on one frame clock.

May live here: the frozen `Scenario`, its limits and the one error of this room. numpy only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "KINDS",
    "MAX_COORDINATE_M",
    "MAX_FRAMES",
    "MAX_NAME_CHARS",
    "MAX_RATE_HZ",
    "MAX_TRACKS",
    "TYPES",
    "Scenario",
    "ScenarioError",
]

KINDS: Final = ("AV", "AGENT", "OTHERS")
TYPES: Final = ("vehicle", "truck", "bus", "motorcycle", "cyclist", "pedestrian", "static", "unknown")
MAX_FRAMES: Final = 4096
MAX_TRACKS: Final = 4096
MAX_RATE_HZ: Final = 1000.0
MAX_COORDINATE_M: Final = 2.0e7
MAX_NAME_CHARS: Final = 128

_REGION = re.compile(r"[a-z0-9-]{1,36}\Z")


class ScenarioError(Exception):
    """A scenario or a scenario file is not what it must be: a short kebab-case reason and one clear line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, eq=False)
class Scenario:
    """A few seconds of traffic; one that exists is valid.

    `xy` is float64[tracks, frames, 2] in metres, x east and y north in a local plane, read-only, NaN where a
    track was not observed (both coordinates or none; at least one observed frame per track). Frame i is at
    `t0_s + i / rate_hz` seconds. `kinds` holds "AV" (at most one), "AGENT" (judged) or "OTHERS" per track,
    `types` one of TYPES; "unknown" for each track where none are given.

    Raises ScenarioError naming the scenario and, where there is one, the track.
    """

    scenario_id: str
    region: str
    drive: str
    rate_hz: float
    t0_s: float
    track_ids: tuple[str, ...]
    kinds: tuple[str, ...]
    xy: NDArray[np.float64]
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.types:
            object.__setattr__(self, "types", ("unknown",) * len(self.track_ids))
        self._check_names()
        self._check_clock()
        self._check_tracks()
        self._check_types()
        self._check_positions()
        self.xy.flags.writeable = False

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.xy.shape[1])

    @property
    def seconds(self) -> float:
        """Length in seconds, one frame period per frame."""
        return self.frames / self.rate_hz

    def _fail(self, reason: str, text: str) -> None:
        raise ScenarioError(reason, f"scenario {self.scenario_id!r}: {text}")

    def _check_names(self) -> None:
        for field in ("scenario_id", "drive"):
            value = getattr(self, field)
            if not _is_name(value):
                self._fail(
                    "bad-name",
                    f"{field} must be 1 to {MAX_NAME_CHARS} printable characters, got {value!r:.60}",
                )
        if not isinstance(self.region, str) or not _REGION.match(self.region):
            self._fail("bad-region", f"region must match [a-z0-9-]{{1,36}}, got {self.region!r:.60}")

    def _check_clock(self) -> None:
        if not (math.isfinite(self.rate_hz) and 0.0 < self.rate_hz <= MAX_RATE_HZ):
            self._fail("bad-rate", f"rate_hz must be above 0 and at most {MAX_RATE_HZ:g}, got {self.rate_hz}")
        if not math.isfinite(self.t0_s):
            self._fail("bad-time", f"t0_s must be finite, got {self.t0_s}")

    def _check_tracks(self) -> None:
        count = len(self.track_ids)
        if not 1 <= count <= MAX_TRACKS:
            self._fail("bad-track-count", f"expected 1 to {MAX_TRACKS} tracks, got {count}")
        if len(self.kinds) != count:
            self._fail("bad-kinds", f"expected {count} kinds, one per track, got {len(self.kinds)}")
        for track, kind in zip(self.track_ids, self.kinds, strict=True):
            if not _is_name(track):
                self._fail(
                    "bad-name",
                    f"track id must be 1 to {MAX_NAME_CHARS} printable characters, got {track!r:.60}",
                )
            if kind not in KINDS:
                self._fail(
                    "bad-kind", f"track {track!r}: kind must be one of {', '.join(KINDS)}, got {kind!r:.60}"
                )
        track, times = Counter(self.track_ids).most_common(1)[0]
        if times > 1:
            self._fail("duplicate-track", f"track {track!r} appears {times} times, expected once")
        if self.kinds.count("AV") > 1:
            self._fail("bad-kinds", f"expected at most one AV track, got {self.kinds.count('AV')}")

    def _check_types(self) -> None:
        count = len(self.track_ids)
        if len(self.types) != count:
            self._fail("bad-type", f"expected {count} types, one per track, got {len(self.types)}")
        for track, each in zip(self.track_ids, self.types, strict=True):
            if each not in TYPES:
                text = f"track {track!r}: type must be one of {', '.join(TYPES)}, got {each!r:.60}"
                self._fail("bad-type", text)

    def _check_positions(self) -> None:
        xy = self.xy
        if not isinstance(xy, np.ndarray) or xy.dtype != np.float64 or xy.ndim != 3 or xy.shape[2] != 2:
            got = f"{xy.dtype}{list(xy.shape)}" if isinstance(xy, np.ndarray) else type(xy).__name__
            self._fail("bad-shape", f"xy must be float64[tracks, frames, 2], got {got}")
        if xy.shape[0] != len(self.track_ids):
            self._fail("bad-shape", f"xy must hold {len(self.track_ids)} tracks, got {xy.shape[0]}")
        if not 1 <= xy.shape[1] <= MAX_FRAMES:
            self._fail("bad-frame-count", f"expected 1 to {MAX_FRAMES} frames, got {xy.shape[1]}")
        missing = np.isnan(xy)
        self._check_each(
            missing[..., 0] != missing[..., 1], "nan-position", "one coordinate is NaN, expected both or none"
        )
        self._check_each(
            np.any(np.isinf(xy), axis=2), "infinite-position", "a coordinate is infinite, expected metres"
        )
        self._check_each(
            np.any(np.abs(xy) > MAX_COORDINATE_M, axis=2),
            "far-position",
            f"a coordinate is beyond {MAX_COORDINATE_M:g} m of the origin",
        )
        empty = missing.all(axis=(1, 2))
        if empty.any():
            self._fail(
                "empty-track",
                f"track {self.track_ids[int(empty.argmax())]!r} has no observed frame, expected at least 1",
            )

    def _check_each(self, bad: NDArray[np.bool_], reason: str, text: str) -> None:
        if bad.any():
            track, frame = (int(i) for i in np.argwhere(bad)[0])
            self._fail(reason, f"track {self.track_ids[track]!r} frame {frame}: {text}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= MAX_NAME_CHARS and value.isprintable()
