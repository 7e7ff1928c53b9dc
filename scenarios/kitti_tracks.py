"""One sequence of the KITTI tracking benchmark: labels, calibration and the car's own pose become tracks in a plane.

A label is the centre of a box's bottom in rectified camera coordinates (x right, y down, z forward), by `R_rect`,
`Tr_velo_cam` and `Tr_imu_velo` in those of the GPS/IMU unit (x forward, y left, z up), and by its latitude, longitude,
height, roll, pitch and yaw in the tangent plane at the sequence's first frame. After A. Geiger et al., "Vision meets
Robotics: The KITTI Dataset", IJRR 2013, section III, and the devkit's readme.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.local_plane import Plane, axes, ecef
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.windows import Observations
from fedfleet.scenarios.words import in_words

__all__ = ["EGO", "NO_POSE", "RATE_HZ", "REGION", "Text", "observations"]

RATE_HZ: Final = 10.0
REGION: Final = "karlsruhe"
EGO: Final = "ego"
NO_POSE: Final = "no-pose"

_LABEL_COLUMNS: Final = 17
_OXTS_COLUMNS: Final = 30
_IGNORED: Final = "DontCare"
_TYPES: Final = {
    "Car": "vehicle",
    "Van": "vehicle",
    "Truck": "truck",
    "Pedestrian": "pedestrian",
    "Person": "pedestrian",
    "Person_sitting": "pedestrian",
    "Cyclist": "cyclist",
    "Tram": "unknown",
    "Misc": "unknown",
}
_MATRICES: Final = {
    "R_rect": ("R_rect", "R0_rect"),
    "Tr_velo_cam": ("Tr_velo_cam", "Tr_velo_to_cam"),
    "Tr_imu_velo": ("Tr_imu_velo", "Tr_imu_to_velo"),
}

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Text:
    """A file's content, and its name for messages."""

    where: str
    data: bytes


def observations(
    label: Text, oxts: Text, calib: Text, *, drive: str, problems: Counter[str] | None = None
) -> Observations:
    """All labelled objects of a sequence, and the car itself as the track `ego`.

    Line i of the poses is that of frame i − 1; an empty one is a frame whose pose was lost: the car is not seen there,
    and labels of it are counted in `problems` (`no-pose`). Raises ScenarioError naming file and line for a row of
    another length, a text where a number should be, an unknown type, one track of two types, and a label of a frame
    beyond the poses.
    """
    lines = _rows(oxts, _OXTS_COLUMNS)
    poses = _numbers(lines, slice(0, 6), oxts.where)
    if not len(poses):
        raise ScenarioError("missing-frames", f"{oxts.where}: expected a row for each frame, got none")
    posed = np.array([line - 1 for line, _ in lines], dtype=np.int64)
    pose_of = np.full(len(oxts.data.splitlines()), -1, dtype=np.int64)
    pose_of[posed] = np.arange(len(posed))
    rows = [(line, row) for line, row in _rows(label, _LABEL_COLUMNS) if row[2] != _IGNORED.encode()]
    frame, ids = (_integers(rows, column, label.where) for column in (0, 1))
    beyond = (frame < 0) | (frame >= len(pose_of))
    if beyond.any():
        at = int(beyond.argmax())
        text = f"expected frame 0 to {len(pose_of) - 1} as in {oxts.where}, got {frame[at]}"
        raise ScenarioError("missing-frames", f"{label.where} line {rows[at][0]}: {text}")
    found, track = np.unique(ids, return_inverse=True)
    types = _types(rows, track, len(found), label.where)
    in_imu = _from_camera(calib, _numbers(rows, slice(13, 16), label.where))
    placed = np.flatnonzero(pose_of[frame] >= 0)
    if problems is not None and len(placed) < len(frame):
        problems[NO_POSE] += len(frame) - len(placed)
    own, others = _in_plane(poses, pose_of[frame[placed]], in_imu[placed])
    return Observations(
        where=label.where,
        region=REGION,
        drive=drive,
        rate_hz=RATE_HZ,
        t0_s=0.0,
        names=[EGO, *(str(one) for one in found)],
        types=["vehicle", *types],
        track=np.concatenate([np.zeros(len(poses), dtype=np.int64), track[placed] + 1]),
        frame=np.concatenate([posed, frame[placed]]),
        xy=np.concatenate([own, others]),
        av=0,
    )


def _in_plane(poses: Doubles, pose: NDArray[np.int64], in_imu: Doubles) -> tuple[Doubles, Doubles]:
    """The car's positions float64[T, 2] and those of points float64[N, 3] seen from it at poses int64[N]."""
    latitude, longitude = np.radians(poses[:, 0]), np.radians(poses[:, 1])
    places = ecef(latitude, longitude, poses[:, 2])
    plane = Plane.at(places[0])
    turned = np.swapaxes(axes(latitude, longitude), 1, 2) @ _rotations(poses[:, 3:6])  # car to Earth
    seen = places[pose] + np.einsum("nij,nj->ni", turned[pose], in_imu)
    return plane.local(places)[:, :2], plane.local(seen)[:, :2]


def _rotations(angles: Doubles) -> Doubles:
    """Car to east, north, up float64[T, 3, 3]: yaw about z, then pitch about y, then roll about x (rad)."""
    (sr, sp, sy), (cr, cp, cy) = np.sin(angles).T, np.cos(angles).T
    rows = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def _from_camera(calib: Text, points: Doubles) -> Doubles:
    """Points float64[N, 3] of the rectified camera, in the frame of the GPS/IMU unit."""
    found = _calibration(calib)
    whole = _square(found["R_rect"], 3) @ _square(found["Tr_velo_cam"], 4) @ _square(found["Tr_imu_velo"], 4)
    try:
        inverse = np.linalg.inv(whole)
    except np.linalg.LinAlgError as error:
        raise ScenarioError("bad-calibration", f"{calib.where}: the rotations cannot be undone") from error
    return np.asarray(points @ inverse[:3, :3].T + inverse[:3, 3])


def _calibration(calib: Text) -> dict[str, Doubles]:
    by_name = {}
    for line in calib.data.splitlines():
        first, _, rest = line.strip().partition(b" ")
        by_name[first.decode(errors="replace").rstrip(":")] = rest.split()
    found = {}
    for name, names in _MATRICES.items():
        values = next((by_name[each] for each in names if each in by_name), None)
        expected = 9 if name == "R_rect" else 12
        if values is None or len(values) != expected:
            got = "none" if values is None else str(len(values))
            text = f"{calib.where}: expected {expected} numbers of {' or '.join(names)}, got {got}"
            raise ScenarioError("bad-calibration", text)
        found[name] = _numbers([(0, values)], slice(0, expected), f"{calib.where}: {name}")[0]
    return found


def _square(values: Doubles, columns: int) -> Doubles:
    matrix = np.eye(4)
    matrix[:3, :columns] = values.reshape(3, columns)
    return matrix


def _rows(text: Text, columns: int) -> list[tuple[int, list[bytes]]]:
    rows = [(number, line.split()) for number, line in enumerate(text.data.splitlines(), 1)]
    for number, row in rows:
        if row and len(row) != columns:
            got = f"{columns} columns with spaces between, got {len(row)}"
            raise ScenarioError("malformed-row", f"{text.where} line {number}: expected {got}")
    return [(number, row) for number, row in rows if row]


def _numbers(rows: list[tuple[int, list[bytes]]], columns: slice, where: str) -> Doubles:
    """Columns float64[rows, columns], all finite."""
    width = columns.stop - columns.start
    values = np.empty((len(rows), width))
    for at, (line, row) in enumerate(rows):
        try:
            values[at] = [float(each) for each in row[columns]]
        except ValueError as error:
            raise ScenarioError("nan-value", f"{where} line {line}: {in_words(error)}") from error
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        at, column = (int(one) for one in bad[0])
        text = f"{where} line {rows[at][0]}: expected finite numbers, got {values[at, column]}"
        raise ScenarioError("nan-value", text)
    return values


def _integers(rows: list[tuple[int, list[bytes]]], column: int, where: str) -> NDArray[np.int64]:
    values = _numbers(rows, slice(column, column + 1), where)[:, 0]
    whole = np.rint(values)
    bad = (whole != values) | (np.abs(values) > 1e9)
    if bad.any():
        at = int(bad.argmax())
        raise ScenarioError(
            "malformed-row", f"{where} line {rows[at][0]}: expected a whole number, got {values[at]}"
        )
    return whole.astype(np.int64)


def _types(
    rows: list[tuple[int, list[bytes]]], track: NDArray[np.int64], count: int, where: str
) -> list[str]:
    named: list[str] = [""] * count
    for (line, row), at in zip(rows, track, strict=True):
        name = row[2].decode(errors="replace")
        if name not in _TYPES:
            text = f"{where} line {line}: expected a type of {', '.join(_TYPES)}, got {name!r:.40}"
            raise ScenarioError("bad-type", text)
        if named[at] not in {"", name}:
            text = (
                f"{where} line {line}: track {row[1].decode()} is {named[at]} and {name}, expected one type"
            )
            raise ScenarioError("bad-type", text)
        named[at] = name
    return [_TYPES[name] for name in named]
