"""Camera recordings in MCAP files and ROS 2 bags: images, each with the angle at which the car was steered just then.

A file is a recording; a folder with `metadata.yaml` is one, whatever files it is split into, and so are files whose
names differ in numbers only and whose times follow each other. Images stay where they are: a record tells the place of
one, and it is read when it is asked for. Which messages, see `camera_messages`.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedfleet.scenarios.account import STRICT, Account
from fedfleet.scenarios.bag_files import Packed, Place, Topic, opened, packed
from fedfleet.scenarios.camera_messages import ACKERMANN, IMAGE, TWISTS, definition_of, image_data, read
from fedfleet.scenarios.donkey_catalog import BAD_RECORD, MAX_RECORDS, Record
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.ros_messages import Definition
from fedfleet.scenarios.stamps import Part, follow, natural, stretches, times, trip_name
from fedfleet.scenarios.tree import Tree

__all__ = ["MAX_AGE_S", "CameraBag", "open_bags"]

MAX_AGE_S: Final = 0.2
"""Steering older than this when an image was taken tells nothing about it."""
MAX_STEERINGS: Final = 10 * MAX_RECORDS
_SLACK_S: Final = 1e-6
"""Times of today in float64 seconds are good to a quarter of it."""

_METADATA: Final = "metadata.yaml"
_SUFFIXES: Final = (".mcap", ".db3")
_Files = tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class CameraBag:
    """One recording: its frames in the order of their times. `Record.image` is `file:at:number`, where an image is."""

    name: str
    files: _Files
    definition: Definition
    found: tuple[tuple[Record, ...], Counter[str]]

    def records(self) -> tuple[tuple[Record, ...], Counter[str]]:
        """Its records, and the messages that are none by reason."""
        return self.found

    @contextmanager
    def images(self) -> Iterator[Callable[[str], bytes | None]]:
        """Gives the JPEG or PNG of a record as long as the block runs; ScenarioError for one that is damaged."""
        with ExitStack() as stack:
            held: dict[int, Callable[[Place], bytes]] = {}

            def take(image: str) -> bytes:
                file, at, number = map(int, image.split(":"))
                if file not in held:  # one file at a time: a bag may be split into many
                    stack.close()
                    held.clear()
                    held[file] = stack.enter_context(opened(*self.files[file]))
                return image_data(held[file]((at, number)), self.definition, self.files[file][1])

            yield take


@dataclass
class _Series:
    """The messages of one topic, as they come: times, angles, and of images three numbers each, where they are."""

    kind: str
    definition: Definition
    stamped_s: array[float] = field(default_factory=lambda: array("d"))
    written_s: array[float] = field(default_factory=lambda: array("d"))
    angles: array[float] = field(default_factory=lambda: array("d"))
    places: array[int] = field(default_factory=lambda: array("q"))
    malformed: int = 0

    def add(self, message: Packed, file: int, where: str) -> None:
        """Add a message, or count it; ScenarioError for too many of them."""
        try:
            stamped, angle = read(message.data, self.kind, self.definition, where)
        except ScenarioError:
            self.malformed += 1
            return
        self.stamped_s.append(stamped)
        self.written_s.append(message.written_s)
        if self.kind == IMAGE:
            self.places.extend((file, *message.place))
        else:
            self.angles.append(angle)
        limit = MAX_RECORDS if self.kind == IMAGE else MAX_STEERINGS
        if len(self.written_s) > limit:
            raise ScenarioError("too-many-records", f"{where}: more than {limit} messages of {self.kind}")

    def is_stamped(self) -> bool:
        """Tell whether every message has a header, and not all of them are empty."""
        stamped = np.asarray(self.stamped_s)
        return bool(np.isfinite(stamped).all() and stamped.any())

    def times(self, *, by_header: bool) -> NDArray[np.float64]:
        """When each message was made (`by_header`) or written, float64[messages] in s."""
        written = np.asarray(self.written_s, dtype=np.float64)
        return times(np.asarray(self.stamped_s, dtype=np.float64), written) if by_header else written


def open_bags(tree: Tree, account: Account = STRICT) -> list[CameraBag]:
    """The recordings with camera images in a folder and below it, sorted by name.

    Refused are a damaged one, images without steering, and topics that leave open which to take; a bag without camera
    images is named as another task's.
    """
    homes: dict[Path, list[tuple[Path, str]]] = defaultdict(list)
    for path in sorted(tree.ending(*_SUFFIXES), key=lambda each: natural(each.as_posix())):
        home = path.parent if (path.parent / _METADATA).is_file() else path
        homes[home].append((path, tree.where(path)))
    named = [(home.stem if home.is_file() else home.resolve().name, files) for home, files in homes.items()]
    bags = []
    for name, files in sorted(named):
        with account.refusing(*(where for _, where in files)):
            bag = _bag(name, tuple(files))
            if bag is None:
                text = "has no camera images, which this task is about: try --task motion_forecast"
                account.leave(files[0][1], "other-task", text, files=len(files))
            else:
                bags.append(bag)
    return sorted(_joined(bags), key=lambda bag: bag.name)


def _joined(bags: list[CameraBag]) -> list[CameraBag]:
    """The bags, parts of one trip put together: neighbouring frames are in one recording."""
    whole: list[CameraBag] = []
    by_place: dict[Path, list[CameraBag]] = defaultdict(list)
    for bag in bags:
        is_alone = len(bag.files) > 1 or (bag.files[0][0].parent / _METADATA).is_file() or not bag.found[0]
        (whole if is_alone else by_place[bag.files[0][0].parent]).append(bag)
    for alike in by_place.values():
        spans = [[record.time_ms * 1e-3 for record in bag.found[0]] for bag in alike]
        parts = [Part(bag.name, min(span), max(span)) for bag, span in zip(alike, spans, strict=True)]
        for trip in follow(parts):
            if len(trip) == 1:
                whole.append(alike[trip[0]])
                continue
            files = tuple(file for at in trip for file in alike[at].files)
            joined = _bag(trip_name([alike[at].name for at in trip]), files)
            whole += [joined] if joined is not None else []
    return whole


def _bag(name: str, files: _Files) -> CameraBag | None:
    series, others = _series(files)
    cameras = {topic: one for topic, one in series.items() if one.kind == IMAGE}
    if not cameras:
        return None
    where = files[0][1]
    images = cameras[_chosen(cameras, "front", where)]
    for kinds in ((ACKERMANN,), TWISTS):
        drivers = {topic: one for topic, one in series.items() if one.kind in kinds}
        if drivers:
            steering = drivers[_chosen(drivers, "teleop", where)]
            break
    else:
        got = ", ".join(sorted(others)[:5]) or "nothing else"
        expected = f"beside {', '.join(cameras)} expected steering: {', '.join((ACKERMANN, *TWISTS))}"
        raise ScenarioError("no-steering", f"{where}: {expected}; got {got:.200}")
    malformed = images.malformed + steering.malformed
    problems = Counter({BAD_RECORD: malformed} if malformed else {})
    return CameraBag(name, files, images.definition, (_records(images, steering, where), problems))


def _series(files: _Files) -> tuple[dict[str, _Series], set[str]]:
    """The messages of cameras and drivers by topic, and what other topics hold."""
    series: dict[str, _Series] = {}
    others: set[str] = set()
    for number, (path, where) in enumerate(files):

        def look(topic: Topic, where: str = where) -> bool:
            known = definition_of(topic, where)
            if known is None:
                others.add(f"{topic.schema} ({topic.encoding})")
                return False
            before = series.setdefault(topic.name, _Series(*known))
            if before.kind != known[0]:
                text = f"{where}: {topic.name} is {before.kind} and {known[0]}"
                raise ScenarioError("ambiguous-topics", text)
            return True

        for message in packed(path, where, look):
            series[message.topic.name].add(message, number, where)
    return {topic: one for topic, one in series.items() if one.written_s or one.malformed}, others


def _chosen(topics: Mapping[str, _Series], word: str, where: str) -> str:
    """The only topic, or the only one whose name has the word."""
    chosen = [name for name in topics if word in name.lower()] if len(topics) > 1 else list(topics)
    if len(chosen) != 1:
        kinds = ", ".join(sorted({one.kind for one in topics.values()}))
        text = f"expected one topic of {kinds}, or one whose name has {word!r}, got {', '.join(topics):.200}"
        raise ScenarioError("ambiguous-topics", f"{where}: {text}")
    return chosen[0]


def _records(images: _Series, steering: _Series, where: str) -> tuple[Record, ...]:
    """Images by time, each with the last steering before it; by the headers' clock where all messages have one.

    Where the clock was set back, images take the steering of their own side of it.
    """
    by_header = images.is_stamped() and steering.is_stamped()
    taken, steered = images.times(by_header=by_header), steering.times(by_header=by_header)
    angles = np.full(len(taken), np.nan)
    order = np.empty(0, dtype=np.int64)
    sides = [stretches(each, pause_s=np.inf) for each in (taken, steered)]
    if len(taken) and len(steered) and len(sides[0]) != len(sides[1]):
        text = f"the images' clock goes back {len(sides[0]) - 1} times, that of {steering.kind} {len(sides[1]) - 1}"
        raise ScenarioError("clock-set", f"{where}: {text}: which steering is an image's cannot be told")
    for (first, last), (start, end) in zip(*sides, strict=False):
        turns = start + np.argsort(steered[start:end], kind="stable")
        before = np.searchsorted(steered[turns], taken[first:last], side="right") - 1
        age = taken[first:last] - steered[turns][before]
        told = np.flatnonzero((before >= 0) & (age <= MAX_AGE_S + _SLACK_S))
        angles[first + told] = np.asarray(steering.angles)[turns][before[told]]
        order = np.concatenate([order, first + np.argsort(taken[first:last], kind="stable")])
    if len(taken) and np.isnan(angles).all():
        text = f"{where}: no {steering.kind} in the {MAX_AGE_S} s before any of {len(taken)} images"
        raise ScenarioError("no-steering", text)
    places = np.asarray(images.places).reshape(-1, 3)
    each = zip(taken[order].tolist(), places[order].tolist(), angles[order].tolist(), strict=True)
    return tuple(
        Record(index, round(time_s * 1e3), ":".join(map(str, place)), angle)
        for index, (time_s, place, angle) in enumerate(each)
    )
