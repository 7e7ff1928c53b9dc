"""Reads a folder of recordings, whatever their formats: each file by the reader that knows it.

May live here: the list of readers and what a folder as a whole must be. A reader lives in its own file, imported only
when a folder is looked at; what it needs to read recordings (pyarrow and others) is imported when they are read.

A reader is a module with two functions:

- `detect(folder)`: the files or folders, directly in the folder or one level below it, that are of its format, by name
  and a header of at most 64 kB; none: it is not here. It never fails: a broken archive is nobody's, or one's by name.
- `scan(folder, sources)`: finds the drives in them (`Recordings`), reading no more than it must.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol, cast

from fedfleet.models.task import Drive
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.members import zip_members
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.windows import check_speed

__all__ = [
    "READERS",
    "Found",
    "Reader",
    "Recorded",
    "Recordings",
    "Tally",
    "open_recordings",
    "read",
    "stream",
]

IGNORED: Final = ("index.csv",)
RECORDED: Final = (".csv", ".parquet", ".zip")
"""A file of such a name that no reader knows is refused: it would be left out in silence."""


class Recordings(Protocol):
    """The recordings of one format in a folder."""

    @property
    def drives(self) -> Mapping[str, Drive]:
        """Every drive by its key `region/drive`, sorted by region and name."""

    @property
    def is_lazy(self) -> bool:
        """Tell whether scenarios are read only when asked for, so that going through all of them takes its time."""

    @property
    def problems(self) -> Mapping[str, int]:
        """What was left out so far, counted by reason (kebab-case)."""

    def read(self, drive: str) -> Iterable[Scenario]:
        """Give the scenarios of one drive, sorted by id; ScenarioError for what is not as it must be."""


class _Format(Protocol):
    def detect(self, folder: Path) -> tuple[Path, ...]: ...

    def scan(self, folder: Path, sources: Sequence[Path]) -> Recordings: ...


@dataclass(frozen=True)
class Reader:
    """A recorded format: its name, what its files look like, and the module that knows `detect` and `scan`."""

    format: str
    files: str
    module: str

    def load(self) -> _Format:
        """The module, imported now."""
        return cast("_Format", importlib.import_module(self.module))


READERS: Final = (
    Reader("fedfleet scenario table", "*.parquet", "fedfleet.scenarios.table_folder"),
    Reader("Argoverse 1", "*.zip or *.csv with TIMESTAMP,TRACK_ID,…", "fedfleet.scenarios.argoverse1"),
    Reader("Argoverse 2", "scenario_*.parquet", "fedfleet.scenarios.argoverse2"),
    Reader("INTERACTION", "vehicle_tracks_*.csv, pedestrian_tracks_*.csv", "fedfleet.scenarios.interaction"),
    Reader("NGSIM", "*.csv with Vehicle_ID,Frame_ID,Global_Time,…", "fedfleet.scenarios.ngsim"),
    Reader(
        "highD, inD, rounD",
        "*_tracks.csv, *_tracksMeta.csv, *_recordingMeta.csv",
        "fedfleet.scenarios.levelx",
    ),
    Reader("Waymo Motion", "*tfrecord* of Scenario messages", "fedfleet.scenarios.waymo"),
    Reader("Lyft Level 5", "*.zarr of scenes, frames and agents", "fedfleet.scenarios.lyft5"),
    Reader("CommonRoad", "*.zip or *.xml with <commonRoad>", "fedfleet.scenarios.commonroad"),
    Reader("KITTI tracking", "label_02, oxts and calib as zips or folders", "fedfleet.scenarios.kitti"),
    Reader("ScenarioNet (nuScenes)", "sd_*.pkl", "fedfleet.scenarios.scenarionet"),
    Reader("comma2k19", "<car>|<time>/<segment>/global_pose", "fedfleet.scenarios.comma2k19"),
    Reader("OpenSCENARIO", "*.xosc with trajectories", "fedfleet.scenarios.openscenario"),
    Reader("MCAP, ROS 2 bag", "*.mcap or *.db3 with an object list", "fedfleet.scenarios.bags"),
)


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
    """An opened folder: what each reader found, and all drives together."""

    parts: tuple[Found, ...]
    drives: Mapping[str, Drive]

    @property
    def is_lazy(self) -> bool:
        """Whether any of it is read only when asked for."""
        return any(part.recordings.is_lazy for part in self.parts)

    @property
    def problems(self) -> Mapping[str, int]:
        """What was left out so far, by reason."""
        counted: Counter[str] = sum((Counter(part.recordings.problems) for part in self.parts), Counter())
        return dict(sorted(counted.items()))

    def part(self, drive: str) -> Found:
        """What the drive was found by."""
        return next(part for part in self.parts if drive in part.recordings.drives)

    def read(self, drive: str) -> Iterable[Scenario]:
        """The scenarios of one drive, sorted by id."""
        return self.part(drive).recordings.read(drive)


def open_recordings(folder: Path) -> Recorded:
    """Open a folder; the last ones stay open as long as their files stay as they are.

    Raises UsageError for a folder that is absent, empty or of no known format, for a file that no reader or two readers
    know, for a drive in two formats, and for what its reader refuses.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise UsageError(f"{folder}: expected a folder of recordings, got {got}")
    return _open(folder, _stamp(folder))


def stream(folder: Path, drives: Sequence[str] | None = None) -> Iterator[Scenario]:
    """The scenarios of a folder one after the other, sorted by region, drive and id; all, or those of named drives.

    `drives` are `region/drive` keys. Raises as `open_recordings`, and UsageError for an unknown drive, a malformed
    recording or a scenario id in two formats: whoever reads to the end has all of them.
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
    try:
        for key in keys:
            part = recordings.part(key)
            seen: list[tuple[int, float]] = []
            for scenario in part.recordings.read(key):
                seen.append((len(scenario.track_ids), scenario.rate_hz))
                if len(recordings.parts) > 1:
                    _check_format(formats, scenario.scenario_id, part.reader.format)
                _check_units(scenario, part.reader.format)
                yield scenario
            part.tally.add(key, seen)
    except ScenarioError as error:
        raise UsageError(str(error)) from error


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
def _open(folder: Path, stamp: tuple[object, ...]) -> Recorded:  # noqa: ARG001 - another stamp, another reading
    try:
        here = _detect(folder)
        found = [(reader, sources, module.scan(folder, sources)) for reader, module, sources in here]
        return _together(folder, [Found(*one) for one in found])
    except ScenarioError as error:
        raise UsageError(str(error)) from error


def _detect(folder: Path) -> list[tuple[Reader, _Format, tuple[Path, ...]]]:
    found = [(reader, reader.load()) for reader in READERS]
    here = [(reader, module, module.detect(folder)) for reader, module in found]
    owner: dict[Path, Reader] = {}
    for reader, _, sources in here:
        for path in sources:
            if owner.setdefault(path, reader) is not reader:
                text = f"{path.relative_to(folder)} looks like {owner[path].format} and like {reader.format}"
                raise ScenarioError("two-formats", text)
    _refuse_unknown(folder, owner)
    if not owner:
        expected = ", ".join(f"{reader.files} ({reader.format})" for reader in READERS)
        got = _some(sorted(path.name for path in folder.iterdir())) or "an empty folder"
        raise UsageError(f"{folder}: no recordings: expected {expected}, got {got}")
    return [one for one in here if one[2]]


def _refuse_unknown(folder: Path, owner: Mapping[Path, Reader]) -> None:
    """A file that looks like a recording and is nobody's: what is wrong with it, or that no reader knows it."""
    claimed = set(owner) | {path.parent for path in owner}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(RECORDED) and entry.is_file())
    for path in (folder / name for name in names if name not in IGNORED):
        if path in claimed:
            continue
        if path.suffix == ".zip":
            zip_members(path, "")
        if not owner:
            continue
        known = ", ".join(reader.format for reader in READERS)
        raise ScenarioError("unknown-file", f"{path.name}: no recordings of a known format: expected {known}")


def _together(folder: Path, found: Sequence[Found]) -> Recorded:
    by_key: dict[str, tuple[Drive, str]] = {}
    for part in found:
        if not part.recordings.drives:
            what = f"{part.reader.files} ({part.reader.format})"
            raise UsageError(f"{folder}: no recordings: {what} without a scenario")
        for key, drive in part.recordings.drives.items():
            if key in by_key:
                text = f"drive {key} is in {by_key[key][1]} and again in {part.reader.format}"
                raise ScenarioError("duplicate-drive", text)
            by_key[key] = drive, part.reader.format
    ordered = sorted(by_key.items(), key=lambda item: (item[1][0].region, item[1][0].drive))
    return Recorded(tuple(found), {key: drive for key, (drive, _) in ordered})


def _stamp(folder: Path) -> tuple[object, ...]:
    """What changes when the folder does: names, sizes and times of its files; of plain CSV files, of their folder."""
    with os.scandir(folder) as listed:
        paths = [
            entry.path for entry in listed if entry.name == "index.csv" or not entry.name.endswith(".csv")
        ]
    found = [(path, os.stat(path)) for path in [str(folder), *sorted(paths)]]  # noqa: PTH116 - called often
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
