"""Reads nuScenes scenes in ScenarioNet's format: pickles `sd_*.pkl`, one scenario each, read as data (`pickle_data`).

The format is ScenarioDescription of MetaDrive (metadrive/scenario/scenario_description.py). A region is the map
(`boston-seaport`), a drive is the scene (`scene-0103`): files cut from one scene belong to one drive.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.drives import Drives
from fedfleet.scenarios.members import Member, members, open_archive
from fedfleet.scenarios.pickle_data import load
from fedfleet.scenarios.places import place_ids
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.tree import Tree, tree_of
from fedfleet.scenarios.windows import Observations, clock, cut, window_frames

__all__ = ["detect", "observations", "scan"]

_FILE: Final = re.compile(r"(?:\A|.*[/ ])sd_[^/]*\.pkl\Z", re.IGNORECASE)
_SCENE: Final = re.compile(r"(scene-\d+)(?:_|\Z)")
_DATASET: Final = "nuscenes"
_BY_CATEGORY: Final = (
    ("vehicle.truck", "truck"),
    ("vehicle.trailer", "truck"),
    ("vehicle.construction", "truck"),
    ("vehicle.bus", "bus"),
    ("vehicle.motorcycle", "motorcycle"),
    ("vehicle.bicycle", "cyclist"),
    ("vehicle", "vehicle"),
    ("human.pedestrian", "pedestrian"),
    ("movable_object", "static"),
    ("static_object", "static"),
)
_BY_TYPE: Final = {
    "VEHICLE": "vehicle",
    "PEDESTRIAN": "pedestrian",
    "CYCLIST": "cyclist",
    "TRAFFIC_CONE": "static",
    "TRAFFIC_BARRIER": "static",
    "TRAFFIC_OBJECT": "static",
}


@dataclass(frozen=True)
class _File:
    member: Member
    name: str
    frames: int
    seconds: float


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """The pickles named as ScenarioNet names them, and zips with such."""
    tree = tree_of(where)
    zips = [path for path in tree.ending(".zip") if _has_scenarios(path)]
    return (*zips, *(path for path in tree.ending(".pkl") if _FILE.match(path.name)))


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Drives:
    """Every scenario and its drive: each file is read for that, since the map and the length stand in its midst.

    Refused is a pickle with more than data in it, of another data set, and a scenario that is there twice.
    """
    by_drive: dict[tuple[str, str], list[_File]] = defaultdict(list)
    names: dict[str, str] = {}
    for path in sources:
        with account.refusing(path.relative_to(folder).as_posix()):
            for member in members(folder, path, ".pkl"):
                if not _FILE.match(member.where):
                    continue
                with account.refusing(member.where):
                    seen, name = observations(member.read(), member.where)
                    if name in names:
                        text = f"scenario {name} is in {names[name]} and again in {member.where}"
                        raise ScenarioError("duplicate-scenario", text)
                    names[name] = member.where
                    frames = int(seen.frame.max()) + 1
                    file = _File(member, name, frames, frames / seen.rate_hz)
                    by_drive[seen.region, seen.drive].append(file)
    regions = place_ids(place for place, _ in by_drive)
    found = []
    for (place, name), files in by_drive.items():
        pieces = sum(-(-file.frames // window_frames(file.frames / file.seconds)) for file in files)
        drive = Drive(regions[place], name, pieces, sum(file.seconds for file in files))
        found.append((drive, partial(_read, files, drive.region, account), files[0].member.where))
    return Drives.of(found, account)


def _read(
    files: Sequence[_File], region: str, account: Account, problems: Counter[str]
) -> Iterator[Scenario]:
    """The scenarios of a scene: one per file, named as the publisher does, or several when it is long."""
    for file in sorted(files, key=lambda each: each.name):
        with account.refusing(file.member.where):
            seen, name = observations(file.member.read(), file.member.where)
            pieces = list(cut(replace(seen, region=region), problems=problems))
            for scenario in pieces:
                number = scenario.scenario_id.rpartition("-")[2]
                yield replace(scenario, scenario_id=name if len(pieces) == 1 else f"{name}-{number}")


def observations(data: bytes, where: str) -> tuple[Observations, str]:
    """What one pickle recorded, and its id; positions are in its own frame, the region is the map's name."""
    whole = _Part(where, load(data, where))
    metadata = whole.part("metadata")
    if metadata.text("dataset") != _DATASET:
        text = f"{where}: expected dataset '{_DATASET}', got {metadata.text('dataset')!r:.40}"
        raise ScenarioError("unknown-dataset", text)
    name = whole.text("id")
    scene = _SCENE.match(name)
    if scene is None:
        raise ScenarioError("bad-name", f"{where}: expected an id 'scene-NNNN…', got {name!r:.60}")
    rate, frames = clock(metadata.array("ts", 1), where)
    if whole.value.get("length") != len(frames):
        text = (
            f"{where}: expected {len(frames)} frames as in 'ts', got length {whole.value.get('length')!r:.20}"
        )
        raise ScenarioError("missing-frames", text)
    tracks = whole.part("tracks")
    names = sorted(tracks.value, key=str)
    each = [_track(tracks.part(track), frames) for track in names]
    sdc = metadata.text("sdc_id")
    targets = metadata.part("tracks_to_predict").value
    missing = [track for track in (sdc, *targets) if track not in tracks.value]
    if missing:
        raise ScenarioError(
            "missing-track", f"{where}: expected track {missing[0]!r:.60}, got none of that id"
        )
    seen = Observations(
        where=where,
        region=metadata.text("map"),
        drive=scene[1],
        rate_hz=rate,
        t0_s=float(metadata.array("ts", 1)[0]),
        names=[str(track) for track in names],
        types=[_type(tracks.part(track)) for track in names],
        track=np.repeat(np.arange(len(each)), [len(frame) for frame, _ in each]),
        frame=np.concatenate([frame for frame, _ in each]),
        xy=np.concatenate([xy for _, xy in each]),
        av=names.index(sdc),
        targets={names.index(track) for track in targets},
    )
    return seen, name


def _track(track: _Part, frames: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    state = track.part("state")
    position, valid = state.array("position", 2), state.array("valid", 1)
    if len(position) != len(frames) or len(valid) != len(frames) or position.shape[1] < 2:
        text = f"{track.where}: expected {len(frames)} positions, got {list(position.shape)} and {len(valid)} 'valid'"
        raise ScenarioError("missing-frames", text)
    seen = valid > 0
    return frames[seen], position[seen, :2]


def _type(track: _Part) -> str:
    metadata = track.value.get("metadata")
    category = metadata.get("type") if isinstance(metadata, dict) else None
    if isinstance(category, str):
        for start, name in _BY_CATEGORY:
            if category.startswith(start):
                return name
    return _BY_TYPE.get(track.text("type"), "unknown")


@dataclass(frozen=True)
class _Part:
    """A dictionary in the pickle, and the way to it."""

    where: str
    given: object

    def __post_init__(self) -> None:
        if not isinstance(self.given, dict):
            text = f"{self.where}: expected a dictionary, got {type(self.given).__name__}"
            raise ScenarioError("missing-field", text)

    @property
    def value(self) -> Mapping[Any, Any]:
        return self.given  # type: ignore[return-value]

    def part(self, key: str) -> _Part:
        return _Part(f"{self.where} {key}", self.value.get(key))

    def text(self, key: str) -> str:
        found = self.value.get(key)
        if not isinstance(found, str):
            text = f"{self.where}: expected a text {key!r}, got {type(found).__name__}"
            raise ScenarioError("missing-field", text)
        return found

    def array(self, key: str, axes: int) -> NDArray[np.float64]:
        found = self.value.get(key)
        if not isinstance(found, np.ndarray) or found.ndim != axes:
            text = f"{self.where}: expected an array {key!r} of {axes} axes, got {type(found).__name__}"
            raise ScenarioError("missing-field", text)
        return np.asarray(found, dtype=np.float64)


def _has_scenarios(path: Path) -> bool:
    try:
        archive = open_archive(path)
    except ScenarioError:
        return False
    with archive.zip:
        return any(_FILE.match(name) for name in archive.entries)
