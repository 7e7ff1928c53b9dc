"""What a small car's camera saw, and how it was steered: Donkey tubs (version 2) and bags, zips, folders and files.

A tub is a manifest, catalogs of JSON lines and a folder of images; of bags see `camera_bags`. The name of either tells
place and car: `office-car1` is car `car1` in region `office`. Pillow is imported only when images are read; nothing is
unpacked to disk.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
from fedfleet.protocol.ids import is_id
from fedfleet.scenarios.camera_bags import open_bags
from fedfleet.scenarios.donkey_blocks import Cuts, cut_blocks
from fedfleet.scenarios.donkey_catalog import MANIFEST, Record, read_records
from fedfleet.scenarios.donkey_files import Files, Take, open_files
from fedfleet.scenarios.labels_frames import judge_frames
from fedfleet.scenarios.records import ScenarioError

__all__ = ["Block", "Shots", "Tub", "open_tubs", "shots"]

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


def open_tubs(folder: Path) -> Mapping[str, Block]:
    """The blocks of all tubs and bags with images of a folder, by the key of their drive, sorted.

    Raises UsageError for a folder without one, and for one that cannot be opened or whose name is no id.
    """
    if not folder.is_dir():
        got = "a file" if folder.exists() else "nothing"
        raise UsageError(f"{folder}: expected a folder of Donkey tubs, got {got}")
    try:
        return _open(folder, _stamp(folder))
    except ScenarioError as error:
        raise UsageError(f"{folder}: {error}") from error


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
        raise UsageError("camera images need Pillow: install fedfleet[scenarios]") from error
    return decode


@lru_cache(maxsize=2)
def _open(folder: Path, stamp: tuple[object, ...]) -> Mapping[str, Block]:  # noqa: ARG001 - another stamp, read again
    blocks: dict[str, Block] = {}
    sources: list[_Source] = [*map(_Donkey, open_files(folder)), *open_bags(folder)]
    tubs = [_tub(source) for source in sources]
    if not tubs:
        some = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "an empty folder"
        expected = f"zips or folders with {MANIFEST}, or bags with camera images"
        raise UsageError(f"{folder}: no Donkey tub: expected {expected}, got {some}")
    for tub in tubs:
        for block in tub.blocks():
            if block.drive.key in blocks:
                raise UsageError(
                    f"{folder}: two recordings are named for car {tub.car} in {tub.region}: rename one of them"
                )
            blocks[block.drive.key] = block
    if not blocks:
        raise UsageError(f"{folder}: {len(tubs)} recordings without a record")
    return dict(sorted(blocks.items()))


def _tub(source: _Source) -> Tub:
    name = source.name.lower().replace("_", "-").replace(" ", "-")
    region, _, car = name.partition("-")
    if not (is_id(region) and is_id(f"{car or 'car'}-00")):
        raise ScenarioError("bad-name", f"{source.name}: expected PLACE-CAR of a-z, 0-9 and '-', at most 33")
    return Tub(region, car or "car", source)


def _stamp(folder: Path) -> tuple[object, ...]:
    """What changes when the tubs do: names, sizes and times of zips and of what lies in folders' first level."""
    found = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))[:10_000]]
    listed = [(str(path), os.stat(path)) for path in found]  # noqa: PTH116 - called often
    return tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in listed)
