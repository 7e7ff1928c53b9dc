"""The real samples: all read, as many as their README counts, every position as an independent reading has it."""

import csv
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.convert import convert
from fedfleet.scenarios.reading import open_recordings, read, stream
from fedfleet.scenarios.records import Scenario

Place = tuple[str, str, int]


def observed(scenarios: Iterator[Scenario] | tuple[Scenario, ...]) -> int:
    return sum(int((~np.isnan(scenario.xy[..., 0])).sum()) for scenario in scenarios)


def assert_places(scenario: Scenario, expected: dict[tuple[str, int], tuple[float, float]]) -> None:
    """Every expected place is there to 1e-6 m, and no other."""
    for (track, frame), xy in expected.items():
        got = scenario.xy[scenario.track_ids.index(track), frame]
        np.testing.assert_allclose(got, xy, atol=1e-6, rtol=0)
    assert observed((scenario,)) == len(expected)


# --- counts ---


@pytest.mark.parametrize(
    ("folder", "files", "agents", "agent_seconds"),
    [("commonroad-ngsim", 45, 1603, 9486), ("commonroad-simulated", 87, 737, None)],
)
def test_commonroad_counts(
    data_dir: Path, folder: str, files: int, agents: int, agent_seconds: int | None
) -> None:
    scenarios = tracks = steps = 0
    for scenario in stream(data_dir / folder):
        assert scenario.rate_hz == 10.0
        scenarios += 1
        tracks += len(scenario.track_ids)
        steps += observed((scenario,)) - len(scenario.track_ids)
    assert (scenarios, tracks) == (files, agents)
    if agent_seconds is not None:
        assert round(0.1 * steps) == agent_seconds
    else:
        assert round(0.1 * steps / tracks, 1) == 3.4


def test_commonroad_regions_and_drives(data_dir: Path) -> None:
    drives = open_recordings(data_dir / "commonroad-ngsim").drives.values()
    files = {
        region: sum(d.recordings for d in drives if d.region == region) for region in ("us101", "lankershim")
    }
    assert files == {"us101": 20, "lankershim": 19}
    with (data_dir / "commonroad-ngsim" / "index.csv").open() as file:
        groups = {row["overlap_group"] for row in csv.DictReader(file)}
    assert len(drives) == len(groups)
    drives = open_recordings(data_dir / "commonroad-simulated").drives.values()
    counts = {
        region: sum(d.recordings for d in drives if d.region == region) for region in ("arg", "grc", "pri")
    }
    assert counts == {"arg": 11, "grc": 6, "pri": 4}


def test_counts_of_the_format_samples(data_dir: Path) -> None:
    formats = data_dir / "formats"
    (one,) = read(formats / "argoverse2")
    assert (len(one.track_ids), one.frames, one.rate_hz, one.region) == (58, 110, 10.0, "austin")
    (one,) = read(formats / "interaction")
    assert (len(one.track_ids), observed((one,)), one.rate_hz) == (2, 170, 10.0)
    both = read(formats / "waymo")
    assert [(s.frames, s.rate_hz) for s in both] == [(91, 10.0)] * 2
    scenes = read(formats / "lyft5")
    assert (sum(s.frames for s in scenes), observed(scenes)) == (248, 20_802 + 248)
    assert len(read(formats / "commonroad")) == 3


def test_every_folder_reads_or_is_refused_with_a_reason(data_dir: Path) -> None:
    for folder in sorted({path.parent for path in data_dir.rglob("*") if path.is_file()}):
        said = ""
        try:
            found = len(open_recordings(folder).drives)
        except UsageError as error:
            said, found = str(error), 0
        assert found or (len(said) > 20 and "\n" not in said), folder


# --- positions, read another way ---


def test_argoverse2_positions_are_those_of_the_parquet_file(data_dir: Path) -> None:
    folder = data_dir / "formats" / "argoverse2"
    (path,) = folder.glob("*/*.parquet")
    rows = pq.read_table(path).to_pylist()
    (scenario,) = read(folder)
    expected = {(r["track_id"], r["timestep"]): (r["position_x"], r["position_y"]) for r in rows}
    assert_places(scenario, expected)
    judged = {r["track_id"] for r in rows if r["object_category"] >= 2}
    assert {
        t for t, kind in zip(scenario.track_ids, scenario.kinds, strict=True) if kind == "AGENT"
    } == judged
    assert scenario.t0_s == pytest.approx(315986559.459579, abs=1e-3)


def test_commonroad_positions_are_those_of_the_xml(data_dir: Path) -> None:
    folder = data_dir / "formats" / "commonroad"
    scenarios = {scenario.scenario_id: scenario for scenario in read(folder)}
    for path in folder.glob("*.xml"):
        expected = {}
        for obstacle in ET.parse(path).getroot().iter("dynamicObstacle"):  # noqa: S314 - a known sample
            for state in (*obstacle.iter("initialState"), *obstacle.iter("state")):
                x, y = (float(state.find(f"position/point/{axis}").text) for axis in "xy")  # type: ignore[union-attr,arg-type]
                frame = int(state.find("time/exact").text)  # type: ignore[union-attr,arg-type]
                expected[str(obstacle.get("id")), frame] = (x, y)
        assert_places(scenarios[path.stem], expected)


def test_the_zips_hold_the_same_as_the_plain_files(data_dir: Path) -> None:
    plain = {scenario.scenario_id: scenario for scenario in read(data_dir / "formats" / "commonroad")}
    folder = data_dir / "commonroad-ngsim"
    found = 0
    for name in ("US101", "Lankershim", "Peachtree"):
        with zipfile.ZipFile(folder / f"{name}.zip") as archive:
            found += sum(entry.removesuffix(".xml") in plain for entry in archive.namelist())
    assert found == 3
    key = "peachtree/usa-peach-1-1-t-1"
    (zipped,) = read(folder, [key])
    np.testing.assert_array_equal(zipped.xy, plain["USA_Peach-1_1_T-1"].xy)


def test_interaction_positions_are_those_of_the_csv(data_dir: Path) -> None:
    folder = data_dir / "formats" / "interaction"
    (path,) = folder.rglob("vehicle_tracks_*.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    first = min(int(row["frame_id"]) for row in rows)
    expected = {(r["track_id"], int(r["frame_id"]) - first): (float(r["x"]), float(r["y"])) for r in rows}
    (scenario,) = read(folder)
    assert_places(scenario, expected)


def test_waymo_positions_are_those_that_google_protobuf_reads(data_dir: Path) -> None:
    folder = data_dir / "formats" / "waymo"
    data = (folder / "motion_data_one_scenario.tfrecord").read_bytes()
    message = _scenario_class().FromString(data[12:-4])
    (scenario,) = (s for s in read(folder) if s.scenario_id == message.scenario_id)
    expected = {
        (str(track.id), frame): (state.center_x, state.center_y)
        for track in message.tracks
        for frame, state in enumerate(track.states)
        if state.valid
    }
    assert_places(scenario, expected)
    kinds = dict(zip(scenario.track_ids, scenario.kinds, strict=True))
    assert kinds[str(message.tracks[message.sdc_track_index].id)] == "AV"
    targets = {str(message.tracks[each.track_index].id) for each in message.tracks_to_predict}
    assert {track for track, kind in kinds.items() if kind == "AGENT"} == targets - {
        str(message.tracks[message.sdc_track_index].id)
    }


def test_waymo_example_positions_are_those_that_google_protobuf_reads(data_dir: Path) -> None:
    folder = data_dir / "formats" / "waymo"
    data = (folder / "motion_data_one_example.tfrecord").read_bytes()
    features = {each.key: each.value for each in _example_class().FromString(data[12:-4]).features.feature}
    name = features["scenario/id"].bytes_list.value[0].decode()
    (scenario,) = (s for s in read(folder) if s.scenario_id == name)
    ids = [str(int(one)) for one in features["state/id"].float_list.value]
    expected = {}
    for time, start, frames in (("past", 0, 10), ("current", 10, 1), ("future", 11, 80)):
        valid = features[f"state/{time}/valid"].int64_list.value
        x, y = (features[f"state/{time}/{axis}"].float_list.value for axis in "xy")
        for i, one in enumerate(valid):
            if one == 1:
                expected[ids[i // frames], start + i % frames] = (x[i], y[i])
    assert_places(scenario, expected)


def test_lyft_positions_are_those_in_the_chunks(data_dir: Path) -> None:
    folder = data_dir / "formats" / "lyft5"
    store = folder / "single_scene.zarr"
    frames, agents = _records(store / "frames"), _records(store / "agents")
    scenarios = read(folder)
    for frame, row in enumerate(frames):
        scenario, at = scenarios[frame // 100], frame % 100
        begin, end = row["agent_index_interval"]
        assert int((~np.isnan(scenario.xy[:, at, 0])).sum()) == end - begin + 1
        place = {track: i for i, track in enumerate(scenario.track_ids)}
        np.testing.assert_allclose(scenario.xy[place["AV"], at], row["ego_translation"][:2], atol=1e-6)
        for agent in agents[begin:end]:
            got = scenario.xy[place[str(agent["track_id"])], at]
            np.testing.assert_allclose(got, agent["centroid"], atol=1e-6, rtol=0)


def test_a_converted_table_holds_the_same_to_the_centimetre(data_dir: Path, tmp_path: Path) -> None:
    convert(data_dir / "formats" / "waymo", tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "waymo.parquet").to_pylist()
    by_id = {scenario.scenario_id: scenario for scenario in read(data_dir / "formats" / "waymo")}
    for row in rows:
        scenario = by_id[row["scenario"]]
        x = y = 0
        xy = scenario.xy[scenario.track_ids.index(row["track"])]
        for frame, (dx, dy) in enumerate(zip(row["dx_cm"], row["dy_cm"], strict=True), row["first_frame"]):
            if dx is None:
                assert np.isnan(xy[frame]).all()
                continue
            x, y = x + dx, y + dy
            np.testing.assert_allclose(xy[frame], (x / 100, y / 100), atol=0.0051)
    assert len(rows) == sum(len(scenario.track_ids) for scenario in by_id.values())


def _records(folder: Path) -> np.ndarray:
    """A zarr array of Blosc chunks (LZ4, byte shuffle), unpacked by the letter of the format with pyarrow's LZ4."""
    meta = json.loads((folder / ".zarray").read_text())
    dtype = np.dtype([(n, k, *(map(tuple, s))) for n, k, *s in meta["dtype"]])
    chunks = [
        _blosc((folder / str(i)).read_bytes()) for i in range(-(-meta["shape"][0] // meta["chunks"][0]))
    ]
    return np.frombuffer(b"".join(chunks), dtype=dtype)[: meta["shape"][0]]


def _blosc(data: bytes) -> bytes:
    _, _, flags, item, size, block, _ = struct.unpack_from("<BBBBIII", data)
    out = b""
    for number in range(-(-size // block)):
        length = min(block, size - number * block)
        (at,) = struct.unpack_from("<I", data, 16 + 4 * number)
        streams = item if not flags & 16 and item <= 16 and length == block and block // item >= 128 else 1
        parts = []
        for _ in range(streams):
            (packed,) = struct.unpack_from("<i", data, at)
            piece = data[at + 4 : at + 4 + packed]
            whole = length // streams
            plain = piece if packed == whole else pa.decompress(piece, whole, codec="lz4_raw", asbytes=True)
            parts.append(plain)
            at += 4 + packed
        shuffled = b"".join(parts)
        items = length // item
        body = np.frombuffer(shuffled[: items * item], dtype=np.uint8).reshape(item, items).T.tobytes()
        out += (body if flags & 1 else shuffled[: items * item]) + shuffled[items * item :]
    return out


def _message_class(name: str, messages: dict[str, list[tuple[str, int, str, bool]]]) -> Any:
    """A message class of google.protobuf made of (field, number, type, repeated)."""
    descriptor_pb2 = pytest.importorskip("google.protobuf.descriptor_pb2")
    from google.protobuf import descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", package="t", syntax="proto2")
    kinds = descriptor_pb2.FieldDescriptorProto
    for title, fields in messages.items():
        made = file.message_type.add(name=title)
        for field, number, kind, repeated in fields:
            one = made.field.add(name=field, number=number, label=3 if repeated else 1)
            if kind in messages:
                one.type, one.type_name = kinds.TYPE_MESSAGE, f".t.{kind}"
            else:
                one.type = getattr(kinds, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{name}"))


def _scenario_class() -> Any:
    return _message_class(
        "Scenario",
        {
            "Scenario": [
                ("timestamps_seconds", 1, "double", True),
                ("tracks", 2, "Track", True),
                ("scenario_id", 5, "string", False),
                ("sdc_track_index", 6, "int32", False),
                ("tracks_to_predict", 11, "Required", True),
            ],
            "Track": [
                ("id", 1, "int32", False),
                ("object_type", 2, "int32", False),
                ("states", 3, "State", True),
            ],
            "State": [
                ("center_x", 2, "double", False),
                ("center_y", 3, "double", False),
                ("valid", 11, "bool", False),
            ],
            "Required": [("track_index", 1, "int32", False)],
        },
    )


def _example_class() -> Any:
    return _message_class(
        "Example",
        {
            "Example": [("features", 1, "Features", False)],
            "Features": [("feature", 1, "Entry", True)],
            "Entry": [("key", 1, "string", False), ("value", 2, "Feature", False)],
            "Feature": [
                ("bytes_list", 1, "BytesList", False),
                ("float_list", 2, "FloatList", False),
                ("int64_list", 3, "Int64List", False),
            ],
            "BytesList": [("value", 1, "bytes", True)],
            "FloatList": [("value", 1, "float", True)],
            "Int64List": [("value", 1, "int64", True)],
        },
    )
