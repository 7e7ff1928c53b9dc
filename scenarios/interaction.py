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
from fedfleet.scenarios.members import Stream, head, open_streams
from fedfleet.scenarios.places import place_id
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.windows import LeftOut, Observations, clock, cut, recordings

__all__ = ["Interaction", "detect", "scan"]

COLUMNS: Final = {
    "track_id": "text",
    "frame_id": "whole",
    "timestamp_ms": "whole",
    "agent_type": "text",
    "x": "number",
    "y": "number",
}
_NAME: Final = re.compile(r"(?:vehicle|pedestrian)_tracks_(\w{1,32})\.csv\Z")
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


def detect(folder: Path) -> tuple[Path, ...]:
    """Track files by name, here, one level below, and below `recorded_trackfiles`, as the publisher unpacks them."""
    found = [
        path for at in ("", "*/", "recorded_trackfiles/*/") for path in folder.glob(f"{at}*_tracks_*.csv")
    ]
    return tuple(sorted({path for path in found if _NAME.match(path.name) and _is_ours(path)}))


def scan(folder: Path, sources: Sequence[Path]) -> Interaction:
    """Find places and recordings; only time stamps are read."""
    by_drive: dict[tuple[str, str], list[Stream]] = defaultdict(list)
    for path in sources:
        number = _NAME.match(path.name)
        region = place_id(path.parent.name if path.parent != folder else folder.resolve().name)
        by_drive[region, place_id(f"{region}-{number[1] if number else path.stem}")] += open_streams(
            folder, path, ".csv"
        )
    drives, files = {}, {}
    for (region, name), streams in sorted(by_drive.items()):
        stamps = np.unique(
            np.concatenate([_columns(each, ("timestamp_ms",))["timestamp_ms"] for each in streams])
        )
        rate_hz, frame = clock(stamps * 1e-3, streams[0].where)
        drive = Drive(region, name, *recordings(frame, rate_hz))
        drives[drive.key], files[drive.key] = drive, tuple(streams)
    return Interaction(drives, files)


def _is_ours(path: Path) -> bool:
    first = head(path, ".csv")
    found = set(first.line.replace(";", ",").split(",")) if first is not None else set()
    return len(found & set(COLUMNS)) >= 3


def _columns(stream: Stream, wanted: Sequence[str], **names: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401 - Names
    from fedfleet.scenarios.csv_stream import collect, header  # with pyarrow

    if "case_id" in header(stream):
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
