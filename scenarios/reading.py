"""Reads a folder of recordings, whatever its format: one reader per recorded format, found by what is in the folder.

May live here: the list of readers and what a folder as a whole must be. A reader lives in its own file and is
imported only when folders are looked at; pyarrow only when recordings are read.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol, cast

from fedfleet.models.task import Drive
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.records import Scenario, ScenarioError

__all__ = ["READERS", "Reader", "Recordings", "open_recordings", "read", "stream"]


class Recordings(Protocol):
    """An opened folder."""

    @property
    def drives(self) -> Mapping[str, Drive]:
        """Every drive by its key, sorted by region and name."""

    @property
    def is_lazy(self) -> bool:
        """Tell whether scenarios are read only when asked for, so that going through all of them takes its time."""

    def scenarios(self, drive: str) -> Iterable[Scenario]:
        """Give the scenarios of one drive, sorted by id; ScenarioError for what is not as it must be."""


class _Format(Protocol):
    def is_here(self, folder: Path) -> bool: ...

    def open_folder(self, folder: Path) -> Recordings: ...


@dataclass(frozen=True)
class Reader:
    """A recorded format: its name, what its files look like, and the module that knows `is_here` and `open_folder`."""

    format: str
    files: str
    module: str

    def load(self) -> _Format:
        """The module, imported now."""
        return cast("_Format", importlib.import_module(self.module))


READERS: Final = (
    Reader("fedfleet scenario table", "*.parquet", "fedfleet.scenarios.table_folder"),
    Reader("Argoverse 1", "*.zip or *.csv with TIMESTAMP,TRACK_ID,…", "fedfleet.scenarios.argoverse1"),
)


def open_recordings(folder: Path) -> Recordings:
    """Open a folder; the last ones stay open as long as their files stay as they are.

    Raises UsageError for a folder that is absent, empty, of no known format or of two, and for what its reader refuses.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise UsageError(f"{folder}: expected a folder of recordings, got {got}")
    return _open(folder, _stamp(folder))


def stream(folder: Path, drives: Sequence[str] | None = None) -> Iterator[Scenario]:
    """The scenarios of a folder one after the other, sorted by region, drive and id; all, or those of named drives.

    `drives` are `region/drive` keys. Raises as `open_recordings`, and UsageError for an unknown drive or a malformed
    recording: whoever reads to the end has all of them.
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


def _each(recordings: Recordings, keys: Sequence[str]) -> Iterator[Scenario]:
    try:
        for key in keys:
            yield from recordings.scenarios(key)
    except ScenarioError as error:
        raise UsageError(str(error)) from error


@lru_cache(maxsize=2)
def _open(folder: Path, stamp: tuple[object, ...]) -> Recordings:  # noqa: ARG001 - another stamp, another reading
    found = [(reader, reader.load()) for reader in READERS]
    here = [(reader, module) for reader, module in found if module.is_here(folder)]
    if len(here) > 1:
        formats = " and ".join(f"{reader.files} ({reader.format})" for reader, _ in here)
        raise UsageError(f"{folder}: expected recordings of one format, got {formats}")
    if not here:
        expected = ", ".join(f"{reader.files} ({reader.format})" for reader in READERS)
        got = _some(sorted(path.name for path in folder.iterdir())) or "an empty folder"
        raise UsageError(f"{folder}: no recordings: expected {expected}, got {got}")
    reader, module = here[0]
    try:
        recordings = module.open_folder(folder)
    except ScenarioError as error:
        raise UsageError(str(error)) from error
    if not recordings.drives:
        raise UsageError(f"{folder}: no recordings: {reader.files} ({reader.format}) without a scenario")
    return recordings


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
