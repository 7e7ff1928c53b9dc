"""What a folder of Argoverse 1 scenarios holds, known before they are read: from `index.csv`, or derived.

`index.csv` has one row per scenario: scenario, city, district (the region), drive; t0 (s) and tracks are compared
with the scenario when it is read, other columns are ignored. No pyarrow here: only this much is read to split drives.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedfleet.protocol.ids import is_id
from fedfleet.scenarios.argoverse1_drives import is_west, same_drive
from fedfleet.scenarios.members import Member
from fedfleet.scenarios.records import ScenarioError

__all__ = [
    "CITIES",
    "COLUMNS",
    "FRAMES",
    "INDEX_FILE",
    "RATE_HZ",
    "Entry",
    "check_header",
    "derive",
    "read_index",
]

CITIES: Final = ("MIA", "PIT")
COLUMNS: Final = ("TIMESTAMP", "TRACK_ID", "OBJECT_TYPE", "X", "Y", "CITY_NAME")
FRAMES: Final = 50
RATE_HZ: Final = 10.0
INDEX_FILE: Final = "index.csv"
MAX_INDEX_BYTES: Final = 128 * 2**20

_NEEDED: Final = ("scenario", "city", "district", "drive")


@dataclass(frozen=True)
class Entry:
    """What is known of a scenario before it is read; t0_s and tracks are None where no index told them."""

    scenario: str
    city: str
    region: str
    drive: str
    t0_s: float | None = None
    tracks: int | None = None


def read_index(path: Path) -> dict[str, Entry]:
    """Entry by scenario; ScenarioError naming row and column for anything that is not an index of known cities."""
    size = path.stat().st_size
    if size > MAX_INDEX_BYTES:
        text = f"{path.name} is {size / 1e6:.1f} MB, limit {MAX_INDEX_BYTES / 1e6:.1f} MB"
        raise ScenarioError("file-too-large", text)
    entries: dict[str, Entry] = {}
    home: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, strict=True)
            missing = [name for name in _NEEDED if name not in (rows.fieldnames or ())]
            if missing:
                got = ",".join(rows.fieldnames or ())[:120]
                text = f"{path.name}: expected column {missing[0]!r}, got {got!r}"
                raise ScenarioError("missing-column", text)
            for row in rows:
                entry = _entry(row, f"{path.name} line {rows.line_num}")
                if entry.scenario in entries:
                    text = f"{path.name} line {rows.line_num}: scenario {entry.scenario} is listed twice"
                    raise ScenarioError("duplicate-scenario", text)
                if home.setdefault(entry.drive, entry.region) != entry.region:
                    both = f"{home[entry.drive]} and {entry.region}"
                    text = f"{path.name} line {rows.line_num}: drive {entry.drive} is in {both}, expected one district"
                    raise ScenarioError("drive-in-two-regions", text)
                entries[entry.scenario] = entry
    except (csv.Error, UnicodeDecodeError) as error:
        raise ScenarioError("malformed-csv", f"{path.name}: expected a CSV of scenarios: {error}") from error
    return entries


def derive(members: Mapping[str, Member]) -> dict[str, Entry]:
    """Entry by scenario from the first AV row of each file, by the rule in `argoverse1_drives`.

    A drive is named after its earliest scenario: `mia-2645`; regions are `mia-w`, `mia-e` and so on.
    """
    starts = {name: _start(member) for name, member in members.items()}
    entries: dict[str, Entry] = {}
    for city in sorted({start.city for start in starts.values()}):
        names = sorted(name for name, start in starts.items() if start.city == city)
        t0_s = np.array([starts[name].t0_s for name in names])
        xy = np.array([(starts[name].x_m, starts[name].y_m) for name in names])
        drive = same_drive(t0_s, xy)
        west = is_west(xy[:, 0], drive)
        low = city.lower()
        for name, first, in_west in zip(names, drive, west, strict=True):
            region, trip = f"{low}-{'w' if in_west else 'e'}", f"{low}-{names[int(first)]}"
            entries[name] = Entry(name, city, _id(region, "region", members[name].where), trip)
            _id(trip, "drive", members[name].where)
    return entries


def check_header(line: str, where: str) -> list[str]:
    """The columns that the first line of a scenario names; ScenarioError unless each of ours is there once."""
    header = line.strip().split(",")
    other = next((mark for mark in ";\t|" if line.count(mark) >= len(COLUMNS) - 1), None)
    if other is not None:
        text = f"{where}: expected commas, got {other!r} in {line.strip()[:120]!r}"
        raise ScenarioError("wrong-delimiter", text)
    missing = [name for name in COLUMNS if header.count(name) != 1]
    if missing:
        text = f"{where}: expected column {missing[0]} once, got {line.strip()[:120]!r}"
        raise ScenarioError("missing-column", text)
    return header


@dataclass(frozen=True)
class _Start:
    city: str
    t0_s: float
    x_m: float
    y_m: float


def _start(member: Member) -> _Start:
    """Where and when the test car begins: the first row of type AV."""
    lines = member.read().decode(errors="replace").splitlines()
    header = check_header(lines[0] if lines else "", member.where)
    line = next((line for line in lines if ",AV," in line), None)
    if line is None:
        raise ScenarioError("bad-kind", f"{member.where}: expected 1 AV track, got 0")
    row = dict(zip(header, line.split(","), strict=False))
    numbers = [_number(row.get(name, ""), f"{member.where}: {name}") for name in ("TIMESTAMP", "X", "Y")]
    return _Start(_city(row.get("CITY_NAME", ""), member.where), *numbers)


def _entry(row: Mapping[str, str | None], where: str) -> Entry:
    texts: Sequence[str] = [row[name] or "" for name in _NEEDED]
    scenario, city, district, drive = texts
    if not scenario or "/" in scenario:
        raise ScenarioError("bad-name", f"{where}: expected the name of a scenario, got {scenario!r:.60}")
    t0, tracks = row.get("t0"), row.get("tracks")
    return Entry(
        scenario,
        _city(city, where),
        _id(district, "district", where),
        _id(drive, "drive", where),
        _number(t0, f"{where}: t0") if t0 else None,
        int(_number(tracks, f"{where}: tracks")) if tracks else None,
    )


def _city(name: str, where: str) -> str:
    if name not in CITIES:
        raise ScenarioError("unknown-city", f"{where}: expected city {' or '.join(CITIES)}, got {name!r:.40}")
    return name


def _id(name: str, what: str, where: str) -> str:
    """The name as an id: in lower case, with hyphens."""
    found = name.lower().replace("_", "-").replace(" ", "-")
    if not is_id(found):
        raise ScenarioError(
            "bad-name", f"{where}: expected a {what} of 1 to 36 of a-z, 0-9 and '-', got {name!r:.60}"
        )
    return found


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ScenarioError("nan-value", f"{where}: expected a finite number, got {text!r:.40}")
    return value
