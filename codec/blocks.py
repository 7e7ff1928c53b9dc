"""One part's coordinates and values as bytes: mode, size, index part, value part; docs/codec-format.md, "Block"."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedfleet.codec import entropy, stochastic
from fedfleet.codec.parts import Part
from fedfleet.codec.quantize import pack_values, unpack_values
from fedfleet.codec.select import magnitude_bits, top_k
from fedfleet.codec.settings import Settings
from fedfleet.codec.wire import Reader, varint
from fedfleet.protocol.errors import PeerError, UsageError

__all__ = [
    "BY_PLAN",
    "DENSE",
    "DENSE_FLOAT32_LIMIT",
    "MAX_SIZE",
    "VALUE_CODES",
    "VALUE_NAMES",
    "Block",
    "pack",
    "unpack",
]

MAX_SIZE = (1 << 31) - 1
DENSE = 0
BY_PLAN = 5
VALUE_CODES = {"sign": 0, "int8": 1, "float32": 2, "int2": 3, "int3": 4, "int4": 5, "stochastic4": 6}
VALUE_NAMES = {code: name for name, code in VALUE_CODES.items()}
DENSE_FLOAT32_LIMIT = 256
"""A "dense" part of up to this many coordinates is sent in float32, a larger one without statistics in eight bits."""

_STOCHASTIC = VALUE_CODES["stochastic4"]
_FLOAT32 = VALUE_CODES["float32"]
_CHECKSUM_BYTES = 4

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Block:
    """A part as received: `values` float32[k] at the part's own rising `indices` int64[k], or at all (None).

    `count` is k as stated; `bytes` are the lengths of head, index part and value part.
    """

    index_mode: int
    value_mode: int
    size: int
    count: int
    indices: Indices | None
    values: Floats
    bytes: tuple[int, int, int]


def pack(
    part: Part,
    values: Floats,
    settings: Settings,
    *,
    named: Indices | None = None,
    seed: tuple[int, ...] | None = None,
) -> bytes:
    """Return the block of the part's own values float32[n]; `named` are the plan's coordinates, the part's own.

    Raises UsageError when a value is not finite, or what the settings need is not given.
    """
    if part.coding == "dense" or settings.index == "dense":
        magnitude_bits(values)  # refuses what is not finite
        value = settings.value if part.coding == "sparse" else _dense_value(part, settings)
        head = bytes((DENSE << 4 | VALUE_CODES[value],)) + varint(part.size)
        if value == "stochastic4":
            if seed is None:
                raise UsageError('codec value "stochastic4" needs a seed')
            return head + stochastic.pack(values, density=settings.density, seed=seed)
        return head + pack_values(values, value)
    code = VALUE_CODES[settings.value]
    if settings.index == "common":
        if named is None:
            raise UsageError('codec index "common" needs the coordinates that the plan names')
        magnitude_bits(values)
        coordinates = varint(named.size) + _checksum(named)
        return (
            bytes((BY_PLAN << 4 | code,))
            + varint(part.size)
            + coordinates
            + pack_values(values[named], settings.value)
        )
    indices = _select(values, part, settings)
    rows = part.rows if settings.effort == "full" else ()
    mode, coordinates = entropy.pack_indices(indices, size=part.size, rows=rows)
    head = bytes((mode << 4 | code,)) + varint(part.size)
    return head + coordinates + pack_values(values[indices], settings.value)


def unpack(
    reader: Reader,
    *,
    part: Part | None,
    named: Indices | None = None,
    largest: int = MAX_SIZE,
    placed: bool = True,
) -> Block:
    """Return the block that `reader` stands before, after every check.

    With `part` None any size up to `largest` and any known mode is accepted, to look at. Not `placed`, the values'
    indices are checked but may be left out (None), which is faster. Raises PeerError.
    """
    left = reader.left
    mode = reader.u8()
    index, value = mode >> 4, mode & 15
    _check_known(index, value)
    if part is not None:
        _check_expected(part, index, value, by_plan=named is not None)
    size = reader.varint()
    if part is not None and size != part.size:
        raise PeerError("size-mismatch", f"delta of {size} parameters, the model has {part.size}")
    if not 1 <= size <= largest:
        raise PeerError("size-mismatch", f"delta of {size} parameters, expected 1 to {largest}")
    head, indices = left - reader.left, None
    count = size
    if index == BY_PLAN:
        indices, count = named, _unpack_by_plan(reader, size=size, named=named)
    elif index != DENSE and not placed:
        count = entropy.check_indices(reader, size=size, mode=index)
    elif index != DENSE:
        indices = entropy.unpack_indices(reader, size=size, mode=index)
        count = indices.size
    elif value == _STOCHASTIC:
        indices = stochastic.unpack_set(reader, size)
        count = indices.size
    before_values = reader.left
    if value == _STOCHASTIC and indices is not None:
        values = stochastic.unpack(reader, indices, size=size)
    else:
        sparse = index not in (DENSE, BY_PLAN)
        values = unpack_values(reader, mode=VALUE_NAMES[value], count=count, sparse=sparse)
    lengths = (head, left - head - before_values, before_values - reader.left)
    return Block(index, value, size, count, indices, values, lengths)


def _dense_value(part: Part, settings: Settings) -> str:
    is_exact = part.is_exact or part.size <= DENSE_FLOAT32_LIMIT
    return "float32" if settings.value == "float32" or is_exact else "int8"


def _select(values: Floats, part: Part, settings: Settings) -> Indices:
    """Return the rising coordinates to send: each tensor's floor first, then the strongest of what is left."""
    count = settings.count(part.size)
    if not settings.layer_floor or len(part.spans) == 1:
        return top_k(values, count)
    chosen = [
        top_k(values[start:end], max(1, round(settings.layer_floor * (end - start)))) + start
        for start, end in part.tensors
    ]
    first = np.concatenate(chosen)
    if first.size >= count:
        return first
    rest = values.copy()
    rest[first] = 0
    return np.sort(np.concatenate([first, top_k(rest, count - first.size)]))


def _checksum(named: Indices) -> bytes:
    return zlib.crc32(named.astype("<u4").tobytes()).to_bytes(_CHECKSUM_BYTES, "little")


def _unpack_by_plan(reader: Reader, *, size: int, named: Indices | None) -> int:
    count = reader.varint()
    if count > size:
        raise PeerError("count-out-of-range", f"by plan: {count} indices of {size} coordinates")
    told = bytes(reader.take(_CHECKSUM_BYTES))
    if named is None:
        return count
    if count != named.size:
        raise PeerError("count-mismatch", f"by plan: {count} coordinates, the plan names {named.size}")
    if told != _checksum(named):
        raise PeerError("coordinates-mismatch", f"by plan: {count} other coordinates than the plan names")
    return count


def _check_known(index: int, value: int) -> None:
    exact = index in (DENSE, BY_PLAN)
    known = value in VALUE_NAMES and (value != _STOCHASTIC or index == DENSE) and (value != _FLOAT32 or exact)
    if not (known and (exact or index in entropy.ALL)):
        raise PeerError("unknown-mode", f"index mode {index} with value mode {value}")


def _check_expected(part: Part, index: int, value: int, *, by_plan: bool) -> None:
    if part.coding == "dense":
        good = index == DENSE and value in (VALUE_CODES["int8"], _FLOAT32)
    else:
        good = (index == BY_PLAN) == by_plan
    if not good:
        told = "by plan" if by_plan else part.coding
        raise PeerError("unexpected-mode", f"index mode {index} with value mode {value} in a {told} part")
