"""comma2k19: the pose of a real drive against plain mathematics, and what is refused."""

import io
import math
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedfleet.scenarios import comma2k19
from fedfleet.scenarios.npy import array
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.tree import walk

ROUTE = "b0c9d2329ad1606b|2018-08-02--08-34-47"
START = np.array([-2712087.5, -4261670.0, 3881014.4])


def npy(values: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(values), **options)
    return buffer.getvalue()


def segment(
    folder: Path, number: int = 4, *, frames: int = 250, t0_s: float = 100.0, **files: bytes | None
) -> Path:
    """A segment of a car that drives 1 m per frame along the Earth's axis; files by name replace or leave out."""
    content = {
        "frame_times": npy(t0_s + np.arange(frames) / 20),
        "frame_positions": npy(START + np.arange(frames)[:, None] * [0.0, 0.0, 1.0]),
        **files,
    }
    inside = folder / ROUTE / str(number) / "global_pose"
    inside.mkdir(parents=True)
    for name, data in content.items():
        if data is not None:
            (inside / name).write_bytes(data)
    return folder


def read(folder: Path) -> list[Any]:
    recordings = comma2k19.scan(folder, comma2k19.detect(walk(folder)))
    return [scenario for key in recordings.drives for scenario in recordings.read(key)]


def enu_by_hand(xyz: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """East and north, with the latitude by Heikkinen's closed formula instead of an iteration."""
    a, b = 6378137.0, 6356752.314245179
    x, y, z = origin
    r = math.hypot(x, y)
    e2, ep2 = 1 - (b / a) ** 2, (a / b) ** 2 - 1
    f = 54 * (b * z) ** 2
    g = r * r + (1 - e2) * z * z - e2 * (a * a - b * b)
    c = e2 * e2 * f * r * r / g**3
    s = (1 + c + math.sqrt(c * c + 2 * c)) ** (1 / 3)
    p = f / (3 * (s + 1 / s + 1) ** 2 * g * g)
    q = math.sqrt(1 + 2 * e2 * e2 * p)
    root = a * a / 2 * (1 + 1 / q) - p * (1 - e2) * z * z / (q * (1 + q)) - p * r * r / 2
    r0 = -p * e2 * r / (1 + q) + math.sqrt(root)
    v = math.sqrt((r - e2 * r0) ** 2 + (1 - e2) * z * z)
    latitude = math.atan2(z + ep2 * b * b * z / (a * v), r)
    longitude = math.atan2(y, x)
    dx, dy, dz = (xyz - origin).T
    east = -math.sin(longitude) * dx + math.cos(longitude) * dy
    out = math.cos(longitude) * dx + math.sin(longitude) * dy
    return np.column_stack([east, math.cos(latitude) * dz - math.sin(latitude) * out])


def test_the_real_segment_against_plain_mathematics(data_dir: Path) -> None:
    # Given the real minute, and its files read here
    folder = data_dir / "formats" / "comma2k19"
    (pose,) = folder.glob("Example_1/*/40/global_pose")
    xyz, times = np.load(pose / "frame_positions"), np.load(pose / "frame_times")
    # When
    recordings = comma2k19.scan(folder, comma2k19.detect(walk(folder)))
    scenarios = read(folder)
    # Then
    (drive,) = recordings.drives.values()
    assert (drive.key, drive.recordings, drive.seconds) == (
        "california/b0c9d232-2018-08-02-08-34-47",
        6,
        60.0,
    )
    assert [scenario.frames for scenario in scenarios] == [200] * 6
    assert {(s.rate_hz, s.track_ids, s.kinds, s.types) for s in scenarios} == {
        (20.0, ("ego",), ("AV",), ("vehicle",))
    }
    np.testing.assert_allclose([s.t0_s for s in scenarios], times[::200], atol=0.05)
    found = np.concatenate([scenario.xy[0] for scenario in scenarios])
    assert np.abs(found - enu_by_hand(xyz, xyz[0])).max() < 1e-6
    # Then the way is as long as the recorded speed says
    speed = np.linalg.norm(np.load(pose / "frame_velocities"), axis=1)
    length = np.hypot(*np.diff(found, axis=0).T).sum()
    assert length == pytest.approx(np.trapezoid(speed, times), rel=0.01)


def test_segments_share_a_plane_and_a_drive(tmp_path: Path) -> None:
    # Given two segments of which the later one lies 1 km on
    segment(
        tmp_path,
        10,
        frames=50,
        t0_s=160.0,
        frame_positions=npy(np.tile(START + np.array([0, 0, 1e3]), (50, 1))),
    )
    segment(tmp_path, 4)
    # When
    scenarios = read(tmp_path)
    # Then they are one drive, in order, in one plane
    ids = [scenario.scenario_id for scenario in scenarios]
    assert ids == [f"b0c9d232-2018-08-02-08-34-47-{name}" for name in ("004-00000", "004-00001", "010-00000")]
    assert len({scenario.drive for scenario in scenarios}) == 1
    np.testing.assert_allclose(scenarios[2].xy[0, 0, 1] / scenarios[0].xy[0, 100, 1], 10.0, rtol=1e-9)


def test_a_lost_frame_is_a_gap(tmp_path: Path) -> None:
    times = np.delete(np.arange(250) / 20, 7)
    positions = np.delete(START + np.arange(250)[:, None] * [0.0, 0.0, 1.0], 7, axis=0)
    first, _ = read(segment(tmp_path, frame_times=npy(times), frame_positions=npy(positions)))
    assert np.flatnonzero(np.isnan(first.xy[0, :, 0])).tolist() == [7]


@pytest.mark.parametrize("inside", ["", ROUTE, f"{ROUTE}/4"])
def test_found_at_any_depth_and_in_a_zip(tmp_path: Path, inside: str) -> None:
    # Given a segment in a chunk's folder, and the same in a zip beside a video
    chunk = segment(tmp_path / "Chunk_1")
    (zips := tmp_path / "zips").mkdir()
    with zipfile.ZipFile(zips / "Chunk_1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(chunk.rglob("frame_*")):
            archive.write(path, f"Chunk_1/{path.relative_to(chunk).as_posix()}")
        archive.writestr(f"Chunk_1/{ROUTE}/4/video.hevc", bytes(1000))
    # When / Then
    for folder in (chunk / inside, zips):
        np.testing.assert_array_equal(read(folder)[1].xy, read(chunk)[1].xy)


@pytest.mark.parametrize(
    ("files", "reason", "text"),
    [
        (
            {"frame_positions": None},
            "missing-file",
            "frame_times: expected frame_positions beside it, got none",
        ),
        (
            {"frame_positions": npy(np.ones((9, 3)))},
            "missing-frames",
            "250 positions as in frame_times, got 9",
        ),
        (
            {"frame_positions": npy(np.ones((250, 3)))},
            "wrong-units",
            "frame 0 is 2 m from the Earth's centre",
        ),
        ({"frame_positions": npy(np.full((250, 3), np.nan))}, "nan-value", "row 0: expected finite numbers"),
        (
            {"frame_positions": npy(np.ones((250, 2)))},
            "malformed-npy",
            "expected an array [N, 3], got [250, 2]",
        ),
        ({"frame_times": npy(np.ones((250, 1)))}, "malformed-npy", "expected an array [N], got [250, 1]"),
        (
            {"frame_times": npy(np.r_[np.arange(125) / 20, 7 + np.arange(125) / 8])},
            "two-rates",
            "expected one rate",
        ),
        ({"frame_times": npy(np.zeros(250))}, "shuffled-frames", "expected rising time stamps"),
        (
            {"frame_times": npy(np.array([]))},
            "missing-frames",
            "expected 0 positions as in frame_times, got 250",
        ),
        (
            {"frame_times": npy(np.arange(250) / 20)[:-9]},
            "malformed-npy",
            "expected 2000 bytes of numbers, got 1991",
        ),
        (
            {"frame_times": npy(np.ones(250)).replace(b", }  ", b", }]  ")},
            "malformed-npy",
            "expected a numpy file: a header",
        ),
        ({"frame_times": b"speed"}, "malformed-npy", "expected a numpy file"),
        ({"frame_times": b""}, "malformed-npy", "expected a numpy file"),
        (
            {"frame_times": npy(np.array([{}]), allow_pickle=True)},
            "malformed-npy",
            "expected numbers, got |O",
        ),
        ({"frame_times": npy(np.array(["a"]))}, "malformed-npy", "expected numbers, got <U1"),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(
    tmp_path: Path, files: dict[str, bytes | None], reason: str, text: str
) -> None:
    with pytest.raises(ScenarioError) as refused:
        read(segment(tmp_path, **files))
    assert refused.value.reason == reason
    assert text in str(refused.value)


def test_an_array_larger_than_its_file_is_refused_before_it_is_made() -> None:
    # Given a header of 8 EB
    data = npy(np.zeros(1)).replace(b"(1,), }", b"(1000000000000000000,), }"[:25])
    # When / Then
    with pytest.raises(ScenarioError, match=r"malformed-npy"):
        array(data, "a", columns=None)


def test_a_segment_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    segment(tmp_path / "Chunk_1")
    shutil.copytree(tmp_path / "Chunk_1", tmp_path / "Chunk_2")
    with pytest.raises(ScenarioError, match=re.escape("duplicate-scenario: segment 4 is in Chunk_1/b0c9")):
        read(tmp_path)


def test_other_folders_are_not_of_this_format(tmp_path: Path) -> None:
    (tmp_path / "robot" / "global_pose").mkdir(parents=True)
    (tmp_path / "robot" / "global_pose" / "frame_times").write_bytes(npy(np.zeros(3)))
    (tmp_path / "a.zip").write_bytes(b"no zip")
    assert comma2k19.detect(walk(tmp_path)) == ()
