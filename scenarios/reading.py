"""Reads a folder of recordings, whatever their formats: each file by the reader that knows it.

May live here: what a folder as a whole is. The readers are listed in `formats`; each lives in its own file, and imports
what it needs to read recordings (pyarrow and others) when they are read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from fedfleet.models.task import Drive
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.account import Account
from fedfleet.scenarios.formats import READERS, Format, Reader, Recordings
from fedfleet.scenarios.members import is_zip
from fedfleet.scenarios.nothing_found import nothing_found
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.tree import INDEX_NAME, Tree, stamp, walk
from fedfleet.scenarios.unclaimed import leave_members, leave_rest, tub_claims
from fedfleet.scenarios.windows import check_speed

__all__ = [
    "Found",
    "Recorded",
    "Tally",
    "claims",
    "open_recordings",
    "read",
    "stream",
]


@dataclass
class Tally:
    """What was read of one format so far: each drive once, when all of it was read."""

    drives: set[str] = field(default_factory=set)
    scenarios: int = 0
    tracks: int = 0
    rates_hz: set[float] = field(default_factory=set)

    def add(self, drive: str, read: Sequence[tuple[int, float]]) -> None:
        """Count the scenarios of a drive, by (tracks, rate)."""
        if drive not in self.drives:
            self.drives.add(drive)
            self.scenarios += len(read)
            self.tracks += sum(tracks for tracks, _ in read)
            self.rates_hz.update(rate for _, rate in read)


@dataclass(frozen=True)
class Found:
    """What one reader found in a folder."""

    reader: Reader
    sources: tuple[Path, ...]
    recordings: Recordings
    tally: Tally = field(default_factory=Tally)

    def summary(self) -> dict[str, object]:
        """In words and numbers; scenarios, tracks and rates of what was read so far."""
        drives = self.recordings.drives.values()
        return {
            "format": self.reader.format,
            "files": len(self.sources),
            "regions": len({drive.region for drive in drives}),
            "drives": len(drives),
            "recordings": sum(drive.recordings for drive in drives),
            "seconds": round(sum(drive.seconds for drive in drives), 1),
            "drives_read": len(self.tally.drives),
            "tracks": self.tally.tracks,
            "rates_hz": sorted(self.tally.rates_hz),
            "problems": dict(self.recordings.problems),
        }


@dataclass(frozen=True)
class Recorded:
    """An opened folder: what each reader found, all drives together, and the account of what is not read.

    `refused` are the drives of which nothing could be read, so far.
    """

    parts: tuple[Found, ...]
    drives: Mapping[str, Drive]
    account: Account
    refused: set[str] = field(default_factory=set)

    @property
    def is_lazy(self) -> bool:
        """Whether any of it is read only when asked for."""
        return any(part.recordings.is_lazy for part in self.parts)

    @property
    def problems(self) -> Mapping[str, int]:
        """What was left out so far, by reason."""
        counted: Counter[str] = sum((Counter(part.recordings.problems) for part in self.parts), Counter())
        return dict(sorted(counted.items()))

    @property
    def nothing_left(self) -> UsageError | None:
        """The error that says so, when no drive of the folder can be read."""
        worst = self.account.worst
        return UsageError(worst.text) if worst is not None and self.refused >= set(self.drives) else None

    def part(self, drive: str) -> Found:
        """What the drive was found by."""
        return next(part for part in self.parts if drive in part.recordings.drives)

    def read(self, drive: str) -> Iterable[Scenario]:
        """The scenarios of one drive, sorted by id."""
        return self.part(drive).recordings.read(drive)


def open_recordings(folder: Path) -> Recorded:
    """Open a folder; the last ones stay open as long as their files stay as they are.

    What cannot be read is in its account. Raises UsageError for a folder that is absent, or in which nothing is left
    to read, with the first reason.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise UsageError(f"{folder}: expected a folder of recordings, got {got}")
    return _open(folder, stamp(folder))


def claims(tree: Tree) -> dict[Path, str]:
    """The files and folders of a tree that a reader knows, and its format."""
    owner: dict[Path, str] = {}
    for reader in READERS:
        owner |= dict.fromkeys(reader.load().detect(tree), reader.format)
    return owner


def stream(folder: Path, drives: Sequence[str] | None = None) -> Iterator[Scenario]:
    """The scenarios of a folder one after the other, sorted by region, drive and id; all, or those of named drives.

    `drives` are `region/drive` keys. A malformed recording, or a scenario id in two formats, is refused in the folder's
    account, and the others follow. Raises as `open_recordings`, and UsageError for an unknown drive, and when no drive
    of the folder could be read.
    """
    recordings = open_recordings(folder)
    wanted = set(recordings.drives if drives is None else drives)
    unknown = sorted(wanted - set(recordings.drives))
    if unknown:
        known = _some(sorted(recordings.drives))
        raise UsageError(f"{folder}: no drive {unknown[0]}: expected one of {known}")
    return _each(recordings, [key for key in recordings.drives if key in wanted])


def read(folder: Path, drives: Sequence[str] | None = None) -> tuple[Scenario, ...]:
    """The same all at once: for few drives, or small folders."""
    return tuple(stream(folder, drives))


def _each(recordings: Recorded, keys: Sequence[str]) -> Iterator[Scenario]:
    formats: dict[str, str] = {}
    account = recordings.account
    for key in keys:
        part = recordings.part(key)
        seen: list[tuple[int, float]] = []
        with account.refusing(key):
            for scenario in part.recordings.read(key):
                with account.refusing(f"{key}/{scenario.scenario_id}"):
                    if len(recordings.parts) > 1:
                        _check_format(formats, scenario.scenario_id, part.reader.format)
                    _check_units(scenario, part.reader.format)
                    seen.append((len(scenario.track_ids), scenario.rate_hz))
                    yield scenario
            part.tally.add(key, seen)
        if not seen:
            recordings.refused.add(key)
    error = recordings.nothing_left
    if error is not None:
        raise error


def _check_units(scenario: Scenario, name: str) -> None:
    try:
        check_speed(scenario)
    except ScenarioError as error:
        raise ScenarioError(error.reason, f"{name}: {error.detail}") from None


def _check_format(formats: dict[str, str], scenario: str, name: str) -> None:
    before = formats.setdefault(scenario, name)
    if before != name:
        text = f"scenario {scenario} is in {before} and again in {name}"
        raise ScenarioError("duplicate-scenario", text)


@lru_cache(maxsize=2)
def _open(folder: Path, stamped: tuple[object, ...]) -> Recorded:  # noqa: ARG001 - another stamp, another reading
    tree, account = walk(folder), Account(folder)
    here, claimed = _detect(tree, account)
    found = []
    for reader, module, sources in here:
        with account.refusing(reader.format):
            found.append(Found(reader, sources, module.scan(folder, sources, account)))
        _leave_beside(tree, reader, sources, claimed, account)
    leave_rest(tree, claimed, tub_claims(tree), account)
    recorded = _together(found, account)
    if not recorded.drives:
        raise nothing_found(tree, account)
    return recorded


def _detect(tree: Tree, account: Account) -> tuple[list[tuple[Reader, Format, tuple[Path, ...]]], set[Path]]:
    """The readers that know something here, each with what it knows, and all of it together."""
    owner: dict[Path, Reader] = {}
    here = []
    for reader in READERS:
        module = reader.load()
        sources = []
        for path in module.detect(tree):
            with account.refusing(tree.where(path)):
                if owner.setdefault(path, reader) is not reader and not INDEX_NAME.match(path.name):
                    text = f"{tree.where(path)} looks like {owner[path].format} and like {reader.format}"
                    raise ScenarioError("two-formats", text)
                sources.append(path)
        if sources:
            here.append((reader, module, tuple(sources)))
    return here, set(owner)


def _leave_beside(
    tree: Tree, reader: Reader, sources: Sequence[Path], claimed: set[Path], account: Account
) -> None:
    """Claim what goes with a reader's files, and name what its zips hold beside what it takes."""
    pattern = re.compile(reader.beside, re.IGNORECASE)
    claimed.update(path for path in tree.files if pattern.search(tree.where(path)))
    if reader.members:
        for path in filter(is_zip, sources):
            leave_members(path, re.compile(reader.members, re.IGNORECASE), account, tree.where(path))


def _together(found: Sequence[Found], account: Account) -> Recorded:
    by_key: dict[str, tuple[Drive, str]] = {}
    for part in found:
        for key, drive in part.recordings.drives.items():
            with account.refusing(key):
                if key in by_key:
                    text = f"drive {key} is in {by_key[key][1]} and again in {part.reader.format}"
                    raise ScenarioError("duplicate-drive", text)
                by_key[key] = drive, part.reader.format
    ordered = sorted(by_key.items(), key=lambda item: (item[1][0].region, item[1][0].drive))
    with_drives = tuple(part for part in found if part.recordings.drives)
    return Recorded(with_drives, {key: drive for key, (drive, _) in ordered}, account)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
