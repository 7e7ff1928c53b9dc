"""Index sets that repeat themselves: Rice coding with its unary stream in zstd, and a bitmap in zstd."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedfleet.codec.entropy_rice import (
    MAX_PARAMETER,
    pack_planes,
    positions,
    rice_parameter,
    sum_planes,
    unary_stream,
)
from fedfleet.codec.wire import Reader, deflate, inflate, inflated_blocks, varint
from fedfleet.protocol.errors import PeerError

__all__ = ["pack_bitmap", "pack_unary_zstd", "unpack_bitmap", "unpack_unary_zstd"]

Ints = npt.NDArray[np.int64]


def pack_unary_zstd(gaps: Ints) -> bytes:
    """Return gaps int64[k ≥ 1] as bytes: k, the parameter, both lengths of the unary stream, its frame, the planes."""
    best = rice_parameter(gaps)
    return min(
        (_with_parameter(gaps, b) for b in {max(0, best - 1), best}), key=lambda data: (len(data), data)
    )


def unpack_unary_zstd(reader: Reader, *, size: int, count: int) -> Ints:
    """Return `count` ≥ 1 indices; the caller has compared `count` with the bytes that are left."""
    parameter = reader.u8()
    if parameter > MAX_PARAMETER:
        raise PeerError("bad-parameter", f"rice zstd: parameter {parameter}, limit {MAX_PARAMETER}")
    length = reader.varint()
    longest = (count + ((size - count) >> parameter) + 7) // 8
    if not (count + 7) // 8 <= length <= longest:
        raise PeerError(
            "stream-length", f"rice zstd: unary stream of {length} bytes, at most {longest} possible"
        )
    frame = reader.take(reader.varint())
    remainders = reader.take((count * parameter + 7) // 8)
    quotients = inflate(frame, size=length, what="rice zstd")
    ramp = np.arange(count, dtype=np.int64)
    indices = ((positions(quotients, count) - ramp) << parameter) + ramp
    if parameter:
        indices += sum_planes(remainders, count, parameter)
    return indices


def pack_bitmap(indices: Ints, *, size: int) -> bytes:
    """Return rising indices int64[k ≥ 1] below `size` as bytes: k, and the bitmap's frame with its length."""
    bits = np.zeros(size, dtype=np.uint8)
    bits[indices] = 1
    frame = deflate(np.packbits(bits).tobytes())
    return varint(indices.size) + varint(len(frame)) + frame


def unpack_bitmap(reader: Reader, *, size: int, count: int) -> Ints:
    """Return `count` ≥ 1 indices, from one block of the bitmap after the other: O(count) and one block of memory."""
    frame = reader.take(reader.varint())
    indices = np.empty(count, dtype=np.int64)
    found = at = 0
    for block in inflated_blocks(frame, size=(size + 7) // 8, what="bitmap"):
        ones = np.flatnonzero(np.unpackbits(np.frombuffer(block, dtype=np.uint8)).view(np.bool_))
        if found + ones.size > count:
            raise PeerError("count-mismatch", f"bitmap: more than {count} indices")
        np.add(ones, at, out=indices[found : found + ones.size])
        found += ones.size
        at += 8 * len(block)
    if found != count:
        raise PeerError("count-mismatch", f"bitmap: {found} indices, expected {count}")
    return indices


def _with_parameter(gaps: Ints, parameter: int) -> bytes:
    quotients = unary_stream(gaps >> parameter)
    frame = deflate(quotients)
    head = varint(gaps.size) + bytes((parameter,)) + varint(len(quotients)) + varint(len(frame))
    return head + frame + pack_planes(gaps, parameter)
