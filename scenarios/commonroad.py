"""Reads a folder of CommonRoad scenarios (XML 2020a): zips or plain files, one scenario each, `index.csv` or not.

A drive is an `overlap_group` of the index, whose files show the same seconds; without an index, all files of one map
(`USA_US101-1`), which may show the same traffic. A region is the index's `location`; without, the folder that a file
lies in, or country and place (`usa-us101`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.commonroad_xml import extent, parse
from fedfleet.scenarios.index_files import find_indexes, index_rows, nearest
from fedfleet.scenarios.members import Member, head, is_zip, members
from fedfleet.scenarios.places import place_ids
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.tree import INDEX_NAME, Tree, tree_of

__all__ = ["CommonRoad", "detect", "scan"]

FORMAT: Final = "commonroad"
INDEXED: Final = ("location", "file", "overlap_group")
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
    account: Account = field(default=STRICT, repr=False)

    def read(self, drive: str) -> Iterator[Scenario]:
        """Read the scenarios of one drive, by id; each is refused by itself, naming file and obstacle."""
        for entry in self.entries[drive]:
            with self.account.refusing(entry.member.where):
                yield parse(entry.member.text(), entry.member.where, entry.region, entry.drive)


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """Zips and XML files whose root is `commonRoad`, and their index; damaged zips by their name."""
    tree = tree_of(where)
    paths = sorted([*tree.ending(".zip"), *tree.ending(".xml", packed=True)])
    found = [path for path in paths if _is_ours(path)]
    return (*find_indexes(tree, FORMAT, INDEXED), *found) if found else ()


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> CommonRoad:
    """Find every file and its drive; refused is a name a second time, and a file that its index does not list."""
    indexes = [path for path in sources if INDEX_NAME.match(path.name)]
    known: dict[str, Member] = {}
    by_index: dict[Path | None, list[Member]] = defaultdict(list)
    for path in sources:
        if path in indexes:
            continue
        with account.refusing(path.relative_to(folder).as_posix()):
            for member in members(folder, path, ".xml"):
                with account.refusing(member.where):
                    before = known.setdefault(member.stem, member)
                    if before is not member:
                        text = f"scenario {member.stem} is in {before.where} and again in {member.where}"
                        raise ScenarioError("duplicate-scenario", text)
                    by_index[nearest(indexes, path)].append(member)
    homes: dict[str, tuple[str, str]] = {}
    for index in sorted(by_index, key=str):
        if index is None:
            homes |= {member.stem: _home(member) for member in by_index[index]}
        else:
            homes |= _listed(index.relative_to(folder).as_posix(), index, by_index[index], account)
    return _opened({known[name]: home for name, home in homes.items()}, account)


def _opened(homes: Mapping[Member, tuple[str, str]], account: Account) -> CommonRoad:
    """The drives of files whose region and drive are known by their publisher's names."""
    regions = place_ids(place for place, _ in homes.values())
    trips = place_ids(trip for _, trip in homes.values())
    by_drive: dict[tuple[str, str], list[tuple[_Entry, float]]] = defaultdict(list)
    for member, (place, trip) in sorted(homes.items(), key=lambda item: item[0].stem):
        with account.refusing(member.where):
            seconds = extent(member.text(), member.where)
            key = regions[place], trips[trip]
            by_drive[key].append((_Entry(*key, member), seconds))
    drives, entries = {}, {}
    for (region, name), each in sorted(by_drive.items()):
        drive = Drive(region, name, len(each), sum(seconds for _, seconds in each))
        drives[drive.key], entries[drive.key] = drive, tuple(entry for entry, _ in each)
    return CommonRoad(drives, entries, account=account)


def _home(member: Member) -> tuple[str, str]:
    """Region and drive of a file by its own name and folder."""
    known = _NAME.match(member.stem)
    folders = member.where.partition(": ")[2].split("/")[:-1] or member.where.split("/")[:-1]
    place = folders[-1] if folders else known[1] if known else "commonroad"
    return place, known[0].rstrip("_") if known else member.stem


def _listed(where: str, index: Path, here: Sequence[Member], account: Account) -> dict[str, tuple[str, str]]:
    """Region and drive by scenario of the files for which an index speaks; refused, it takes them with it."""
    try:
        home = _index(index, where)
    except ScenarioError as error:
        account.refuse(error, where)
        text = f"is not used, so that {len(here)} scenarios for which it speaks have no drive"
        account.leave(where, "without-index", text, files=len(here))
        return {}
    for member in here:
        if member.stem not in home:
            with account.refusing(member.where):
                text = f"{member.where}: expected a row in {where}, got none for {member.stem}"
                raise ScenarioError("unlisted-scenario", text)
    return {member.stem: home[member.stem] for member in here if member.stem in home}


def _index(path: Path, where: str) -> dict[str, tuple[str, str]]:
    """Region and drive by scenario."""
    home: dict[str, tuple[str, str]] = {}
    for line, row in index_rows(path, INDEXED):
        location, name, group = (row[key] for key in INDEXED)
        stem = name.removesuffix(".xml")
        if not stem or stem in home:
            text = f"{where} line {line}: expected each file once, got {name!r:.60}"
            raise ScenarioError("duplicate-scenario", text)
        home[stem] = location, group
    return home


def _is_ours(path: Path) -> bool:
    first = head(path, ".xml")
    if first is None:
        return False
    if first.is_damaged:
        return is_zip(path) and "commonroad" in path.name.lower()
    return b"<commonRoad" in first.start
