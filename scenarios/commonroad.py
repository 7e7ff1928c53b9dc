"""Reads a folder of CommonRoad scenarios (XML 2020a): zips or plain files, one scenario each, `index.csv` or not.

A drive is an `overlap_group` of the index, whose files show the same seconds; without an index, all files of one map
(`USA_US101-1`), which may show the same traffic. A region is the index's `location`; without, the folder that a file
lies in, or country and place (`usa-us101`).
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedfleet.models.task import Drive
from fedfleet.scenarios.commonroad_xml import extent, parse
from fedfleet.scenarios.members import Member, head, plain_file, zip_members
from fedfleet.scenarios.places import place_id
from fedfleet.scenarios.records import Scenario, ScenarioError

__all__ = ["CommonRoad", "detect", "scan"]

INDEX_FILE: Final = "index.csv"
MAX_INDEX_BYTES: Final = 16 * 2**20
_NEEDED: Final = ("location", "file", "overlap_group")
_NAME: Final = re.compile(r"(?:C-)?([A-Z]{3}_[A-Za-z0-9]+)-\d+(?:_|\Z)")
"""Country, place and number of the map: `USA_US101-1_1_T-1` (CommonRoad naming, 2020a)."""


@dataclass(frozen=True)
class _Entry:
    region: str
    drive: str
    member: Member


@dataclass(frozen=True)
class CommonRoad:
    """An opened folder: its drives by `region/drive`; files are read drive by drive, and not kept."""

    drives: Mapping[str, Drive]
    entries: Mapping[str, tuple[_Entry, ...]]
    is_lazy: bool = True
    problems: Mapping[str, int] = field(default_factory=dict)

    def read(self, drive: str) -> Iterator[Scenario]:
        """Read the scenarios of one drive, by id; ScenarioError naming file and obstacle."""
        for entry in self.entries[drive]:
            yield parse(entry.member.read(), entry.member.where, entry.region, entry.drive)


def detect(folder: Path) -> tuple[Path, ...]:
    """Zips and XML files, here and one level below, whose root is `commonRoad`; damaged zips by their name."""
    paths = [*folder.glob("*.zip"), *folder.glob("*.xml"), *folder.glob("*/*.xml")]
    return tuple(path for path in sorted(paths) if _is_ours(path))


def scan(folder: Path, sources: Sequence[Path]) -> CommonRoad:
    """Find every file and its drive; ScenarioError when files and index differ, or a name appears twice."""
    members: dict[str, Member] = {}
    for path in sources:
        found = zip_members(path, ".xml") if path.suffix == ".zip" else [plain_file(folder, path, ".xml")]
        for member in found:
            if member.stem in members:
                text = (
                    f"scenario {member.stem} is in {members[member.stem].where} and again in {member.where}"
                )
                raise ScenarioError("duplicate-scenario", text)
            members[member.stem] = member
    listed = _index(folder / INDEX_FILE)
    by_drive: dict[tuple[str, str], list[_Entry]] = defaultdict(list)
    for name in sorted(members):
        region, drive = _home(name, members[name], listed)
        by_drive[region, drive].append(_Entry(region, drive, members[name]))
    drives, entries = {}, {}
    for (region, name), each in sorted(by_drive.items()):
        seconds = sum(extent(entry.member.read(), entry.member.where) for entry in each)
        drive_ = Drive(region, name, len(each), seconds)
        drives[drive_.key], entries[drive_.key] = drive_, tuple(each)
    return CommonRoad(drives, entries)


def _home(name: str, member: Member, listed: Mapping[str, tuple[str, str]] | None) -> tuple[str, str]:
    """Region and drive of a file."""
    if listed is not None:
        if name not in listed:
            text = f"{member.where}: expected a row in {INDEX_FILE}, got none for {name}"
            raise ScenarioError("unlisted-scenario", text)
        return listed[name]
    known = _NAME.match(name)
    folders = member.where.partition(": ")[2].split("/")[:-1] or member.where.split("/")[:-1]
    place = folders[-1] if folders else known[1] if known else "commonroad"
    drive = known[0].rstrip("_") if known else name
    return place_id(place), place_id(drive)


def _index(path: Path) -> dict[str, tuple[str, str]] | None:
    """Region and drive by scenario, or None where there is no index with these columns."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_INDEX_BYTES:
        text = f"{path.name} is {path.stat().st_size / 1e6:.1f} MB, limit {MAX_INDEX_BYTES / 1e6:.1f} MB"
        raise ScenarioError("file-too-large", text)
    home: dict[str, tuple[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file, strict=True)
            if "overlap_group" not in (rows.fieldnames or ()):
                return None
            missing = [name for name in _NEEDED if name not in (rows.fieldnames or ())]
            if missing:
                raise ScenarioError("missing-column", f"{path.name}: expected column {missing[0]!r}")
            for row in rows:
                location, name, group = (row[key] or "" for key in _NEEDED)
                stem = name.removesuffix(".xml")
                if not stem or stem in home:
                    text = f"{path.name} line {rows.line_num}: expected each file once, got {name!r:.60}"
                    raise ScenarioError("duplicate-scenario", text)
                home[stem] = place_id(location), place_id(group)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ScenarioError("malformed-csv", f"{path.name}: expected a CSV of files: {error}") from error
    return home


def _is_ours(path: Path) -> bool:
    first = head(path, ".xml")
    if first is None:
        return False
    if first.is_damaged:
        return path.suffix == ".zip" and "commonroad" in path.name.lower()
    return b"<commonRoad" in first.start
