"""A folder of scenario tables (`table.py`): its drives are known from the names, scenarios are read group by group."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.tree import Tree, tree_of

if TYPE_CHECKING:
    from fedfleet.scenarios.table import Table
    from fedfleet.scenarios.table_arrays import Arrays

__all__ = ["TableFolder", "detect", "scan"]

LAZY_ROWS: Final = 200_000
"""A folder with more is not gone through only to list it."""


@dataclass(frozen=True)
class _Piece:
    """Rows of a group of a file that are of one drive."""

    table: Table
    group: int
    rows: tuple[int, int]


@dataclass
class _Last:
    """The group that was read last: drives that lie beside each other are read from it."""

    table: Table | None = None
    group: int = -1
    arrays: Arrays | None = None

    def get(self, piece: _Piece) -> Arrays:
        if self.arrays is None or (self.table, self.group) != (piece.table, piece.group):
            self.arrays = None
            self.table, self.group, self.arrays = piece.table, piece.group, piece.table.arrays(piece.group)
        return self.arrays


@dataclass(frozen=True)
class TableFolder:
    """An opened folder: its drives by `region/drive`; one group of rows is kept at a time."""

    drives: Mapping[str, Drive]
    pieces: Mapping[str, tuple[_Piece, ...]]
    is_lazy: bool
    problems: Mapping[str, int] = field(default_factory=dict)
    last: _Last = field(default_factory=_Last, repr=False)

    def read(self, drive: str) -> Iterator[Scenario]:
        """The scenarios of one drive, by id; ScenarioError for a malformed table, or a scenario that appears twice."""
        pieces = self.pieces[drive]
        if len(pieces) == 1:
            yield from self.last.get(pieces[0]).scenarios(pieces[0].rows)
            return
        found = [each for piece in pieces for each in self.last.get(piece).scenarios(piece.rows)]
        found.sort(key=lambda scenario: scenario.scenario_id)
        for name, times in Counter(scenario.scenario_id for scenario in found).most_common(1):
            if times > 1:
                folder = pieces[0].table.path.parent
                text = f"scenario {drive}/{name} appears {times} times in {folder}"
                raise ScenarioError("duplicate-scenario", text)
        yield from found


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """The Parquet files, but those of the names that Argoverse 2 gives."""
    tree = tree_of(where)
    return tuple(path for path in tree.ending(".parquet") if not path.name.lower().startswith("scenario_"))


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> TableFolder:
    """Read the names in every table; refused is what is none."""
    from fedfleet.scenarios.table import Table  # with pyarrow

    pieces: dict[tuple[str, str], list[_Piece]] = defaultdict(list)
    counts: Counter[tuple[str, str]] = Counter()
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    rows = 0
    for path in sources:
        with account.refusing(path.relative_to(folder).as_posix()):
            table = Table(path)
            groups = range(len(table.group_rows))
            if not sum(table.group_rows):
                raise ScenarioError(
                    "no-scenario", f"{path}: expected at least 1 scenario, got a table without rows"
                )
            found = [(group, each) for group in groups for each in list(_drives(table.heads(group)))]
            rows += sum(table.group_rows)
            for group, (key, start, stop, each, length) in found:
                pieces[key].append(_Piece(table, group, (start, stop)))
                counts[key] += each
                seconds[key] += length
    drives, listed = {}, {}
    for region, name in sorted(pieces):
        key = (region, name)
        drive = Drive(region, name, counts[key], seconds[key])
        drives[drive.key], listed[drive.key] = drive, tuple(pieces[key])
    return TableFolder(drives, listed, is_lazy=rows > LAZY_ROWS)


def _drives(heads: Arrays) -> Iterator[tuple[tuple[str, str], int, int, int, float]]:
    """Region and drive, rows from and to, scenarios and seconds of each drive in these rows."""
    starts = heads.scenario_offsets[:-1]
    if not len(starts):
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        length = heads.numbers["frames"][starts] / heads.numbers["rate_hz"][starts].astype(np.float64)
    codes = [heads.names[name].codes[starts] for name in ("region", "drive")]
    new = np.logical_or.reduce([each[1:] != each[:-1] for each in codes])
    edges = [0, *(np.flatnonzero(new) + 1).tolist(), len(starts)]
    for begin, end in pairwise(edges):
        row = int(starts[begin])
        key = heads.names["region"][row], heads.names["drive"][row]
        stop = int(heads.scenario_offsets[end])
        yield key, row, stop, end - begin, float(length[begin:end].sum())
