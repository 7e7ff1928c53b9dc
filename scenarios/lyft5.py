"""Reads a folder of Lyft Level 5 prediction data: zarr stores of scenes of 25 s at 10 Hz, in Palo Alto.

The records are the publisher's (l5kit, `data/zarr_dataset.py`): a scene names its frames, a frame its agents and the
car's own pose; centroids are metres in the city's frame. The region is `palo-alto`; a drive is what one car (`host`)
recorded without a pause above 60 s, so that scenes cut from one drive stay together. An agent's type is its most
probable label.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.places import place_id, place_ids
from fedfleet.scenarios.records import MAX_TRACKS, Scenario, ScenarioError
from fedfleet.scenarios.tree import Tree, tree_of
from fedfleet.scenarios.windows import LeftOut, Observations, clock, cut, recordings
from fedfleet.scenarios.zarr_v2 import ZarrArray, attributes, open_array

__all__ = ["Lyft5", "detect", "scan"]

REGION: Final = "palo-alto"
RATE_HZ: Final = 10.0
PAUSE_NS: Final = 60 * 10**9
MAX_SCENE_ROWS: Final = 4 * 10**6
_FIELDS: Final = {
    "scenes": ("frame_index_interval", "host", "start_time", "end_time"),
    "frames": ("timestamp", "agent_index_interval", "ego_translation"),
    "agents": ("centroid", "track_id", "label_probabilities"),
}
_TYPES: Final = {
    "CAR": "vehicle",
    "VAN": "vehicle",
    "EMERGENCY_VEHICLE": "vehicle",
    "OTHER_VEHICLE": "vehicle",
    "TRAM": "unknown",
    "BUS": "bus",
    "TRUCK": "truck",
    "BICYCLE": "cyclist",
    "CYCLIST": "cyclist",
    "MOTORCYCLE": "motorcycle",
    "MOTORCYCLIST": "motorcycle",
    "PEDESTRIAN": "pedestrian",
}


@dataclass(frozen=True)
class _Store:
    where: str
    frames: ZarrArray
    agents: ZarrArray
    types: tuple[str, ...]


@dataclass(frozen=True)
class _Scene:
    store: _Store
    start_ns: int
    end_ns: int
    first: int
    end: int


@dataclass(frozen=True)
class Lyft5:
    """The opened stores: drives by `region/drive`; scenes are read drive by drive, and not kept."""

    drives: Mapping[str, Drive]
    scenes: Mapping[str, tuple[_Scene, ...]]
    is_lazy: bool = True
    left_out: LeftOut = field(default_factory=LeftOut, repr=False)

    @property
    def problems(self) -> Mapping[str, int]:
        """What was left out of the drives that were read."""
        return self.left_out.total()

    def read(self, drive: str) -> Iterator[Scenario]:
        """The scenarios of one drive, each scene cut every 10 s; ScenarioError naming array and row."""
        problems = self.left_out.of(drive)
        for scene in self.scenes[drive]:
            yield from cut(_observations(self.drives[drive], scene), problems=problems)


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """Folders with the arrays of this data set in them."""
    tree = tree_of(where)
    arrays = [path.parent for path in tree.named(".zarray") if path.parent.name == "agents"]
    return tuple(sorted({array.parent for array in arrays if tree.folder in array.parent.parents}))


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Lyft5:
    """Read the list of scenes; refused is a store of other fields, and a car with two scenes at one time."""
    by_host: dict[str, list[_Scene]] = defaultdict(list)
    for path in sources:
        with account.refusing(path.relative_to(folder).as_posix()):
            where = path.relative_to(folder).as_posix()
            found = list(_scenes(path, where))
            if not found:
                raise ScenarioError("no-scenario", f"{where}: expected at least 1 scene, got none")
            for host, scene in found:
                by_host[host].append(scene)
    hosts = place_ids(by_host)
    drives, scenes = {}, {}
    for host, each in sorted(by_host.items()):
        each.sort(key=lambda scene: scene.start_ns)
        with account.refusing(f"{each[0].store.where}: host {host}"):
            for part in list(_drives(each)):
                frames = [np.arange(scene.end - scene.first) for scene in part]
                counted = [recordings(frame, RATE_HZ) for frame in frames]
                name = place_id(f"{hosts[host]}-{part[0].start_ns // 10**9}")
                drive = Drive(REGION, name, sum(n for n, _ in counted), sum(s for _, s in counted))
                drives[drive.key], scenes[drive.key] = drive, tuple(part)
    return Lyft5(drives, scenes)


def _scenes(path: Path, where: str) -> Iterator[tuple[str, _Scene]]:
    arrays = {name: open_array(path / name, f"{where}/{name}") for name in _FIELDS}
    for name, needed in _FIELDS.items():
        have = arrays[name].dtype.names or ()
        missing = [column for column in needed if column not in have]
        if missing:
            text = f"{where}/{name}: expected field {missing[0]!r}, got {', '.join(have)[:120]}"
            raise ScenarioError("missing-column", text)
    labels = attributes(path, where).get("labels", ())
    short = [str(label).rpartition("LABEL_")[2] for label in labels]
    types = tuple(_TYPES.get(label, "unknown") for label in short)
    store = _Store(where, arrays["frames"], arrays["agents"], types)
    for row in arrays["scenes"].read(0, arrays["scenes"].rows):
        first, end = (int(edge) for edge in row["frame_index_interval"])
        yield str(row["host"]), _Scene(store, int(row["start_time"]), int(row["end_time"]), first, end)


def _drives(scenes: Sequence[_Scene]) -> Iterator[list[_Scene]]:
    part: list[_Scene] = []
    for scene in scenes:
        if part and scene.start_ns == part[-1].start_ns:
            text = f"{scene.store.where}: expected one scene at a time, got two that begin at {scene.start_ns} ns"
            raise ScenarioError("duplicate-scenario", text)
        if part and scene.start_ns - part[-1].end_ns > PAUSE_NS:
            yield part
            part = []
        part.append(scene)
    if part:
        yield part


def _observations(drive: Drive, scene: _Scene) -> Observations:
    where = f"{scene.store.where} frames {scene.first} to {scene.end}"
    frames = scene.store.frames.read(scene.first, scene.end)
    if not len(frames):
        raise ScenarioError("missing-frames", f"{where}: expected at least 1 frame, got none")
    # Nanoseconds since 1970 do not fit into a float64: from the first frame on they do.
    start_ns = int(frames["timestamp"][0])
    _, number = clock((frames["timestamp"] - start_ns) * 1e-9, where, rate_hz=RATE_HZ)
    agents, frame = _agents(scene, frames, number, where)
    ids, first, track = np.unique(agents["track_id"], return_index=True, return_inverse=True)
    label = agents["label_probabilities"].argmax(axis=1)
    types = [scene.store.types[int(label[row])] for row in first]
    return Observations(
        where,
        drive.region,
        drive.drive,
        RATE_HZ,
        start_ns * 1e-9,
        ["AV", *(str(one) for one in ids.tolist())],
        ["vehicle", *types],
        np.concatenate([np.zeros(len(number), dtype=np.int64), track.reshape(-1) + 1]),
        np.concatenate([number, frame]),
        np.concatenate([frames["ego_translation"][:, :2], agents["centroid"]]).astype(np.float64),
        av=0,
        prefix=f"{drive.drive}-{start_ns // 10**9}",
    )


def _agents(
    scene: _Scene, frames: NDArray[Any], number: NDArray[np.int64], where: str
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The agents of these frames, and the frame number of each."""
    spans = frames["agent_index_interval"].astype(np.int64)
    counts = spans[:, 1] - spans[:, 0]
    if (counts < 0).any() or (counts > MAX_TRACKS).any() or (spans[1:, 0] != spans[:-1, 1]).any():
        text = f"{where}: expected agent_index_interval to rise without gaps, at most {MAX_TRACKS} agents a frame"
        raise ScenarioError("rows-outside", text)
    if int(counts.sum()) > MAX_SCENE_ROWS:
        raise ScenarioError("table-too-large", f"{where}: {counts.sum()} agents, limit {MAX_SCENE_ROWS}")
    agents = scene.store.agents.read(int(spans[0, 0]), int(spans[-1, 1]))
    if agents["label_probabilities"].shape[1] != len(scene.store.types):
        text = f"{where}: expected {len(scene.store.types)} label_probabilities as .zattrs has labels"
        raise ScenarioError("missing-column", text)
    return agents, np.repeat(number, counts)
