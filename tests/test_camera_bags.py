"""Camera images in MCAP files and ROS 2 bags: frames and angles, what is counted, and what is refused in one line."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tubs

pytest.importorskip("mcap", reason="mcap is not installed (extra formats)")
pytest.importorskip("rosbags", reason="rosbags is not installed (extra dev)")
pytest.importorskip("PIL", reason="Pillow is not installed (extra scenarios)")

import test_bags
from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as BagWriter

from fedfleet.models.camera_steering import TASK
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios import camera_messages, donkey, donkey_image
from fedfleet.scenarios.donkey import Shots, open_camera, open_tubs
from fedfleet.scenarios.reading import open_recordings

IMAGE = "sensor_msgs/msg/CompressedImage"
ACKERMANN = "ackermann_msgs/msg/AckermannDriveStamped"
TWIST = "geometry_msgs/msg/Twist"
TWIST_STAMPED = "geometry_msgs/msg/TwistStamped"
T0_NS = 1_700_000_000_000_000_000
STEP_NS = 50_000_000
FRAMES = 24

STORE = test_bags.store_of_types()


@dataclass(frozen=True)
class Said:
    """One message: its topic, type and content, when it was written and what its header tells (None: nothing)."""

    topic: str
    kind: str
    content: Any
    written_ns: int
    stamp_ns: int | None = field(default=None)

    @property
    def cdr(self) -> bytes:
        """As ROS 2 writes it."""
        types = STORE.types
        header = types["std_msgs/msg/Header"](
            types["builtin_interfaces/msg/Time"](*divmod(self.stamp_ns or 0, 10**9)), "camera"
        )
        vector = types["geometry_msgs/msg/Vector3"]
        if self.kind == IMAGE:
            message = types[IMAGE](header, "jpeg", np.frombuffer(self.content, dtype=np.uint8))
        elif self.kind == ACKERMANN:
            drive = types["ackermann_msgs/msg/AckermannDrive"](self.content, 0.0, 1.0, 0.0, 0.0)
            message = types[ACKERMANN](header, drive)
        else:
            message = types[TWIST](vector(1.0, 0.0, 0.0), vector(0.0, 0.0, self.content))
            message = types[TWIST_STAMPED](header, message) if self.kind == TWIST_STAMPED else message
        return bytes(STORE.serialize_cdr(message, self.kind))


PICTURES = [tubs.jpeg(tubs.image(0.0, seed=number)) for number in range(FRAMES)]


def images(frames: int = FRAMES, topic: str = "/camera/image/compressed") -> list[Said]:
    found = []
    for number in range(frames):
        at = T0_NS + number * STEP_NS
        found.append(Said(topic, IMAGE, PICTURES[number % FRAMES], at, at))
    return found


def driven(
    kind: str, values: Sequence[float], *, topic: str = "/drive", early_ns: int = 10_000_000
) -> list[Said]:
    """Steering, one message shortly before each image."""
    times = [T0_NS + number * STEP_NS - early_ns for number in range(len(values))]
    return [Said(topic, kind, value, at, at) for value, at in zip(values, times, strict=True)]


def write_mcap(path: Path, messages: Sequence[Said], *, spoil: Callable[[bytes], bytes] = bytes) -> None:
    """An MCAP file in small chunks; `spoil` changes the message of number 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = McapWriter(file, compression=CompressionType.ZSTD, chunk_size=20_000)
        writer.start(profile="ros2")
        channels: dict[str, int] = {}
        for number, said in enumerate(messages):
            if said.topic not in channels:
                text, _ = STORE.generate_msgdef(said.kind, ros_version=2)
                schema = writer.register_schema(said.kind, "ros2msg", text.encode())
                channels[said.topic] = writer.register_channel(said.topic, "cdr", schema)
            data = spoil(said.cdr) if number == 3 else said.cdr
            writer.add_message(channels[said.topic], said.written_ns, data, said.written_ns)
        writer.finish()


def write_bag(path: Path, messages: Sequence[Said], plugin: StoragePlugin) -> None:
    with BagWriter(path, version=9, storage_plugin=plugin) as writer:
        topics: dict[str, Any] = {}
        for said in messages:
            if said.topic not in topics:
                topics[said.topic] = writer.add_connection(said.topic, said.kind, typestore=STORE)
            writer.write(topics[said.topic], said.written_ns, said.cdr)


def seen(folder: Path) -> list[Shots]:
    return [donkey.shots(block, rows=66, columns=200) for block in open_tubs(folder).values()]


def angles(folder: Path) -> np.ndarray:
    return np.concatenate([one.angles for one in seen(folder)])


TURNS = np.linspace(-0.9, 0.9, FRAMES)
"""Angles, right positive, of which every frame has its own."""


# --- what is read ---


@pytest.mark.parametrize("container", ["file", *StoragePlugin])
@pytest.mark.parametrize(
    ("kind", "full"),
    [
        (ACKERMANN, camera_messages.MAX_STEERING_RAD),
        (TWIST, camera_messages.MAX_TURN_RAD_PER_S),
        (TWIST_STAMPED, camera_messages.MAX_TURN_RAD_PER_S),
    ],
)
def test_each_image_takes_the_steering_just_before_it(
    tmp_path: Path, container: str | StoragePlugin, kind: str, full: float
) -> None:
    # Given images, and steering to the left positive as ROS has it, steering written first
    messages = [*driven(kind, (-TURNS * full).tolist()), *images()]
    if isinstance(container, StoragePlugin):
        write_bag(tmp_path / "Hall_red", messages, container)
    else:
        write_mcap(tmp_path / "Hall_red.mcap", messages)
    # When
    (one,) = seen(tmp_path)
    # Then every image is there as a tub's is, with its own angle, right positive
    assert list(open_tubs(tmp_path)) == ["hall/red-00"]
    assert one.angles == pytest.approx(TURNS, abs=1e-6)
    assert one.numbers.tolist() == list(range(FRAMES))
    expected = [donkey_image.decode(data, rows=66, columns=200) for data in PICTURES]
    np.testing.assert_array_equal(one.images, np.stack(expected))
    assert one.labelled.all()
    assert one.problems == {}


def test_png_and_a_bag_that_is_the_folder_itself(tmp_path: Path) -> None:
    import io

    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(tubs.image(0.3)).save(data, "PNG")
    first, *rest = images()
    messages = [
        Said(first.topic, IMAGE, data.getvalue(), T0_NS, T0_NS),
        *rest,
        *driven(TWIST, [0.5] * FRAMES),
    ]
    write_bag(tmp_path / "hall-red", messages, StoragePlugin.SQLITE3)
    (one,) = seen(tmp_path / "hall-red")
    assert one.images[0].std() > 10
    assert one.angles.tolist() == [-0.5] * FRAMES


def test_blocks_samples_and_frames_are_as_of_tubs(tmp_path: Path) -> None:
    # Given 150 frames beside a tub of as many
    many = 150
    write_mcap(
        tmp_path / "hall-red.mcap", [*images(many), *driven(TWIST, np.linspace(0.8, -0.8, many).tolist())]
    )
    tubs.write_zip(tmp_path / "yard-green.zip", tubs.files(many))
    # When / Then
    blocks = open_tubs(tmp_path)
    assert list(blocks) == [f"{car}-0{number}" for car in ("hall/red", "yard/green") for number in range(3)]
    assert [(block.start, block.end) for block in blocks.values()] == [(0, 30), (50, 80), (100, 150)] * 2
    samples, frames = TASK.samples(tmp_path, ["hall/red-01"]), TASK.frames(tmp_path, ["hall/red-01"])
    assert (len(samples), len(frames)) == (15, 30)
    assert samples.targets[:, 0] == pytest.approx(np.linspace(-0.8, 0.8, many)[50:80:2], abs=1e-6)


def test_a_bag_of_humble_holds_no_definitions_and_is_read_by_ours(tmp_path: Path) -> None:
    for kind, value in ((ACKERMANN, 0.3), (TWIST, 0.5), (TWIST_STAMPED, 0.5)):
        path = tmp_path / kind.rpartition("/")[2] / "hall-red"
        path.parent.mkdir()
        write_bag(path, [*images(), *driven(kind, [value] * FRAMES)], StoragePlugin.SQLITE3)
        (file,) = path.glob("*.db3")
        with sqlite3.connect(file) as store:
            store.execute("DROP TABLE message_definitions")
        store.close()
        assert angles(path.parent) == pytest.approx([-0.5] * FRAMES, abs=1e-6)


# --- which steering, by which clock ---


def test_old_steering_and_none_give_no_angle(tmp_path: Path) -> None:
    # Given the first image before any steering, and one message of steering 10 ms after it
    steering = Said("/drive", TWIST, 0.25, T0_NS + 10_000_000)
    write_mcap(tmp_path / "hall-red.mcap", [*images(), steering])
    # When
    (one,) = seen(tmp_path)
    # Then images until 0.2 s after it have its angle; all others teach nothing, and are counted
    assert np.flatnonzero(np.isfinite(one.angles)).tolist() == [1, 2, 3, 4]
    assert one.problems == {"bad-angle": FRAMES - 4}


def test_steering_of_exactly_the_oldest_age_counts(tmp_path: Path) -> None:
    steering = Said("/drive", TWIST, 0.25, T0_NS)
    write_mcap(tmp_path / "hall-red.mcap", [*images(), steering])
    assert np.flatnonzero(np.isfinite(angles(tmp_path))).tolist() == [0, 1, 2, 3, 4]


def test_headers_are_the_clock_only_where_all_have_one(tmp_path: Path) -> None:
    # Given images that were written 100 ms late: by headers each has its own steering, by writing the second next
    late = [
        Said(one.topic, IMAGE, one.content, one.written_ns + 100_000_000, one.stamp_ns) for one in images()
    ]
    stamped = driven(ACKERMANN, (-TURNS * camera_messages.MAX_STEERING_RAD).tolist())
    unstamped = [Said(one.topic, one.kind, one.content, one.written_ns) for one in stamped]
    write_mcap(tmp_path / "a" / "hall-red.mcap", [*late, *stamped])
    write_mcap(tmp_path / "b" / "hall-red.mcap", [*late, *unstamped])
    # When / Then
    assert angles(tmp_path / "a") == pytest.approx(TURNS, abs=1e-6)
    assert angles(tmp_path / "b") == pytest.approx([*TURNS[2:], TURNS[-1], TURNS[-1]], abs=1e-6)


def test_ackermann_is_taken_before_twist_and_of_several_the_named_one(tmp_path: Path) -> None:
    messages = [
        *images(topic="/front/image/compressed"),
        *images(topic="/rear/image/compressed"),
        *images(topic="/front/depth/compressedDepth"),
        *driven(TWIST, [0.9] * FRAMES, topic="/cmd_vel"),
        *driven(ACKERMANN, [0.6] * FRAMES, topic="/planner"),
        *driven(ACKERMANN, [0.3] * FRAMES, topic="/teleop"),
    ]
    write_mcap(tmp_path / "hall-red.mcap", messages)
    assert angles(tmp_path) == pytest.approx([-0.5] * FRAMES, abs=1e-6)


# --- what is counted ---


def test_broken_images_messages_and_angles_are_counted(tmp_path: Path) -> None:
    made = images()
    made[5] = Said(made[5].topic, IMAGE, PICTURES[5][:300], made[5].written_ns, made[5].stamp_ns)
    made[7] = Said(made[7].topic, IMAGE, b"GIF89a what", made[7].written_ns, made[7].stamp_ns)
    made[11] = Said(made[11].topic, IMAGE, PICTURES[10], made[11].written_ns, made[11].stamp_ns)
    values = [0.1] * FRAMES
    values[15] = 7.5
    values[17] = float("nan")
    write_mcap(tmp_path / "hall-red.mcap", [*made, *driven(TWIST, values)], spoil=lambda data: data[:40])
    (one,) = seen(tmp_path)
    assert one.problems == {"bad-angle": 2, "broken-image": 2, "frozen-camera": 1, "malformed-record": 1}
    assert len(one.images) == FRAMES - 3


def test_an_image_that_changed_since_is_counted_never_raised(tmp_path: Path) -> None:
    # Given a bag that was looked at, and is no longer what it was
    path = tmp_path / "hall-red.mcap"
    write_mcap(path, [*images(), *driven(TWIST, [0.1] * FRAMES)])
    (block,) = open_tubs(tmp_path).values()
    whole = path.read_bytes()
    for size in (0, 9, len(whole) // 3, len(whole) // 2):
        path.write_bytes(whole[:size])
        # When / Then
        one = donkey.shots(block, rows=66, columns=200)
        assert len(one.images) + one.problems["broken-image"] == FRAMES
        assert one.problems["broken-image"] > 0


# --- what is refused ---


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        (
            images(),
            "no-steering: hall-red.mcap: beside /camera/image/compressed expected steering: ackermann_msgs/",
        ),
        (
            [*images(), *[Said("/drive", TWIST, 0.1, T0_NS - 10**9)]],
            "no-steering: hall-red.mcap: no geometry_msgs/Twist in the 0.2 s before any of 24 images",
        ),
        (
            [*images(), *images(topic="/rear"), *driven(TWIST, [0.1] * 5)],
            "of sensor_msgs/CompressedImage, or one whose name has 'front', got /camera/image/compressed, /rear",
        ),
        (
            [*images(), *driven(TWIST, [0.1] * 5, topic="/a"), *driven(TWIST_STAMPED, [0.1] * 5, topic="/b")],
            "ambiguous-topics: hall-red.mcap: expected one topic of geometry_msgs/Twist, geometry_msgs/TwistStamped",
        ),
        (
            driven(TWIST, [0.1] * 5),
            "no recordings: 1 × other-task: hall-red.mcap has no camera images, which this task is about: try --task",
        ),
    ],
)
def test_what_is_missing_or_left_open_is_refused_in_one_line(
    tmp_path: Path, messages: list[Said], text: str
) -> None:
    write_mcap(tmp_path / "hall-red.mcap", messages)
    with pytest.raises(UsageError) as refused:
        open_tubs(tmp_path)
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_bag_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "hall-red.mcap"
    write_mcap(path, [*images(), *driven(TWIST, [0.1] * FRAMES)])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        UsageError,
        match="damaged-bag: hall-red.mcap: expected a whole MCAP file"
        if share
        else "empty-file: hall-red.mcap",
    ):
        open_tubs(tmp_path)


def test_two_recordings_of_one_name_are_refused(tmp_path: Path) -> None:
    messages = [*images(), *driven(TWIST, [0.1] * FRAMES)]
    write_mcap(tmp_path / "hall-red.mcap", messages)
    write_bag(tmp_path / "copy" / "hall-red", messages, StoragePlugin.SQLITE3)
    found = open_camera(tmp_path)
    assert list(found.blocks) == ["hall/red-00"]
    (row,) = found.account.rows
    assert "two recordings are named for car red in hall: rename one of them" in row.text


# --- each task its own ---


def test_objects_are_of_motion_forecast_and_images_of_camera_steering(tmp_path: Path) -> None:
    # Given a bag with objects only, one with images only, alone and together
    camera = [*images(), *driven(TWIST, [0.1] * FRAMES)]
    for folder in ("objects", "both"):
        (tmp_path / folder).mkdir()
        test_bags.write_mcap(tmp_path / folder / "monday.mcap", test_bags.scenes(test_bags.tracks()))
    for folder in ("camera", "both"):
        write_mcap(tmp_path / folder / "hall-red.mcap", camera)
    # When / Then each task takes its own, and says so where there is none
    for folder in ("objects", "both"):
        assert list(open_recordings(tmp_path / folder).drives) == ["local/monday"]
    for folder in ("camera", "both"):
        assert list(open_tubs(tmp_path / folder)) == ["hall/red-00"]
    assert open_recordings(tmp_path / "both").account.counts == {"camera-only-bag": 1}
    assert open_camera(tmp_path / "both").account.counts == {"other-task": 1}
    assert open_recordings(tmp_path / "objects").problems == {}
    with pytest.raises(UsageError, match=r"monday\.mcap has no camera images.*: try --task motion_forecast"):
        open_tubs(tmp_path / "objects")
    with pytest.raises(
        UsageError,
        match=r"camera-only-bag: hall-red\.mcap: .*try --task camera_steering",
    ):
        open_recordings(tmp_path / "camera")
