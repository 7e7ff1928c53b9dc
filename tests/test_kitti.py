"""KITTI tracking: labels and poses of the real sequences against plain mathematics, and what is refused."""

import math
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedfleet.scenarios import kitti
from fedfleet.scenarios.kitti_tracks import Text, observations
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.tree import walk

CALIB = """P0: 1 0 0 0 0 1 0 0 0 0 1 0
R_rect 1 0 0 0 1 0 0 0 1
Tr_velo_cam 0 -1 0 0 0 0 -1 0 1 0 0 0
Tr_imu_velo 1 0 0 0 0 1 0 0 0 0 1 0
"""


def pose(latitude: float, longitude: float, yaw: float) -> str:
    return " ".join(map(str, [latitude, longitude, 100.0, 0.0, 0.0, yaw, *([0.0] * 24)])) + "\n"


def label(frame: object, track: object, kind: str, x: object, z: object) -> str:
    return f"{frame} {track} {kind} 0 0 0 0 0 1 1 1.5 1.6 4 {x} 1.7 {z} 0\n"


def sequence(folder: Path, labels: str, *, poses: int = 3, calib: str = CALIB, number: str = "0000") -> Path:
    for name, content in {
        "label_02": labels,
        "oxts": "".join(pose(49.0, 8.4 + 1e-5 * i, math.pi / 2) for i in range(poses)),
        "calib": calib,
    }.items():
        (folder / "training" / name).mkdir(parents=True, exist_ok=True)
        (folder / "training" / name / f"{number}.txt").write_text(content)
    return folder


def all_of(folder: Path) -> dict[tuple[str, str, int], np.ndarray]:
    """Positions by drive, track and frame of the drive."""
    recordings = kitti.scan(folder, kitti.detect(walk(folder)))
    found = {}
    for key in recordings.drives:
        for scenario in recordings.read(key):
            first = round(scenario.t0_s * 10)
            for track, xy in zip(scenario.track_ids, scenario.xy, strict=True):
                for frame in np.flatnonzero(~np.isnan(xy[:, 0])):
                    found[scenario.drive, track, first + int(frame)] = xy[frame]
    return found


def test_a_car_that_looks_north_sees_to_its_right_what_is_in_the_east(tmp_path: Path) -> None:
    # Given a car that looks north (yaw 90 degrees) and one object 10 m ahead and 2 m to the right of it
    folder = sequence(tmp_path, label(0, 7, "Car", 2.0, 10.0) + label(0, -1, "DontCare", -1000, -1000))
    # When
    found = all_of(folder)
    # Then it is 2 m east and 10 m north of the origin, and the car goes 0.73 m east in each frame
    np.testing.assert_allclose(found["kitti-0000", "7", 0], [2.0, 10.0], atol=1e-9)
    step = (
        math.radians(1e-5)
        * math.cos(math.radians(49))
        * 6378137
        / math.sqrt(1 - 0.00669437999014 * math.sin(math.radians(49)) ** 2)
    )
    for frame in range(3):
        np.testing.assert_allclose(found["kitti-0000", "ego", frame], [step * frame, 0.0], atol=1e-3)
    assert len(found) == 4


def test_kinds_and_types(tmp_path: Path) -> None:
    # Given tracks seen in all frames and not
    rows = [label(i, 1, "Van", i, 10) + label(i, 2, "Pedestrian", i, 9) for i in range(3)]
    folder = sequence(tmp_path, "".join(rows) + label(1, 3, "Truck", 5, 5) + label(1, 4, "Tram", 5, 9))
    # When
    (scenario,) = kitti.scan(folder, kitti.detect(walk(folder))).read("karlsruhe/kitti-0000")
    # Then
    assert dict(zip(scenario.track_ids, zip(scenario.kinds, scenario.types, strict=True), strict=True)) == {
        "1": ("AGENT", "vehicle"),
        "2": ("OTHERS", "pedestrian"),
        "3": ("OTHERS", "truck"),
        "4": ("OTHERS", "unknown"),
        "ego": ("AV", "vehicle"),
    }
    assert (scenario.rate_hz, scenario.frames, scenario.region) == (10.0, 3, "karlsruhe")


def test_the_publishers_three_archives_side_by_side(tmp_path: Path) -> None:
    # Given them, one with the poses of a sequence without labels
    inside = sequence(tmp_path / "unpacked", label(0, 1, "Car", 1, 2))
    folder = tmp_path / "zips"
    folder.mkdir()
    for part, name in {"label_02": "label_2", "oxts": "oxts", "calib": "calib"}.items():
        with zipfile.ZipFile(folder / f"data_tracking_{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(inside / "training" / part / "0000.txt", f"training/{part}/0000.txt")
            if part != "label_02":
                archive.write(inside / "training" / part / "0000.txt", f"testing/{part}/0000.txt")
    # When / Then they read as the unpacked ones
    assert all_of(folder).keys() == all_of(inside).keys()


def test_counts_are_those_of_the_data_folder(data_dir: Path) -> None:
    # Given the real sequences, and their labels read here
    folder = data_dir / "kitti-tracking"
    types: Counter[str] = Counter()
    with zipfile.ZipFile(folder / "kitti.zip") as archive:
        names = [name for name in archive.namelist() if name.startswith("label/")]
        for name in names:
            rows = [line.split() for line in archive.read(name).decode().splitlines()]
            types.update({row[1]: row[2] for row in rows if row[2] != "DontCare"}.values())
    # When
    recordings = kitti.scan(folder, kitti.detect(walk(folder)))
    tracks = {(drive, track) for drive, track, _ in all_of(folder)}
    # Then
    assert len(recordings.drives) == len(names) == 16
    assert round(sum(drive.seconds for drive in recordings.drives.values()) * 10) == 6216
    assert len([1 for _, track in tracks if track != "ego"]) == sum(types.values()) == 741
    assert (types["Car"], types["Pedestrian"], types["Van"], types["Cyclist"]) == (453, 146, 43, 28)


def test_positions_are_those_of_plain_mathematics(data_dir: Path) -> None:
    # Given every label of the real sequences, moved into the plane here: matrix by matrix
    expected: dict[tuple[str, str, int], list[float]] = {}
    with zipfile.ZipFile(data_dir / "kitti-tracking" / "kitti.zip") as archive:
        for name in [name for name in archive.namelist() if name.startswith("label/")]:
            number = name[-8:-4]
            texts = [archive.read(f"{part}/{number}.txt").decode() for part in ("label", "oxts", "calib")]
            expected.update(by_hand(f"kitti-{number}", *texts))
    # When
    found = all_of(data_dir / "kitti-tracking")
    # Then
    assert found.keys() == expected.keys()
    keys = sorted(expected)
    apart = np.array([found[key] for key in keys]) - np.array([expected[key] for key in keys])
    assert np.abs(apart).max() < 1e-6


def by_hand(drive: str, labels: str, oxts: str, calib: str) -> dict[tuple[str, str, int], list[float]]:
    values = {
        line.split()[0].rstrip(":"): [float(v) for v in line.split()[1:]]
        for line in calib.splitlines()
        if line
    }
    rect, velo, imu = np.eye(4), np.eye(4), np.eye(4)
    rect[:3, :3] = np.reshape(values["R_rect"], (3, 3))
    velo[:3], imu[:3] = (np.reshape(values[name], (3, 4)) for name in ("Tr_velo_cam", "Tr_imu_velo"))
    back = [np.linalg.inv(each) for each in (imu, velo, rect)]
    poses = [[float(value) for value in line.split()[:6]] for line in oxts.splitlines()]
    to_plane = np.linalg.inv(frame_of(*poses[0][:3]))
    cars = [to_plane @ frame_of(*row[:3]) @ turn(*row[3:]) for row in poses]
    found = {(drive, "ego", i): list(car[:2, 3]) for i, car in enumerate(cars)}
    for row in (line.split() for line in labels.splitlines()):
        if row[2] != "DontCare":
            point = np.array([*map(float, row[13:16]), 1.0])
            world = cars[int(row[0])] @ (back[0] @ (back[1] @ (back[2] @ point)))
            found[drive, row[1], int(row[0])] = list(world[:2])
    return found


def frame_of(latitude: float, longitude: float, height: float) -> np.ndarray:
    """East, north, up at a place, as columns of a 4x4 matrix of Earth-centred coordinates."""
    a, b = 6378137.0, 6356752.314245179
    phi, lam = math.radians(latitude), math.radians(longitude)
    n = a * a / math.hypot(a * math.cos(phi), b * math.sin(phi))
    matrix = np.eye(4)
    matrix[:3, 3] = (
        (n + height) * math.cos(phi) * math.cos(lam),
        (n + height) * math.cos(phi) * math.sin(lam),
        (n * b * b / (a * a) + height) * math.sin(phi),
    )
    matrix[:3, 2] = math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)
    matrix[:3, 0] = -math.sin(lam), math.cos(lam), 0.0
    matrix[:3, 1] = np.cross(matrix[:3, 2], matrix[:3, 0])
    return matrix


def turn(roll: float, pitch: float, yaw: float) -> np.ndarray:
    about = []
    for axis, angle in ((2, yaw), (1, pitch), (0, roll)):
        one = np.eye(4)
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        one[i, i] = one[j, j] = math.cos(angle)
        one[i, j], one[j, i] = -math.sin(angle), math.sin(angle)
        about.append(one)
    return about[0] @ about[1] @ about[2]


@pytest.mark.parametrize(
    ("labels", "calib", "reason", "text"),
    [
        (label(0, 1, "Car", "nan", 1), CALIB, "nan-value", "0000.txt line 1: expected finite numbers"),
        (label(0, 1, "Car", "x", 1), CALIB, "nan-value", "line 1: expected a number, got 'x'"),
        (
            label(0, 1, "Car", 1, 1).replace(" ", ","),
            CALIB,
            "malformed-row",
            "17 columns with spaces between, got 1",
        ),
        (label(3, 1, "Car", 1, 1), CALIB, "missing-frames", "line 1: expected frame 0 to 2"),
        (label(0.5, 1, "Car", 1, 1), CALIB, "malformed-row", "expected a whole number, got 0.5"),
        (
            label(0, 1, "Car", 1, 1) * 2,
            CALIB,
            "duplicate-row",
            "track 1 frame 0: expected 1 observation, got 2",
        ),
        (label(0, 1, "Horse", 1, 1), CALIB, "bad-type", "got 'Horse'"),
        (
            label(0, 1, "Car", 1, 1) + label(1, 1, "Van", 1, 1),
            CALIB,
            "bad-type",
            "line 2: track 1 is Car and Van, expected one type",
        ),
        (
            label(0, 1, "Car", 1, 1),
            "R_rect 1 2 3\n",
            "bad-calibration",
            "9 numbers of R_rect or R0_rect, got 3",
        ),
        (label(0, 1, "Car", 1, 1), "", "bad-calibration", "got none"),
        (
            label(0, 1, "Car", 1, 1),
            CALIB.replace("R_rect 1", "R_rect 0"),
            "bad-calibration",
            "cannot be undone",
        ),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(
    tmp_path: Path, labels: str, calib: str, reason: str, text: str
) -> None:
    folder = sequence(tmp_path, labels, calib=calib)
    recordings = kitti.scan(folder, kitti.detect(walk(folder)))
    with pytest.raises(ScenarioError) as refused:
        list(recordings.read("karlsruhe/kitti-0000"))
    assert refused.value.reason == reason
    assert text in str(refused.value)


def test_a_sequence_without_its_pose_is_refused(tmp_path: Path) -> None:
    folder = sequence(tmp_path, label(0, 1, "Car", 1, 1))
    (folder / "training" / "oxts" / "0000.txt").unlink()
    with pytest.raises(
        ScenarioError, match=re.escape("missing-file: training/label_02/0000.txt: expected oxts/0000.txt")
    ):
        kitti.scan(folder, kitti.detect(walk(folder)))


def test_a_sequence_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    folder = sequence(tmp_path, label(0, 1, "Car", 1, 1))
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(folder / "training" / "calib" / "0000.txt", "calib/0000.txt")
    with pytest.raises(
        ScenarioError, match=re.escape("duplicate-drive: calib of sequence 0000 is in more.zip")
    ):
        kitti.scan(folder, kitti.detect(walk(folder)))


def test_a_truncated_archive_is_refused(tmp_path: Path, data_dir: Path) -> None:
    whole = (data_dir / "kitti-tracking" / "kitti.zip").read_bytes()
    (tmp_path / "kitti.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScenarioError, match=re.escape("not-a-zip: kitti.zip: expected a whole zip archive")):
        kitti.scan(tmp_path, kitti.detect(walk(tmp_path)))


def test_other_folders_are_not_of_this_format(tmp_path: Path) -> None:
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "notes.txt").write_text("hello")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("oxts/0000.txt", "")
    assert kitti.detect(walk(tmp_path)) == kitti.detect(tmp_path) == ()


def test_no_pose_at_all_is_refused() -> None:
    with pytest.raises(ScenarioError, match="missing-frames: o: expected a row for each frame, got none"):
        observations(Text("l", b""), Text("o", b""), Text("c", CALIB.encode()), drive="d")


def test_a_frame_whose_pose_was_lost_moves_no_other(tmp_path: Path) -> None:
    # Given a car that goes north by one step each frame, and one that stands 10 m ahead of it in the first
    def poses(lost: set[int]) -> str:
        return "".join("\n" if i in lost else pose(49.0 + 1e-5 * i, 8.4, math.pi / 2) for i in range(12))

    step = 1.1122  # metres of 1e-5 degrees of latitude there
    labels = "".join(label(i, 1, "Car", 0.0, 10.0 - step * i) for i in range(9))  # they end before the poses
    whole, holed = (sequence(tmp_path / name, labels, poses=12) for name in ("whole", "holed"))
    for folder, lost in ((whole, set[int]()), (holed, {0, 4, 5, 11})):
        (folder / "training/oxts/0000.txt").write_text(poses(lost))
    # When
    expected, found = all_of(whole), all_of(holed)
    # Then every place is the same but for the origin, which is the first pose that is there
    kept = {frame for frame in range(12) if ("kitti-0000", "ego", frame) in found}
    assert kept == {1, 2, 3, 6, 7, 8, 9, 10}
    assert {frame for _, track, frame in found if track == "1"} == {1, 2, 3, 6, 7, 8}
    origin = expected["kitti-0000", "ego", 1]
    for key, place in found.items():
        np.testing.assert_allclose(place + origin, expected[key], atol=1e-6)
    recordings = kitti.scan(holed, kitti.detect(walk(holed)))
    list(recordings.read("karlsruhe/kitti-0000"))
    assert recordings.problems == {"no-pose": 3}
