"""Reads a folder of Argoverse 1 motion forecasting: zips or plain CSV files, one scenario each, and `index.csv` or not.

Opening looks at the index and the directories of the zips; a scenario is read when its drive is asked for. What is not
as it must be refuses the whole folder: there is no such thing as half of these recordings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedfleet.models.task import Drive
from fedfleet.scenarios.argoverse1_index import (
    COLUMNS,
    FRAMES,
    INDEX_FILE,
    RATE_HZ,
    Entry,
    derive,
    read_index,
)
from fedfleet.scenarios.members import Member, plain_files, zip_members
from fedfleet.scenarios.records import Scenario, ScenarioError

__all__ = ["Argoverse1", "is_here", "open_folder"]

_ENOUGH_COLUMNS: Final = 3
"""So many of the format's columns tell the format; the others may be missing, which is then said."""
_SHOWN: Final = 65536


@dataclass(frozen=True)
class Argoverse1:
    """An opened folder: its drives by `region/drive`, in order; scenarios are read drive by drive, and not kept."""

    drives: Mapping[str, Drive]
    entries: Mapping[str, tuple[Entry, ...]]
    members: Mapping[str, Member]
    is_lazy: bool = True

    def scenarios(self, drive: str) -> Iterator[Scenario]:
        """Read the scenarios of one drive, by id; ScenarioError naming file and member."""
        from fedfleet.scenarios.argoverse1_csv import parse  # with pyarrow, which an index does not need

        for entry in self.entries[drive]:
            member = self.members[entry.scenario]
            yield parse(member.read(), member.where, entry)


def is_here(folder: Path) -> bool:
    """Whether the folder holds this format, by the header of a CSV file in it; a broken zip counts as this format."""
    zips = sorted(folder.glob("*.zip"))
    for path in zips:
        try:
            members = zip_members(path, ".csv")
        except ScenarioError:
            return True
        if members:
            return _is_ours(members[0])
    first = next((member for member in plain_files(folder, ".csv") if member.where != INDEX_FILE), None)
    return first is not None and _is_ours(first)


def open_folder(folder: Path) -> Argoverse1:
    """Find every scenario and its drive; ScenarioError when files and index differ, or a name appears twice."""
    members = _members(folder)
    index = folder / INDEX_FILE
    entries = read_index(index) if index.is_file() else derive(members)
    absent = sorted(set(entries) - set(members))
    if absent:
        text = f"{INDEX_FILE}: expected a file for each scenario, got none for {_some(absent)}"
        raise ScenarioError("missing-scenario", text)
    extra = sorted(set(members) - set(entries))
    if extra:
        text = f"{members[extra[0]].where}: expected a row in {INDEX_FILE}, got none for {_some(extra)}"
        raise ScenarioError("unlisted-scenario", text)
    by_drive: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for name in sorted(entries):
        by_drive[entries[name].region, entries[name].drive].append(entries[name])
    drives: dict[str, Drive] = {}
    listed: dict[str, tuple[Entry, ...]] = {}
    for (region, name), each in sorted(by_drive.items()):
        drive = Drive(region, name, len(each), len(each) * FRAMES / RATE_HZ)
        drives[drive.key], listed[drive.key] = drive, tuple(each)
    return Argoverse1(drives, listed, members)


def _members(folder: Path) -> dict[str, Member]:
    members: dict[str, Member] = {}
    zips = sorted(folder.glob("*.zip"))
    for path in zips:
        found = zip_members(path, ".csv")
        if not found:
            raise ScenarioError("no-scenarios", f"{path.name}: expected one CSV per scenario, got none")
        _add(members, found)
    _add(members, [member for member in plain_files(folder, ".csv") if member.where != INDEX_FILE])
    return members


def _add(members: dict[str, Member], found: list[Member]) -> None:
    for member in found:
        if member.stem in members:
            text = f"scenario {member.stem} is in {members[member.stem].where} and again in {member.where}"
            raise ScenarioError("duplicate-scenario", text)
        members[member.stem] = member


def _is_ours(member: Member) -> bool:
    try:
        header = member.read()[:_SHOWN].partition(b"\n")[0].decode(errors="replace").strip().split(",")
    except ScenarioError:
        return True
    return len(set(header) & set(COLUMNS)) >= _ENOUGH_COLUMNS


def _some(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
