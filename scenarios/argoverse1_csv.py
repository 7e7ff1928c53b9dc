"""One scenario of Argoverse 1: a CSV with one row per track and frame.

Columns TIMESTAMP (s), TRACK_ID, OBJECT_TYPE (AV, AGENT, OTHERS), X, Y (m, x east, y north), CITY_NAME; rows in order of
time. A scenario is 50 frames at 10 Hz, as its publisher calls it: the time stamps in real files are 0.01 to 0.51 s
apart, so that the frame's number is the clock, and the time stamps only tell the frames apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedfleet.scenarios.argoverse1_index import COLUMNS, FRAMES, RATE_HZ, Entry
from fedfleet.scenarios.csv_stream import table
from fedfleet.scenarios.records import KINDS, Scenario, ScenarioError

__all__ = ["MAX_STEP_S", "parse"]

MAX_STEP_S: Final = 1.0
T0_TOLERANCE_S: Final = 0.01

_KINDS: Final = {name: "number" if name in ("TIMESTAMP", "X", "Y") else "text" for name in COLUMNS}

Doubles = NDArray[np.float64]


def parse(data: bytes, where: str, entry: Entry) -> Scenario:
    """The scenario in a CSV; tracks sorted by id, NaN where a track has no row.

    Raises ScenarioError naming `where` for anything but the format above, a NaN, a track with two rows in a frame or
    of two types, not exactly one AV in all frames and one AGENT, and for what differs from the entry.
    """
    try:
        return _Rows(where, table(data, where, _KINDS)).scenario(entry)
    except ScenarioError as error:
        if error.detail.startswith(where):
            raise
        raise ScenarioError(error.reason, f"{where}: {error.detail}") from error


@dataclass(frozen=True)
class _Rows:
    where: str
    table: pa.Table

    def scenario(self, entry: Entry) -> Scenario:
        numbers = {name: self._numbers(name) for name in ("TIMESTAMP", "X", "Y")}
        frame, t0_s = self._frames(numbers["TIMESTAMP"], entry)
        self._check_city(entry)
        names, track = self._sorted("TRACK_ID")
        if entry.tracks is not None and len(names) != entry.tracks:
            self._fail("not-as-indexed", f"expected {entry.tracks} tracks as in the index, got {len(names)}")
        xy = np.full((len(names), FRAMES, 2), np.nan)
        xy[track, frame, 0], xy[track, frame, 1] = numbers["X"], numbers["Y"]
        self._check_once(names, track, frame)
        kinds = self._kinds(names, track)
        seen = int((~np.isnan(xy[kinds.index("AV"), :, 0])).sum())
        if seen != FRAMES:
            self._fail("missing-frames", f"expected the AV in {FRAMES} frames, got {seen}")
        return Scenario(entry.scenario, entry.region, entry.drive, RATE_HZ, t0_s, tuple(names), kinds, xy)

    def _fail(self, reason: str, text: str) -> None:
        raise ScenarioError(reason, f"{self.where}: {text}")

    def _numbers(self, name: str) -> Doubles:
        values: Doubles = self.table[name].to_numpy()
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            self._fail("nan-value", f"row {row + 2}: expected a finite {name}, got {values[row]}")
        return values

    def _frames(self, stamps: Doubles, entry: Entry) -> tuple[NDArray[np.int64], float]:
        """The frame of each row, int64[rows], and the time of frame 0 in seconds."""
        if len(stamps) == 0:
            self._fail("missing-frames", f"expected {FRAMES} frames, got no row")
        steps = np.diff(stamps)
        if np.any(steps < 0):
            row = int((steps < 0).argmax()) + 1
            self._fail(
                "shuffled-frames", f"row {row + 2}: expected rows in the order of time, got a step back"
            )
        frame = np.concatenate([[0], np.cumsum(steps > 0)])
        if frame[-1] + 1 != FRAMES:
            got = f"{frame[-1] + 1} over {stamps[-1] - stamps[0]:.1f} s"
            self._fail(
                "missing-frames", f"expected {FRAMES} frames (TIMESTAMP values) at {RATE_HZ:g} Hz, got {got}"
            )
        if steps.max() > MAX_STEP_S:
            after, got = frame[int(steps.argmax())], f"{steps.max():.2f} s"
            text = f"expected a frame within {MAX_STEP_S:g} s after frame {after}, got one after {got}"
            self._fail("missing-frames", text)
        t0_s = float(stamps[0])
        if entry.t0_s is not None and abs(t0_s - entry.t0_s) > T0_TOLERANCE_S:
            self._fail("not-as-indexed", f"expected t0 {entry.t0_s:.3f} s as in the index, got {t0_s:.3f} s")
        return frame.astype(np.int64), t0_s

    def _check_city(self, entry: Entry) -> None:
        got = self._column("CITY_NAME").dictionary.to_pylist()
        if got != [entry.city]:
            self._fail("wrong-city", f"expected CITY_NAME {entry.city}, got {', '.join(map(str, got))[:80]}")

    def _column(self, name: str) -> Any:  # noqa: ANN401 - pyarrow has no types
        column = self.table[name].combine_chunks()
        if column.null_count:
            self._fail("missing-value", f"expected a {name} in each row, got none in {column.null_count}")
        return column

    def _sorted(self, name: str) -> tuple[list[str], NDArray[np.int64]]:
        """The values of a text column, sorted, and the place of each row's among them."""
        column = self._column(name)
        values: list[str] = column.dictionary.to_pylist()
        order = sorted(range(len(values)), key=values.__getitem__)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        return [values[i] for i in order], place[column.indices.to_numpy()]

    def _check_once(self, names: list[str], track: NDArray[np.int64], frame: NDArray[np.int64]) -> None:
        times = np.bincount(track * FRAMES + frame)
        if times.max() > 1:
            at, number = divmod(int(times.argmax()), FRAMES)
            self._fail(
                "duplicate-row", f"track {names[at]} frame {number}: expected 1 row, got {times.max()}"
            )

    def _kinds(self, names: list[str], track: NDArray[np.int64]) -> tuple[str, ...]:
        values, kind = self._sorted("OBJECT_TYPE")
        unknown = sorted(set(values) - set(KINDS))
        if unknown:
            self._fail("bad-kind", f"expected OBJECT_TYPE of {', '.join(KINDS)}, got {unknown[0]!r:.40}")
        each = np.empty(len(names), dtype=np.int64)
        each[track] = kind
        mixed = each[track] != kind
        if mixed.any():
            name = names[track[int(mixed.argmax())]]
            self._fail("bad-kind", f"track {name}: expected one OBJECT_TYPE, got several")
        kinds = tuple(values[i] for i in each)
        for one in ("AV", "AGENT"):
            if kinds.count(one) != 1:
                self._fail("bad-kind", f"expected 1 {one} track, got {kinds.count(one)}")
        return kinds
