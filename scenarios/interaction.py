"""Reads a folder of INTERACTION track files: `<place>/vehicle_tracks_000.csv` and `pedestrian_tracks_000.csv`, 10 Hz.

They may lie in zips. The columns are the publisher's (interaction-dataset.com, "Details and format"): x and y are
metres in the place's own frame, x east, y north. A region is the place (the folder's name), a drive a recording:
vehicles and pedestrians of one number.
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
from fedfleet.scenarios.members import Head, Stream, head, is_zip, open_streams
from fedfleet.scenarios.places import place_ids
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.text import without_packing
from fedfleet.scenarios.tree import Tree, tree_of
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


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """Track files by name and header, and zips whose first CSV file is one."""
    tree = tree_of(where)
    found = []
    for path in sorted([*tree.ending(".zip"), *tree.ending(".csv", packed=True)]):
        first = head(path, ".csv") if is_zip(path) or _NAME.match(without_packing(path.name)) else None
        if first is not None and _is_ours(path, first):
            found.append(path)
    return tuple(found)


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Interaction:
    """Find places and recordings; only time stamps are read. A recording is refused with its two files."""
    recorded: dict[tuple[str, str], list[Stream]] = defaultdict(list)
    for path in sources:
        with account.refusing(path.relative_to(folder).as_posix()):
            for stream in open_streams(folder, path, ".csv"):
                named = _NAME.match(stream.name)
                if named is None:
                    text = "is neither vehicle_tracks_*.csv nor pedestrian_tracks_*.csv"
                    account.leave(stream.where, "unknown-file", text)
                    continue
                recorded[_home(stream), named[2]].append(stream)
    names = {home: _place(home) or folder.resolve().name for home, _ in recorded}
    regions = place_ids(names.values())
    trips = place_ids(f"{regions[names[home]]}-{number}" for home, number in recorded)
    drives: dict[str, Drive] = {}
    files: dict[str, tuple[Stream, ...]] = {}
    for (home, number), streams in sorted(recorded.items()):
        region = regions[names[home]]
        with account.refusing(*(stream.where for stream in streams)):
            drive = _drive(region, trips[f"{region}-{number}"], streams)
            if drive.key in files:
                text = f"drive {drive.key} is in {files[drive.key][0].where} and again in {streams[0].where}"
                raise ScenarioError("duplicate-drive", text)
            drives[drive.key], files[drive.key] = drive, tuple(streams)
    return Interaction(dict(sorted(drives.items())), files)


def _home(stream: Stream) -> str:
    """The folder that a file lies in, or the zip and the folder inside it."""
    return stream.where.replace(": ", ":/").rpartition("/")[0]


def _place(home: str) -> str:
    """The place that a folder is named for; of files directly in a zip, the zip's name."""
    name = home.rpartition("/")[2]
    return name[: -len(".zip:")] if name.lower().endswith(".zip:") else name


def _drive(region: str, name: str, streams: Sequence[Stream]) -> Drive:
    each = [_columns(stream, ("timestamp_ms",))["timestamp_ms"] for stream in streams]
    rate_hz, frame = clock(np.unique(np.concatenate(each)) * 1e-3, streams[0].where)
    return Drive(region, name, *recordings(frame, rate_hz))


def _is_ours(path: Path, first: Head) -> bool:
    if is_zip(path):
        inside = without_packing(first.name.rpartition("/")[2])
        return not first.is_damaged and bool(_NAME.match(inside)) and first.has(COLUMNS, 3)
    return first.is_damaged or not first.columns or first.has(COLUMNS, 3)


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
