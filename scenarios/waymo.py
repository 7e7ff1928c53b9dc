"""Reads a folder of Waymo Open Motion: TFRecord files of `Scenario` messages, or of `tf.Example`; 9.1 s at 10 Hz.

The publisher names neither city nor drive: the region is `waymo` and every scenario a drive. Scenarios of 9.1 s are cut
with overlap out of drives of 20 s: where train and test must not share a second, take the files `*_20s` or the
publisher's own split. Judged are the tracks to predict. TensorFlow is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.places import place_ids
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.tfrecord import Place, places, read_record
from fedfleet.scenarios.tree import Tree, tree_of
from fedfleet.scenarios.waymo_example import example_extent, parse_example
from fedfleet.scenarios.waymo_scenario import is_scenario, parse_scenario, scenario_extent

__all__ = ["Waymo", "detect", "scan"]

REGION: Final = "waymo"
RATE_HZ: Final = 10.0


@dataclass(frozen=True)
class _Record:
    path: Path
    where: str
    place: Place


@dataclass(frozen=True)
class Waymo:
    """The opened files: drives by `region/drive`, one record each."""

    drives: Mapping[str, Drive]
    records: Mapping[str, _Record]
    is_lazy: bool = True
    problems: Mapping[str, int] = field(default_factory=dict)

    def read(self, drive: str) -> Iterator[Scenario]:
        """The scenario of one drive; ScenarioError naming file and record."""
        record = self.records[drive]
        at = f"{record.where}: record {record.place.number}"
        with record.path.open("rb") as file:
            data = read_record(file, record.place, record.where)
        parse = parse_scenario if is_scenario(data, at) else parse_example
        yield parse(data, at, REGION, self.drives[drive].drive)


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """Files with `tfrecord` in their name."""
    tree = tree_of(where)
    return tuple(path for path in tree.files if "tfrecord" in path.name.lower())


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Waymo:
    """Find each record's scenario id; refused is an id that appears twice, and a file from its first bad record on."""
    found: dict[str, tuple[_Record, float]] = {}
    for path in sources:
        where = path.relative_to(folder).as_posix()
        with account.refusing(where), path.open("rb") as file:
            if not path.stat().st_size:
                raise ScenarioError("no-records", f"{where}: expected at least 1 record, got none")
            for place in places(file, path.stat().st_size, where):
                at = f"{where}: record {place.number}"
                data = read_record(file, place, where, check=False)
                with account.refusing(at):
                    extent = scenario_extent if is_scenario(data, at) else example_extent
                    name, frames = extent(data, at)
                    if name in found:
                        before = found[name][0]
                        text = f"scenario {name} is in {before.where}: record {before.place.number} and again in {at}"
                        raise ScenarioError("duplicate-scenario", text)
                    found[name] = _Record(path, where, place), frames / RATE_HZ
    ids = place_ids(found)
    drives = {name: Drive(REGION, ids[name], 1, seconds) for name, (_, seconds) in found.items()}
    records = {drives[name].key: record for name, (record, _) in found.items()}
    by_key = {drive.key: drive for drive in drives.values()}
    return Waymo({key: by_key[key] for key in sorted(by_key)}, records)
