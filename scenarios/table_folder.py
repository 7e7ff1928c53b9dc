"""A folder of scenario tables (`table.py`), read as a whole: the tables are small and checked from end to end."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedfleet.models.task import Drive
from fedfleet.scenarios.records import Scenario, ScenarioError

__all__ = ["TableFolder", "detect", "scan"]


@dataclass(frozen=True)
class TableFolder:
    """All scenarios of a folder, in memory, by `region/drive`."""

    drives: Mapping[str, Drive]
    each: Mapping[str, Sequence[Scenario]]
    is_lazy: bool = False
    problems: Mapping[str, int] = field(default_factory=dict)

    def read(self, drive: str) -> Sequence[Scenario]:
        """The scenarios of one drive, by id."""
        return self.each[drive]


def detect(folder: Path) -> tuple[Path, ...]:
    """The Parquet files in the folder, but those of the names that Argoverse 2 gives."""
    found = (path for path in folder.glob("*.parquet") if not path.name.startswith("scenario_"))
    return tuple(sorted(path for path in found if path.is_file()))


def scan(folder: Path, sources: Sequence[Path]) -> TableFolder:
    """Read every table; ScenarioError for a malformed one, or a scenario that appears twice."""
    from fedfleet.scenarios.table import read_table  # with pyarrow

    found: list[Scenario] = []
    for path in sources:
        try:
            found.extend(read_table(path))
        except ScenarioError as error:
            if path.name in error.detail:
                raise
            raise ScenarioError(error.reason, f"{path.name}: {error.detail}") from error
    found.sort(key=_identity)
    for identity, times in Counter(map(_identity, found)).most_common(1):
        if times > 1:
            text = f"scenario {'/'.join(identity)} appears {times} times in {folder}"
            raise ScenarioError("duplicate-scenario", text)
    by_drive: dict[tuple[str, str], list[Scenario]] = defaultdict(list)
    for scenario in found:
        by_drive[scenario.region, scenario.drive].append(scenario)
    drives, read = {}, {}
    for (region, name), each in by_drive.items():
        drive = Drive(region, name, len(each), sum(scenario.seconds for scenario in each))
        drives[drive.key], read[drive.key] = drive, tuple(each)
    return TableFolder(drives, read)


def _identity(scenario: Scenario) -> tuple[str, str, str]:
    return scenario.region, scenario.drive, scenario.scenario_id
