"""Rows of a scenario table as arrays: positions of all tracks one after the other, with offsets; checked, then viewed.

May live here: what makes the values of a table valid, beyond its Parquet schema. numpy only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.records import MAX_FRAMES, MAX_TRACKS, Scenario, ScenarioError
from fedfleet.scenarios.table_rows import NULL

__all__ = ["Arrays", "Texts"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Texts:
    """A column of names: row i is `values[codes[i]]`."""

    codes: Integers
    values: tuple[str, ...]

    def __getitem__(self, row: int) -> str:
        return self.values[int(self.codes[row])]

    @cached_property
    def ranks(self) -> Integers:
        """The place of each row's name in their order."""
        rank = np.empty(len(self.values), dtype=np.int64)
        rank[sorted(range(len(self.values)), key=self.values.__getitem__)] = np.arange(len(self.values))
        return rank[self.codes]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Consecutive rows of one file, whole scenarios, row i of each column belonging together; `first_row` is row 0's.

    `names` holds the text columns; `numbers` rate_hz, t0_s, frames, first_frame as arrays; `lists` for dx_cm and dy_cm
    the offsets int64[rows + 1] and values int64[entries], NULL where a gap is.
    """

    path: Path
    first_row: int
    names: Mapping[str, Texts]
    numbers: Mapping[str, NDArray[Any]]
    lists: Mapping[str, tuple[Integers, Integers]]

    @property
    def rows(self) -> int:
        """How many tracks."""
        return len(self.numbers["frames"])

    @cached_property
    def track_offsets(self) -> Integers:
        """int64[rows + 1]: positions `track_offsets[i]` to `track_offsets[i + 1]` are of row i."""
        return self.lists["dx_cm"][0]

    @cached_property
    def scenario_offsets(self) -> Integers:
        """int64[scenarios + 1]: rows `scenario_offsets[i]` to `scenario_offsets[i + 1]` are of scenario i."""
        if not self.rows:
            return np.zeros(1, dtype=np.int64)
        codes = [self.names[name].codes for name in ("region", "drive", "scenario")]
        new = np.logical_or.reduce([each[1:] != each[:-1] for each in codes])
        return np.concatenate([[0], np.flatnonzero(new) + 1, [self.rows]])

    @cached_property
    def xy(self) -> NDArray[np.float64]:
        """float64[positions, 2] metres, NaN in gaps."""
        out = np.empty((int(self.track_offsets[-1]), 2))
        for axis, name in enumerate(("dx_cm", "dy_cm")):
            offsets, flat = self.lists[name]
            gap = flat == NULL
            total = np.cumsum(np.where(gap, 0, flat))
            before = np.concatenate([[0], total])[offsets[:-1]]
            out[:, axis] = (total - np.repeat(before, np.diff(offsets))) / 100.0
            out[gap, axis] = np.nan
        return out

    @cached_property
    def frame(self) -> Integers:
        """int64[positions]: the frame of each position in its scenario."""
        start = self.numbers["first_frame"].astype(np.int64) - self.track_offsets[:-1]
        return np.repeat(start, np.diff(self.track_offsets)) + np.arange(int(self.track_offsets[-1]))

    def check(self) -> None:
        """Raise ScenarioError naming file, row and track for the first row that breaks a rule."""
        numbers, (_, dx), (offsets_y, dy) = self.numbers, self.lists["dx_cm"], self.lists["dy_cm"]
        first, frames = numbers["first_frame"].astype(np.int64), numbers["frames"].astype(np.int64)
        lengths, lengths_y = np.diff(self.track_offsets), np.diff(offsets_y)
        for name in ("rate_hz", "t0_s"):
            self._refuse(~np.isfinite(numbers[name]), "not-finite", f"{name} must be finite", numbers[name])
        bad = (frames < 1) | (frames > MAX_FRAMES)
        self._refuse(bad, "bad-frame-count", f"frames must be 1 to {MAX_FRAMES}", frames)
        text = "dx_cm and dy_cm must be equally long"
        self._refuse(lengths != lengths_y, "uneven-lists", text, lengths_y - lengths)
        last = first + lengths
        text = "first_frame and positions must lie inside the scenario's frames"
        self._refuse((first < 0) | (lengths < 1) | (last > frames), "frames-outside", text, last)
        starts = self.track_offsets[:-1]
        null_x, null_y = dx == NULL, dy == NULL
        halves = np.add.reduceat(null_x != null_y, starts) if self.rows else np.empty(0, dtype=np.int64)
        self._refuse(halves > 0, "nan-position", "dx_cm and dy_cm must be null in the same frames", halves)
        edges = null_x[starts] | null_x[starts + lengths - 1]
        self._refuse(edges, "nan-position", "first and last stored position must not be null", edges)
        self._check_order()
        self._check_agreement()

    def scenarios(self, rows: tuple[int, int] | None = None) -> Iterator[Scenario]:
        """The scenarios in table order: all, or those that begin in these rows of the arrays."""
        first, end = rows or (0, self.rows)
        for start, stop in zip(
            self.scenario_offsets[:-1].tolist(), self.scenario_offsets[1:].tolist(), strict=True
        ):
            if first <= start < end:
                yield self._scenario(start, stop)

    def _scenario(self, start: int, stop: int) -> Scenario:
        frames = int(self.numbers["frames"][start])
        begin, end = int(self.track_offsets[start]), int(self.track_offsets[stop])
        row = np.repeat(np.arange(stop - start), np.diff(self.track_offsets[start : stop + 1]))
        xy = np.full((stop - start, frames, 2), np.nan)
        xy[row, self.frame[begin:end]] = self.xy[begin:end]
        names = {name: self._texts(name, start, stop) for name in ("track", "kind", "type")}
        try:
            return Scenario(
                scenario_id=self.names["scenario"][start],
                region=self.names["region"][start],
                drive=self.names["drive"][start],
                rate_hz=float(self.numbers["rate_hz"][start]),
                t0_s=float(self.numbers["t0_s"][start]),
                track_ids=names["track"],
                kinds=names["kind"],
                xy=xy,
                types=names["type"],
            )
        except ScenarioError as error:
            text = f"{self.path} row {self.first_row + start}: {error.detail}"
            raise ScenarioError(error.reason, text) from None

    def _texts(self, name: str, start: int, stop: int) -> tuple[str, ...]:
        if name not in self.names:
            return ()
        values = self.names[name].values
        return tuple(values[code] for code in self.names[name].codes[start:stop].tolist())

    def _refuse(self, bad: NDArray[Any], reason: str, rule: str, got: NDArray[Any]) -> None:
        if bad.any():
            row = int(bad.argmax())
            raise ScenarioError(reason, f"{self._where(row)}: {rule}, got {got[row]}")

    def _where(self, row: int) -> str:
        drive, scenario, track = (self.names[name][row] for name in ("drive", "scenario", "track"))
        at = f"{self.path} row {self.first_row + row}"
        return f"{at} (drive {drive!r}, scenario {scenario!r}, track {track!r})"

    def _check_order(self) -> None:
        same = np.ones(max(self.rows - 1, 0), dtype=np.bool_)
        smaller = np.zeros_like(same)
        for name in ("region", "drive", "scenario", "track"):
            rank = self.names[name].ranks
            smaller |= same & (rank[1:] < rank[:-1])
            same &= rank[1:] == rank[:-1]
        if same.any():
            where = self._where(int(same.argmax()) + 1)
            raise ScenarioError("duplicate-track", f"{where}: expected one row per track, got two")
        if smaller.any():
            text = "rows must ascend by region, drive, scenario, track; got a smaller key"
            raise ScenarioError("shuffled-rows", f"{self._where(int(smaller.argmax()) + 1)}: {text}")

    def _check_agreement(self) -> None:
        counts = np.diff(self.scenario_offsets)
        many = counts > MAX_TRACKS
        if many.any():
            where = self._where(int(self.scenario_offsets[int(many.argmax())]))
            text = f"expected at most {MAX_TRACKS} tracks, got {counts[many][0]}"
            raise ScenarioError("bad-track-count", f"{where}: {text}")
        head = np.repeat(self.scenario_offsets[:-1], counts)
        for name in ("rate_hz", "t0_s", "frames"):
            values = self.numbers[name]
            differs = np.asarray(values != values[head])
            if differs.any():
                row = int(differs.argmax())
                text = f"{name} must be {values[head[row]]} as in the scenario's first row, got {values[row]}"
                raise ScenarioError("uneven-scenario", f"{self._where(row)}: {text}")
