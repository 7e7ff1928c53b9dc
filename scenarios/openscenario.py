"""Reads OpenSCENARIO 1.x files with trajectories: `*.xosc`, plain or in zips; each is one drive.

A region is the road network's file (`e6mini`), a drive the name of the file. Catalogues beside them are left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.drives import Drives
from fedfleet.scenarios.members import Member, members, open_archive
from fedfleet.scenarios.openscenario_xml import Entity, Script, read_script
from fedfleet.scenarios.places import place_ids
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.tree import Tree, tree_of
from fedfleet.scenarios.windows import Observations, cut, window_frames

__all__ = ["NO_TRAJECTORY", "RATE_HZ", "detect", "observations", "scan"]

RATE_HZ: Final = 10.0
"""The clock of trajectories whose vertices are not on one of their own."""
NO_TRAJECTORY: Final = "no-trajectory"
MAX_SECONDS: Final = 24 * 3600.0

_PERIODS_S: Final = (0.01, 0.5)
_TOLERANCE_S: Final = 0.001

Doubles = NDArray[np.float64]
Integers = NDArray[np.int64]


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """The files of that ending, and zips with such."""
    tree = tree_of(where)
    zips = [path for path in tree.ending(".zip") if _has_scripts(path)]
    return (*zips, *tree.ending(".xosc", packed=True))


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Drives:
    """Every file, read for its length; refused is one that has no trajectory, and as `read_script`."""
    scripts: list[tuple[Member, Observations]] = []
    for path in sources:
        with account.refusing(path.relative_to(folder).as_posix()):
            for member in members(folder, path, ".xosc"):
                with account.refusing(member.where):
                    script = read_script(member.text(), member.where)
                    if script is not None:
                        scripts.append((member, observations(script, member.where, name=member.stem)))
    regions = place_ids(seen.region for _, seen in scripts)
    names = place_ids(seen.drive for _, seen in scripts)
    found = []
    for member, seen in scripts:
        frames = int(seen.frame.max()) + 1
        pieces = -(-frames // window_frames(seen.rate_hz))
        drive = Drive(regions[seen.region], names[seen.drive], pieces, frames / seen.rate_hz)
        found.append((drive, partial(_read, member, drive), member.where))
    return Drives.of(found, account)


def _read(member: Member, drive: Drive, problems: Counter[str]) -> Iterator[Scenario]:
    script = read_script(member.text(), member.where)
    if script is None:
        raise ScenarioError("changed-file", f"{member.where}: had a storyboard before, has none")
    unknown = sum(1 for entity in script.entities if not entity.pieces and entity.stands is None)
    problems.update({NO_TRAJECTORY: unknown} if unknown else {})
    seen = observations(script, member.where, name=member.stem)
    yield from cut(replace(seen, region=drive.region, drive=drive.drive), problems=problems)


def observations(script: Script, where: str, *, name: str) -> Observations:
    """All positions that a script gives: of its vertices, and on the straight lines between them.

    Region and drive are the names of the road network and of the file, not yet ids.

    The clock is that of the vertices where they share one of 2 to 100 Hz, else RATE_HZ.
    """
    known = [entity for entity in script.entities if entity.pieces or entity.stands is not None]
    times = [piece for entity in known for piece, _ in entity.pieces]
    first, last = min(piece[0] for piece in times), max(piece[-1] for piece in times)
    if last - first > MAX_SECONDS:
        text = f"{where}: trajectories over {last - first:.0f} s, limit {MAX_SECONDS:.0f} s"
        raise ScenarioError("wrong-units", text)
    period = _period(times, first)
    frames = int(np.floor((last - first) / period + _TOLERANCE_S)) + 1
    each = [_track(entity, first, period, frames) for entity in known]
    egos = [at for at, entity in enumerate(known) if entity.is_ego]
    return Observations(
        where=where,
        region=script.road or "openscenario",
        drive=name,
        rate_hz=round(1.0 / period, 9),
        t0_s=float(first),
        names=[entity.name for entity in known],
        types=[entity.type for entity in known],
        track=np.repeat(np.arange(len(each)), [len(frame) for frame, _ in each]),
        frame=np.concatenate([frame for frame, _ in each]),
        xy=np.concatenate([xy for _, xy in each]),
        av=egos[0] if len(egos) == 1 else None,
    )


def _period(times: Sequence[Doubles], first: float) -> float:
    """The median step of all vertices where all of them are on its grid, else that of RATE_HZ."""
    period = round(float(np.median(np.concatenate([np.diff(piece) for piece in times]))), 6)
    if _PERIODS_S[0] <= period <= _PERIODS_S[1]:
        since = np.concatenate(times) - first
        if (np.abs(since - np.rint(since / period) * period) <= _TOLERANCE_S).all():
            return period
    return 1.0 / RATE_HZ


def _track(entity: Entity, first: float, period: float, frames: int) -> tuple[Integers, Doubles]:
    """Frames and positions of one entity; a vertex on the grid is taken as it is."""
    if not entity.pieces:
        return np.arange(frames), np.tile(np.array(entity.stands, dtype=np.float64), (frames, 1))
    found: dict[int, Doubles] = {}
    for times, xy in entity.pieces:
        at = np.rint((times - first) / period).astype(np.int64)
        near = np.abs(times - first - at * period) <= _TOLERANCE_S
        start = int(np.ceil((times[0] - first) / period - _TOLERANCE_S))
        stop = int(np.floor((times[-1] - first) / period + _TOLERANCE_S)) + 1
        grid = np.arange(start, stop)
        x, y = (np.interp(first + grid * period, times, xy[:, axis]) for axis in (0, 1))
        found.update(zip(grid.tolist(), np.column_stack([x, y]), strict=True))
        found.update(zip(at[near].tolist(), xy[near], strict=True))
    order = sorted(found)
    return np.array(order, dtype=np.int64), np.array([found[frame] for frame in order])


def _has_scripts(path: Path) -> bool:
    try:
        archive = open_archive(path)
    except ScenarioError:
        return False
    with archive.zip:
        return bool(archive.ending(".xosc"))
