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
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.members import Stream, head, is_zip, open_streams
from fedfleet.scenarios.places import place_id, place_ids
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.text import without_packing
from fedfleet.scenarios.tree import INDEX_NAME, Tree, tree_of
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
REUSED: Final = "reused-number"
AGAIN_FRAMES: Final = 10
"""A vehicle that was not seen for so long, 1 s, and whose Frame_ID starts again, is another one."""
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
        problems = self.left_out.of(drive)
        return cut(_observations(self.drives[drive], self.periods[drive], problems), problems=problems)


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """CSV files and zips of them, by their header."""
    tree = tree_of(where)
    paths = sorted([*tree.ending(".csv", packed=True), *tree.ending(".zip")])
    # Files that are named by a number alone are of another format, and may be very many.
    named = (path for path in paths if not without_packing(path.name).partition(".")[0].isdecimal())
    return tuple(path for path in named if not INDEX_NAME.match(path.name) and _is_ours(path))


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Ngsim:
    """Find locations and periods; every file is gone through once, for its time stamps."""
    times: list[tuple[Stream, str, str | None, NDArray[np.int64]]] = []
    for path in sources:
        with account.refusing(path.relative_to(folder).as_posix()):
            for stream in open_streams(folder, path, ".csv"):
                with account.refusing(stream.where):
                    for location, stamps in sorted(_times(stream).items(), key=lambda item: item[0] or ""):
                        times.append((stream, location or _folder(stream), location, stamps))
    places = place_ids(place for _, place, _, _ in times)
    drives: dict[str, Drive] = {}
    periods: dict[str, _Period] = {}
    for stream, place, location, stamps in times:
        for part in np.split(stamps, np.flatnonzero(np.diff(stamps) > PAUSE_MS) + 1):
            with account.refusing(stream.where):
                _, frame = clock(part.astype(np.float64) * 1e-3, stream.where, rate_hz=RATE_HZ)
                name = place_id(f"{places[place]}-{int(part[0]) // 1000}")
                drive = Drive(places[place], name, *recordings(frame, RATE_HZ))
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
    if not above:
        return "ngsim"
    return above[-1][:-4] if above[-1].lower().endswith(".zip") else above[-1]


def _is_ours(path: Path) -> bool:
    first = head(path, ".csv")
    if first is None or first.is_damaged:
        return first is not None and is_zip(path) and "ngsim" in path.name.lower()
    return first.has(COLUMNS, 4)


def _times(stream: Stream) -> dict[str | None, NDArray[np.int64]]:
    """All time stamps by location, rising."""
    from fedfleet.scenarios.csv_stream import blocks, dialect  # with pyarrow

    has_location = dialect(stream).has(LOCATION)
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


def _observations(drive: Drive, period: _Period, problems: Counter[str]) -> Observations:
    rows = _rows(period)
    where = period.stream.where
    _check_times(rows, where)
    stamps, at = np.unique(rows["Global_Time"], return_inverse=True)
    _, frames = clock(stamps * 1e-3, where, rate_hz=RATE_HZ)
    names, track, kept = _vehicles(rows, frames[at], where, problems)
    rows = {name: values[kept] for name, values in rows.items()}
    first = np.unique(track, return_index=True)[1]
    return Observations(
        where,
        drive.region,
        drive.drive,
        RATE_HZ,
        period.first_ms * 1e-3,
        names,
        [_CLASSES.get(int(rows["v_Class"][row]), "unknown") for row in first],
        track,
        frames[at][kept],
        np.stack([rows["Global_X"], rows["Global_Y"]], axis=1) * FOOT_M,
    )


def _check_times(rows: Mapping[str, NDArray[Any]], where: str) -> None:
    """Refuse times that a spreadsheet rounded (`1.11885E+12`): one vehicle's frames are then at one time."""
    order = np.lexsort((rows["Frame_ID"], rows["Global_Time"], rows["Total_Frames"], rows["Vehicle_ID"]))
    each = [rows[name][order] for name in ("Vehicle_ID", "Total_Frames", "Global_Time", "Frame_ID")]
    same = np.logical_and.reduce([values[1:] == values[:-1] for values in each[:3]])
    rounded = np.asarray(same & (each[3][1:] != each[3][:-1]))
    if 2 * rounded.sum() > len(order):
        text = "expected a Global_Time for each frame, got many frames at one"
        hint = "did a spreadsheet round it (1.11885E+12)? Save the column as numbers without a decimal"
        raise ScenarioError("rounded-time", f"{where}: {text}: {hint}")


def _vehicles(
    rows: Mapping[str, NDArray[Any]], frame: NDArray[np.int64], where: str, problems: Counter[str]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.bool_]]:
    """The names of all vehicles, the place of each kept row's among them, and which rows are kept, bool[rows].

    A number is given again to another vehicle: how long each was seen tells them apart, and that Frame_ID starts again
    after a time in which the first was not seen. A vehicle whose Frame_ID and Global_Time disagree otherwise is left
    out and counted (`reused-number`); ScenarioError when that is all of them.
    """
    pairs = np.stack([rows["Vehicle_ID"], rows["Total_Frames"]], axis=1)
    each, pair = np.unique(pairs, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    order = np.lexsort((frame, pair))
    step, passed = np.diff(rows["Frame_ID"][order]), np.diff(frame[order])
    same = np.diff(pair[order]) == 0
    again = same & (step != passed) & (passed >= AGAIN_FRAMES)
    wrong = same & (step != passed) & ~again
    part = np.concatenate([[0], np.cumsum(~same | again)]).astype(np.int64)
    bad = np.zeros(int(part[-1]) + 1, dtype=np.bool_)
    bad[part[1:][wrong]] = True
    if bad.all():
        row = int(order[int(wrong.argmax()) + 1])
        text = (
            f"vehicle {rows['Vehicle_ID'][row]}: Frame_ID {rows['Frame_ID'][row]} does not follow Global_Time"
        )
        raise ScenarioError("two-rates", f"{where}: expected {RATE_HZ:g} Hz, {text}")
    problems.update({REUSED: int(bad.sum())} if bad.any() else {})
    of_row = np.empty(len(order), dtype=np.int64)
    of_row[order] = part
    firsts = np.unique(part, return_index=True)[1]
    names = _names(each, pair[order][firsts])
    kept = ~bad[of_row]
    present, track = np.unique(of_row[kept], return_inverse=True)
    return [names[int(at)] for at in present], track.astype(np.int64), kept


def _names(pairs: NDArray[np.int64], pair: NDArray[np.int64]) -> list[str]:
    """`12`; `12-437` where the number is of vehicles seen for different times; `12-2`, `12-437-2` for the second."""
    shared = Counter(pairs[:, 0].tolist())
    seen: Counter[int] = Counter()
    names = []
    for at in pair.tolist():
        number, length = pairs[at].tolist()
        seen[at] += 1
        name = f"{number}-{length}" if shared[number] > 1 else str(number)
        names.append(f"{name}-{seen[at]}" if seen[at] > 1 else name)
    return names
