"""Drives found in a folder and read one by one when they are asked for: what readers of whole drives have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.records import Scenario, ScenarioError

__all__ = ["Drives", "Take"]

Take = Callable[[Counter[str]], Iterator[Scenario]]
"""Reads one drive, sorted by id, and counts what it leaves out."""


@dataclass(frozen=True)
class Drives:
    """Recordings of one format: the drives by `region/drive`, sorted, and how each is read. Nothing read is kept."""

    drives: Mapping[str, Drive]
    takes: Mapping[str, Take]
    is_lazy: bool = True
    counted: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Iterable[tuple[Drive, Take, str]], account: Account = STRICT) -> Drives:
        """From drives, how they are read and the file that each is in; a second one of a name is refused."""
        where: dict[str, str] = {}
        takes: dict[str, Take] = {}
        drives: dict[str, Drive] = {}
        for drive, take, file in found:
            with account.refusing(file):
                if drive.key in where:
                    text = f"drive {drive.key} is in {where[drive.key]} and again in {file}"
                    raise ScenarioError("duplicate-drive", text)
                where[drive.key], drives[drive.key], takes[drive.key] = file, drive, take
        by_name = sorted(drives.values(), key=lambda drive: (drive.region, drive.drive))
        return cls({drive.key: drive for drive in by_name}, takes)

    @property
    def problems(self) -> Mapping[str, int]:
        """What was left out of the drives that were read to their end so far."""
        return dict(sorted(sum(self.counted.values(), Counter()).items()))

    def read(self, drive: str) -> Iterator[Scenario]:
        """The scenarios of one drive, sorted by id; ScenarioError naming the file."""
        problems: Counter[str] = Counter()
        yield from self.takes[drive](problems)
        self.counted[drive] = problems
