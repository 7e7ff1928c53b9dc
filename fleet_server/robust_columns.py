"""Rules that look at each coordinate on its own, in blocks of columns: coordinate median and trimmed mean.

Memory is one block (`BLOCK_BYTES`) besides the updates, however large the model; updates that are not held are read
again for every block. All sums are taken over sorted values, so that the bytes do not depend on who sent what.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedfleet.codec.delta import Delta
from fedfleet.fleet_server.fold import Aggregate, Update
from fedfleet.fleet_server.rules import Rule, VoidError, hostile, vote_weight

__all__ = [
    "BLOCK_BYTES",
    "Block",
    "ByColumn",
    "blocks",
    "by_column",
    "columns_median",
    "coordinate_median",
    "middle",
    "trimmed",
    "trimmed_mean",
]

BLOCK_BYTES = 48 << 20
"""Bytes of one block of columns, float32[columns, updates]."""

Block: TypeAlias = tuple[slice | npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Coordinates of the model, and the updates' values there: float32[coordinates, updates]."""
ByColumn: TypeAlias = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]
"""float32[columns, updates], which it may sort in place, to float64[columns]."""


def coordinate_median() -> Rule:
    """Return the coordinate-wise median (Yin et al. 2018, "Byzantine-robust distributed learning", definition 1).

    With an even number of updates the mean of the two middle values. Stands fewer than half hostile; one vote each.
    """
    name = "median"

    def fold(updates: Iterable[Update], size: int) -> Aggregate:
        weights = weights_of(updates, name=name, smallest=3)
        return by_column(updates, weights, columns_median, size=size)

    return Rule(name, "each", fold, aligned=True, smallest=3)


def trimmed_mean(share: float) -> Rule:
    """Return the coordinate-wise trimmed mean (Yin et al. 2018, definition 2): b largest and b smallest left out.

    b = share · n rounded down, from 1 to (n − 1) / 2. Stands b hostile of n; one vote each.
    """
    name = "trimmed-mean"

    def fold(updates: Iterable[Update], size: int) -> Aggregate:
        weights = weights_of(updates, name=name, smallest=3)
        trim = hostile(len(weights), share, (len(weights) - 1) // 2)
        return by_column(updates, weights, partial(trimmed, trim=trim), size=size)

    return Rule(name, "each", fold, aligned=True, smallest=3)


def by_column(updates: Iterable[Update], weights: Sequence[float], rule: ByColumn, *, size: int) -> Aggregate:
    """Apply a rule to every column; coordinates that no update sends stay 0."""
    found = np.zeros(size)
    for where, block in blocks(updates, size=size, count=len(weights)):
        found[where] = rule(block)
    return Aggregate(found, vote_weight(weights), len(weights))


def columns_median(block: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the median of each row of float32[columns, updates]; the block is sorted."""
    block.sort(axis=1)
    return middle(block)


def middle(ordered: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the median of each sorted row."""
    high = ordered.shape[1] // 2
    low = (ordered.shape[1] - 1) // 2
    found: npt.NDArray[np.float64] = (ordered[:, low].astype(np.float64) + ordered[:, high]) / 2
    return found


def trimmed(block: npt.NDArray[np.floating], *, trim: int) -> npt.NDArray[np.float64]:
    """Return the mean of each row without its `trim` largest and smallest values; the block is sorted."""
    block.sort(axis=1)
    found: npt.NDArray[np.float64] = block[:, trim : block.shape[1] - trim].mean(axis=1, dtype=np.float64)
    return found


def weights_of(updates: Iterable[Update], *, name: str, smallest: int) -> list[float]:
    """Return the updates' weights; VoidError for fewer updates than the rule needs."""
    weights = [weight for _, _, weight in updates]
    if len(weights) < smallest:
        raise VoidError(f"{name} needs at least {smallest} updates, got {len(weights)}")
    return weights


def blocks(
    updates: Iterable[Update], *, size: int, count: int, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Yield the updates' values block by block, every coordinate that one of them sends exactly once.

    When all send the same coordinates, only these are there. Each block is the caller's to change.
    """
    shared = shared_indices(updates)
    length = size if shared is None else shared.size
    width = max(1, block_bytes // (4 * count))
    for start in range(0, length, width):
        stop = min(start + width, length)
        block = np.zeros((stop - start, count), dtype=np.float32)
        for row, (_, delta, _) in enumerate(updates):
            if shared is not None or delta.indices is None:
                block[:, row] = delta.values[start:stop]
            else:
                first, last = np.searchsorted(delta.indices, (start, stop))
                block[delta.indices[first:last] - start, row] = delta.values[first:last]
        yield (slice(start, stop) if shared is None else shared[start:stop]), block


def shared_indices(updates: Iterable[Update]) -> npt.NDArray[np.int64] | None:
    """Return the coordinates that all updates send, None when they are all or differ."""
    first = next((delta.indices for _, delta, _ in islice(updates, 1)), None)
    if first is None or not all(_same(first, delta) for _, delta, _ in updates):
        return None
    return first


def _same(indices: npt.NDArray[np.int64], delta: Delta) -> bool:
    other = delta.indices
    return other is indices or (other is not None and np.array_equal(other, indices))
