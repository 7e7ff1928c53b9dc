"""What a small car's camera saw, and how it was steered: Donkey tubs (version 2) and bags, zips, folders and files.

A tub is a manifest, catalogs of JSON lines and a folder of images; of bags see `camera_bags`. The name of either tells
place and car: `office-car1` is car `car1` in region `office`. Pillow is imported only when images are read; nothing is
unpacked to disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from fedfleet.models.task import Drive
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.account import Account
from fedfleet.scenarios.camera_bags import CameraBag, open_bags
from fedfleet.scenarios.donkey_blocks import Cuts, cut_blocks
from fedfleet.scenarios.donkey_catalog import Record, read_records
from fedfleet.scenarios.donkey_files import Files, Take, open_files
from fedfleet.scenarios.labels_frames import judge_frames
from fedfleet.scenarios.nothing_found import nothing_found
from fedfleet.scenarios.places import MAX_CHARS, place_ids
from fedfleet.scenarios.reading import claims
from fedfleet.scenarios.records import ScenarioError
from fedfleet.scenarios.tree import Tree, stamp, walk
from fedfleet.scenarios.unclaimed import leave_rest

__all__ = ["Block", "Shots", "Tub", "Tubs", "open_camera", "open_tubs", "shots"]

NO_IMAGE: Final = "no-image"
BROKEN_IMAGE: Final = "broken-image"
TOO_LARGE: Final = "image-too-large"


class _Source(Protocol):
    """Where a recording lies."""

    @property
    def name(self) -> str: ...

    def records(self) -> tuple[tuple[Record, ...], Counter[str]]: ...

    def images(self) -> AbstractContextManager[Take]: ...


@dataclass(frozen=True)
class _Donkey:
    files: Files

    @property
    def name(self) -> str:
        return self.files.name

    def records(self) -> tuple[tuple[Record, ...], Counter[str]]:
        return read_records(self.files)

    @contextmanager
    def images(self) -> Iterator[Take]:
        with self.files.opened() as take:
            yield lambda image: take(f"images/{image}")


@dataclass(frozen=True)
class Tub:
    """One recording of one car, its frames in the order in which they were driven."""

    region: str
    car: str
    source: _Source

    @cached_property
    def found(self) -> tuple[tuple[Record, ...], Counter[str]]:
        """Its records, and the lines that are none by reason."""
        return self.source.records()

    @cached_property
    def cuts(self) -> Cuts:
        """Where it is cut into blocks, and its rate."""
        times = np.array([record.time_ms for record in self.found[0]], dtype=np.int64)
        return cut_blocks(times)

    @property
    def problems(self) -> Counter[str]:
        """What of it is in no block, by reason."""
        return self.found[1] + self.cuts.left_out

    def blocks(self) -> list[Block]:
        """Its drives, in the order in which they were driven."""
        return [Block(self, number, start, end) for number, (start, end) in enumerate(self.cuts.blocks)]


@dataclass(frozen=True)
class Block:
    """Consecutive frames of a car: records `start` to `end` of its tub. This is a drive."""

    tub: Tub
    number: int
    start: int
    end: int

    @property
    def drive(self) -> Drive:
        """Name, size and length of it."""
        seconds = (self.end - self.start) / self.tub.cuts.rate_hz
        return Drive(self.tub.region, f"{self.tub.car}-{self.number:02d}", 1, seconds)

    @property
    def records(self) -> tuple[Record, ...]:
        """Its records."""
        return self.tub.found[0][self.start : self.end]


@dataclass(frozen=True)
class Shots:
    """The readable frames of a block: images uint8[frames, 3, rows, columns], angles float64[frames], at `rate_hz`.

    `numbers` int64[frames] are those of their records; `labelled` bool[frames] can teach; `problems` counts by reason
    what cannot, unreadable frames included.
    """

    numbers: NDArray[np.int64]
    images: NDArray[np.uint8]
    angles: NDArray[np.float64]
    labelled: NDArray[np.bool_]
    problems: Counter[str]
    rate_hz: float


@dataclass(frozen=True)
class Tubs:
    """An opened folder: its blocks by the key of their drive, sorted, and the account of what is not read."""

    blocks: Mapping[str, Block]
    account: Account


def open_tubs(folder: Path) -> Mapping[str, Block]:
    """The blocks of all tubs and bags with images of a folder, by the key of their drive, sorted; see `open_camera`."""
    return open_camera(folder).blocks


def open_camera(folder: Path) -> Tubs:
    """All tubs and bags with images of a folder; what cannot be read is in its account.

    Raises UsageError for a folder that is absent, or in which nothing is left to read, with the first reason.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise UsageError(f"{folder}: expected a folder of Donkey tubs, got {got}")
    return _open(folder, stamp(folder))


def shots(block: Block, *, rows: int, columns: int) -> Shots:
    """Read the frames of a block; a frame that cannot be read is counted, and left out. UsageError without Pillow."""
    problems: Counter[str] = Counter()
    read = list(_images(block, problems, rows=rows, columns=columns))
    images = np.stack([image for _, image in read]) if read else np.empty((0, 3, rows, columns), np.uint8)
    numbers = np.array([record.index for record, _ in read], dtype=np.int64)
    angles = np.array([record.angle for record, _ in read], dtype=np.float64)
    autopilot = np.array([record.is_autopilot for record, _ in read], dtype=np.bool_)
    repeated = np.zeros(len(images), dtype=np.bool_)
    repeated[1:] = [bool((a == b).all()) for a, b in pairwise(images)]
    verdict = judge_frames(angles, repeated, autopilot)
    if block.number == 0:
        problems += block.tub.problems  # what is in no block is told once
    problems += verdict.problems
    return Shots(numbers, images, angles, verdict.labelled, problems, block.tub.cuts.rate_hz)


def _images(
    block: Block, problems: Counter[str], *, rows: int, columns: int
) -> Iterator[tuple[Record, NDArray[np.uint8]]]:
    decode = _decoder()
    with block.tub.source.images() as take:
        for record in block.records:
            try:
                data = take(record.image)
                image = None if data is None else decode(data, rows=rows, columns=columns)
            except ScenarioError as error:
                problems[TOO_LARGE if error.reason == TOO_LARGE else BROKEN_IMAGE] += 1
                continue
            if image is None:
                problems[NO_IMAGE] += 1
            else:
                yield record, image


def _decoder() -> Callable[..., NDArray[np.uint8]]:
    try:
        from fedfleet.scenarios.donkey_image import decode
    except ImportError as error:
        raise UsageError("camera images need Pillow: pip install 'fedfleet[scenarios]'") from error
    return decode


@lru_cache(maxsize=2)
def _open(folder: Path, stamped: tuple[object, ...]) -> Tubs:  # noqa: ARG001 - another stamp, read again
    tree, account = walk(folder), Account(folder)
    files, bags = open_files(tree, account), open_bags(tree, account)
    blocks: dict[str, Block] = {}
    for tub, where in _tubs([*((_Donkey(each), each.path) for each in files), *_placed(folder, bags)]):
        path = tree.where(where) if where != folder else "."
        with account.refusing(path):
            found = {block.drive.key: block for block in tub.blocks()}
            if any(key in blocks for key in found):
                text = f"two recordings are named for car {tub.car} in {tub.region}: rename one of them"
                raise ScenarioError("duplicate-drive", f"{path}: {text}")
            if not found:
                raise ScenarioError("no-frames", f"{path}: expected at least 1 frame, got none")
            blocks |= found
    claimed = {each.path for each in files} | {file for bag in bags for file, _ in bag.files}
    leave_rest(tree, claimed | _beside(tree), _others(tree, claimed), account)
    if not blocks:
        raise nothing_found(tree, account)
    return Tubs(dict(sorted(blocks.items())), account)


def _placed(folder: Path, bags: Sequence[CameraBag]) -> Iterator[tuple[_Source, Path]]:
    """Bags, and the file or folder that each is."""
    for bag in bags:
        yield bag, folder / bag.files[0][1]


def _tubs(sources: Sequence[tuple[_Source, Path]]) -> Iterator[tuple[Tub, Path]]:
    """The place and the car of each by its name; names that fold to one id are told apart."""
    ids = place_ids((source.name for source, _ in sources), max_chars=MAX_CHARS - len("-00"))
    for source, path in sources:
        region, _, car = ids[source.name].partition("-")
        yield Tub(region, car or "car", source), path


def _beside(tree: Tree) -> set[Path]:
    """What goes with bags, and all bags: `open_bags` said of each what it is."""
    return {
        *tree.ending(".mcap", ".db3", ".db3-wal", ".db3-shm", ".db3-journal"),
        *tree.named("metadata.yaml"),
    }


def _others(tree: Tree, claimed: Collection[Path]) -> Mapping[Path, str]:
    """What readers of other tasks know of the rest."""
    rest = [path for path in tree.files if path not in claimed and not set(path.parents) & set(claimed)]
    words = "is of {}, of another task: try --task motion_forecast"
    return {path: words.format(name) for path, name in claims(Tree(tree.folder, tuple(rest))).items()}
