"""Index sets as bytes: Rice coding of the gaps between rising indices (Rice and Plaunt 1971; Golomb 1966).

Quotients stand in one unary stream and remainders in bit planes: both decode without a loop over elements.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedfleet.codec.wire import Reader, check_padding, varint
from fedfleet.protocol.errors import PeerError

__all__ = ["ALL", "MAX_PARAMETER", "RICE", "pack_indices", "rice_parameter", "unpack_indices"]

RICE = 1
ALL = (RICE,)  # codes of the index modes that name coordinates, in the order in which equals are preferred
MAX_PARAMETER = 31
_PLANES_PER_BYTE = 8


def rice_parameter(gaps: npt.NDArray[np.int64]) -> int:
    """Return the parameter b with the fewest bits for gaps int64[k ≥ 1], each ≥ 0; the lowest of equals.

    The cost k (b + 1) + sum(gap >> b) is never below k (b + 1), so the search ends, with the true optimum.
    """
    best, best_bits = 0, gaps.size + int(gaps.sum())
    parameter = 1
    while gaps.size * (parameter + 1) < best_bits:
        bits = gaps.size * (parameter + 1) + int((gaps >> parameter).sum())
        if bits < best_bits:
            best, best_bits = parameter, bits
        parameter += 1
    return best


def pack_indices(
    indices: npt.NDArray[np.int64], *, size: int, modes: tuple[int, ...] = ALL, columns: tuple[int, ...] = ()
) -> tuple[int, bytes]:
    """Return the code of the index mode, of `modes`, with the fewest bytes for these indices, and the bytes.

    Indices are int64[k], strictly rising, each in 0 … size - 1. `columns` are hints: lengths of rows that may be
    alike inside (a layer's inputs).
    """
    del size, modes, columns
    return RICE, _pack_rice(indices)


def unpack_indices(reader: Reader, *, size: int, mode: int) -> npt.NDArray[np.int64]:
    """Return the strictly rising indices int64[k], each in 0 … size - 1, that `reader` stands before.

    Every length is checked against k and `size` before an array is made. Raises PeerError, for a mode not in `ALL` too.
    """
    if mode not in ALL:
        raise PeerError("unknown-mode", f"index mode {mode}")
    return _unpack_rice(reader, size=size)


def _pack_rice(indices: npt.NDArray[np.int64]) -> bytes:
    """Return the counts, the unary stream, the bit planes; docs/codec-format.md, "Rice"."""
    if indices.size == 0:
        return varint(0)
    gaps = np.diff(indices, prepend=np.int64(-1)) - 1
    parameter = rice_parameter(gaps)
    ends = np.cumsum(gaps >> parameter) + np.arange(gaps.size)
    unary = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    unary[ends] = 1
    quotients = np.packbits(unary).tobytes()
    planes = [(gaps >> plane).astype(np.uint8) & 1 for plane in range(parameter)]
    remainders = np.packbits(np.concatenate(planes)).tobytes() if planes else b""
    return b"".join((varint(gaps.size), bytes((parameter,)), varint(len(quotients)), quotients, remainders))


def _unpack_rice(reader: Reader, *, size: int) -> npt.NDArray[np.int64]:
    """Return the indices: a unary run that leads far past `size` does not fit the longest stream."""
    count = reader.varint()
    if count > size:
        raise PeerError("count-out-of-range", f"rice: {count} indices of {size} coordinates")
    if count == 0:
        return np.empty(0, dtype=np.int64)
    parameter = reader.u8()
    if parameter > MAX_PARAMETER:
        raise PeerError("bad-parameter", f"rice: parameter {parameter}, limit {MAX_PARAMETER}")
    longest = (count + ((size - count) >> parameter) + 7) // 8
    length = reader.varint()
    if not (count + 7) // 8 <= length <= longest:
        raise PeerError("stream-length", f"rice: unary stream of {length} bytes, at most {longest} possible")
    quotients = reader.take(length)
    remainders = reader.take((count * parameter + 7) // 8)
    indices = _ends(quotients, count)
    ramp = np.arange(count, dtype=np.int64)
    indices -= ramp
    indices <<= parameter
    indices += ramp
    if parameter:
        indices += np.cumsum(_remainders(remainders, count, parameter), dtype=np.int64)
    if int(indices[-1]) >= size:
        raise PeerError("index-out-of-range", f"rice: index {int(indices[-1])} of {size} coordinates")
    return indices


def _ends(stream: memoryview, count: int) -> npt.NDArray[np.int64]:
    """Return the positions int64[count] of the ones in the unary stream, the last one in its last byte."""
    if stream[-1] == 0:
        raise PeerError("stream-length", "rice: the unary stream ends with an empty byte")
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(stream, dtype=np.uint8)).view(np.bool_))
    if ends.size != count:
        raise PeerError("count-mismatch", f"rice: unary stream of {ends.size} indices, expected {count}")
    return ends


def _remainders(stream: memoryview, count: int, parameter: int) -> npt.NDArray[np.unsignedinteger]:
    """Return the remainders uint8 or uint32[count] from `parameter` bit planes, the lowest bit's first."""
    check_padding(stream[-1], count * parameter, "rice remainders")
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count * parameter)
    planes = bits.reshape(parameter, count)
    out: npt.NDArray[np.unsignedinteger] = _join_planes(planes[:_PLANES_PER_BYTE])
    for first in range(_PLANES_PER_BYTE, parameter, _PLANES_PER_BYTE):
        high = _join_planes(planes[first : first + _PLANES_PER_BYTE]).astype(np.uint32)
        out = out | (high << np.uint32(first))
    return out


def _join_planes(planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return uint8[count] from at most eight planes of single bits."""
    out: npt.NDArray[np.uint8] = planes[-1].copy()
    for plane in planes[-2::-1]:
        out += out  # a shift; numpy adds bytes eight times as fast
        out |= plane
    return out
