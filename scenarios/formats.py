"""The formats of tracks that are read, and what every reader of one promises.

A reader is a module with two functions, imported only when a folder is looked at:

- `detect(tree)`: the files or folders of the tree that are of its format, by name and a header of at most 64 kB; none:
  it is not here. It never fails: a broken archive is nobody's, or one's by name.
- `scan(folder, sources, account)`: finds the drives in them (`Recordings`), reading no more than it must. What is not
  as it must be is refused file by file in the account.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, cast

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import Account
from fedfleet.scenarios.records import Scenario
from fedfleet.scenarios.tree import Tree

__all__ = ["READERS", "Format", "Reader", "Recordings"]


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


class Format(Protocol):
    """The two functions of a reader's module."""

    def detect(self, tree: Tree) -> tuple[Path, ...]:
        """Tell what of the tree is of this format."""

    def scan(self, folder: Path, sources: Sequence[Path], account: Account) -> Recordings:
        """Find the drives in what `detect` told; refuse in the account."""


@dataclass(frozen=True)
class Reader:
    """A recorded format: its name, what its files look like, and the module that knows `detect` and `scan`.

    `members` matches what it takes of a zip, `beside` the files that go with its own and are not read.
    """

    format: str
    files: str
    module: str
    members: str = ""
    beside: str = r"(?!)"

    def load(self) -> Format:
        """The module, imported now."""
        return cast("Format", importlib.import_module(self.module))


_CSV: Final = r"\.csv(\.gz|\.zst|\.zstd)?\Z"
READERS: Final = (
    Reader("fedfleet scenario table", "*.parquet", "fedfleet.scenarios.table_folder"),
    Reader("Argoverse 1", "*.zip or *.csv with TIMESTAMP,TRACK_ID,…", "fedfleet.scenarios.argoverse1", _CSV),
    Reader(
        "Argoverse 2",
        "scenario_*.parquet",
        "fedfleet.scenarios.argoverse2",
        beside=r"(\A|/)log_map_archive_[^/]*\.json\Z",
    ),
    Reader(
        "INTERACTION",
        "vehicle_tracks_*.csv, pedestrian_tracks_*.csv, or zips of them",
        "fedfleet.scenarios.interaction",
        _CSV,
    ),
    Reader(
        "NGSIM",
        "*.csv or zips of them with Vehicle_ID,Frame_ID,Global_Time,…",
        "fedfleet.scenarios.ngsim",
        _CSV,
    ),
    Reader(
        "highD, inD, rounD",
        "*_tracks.csv, *_tracksMeta.csv, *_recordingMeta.csv",
        "fedfleet.scenarios.levelx",
        _CSV + r"|\d_(background|highway)\.(png|jpg)\Z",
        r"\d_(background|highway)\.(png|jpg)\Z",
    ),
    Reader("Waymo Motion", "*tfrecord* of Scenario messages", "fedfleet.scenarios.waymo"),
    Reader("Lyft Level 5", "*.zarr of scenes, frames and agents", "fedfleet.scenarios.lyft5"),
    Reader(
        "CommonRoad",
        "*.zip or *.xml with <commonRoad>",
        "fedfleet.scenarios.commonroad",
        r"\.xml(\.gz|\.zst|\.zstd)?\Z",
    ),
    Reader(
        "KITTI tracking",
        "label_02, oxts and calib as zips or folders",
        "fedfleet.scenarios.kitti",
        r"(\A|/)(label|label_02|oxts|calib)/\d{4}\.txt\Z",
        r"(\A|/)testing/(oxts|calib)/\d{4}\.txt\Z",
    ),
    Reader(
        "ScenarioNet (nuScenes)",
        "sd_*.pkl",
        "fedfleet.scenarios.scenarionet",
        r"(\A|/)(sd_[^/]*|dataset_summary|dataset_mapping)\.pkl\Z",
        r"(\A|/)dataset_(summary|mapping)\.pkl\Z",
    ),
    Reader(
        "comma2k19",
        "<car>|<time>/<segment>/global_pose",
        "fedfleet.scenarios.comma2k19",
        r"\d{2}/\d+/[^/]+",
        r"(\A|/)(processed_log|raw_log)/|(\A|/)(video\.hevc|preview\.png)\Z",
    ),
    Reader(
        "OpenSCENARIO",
        "*.xosc with trajectories",
        "fedfleet.scenarios.openscenario",
        r"\.xosc(\.gz|\.zst|\.zstd)?\Z",
    ),
    Reader(
        "MCAP, ROS 2 bag",
        "*.mcap or *.db3 with an object list",
        "fedfleet.scenarios.bags",
        beside=r"(\A|/)metadata\.yaml\Z|\.db3-(wal|shm|journal)\Z",
    ),
)
