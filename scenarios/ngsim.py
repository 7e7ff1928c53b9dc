"""Reads a folder of NGSIM trajectories as CSV: one file of all places (`Location`), or one of each period.

The columns are the publisher's (US DOT, "NGSIM Vehicle Trajectories and Supporting Data"): Global_X and Global_Y in
feet of the state plane (US survey foot, 1200/3937 m), x east, y north; Global_Time in milliseconds; 10 Hz. A region is
the location (without the column, the file's folder), a drive a period without a pause above 60 s. Rows come in any
order, so that a drive is read by going through its file once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive
from fedfleet.scenarios.members import Stream, head, open_streams
from fedfleet.scenarios.places import place_id
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.windows import LeftOut, Observations, clock, cut, recordings

if TYPE_CHECKING:
    from fedfleet.scenarios.csv_stream import Block

__all__ = ["FOOT_M", "Ngsim", "detect", "scan"]

FOOT_M: Final = 1200.0 / 3937.0
RATE_HZ: Final = 10.0
PAUSE_MS: Final = 60_000
COLUMNS: Final = {
    "Vehicle_ID": "whole",
    "Frame_ID": "whole",
    "Total_Frames": "whole",
    "Global_Time": "whole",
    "Global_X": "number",
    "Global_Y": "number",
    "v_Class": "whole",
}
LOCATION: Final = "Location"
_CLASSES: Final = {1: "motorcycle", 2: "vehicle", 3: "truck"}


@dataclass(frozen=True)
class _Period:
    """A file, a location in it (None: all of it) and the first and last time in milliseconds."""

    stream: Stream
    location: str | None
    first_ms: int
    last_ms: int


@dataclass(frozen=True)
class Ngsim:
    """An opened folder: its drives by `region/drive`; files are gone through drive by drive, and not kept."""

    drives: Mapping[str, Drive]
    periods: Mapping[str, _Period]
    is_lazy: bool = True
    left_out: LeftOut = field(default_factory=LeftOut, repr=False)

    @property
    def problems(self) -> Mapping[str, int]:
        """What was left out of the drives that were read."""
        return self.left_out.total()

    def read(self, drive: str) -> Iterator[Scenario]:
        """The scenarios of one drive, cut every 10 s; ScenarioError naming file and line."""
        return cut(_observations(self.drives[drive], self.periods[drive]), problems=self.left_out.of(drive))


def detect(folder: Path) -> tuple[Path, ...]:
    """CSV files and zips of them, here and one level below, by their header."""
    paths = [*folder.glob("*.csv"), *folder.glob("*/*.csv"), *folder.glob("*.zip")]
    # Files that are named by a number alone are of another format, and may be very many.
    return tuple(path for path in sorted(paths) if not path.stem.isdecimal() and _is_ours(path))


def scan(folder: Path, sources: Sequence[Path]) -> Ngsim:
    """Find locations and periods; every file is gone through once, for its time stamps."""
    drives: dict[str, Drive] = {}
    periods: dict[str, _Period] = {}
    for stream in [each for path in sources for each in open_streams(folder, path, ".csv")]:
        for location, stamps in sorted(_times(stream).items(), key=lambda item: item[0] or ""):
            place = place_id(location or _folder(stream))
            for part in np.split(stamps, np.flatnonzero(np.diff(stamps) > PAUSE_MS) + 1):
                _, frame = clock(part.astype(np.float64) * 1e-3, stream.where, rate_hz=RATE_HZ)
                name = place_id(f"{place}-{int(part[0]) // 1000}")
                drive = Drive(place, name, *recordings(frame, RATE_HZ))
                if drive.key in drives:
                    text = f"drive {drive.key} is in {periods[drive.key].stream.where} and again in {stream.where}"
                    raise ScenarioError("duplicate-drive", text)
                drives[drive.key] = drive
                periods[drive.key] = _Period(stream, location, int(part[0]), int(part[-1]))
    ordered = sorted(drives, key=lambda key: (drives[key].region, drives[key].drive))
    return Ngsim({key: drives[key] for key in ordered}, periods)


def _folder(stream: Stream) -> str:
    """The folder that a file lies in, or its zip."""
    above = stream.where.replace(": ", "/").split("/")[:-1]
    return above[-1].removesuffix(".zip") if above else "ngsim"


def _is_ours(path: Path) -> bool:
    first = head(path, ".csv")
    if first is None or first.is_damaged:
        return first is not None and path.suffix == ".zip" and "ngsim" in path.name.lower()
    return len(set(first.line.replace(";", ",").replace('"', "").split(",")) & set(COLUMNS)) >= 4


def _times(stream: Stream) -> dict[str | None, NDArray[np.int64]]:
    """All time stamps by location, rising."""
    from fedfleet.scenarios.csv_stream import blocks, header  # with pyarrow

    has_location = LOCATION in header(stream)
    columns = {name: COLUMNS[name] for name in ("Global_Time",)} | (
        {LOCATION: "text"} if has_location else {}
    )
    found: dict[str | None, NDArray[np.int64]] = defaultdict(lambda: np.empty(0, dtype=np.int64))
    for block in blocks(stream, columns):
        time = block.numbers["Global_Time"]
        if not has_location:
            found[None] = np.union1d(found[None], time)
            continue
        place, names = block.texts[LOCATION]
        for number, name in enumerate(names):
            found[name] = np.union1d(found[name], time[place == number])
    if not found:
        raise ScenarioError("missing-frames", f"{stream.where}: expected at least 1 row, got none")
    return dict(found)


def _rows(period: _Period) -> dict[str, NDArray[Any]]:
    from fedfleet.scenarios.csv_stream import Names, collect  # with pyarrow

    def keep(block: Block) -> NDArray[np.bool_]:
        time = block.numbers["Global_Time"]
        mask = np.asarray((time >= period.first_ms) & (time <= period.last_ms))
        if period.location is not None:
            place, names = block.texts[LOCATION]
            mask &= np.array([name == period.location for name in names], dtype=np.bool_)[place]
        return mask

    columns = COLUMNS | ({} if period.location is None else {LOCATION: "text"})
    return collect(period.stream, columns, {LOCATION: Names()}, keep=keep)


def _observations(drive: Drive, period: _Period) -> Observations:
    rows = _rows(period)
    where = period.stream.where
    stamps, at = np.unique(rows["Global_Time"], return_inverse=True)
    _, frames = clock(stamps * 1e-3, where, rate_hz=RATE_HZ)
    # A number is given again to another vehicle; how long each was seen tells them apart.
    pairs = np.stack([rows["Vehicle_ID"], rows["Total_Frames"]], axis=1)
    each, first, track = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    track = track.reshape(-1)
    shared = Counter(each[:, 0].tolist())
    names = [f"{one}-{length}" if shared[one] > 1 else str(one) for one, length in each.tolist()]
    frame = frames[at]
    _check_frames(rows["Frame_ID"], frame, track, names, where)
    return Observations(
        where,
        drive.region,
        drive.drive,
        RATE_HZ,
        period.first_ms * 1e-3,
        names,
        [_CLASSES.get(int(rows["v_Class"][row]), "unknown") for row in first],
        track,
        frame,
        np.stack([rows["Global_X"], rows["Global_Y"]], axis=1) * FOOT_M,
    )


def _check_frames(
    number: NDArray[np.int64],
    frame: NDArray[np.int64],
    track: NDArray[np.int64],
    names: Sequence[str],
    where: str,
) -> None:
    """Frame_ID and Global_Time of one vehicle must rise together."""
    order = np.lexsort((frame, track))
    same = track[order][1:] == track[order][:-1]
    wrong = np.asarray(same & (np.diff(number[order]) != np.diff(frame[order])))
    if wrong.any():
        row = int(order[int(wrong.argmax()) + 1])
        text = f"vehicle {names[int(track[row])]}: Frame_ID {number[row]} does not follow Global_Time"
        raise ScenarioError("two-rates", f"{where}: expected {RATE_HZ:g} Hz, {text}")
