"""Small faithful folders of recorded formats for tests, written from the same tracks: real ones where there are any."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fedfleet.scenarios.crc32c import masked
from fedfleet.scenarios.ngsim import FOOT_M


@dataclass(frozen=True)
class Track:
    """One road user: a whole number as its name, its type, and its place in each frame from the first on."""

    number: int
    type: str
    first: int
    xy: NDArray[np.float64]

    @property
    def last(self) -> int:
        return self.first + len(self.xy) - 1


def made(seed: int, *, tracks: int = 6, frames: int = 130, rate_hz: float = 10.0) -> list[Track]:
    """Made-up cars, trucks and walkers on bends; some come late, some leave early, the first is always there."""
    chance = np.random.default_rng(seed)
    found = []
    for number in range(tracks):
        kind = ("vehicle", "truck", "pedestrian", "vehicle", "cyclist", "motorcycle")[number % 6]
        first = 0 if number == 0 else int(chance.integers(0, frames // 2))
        last = frames if number == 0 else int(chance.integers(first + 2, frames + 1))
        time = np.arange(first, last) / rate_hz
        speed, turn = chance.uniform(1, 15), chance.uniform(-0.2, 0.2)
        angle = chance.uniform(-3, 3) + turn * time
        step = speed / rate_hz * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        found.append(Track(number + 1, kind, first, chance.uniform(-200, 200, 2) + np.cumsum(step, axis=0)))
    return found


def real(name: str = "1") -> list[Track]:
    """Tracks of a real Argoverse 1 scenario, each its longest stretch without a gap; made-up ones without the data."""
    folder = os.environ.get("FEDFLEET_DATA")
    if not folder or not (Path(folder) / "argoverse1" / "MIA.zip").is_file():
        return made(7)
    from fedfleet.scenarios import argoverse1
    from fedfleet.scenarios.tree import walk

    here = Path(folder) / "argoverse1"
    recordings = argoverse1.scan(here, argoverse1.detect(walk(here)))
    scenario = next(iter(recordings.read(sorted(recordings.drives)[int(name)])))
    found = []
    for number, xy in enumerate(scenario.xy):
        seen = np.flatnonzero(~np.isnan(xy[:, 0]))
        runs = np.split(seen, np.flatnonzero(np.diff(seen) > 1) + 1)
        run = max(runs, key=len)
        step = np.hypot(*np.diff(xy[run], axis=0).T) if len(run) > 1 else np.zeros(1)
        if len(run) > 1 and np.median(step) < 8.0:
            found.append(Track(number + 1, "vehicle", int(run[0]), xy[run]))
    return found


def span(tracks: Sequence[Track]) -> tuple[int, int]:
    """First and last frame of all."""
    return min(track.first for track in tracks), max(track.last for track in tracks)


def interaction(folder: Path, tracks: Sequence[Track], place: str = "DR_Test") -> Path:
    names = {"vehicle": "car", "truck": "truck", "pedestrian": "pedestrian", "cyclist": "bicycle"}
    at = folder / place
    at.mkdir(parents=True, exist_ok=True)
    head = "track_id,frame_id,timestamp_ms,agent_type,x,y,vx,vy"
    for file, walkers in (("vehicle_tracks_000.csv", False), ("pedestrian_tracks_000.csv", True)):
        lines = [
            f"{'P' * walkers}{t.number},{i + 1},{100 * (i + 1)},{names.get(t.type, t.type)},{x!r},{y!r},0,0"
            for t in tracks
            if (t.type == "pedestrian") == walkers
            for i, (x, y) in enumerate(t.xy.tolist(), t.first)
        ]
        if lines:
            (at / file).write_text("\n".join([head, *lines]) + "\n")
    return folder


NGSIM_HEAD = (
    "Vehicle_ID,Frame_ID,Total_Frames,Global_Time,Local_X,Local_Y,Global_X,Global_Y,v_Length,v_Width,v_Class,"
    "v_Vel,v_Acc,Lane_ID,Preceding,Following,Space_Headway,Time_Headway"
)


def ngsim(folder: Path, tracks: Sequence[Track], location: str | None = "us-101") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"motorcycle": 1, "vehicle": 2, "truck": 3}
    lines = [
        f"{t.number},{i + 1},{len(t.xy)},{1118846980200 + 100 * i},0,0,{x / FOOT_M!r},{y / FOOT_M!r},14,6,"
        f"{kinds.get(t.type, 4)},40,0,2,0,0,0,0" + (f",{location}" if location else "")
        for t in tracks
        for i, (x, y) in enumerate(t.xy.tolist(), t.first)
    ]
    head = NGSIM_HEAD + (",Location" if location else "")
    (folder / "trajectories.csv").write_text("\n".join([head, *lines]) + "\n")
    return folder


def highd(folder: Path, tracks: Sequence[Track], number: str = "01", rate_hz: float = 25.0) -> Path:
    """Corners of boxes of 4 m × 2 m in an image whose y points down; frames from 1 on."""
    folder.mkdir(parents=True, exist_ok=True)
    first, last = span(tracks)
    meta = f"id,frameRate,locationId,speedLimit,duration\n1,{rate_hz},2,-1,{(last - first + 1) / rate_hz}\n"
    (folder / f"{number}_recordingMeta.csv").write_text(meta)
    rows = ["id,width,height,initialFrame,finalFrame,numFrames,class,drivingDirection"]
    rows += [
        f"{t.number},4,2,{t.first + 1},{t.last + 1},{len(t.xy)},{'Truck' if t.type == 'truck' else 'Car'},1"
        for t in tracks
    ]
    (folder / f"{number}_tracksMeta.csv").write_text("\n".join(rows) + "\n")
    rows = ["frame,id,x,y,width,height,xVelocity,yVelocity"]
    rows += [
        f"{i + 1},{t.number},{x - 2.0!r},{-y - 1.0!r},4.0,2.0,0,0"
        for t in tracks
        for i, (x, y) in enumerate(t.xy.tolist(), t.first)
    ]
    (folder / f"{number}_tracks.csv").write_text("\n".join(rows) + "\n")
    return folder


def ind(folder: Path, tracks: Sequence[Track], number: str = "07", rate_hz: float = 25.0) -> Path:
    """Centres, y up; frames from 0 on, in a folder `data`."""
    at = folder / "data"
    at.mkdir(parents=True, exist_ok=True)
    names = {"vehicle": "car", "truck": "truck_bus", "cyclist": "bicycle"}
    first, last = span(tracks)
    meta = f"recordingId,locationId,frameRate,duration\n7,4,{rate_hz},{(last - first + 1) / rate_hz}\n"
    (at / f"{number}_recordingMeta.csv").write_text(meta)
    rows = ["recordingId,trackId,initialFrame,finalFrame,numFrames,width,length,class"]
    rows += [f"7,{t.number},{t.first},{t.last},{len(t.xy)},2,4,{names.get(t.type, t.type)}" for t in tracks]
    (at / f"{number}_tracksMeta.csv").write_text("\n".join(rows) + "\n")
    rows = ["recordingId,trackId,frame,trackLifetime,xCenter,yCenter,heading,width,length"]
    rows += [
        f"7,{t.number},{i},{i - t.first},{x!r},{y!r},0,2,4"
        for t in tracks
        for i, (x, y) in enumerate(t.xy.tolist(), t.first)
    ]
    (at / f"{number}_tracks.csv").write_text("\n".join(rows) + "\n")
    return folder


def argoverse2(folder: Path, tracks: Sequence[Track], name: str = "0a1e") -> Path:
    """The first track is the car's own, the second the focal one."""
    kinds = {"truck": "vehicle", "motorcycle": "motorcyclist"}
    _, last = span(tracks)
    start = 315986559459579000
    rows = [
        {
            "observed": i < 50,
            "track_id": "AV" if t is tracks[0] else str(t.number),
            "object_type": kinds.get(t.type, t.type),
            "object_category": 3 if t is tracks[1] else 1,
            "timestep": i,
            "position_x": x,
            "position_y": y,
            "scenario_id": name,
            "start_timestamp": start,
            "end_timestamp": start + 10**8 * last,
            "num_timestamps": last + 1,
            "focal_track_id": str(tracks[1].number),
            "city": "austin",
            "slice_id": f"slice-{name}",
        }
        for t in tracks
        for i, (x, y) in enumerate(t.xy.tolist(), t.first)
    ]
    (folder / name).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / name / f"scenario_{name}.parquet")
    return folder


def commonroad_text(tracks: Sequence[Track], name: str = "USA_Test-1_1_T-1") -> str:
    names = {"vehicle": "car", "cyclist": "bicycle"}

    def state(tag: str, frame: int, x: float, y: float) -> str:
        place = f"<position><point><x>{x!r}</x><y>{y!r}</y></point></position>"
        return f"<{tag}>{place}<time><exact>{frame}</exact></time></{tag}>"

    obstacles = []
    for t in tracks:
        (x0, y0), *others = t.xy.tolist()
        states = "".join(state("state", t.first + 1 + i, x, y) for i, (x, y) in enumerate(others))
        obstacles.append(
            f'<dynamicObstacle id="{t.number}"><type>{names.get(t.type, t.type)}</type>'
            f"{state('initialState', t.first, x0, y0)}<trajectory>{states}</trajectory></dynamicObstacle>"
        )
    head = f'<commonRoad benchmarkID="{name}" commonRoadVersion="2020a" timeStepSize="0.1">'
    return f'<?xml version="1.0"?>\n{head}{"".join(obstacles)}</commonRoad>'


def commonroad(folder: Path, tracks: Sequence[Track], name: str = "USA_Test-1_1_T-1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.xml").write_text(commonroad_text(tracks, name))
    return folder


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, int | float | bytes]) -> bytes:
    """A protobuf message of varints, doubles and bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, bytes):
            out += varint(number << 3 | 2) + varint(len(value)) + value
        elif isinstance(value, float):
            out += varint(number << 3 | 1) + struct.pack("<d", value)
        else:
            out += varint(number << 3) + varint(value)
    return out


def tfrecord(*records: bytes) -> bytes:
    out = b""
    for data in records:
        length = struct.pack("<Q", len(data))
        out += length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))
    return out


def waymo_scenario(
    tracks: Sequence[Track], name: str = "637f20ca", stamps: Sequence[float] | None = None
) -> bytes:
    kinds = {"vehicle": 1, "truck": 1, "motorcycle": 1, "pedestrian": 2, "cyclist": 3}
    _, last = span(tracks)
    messages = []
    for t in tracks:
        states = []
        for frame in range(last + 1):
            seen = t.first <= frame <= t.last
            x, y = t.xy[frame - t.first].tolist() if seen else (-1.0, -1.0)
            states.append((3, message((2, x), (3, y), (4, 0.0), (11, int(seen)))))
        messages.append((2, message((1, t.number), (2, kinds.get(t.type, 4)), *states)))
    times = stamps if stamps is not None else [0.1 * frame for frame in range(last + 1)]
    head = [(1, float(time)) for time in times]
    tail = [(5, name.encode()), (6, 0), (11, message((1, 1), (2, 1)))]
    return message(*head, *messages, *tail)


def waymo(folder: Path, tracks: Sequence[Track]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.tfrecord-00000-of-01000").write_bytes(tfrecord(waymo_scenario(tracks)))
    return folder


SCENES = np.dtype(
    [("frame_index_interval", "<i8", (2,)), ("host", "<U16"), ("start_time", "<i8"), ("end_time", "<i8")]
)
FRAMES = np.dtype(
    [("timestamp", "<i8"), ("agent_index_interval", "<i8", (2,)), ("ego_translation", "<f8", (3,))]
)
AGENTS = np.dtype([("centroid", "<f8", (2,)), ("track_id", "<u8"), ("label_probabilities", "<f4", (4,))])
LABELS = [
    "PERCEPTION_LABEL_UNKNOWN",
    "PERCEPTION_LABEL_CAR",
    "PERCEPTION_LABEL_CYCLIST",
    "PERCEPTION_LABEL_PEDESTRIAN",
]


def zarr_array(folder: Path, name: str, values: NDArray[np.void], *, chunk: int = 64) -> None:
    """Plain chunks, without a compressor."""
    at = folder / name
    at.mkdir(parents=True, exist_ok=True)
    described = [
        [n, d[0].base.str, *([list(d[0].shape)] if d[0].shape else [])]
        for n, d in values.dtype.fields.items()
    ]
    meta = {"zarr_format": 2, "shape": [len(values)], "chunks": [chunk], "dtype": described, "order": "C"}
    (at / ".zarray").write_text(json.dumps(meta | {"compressor": None, "filters": None, "fill_value": None}))
    for number in range(-(-len(values) // chunk)):
        part = np.zeros(chunk, dtype=values.dtype)
        piece = values[number * chunk : (number + 1) * chunk]
        part[: len(piece)] = piece
        (at / str(number)).write_bytes(part.tobytes())


def lyft5(folder: Path, tracks: Sequence[Track], *, step_ns: int = 10**8) -> Path:
    """The first track is the car's own."""
    store = folder / "sample.zarr"
    _, last = span(tracks)
    start = 1571846863319362048
    labels = {"vehicle": 1, "truck": 1, "motorcycle": 1, "cyclist": 2, "pedestrian": 3}
    own, others = tracks[0], tracks[1:]
    frames, agents = np.zeros(last + 1, dtype=FRAMES), []
    for frame in range(last + 1):
        begin = len(agents)
        for t in others:
            if t.first <= frame <= t.last:
                chance = [0.0] * 4
                chance[labels[t.type]] = 1.0
                agents.append((t.xy[frame - t.first], t.number, chance))
        place = own.xy[min(frame - own.first, len(own.xy) - 1)]
        frames[frame] = (start + step_ns * frame, (begin, len(agents)), (*place, 0.0))
    zarr_array(store, "frames", frames)
    zarr_array(store, "agents", np.array(agents, dtype=AGENTS), chunk=100)
    end = int(frames["timestamp"][-1])
    zarr_array(store, "scenes", np.array([((0, last + 1), "host-a101", start, end)], dtype=SCENES), chunk=4)
    (store / ".zattrs").write_text(json.dumps({"format_version": 2, "labels": LABELS}))
    (store / ".zgroup").write_text('{"zarr_format": 2}')
    return folder
