"""KITTI, ScenarioNet, comma2k19, OpenSCENARIO and MCAP in one folder; a large file in little memory."""

import json
import tracemalloc
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mcap", reason="mcap is not installed (extra formats)")

import test_bags
import test_comma2k19
import test_kitti
import test_openscenario
import test_scenarionet

from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import bags
from fedfleet.scenarios.convert import convert
from fedfleet.scenarios.object_lists import reader
from fedfleet.scenarios.reading import open_recordings, read
from fedfleet.scenarios.tree import walk


def mixed(folder: Path, *, seed: int = 3) -> Path:
    """One recording of each format."""
    rng = np.random.default_rng(seed)
    rows = [test_kitti.label(i, 1, "Car", round(float(rng.normal(3, 1)), 6), 10.0 + i) for i in range(12)]
    test_kitti.sequence(folder, "".join(rows), poses=12)
    scene = test_scenarionet.scene()
    scene["tracks"]["two"]["state"]["position"] += rng.normal(0, 0.1, (60, 3))
    test_scenarionet.write(folder, scene)
    test_comma2k19.segment(folder / "Chunk_1")
    whole = test_openscenario.tracks(seed)
    stories = "".join(
        test_openscenario.event(name, test_openscenario.follow(xy)) for name, xy in whole.items()
    )
    text = test_openscenario.xosc(dict.fromkeys(whole, test_openscenario.CAR), stories)
    with zipfile.ZipFile(folder / "scripts.zip", "w") as archive:
        archive.writestr("drive.xosc", text)
    test_bags.write_mcap(folder / "monday.mcap", test_bags.scenes(test_bags.tracks()))
    return folder


def test_each_is_read_by_its_own_reader(tmp_path: Path) -> None:
    recordings = open_recordings(mixed(tmp_path))
    assert {part.reader.format: list(part.recordings.drives) for part in recordings.parts} == {
        "KITTI tracking": ["karlsruhe/kitti-0000"],
        "ScenarioNet (nuScenes)": ["boston-seaport/scene-0001"],
        "comma2k19": ["california/b0c9d232-2018-08-02-08-34-47"],
        "OpenSCENARIO": ["e6mini/drive"],
        "MCAP, ROS 2 bag": ["local/monday"],
    }
    counted = Counter(scenario.region for scenario in read(tmp_path))
    assert counted == {"karlsruhe": 1, "boston-seaport": 1, "california": 2, "e6mini": 2, "local": 2}


@pytest.mark.parametrize("seed", range(4))
def test_conversion_keeps_all_that_a_table_holds(tmp_path: Path, seed: int) -> None:
    # Given scenarios of each format
    (tmp_path / "recorded").mkdir()
    before = read(mixed(tmp_path / "recorded", seed=seed))
    # When
    convert(tmp_path / "recorded", tmp_path / "tables")
    after = read(tmp_path / "tables")
    # Then names, clocks, kinds and types are the same, and places to half a centimetre
    for one, other in zip(before, after, strict=True):
        for name in ("scenario_id", "region", "drive", "rate_hz", "t0_s", "frames"):
            assert getattr(one, name) == getattr(other, name), name
        order = [other.track_ids.index(track) for track in one.track_ids]
        assert [other.kinds[i] for i in order] == list(one.kinds)
        assert [other.types[i] for i in order] == list(one.types)
        np.testing.assert_allclose(other.xy[order], one.xy, atol=0.005 + 1e-9)


def test_a_file_that_is_refused_refuses_itself(tmp_path: Path) -> None:
    mixed(tmp_path)
    (tmp_path / "sd_nuscenes_v1_9.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    assert len(read(tmp_path)) == 8
    (row,) = open_recordings(tmp_path).account.rows
    assert row.text == "unsafe-pickle: sd_nuscenes_v1_9.pkl byte 11: it names os.system: not read"


def test_wrong_units_are_refused(tmp_path: Path) -> None:
    # Given a script in centimetres
    whole = {name: rows * [1, 1000, 1000] for name, rows in test_openscenario.tracks().items()}
    stories = "".join(
        test_openscenario.event(name, test_openscenario.follow(xy)) for name, xy in whole.items()
    )
    text = test_openscenario.xosc(dict.fromkeys(whole, test_openscenario.CAR), stories)
    (tmp_path / "drive.xosc").write_text(text)
    with pytest.raises(UsageError, match=r"wrong-units: .* m/s, limit 100 m/s"):
        read(tmp_path)


def test_the_real_recordings_and_why_the_hand_written_are_refused(data_dir: Path) -> None:
    for folder, drives in {
        "kitti-tracking": 16,
        "formats/scenarionet-nuscenes": 2,
        "formats/comma2k19": 1,
    }.items():
        recordings = open_recordings(data_dir / folder)
        assert (len(recordings.drives), dict(recordings.problems)) == (drives, {})
    with pytest.raises(UsageError, match=r"parametric-scenario: xosc/cut-in.xosc: .* needs a simulator"):
        open_recordings(data_dir / "formats" / "openscenario")


def test_a_bag_full_of_images_needs_the_memory_of_one_chunk(tmp_path: Path) -> None:
    # Given 48 MB of images beside an object list
    from mcap.writer import CompressionType, Writer

    image = np.random.default_rng(0).bytes(400_000)
    messages = test_bags.scenes(test_bags.tracks())
    with (tmp_path / "a.mcap").open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE)
        writer.start()
        schema = writer.register_schema("foxglove.SceneUpdate", "jsonschema", b"{}")
        scenes = writer.register_channel("/scene", "json", schema)
        camera = writer.register_channel(
            "/camera", "cdr", writer.register_schema("sensor_msgs/msg/Image", "ros2msg", b"")
        )
        for number, data in enumerate(messages):
            time = test_bags.T0_NS + number * test_bags.STEP_NS
            writer.add_message(camera, time, image, time)
            writer.add_message(scenes, time, data, time)
        writer.finish()
    # When
    tracemalloc.start()
    recordings = bags.scan(tmp_path, bags.detect(walk(tmp_path)))
    found = sum(len(scenario.track_ids) for scenario in recordings.read("local/a"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Then
    assert found == 6
    assert peak < 12e6


AUTOWARE = """std_msgs/Header header
TrackedObject[] objects
===
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
===
MSG: autoware_perception_msgs/TrackedObject
uint8 KNOWN=1 # a constant
Id object_id
Label[] classification
Kinematics kinematics
===
MSG: autoware_perception_msgs/Id
uint8[16] uuid
===
MSG: autoware_perception_msgs/Label
uint8 label
float32 probability
===
MSG: autoware_perception_msgs/Kinematics
Covered pose_with_covariance
bool[<=2] flags
===
MSG: autoware_perception_msgs/Covered
Pose pose
===
MSG: autoware_perception_msgs/Pose
Point position
===
MSG: autoware_perception_msgs/Point
float64 x
float64 y
"""


def test_autowares_tracked_objects_by_their_definition() -> None:
    # Given a message written byte by byte: CDR aligns each number to its size, counted after the first four bytes
    store = pytest.importorskip("rosbags.typesys", reason="rosbags is not installed (extra dev)")
    types = store.get_types_from_msg(
        AUTOWARE.replace("===", "=" * 80), "autoware_perception_msgs/msg/TrackedObjects"
    )
    typestore = store.get_typestore(store.Stores.ROS2_HUMBLE)
    typestore.register({name: one for name, one in types.items() if name not in typestore.types})
    made = {name.rpartition("/")[2]: typestore.types[name] for name in types}
    stamp = typestore.types["builtin_interfaces/msg/Time"](7, 500_000_000)
    labels = [made["Label"](2, 0.3), made["Label"](6, 0.6)]
    place = made["Kinematics"](made["Covered"](made["Pose"](made["Point"](1.5, -2.5))), np.array([True]))
    thing = made["TrackedObject"](made["Id"](np.arange(16, dtype=np.uint8)), labels, place)
    message = made["TrackedObjects"](made["Header"](stamp, "map"), [thing, thing])
    data = bytes(typestore.serialize_cdr(message, "autoware_perception_msgs/msg/TrackedObjects"))
    # When
    take = reader("autoware_perception_msgs/msg/TrackedObjects", "cdr", AUTOWARE.encode(), "a.mcap")
    assert take is not None
    listed = take(data, "a.mcap")
    # Then
    assert (listed.stamp_s, listed.frame_id, len(listed.things)) == (7.5, "map", 2)
    first = listed.things[0]
    assert (first.id, first.type, first.x, first.y) == (bytes(range(16)).hex(), "cyclist", 1.5, -2.5)


def test_big_endian_is_read_as_little_endian() -> None:
    # Given a header alone, in either byte order
    text = b"std_msgs/Header header\nvision_msgs/Detection3D[] detections\n===\nMSG: std_msgs/Header\n"
    text += b"builtin_interfaces/Time stamp\nstring frame_id\n===\nMSG: vision_msgs/Detection3D\nstring id\n"
    take = reader("vision_msgs/msg/Detection3DArray", "cdr", text, "a")
    assert take is not None
    little = bytes([0, 1, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]) + b"map\0" + bytes(4)
    big = bytes([0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 4]) + b"map\0" + bytes(4)
    # When / Then
    assert take(little, "a") == take(big, "a")
    assert json.dumps([take(big, "a").stamp_s, take(big, "a").frame_id]) == '[5.0, "map"]'
