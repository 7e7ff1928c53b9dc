"""Rules that compare every update with every other: Krum, Multi-Krum, Bulyan, NNM, geometric median.

All work on the Gram matrix G_ij = ⟨δ_i, δ_j⟩ in float64: n² M multiplications in BLAS for dense updates, for sparse
ones as many as pairs of entries meet in a coordinate; n² numbers in memory, and n at most `MOST`. One vote for
each vehicle. Equal bytes need the same build of BLAS and number of threads, as a restart on the same machine has.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from fedfleet.fleet_server.fold import Aggregate, Update, fold_ordered
from fedfleet.fleet_server.robust_columns import (
    blocks,
    by_column,
    middle,
    shared_indices,
    trimmed,
    weights_of,
)
from fedfleet.fleet_server.rules import Rule, hostile, vote_weight
from fedfleet.protocol.ids import UpdateId

__all__ = [
    "MOST",
    "bulyan",
    "distances",
    "geometric_median",
    "gram",
    "krum",
    "multi_krum",
    "nnm_trimmed_mean",
]

MOST = 512
"""Most updates that a pairwise rule takes; the store returns those above it (`region_fold.py`)."""
Matrix = npt.NDArray[np.float64]

_COLUMNS = 65_536  # as many as two bytes count: numpy sorts these fastest
_CROWDED = 24  # entries of a column from which a dense product is faster than pairs
_DENSE = 8192

SMOOTHING = 1e-6
ROUNDS = 1000
CLOSE = 1e-9


def krum(share: float) -> Rule:
    """Return Krum: the one update whose n − f − 2 nearest others are nearest to it.

    Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent", section 4:
    i* = argmin_i Σ_{j → i} ‖δ_i − δ_j‖² over those neighbours; the first in fold order of equals. f = share · n,
    from 1 to (n − 3) / 2. All others are dropped as not-selected.
    """
    return _krum("krum", share, lambda _count, _f: 1)


def multi_krum(share: float) -> Rule:
    """Return Multi-Krum (Blanchard et al. 2017, section 4): the mean of the n − f updates with the best Krum scores."""
    return _krum("multi-krum", share, lambda count, f: count - f)


def _krum(name: str, share: float, keep: Callable[[int, int], int]) -> Rule:
    def fold(updates: Iterable[Update], size: int) -> Aggregate:
        weights = weights_of(updates, name=name, smallest=5)
        count = len(weights)
        f = hostile(count, share, (count - 3) // 2)
        scores = krum_scores(distances(gram(updates, size=size, count=count)), hostile_=f)
        chosen = np.argsort(scores, kind="stable")[: keep(count, f)]
        return _selected(updates, weights, frozenset(chosen.tolist()), size=size)

    return Rule(name, "each", fold, smallest=5, most=MOST)


def bulyan(share: float) -> Rule:
    """Return Bulyan: Krum chooses θ = n − 2f updates one by one; then, by coordinate, a mean about their median.

    El Mhamdi et al. 2018, "The hidden vulnerability of distributed learning in Byzantium", section 4: of the θ values
    of a coordinate the β = θ − 2f nearest to their median are averaged. f = share · n, from 1 to (n − 3) / 4. While
    few are left to choose from, at least two neighbours count: two that are nearest to each other would tie.
    Those not chosen are dropped as not-selected.
    """
    name = "bulyan"

    def fold(updates: Iterable[Update], size: int) -> Aggregate:
        weights = weights_of(updates, name=name, smallest=7)
        count = len(weights)
        f = hostile(count, share, (count - 3) // 4)
        chosen = _choose(distances(gram(updates, size=size, count=count)), f, wanted=count - 2 * f)
        taken = _Taken(updates, chosen)
        kept = [weights[row] for row in sorted(chosen)]
        found = by_column(taken, kept, partial(_near_median, keep=len(chosen) - 2 * f), size=size)
        return Aggregate(found.mean, vote_weight(weights), found.count, _dropped(updates, chosen))

    return Rule(name, "each", fold, aligned=True, smallest=7, most=MOST)


def nnm_trimmed_mean(share: float) -> Rule:
    """Return nearest-neighbour mixing, then the trimmed mean: for regions whose vehicles see unlike data.

    Allouah et al. 2023, "Fixing by mixing: a recipe for optimal Byzantine ML under heterogeneity", algorithm 2: each
    update becomes the mean of the n − f updates nearest to it, itself among them (the first in fold order of equals);
    the trimmed mean of these leaves f out at both ends. f = share · n, from 1 to (n − 1) / 2.
    """
    name = "nnm-trimmed-mean"

    def fold(updates: Iterable[Update], size: int) -> Aggregate:
        weights = weights_of(updates, name=name, smallest=3)
        count = len(weights)
        f = hostile(count, share, (count - 1) // 2)
        apart = distances(gram(updates, size=size, count=count))
        np.fill_diagonal(apart, -1.0)
        nearest = np.argsort(apart, axis=1, kind="stable")[:, : count - f]
        mixing = np.zeros((count, count))
        np.put_along_axis(mixing, nearest, 1 / (count - f), axis=1)

        def mixed(block: npt.NDArray[np.float32]) -> Matrix:
            return trimmed(block.astype(np.float64) @ mixing.T, trim=f)

        return by_column(updates, weights, mixed, size=size)

    return Rule(name, "each", fold, aligned=True, smallest=3, most=MOST)


def geometric_median() -> Rule:
    """Return the geometric median, argmin_z Σ_k ‖z − δ_k‖₂, by smoothed Weiszfeld steps.

    Pillutla et al. 2022, "Robust aggregation for federated learning" (RFA), algorithm 2, with one vote each instead
    of example weights: β_k = 1 / max(ν, ‖z − δ_k‖), z = Σ β_k δ_k / Σ β_k, ν = 1e-6, from the mean, until no share
    of the mixture moves by more than 1e-9 of itself (at most 1,000 steps). z stays in the span of the updates, so
    the steps need the Gram matrix only. Stands fewer than half hostile; any coordinates.
    """
    name = "geometric-median"

    def fold(updates: Iterable[Update], size: int) -> Aggregate:
        weights = weights_of(updates, name=name, smallest=3)
        shares = _weiszfeld(gram(updates, size=size, count=len(weights)))
        mixed = ((id_, delta, share) for (id_, delta, _), share in zip(updates, shares, strict=True))
        found = fold_ordered(mixed, size=size)
        return Aggregate(found.mean, vote_weight(weights), found.count)

    return Rule(name, "each", fold, smallest=3, most=MOST)


def gram(updates: Iterable[Update], *, size: int, count: int) -> Matrix:
    """Return the inner products float64[n, n] of the updates' deltas, in their order."""
    if (
        isinstance(updates, Sequence)
        and shared_indices(updates) is None
        and updates[0][1].indices is not None
    ):
        return _gram_sparse(updates, size=size)
    found = np.zeros((count, count))
    for _, block in blocks(updates, size=size, count=count):
        for start in range(0, len(block), 16_384):
            rows = block[start : start + 16_384].astype(np.float64)
            found += rows.T @ rows
    return found


def _gram_sparse(updates: Sequence[Update], *, size: int) -> Matrix:
    """Return the Gram matrix of updates with coordinates of their own: by pairs that meet in a coordinate."""
    upper = np.zeros((len(updates), len(updates)))
    for start in range(0, size, _COLUMNS):
        columns, rows, values = _entries(updates, start, start + _COLUMNS)
        touched = np.flatnonzero(np.bincount(columns, minlength=_COLUMNS))
        if columns.size <= _CROWDED * touched.size:
            _add_pairs(upper, columns, rows, values)
            continue
        place = np.zeros(_COLUMNS, dtype=np.int64)
        place[touched] = np.arange(touched.size)
        for first in range(0, touched.size, _DENSE):
            part = np.zeros((len(updates), min(_DENSE, touched.size - first)))
            at = place[columns] - first
            inside = (at >= 0) & (at < part.shape[1])
            part[rows[inside], at[inside]] = values[inside]
            upper += np.triu(part @ part.T, 1)
    found = upper + upper.T
    for row, (_, delta, _) in enumerate(updates):
        values = delta.values.astype(np.float64)
        found[row, row] = values @ values
    return found


def _entries(
    updates: Sequence[Update], start: int, stop: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64], Matrix]:
    """Return column - start, row and value of all entries in a stretch of columns, by column, then row."""
    columns, rows, values = [], [], []
    for row, (_, delta, _) in enumerate(updates):
        indices = np.arange(delta.size) if delta.indices is None else delta.indices
        first, last = np.searchsorted(indices, (start, stop))
        columns.append((indices[first:last] - start).astype(np.uint16))
        rows.append(np.full(last - first, row, dtype=np.int64))
        values.append(delta.values[first:last].astype(np.float64))
    joined = np.concatenate(columns)
    order = np.argsort(joined, kind="stable")
    return joined[order], np.concatenate(rows)[order], np.concatenate(values)[order]


def _add_pairs(
    upper: Matrix, columns: npt.NDArray[np.uint16], rows: npt.NDArray[np.int64], values: Matrix
) -> None:
    """Add the products of every two entries of a column at (lower row, higher row)."""
    flat = upper.reshape(-1)
    for apart in range(1, columns.size):
        first = np.flatnonzero(columns[apart:] == columns[:-apart])
        if not first.size:
            return
        second = first + apart
        np.add.at(flat, rows[first] * len(upper) + rows[second], values[first] * values[second])


def distances(products: Matrix) -> Matrix:
    """Return the squared distances float64[n, n] of a Gram matrix; never below zero."""
    squares = np.diag(products)
    apart: Matrix = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0.0)
    np.fill_diagonal(apart, 0.0)
    return apart


def krum_scores(apart: Matrix, *, hostile_: int) -> Matrix:
    """Return Krum's score of each update: the sum of its n − f − 2 (at least two) smallest distances to others."""
    count = len(apart)
    neighbours = max(2, count - hostile_ - 2)
    others = apart.copy()
    np.fill_diagonal(others, np.inf)
    others.sort(axis=1)
    scores: Matrix = others[:, :neighbours].sum(axis=1)
    return scores


def _choose(apart: Matrix, f: int, *, wanted: int) -> frozenset[int]:
    left = list(range(len(apart)))
    chosen = set()
    for _ in range(wanted):
        best = int(np.argmin(krum_scores(apart[np.ix_(left, left)], hostile_=f)))
        chosen.add(left.pop(best))
    return frozenset(chosen)


def _near_median(block: npt.NDArray[np.float32], *, keep: int) -> Matrix:
    """Return the mean of the `keep` values nearest to the median of each row: a window of the sorted row."""
    block.sort(axis=1)
    centre = middle(block)
    best = np.full(len(block), np.inf)
    found = np.zeros(len(block))
    for start in range(block.shape[1] - keep + 1):
        reach = np.maximum(centre - block[:, start], block[:, start + keep - 1] - centre)
        better = reach < best
        best[better] = reach[better]
        found[better] = block[better, start : start + keep].mean(axis=1, dtype=np.float64)
    return found


def _weiszfeld(products: Matrix) -> list[float]:
    count = len(products)
    shares = np.full(count, 1 / count)
    squares = np.diag(products)
    for _ in range(ROUNDS):
        towards = products @ shares
        apart = np.sqrt(np.maximum(shares @ towards - 2 * towards + squares, 0.0))
        pull = 1 / np.maximum(apart, SMOOTHING)
        before, shares = shares, pull / pull.sum()
        if (np.abs(shares - before) <= CLOSE * before).all():
            break
    return [float(share) for share in shares]


class _Taken:
    """Some of the updates, as often as one likes."""

    def __init__(self, updates: Iterable[Update], chosen: frozenset[int]) -> None:
        self._updates, self._chosen = updates, chosen

    def __iter__(self) -> Iterator[Update]:
        return (update for row, update in enumerate(self._updates) if row in self._chosen)


def _selected(
    updates: Iterable[Update], weights: Sequence[float], chosen: frozenset[int], *, size: int
) -> Aggregate:
    equal = ((id_, delta, 1.0) for id_, delta, _ in _Taken(updates, chosen))
    found = fold_ordered(equal, size=size)
    return Aggregate(found.mean, vote_weight(weights), found.count, _dropped(updates, chosen))


def _dropped(updates: Iterable[Update], chosen: frozenset[int]) -> Mapping[UpdateId, str]:
    return {id_: "not-selected" for row, (id_, _, _) in enumerate(updates) if row not in chosen}
