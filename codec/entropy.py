"""Index sets as bytes, in the mode that takes the fewest: docs/codec-format.md, "Index modes"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from fedfleet.codec.entropy_rice import (
    BLOCK,
    check_rice,
    gaps_of,
    pack_adaptive,
    pack_rice,
    unpack_adaptive,
    unpack_rice,
)
from fedfleet.codec.entropy_rows import Run, pack_rows, unpack_rows
from fedfleet.codec.entropy_zstd import pack_bitmap, pack_unary_zstd, unpack_bitmap, unpack_unary_zstd
from fedfleet.codec.wire import Reader, varint
from fedfleet.protocol.errors import PeerError

__all__ = [
    "ADAPTIVE",
    "ALL",
    "BITMAP",
    "NAMES",
    "RICE",
    "ROWS",
    "UNARY_ZSTD",
    "check_indices",
    "pack_indices",
    "unpack_indices",
]

Ints = npt.NDArray[np.int64]

RICE, ADAPTIVE, UNARY_ZSTD, BITMAP, ROWS = 1, 2, 3, 4, 6
ALL = (RICE, ADAPTIVE, UNARY_ZSTD, BITMAP, ROWS)  # in the order in which equals are preferred
NAMES = {
    RICE: "rice",
    ADAPTIVE: "adaptive rice",
    UNARY_ZSTD: "rice zstd",
    BITMAP: "bitmap",
    ROWS: "rows",
}

_COMPRESSED = frozenset({UNARY_ZSTD, BITMAP, ROWS})
_WORTH_BITS = 3.0  # bits per block of nonzeros that must be in reach before anything but Rice is tried
_DENSE = 8  # from one coordinate in so many on, a bitmap is tried
_BITMAP_FACTOR = 32  # a bitmap longer than that many times the Rice bytes is not tried
_ROWS_SIZE = 1 << 20  # the largest part that is coded row by row: the choice looks at every coordinate
_ROWS_COUNT = 4096  # and the most coordinates: each takes about 10 µs to read

_UNPACK: dict[int, Callable[..., Ints]] = {
    RICE: unpack_rice,
    ADAPTIVE: unpack_adaptive,
    UNARY_ZSTD: unpack_unary_zstd,
    BITMAP: unpack_bitmap,
    ROWS: unpack_rows,
}


def pack_indices(
    indices: Ints, *, size: int, modes: tuple[int, ...] = ALL, rows: tuple[Run, ...] = ()
) -> tuple[int, bytes]:
    """Return the code of the index mode with the fewest bytes for these indices, and the bytes; Rice among equals.

    Indices are int64[k], strictly rising, each in 0 … size - 1. `modes` are those that may be chosen, Rice always.
    `rows` are hints, (rows, columns) of each tensor in turn, together `size`: what is alike along rows and columns
    is used. Modes without a prospect are not tried: a uniform set costs the time of Rice alone, and rows are not coded
    where they would not be smaller, to within a byte or two.
    """
    if indices.size == 0:
        return RICE, varint(0)
    gaps = gaps_of(indices)
    found = [(RICE, pack_rice(gaps))]
    found += _others(indices, gaps, size=size, modes=modes, rice_bytes=len(found[0][1]))
    if ROWS in modes and rows and size <= _ROWS_SIZE and indices.size <= _ROWS_COUNT:
        packed = pack_rows(indices, rows, size=size, below=min(len(each) for _, each in found))
        found += [(ROWS, packed)] if packed is not None else []
    return min(found, key=lambda one: (len(one[1]), one[0]))


def unpack_indices(reader: Reader, *, size: int, mode: int, valued: bool = True) -> Ints:
    """Return the strictly rising indices int64[k], each in 0 … size - 1, that `reader` stands before.

    Every length is checked against k and `size` before an array is made. In the modes where a coordinate may take
    less than a bit, k is checked against the bytes that are left when at least one bit of each follows (`valued`).
    Raises PeerError, for a mode not in `ALL` too.
    """
    if mode not in ALL:
        raise PeerError("unknown-mode", f"index mode {mode}")
    count = _count(reader, size=size, mode=mode, valued=valued)
    if count == 0:
        return np.empty(0, dtype=np.int64)
    indices = _UNPACK[mode](reader, size=size, count=count)
    _check_last(int(indices[-1]), size=size, mode=mode)
    return indices


def check_indices(reader: Reader, *, size: int, mode: int) -> int:
    """Return how many indices `unpack_indices` would return, after every check that it makes.

    In mode Rice they are not made, which takes an eighth of the time.
    """
    if mode != RICE:
        return unpack_indices(reader, size=size, mode=mode).size
    count = _count(reader, size=size, mode=mode, valued=True)
    if count:
        _check_last(check_rice(reader, size=size, count=count), size=size, mode=mode)
    return count


def _count(reader: Reader, *, size: int, mode: int, valued: bool) -> int:
    count = reader.varint()
    if count > size:
        raise PeerError("count-out-of-range", f"{NAMES[mode]}: {count} indices of {size} coordinates")
    if count == 0 and mode != RICE:
        raise PeerError("count-out-of-range", f"{NAMES[mode]}: an empty set is sent as rice")
    if valued and mode in _COMPRESSED and count > 8 * reader.left:
        raise PeerError("truncated", f"{NAMES[mode]}: {count} indices in {reader.left} bytes")
    return count


def _check_last(last: int, *, size: int, mode: int) -> None:
    if last >= size:
        raise PeerError("index-out-of-range", f"{NAMES[mode]}: index {last} of {size} coordinates")


def _others(
    indices: Ints, gaps: Ints, *, size: int, modes: tuple[int, ...], rice_bytes: int
) -> Iterator[tuple[int, bytes]]:
    """Yield what the modes between Rice and rows make of a set that is far from uniform, or dense."""
    uneven = _uneven_bits(gaps) > _WORTH_BITS
    if uneven and ADAPTIVE in modes:
        packed = pack_adaptive(gaps)
        if packed is not None:
            yield ADAPTIVE, packed
    if uneven and UNARY_ZSTD in modes:
        yield UNARY_ZSTD, pack_unary_zstd(gaps)
    dense = indices.size * _DENSE > size
    if BITMAP in modes and (dense or (uneven and size <= 8 * _BITMAP_FACTOR * rice_bytes)):
        yield BITMAP, pack_bitmap(indices, size=size)


def _uneven_bits(gaps: Ints) -> float:
    """Return by how many bits per block the best parameter of each block is better than that of all, about."""
    whole = gaps.size // BLOCK
    if whole < 2:
        return 0.0
    sums = gaps[: whole * BLOCK].reshape(whole, BLOCK).sum(axis=1) + BLOCK
    return BLOCK * (math.log2(float(sums.mean())) - float(np.log2(sums).mean()))
