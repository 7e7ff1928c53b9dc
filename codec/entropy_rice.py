"""Rice coding of the gaps between rising indices (Rice and Plaunt 1971; Golomb 1966), plain and adaptive.

Quotients stand in one unary stream and remainders in bit planes: both decode without a loop over elements.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedfleet.codec.wire import Reader, check_padding, varint
from fedfleet.protocol.errors import PeerError

__all__ = [
    "BLOCK",
    "MAX_PARAMETER",
    "check_rice",
    "gaps_of",
    "pack_adaptive",
    "pack_planes",
    "pack_rice",
    "positions",
    "rice_parameter",
    "sum_planes",
    "unary_stream",
    "unpack_adaptive",
    "unpack_rice",
]

Ints = npt.NDArray[np.int64]

MAX_PARAMETER = 31
BLOCK = 32  # nonzeros that share one parameter of adaptive Rice
_PLANES_PER_BYTE = 8
_WIDTHS = range(5)  # bits per block that tell its parameter above the lowest


def gaps_of(indices: Ints) -> Ints:
    """Return the gaps int64[k] before strictly rising indices: how many coordinates each leaves out."""
    gaps: Ints = np.empty_like(indices)
    gaps[:1] = indices[:1]
    np.subtract(indices[1:], indices[:-1], out=gaps[1:])
    gaps[1:] -= 1
    return gaps


def rice_parameter(gaps: Ints) -> int:
    """Return the parameter b with the fewest bits for gaps int64[k ≥ 1], each ≥ 0; the lowest of equals.

    The cost k (b + 1) + sum(gap >> b) falls and then rises with b (each step adds k and takes away at most half
    of a sum that falls), so the search starts where the mean gap says and walks down or up to the optimum.
    """
    costs: dict[int, int] = {}

    def bits(parameter: int) -> int:
        if parameter not in costs:
            costs[parameter] = gaps.size * (parameter + 1) + int((gaps >> parameter).sum())
        return costs[parameter]

    best = max(0, (int(gaps.sum()) // gaps.size).bit_length() - 1)
    while best > 0 and bits(best - 1) <= bits(best):
        best -= 1
    while bits(best + 1) < bits(best):
        best += 1
    return best


def pack_rice(gaps: Ints) -> bytes:
    """Return gaps int64[k ≥ 1] as bytes: k, the parameter, the unary stream, the bit planes."""
    parameter = rice_parameter(gaps)
    quotients = unary_stream(gaps >> parameter)
    planes = pack_planes(gaps, parameter)
    return b"".join((varint(gaps.size), bytes((parameter,)), varint(len(quotients)), quotients, planes))


def unpack_rice(reader: Reader, *, size: int, count: int) -> Ints:
    """Return `count` ≥ 1 indices: a unary run that leads far past `size` does not fit the longest stream."""
    parameter = _parameter(reader)
    quotients = reader.take(_unary_bytes(reader, count, (size - count) >> parameter))
    remainders = reader.take((count * parameter + 7) // 8)
    indices = positions(quotients, count)
    ramp = np.arange(count, dtype=np.int64)
    indices -= ramp
    indices <<= parameter
    indices += ramp
    if parameter:
        indices += sum_planes(remainders, count, parameter)
    return indices


def check_rice(reader: Reader, *, size: int, count: int) -> int:
    """Return the last of the `count` ≥ 1 indices that `unpack_rice` would return; the others are only counted.

    Raises as the other, in an eighth of its time: gaps cannot be negative, so the indices rise whatever they are.
    """
    parameter = _parameter(reader)
    quotients = reader.take(_unary_bytes(reader, count, (size - count) >> parameter))
    remainders = reader.take((count * parameter + 7) // 8)
    _check_unary(quotients, int.from_bytes(quotients, "big").bit_count(), count)
    zeros = 8 * len(quotients) - _zeros_behind(quotients[-1]) - count
    return (zeros << parameter) + count - 1 + (_sum(remainders, count, parameter) if parameter else 0)


def pack_adaptive(gaps: Ints) -> bytes | None:
    """Return gaps int64[k ≥ 1] as bytes with one parameter per `BLOCK` of them; None where one does for all."""
    parameters, lowest, width = _block_parameters(gaps)
    if width == 0:
        return None
    steps = parameters - lowest
    each = np.repeat(parameters, BLOCK)[: gaps.size]
    quotients = unary_stream(gaps >> each)
    bits = [(gaps[each > plane] >> plane).astype(np.uint8) & 1 for plane in range(int(parameters.max()))]
    planes = np.packbits(np.concatenate(bits)).tobytes() if bits else b""
    head = varint(gaps.size) + bytes((lowest, width)) + pack_planes(steps, width)
    return b"".join((head, varint(len(quotients)), quotients, planes))


def unpack_adaptive(reader: Reader, *, size: int, count: int) -> Ints:
    """Return `count` ≥ 1 indices, each block of gaps with its own parameter."""
    lowest, width = _parameter(reader), reader.u8()
    if not 1 <= width <= max(_WIDTHS) or lowest + (1 << width) - 1 > MAX_PARAMETER:
        raise PeerError("bad-parameter", f"adaptive rice: parameters from {lowest} in {width} bits")
    blocks = -(-count // BLOCK)
    steps = _planes(reader.take((blocks * width + 7) // 8), blocks, width)
    each = np.repeat(steps.astype(np.int64) + lowest, BLOCK)[:count]
    quotients = reader.take(_unary_bytes(reader, count, (size - count) >> lowest))
    remainders = reader.take((int(each.sum()) + 7) // 8)
    gaps = positions(quotients, count)
    gaps[1:] -= gaps[:-1] + 1
    gaps <<= each
    _add_ragged_planes(gaps, remainders, each)
    gaps += 1
    indices = np.cumsum(gaps)
    indices -= 1
    return indices


def unary_stream(quotients: Ints) -> bytes:
    """Return for each quotient that many zeros, then a one."""
    ends = np.cumsum(quotients)
    ends += np.arange(quotients.size)
    bits = np.zeros(int(ends[-1]) + 1, dtype=np.uint8)
    bits[ends] = 1
    return np.packbits(bits).tobytes()


def pack_planes(numbers: Ints, width: int) -> bytes:
    """Return the lowest `width` bits of each number: bit 0 of every one, then bit 1 of every one, …."""
    planes = np.empty((width, numbers.size), dtype=np.uint8)
    for plane in range(width):
        planes[plane] = (numbers >> plane) & 1
    return np.packbits(planes.reshape(-1)).tobytes()


def positions(stream: memoryview | bytes, count: int) -> Ints:
    """Return the positions int64[count] of the ones in the unary stream, the last one in its last byte."""
    ends = np.flatnonzero(np.unpackbits(np.frombuffer(stream, dtype=np.uint8)).view(np.bool_))
    _check_unary(stream, ends.size, count)
    return ends


def _check_unary(stream: memoryview | bytes, ones: int, count: int) -> None:
    if stream[-1] == 0:
        raise PeerError("stream-length", "rice: the unary stream ends with an empty byte")
    if ones != count:
        raise PeerError("count-mismatch", f"rice: unary stream of {ones} indices, expected {count}")


def _zeros_behind(last: int) -> int:
    """Return how many zeros stand behind the last one of a byte."""
    return (last & -last).bit_length() - 1


def _sum(stream: memoryview, count: int, width: int) -> int:
    """Return the sum of numbers from `width` ≥ 1 bit planes."""
    check_padding(stream[-1], count * width, "rice remainders")
    bits, mask = int.from_bytes(stream, "big") >> (-count * width % 8), (1 << count) - 1
    return sum(((bits >> (width - 1 - plane) * count) & mask).bit_count() << plane for plane in range(width))


def sum_planes(stream: memoryview, count: int, width: int) -> Ints:
    """Return the running sums int64[count] of numbers from `width` ≥ 1 bit planes."""
    return np.cumsum(_planes(stream, count, width), dtype=np.int64)


def _parameter(reader: Reader) -> int:
    parameter = reader.u8()
    if parameter > MAX_PARAMETER:
        raise PeerError("bad-parameter", f"rice: parameter {parameter}, limit {MAX_PARAMETER}")
    return parameter


def _unary_bytes(reader: Reader, count: int, zeros: int) -> int:
    """Read the length of a unary stream of `count` ones and at most `zeros` zeros."""
    longest = (count + zeros + 7) // 8
    length = reader.varint()
    if not (count + 7) // 8 <= length <= longest:
        raise PeerError("stream-length", f"rice: unary stream of {length} bytes, at most {longest} possible")
    return length


def _planes(stream: memoryview, count: int, width: int) -> npt.NDArray[np.unsignedinteger]:
    """Return numbers uint8 or uint32[count] from `width` bit planes, the lowest bit's first."""
    check_padding(stream[-1], count * width, "rice remainders")
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count * width)
    planes = bits.reshape(width, count)
    out: npt.NDArray[np.unsignedinteger] = _join_planes(planes[:_PLANES_PER_BYTE])
    for first in range(_PLANES_PER_BYTE, width, _PLANES_PER_BYTE):
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


def _add_ragged_planes(gaps: Ints, stream: memoryview, each: Ints) -> None:
    """Add to each gap its remainder of `each` bits: plane p holds bit p of those that have more than p bits."""
    total = int(each.sum())
    if not total:
        return
    check_padding(stream[-1], total, "rice remainders")
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=total)
    at = 0
    for plane in range(int(each.max())):
        having = np.flatnonzero(each > plane)
        gaps[having] += bits[at : at + having.size].astype(np.int64) << plane
        at += having.size


def _block_parameters(gaps: Ints) -> tuple[Ints, int, int]:
    """Return the parameter of each block, the lowest one, and the bits that tell each above it, at least cost."""
    starts = np.arange(0, gaps.size, BLOCK)
    counts = np.diff(np.append(starts, gaps.size))
    top = min(MAX_PARAMETER, int(gaps.max()).bit_length())
    costs = np.stack([np.add.reduceat(gaps >> b, starts) + counts * (b + 1) for b in range(top + 1)])
    found: list[tuple[int, int, int]] = []
    for width in _WIDTHS:
        for lowest in range(max(1, top + 2 - (1 << width))):
            if lowest + (1 << width) - 1 <= MAX_PARAMETER:
                best = costs[lowest : lowest + (1 << width)].min(axis=0)
                found.append((int(best.sum()) + width * starts.size, width, lowest))
    _, width, lowest = min(found)
    return costs[lowest : lowest + (1 << width)].argmin(axis=0) + lowest, lowest, width
