"""Whether a split feeds everyone: each vehicle something to learn from, validation and test something to judge by.

Recordings of a region may hold nothing that a task can use. That is only known when they are read, so a few drives are
read, and more only of regions where someone would go without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from fedfleet.models.task import Samples
from fedfleet.scenarios.partition import FEWEST, Partition

__all__ = ["starving", "usable"]

Read = Callable[[str], Samples]
"""Reads the samples of one drive, by its key."""


def starving(parts: Partition, read: Read) -> tuple[str, ...]:
    """Return the regions in which a vehicle has too few samples, or validation or test none that is judged.

    Of each part as few drives are read as it takes to know.
    """
    needs: list[tuple[str, Sequence[str], Callable[[Samples], int], int]] = [
        (region, drives, len, FEWEST) for region, drives in parts.vehicles.values()
    ]
    for held in (parts.validation, parts.test):
        needs += [(region, drives, _judged, 1) for region, drives in held.items() if drives]
    return tuple(
        sorted({region for region, drives, count, least in needs if not _enough(drives, read, count, least)})
    )


def usable(drives: Iterable[str], read: Read) -> Mapping[str, tuple[int, int]]:
    """Read these drives; return by drive how many samples it has, and how many of them are judged."""
    found = {}
    for drive in drives:
        samples = read(drive)
        found[drive] = (len(samples), _judged(samples))
    return found


def _enough(drives: Sequence[str], read: Read, count: Callable[[Samples], int], least: int) -> bool:
    found = 0
    for drive in drives:
        found += count(read(drive))
        if found >= least:
            return True
    return False


def _judged(samples: Samples) -> int:
    return int(np.asarray(samples.judged).sum())
