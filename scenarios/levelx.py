"""Reads a folder of highD, inD, rounD and their like (levelXData): three CSV files for each recording, 25 Hz mostly.

`NN_recordingMeta.csv` tells rate and place, `NN_tracksMeta.csv` what was seen when, `NN_tracks.csv` the positions
(levelxdata.com, "Format"). Of highD x and y are the corner of a box in an image whose y points down: positions are box
centres with y turned up, so that left stays left. Of the others they are xCenter and yCenter, x east, y north. A region
is the location, a drive a recording. The files may lie in a zip, a folder `data`, or here.
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
from fedfleet.scenarios.members import Stream, head, is_zip, open_streams
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.text import without_packing
from fedfleet.scenarios.tree import Tree, tree_of
from fedfleet.scenarios.windows import LeftOut, Observations, cut, recordings

__all__ = ["LevelX", "detect", "scan"]

_NAME: Final = re.compile(r"(\d{1,6})_(tracks|tracksMeta|recordingMeta)\.csv\Z", re.IGNORECASE)
_PARTS: Final = ("tracks", "tracksMeta", "recordingMeta")
MAX_RATE_HZ: Final = 1000.0
_TYPES: Final = {
    "car": "vehicle",
    "van": "vehicle",
    "truck": "truck",
    "truck_bus": "truck",
    "trailer": "truck",
    "bus": "bus",
    "motorcycle": "motorcycle",
    "bicycle": "cyclist",
    "pedestrian": "pedestrian",
}


@dataclass(frozen=True)
class _Recording:
    """One recording: its three files, its rate, and of each track its type, first and last frame."""

    tracks: Stream
    is_highd: bool
    rate_hz: float
    names: tuple[str, ...]
    types: tuple[str, ...]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


@dataclass(frozen=True)
class LevelX:
    """An opened folder: its drives by `region/drive`; positions are read drive by drive, and not kept."""

    drives: Mapping[str, Drive]
    recorded: Mapping[str, _Recording]
    is_lazy: bool = True
    left_out: LeftOut = field(default_factory=LeftOut, repr=False)

    @property
    def problems(self) -> Mapping[str, int]:
        """What was left out of the drives that were read."""
        return self.left_out.total()

    def read(self, drive: str) -> Iterator[Scenario]:
        """The scenarios of one drive, cut every 10 s; ScenarioError naming file and track."""
        return cut(_observations(self.drives[drive], self.recorded[drive]), problems=self.left_out.of(drive))


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """The three files of a recording by name, and zips of such."""
    tree = tree_of(where)
    files = [path for path in tree.ending(".csv", packed=True) if _NAME.match(without_packing(path.name))]
    zips = []
    for path in tree.ending(".zip"):
        first = head(path, ".csv")
        named = re.search(r"\b(highD|inD|rounD|uniD|exiD)\b", path.name, re.IGNORECASE)
        inside = without_packing(first.name.rpartition("/")[2]) if first is not None else ""
        if first is not None and (named if first.is_damaged else _NAME.match(inside)):
            zips.append(path)
    return (*zips, *files)


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> LevelX:
    """Find the recordings by their two small files; one that lacks a file is refused."""
    files: dict[tuple[str, str], dict[str, Stream]] = defaultdict(dict)
    parts_by_name = {part.lower(): part for part in _PARTS}
    for path in sources:
        with account.refusing(path.relative_to(folder).as_posix()):
            for stream in open_streams(folder, path, ".csv"):
                named = _NAME.match(stream.name)
                if named is None:
                    text = "is none of NN_tracks.csv, NN_tracksMeta.csv, NN_recordingMeta.csv"
                    account.leave(stream.where, "unknown-file", text)
                    continue
                # A number is given once in a folder; other data sets count from the start as well.
                home = stream.where[: -len(stream.name)] if is_zip(path) else str(path.parent)
                files[home, named[1]][parts_by_name[named[2].lower()]] = stream
    drives: dict[str, Drive] = {}
    recorded: dict[str, _Recording] = {}
    for (_, number), parts in sorted(files.items()):
        with account.refusing(*sorted(stream.where for stream in parts.values())):
            drive, one = _drive(number, parts)
            if drive.key in drives:
                before, again = recorded[drive.key].tracks.where, one.tracks.where
                text = f"drive {drive.key} is in {before} and again in {again}"
                raise ScenarioError("duplicate-drive", text)
            drives[drive.key], recorded[drive.key] = drive, one
    ordered = sorted(drives, key=lambda key: (drives[key].region, drives[key].drive))
    return LevelX({key: drives[key] for key in ordered}, recorded)


def _drive(number: str, parts: Mapping[str, Stream]) -> tuple[Drive, _Recording]:
    missing = [part for part in _PARTS if part not in parts]
    if missing:
        have = ", ".join(stream.where for stream in parts.values())
        raise ScenarioError("missing-file", f"{have}: expected {number}_{missing[0]}.csv beside it, got none")
    one, region = _recording(parts)
    spans = [np.arange(a, b + 1) for a, b in zip(one.first.tolist(), one.last.tolist(), strict=True)]
    seen = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *spans]))
    frame = seen - one.first.min(initial=2**31)
    return Drive(region, f"{region}-{number}", *recordings(frame, one.rate_hz)), one


def _recording(parts: Mapping[str, Stream]) -> tuple[_Recording, str]:
    """What its two small files tell, and its region."""
    from fedfleet.scenarios.csv_stream import Names, collect, dialect  # with pyarrow

    meta = parts["recordingMeta"]
    is_highd = not dialect(parts["tracksMeta"]).has("trackId")
    once = collect(meta, {"frameRate": "number", "locationId": "whole"}, {})
    rates = np.unique(once["frameRate"])
    if len(rates) != 1:
        text = f"{meta.where}: expected one frameRate, got {', '.join(map(str, rates)) or 'no row'}"
        raise ScenarioError("two-rates", text)
    rate_hz = float(rates[0])
    if not 0.0 < rate_hz <= MAX_RATE_HZ:
        raise ScenarioError(
            "bad-rate", f"{meta.where}: expected a frameRate above 0 and at most 1000, got {rate_hz}"
        )
    classes = Names()
    key = "id" if is_highd else "trackId"
    columns = {key: "whole", "initialFrame": "whole", "finalFrame": "whole", "class": "text"}
    each = collect(parts["tracksMeta"], columns, {"class": classes})
    where = parts["tracksMeta"].where
    ids = each[key]
    if len(np.unique(ids)) != len(ids):
        raise ScenarioError("duplicate-track", f"{where}: expected each track once, got one several times")
    first, last = each["initialFrame"], each["finalFrame"]
    if not len(ids):
        raise ScenarioError("no-tracks", f"{where}: expected at least 1 track, got none")
    if int(last.max()) - int(first.min()) > 10**8 or (last < first).any():
        raise ScenarioError(
            "frames-outside", f"{where}: expected initialFrame up to finalFrame, and less than 10^8"
        )
    known = [_TYPES.get(name.strip().lower(), "unknown") for name in classes.numbers]
    names, types = tuple(map(str, ids.tolist())), tuple(known[int(i)] for i in each["class"])
    place = f"{'highd' if is_highd else 'levelx'}-{int(once['locationId'][0])}"
    return _Recording(parts["tracks"], is_highd, rate_hz, names, types, first, last), place


def _observations(drive: Drive, one: _Recording) -> Observations:
    from fedfleet.scenarios.csv_stream import collect  # with pyarrow

    key, x, y = ("id", "x", "y") if one.is_highd else ("trackId", "xCenter", "yCenter")
    sizes = {"width": "number", "height": "number"} if one.is_highd else {}
    rows = collect(one.tracks, {"frame": "whole", key: "whole", x: "number", y: "number"} | sizes, {})
    track = _places(rows[key], one, f"{one.tracks.where}")
    _check_spans(rows["frame"], track, one)
    xy = np.stack([rows[x], rows[y]], axis=1)
    if one.is_highd:
        xy = (xy + 0.5 * np.stack([rows["width"], rows["height"]], axis=1)) * (1.0, -1.0)
    start = int(one.first.min())
    frame = rows["frame"] - start
    t0_s = start / one.rate_hz
    where, names, types = one.tracks.where, one.names, one.types
    return Observations(where, drive.region, drive.drive, one.rate_hz, t0_s, names, types, track, frame, xy)


def _places(ids: NDArray[np.int64], one: _Recording, where: str) -> NDArray[np.int64]:
    """The place of each row's track among those of the recording."""
    listed = np.array([int(name) for name in one.names], dtype=np.int64)
    order = np.argsort(listed)
    at = np.searchsorted(listed[order], ids)
    unknown = np.asarray((at >= len(listed)) | (listed[order][np.minimum(at, len(listed) - 1)] != ids))
    if unknown.any():
        text = f"{where}: track {ids[unknown][0]} is not in tracksMeta, expected each track there"
        raise ScenarioError("not-as-indexed", text)
    return order[at].astype(np.int64)


def _check_spans(frame: NDArray[np.int64], track: NDArray[np.int64], one: _Recording) -> None:
    """Every track has as many rows as tracksMeta says, all of them within its frames."""
    rows: NDArray[Any] = np.bincount(track, minlength=len(one.names))
    outside = np.asarray((frame < one.first[track]) | (frame > one.last[track]))
    wrong = np.asarray(rows != one.last - one.first + 1)
    if outside.any() or wrong.any():
        at = int(track[int(outside.argmax())]) if outside.any() else int(wrong.argmax())
        span = f"frames {one.first[at]} to {one.last[at]}"
        text = f"track {one.names[at]}: expected {span} as in tracksMeta, got {rows[at]} rows"
        raise ScenarioError("not-as-indexed", f"{one.tracks.where}: {text}")
