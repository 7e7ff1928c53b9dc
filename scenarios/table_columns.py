"""The columns of a scenario table as plain arrays, checked, then decoded into scenarios.

May live here: what makes the values of a table valid, beyond its Parquet schema. numpy only.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from fedfleet.scenarios.records import MAX_FRAMES, MAX_TRACKS, Scenario, ScenarioError
from fedfleet.scenarios.table_rows import NULL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Columns"]


class Columns:
    """The columns of one file, row i of each belonging together.

    `names` holds the text columns; `numbers` rate_hz, t0_s, frames, first_frame as arrays; `lists` for dx_cm
    and dy_cm the offsets int64[rows + 1] and values int64[entries], NULL where a gap is.
    """

    def __init__(
        self,
        path: Path,
        *,
        names: Mapping[str, list[str]],
        numbers: Mapping[str, NDArray[Any]],
        lists: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]],
    ) -> None:
        self.path, self.names, self.numbers, self.lists = path, names, numbers, lists
        ids = (names[name] for name in ("region", "drive", "scenario", "track"))
        self.keys = list(zip(*ids, strict=True))
        self.rows = len(self.keys)
        self.lengths = np.diff(lists["dx_cm"][0])

    def check(self) -> None:
        """Raise ScenarioError for the first row that breaks a rule."""
        numbers, (_, dx), (offsets_y, dy) = self.numbers, self.lists["dx_cm"], self.lists["dy_cm"]
        first, frames = numbers["first_frame"].astype(np.int64), numbers["frames"].astype(np.int64)
        for name in ("rate_hz", "t0_s"):
            self._refuse(~np.isfinite(numbers[name]), "not-finite", f"{name} must be finite", numbers[name])
        self._refuse(
            (frames < 1) | (frames > MAX_FRAMES),
            "bad-frame-count",
            f"frames must be 1 to {MAX_FRAMES}",
            frames,
        )
        lengths_y = np.diff(offsets_y)
        self._refuse(
            self.lengths != lengths_y,
            "uneven-lists",
            "dx_cm and dy_cm must be equally long",
            lengths_y - self.lengths,
        )
        last = first + self.lengths
        outside = (first < 0) | (self.lengths < 1) | (last > frames)
        self._refuse(
            outside, "frames-outside", "first_frame and positions must lie inside the scenario's frames", last
        )
        starts = self.lists["dx_cm"][0][:-1]
        null_x, null_y = dx == NULL, dy == NULL
        halves = np.add.reduceat(null_x != null_y, starts) if self.rows else np.empty(0, dtype=np.int64)
        self._refuse(halves > 0, "nan-position", "dx_cm and dy_cm must be null in the same frames", halves)
        edges = null_x[starts] | null_x[starts + self.lengths - 1]
        self._refuse(edges, "nan-position", "first and last stored position must not be null", edges)
        self._check_order()

    def scenarios(self, drives: Collection[str] | None) -> Iterator[Scenario]:
        """Scenarios in table order."""
        for (region, drive, scenario), group in groupby(range(self.rows), key=lambda i: self.keys[i][:3]):
            members = list(group)
            self._check_agreement(members)
            if drives is not None and drive not in drives:
                continue
            head = members[0]
            frames = int(self.numbers["frames"][head])
            xy = np.full((len(members), frames, 2), np.nan)
            for place, row in enumerate(members):
                start = int(self.numbers["first_frame"][row])
                xy[place, start : start + int(self.lengths[row])] = self._positions(row)
            try:
                yield Scenario(
                    scenario_id=scenario,
                    region=region,
                    drive=drive,
                    rate_hz=float(self.numbers["rate_hz"][head]),
                    t0_s=float(self.numbers["t0_s"][head]),
                    track_ids=tuple(self.names["track"][i] for i in members),
                    kinds=tuple(self.names["kind"][i] for i in members),
                    xy=xy,
                )
            except ScenarioError as error:
                raise ScenarioError(error.reason, f"{self.path} row {head}: {error.detail}") from None

    def _positions(self, row: int) -> NDArray[np.float64]:
        """float64[entries, 2] metres, NaN in gaps."""
        out = np.empty((int(self.lengths[row]), 2))
        for axis, name in enumerate(("dx_cm", "dy_cm")):
            offsets, flat = self.lists[name]
            steps = flat[offsets[row] : offsets[row + 1]]
            gap = steps == NULL
            out[:, axis] = np.cumsum(np.where(gap, 0, steps), dtype=np.int64) / 100.0
            out[gap, axis] = np.nan
        return out

    def _refuse(self, bad: NDArray[Any], reason: str, rule: str, got: NDArray[Any]) -> None:
        if bad.any():
            row = int(bad.argmax())
            raise ScenarioError(reason, f"{self._where(row)}: {rule}, got {got[row]}")

    def _where(self, row: int) -> str:
        _, drive, scenario, track = self.keys[row]
        return f"{self.path} row {row} (drive {drive!r}, scenario {scenario!r}, track {track!r})"

    def _check_order(self) -> None:
        for row in range(1, self.rows):
            if self.keys[row] == self.keys[row - 1]:
                raise ScenarioError(
                    "duplicate-track", f"{self._where(row)}: expected one row per track, got two"
                )
            if self.keys[row] < self.keys[row - 1]:
                text = "rows must ascend by region, drive, scenario, track; got a smaller key"
                raise ScenarioError("shuffled-rows", f"{self._where(row)}: {text}")

    def _check_agreement(self, members: list[int]) -> None:
        if len(members) > MAX_TRACKS:
            text = f"{self._where(members[0])}: expected at most {MAX_TRACKS} tracks, got {len(members)}"
            raise ScenarioError("bad-track-count", text)
        for name in ("rate_hz", "t0_s", "frames"):
            values = self.numbers[name][members]
            if (values != values[0]).any():
                row = members[int((values != values[0]).argmax())]
                got = self.numbers[name][row]
                text = f"{name} must be {values[0]} as in the scenario's first row, got {got}"
                raise ScenarioError("uneven-scenario", f"{self._where(row)}: {text}")
