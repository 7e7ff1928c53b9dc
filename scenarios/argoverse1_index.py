"""What a folder of Argoverse 1 scenarios holds, known before they are read: from `index.csv`, or derived.

`index.csv` has one row per scenario: scenario, city, district (the region), drive; t0 (s) and tracks are compared
with the scenario when it is read, other columns are ignored. No pyarrow here: only this much is read to split drives.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.argoverse1_drives import is_west, same_drive
from fedfleet.scenarios.csv_dialect import dialect_of, whole_text
from fedfleet.scenarios.index_files import index_rows
from fedfleet.scenarios.members import HEAD_BYTES, Member
from fedfleet.scenarios.places import MAX_CHARS, place_ids
from fedfleet.scenarios.records import ScenarioError

__all__ = [
    "CITIES",
    "COLUMNS",
    "FRAMES",
    "INDEXED",
    "RATE_HZ",
    "Entry",
    "derive",
    "read_index",
]

CITIES: Final = ("MIA", "PIT")
COLUMNS: Final = ("TIMESTAMP", "TRACK_ID", "OBJECT_TYPE", "X", "Y", "CITY_NAME")
FRAMES: Final = 50
RATE_HZ: Final = 10.0
INDEXED: Final = ("scenario", "city", "district", "drive")
"""Columns of an index."""


@dataclass(frozen=True)
class Entry:
    """What is known of a scenario before it is read; t0_s and tracks are None where no index told them."""

    scenario: str
    city: str
    region: str
    drive: str
    t0_s: float | None = None
    tracks: int | None = None


def read_index(path: Path, where: str) -> dict[str, Entry]:
    """Entry by scenario; ScenarioError naming row and column for anything that is not an index of known cities."""
    entries: dict[str, Entry] = {}
    home: dict[str, str] = {}
    rows = list(index_rows(path, INDEXED))
    ids = {column: place_ids({row[column] for _, row in rows}) for column in ("district", "drive")}
    for line, row in rows:
        at = f"{where} line {line}"
        entry = _entry(row, ids, at)
        if entry.scenario in entries:
            raise ScenarioError("duplicate-scenario", f"{at}: scenario {entry.scenario} is listed twice")
        if home.setdefault(entry.drive, entry.region) != entry.region:
            both = f"{home[entry.drive]} and {entry.region}"
            text = f"{at}: drive {entry.drive} is in {both}, expected one district"
            raise ScenarioError("drive-in-two-regions", text)
        entries[entry.scenario] = entry
    return entries


def derive(members: Mapping[str, Member], account: Account = STRICT) -> dict[str, Entry]:
    """Entry by scenario from the first AV row of each file, by the rule in `argoverse1_drives`.

    A drive is named after its earliest scenario: `mia-2645`; regions are `mia-w`, `mia-e` and so on.
    """
    starts: dict[str, _Start] = {}
    for name, member in members.items():
        with account.refusing(member.where):
            starts[name] = _start(member)
    entries: dict[str, Entry] = {}
    trips = place_ids(starts, max_chars=MAX_CHARS - len("mia-"))
    for city in sorted({start.city for start in starts.values()}):
        names = sorted(name for name, start in starts.items() if start.city == city)
        t0_s = np.array([starts[name].t0_s for name in names])
        xy = np.array([(starts[name].x_m, starts[name].y_m) for name in names])
        drive = same_drive(t0_s, xy)
        west = is_west(xy[:, 0], drive)
        low = city.lower()
        for name, first, in_west in zip(names, drive, west, strict=True):
            region, trip = f"{low}-{'w' if in_west else 'e'}", f"{low}-{trips[names[int(first)]]}"
            entries[name] = Entry(name, city, region, trip)
    return entries


@dataclass(frozen=True)
class _Start:
    city: str
    t0_s: float
    x_m: float
    y_m: float


def _start(member: Member) -> _Start:
    """Where and when the test car begins: the first row of type AV."""
    data = member.text()
    written = dialect_of(data[:HEAD_BYTES], member.where)
    places = written.columns(COLUMNS)
    lines = data[written.head_bytes :].decode(errors="replace").splitlines()
    rows = csv.reader((line for line in lines if "AV" in line), delimiter=written.delimiter)
    for cells in rows:
        row = {name: cells[at].strip() if at < len(cells) else "" for name, at in places.items()}
        if row["OBJECT_TYPE"] == "AV":
            numbers = [
                _number(row[name].replace(written.decimal, "."), f"{member.where}: {name}")
                for name in ("TIMESTAMP", "X", "Y")
            ]
            return _Start(_city(row["CITY_NAME"], member.where), *numbers)
    raise ScenarioError("bad-kind", f"{member.where}: expected 1 AV track, got 0")


def _entry(row: Mapping[str, str], ids: Mapping[str, Mapping[str, str]], where: str) -> Entry:
    scenario, city, district, drive = (row[name] for name in INDEXED)
    scenario = whole_text(scenario)
    if not scenario or "/" in scenario:
        raise ScenarioError("bad-name", f"{where}: expected the name of a scenario, got {scenario!r:.60}")
    for name, value in (("district", district), ("drive", drive)):
        if not value:
            raise ScenarioError("bad-name", f"{where}: expected the name of a {name}, got none")
    t0, tracks = row.get("t0"), row.get("tracks")
    return Entry(
        scenario,
        _city(city, where),
        ids["district"][district],
        ids["drive"][drive],
        _number(t0, f"{where}: t0") if t0 else None,
        int(_number(tracks, f"{where}: tracks")) if tracks else None,
    )


def _city(name: str, where: str) -> str:
    if name not in CITIES:
        raise ScenarioError("unknown-city", f"{where}: expected city {' or '.join(CITIES)}, got {name!r:.40}")
    return name


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ScenarioError("nan-value", f"{where}: expected a finite number, got {text!r:.40}")
    return value
