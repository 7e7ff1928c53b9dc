"""Reads object lists from MCAP files and ROS 2 bags; which messages, see `object_lists`. Images: `camera_bags`.

A file is a bag; a folder with `metadata.yaml` is one bag whatever files it is split into, and so are files whose names
differ in numbers only and whose times follow each other. A bag is a drive, or several where its clock was set. A
recording tells no place: the region is the folder one level below in which bags lie (`FOLDER/karlsruhe/monday.mcap`),
else `local`.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive
from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.bag_files import Topic, packed
from fedfleet.scenarios.camera_messages import IMAGE
from fedfleet.scenarios.drives import Drives
from fedfleet.scenarios.object_lists import Listed, Reader, reader
from fedfleet.scenarios.places import place_id, place_ids
from fedfleet.scenarios.records import Scenario, ScenarioError
from fedfleet.scenarios.stamps import Part, follow, natural, stretches, times, trip_name
from fedfleet.scenarios.tree import Tree, tree_of
from fedfleet.scenarios.windows import Observations, clock, cut, recordings

__all__ = ["CAMERA_ONLY", "REGION", "UNTRACKED", "detect", "scan"]

REGION: Final = "local"
UNTRACKED: Final = "untracked-object"
CAMERA_ONLY: Final = "camera-only-bag"
MAX_OBSERVATIONS: Final = 50_000_000

_FIXED: Final = ("map", "odom", "world", "utm", "local", "enu")
_EGO: Final = ("ego", "ego_vehicle", "hero")
_METADATA: Final = "metadata.yaml"
_SUFFIXES: Final = (".mcap", ".db3")


class _CameraOnlyError(ScenarioError):
    """A bag has no object list, but camera images."""


@dataclass(frozen=True)
class _Bag:
    region: str
    name: str
    files: tuple[tuple[Path, str], ...]

    @property
    def where(self) -> str:
        return self.files[0][1]


@dataclass
class _Seen:
    """Everything that was observed, as it comes."""

    stamps: array[float] = field(default_factory=lambda: array("d"))
    written: array[float] = field(default_factory=lambda: array("d"))
    message: array[int] = field(default_factory=lambda: array("q"))
    track: array[int] = field(default_factory=lambda: array("q"))
    xy: array[float] = field(default_factory=lambda: array("d"))
    names: dict[str, int] = field(default_factory=dict)
    types: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    frame_id: str = ""
    untracked: int = 0
    refused: ScenarioError | None = None

    def add(self, listed: Listed, written_s: float, where: str) -> None:
        """Add a message; ScenarioError for coordinates that move with a car, and for too much of it."""
        frame = listed.frame_id.lstrip("/").lower()
        if listed.things and frame not in (_FIXED if not self.frame_id else (self.frame_id,)):
            expected = self.frame_id or f"a frame that stands, {', '.join(_FIXED)}"
            text = f"{where}: expected {expected}, got {listed.frame_id!r:.60}"
            raise ScenarioError("moving-frame", text)
        self.frame_id = frame if listed.things else self.frame_id
        self.stamps.append(listed.stamp_s)
        self.written.append(written_s)
        for thing in listed.things:
            if not thing.id:
                self.untracked += 1
                continue
            track = self.names.setdefault(thing.id, len(self.names))
            self.types[track][thing.type] += 1
            self.message.append(len(self.stamps) - 1)
            self.track.append(track)
            self.xy.extend((thing.x, thing.y))
        if len(self.track) > MAX_OBSERVATIONS:
            raise ScenarioError("file-too-large", f"{where}: more than {MAX_OBSERVATIONS} observations")


def detect(where: Tree | Path) -> tuple[Path, ...]:
    """The MCAP and SQLite files of bags."""
    tree = tree_of(where)
    return tuple(tree.ending(*_SUFFIXES))


def scan(folder: Path, sources: Sequence[Path], account: Account = STRICT) -> Drives:
    """Every bag, read for its length; refused is one without an object list that is read here.

    A bag that has camera images instead is named as another task's; see `camera_bags`.
    """
    read: list[tuple[_Bag, list[Observations]]] = []
    for bag in _bags(folder, sources):
        try:
            read.append((bag, _observations(bag, Counter())))
        except _CameraOnlyError as error:
            text = f"{error.detail}; it has camera images: try --task camera_steering"
            account.refuse(ScenarioError(CAMERA_ONLY, text), *(where for _, where in bag.files))
        except ScenarioError as error:
            account.refuse(error, *(where for _, where in bag.files))
    found = []
    for each, parts in _joined(read):
        for number, seen in enumerate(parts):
            drive = Drive(each.region, seen.drive, *recordings(seen.frame, seen.rate_hz))
            found.append((drive, partial(_read, each, number), each.where))
    return Drives.of(found, account)


def _bags(folder: Path, sources: Sequence[Path]) -> list[_Bag]:
    """Each file, or folder with `metadata.yaml`, as a bag; names that fold to one id are told apart."""
    homes: dict[Path, list[tuple[Path, str]]] = defaultdict(list)
    for path in sorted(sources, key=lambda each: natural(each.as_posix())):
        home = path.parent if (path.parent / _METADATA).is_file() else path
        homes[home].append((path, path.relative_to(folder).as_posix()))
    places, names = {}, {}
    for home in homes:
        above = () if home == folder else home.relative_to(folder).parts[:-1]
        places[home] = above[0] if above else REGION
        names[home] = home.stem if home.is_file() else home.resolve().name
    regions = place_ids(places.values())
    trips = {
        place: place_ids(names[home] for home in homes if places[home] == place)
        for place in set(places.values())
    }
    return [
        _Bag(regions[places[home]], trips[places[home]][names[home]], tuple(files))
        for home, files in homes.items()
    ]


def _joined(read: Sequence[tuple[_Bag, list[Observations]]]) -> list[tuple[_Bag, list[Observations]]]:
    """Bags with what they show, the parts of one trip put together: neighbouring seconds are in one drive."""
    alone = [
        one for one in read if len(one[0].files) > 1 or (one[0].files[0][0].parent / _METADATA).is_file()
    ]
    by_place: dict[Path, list[tuple[_Bag, list[Observations]]]] = defaultdict(list)
    for one in read:
        if one not in alone:
            by_place[one[0].files[0][0].parent].append(one)
    whole = list(alone)
    for found in by_place.values():
        names = [bag.files[0][0].stem for bag, _ in found]
        parts = [
            Part(name, seen[0].t0_s, max(each.t0_s + each.frame.max() / each.rate_hz for each in seen))
            for name, (_, seen) in zip(names, found, strict=True)
        ]
        for trip in follow(parts):
            if len(trip) == 1:
                whole.append(found[trip[0]])
                continue
            name = place_id(trip_name([names[at] for at in trip]))
            bag = _Bag(found[trip[0]][0].region, name, tuple(found[at][0].files[0] for at in trip))
            whole.append((bag, _observations(bag, Counter())))
    return whole


def _read(bag: _Bag, number: int, problems: Counter[str]) -> Iterator[Scenario]:
    yield from cut(_observations(bag, problems)[number], problems=problems)


def _observations(bag: _Bag, problems: Counter[str]) -> list[Observations]:
    """What a bag shows, a drive for each stretch within which the clock was not set; at least one."""
    seen = _seen(bag)
    if not seen.names:
        raise ScenarioError(
            "no-object-list", f"{bag.where}: expected tracked objects, got messages without one"
        )
    problems.update({UNTRACKED: seen.untracked} if seen.untracked else {})
    stamps = times(*(np.frombuffer(each, dtype=np.float64) for each in (seen.stamps, seen.written)))
    message = np.frombuffer(seen.message, dtype=np.int64)
    ranges = [each for each in stretches(stamps) if ((message >= each[0]) & (message < each[1])).any()]
    return [
        _stretch(bag, seen, stamps, each, place_id(f"{bag.name}-{number}") if number > 1 else bag.name)
        for number, each in enumerate(ranges, 1)
    ]


def _stretch(
    bag: _Bag, seen: _Seen, stamps: NDArray[np.float64], messages: tuple[int, int], drive: str
) -> Observations:
    """What the messages of a half-open range show; `stamps` float64[messages] are those of the whole bag."""
    start, end = messages
    order = np.argsort(stamps[start:end], kind="stable")
    rate, frame = clock(stamps[start:end][order], bag.where)
    frame_of = np.empty(len(order), dtype=np.int64)
    frame_of[order] = frame
    message = np.frombuffer(seen.message, dtype=np.int64)
    rows = np.flatnonzero((message >= start) & (message < end))
    egos = [track for name, track in seen.names.items() if name.lower() in _EGO]
    return Observations(
        where=bag.where,
        region=bag.region,
        drive=drive,
        rate_hz=rate,
        t0_s=float(stamps[start:end].min()),
        names=list(seen.names),
        types=[seen.types[track].most_common(1)[0][0] for track in seen.names.values()],
        track=np.frombuffer(seen.track, dtype=np.int64)[rows],
        frame=frame_of[message[rows] - start],
        xy=np.frombuffer(seen.xy, dtype=np.float64).reshape(-1, 2)[rows],
        av=egos[0] if len(egos) == 1 else None,
    )


def _seen(bag: _Bag) -> _Seen:
    """What the one object list of a bag shows; of several lists, the one whose topic says that it is tracked."""
    lists: dict[str, _Seen] = {}
    readers: dict[Topic, Reader] = {}
    others: set[str] = set()
    for path, where in bag.files:

        def look(topic: Topic, where: str = where) -> bool:
            read = reader(topic.schema, topic.encoding, topic.text, f"{where} {topic.name}")
            if read is None:
                others.add(f"{topic.schema} ({topic.encoding})")
                return False
            readers[topic] = read
            lists.setdefault(topic.name, _Seen())
            return True

        for message in packed(path, where, look):
            seen = lists[message.topic.name]
            if seen.refused is None:
                try:
                    seen.add(readers[message.topic](message.data, where), message.written_s, where)
                except ScenarioError as error:  # counts only if this is the list that is taken
                    seen.refused = error
    chosen = [name for name in lists if "track" in name.lower()] if len(lists) > 1 else list(lists)
    if len(chosen) != 1:
        got = ", ".join(lists) or ", ".join(sorted(others)[:5]) or "no topic"
        text = f"expected one object list, or one whose topic says that it is tracked, got {got:.200}"
        is_camera = not lists and any(IMAGE in one.replace("/msg/", "/") for one in others)
        kind = _CameraOnlyError if is_camera else ScenarioError
        raise kind("no-object-list", f"{bag.where}: {text}")
    refused = lists[chosen[0]].refused
    if refused is not None:
        raise refused
    return lists[chosen[0]]
