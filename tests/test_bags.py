"""MCAP files and ROS 2 bags: object lists that other writers wrote (mcap, rosbags), and what is refused."""

import json
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap", reason="mcap is not installed (extra formats)")
pytest.importorskip("rosbags", reason="rosbags is not installed (extra dev)")

from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as BagWriter
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from fedfleet.scenarios import bags
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.ros_definitions import DEFINITIONS
from fedfleet.scenarios.tree import walk

T0_NS = 1_700_000_000_000_000_000
STEP_NS = 100_000_000
VISION = "vision_msgs/msg/Detection3DArray"
OBJECTS = "derived_object_msgs/msg/ObjectArray"

Tracks = dict[str, tuple[str, np.ndarray]]


def tracks(frames: int = 120) -> Tracks:
    """Made-up tracks at 10 Hz by id: what it is called, and float64[frames, 2] with NaN where it is not seen."""
    rng = np.random.default_rng(11)
    found = {}
    for name, kind in {"ego": "car", "17": "truck", "18": "pedestrian"}.items():
        found[name] = kind, np.cumsum(rng.normal([1.0, -0.2], 0.1, (frames, 2)), axis=0)
    found["18"][1][:40] = np.nan
    return found


def read(folder: Path) -> list[Scenario]:
    recordings = bags.scan(folder, bags.detect(walk(folder)))
    return [scenario for key in recordings.drives for scenario in recordings.read(key)]


def expect(scenarios: Sequence[Scenario], whole: Tracks, types: dict[str, str]) -> None:
    """What was read is exactly what was written."""
    for name, (_, xy) in whole.items():
        pieces = [
            one.xy[one.track_ids.index(name)] if name in one.track_ids else np.full((one.frames, 2), np.nan)
            for one in scenarios
        ]
        np.testing.assert_array_equal(np.concatenate(pieces), xy)
    assert {(one.rate_hz, one.region) for one in scenarios} == {(10.0, "local")}
    assert scenarios[0].t0_s == pytest.approx(T0_NS * 1e-9, abs=1e-6)
    found = {name: kind for one in scenarios for name, kind in zip(one.track_ids, one.types, strict=True)}
    assert found == types
    kinds = dict(zip(scenarios[0].track_ids, scenarios[0].kinds, strict=True))
    assert (kinds["17"], kinds["18"]) == ("AGENT", "OTHERS")


TYPES = {"ego": "vehicle", "17": "truck", "18": "pedestrian"}


def scene(whole: Tracks, frame: int, *, frame_id: str = "map") -> dict[str, Any]:
    """One `foxglove.SceneUpdate`."""
    stamp = divmod(T0_NS + frame * STEP_NS, 10**9)
    shown = {name: (kind, xy[frame]) for name, (kind, xy) in whole.items() if not np.isnan(xy[frame, 0])}
    entities = [
        {
            "timestamp": {"sec": stamp[0], "nsec": stamp[1]},
            "frame_id": frame_id,
            "id": name,
            "metadata": [{"key": "type", "value": kind}],
            "cubes": [{"pose": {"position": {"x": xy[0], "y": xy[1], "z": 0.0}}}],
        }
        for name, (kind, xy) in shown.items()
    ]
    return {
        "deletions": [],
        "entities": [*entities, {**entities[0], "id": "lane", "cubes": [], "lines": [{}]}],
    }


def tag(number: int, data: bytes | float | str) -> bytes:
    """A field of protobuf."""
    if isinstance(data, float):
        return bytes([number << 3 | 1]) + struct.pack("<d", data)
    data = data.encode() if isinstance(data, str) else data
    return bytes([number << 3 | 2]) + varint(len(data)) + data


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def scene_protobuf(update: dict[str, Any]) -> bytes:
    whole = b""
    for entity in update["entities"]:
        stamp = b"\x08" + varint(entity["timestamp"]["sec"]) + b"\x10" + varint(entity["timestamp"]["nsec"])
        inside = tag(1, stamp) + tag(2, entity["frame_id"]) + tag(3, entity["id"])
        inside += b"".join(tag(6, tag(1, one["key"]) + tag(2, one["value"])) for one in entity["metadata"])
        for cube in entity["cubes"]:
            place = cube["pose"]["position"]
            inside += tag(8, tag(1, tag(1, tag(1, place["x"]) + tag(2, place["y"]))))
        whole += tag(2, inside)
    return whole


def write_mcap(path: Path, messages: Sequence[bytes], *, encoding: str = "json", **options: Any) -> Path:
    """An MCAP file of `foxglove.SceneUpdate`, with another topic beside it."""
    with path.open("wb") as file:
        writer = McapWriter(file, **{"compression": CompressionType.ZSTD, "chunk_size": 20_000, **options})
        writer.start()
        schema = writer.register_schema("foxglove.SceneUpdate", "jsonschema", b"{}")
        scenes = writer.register_channel("/scene", encoding, schema)
        other = writer.register_channel(
            "/log", "json", writer.register_schema("foxglove.Log", "jsonschema", b"{}")
        )
        for number, data in enumerate(messages):
            time = T0_NS + number * STEP_NS
            writer.add_message(other, time, b"no json", time)
            writer.add_message(scenes, time, data, time)
        writer.finish()
    return path


def scenes(whole: Tracks, **options: Any) -> list[bytes]:
    frames = len(whole["ego"][1])
    return [json.dumps(scene(whole, frame, **options)).encode() for frame in range(frames)]


@pytest.mark.parametrize("compression", list(CompressionType))
def test_scene_updates_in_json(tmp_path: Path, compression: CompressionType) -> None:
    whole = tracks()
    write_mcap(tmp_path / "monday.mcap", scenes(whole), compression=compression)
    scenarios = read(tmp_path)
    expect(scenarios, whole, TYPES)
    assert scenarios[0].kinds[scenarios[0].track_ids.index("ego")] == "AV"
    assert [one.scenario_id for one in scenarios] == ["monday-00000", "monday-00001"]


def test_scene_updates_in_protobuf(tmp_path: Path) -> None:
    whole = tracks()
    messages = [scene_protobuf(scene(whole, frame)) for frame in range(120)]
    write_mcap(tmp_path / "monday.mcap", messages, encoding="protobuf", use_chunking=False)
    expect(read(tmp_path), whole, TYPES)


def store_of_types() -> Any:
    """The types of ROS 2 Humble and the two object lists, as rosbags knows them."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    for name, text in DEFINITIONS.items():
        found = get_types_from_msg(text, name.replace("/", "/msg/"))
        store.register({key: value for key, value in found.items() if key not in store.types})
    return store


def ros_messages(store: Any, name: str, whole: Tracks, *, frame_id: str = "map") -> Iterator[Any]:
    """One message per frame, made by rosbags' own classes."""
    types = store.types
    point, quaternion = (
        types["geometry_msgs/msg/Point"],
        types["geometry_msgs/msg/Quaternion"](0.0, 0.0, 0.0, 1.0),
    )
    vector = types["geometry_msgs/msg/Vector3"](4.0, 2.0, 1.5)
    for frame in range(len(whole["ego"][1])):
        stamp = types["builtin_interfaces/msg/Time"](*divmod(T0_NS + frame * STEP_NS, 10**9))
        header = types["std_msgs/msg/Header"](stamp, frame_id)
        found = []
        for track, (kind, xy) in whole.items():
            if np.isnan(xy[frame, 0]):
                continue
            pose = types["geometry_msgs/msg/Pose"](point(*map(float, xy[frame]), 0.0), quaternion)
            if name == VISION:
                covariance = types["geometry_msgs/msg/PoseWithCovariance"](pose, np.zeros(36))
                guess = types["vision_msgs/msg/ObjectHypothesisWithPose"]
                hypothesis = types["vision_msgs/msg/ObjectHypothesis"]
                guesses = [
                    guess(hypothesis(one, score), covariance) for one, score in (("bus", 0.1), (kind, 0.8))
                ]
                box = types["vision_msgs/msg/BoundingBox3D"](pose, vector)
                found.append(types["vision_msgs/msg/Detection3D"](header, guesses, box, track))
            else:
                twist = types["geometry_msgs/msg/Twist"](vector, vector)
                accel = types["geometry_msgs/msg/Accel"](vector, vector)
                corner = types["geometry_msgs/msg/Point32"](1.0, 2.0, 3.0)
                polygon = types["geometry_msgs/msg/Polygon"]([corner])
                solid = types["shape_msgs/msg/SolidPrimitive"](1, np.array([4.0, 2.0, 1.5]), polygon)
                number = int(track) if track.isdecimal() else 1
                label = {"car": 6, "truck": 7, "pedestrian": 4}[kind]
                one = types["derived_object_msgs/msg/Object"]
                found.append(one(header, number, 1, True, pose, twist, accel, polygon, solid, label, 255, 3))
        yield types[name](header, found)


def write_bag(
    path: Path,
    name: str,
    whole: Tracks,
    *,
    plugin: StoragePlugin = StoragePlugin.SQLITE3,
    **more: Any,
) -> Path:
    store = store_of_types()
    with BagWriter(path, version=9, storage_plugin=plugin) as writer:
        topic = writer.add_connection("/perception/tracked_objects", name, typestore=store)
        for number, message in enumerate(ros_messages(store, name, whole, **more)):
            writer.write(topic, T0_NS + number * STEP_NS, store.serialize_cdr(message, name))
    return path


@pytest.mark.parametrize("plugin", list(StoragePlugin))
@pytest.mark.parametrize("name", [VISION, OBJECTS])
def test_ros_2_bags(tmp_path: Path, name: str, plugin: StoragePlugin) -> None:
    # Given a bag that rosbags wrote
    whole = tracks()
    write_bag(tmp_path / "monday", name, whole, plugin=plugin)
    # When
    scenarios = read(tmp_path)
    # Then
    ids = {"ego": "1"} if name == OBJECTS else {}
    expect(
        scenarios,
        {ids.get(track, track): value for track, value in whole.items()},
        {ids.get(track, track): value for track, value in TYPES.items()},
    )
    assert scenarios[0].drive == "monday"


def test_a_bag_of_humble_holds_no_definitions_and_is_read_by_ours(tmp_path: Path) -> None:
    # Given a bag whose definitions are taken out, as older versions of ROS 2 write it
    path = write_bag(tmp_path / "monday", VISION, tracks())
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as store:
        store.execute("DROP TABLE message_definitions")
    store.close()
    # When / Then
    expect(read(tmp_path), tracks(), TYPES)


def test_a_folder_one_level_below_is_the_region(tmp_path: Path) -> None:
    (tmp_path / "Karlsruhe Süd").mkdir()
    write_mcap(tmp_path / "Karlsruhe Süd" / "monday.mcap", scenes(tracks()))
    write_bag(tmp_path / "Karlsruhe Süd" / "tuesday", VISION, tracks())
    recordings = bags.scan(tmp_path, bags.detect(walk(tmp_path)))
    assert list(recordings.drives) == ["karlsruhe-sud/monday", "karlsruhe-sud/tuesday"]


def test_untracked_objects_are_counted(tmp_path: Path) -> None:
    whole = tracks()
    whole[""] = whole.pop("18")
    write_mcap(tmp_path / "monday.mcap", scenes(whole))
    recordings = bags.scan(tmp_path, bags.detect(walk(tmp_path)))
    assert {track for one in recordings.read("local/monday") for track in one.track_ids} == {"ego", "17"}
    assert recordings.problems == {"untracked-object": 80}


def without_a_number() -> list[bytes]:
    return [message.replace(b'"x": ', b'"x": "east", "w": ') for message in scenes(tracks(3))]


@pytest.mark.parametrize(
    ("messages", "options", "reason", "text"),
    [
        (scenes(tracks(3), frame_id="base_link"), {}, "moving-frame", "got 'base_link'"),
        ([b"{"] * 3, {}, "malformed-message", "expected a SceneUpdate"),
        (
            [b"[" * 100_000] * 3,
            {"compression": CompressionType.NONE},
            "malformed-message",
            "nested too deeply",
        ),
        ([b"[]"] * 3, {}, "malformed-message", "of another kind than it must be"),
        (without_a_number(), {}, "malformed-message", "expected a number, got"),
        ([b'{"entities":[]}'] * 3, {}, "no-object-list", "got messages without one"),
        ([b"\xff"] * 3, {"encoding": "protobuf"}, "malformed-protobuf", "scene"),
        (scenes(tracks(3)), {"encoding": "cbor"}, "no-object-list", "foxglove.SceneUpdate (cbor)"),
        ([b" " * 3_000_000] * 3, {}, "zip-bomb", "limit 200 times"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(
    tmp_path: Path, messages: list[bytes], options: dict[str, Any], reason: str, text: str
) -> None:
    write_mcap(tmp_path / "scene.mcap", messages, **options)
    with pytest.raises(ScenarioError) as refused:
        read(tmp_path)
    assert refused.value.reason == reason
    assert text in str(refused.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_mcap_file_is_refused(tmp_path: Path, share: float) -> None:
    path = write_mcap(tmp_path / "a.mcap", scenes(tracks()))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ScenarioError, match=r"damaged-bag: a.mcap: expected a whole MCAP file"):
        read(tmp_path)


def test_a_changed_byte_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a.mcap", scenes(tracks(30)))
    whole = path.read_bytes()
    expected = [scenario.xy for scenario in read(tmp_path)]
    for at in np.random.default_rng(2).integers(0, len(whole), 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        try:
            found = [scenario.xy for scenario in read(tmp_path)]
        except ScenarioError:
            continue
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_truncated_bag_is_refused(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "monday", VISION, tracks(5))
    (file,) = path.glob("*.db3")
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ScenarioError, match=r"damaged-bag: monday/.*db3"):
        read(tmp_path)


def test_a_bag_whose_texts_are_none_is_refused_in_one_line(tmp_path: Path) -> None:
    path = write_bag(tmp_path / "monday", VISION, tracks(5))
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as store:
        store.execute("UPDATE message_definitions SET encoded_message_definition = CAST(x'0A41FF0A' AS TEXT)")
    store.close()
    with pytest.raises(ScenarioError, match=r"damaged-bag: .*its text is not UTF-8") as refused:
        read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_message_of_another_version_is_refused(tmp_path: Path) -> None:
    # Given messages that are longer than their definition
    path = write_bag(tmp_path / "monday", VISION, tracks(5))
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as store:
        store.execute("UPDATE messages SET data = CAST(data || x'0000000000000000' AS BLOB)")
    store.close()
    # When / Then
    with pytest.raises(
        ScenarioError, match=r"malformed-message: .* 8 bytes after the end of .*: another version"
    ):
        read(tmp_path)


def test_two_rates_and_a_message_twice_are_refused(tmp_path: Path) -> None:
    messages = scenes(tracks(60))
    write_mcap(tmp_path / "a.mcap", messages[:30] + messages[30::3])
    with pytest.raises(ScenarioError, match="two-rates"):
        read(tmp_path)
    write_mcap(tmp_path / "a.mcap", [messages[0], *messages])
    with pytest.raises(ScenarioError, match="shuffled-frames"):
        read(tmp_path)
