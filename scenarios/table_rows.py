"""Scenarios as canonical table rows, and the hash over them.

May live here: the row form of the scenario table (centimetres, first position then differences) and its
SHA-256. numpy only; `table` puts these rows into Parquet.
"""

from __future__ import annotations

import hashlib
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from fedfleet.scenarios.records import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from fedfleet.scenarios.records import Scenario

__all__ = ["NULL", "VERSION", "Digest", "Row", "rows", "table_sha256"]

VERSION: Final = 2
NULL: Final = -(2**31)
MAX_STEP_CM: Final = 2**31 - 1
_NAMES: Final = ("region", "drive", "scenario", "track", "kind", "type")


class Row(NamedTuple):
    """One track of one scenario; `dx_cm` and `dy_cm` are int32, NULL where a gap is. Version 1 does not keep `type`."""

    region: str
    drive: str
    scenario: str
    track: str
    kind: str
    rate_hz: float
    t0_s: float
    frames: int
    first_frame: int
    dx_cm: NDArray[np.int32]
    dy_cm: NDArray[np.int32]
    type: str = "unknown"


def table_sha256(scenarios: Iterable[Scenario], *, version: int = VERSION) -> str:
    """Hash of the table that holds these scenarios, 64 hex digits, whatever their order."""
    digest = Digest(version)
    for row in rows(scenarios):
        digest.add(row)
    return digest.hex()


def rows(scenarios: Iterable[Scenario]) -> Iterator[Row]:
    """Rows in table order; raises ScenarioError for two scenarios of the same name and drive."""
    ordered = sorted(scenarios, key=lambda s: (s.region, s.drive, s.scenario_id))
    for before, after in pairwise(ordered):
        if (before.region, before.drive, before.scenario_id) == (
            after.region,
            after.drive,
            after.scenario_id,
        ):
            text = f"scenario {after.scenario_id!r} of drive {after.drive!r} appears twice, expected once"
            raise ScenarioError("duplicate-scenario", text)
    for s in ordered:
        cells = np.where(np.isnan(s.xy), 0.0, s.xy)
        cm = np.rint(cells * 100.0).astype(np.int64)
        seen = ~np.isnan(s.xy[..., 0])
        for i in sorted(range(len(s.track_ids)), key=s.track_ids.__getitem__):
            first = int(seen[i].argmax())
            dx, dy = (_differences(cm[i, :, axis], seen[i]) for axis in (0, 1))
            yield Row(
                s.region,
                s.drive,
                s.scenario_id,
                s.track_ids[i],
                s.kinds[i],
                s.rate_hz,
                s.t0_s,
                s.frames,
                first,
                dx,
                dy,
                s.types[i],
            )


def _differences(cm: NDArray[np.int64], seen: NDArray[np.bool_]) -> NDArray[np.int32]:
    at = np.flatnonzero(seen)
    values = np.full(int(at[-1] - at[0]) + 1, NULL, dtype=np.int32)
    steps = np.diff(cm[at], prepend=0)
    if np.abs(steps).max() > MAX_STEP_CM:
        text = f"a track goes {np.abs(steps).max() / 100:.0f} m in a step, limit {MAX_STEP_CM / 100:.0f} m"
        raise ScenarioError("far-position", text)
    values[at - at[0]] = steps
    return values


class Digest:
    """SHA-256 over rows that come in table order, as `table` documents it."""

    def __init__(self, version: int) -> None:
        self._names = _NAMES if version > 1 else _NAMES[:-1]
        self._sha = hashlib.sha256(f"fedfleet.scenarios {version}\n".encode())

    def add(self, row: Row) -> None:
        """Take one more row."""
        for name in self._names:
            text = getattr(row, name).encode()
            self._sha.update(struct.pack("<I", len(text)) + text)
        head = struct.pack("<fdhhI", row.rate_hz, row.t0_s, row.frames, row.first_frame, len(row.dx_cm))
        self._sha.update(head + row.dx_cm.astype("<i4").tobytes() + row.dy_cm.astype("<i4").tobytes())

    def hex(self) -> str:
        """The hash so far, 64 hex digits."""
        return self._sha.hexdigest()
