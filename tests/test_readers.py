"""Readers of the field's formats: what is read is what was written, cut into windows; converting it loses nothing."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import argoverse
import numpy as np
import pytest
import recorded
import traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import Track

from fedfleet.models.motion_forecast import TASK
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.convert import convert
from fedfleet.scenarios.ngsim import FOOT_M
from fedfleet.scenarios.places import place_id
from fedfleet.scenarios.reading import open_recordings, read, stream
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.resample import resampled
from fedfleet.scenarios.table_rows import table_sha256
from fedfleet.scenarios.windows import Observations, clock, cut, kinds_of, recordings

Write = Callable[[Path, Sequence[Track]], Path]

WRITERS: dict[str, Write] = {
    "INTERACTION": recorded.interaction,
    "NGSIM": recorded.ngsim,
    "highD": recorded.highd,
    "inD": recorded.ind,
    "Argoverse 2": recorded.argoverse2,
    "CommonRoad": recorded.commonroad,
    "Waymo": recorded.waymo,
    "Lyft": recorded.lyft5,
}
NO_TRUCK = ("Waymo", "Lyft", "Argoverse 2")


def places(scenarios: Sequence[Scenario]) -> dict[str, dict[int, np.ndarray]]:
    """Place by track and by frame since the drive began."""
    start = min(scenario.t0_s for scenario in scenarios)
    found: dict[str, dict[int, np.ndarray]] = {}
    for scenario in scenarios:
        first = round((scenario.t0_s - start) * scenario.rate_hz)
        for name, xy in zip(scenario.track_ids, scenario.xy, strict=True):
            for frame in np.flatnonzero(~np.isnan(xy[:, 0])).tolist():
                found.setdefault(name, {})[first + frame] = xy[frame]
    return found


def assert_same(tracks: Sequence[Track], scenarios: Sequence[Scenario], name: Callable[[Track], str]) -> None:
    """Every place of every track, and no other, to 1e-6 m."""
    got = places(scenarios)
    begin = recorded.span(tracks)[0]
    assert set(got) == {name(track) for track in tracks}
    for track in tracks:
        seen = got[name(track)]
        assert sorted(seen) == list(range(track.first - begin, track.last - begin + 1))
        np.testing.assert_allclose([seen[frame] for frame in sorted(seen)], track.xy, atol=1e-6, rtol=0)


def named(kind: str, tracks: Sequence[Track]) -> Callable[[Track], str]:
    if kind == "INTERACTION":
        return lambda track: f"{'P' * (track.type == 'pedestrian')}{track.number}"
    if kind in ("Argoverse 2", "Lyft"):
        return lambda track: "AV" if track is tracks[0] else str(track.number)
    return lambda track: str(track.number)


# --- every format ---


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_read_is_what_was_recorded(kind: str, tmp_path: Path) -> None:
    # given real tracks in the format
    tracks = recorded.real()
    if kind in ("Argoverse 2", "Lyft"):
        tracks = recorded.made(3)
    WRITERS[kind](tmp_path, tracks)
    # when
    scenarios = read(tmp_path)
    # then
    assert_same(tracks, scenarios, named(kind, tracks))
    drives = open_recordings(tmp_path).drives
    assert sum(drive.recordings for drive in drives.values()) == len(scenarios)
    assert sum(drive.seconds for drive in drives.values()) == pytest.approx(sum(s.seconds for s in scenarios))


@pytest.mark.parametrize("kind", WRITERS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), tracks=st.integers(2, 9), frames=st.integers(12, 260))
def test_conversion_keeps_all_that_a_table_holds(kind: str, seed: int, tracks: int, frames: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = WRITERS[kind](Path(name) / "in", recorded.made(seed, tracks=tracks, frames=frames))
        # when
        made = convert(folder, Path(name) / "out")
        # then
        before, after = read(folder), read(Path(name) / "out")
        assert len(before) == len(after) == sum(row["scenarios"] for row in made.regions.values())
        for one, other in zip(before, after, strict=True):
            for field in ("scenario_id", "region", "drive", "track_ids", "kinds", "types", "t0_s", "frames"):
                assert getattr(one, field) == getattr(other, field), field
            assert np.float32(one.rate_hz) == np.float32(other.rate_hz)
            np.testing.assert_array_equal(np.rint(one.xy * 100) / 100, other.xy)
        # and once more is the same
        again = convert(Path(name) / "out", Path(name) / "again")
        assert again.regions == made.regions


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), others=st.integers(0, 6))
def test_conversion_of_argoverse1_keeps_all_that_a_table_holds(seed: int, others: int) -> None:
    chance = np.random.default_rng(seed)
    rows = argoverse.rows(
        x_m=float(chance.uniform(-5e3, 5e3)), y_m=float(chance.uniform(-5e3, 5e3)), others=others
    )
    lines = [row for row in rows if "OTHERS" not in row or chance.random() > 0.2]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "in"
        argoverse.write_zip(folder / "MIA.zip", {"7.csv": argoverse.text(lines)})
        convert(folder, Path(name) / "out")
        (before,), (after,) = read(folder), read(Path(name) / "out")
    for field in (
        "scenario_id",
        "region",
        "drive",
        "track_ids",
        "kinds",
        "types",
        "t0_s",
        "frames",
        "rate_hz",
    ):
        assert getattr(before, field) == getattr(after, field), field
    np.testing.assert_array_equal(np.rint(before.xy * 100) / 100, after.xy)


def test_conversion_of_several_formats_is_one_folder_and_writes_over_nothing(tmp_path: Path) -> None:
    recorded.interaction(tmp_path / "in", recorded.made(1))
    traffic.write_folder(tmp_path / "in", regions=("town",), drives=2)
    made = convert(tmp_path / "in", tmp_path / "out")
    assert made.formats == ("fedfleet scenario table", "INTERACTION")
    assert sorted(made.regions) == ["dr-test", "town"]
    assert made.regions["town"]["table_sha256"] == table_sha256(
        read(tmp_path / "out", ["town/d00", "town/d01"])
    )
    with pytest.raises(UsageError, match=r"out: expected a folder without tables to write into, got some"):
        convert(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UsageError, match=r"out: expected a folder outside .*in, which is read"):
        convert(tmp_path / "in", tmp_path / "in" / "out")


def test_formats_side_by_side_are_each_read_by_their_own(tmp_path: Path) -> None:
    tracks = recorded.made(5)
    for writer in (
        recorded.interaction,
        recorded.highd,
        recorded.argoverse2,
        recorded.commonroad,
        recorded.waymo,
    ):
        writer(tmp_path, tracks)
    recorded.lyft5(tmp_path, tracks)
    recorded.ngsim(tmp_path / "ngsim", tracks)
    traffic.write_folder(tmp_path, drives=1)
    recordings = open_recordings(tmp_path)
    assert len(recordings.parts) == 8
    counted = Counter(scenario.region for scenario in stream(tmp_path))
    assert len(counted) == 9
    assert counted["us-101"] == 2
    told = {part.reader.format: part.summary() for part in recordings.parts}
    assert told["highD, inD, rounD"]["rates_hz"] == [25.0]
    assert told["NGSIM"]["tracks"] == sum(len(s.track_ids) for s in stream(tmp_path) if s.region == "us-101")


def test_opening_a_folder_reads_no_positions(tmp_path: Path) -> None:
    # given positions that are no numbers
    recorded.ind(tmp_path, recorded.made(2))
    path = tmp_path / "data" / "07_tracks.csv"
    path.write_text(path.read_text().replace("7,1,0,0,", "7,1,0,0,west", 1))
    # when
    drives = open_recordings(tmp_path).drives
    # then
    assert list(drives) == ["levelx-4/levelx-4-07"]
    with pytest.raises(
        UsageError,
        match=r"malformed-csv: data/07_tracks\.csv line 2: expected a number of xCenter, got 'west",
    ):
        read(tmp_path)


# --- one by one ---


def test_types_and_kinds_by_format(tmp_path: Path) -> None:
    tracks = recorded.made(4, frames=100)
    seen: dict[str, dict[str, tuple[str, str]]] = {}
    for kind, write in WRITERS.items():
        (scenario,) = read(write(tmp_path / kind, tracks))[:1]
        seen[kind] = dict(
            zip(scenario.track_ids, zip(scenario.types, scenario.kinds, strict=True), strict=True)
        )
    assert seen["INTERACTION"]["1"] == ("vehicle", "AGENT")
    assert seen["INTERACTION"]["P3"] == ("pedestrian", "OTHERS")
    assert seen["NGSIM"]["6"][0] == "motorcycle"
    assert seen["NGSIM"]["2"][0] == seen["inD"]["2"][0] == seen["highD"]["2"][0] == "truck"
    assert seen["Argoverse 2"]["AV"] == ("vehicle", "AV")
    assert [name for name, (_, kind) in seen["Argoverse 2"].items() if kind == "AGENT"] == ["2"]
    assert seen["Waymo"]["1"] == ("vehicle", "AV")
    assert [name for name, (_, kind) in seen["Waymo"].items() if kind == "AGENT"] == ["2"]
    assert seen["Lyft"]["AV"] == ("vehicle", "AV")
    assert seen["Lyft"]["5"][0] == "cyclist"


def test_ngsim_is_feet_by_location_and_period_and_a_number_may_be_given_again(tmp_path: Path) -> None:
    # given two locations in one file, the second with a pause of an hour in which vehicle 1 became another
    recorded.ngsim(tmp_path, recorded.made(1, tracks=2))
    path = tmp_path / "trajectories.csv"
    head, *lines = path.read_text().splitlines()
    later = []
    for line in lines:
        cells = line.split(",")
        cells[3], cells[-1] = str(int(cells[3]) + 3_600_000), "i-80"
        later.append(",".join(cells))
    first = [line.replace("us-101", "i-80") for line in lines]
    twice = ",".join([*lines[0].split(",")[:2], "1", *lines[0].split(",")[3:]])
    path.write_text("\n".join([head, *lines, *first, *later, twice]) + "\n")
    # when
    drives = open_recordings(tmp_path).drives
    # then
    names = ["i-80/i-80-1118846980", "i-80/i-80-1118850580", "us-101/us-101-1118846980"]
    assert list(drives) == names
    (scenario, *_) = read(tmp_path, names[2:])
    assert scenario.t0_s == 1118846980.2
    assert "1-1" in scenario.track_ids
    feet = float(lines[0].split(",")[6])
    assert scenario.xy[scenario.track_ids.index("1-130"), 0, 0] == pytest.approx(feet * FOOT_M, abs=1e-9)


def test_highd_has_its_y_turned_up(tmp_path: Path) -> None:
    """A left turn in the world is one in the scenario: the image's y points down."""
    tracks = [Track(1, "vehicle", 0, np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]))]
    (scenario,) = read(recorded.highd(tmp_path, tracks))
    np.testing.assert_allclose(scenario.xy[0], tracks[0].xy, atol=1e-12)
    assert scenario.rate_hz == 25.0


def test_zips_of_commonroad_are_regions_by_folder_and_drives_by_map(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("DEU_Ulm-1_1_T-1", "DEU_Ulm-1_2_T-1", "DEU_Ulm-2_1_T-1"):
            archive.writestr(f"DEU/{name}.xml", recorded.commonroad_text(recorded.made(1), name))
    drives = open_recordings(tmp_path).drives
    assert {key: drive.recordings for key, drive in drives.items()} == {
        "deu/deu-ulm-1": 2,
        "deu/deu-ulm-2": 1,
    }


def test_an_index_names_the_drives_of_commonroad(tmp_path: Path) -> None:
    for name in ("USA_A-1_1_T-1", "USA_B-1_1_T-1"):
        recorded.commonroad(tmp_path, recorded.made(1), name)
    rows = "\n".join(f"Road 5,USA_{name}-1_1_T-1.xml,4,3.0,G1" for name in "AB")
    (tmp_path / "index.csv").write_text(f"location,file,agents,agent_seconds,overlap_group\n{rows}\n")
    assert list(open_recordings(tmp_path).drives) == ["road-5/g1"]


def test_scenes_of_one_car_without_a_pause_are_one_drive(tmp_path: Path) -> None:
    # given three scenes of a car: the second follows at once, the third an hour later
    recorded.lyft5(tmp_path, recorded.made(1, frames=30))
    start = 1571846863319362048
    rows = [
        ((0, 10), "host-a101", start, start + 10**9),
        ((10, 20), "host-a101", start + 10**9, start + 2 * 10**9),
        ((20, 30), "host-a101", start + 3600 * 10**9, start + 3601 * 10**9),
    ]
    recorded.zarr_array(tmp_path / "sample.zarr", "scenes", np.array(rows, dtype=recorded.SCENES), chunk=4)
    drives = open_recordings(tmp_path).drives
    assert [(key, drive.recordings) for key, drive in drives.items()] == [
        ("palo-alto/host-a101-1571846863", 2),
        ("palo-alto/host-a101-1571850463", 1),
    ]


def test_a_drive_that_is_read_twice_is_counted_once(tmp_path: Path) -> None:
    tracks = recorded.made(1, tracks=1, frames=20)
    late = Track(2, "vehicle", 400, tracks[0].xy)
    recorded.ngsim(tmp_path, [tracks[0], late])
    for _ in range(2):
        assert len(read(tmp_path)) == 2
        assert open_recordings(tmp_path).problems == {"empty-window": 3}


# --- windows ---


def seen(frame: Sequence[int], track: Sequence[int] | None = None, rate_hz: float = 10.0) -> Observations:
    places = np.arange(2.0 * len(frame)).reshape(-1, 2)
    which = np.zeros(len(frame), dtype=np.int64) if track is None else np.array(track)
    names = [f"t{i}" for i in range(int(which.max()) + 1)]
    types = ["vehicle"] * len(names)
    return Observations("f.csv", "r", "d", rate_hz, 5.0, names, types, which, np.array(frame), places)


def test_windows_do_not_overlap_and_lose_nothing() -> None:
    problems: Counter[str] = Counter()
    found = list(cut(seen([0, 99, 100, 101, 350]), problems=problems))
    assert [(s.scenario_id, s.frames, s.t0_s) for s in found] == [
        ("d-00000", 100, 5.0),
        ("d-00001", 100, 15.0),
        ("d-00003", 51, 35.0),
    ]
    assert sum(int((~np.isnan(s.xy[..., 0])).sum()) for s in found) == 5
    assert problems == {"empty-window": 1}
    assert recordings(np.array([0, 99, 100, 101, 350]), 10.0) == (3, 25.1)


def test_judged_are_vehicles_seen_throughout() -> None:
    xy = np.zeros((4, 3, 2))
    xy[1, 2] = np.nan
    types = ("vehicle", "bus", "pedestrian", "truck")
    assert kinds_of(types, xy, 10.0) == ("AGENT", "OTHERS", "OTHERS", "AGENT")
    assert kinds_of(types, xy, 10.0, av=0, targets={0, 2}) == ("AV", "OTHERS", "AGENT", "OTHERS")


def test_judged_in_a_long_scenario_is_what_was_seen_for_five_seconds() -> None:
    xy = np.zeros((3, 100, 2))
    xy[0, 50:] = np.nan  # seen for 5 s
    xy[1, [0, 49, 99]] = np.nan  # for 4.8 and 4.9 s
    xy[2, :40] = np.nan
    assert kinds_of(("vehicle",) * 3, xy, 10.0) == ("AGENT", "OTHERS", "AGENT")
    assert kinds_of(("vehicle",) * 3, xy, 25.0) == ("OTHERS",) * 3


def test_a_clock_takes_jitter_and_single_missing_frames_and_refuses_two_rates() -> None:
    steady = np.arange(100) * 0.04 + np.random.default_rng(1).uniform(-0.004, 0.004, 100)
    rate_hz, frame = clock(np.delete(steady, [40, 70]), "f")
    assert (rate_hz, frame[39:41].tolist(), int(frame[-1])) == (25.0, [39, 41], 99)
    two = np.concatenate([np.arange(50) * 0.1, 5.0 + np.arange(50) * 0.04])
    with pytest.raises(
        ScenarioError, match=r"two-rates: f: expected one rate, got steps of 0\.1 s and after fr"
    ):
        clock(two, "f", rate_hz=10.0)
    every_other = np.concatenate([np.arange(50) * 0.1, 5.0 + np.arange(30) * 0.2])
    with pytest.raises(ScenarioError, match="two-rates: f: "):
        clock(every_other, "f")
    with pytest.raises(ScenarioError, match="shuffled-frames: f: expected rising time stamps"):
        clock(np.array([0.0, 0.1, 0.1]), "f")


@given(name=st.text(max_size=60))
def test_a_place_id_is_an_id(name: str) -> None:
    import re

    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,34}[a-z0-9])?", place_id(name))


def test_place_ids() -> None:
    assert place_id("DR_USA_Intersection_EP0") == "dr-usa-intersection-ep0"
    assert place_id("Präsident 5") == "prasident-5"
    assert place_id("a" * 40) != place_id("a" * 41)


# --- other rates ---


def test_a_higher_rate_is_taken_at_the_rate_of_the_task(tmp_path: Path) -> None:
    # given 6 s at 25 Hz of a car in a circle
    angle = np.arange(150) / 25.0 * 0.5
    circle = 30.0 * np.stack([np.sin(angle), -np.cos(angle)], axis=1)
    recorded.highd(tmp_path, [Track(1, "vehicle", 0, circle), Track(2, "vehicle", 30, circle[30:60] + 50.0)])
    # when
    (scenario,) = read(tmp_path)
    at = resampled(scenario, 10.0)
    # then
    assert (at.frames, at.rate_hz, at.t0_s) == (60, 10.0, scenario.t0_s)
    angle = np.arange(60) / 10.0 * 0.5
    np.testing.assert_allclose(at.xy[0], 30.0 * np.stack([np.sin(angle), -np.cos(angle)], axis=1), atol=2e-3)
    np.testing.assert_array_equal(at.xy[0, ::2], scenario.xy[0, ::5])
    assert np.flatnonzero(~np.isnan(at.xy[1, :, 0])).tolist() == list(range(12, 24))
    assert len(TASK.samples(tmp_path, ["highd-2/highd-2-01"])) == 1
    assert TASK.index(tmp_path).drives[0].seconds == 6.0


def test_a_lower_rate_stays_and_a_track_that_falls_between_is_left_out() -> None:
    slow = Scenario("s", "r", "d", 5.0, 0.0, ("a",), ("AV",), np.zeros((1, 9, 2)))
    assert resampled(slow, 10.0) is slow
    xy = np.full((2, 9, 2), np.nan)
    xy[0], xy[1, 1] = 0.0, 1.0
    at = resampled(Scenario("s", "r", "d", 20.0, 0.0, ("a", "b"), ("AV", "OTHERS"), xy), 10.0)
    assert (at.track_ids, at.kinds, at.types, at.frames) == (("a",), ("AV",), ("unknown",), 5)
    lost = Scenario("s", "r", "d", 20.0, 0.0, ("b",), ("OTHERS",), xy[1:].copy())
    assert resampled(lost, 10.0) is lost


@pytest.mark.parametrize(
    "kind", ["INTERACTION", "NGSIM", "inD", "Argoverse 2", "CommonRoad", "Waymo", "Lyft"]
)
def test_the_forecasting_task_learns_from_every_format(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path, recorded.made(9, tracks=8, frames=160))
    index = TASK.index(tmp_path)
    samples = TASK.samples(tmp_path, [drive.key for drive in index.drives])
    assert len(samples) >= 1
    assert len(TASK.frames(tmp_path, [drive.key for drive in index.drives])) >= 40


# --- the command ---


def test_the_command_lists_checks_and_converts_any_format(tmp_path: Path) -> None:
    def fedfleet(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "fedfleet.cli.main", "scenarios", *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    recorded.interaction(tmp_path / "in", recorded.made(9, tracks=8, frames=160))
    traffic.write_folder(tmp_path / "in", regions=("town",), drives=2)
    listed = fedfleet("list", "-s", "in")
    assert [row["format"] for row in listed["formats"]] == ["fedfleet scenario table", "INTERACTION"]
    assert set(listed["regions"]) == {"dr-test", "town"}
    checked = fedfleet("check", "-s", "in")
    assert {row["format"]: (row["drives_read"], row["rates_hz"]) for row in checked["formats"]} == {
        "fedfleet scenario table": (2, [10.0]),
        "INTERACTION": (1, [10.0]),
    }
    made = fedfleet("convert", "in", "out")
    assert made["table_version"] == 2
    assert fedfleet("check", "-s", "out")["samples"] == checked["samples"]
