"""Clocks of bags: simulations from zero, clocks that were set, recordings in parts, recorders that were killed."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mcap", reason="mcap is not installed (extra formats)")
pytest.importorskip("rosbags", reason="rosbags is not installed (extra dev)")
pytest.importorskip("PIL", reason="Pillow is not installed (extra scenarios)")

import test_camera_bags as cameras
from mcap.writer import Writer as McapWriter
from test_bags import STEP_NS, T0_NS, VISION, read, scene, tracks, write_bag

from fedfleet.scenarios import bags, stamps
from fedfleet.scenarios.donkey import open_tubs
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.tree import walk
from fedfleet.scenarios.windows import clock

FRAMES = 120
Times = tuple[int, int]


def write(
    path: Path, times: Sequence[Times], *, first_frame: int = 0, spoil: Callable[[Any], None] = lambda _: None
) -> Path:
    """An MCAP file of scenes: (stamped_ns, written_ns) of each frame; `spoil` changes a scene."""
    whole = tracks(first_frame + len(times))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = McapWriter(file, chunk_size=20_000)
        writer.start()
        schema = writer.register_schema("foxglove.SceneUpdate", "jsonschema", b"{}")
        channel = writer.register_channel("/scene", "json", schema)
        for frame, (stamped_ns, written_ns) in enumerate(times, first_frame):
            update = scene(whole, frame)
            for entity in update["entities"]:
                entity["timestamp"] = dict(zip(("sec", "nsec"), divmod(stamped_ns, 10**9), strict=True))
            spoil(update)
            writer.add_message(channel, written_ns, json.dumps(update).encode(), written_ns)
        writer.finish()
    return path


def steady(frames: int, *, from_ns: int = T0_NS, written_ns: int | None = None) -> list[Times]:
    begun = from_ns if written_ns is None else written_ns
    return [(from_ns + number * STEP_NS, begun + number * STEP_NS) for number in range(frames)]


def listed(folder: Path) -> dict[str, tuple[int, float]]:
    found = bags.scan(folder, bags.detect(walk(folder)))
    return {key: (drive.recordings, drive.seconds) for key, drive in found.drives.items()}


# --- simulations ---


@pytest.mark.parametrize("speed", [1, 4])
def test_a_simulation_begins_at_zero(tmp_path: Path, speed: int) -> None:
    # Given header stamps 0.0, 0.1 … s, written at wall-clock times, as fast as it runs
    times = [(n * STEP_NS, T0_NS + n * STEP_NS // speed) for n in range(FRAMES)]
    write(tmp_path / "sim.mcap", times)
    # When / Then
    assert listed(tmp_path) == {"local/sim": (2, 12.0)}
    assert [one.t0_s for one in read(tmp_path)] == [0.0, 10.0]


def test_headers_that_were_left_empty_take_their_neighbours_clock(tmp_path: Path) -> None:
    # Given a recording whose first three and one later message have no stamp, and a clock 2 s behind the recorder's
    times = steady(FRAMES, written_ns=T0_NS + 2 * 10**9)
    for at in (0, 1, 2, 60):
        times[at] = (0, times[at][1])
    write(tmp_path / "a.mcap", times)
    # When / Then
    assert listed(tmp_path) == {"local/a": (2, 12.0)}
    assert read(tmp_path)[0].t0_s == pytest.approx(T0_NS * 1e-9, abs=1e-3)


def test_without_any_stamp_the_times_are_those_of_writing(tmp_path: Path) -> None:
    write(tmp_path / "a.mcap", [(0, written) for _, written in steady(FRAMES)])
    assert listed(tmp_path) == {"local/a": (2, 12.0)}


def test_a_scene_without_objects_has_the_time_between_its_neighbours(tmp_path: Path) -> None:
    times = [(n * STEP_NS, T0_NS + n * STEP_NS // 2) for n in range(FRAMES)]
    empty = iter([False] * 50 + [True] + [False] * 69)

    def spoil(update: dict[str, Any]) -> None:
        if next(empty):
            update["entities"] = []

    write(tmp_path / "sim.mcap", times, spoil=spoil)
    assert listed(tmp_path) == {"local/sim": (2, 12.0)}


# --- clocks that are set ---


@pytest.mark.parametrize("jump_s", [5 * 3600, 61, -2, -5 * 3600])
def test_a_clock_that_is_set_cuts_the_recording(tmp_path: Path, jump_s: int) -> None:
    before = steady(60)
    after = steady(60, from_ns=T0_NS + 60 * STEP_NS + jump_s * 10**9)
    write(tmp_path / "x.mcap", before + after)
    assert listed(tmp_path) == {"local/x": (1, 6.0), "local/x-2": (1, 6.0)}
    first, second = read(tmp_path)
    assert (first.frames, second.frames) == (60, 60)
    assert second.t0_s - first.t0_s == pytest.approx(6 + jump_s)


def test_a_pause_of_some_seconds_stays_within_the_drive(tmp_path: Path) -> None:
    write(tmp_path / "x.mcap", steady(60) + steady(60, from_ns=T0_NS + 30 * 10**9))
    assert list(listed(tmp_path)) == ["local/x"]


def test_the_clock_of_a_ros_2_bag_that_is_set_back(tmp_path: Path) -> None:
    # Given rows in the order of writing, of which the later have earlier times, as their headers say
    path = write_bag(tmp_path / "monday", VISION, tracks(FRAMES))
    (file,) = path.glob("*.db3")
    with sqlite3.connect(file) as store:
        rows = store.execute("SELECT id, data FROM messages ORDER BY id").fetchall()
        for id_, data in rows[60:]:
            sec = int.from_bytes(data[4:8], "little") - 100
            store.execute(
                "UPDATE messages SET timestamp = timestamp - 100000000000, data = ? WHERE id = ?",
                (data[:4] + sec.to_bytes(4, "little") + data[8:], id_),
            )
    store.close()
    # When / Then
    assert listed(tmp_path) == {"local/monday": (1, 6.0), "local/monday-2": (1, 6.0)}


def test_no_reader_takes_hours_for_a_missing_frame() -> None:
    times = np.concatenate([np.arange(60) * 0.1, 18_000 + np.arange(60) * 0.1])
    with pytest.raises(
        ScenarioError, match=r"clock-set: x: expected one recording, got a step of 17994\.1 s"
    ):
        clock(times, "x")


# --- parts of one trip ---


def test_parts_that_follow_each_other_are_one_drive(tmp_path: Path) -> None:
    for part in range(11):  # so that run_10 sorts after run_9 by number, not by letter
        begin = T0_NS + part * 12 * STEP_NS
        write(tmp_path / f"run_{part}.mcap", steady(12, from_ns=begin), first_frame=part * 12)
    assert listed(tmp_path) == {"local/run": (2, pytest.approx(13.2))}
    found = np.concatenate([one.xy[one.track_ids.index("ego")] for one in read(tmp_path)])
    np.testing.assert_array_equal(found, tracks(132)["ego"][1])


def test_recordings_of_one_name_at_other_times_are_drives_of_their_own(tmp_path: Path) -> None:
    for number, begin_s in enumerate((0, 20, 6)):  # later, and at the same time
        write(tmp_path / f"car{number}.mcap", steady(120, from_ns=T0_NS + begin_s * 10**9))
    assert list(listed(tmp_path)) == ["local/car0", "local/car1", "local/car2"]


def test_other_names_are_other_drives_even_if_they_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path / "morning.mcap", steady(60))
    write(tmp_path / "noon.mcap", steady(60, from_ns=T0_NS + 60 * STEP_NS))
    assert list(listed(tmp_path)) == ["local/morning", "local/noon"]


def test_follow_is_by_time_whatever_order_the_names_have() -> None:
    parts = [stamps.Part(f"rec-{n}", at, at + 9.9) for n, at in enumerate((20.0, 10.0, 0.0, 31.0))]
    assert stamps.follow(parts) == [[2, 1, 0], [3]]
    assert stamps.trip_name(["run_3", "run_4"]) == "run"
    assert stamps.trip_name(["2024", "2025"]) == "2024"
    assert stamps.trip_name(["run_3"]) == "run_3"


# --- a recorder that was killed ---


def killed(folder: Path, *, mode: str) -> Path:
    """A bag of 120 frames of which the last 60 are in a log beside it; only the log's first 90 frames are committed."""
    path = write_bag(folder / "work", VISION, tracks(FRAMES))
    (file,) = path.glob("*.db3")
    (path / "metadata.yaml").unlink()
    store = sqlite3.connect(file, isolation_level=None)
    rows = store.execute("SELECT * FROM messages WHERE id > 60").fetchall()
    store.execute("DELETE FROM messages WHERE id > 60")
    store.execute(f"PRAGMA journal_mode={mode}")
    store.execute("PRAGMA wal_autocheckpoint=0")
    add = f"INSERT INTO messages VALUES ({','.join('?' * len(rows[0]))})"  # noqa: S608 - marks only
    store.execute("BEGIN")
    store.executemany(add, rows[:30])
    store.execute("COMMIT")
    store.execute("BEGIN")
    store.execute("PRAGMA cache_size=1")  # what is not committed is written, too
    store.executemany(add, rows[30:])
    target = folder / "drive1"
    target.mkdir()
    for each in path.iterdir():  # what lies on the disk when the power fails
        shutil.copyfile(each, target / each.name.replace("work", "drive1"))
    store.close()
    shutil.rmtree(path)
    return target


@pytest.mark.parametrize(("mode", "log"), [("WAL", "-wal"), ("DELETE", "-journal")])
def test_what_a_killed_recorder_committed_is_read(tmp_path: Path, mode: str, log: str) -> None:
    folder = killed(tmp_path, mode=mode)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert any(name.endswith(log) for name in before)
    # When / Then: 90 frames, neither the 60 of the file alone nor what was never committed
    assert listed(tmp_path) == {"drive1/drive1": (1, 9.0)}
    assert sum(one.frames for one in read(tmp_path)) == 90
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_log_too_large_to_copy_is_named(tmp_path: Path) -> None:
    (log,) = killed(tmp_path, mode="WAL").glob("*-wal")
    os.truncate(log, 9 * 2**30)  # sparse: it takes no room
    with pytest.raises(ScenarioError, match=r"unfinished-bag: .*db3-wal beside it holds messages .*sqlite3"):
        listed(tmp_path)


# --- cameras ---


def drives(folder: Path) -> list[str]:
    return [*open_tubs(folder)]


def moved(messages: Sequence[cameras.Said], by_ns: int) -> list[cameras.Said]:
    return [
        cameras.Said(m.topic, m.kind, m.content, m.written_ns + by_ns, (m.stamp_ns or 0) + by_ns)
        for m in messages
    ]


def test_parts_of_a_camera_recording_are_one_car(tmp_path: Path) -> None:
    turns = np.linspace(-0.5, 0.5, cameras.FRAMES)
    trip = cameras.images() + cameras.driven(cameras.TWIST_STAMPED, turns)
    for part in range(3):
        begin = part * cameras.FRAMES * cameras.STEP_NS
        cameras.write_mcap(tmp_path / f"office-car1_{part}.mcap", moved(trip, begin))
    (block,) = open_tubs(tmp_path).values()
    assert (block.drive.key, block.end) == ("office/car1-00", 3 * cameras.FRAMES)


def test_images_take_the_steering_of_their_side_of_a_clock_that_was_set_back(tmp_path: Path) -> None:
    # Given two stretches of a recording that show the same times, steered one way and the other
    left = cameras.images() + cameras.driven(cameras.TWIST_STAMPED, np.full(cameras.FRAMES, 0.5))
    right = cameras.images() + cameras.driven(cameras.TWIST_STAMPED, np.full(cameras.FRAMES, -0.5))
    by_time = [sorted(part, key=lambda said: said.written_ns) for part in (left, right)]
    cameras.write_mcap(tmp_path / "office-car1.mcap", by_time[0] + by_time[1])
    # When
    found = cameras.angles(tmp_path)
    # Then
    np.testing.assert_allclose(found, np.repeat([-0.5, 0.5], cameras.FRAMES))


def test_a_camera_simulation_begins_at_zero(tmp_path: Path) -> None:
    turns = np.linspace(-0.5, 0.5, cameras.FRAMES)
    trip = cameras.images() + cameras.driven(cameras.TWIST_STAMPED, turns, early_ns=0)
    simulated = [
        cameras.Said(m.topic, m.kind, m.content, T0_NS + at * 10**6, (m.stamp_ns or 0) - T0_NS)
        for at, m in enumerate(trip)
    ]
    cameras.write_mcap(tmp_path / "office-car1.mcap", simulated)
    np.testing.assert_allclose(cameras.angles(tmp_path), -turns)
