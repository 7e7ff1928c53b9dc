"""Reads comma2k19: the global pose of a car in segments of a minute, numpy files without an ending.

A route is a folder `<car>|<date>--<time>` (or `_` for `|`) of numbered segments, each with `global_pose/frame_times`,
`frame_positions` (Earth-centred metres) and others that are not needed. Of objects it has none: the car itself is the
only track. After H. Schafer et al., "A Commute in Data: The comma2k19 Dataset", arXiv:1812.05752, and its readme.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.drives import Drives
from fedfleet.scenarios.local_plane import Plane
from fedfleet.scenarios.members import Member, is_zip, plain_file, zip_members
from fedfleet.scenarios.npy import array
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.tree import Tree, tree_of
from fedfleet.scenarios.windows import Observations, clock, cut, window_frames

__all__ = ["REGION", "detect", "scan"]

REGION: Final = "california"
"""Highway 280 between San Jose and San Francisco, all of it."""
RATE_HZ: Final = 20.0

_NEEDED: Final = ("frame_times", "frame_positions")
_PATH: Final = re.compile(
    r"(?:\A|.*/)([0-9a-f]{16})[|_](\d{4}-\d\d-\d\d--\d\d-\d\d-\d\d)/(\d{1,6})/global_pose/(frame_times|frame_positions)\Z"
)
_EARTH_M: Final = (6.3e6, 6.5e6)
"""So far from the Earth's centre is whatever drives."""

_Segments = Mapping[int, Mapping[str, Member]]


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """The segments and zips with such a route inside; less than a segment where the folder is one, or its poses."""
    tree = tree_of(where)
    found = [path for path in tree.ending(".zip") if _of_zip(path)]
    poses = [path.parent for path in tree.named(*_NEEDED) if _PATH.match(path.resolve().as_posix())]
    segments = {pose if pose.parent == tree.folder else pose.parent for pose in poses if pose != tree.folder}
    alone = [
        tree.folder / file for file in _NEEDED if tree.folder in poses and (tree.folder / file).is_file()
    ]
    return (*found, *sorted(segments), *alone)


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Drives:
    """Every route, by the lengths of its segments' files; refused is a file that is missing or there twice."""
    routes: dict[str, dict[int, dict[str, Member]]] = defaultdict(lambda: defaultdict(dict))
    for path in sources:
        for member, name in _of_zip(path) if is_zip(path) else _of_folder(folder, path):
            match = _PATH.match(name)
            if match is None:
                continue
            car, start, number, file = match.groups()
            parts = routes[f"{car}-{start}"][int(number)]
            with account.refusing(member.where):
                if file in parts:
                    text = f"segment {number} is in {parts[file].where} and again in {member.where}"
                    raise ScenarioError("duplicate-scenario", text)
                parts[file] = member
    found = []
    for route, segments in routes.items():
        sizes = {}
        for number_, parts in segments.items():
            with account.refusing(*(member.where for member in parts.values())):
                sizes[number_] = _frames(parts)
        if sizes:
            car, _, start = route.partition("-")
            name = f"{car[:8]}-{start.replace('--', '-')}"
            pieces = sum(-(-size // window_frames(RATE_HZ)) for size in sizes.values())
            drive = Drive(REGION, name, pieces, sum(sizes.values()) / RATE_HZ)
            sound = {number_: segments[number_] for number_ in sizes}
            first = sound[min(sound)]["frame_times"].where
            found.append((drive, partial(_read, name, sound), first))
    return Drives.of(found, account)


def _frames(parts: Mapping[str, Member]) -> int:
    """How many frames a segment has."""
    missing = [file for file in _NEEDED if file not in parts]
    if missing:
        where = next(iter(parts.values())).where
        raise ScenarioError("missing-file", f"{where}: expected {missing[0]} beside it, got none")
    return len(array(parts["frame_times"].read(), parts["frame_times"].where, columns=None))


def _read(name: str, segments: _Segments, problems: Counter[str]) -> Iterator[Scenario]:
    """The segments one after the other, in the plane that touches the Earth where the first begins."""
    plane: Plane | None = None
    for number in sorted(segments):
        times, positions = (segments[number][file] for file in _NEEDED)
        stamps = array(times.read(), times.where, columns=None)
        xyz = array(positions.read(), positions.where, columns=3)
        if len(xyz) != len(stamps):
            text = f"{positions.where}: expected {len(stamps)} positions as in frame_times, got {len(xyz)}"
            raise ScenarioError("missing-frames", text)
        _, frame = clock(stamps, times.where, rate_hz=RATE_HZ)
        with np.errstate(over="ignore"):
            distance = np.linalg.norm(xyz, axis=1)
        off = ~((distance > _EARTH_M[0]) & (distance < _EARTH_M[1]))
        if off.any():
            at = int(off.argmax())
            text = f"frame {at} is {distance[at]:.0f} m from the Earth's centre, expected metres of ECEF"
            raise ScenarioError("wrong-units", f"{positions.where}: {text}")
        plane = plane or Plane.at(xyz[0])
        seen = Observations(
            where=positions.where,
            region=REGION,
            drive=f"{name}-{number:03d}",
            rate_hz=RATE_HZ,
            t0_s=float(stamps[0]),
            names=["ego"],
            types=["vehicle"],
            track=np.zeros(len(frame), dtype=np.int64),
            frame=frame,
            xy=plane.local(xyz)[:, :2],
            av=0,
        )
        for scenario in cut(seen, problems=problems):
            yield replace(scenario, drive=name)


def _of_folder(folder: Path, source: Path) -> Iterator[tuple[Member, str]]:
    pose = source if source.name == "global_pose" else source / "global_pose"
    for path in [source] if source.is_file() else [pose / file for file in _NEEDED]:
        if path.is_file():
            yield plain_file(folder, path, ""), path.resolve().as_posix()


def _of_zip(path: Path) -> list[tuple[Member, str]]:
    try:
        found = [member for file in _NEEDED for member in zip_members(path, f"global_pose/{file}")]
    except ScenarioError:
        return []
    named = [(member, member.where.partition(": ")[2]) for member in found]
    return [(member, name) for member, name in named if _PATH.match(name)]
