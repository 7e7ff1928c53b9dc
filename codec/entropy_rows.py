"""Index sets row by row: a layer's rows (its outputs) differ in how much they learn, and so do its columns.

Each row's number of indices is coded by what earlier rows had, then where they stand by the columns that earlier rows
chose: adaptive arithmetic coding, nothing about rows or columns is sent. docs/codec-format.md, "Row by row". Sender
and receiver compute the same: whole numbers, and binary64 divisions, products and differences in a fixed order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fedfleet.codec.entropy_range import TOTAL_LIMIT, RangeDecoder, RangeEncoder
from fedfleet.codec.entropy_rows_model import (
    MAX_COLUMNS,
    STRENGTHS,
    SURE,
    SYMBOLS,
    Columns,
    Counts,
    Run,
    bounds_of,
    rows_of,
)
from fedfleet.codec.wire import Reader, varint
from fedfleet.protocol.errors import PeerError

__all__ = [
    "MAX_COLUMNS",
    "MAX_COUNT",
    "MAX_ROWS",
    "MAX_RUNS",
    "Run",
    "pack_rows",
    "row_length",
    "unpack_rows",
]

Ints = npt.NDArray[np.int64]

MAX_RUNS = 64
MAX_ROWS = 16_384
MAX_COUNT = 16_384
TOLD_FROM = 512
"""Indices from which on what rows would take is told before they are coded."""


def pack_rows(indices: Ints, rows: tuple[Run, ...], *, size: int, below: int | None = None) -> bytes | None:
    """Return rising indices int64[k ≥ 1] below `size` as bytes: k, the runs of rows, and the coded stream.

    `rows` are (rows, columns) of each tensor in turn. None when there are more rows or longer ones than the format has,
    or when a larger set would take `below` bytes, to within a byte or two: telling that takes a third of coding's time.
    """
    runs = _merged(rows)
    count = sum(each for each, _ in runs[:-1]) - (sum(map(math.prod, runs[:-1])) - size) // runs[-1][1]
    if len(runs) > MAX_RUNS or count > MAX_ROWS or max(columns for _, columns in runs) > MAX_COLUMNS:
        return None
    costs = _costs_by_strength(indices, runs, size=size)
    strength = int(costs.argmin())
    ends = np.searchsorted(indices, [start + width for start, width, _ in rows_of(runs, size)]).tolist()
    told = varint(indices.size) + _pack_runs(runs, strength)
    if below is not None and indices.size >= TOLD_FROM:
        bits = costs[strength] + _count_costs(ends, runs, size=size)
        if len(told) + 2 + bits / 8 >= below:
            return None
    coder, run = RangeEncoder(), None
    for start, width, counts, first, last in _told(ends, runs, size=size):
        if counts is not run:
            run, columns = counts, Columns(counts.columns)
        places = indices[first:last] - start
        if start + width < size:
            _put_count(coder, counts, last - first, width)
        if places.size:
            _put_places(coder, columns.weights(STRENGTHS[strength])[:width], places.tolist())
        columns.seen(places)
    stream = coder.finish()
    return b"".join((told, varint(len(stream)), stream))


def row_length(shape: tuple[int, ...]) -> int:
    """Return how many coordinates of a tensor of this shape make a row: one output's inputs, at most `MAX_COLUMNS`."""
    whole = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    return next(
        whole // parts
        for parts in range(1, whole + 1)
        if whole % parts == 0 and whole // parts <= MAX_COLUMNS
    )


def _told(
    ends: list[int], runs: tuple[Run, ...], *, size: int
) -> Iterator[tuple[int, int, Counts, int, int]]:
    """Yield each row up to the last with an index: start, width, its run's counts, its first index, the next row's."""
    first, left = 0, ends[-1]
    columns_of = iter(columns for _, columns in runs)
    for last, (start, width, begins) in zip(ends, rows_of(runs, size), strict=True):
        if begins:
            counts = Counts(left, size - start, next(columns_of))
        yield start, width, counts, first, last
        left -= last - first
        first = last
        if not left:
            return


def _merged(rows: tuple[Run, ...]) -> tuple[Run, ...]:
    """Return fewer runs: rows of one length together, vectors with the rows before them where no row is cut."""
    runs: list[Run] = []
    for number, (count, columns) in enumerate(rows):
        if runs and columns == runs[-1][1]:
            runs[-1] = (runs[-1][0] + count, columns)
        elif runs and count == 1 and (columns % runs[-1][1] == 0 or number == len(rows) - 1):
            runs[-1] = (runs[-1][0] + -(-columns // runs[-1][1]), runs[-1][1])
        else:
            runs.append((count, columns))
    return tuple(runs)


def _costs_by_strength(indices: Ints, runs: tuple[Run, ...], *, size: int) -> npt.NDArray[np.float64]:
    """Return how many bits each of `STRENGTHS` takes to say where in their rows the indices stand, about."""
    costs = np.zeros(len(STRENGTHS))
    at = 0
    for number, (count, columns) in enumerate(runs):
        end = size if number == len(runs) - 1 else at + count * columns
        inside = indices[slice(*np.searchsorted(indices, (at, end)))] - at
        costs += _costs(inside, columns) if inside.size else 0
        at = end
    return costs


def _costs(indices: Ints, columns: int) -> npt.NDArray[np.float64]:
    """Return for each strength the bits of the places of indices int64[≥ 1] in rows of one run, by their chances."""
    past = Columns(columns)
    number, place = indices // columns, indices % columns
    used, first = np.unique(number, return_index=True)
    pasts, bases, row = np.empty((used.size, columns), dtype=np.int64), [], 0
    for turn, (each, places) in enumerate(zip(used.tolist(), np.split(place, first[1:]), strict=True)):
        for _ in range(row, each):
            past.seen(_NONE)
        pasts[turn] = past.past
        bases.append(past.base)
        past.seen(places)
        row = each + 1
    chosen = np.zeros(pasts.shape, dtype=np.bool_)
    chosen[np.searchsorted(used, number), place] = True
    left = (chosen.sum(axis=1)[:, None] - chosen.cumsum(axis=1) + chosen).astype(np.float64)
    costs = np.zeros(len(STRENGTHS))
    for turn, strength in enumerate(STRENGTHS):
        weights = pasts * float(strength) + np.array(bases, dtype=np.float64)[:, None] * 4
        rest = weights[:, ::-1].cumsum(axis=1)[:, ::-1]
        chance = np.minimum(left * weights / rest, SURE)
        costs[turn] = -np.log2(np.where(chosen, chance, 1.0 - chance)).sum()
    return costs


def _count_costs(ends: list[int], runs: tuple[Run, ...], *, size: int) -> float:
    """Return the bits that the numbers of indices of the rows take, by their chances."""
    bits = 0.0
    for start, width, counts, first, last in _told(ends, runs, size=size):
        symbol = min(last - first, SYMBOLS - 1)
        if start + width < size:
            bits -= math.log2(counts.shares[symbol] / counts.total)
            bits += math.log2(width - symbol + 1) if symbol == SYMBOLS - 1 else 0
            counts.seen(symbol)
    return bits


def _put_count(coder: RangeEncoder, counts: Counts, count: int, width: int) -> None:
    symbol = min(count, SYMBOLS - 1)
    coder.put(sum(counts.shares[:symbol]), counts.shares[symbol], counts.total)
    if symbol == SYMBOLS - 1:
        coder.put(count - symbol, 1, width - symbol + 1)
    counts.seen(symbol)


def _put_places(coder: RangeEncoder, weights: Ints, places: list[int]) -> None:
    rest = weights[::-1].cumsum()[::-1].astype(np.float64)
    at = 0
    for turn, place in enumerate(places):
        left = len(places) - turn
        if at == weights.size - left:
            return
        bounds = bounds_of(weights, rest, at, left)
        i = place - at
        low = int(bounds[i]) if i < bounds.size else 0
        high = int(bounds[i - 1]) if i else TOTAL_LIMIT
        coder.put(low, high - low, TOTAL_LIMIT)
        at = place + 1


def _pack_runs(runs: tuple[Run, ...], strength: int) -> bytes:
    told = [varint(columns) + varint(rows) for rows, columns in runs[:-1]]
    return b"".join((bytes((strength << 6 | len(runs) - 1,)), *told, varint(runs[-1][1])))


def unpack_rows(reader: Reader, *, size: int, count: int) -> Ints:
    """Return `count` ≥ 1 indices; time and memory are bounded by the limits of this module. Raises PeerError."""
    if count > MAX_COUNT:
        raise PeerError("count-out-of-range", f"rows: {count} indices, limit {MAX_COUNT}")
    runs, strength = _unpack_runs(reader, size)
    coder = RangeDecoder(reader.take(reader.varint()))
    indices = np.empty(count, dtype=np.int64)
    found = 0
    columns_of = iter(columns for _, columns in runs)
    for start, width, begins in rows_of(runs, size):
        if begins:
            run = next(columns_of)
            counts, columns = Counts(count - found, size - start, run), Columns(run)
        number = _take_count(coder, counts, width) if start + width < size else count - found
        if number > min(count - found, width):
            raise PeerError(
                "count-mismatch", f"rows: {number} indices in a row of {width}, {count - found} left"
            )
        places = (
            _take_places(coder, columns.weights(STRENGTHS[strength])[:width], number) if number else _NONE
        )
        columns.seen(places)
        indices[found : found + number] = places
        indices[found : found + number] += start
        found += number
        if found == count:
            break
    coder.end()
    return indices


_NONE = np.empty(0, dtype=np.int64)


def _take_count(coder: RangeDecoder, counts: Counts, width: int) -> int:
    at, symbol, low = coder.peek(counts.total), 0, 0
    while at >= low + counts.shares[symbol]:
        low += counts.shares[symbol]
        symbol += 1
    coder.take(low, counts.shares[symbol])
    counts.seen(symbol)
    if symbol < SYMBOLS - 1:
        return symbol
    if width < symbol:
        raise PeerError("count-mismatch", f"rows: at least {symbol} indices in a row of {width}")
    more = coder.peek(width - symbol + 1)
    coder.take(more, 1)
    return symbol + more


def _take_places(coder: RangeDecoder, weights: Ints, number: int) -> Ints:
    rest = weights[::-1].cumsum()[::-1].astype(np.float64)
    places = np.empty(number, dtype=np.int64)
    at = 0
    for turn in range(number):
        left = number - turn
        if at == weights.size - left:
            places[turn:] = np.arange(at, weights.size)
            break
        bounds = bounds_of(weights, rest, at, left)
        x = coder.peek(TOTAL_LIMIT)
        i = int(np.count_nonzero(bounds > x))
        low = int(bounds[i]) if i < bounds.size else 0
        high = int(bounds[i - 1]) if i else TOTAL_LIMIT
        coder.take(low, high - low)
        places[turn] = at + i
        at += i + 1
    return places


def _unpack_runs(reader: Reader, size: int) -> tuple[tuple[Run, ...], int]:
    head = reader.u8()
    runs: list[Run] = []
    rows = at = 0
    for _ in range(head & 63):
        columns = reader.varint()
        runs.append((reader.varint(), columns))
        rows += runs[-1][0]
        at += runs[-1][0] * columns
    columns = reader.varint()
    if not 1 <= columns <= MAX_COLUMNS or at >= size:
        raise PeerError("bad-rows", f"rows: {at} coordinates and rows of {columns}, the model has {size}")
    runs.append((-((at - size) // columns), columns))
    if any(each[0] < 1 or not 1 <= each[1] <= MAX_COLUMNS for each in runs) or rows + runs[-1][0] > MAX_ROWS:
        raise PeerError(
            "bad-rows", f"rows: {rows + runs[-1][0]} rows, limit {MAX_ROWS}, of 1 to {MAX_COLUMNS} columns"
        )
    return tuple(runs), head >> 6
