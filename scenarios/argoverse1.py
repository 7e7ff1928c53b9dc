"""Reads a folder of Argoverse 1 motion forecasting: zips or plain CSV files, one scenario each, and `index.csv` or not.

Opening looks at the index and the directories of the zips; a scenario is read when its drive is asked for. A scenario
that is not as it must be is refused by itself; an index that is not, with all for which it speaks.
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
from fedfleet.scenarios.argoverse1_index import COLUMNS, FRAMES, INDEXED, RATE_HZ, Entry, derive, read_index
from fedfleet.scenarios.index_files import find_indexes, nearest
from fedfleet.scenarios.members import Member, head, is_zip, members
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.text import without_packing
from fedfleet.scenarios.tree import INDEX_NAME, Tree, tree_of

__all__ = ["Argoverse1", "detect", "scan"]

FORMAT: Final = "argoverse1"
_ENOUGH_COLUMNS: Final = 4
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
    account: Account = field(default=STRICT, repr=False)

    def read(self, drive: str) -> Iterator[Scenario]:
        """Read the scenarios of one drive, by id; each is refused by itself, naming file and member."""
        from fedfleet.scenarios.argoverse1_csv import parse  # with pyarrow, which an index does not need

        for entry in self.entries[drive]:
            member = self.members[entry.scenario]
            with self.account.refusing(member.where):
                yield parse(member.text(), member.where, entry)


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """The zips and CSV files of this format, by the header of a CSV file, and their index; damaged zips by their name.

    Files named by a number, as the publisher does, are told by the first of them in their folder, since there may be
    very many; other names one by one.
    """
    tree = tree_of(where)
    found = [path for path in tree.ending(".zip") if _is_ours(path)]
    numbered: dict[Path, bool] = {}
    for path in tree.ending(".csv", packed=True):
        if INDEX_NAME.match(path.name):
            continue
        if not without_packing(path.name).partition(".")[0].isdecimal():
            ours = _is_ours(path)
        elif numbered.get(path.parent):
            ours = True
        else:
            ours = numbered[path.parent] = _is_ours(path)
        if ours:
            found.append(path)
    return (*find_indexes(tree, FORMAT, INDEXED), *found) if found else ()


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Argoverse1:
    """Find every scenario and its drive; refused is what index and files do not agree on, and a name a second time."""
    indexes = [path for path in sources if INDEX_NAME.match(path.name)]
    known: dict[str, Member] = {}
    by_index: dict[Path | None, list[str]] = defaultdict(list)
    for path in sources:
        if path in indexes:
            continue
        with account.refusing(path.relative_to(folder).as_posix()):
            for member in members(folder, path, ".csv"):
                if not INDEX_NAME.match(f"{member.stem}.csv"):
                    with account.refusing(member.where):
                        _add(known, member)
                        by_index[nearest(indexes, path)].append(member.stem)
    entries: dict[str, Entry] = {}
    for index in sorted(by_index, key=str):
        here = {name: known[name] for name in by_index[index]}
        if index is None:
            entries |= derive(here, account)
        else:
            entries |= _listed(index.relative_to(folder).as_posix(), index, here, account)
    by_drive: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for name in sorted(entries):
        by_drive[entries[name].region, entries[name].drive].append(entries[name])
    drives: dict[str, Drive] = {}
    listed: dict[str, tuple[Entry, ...]] = {}
    for (region, name), each in sorted(by_drive.items()):
        drive = Drive(region, name, len(each), len(each) * FRAMES / RATE_HZ)
        drives[drive.key], listed[drive.key] = drive, tuple(each)
    return Argoverse1(drives, listed, known, account=account)


def _listed(where: str, index: Path, here: Mapping[str, Member], account: Account) -> dict[str, Entry]:
    """What an index tells of the files for which it speaks; refused as a whole, it takes them with it."""
    try:
        found = read_index(index, where)
    except ScenarioError as error:
        account.refuse(error, where)
        text = f"is not used, so that {len(here)} scenarios for which it speaks have no drive"
        account.leave(where, "without-index", text, files=len(here))
        return {}
    absent = sorted(set(found) - set(here))
    if absent:
        text = f"{where}: expected a file for each scenario, got none for {_some(absent)}"
        with account.refusing(where):
            raise ScenarioError("missing-scenario", text)
    for extra in sorted(set(here) - set(found)):
        with account.refusing(here[extra].where):
            text = f"{here[extra].where}: expected a row in {where}, got none for {extra}"
            raise ScenarioError("unlisted-scenario", text)
    return {name: entry for name, entry in found.items() if name in here}


def _add(known: dict[str, Member], member: Member) -> None:
    if member.stem in known:
        text = f"scenario {member.stem} is in {known[member.stem].where} and again in {member.where}"
        raise ScenarioError("duplicate-scenario", text)
    known[member.stem] = member


def _is_ours(path: Path) -> bool:
    first = head(path, ".csv")
    if first is None:
        return False
    if first.is_damaged:
        return is_zip(path) and _NAMES.search(path.name) is not None
    return first.has(COLUMNS, _ENOUGH_COLUMNS)


def _some(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
