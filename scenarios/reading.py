"""Reads a folder of recordings, whatever its format: one reader per recorded format, found by file name.

May live here: the list of readers and what a folder as a whole must be. A reader lives in its own file and is
imported only when a folder needs it.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.records import Scenario, ScenarioError

__all__ = ["READERS", "Reader", "drive_key", "read"]


@dataclass(frozen=True)
class Reader:
    """A recorded format: the pattern of its file names, and `module:function` from a path to its scenarios."""

    format: str
    pattern: str
    function: str

    def files(self, folder: Path) -> list[Path]:
        """The files of this format, sorted by name."""
        return sorted(path for path in folder.glob(self.pattern) if path.is_file())

    def load(self) -> Callable[[Path], list[Scenario]]:
        """The reading function, its module imported now."""
        module, _, name = self.function.partition(":")
        function: Callable[[Path], list[Scenario]] = getattr(importlib.import_module(module), name)
        return function


READERS: Final = (Reader("fedfleet scenario table", "*.parquet", "fedfleet.scenarios.table:read_table"),)


def drive_key(scenario: Scenario) -> str:
    """`region/drive`, as in `models.task.Drive.key`."""
    return f"{scenario.region}/{scenario.drive}"


def read(folder: Path, drives: Sequence[str] | None = None) -> tuple[Scenario, ...]:
    """The scenarios of a folder, sorted by region, drive and id; all of them or those of the named drives.

    `drives` are `region/drive` keys. Raises UsageError for a folder that is absent, empty, or of no known format,
    for a malformed file, a scenario that appears twice, and an unknown drive.
    """
    reader, files = _detect(folder)
    stamps = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    scenarios = _read_all(reader, stamps)
    if drives is None:
        return scenarios
    known = {drive_key(scenario) for scenario in scenarios}
    unknown = sorted(set(drives) - known)
    if unknown:
        raise UsageError(f"{folder}: no drive {unknown[0]}: expected one of {_some(sorted(known))}")
    wanted = set(drives)
    return tuple(scenario for scenario in scenarios if drive_key(scenario) in wanted)


def _detect(folder: Path) -> tuple[Reader, list[Path]]:
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise UsageError(f"{folder}: expected a folder of recordings, got {got}")
    for reader in READERS:
        files = reader.files(folder)
        if files:
            return reader, files
    expected = ", ".join(f"{reader.pattern} ({reader.format})" for reader in READERS)
    got = _some(sorted(path.name for path in folder.iterdir())) or "an empty folder"
    raise UsageError(f"{folder}: no recordings: expected {expected}, got {got}")


@lru_cache(maxsize=1)
def _read_all(reader: Reader, stamps: tuple[tuple[Path, int, int], ...]) -> tuple[Scenario, ...]:
    """Kept for the last folder, as long as its files stay as they are: many drives are prepared from one folder."""
    function = reader.load()
    scenarios: list[Scenario] = []
    for path, _, _ in stamps:
        try:
            scenarios.extend(function(path))
        except ScenarioError as error:
            raise UsageError(f"{path.name}: {error}") from error
    if not scenarios:
        raise UsageError(f"{stamps[0][0].parent}: no recordings: {len(stamps)} files without a scenario")
    scenarios.sort(key=_identity)
    identity, times = Counter(_identity(scenario) for scenario in scenarios).most_common(1)[0]
    if times > 1:
        raise UsageError(f"scenario {'/'.join(identity)} appears {times} times in {stamps[0][0].parent}")
    return tuple(scenarios)


def _identity(scenario: Scenario) -> tuple[str, str, str]:
    return scenario.region, scenario.drive, scenario.scenario_id


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
