"""Reads a folder of Argoverse 1 motion forecasting: zips or plain CSV files, one scenario each, and `index.csv` or not.

Opening looks at the index and the directories of the zips; a scenario is read when its drive is asked for. What is not
as it must be refuses the whole folder: there is no such thing as half of these recordings.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from fedfleet.scenarios.members import Member, head, plain_file, zip_members
from fedfleet.scenarios.records import Scenario, ScenarioError

__all__ = ["Argoverse1", "detect", "scan"]

_ENOUGH_COLUMNS: Final = 3
"""So many of the format's columns tell the format; the others may be missing, which is then said."""

_NAMES: Final = re.compile(r"\A(MIA|PIT)\b|argoverse|forecasting", re.IGNORECASE)
"""Zips of such a name are this format when they are damaged: so what is wrong with them is said."""


@dataclass(frozen=True)
class Argoverse1:
    """An opened folder: its drives by `region/drive`, in order; scenarios are read drive by drive, and not kept."""

    drives: Mapping[str, Drive]
    entries: Mapping[str, tuple[Entry, ...]]
    members: Mapping[str, Member]
    is_lazy: bool = True
    problems: Mapping[str, int] = field(default_factory=dict)

    def read(self, drive: str) -> Iterator[Scenario]:
        """Read the scenarios of one drive, by id; ScenarioError naming file and member."""
        from fedfleet.scenarios.argoverse1_csv import parse  # with pyarrow, which an index does not need

        for entry in self.entries[drive]:
            member = self.members[entry.scenario]
            yield parse(member.read(), member.where, entry)


def detect(folder: Path) -> tuple[Path, ...]:
    """The zips and CSV files of this format, by the header of a CSV file; damaged zips by their name.

    Files named by a number, as the publisher does, are told by the first of them in their folder, since there may be
    very many; other names one by one.
    """
    found = [path for path in sorted(folder.glob("*.zip")) if _is_ours(path)]
    numbered: dict[Path, bool] = {}
    for path in sorted([*folder.glob("*.csv"), *folder.glob("*/*.csv")]):
        if path.name == INDEX_FILE:
            continue
        if not path.stem.isdecimal():
            ours = _is_ours(path)
        elif path.parent in numbered:
            ours = numbered[path.parent]
        else:
            ours = numbered[path.parent] = _is_ours(path)
        if ours:
            found.append(path)
    return tuple(found)


def scan(folder: Path, sources: Sequence[Path]) -> Argoverse1:
    """Find every scenario and its drive; ScenarioError when files and index differ, or a name appears twice."""
    members = _members(folder, sources)
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


def _members(folder: Path, sources: Sequence[Path]) -> dict[str, Member]:
    members: dict[str, Member] = {}
    for path in sources:
        _add(
            members,
            zip_members(path, ".csv") if path.suffix == ".zip" else [plain_file(folder, path, ".csv")],
        )
    return members


def _add(members: dict[str, Member], found: list[Member]) -> None:
    for member in found:
        if member.stem in members:
            text = f"scenario {member.stem} is in {members[member.stem].where} and again in {member.where}"
            raise ScenarioError("duplicate-scenario", text)
        members[member.stem] = member


def _is_ours(path: Path) -> bool:
    first = head(path, ".csv")
    if first is None:
        return False
    if first.is_damaged:
        return path.suffix == ".zip" and _NAMES.search(path.name) is not None
    return len(set(first.line.replace(";", ",").split(",")) & set(COLUMNS)) >= _ENOUGH_COLUMNS


def _some(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
