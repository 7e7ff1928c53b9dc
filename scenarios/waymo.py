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
from fedfleet.scenarios.places import place_id
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.tfrecord import Place, places, read_record
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


def detect(folder: Path) -> tuple[Path, ...]:
    """Files with `tfrecord` in their name, here and one level below."""
    found = sorted([*folder.glob("*tfrecord*"), *folder.glob("*/*tfrecord*")])
    return tuple(path for path in found if path.is_file())


def scan(folder: Path, sources: Sequence[Path]) -> Waymo:
    """Find each record's scenario id; ScenarioError for an id that appears twice."""
    drives: dict[str, Drive] = {}
    records: dict[str, _Record] = {}
    for path in sources:
        where = path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            for place in places(file, path.stat().st_size, where):
                at = f"{where}: record {place.number}"
                data = read_record(file, place, where, check=False)
                extent = scenario_extent if is_scenario(data, at) else example_extent
                name, frames = extent(data, at)
                drive = Drive(REGION, place_id(name), 1, frames / RATE_HZ)
                if drive.key in drives:
                    text = f"scenario {name} is in {records[drive.key].where} and again in {at}"
                    raise ScenarioError("duplicate-scenario", text)
                drives[drive.key], records[drive.key] = drive, _Record(path, where, place)
    return Waymo({key: drives[key] for key in sorted(drives)}, records)
