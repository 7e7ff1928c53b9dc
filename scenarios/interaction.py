"""Reads a folder of INTERACTION track files: `<place>/vehicle_tracks_000.csv` and `pedestrian_tracks_000.csv`, 10 Hz.

The columns are the publisher's (interaction-dataset.com, "Details and format"): x and y are metres in the place's own
frame, x east, y north. A region is the place (the folder's name), a drive a recording: vehicles and pedestrians of
one number.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.members import Stream, head, open_streams
from fedfleet.scenarios.places import place_ids
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.text import without_packing
from fedfleet.scenarios.tree import Tree
from fedfleet.scenarios.windows import LeftOut, Observations, clock, cut, recordings

__all__ = ["Interaction", "detect", "scan"]

COLUMNS: Final = {
    "track_id": "id",
    "frame_id": "whole",
    "timestamp_ms": "whole",
    "agent_type": "text",
    "x": "number",
    "y": "number",
}
_NAME: Final = re.compile(r"(vehicle|pedestrian)_tracks_(\w{1,32})\.csv\Z", re.IGNORECASE)
_TYPES: Final = {
    "car": "vehicle",
    "truck": "truck",
    "bus": "bus",
    "motorcycle": "motorcycle",
    "bicycle": "cyclist",
    "pedestrian": "pedestrian",
    "pedestrian/bicycle": "pedestrian",
}


@dataclass(frozen=True)
class Interaction:
    """An opened folder: its drives by `region/drive`; files are read drive by drive, and not kept."""

    drives: Mapping[str, Drive]
    files: Mapping[str, tuple[Stream, ...]]
    is_lazy: bool = True
    left_out: LeftOut = field(default_factory=LeftOut, repr=False)

    @property
    def problems(self) -> Mapping[str, int]:
        """What was left out of the drives that were read."""
        return self.left_out.total()

    def read(self, drive: str) -> Iterator[Scenario]:
        """The scenarios of one drive, cut every 10 s; ScenarioError naming file and line."""
        return cut(_observations(self.drives[drive], self.files[drive]), problems=self.left_out.of(drive))


def detect(tree: Tree) -> tuple[Path, ...]:
    """Track files by name and header."""
    found = [path for path in tree.ending(".csv", packed=True) if _NAME.match(without_packing(path.name))]
    return tuple(path for path in found if _is_ours(path))


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Interaction:
    """Find places and recordings; only time stamps are read. A recording is refused with its two files."""
    recorded: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in sources:
        named = _NAME.match(without_packing(path.name))
        recorded[path.parent, named[2] if named else path.stem].append(path)
    names = {home: home.name if home != folder else folder.resolve().name for home, _ in recorded}
    regions = place_ids(names.values())
    trips = place_ids(f"{regions[names[home]]}-{number}" for home, number in recorded)
    drives: dict[str, Drive] = {}
    files: dict[str, tuple[Stream, ...]] = {}
    for (home, number), paths in recorded.items():
        region = regions[names[home]]
        with account.refusing(*(path.relative_to(folder).as_posix() for path in paths)):
            streams = [each for path in paths for each in open_streams(folder, path, ".csv")]
            drive = _drive(region, trips[f"{region}-{number}"], streams)
            if drive.key in files:
                text = f"drive {drive.key} is in {files[drive.key][0].where} and again in {streams[0].where}"
                raise ScenarioError("duplicate-drive", text)
            drives[drive.key], files[drive.key] = drive, tuple(streams)
    return Interaction(dict(sorted(drives.items())), files)


def _drive(region: str, name: str, streams: Sequence[Stream]) -> Drive:
    each = [_columns(stream, ("timestamp_ms",))["timestamp_ms"] for stream in streams]
    rate_hz, frame = clock(np.unique(np.concatenate(each)) * 1e-3, streams[0].where)
    return Drive(region, name, *recordings(frame, rate_hz))


def _is_ours(path: Path) -> bool:
    first = head(path, ".csv")
    return first is not None and (first.is_damaged or not first.columns or first.has(COLUMNS, 3))


def _columns(stream: Stream, wanted: Sequence[str], **names: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - Names
    from fedfleet.scenarios.csv_stream import collect, dialect  # with pyarrow

    if dialect(stream).has("case_id"):
        text = "has case_id: cases of a prediction challenge overlap; expected the whole recordings"
        raise ScenarioError("unknown-variant", f"{stream.where} {text}")
    return collect(stream, {name: COLUMNS[name] for name in wanted}, names)


def _observations(drive: Drive, streams: Sequence[Stream]) -> Observations:
    from fedfleet.scenarios.csv_stream import Names

    tracks, types = Names(), Names()
    parts = [_columns(each, tuple(COLUMNS), track_id=tracks, agent_type=types) for each in streams]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}
    where = streams[0].where
    stamps, at = np.unique(rows["timestamp_ms"], return_inverse=True)
    rate_hz, frames = clock(stamps * 1e-3, where)
    frame = frames[at]
    wrong = (
        rows["frame_id"] - frame != rows["frame_id"][0] - frame[0]
        if len(frame)
        else np.zeros(0, dtype=np.bool_)
    )
    if wrong.any():
        row = int(np.asarray(wrong).argmax())
        text = f"frame_id {rows['frame_id'][row]} at {rows['timestamp_ms'][row]} ms"
        raise ScenarioError("two-rates", f"{where}: expected one rate of {rate_hz:g} Hz, got {text}")
    kind = np.zeros(len(tracks.numbers), dtype=np.int64)
    kind[rows["track_id"]] = rows["agent_type"]
    known = [_TYPES.get(name.strip().lower(), "unknown") for name in types.numbers]
    return Observations(
        where,
        drive.region,
        drive.drive,
        rate_hz,
        float(stamps[0]) * 1e-3,
        list(tracks.numbers),
        [known[int(i)] for i in kind],
        rows["track_id"],
        frame,
        np.stack([rows["x"], rows["y"]], axis=1),
    )
