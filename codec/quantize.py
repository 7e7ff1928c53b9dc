"""Values as bytes: sign + mean, 2 to 8 bits, float32; and the receiver's exact arithmetic."""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from fedfleet.codec.wire import Reader, check_padding
from fedfleet.protocol.errors import PeerError

__all__ = ["pack_values", "unpack_values"]

_LEVELS = 127
_SIGN = np.uint32(31)
_LARGEST_SCALE = float(np.nextafter(np.float32(np.finfo(np.float32).max / _LEVELS), np.float32(0)))
_CODE_BITS = {"int2": 1, "int3": 2, "int4": 3}
_FIT_SAMPLE = 65_536  # magnitudes that the centroids are fitted to, at most about twice as many
_FIT_ROUNDS = 30


def pack_values(values: npt.NDArray[np.float32], mode: str) -> bytes:
    """Return finite values float32[k] in the given value mode; nothing at all when k is 0."""
    if values.size == 0:
        return b""
    if mode == "sign":
        mean = np.float32(np.abs(values).mean(dtype=np.float64))
        return struct.pack("<f", mean) + np.packbits(values < 0).tobytes()
    if mode == "int8":
        return _pack_int8(values)
    if mode in _CODE_BITS:
        return _pack_table(values, bits=_CODE_BITS[mode])
    return values.astype("<f4", copy=False).tobytes()


def unpack_values(reader: Reader, *, mode: str, count: int, sparse: bool) -> npt.NDArray[np.float32]:
    """Return the finite values float32[count] that `reader` stands before.

    A scale of zero is accepted only when not `sparse`: who names a coordinate says something about it.
    Raises PeerError.
    """
    if count == 0:
        return np.empty(0, dtype=np.float32)
    if mode == "float32":
        return _unpack_float32(reader.take(4 * count))
    if mode in _CODE_BITS:
        return _unpack_table(reader, mode=mode, count=count, sparse=sparse)
    scale = reader.f32()
    limit = math.inf if mode == "sign" else _LARGEST_SCALE
    if not math.isfinite(scale) or scale > limit or math.copysign(1.0, scale) < 0 or (sparse and scale == 0):
        raise PeerError("bad-scale", f"{mode}: scale {scale}")
    if mode == "sign":
        return _unpack_sign(reader.take((count + 7) // 8), count=count, mean=scale)
    return _unpack_int8(reader.take(count), scale=scale)


def _pack_int8(values: npt.NDArray[np.float32]) -> bytes:
    smallest = float(np.finfo(np.float32).smallest_subnormal)
    largest = float(np.abs(values).max())
    scale = np.float32(min(max(largest / _LEVELS, smallest if largest else 0.0), _LARGEST_SCALE))
    levels = np.zeros(values.size) if scale == 0 else np.rint(values / np.float64(scale))
    return struct.pack("<f", scale) + np.clip(levels, -_LEVELS, _LEVELS).astype(np.int8).tobytes()


def _unpack_sign(stream: memoryview, *, count: int, mean: float) -> npt.NDArray[np.float32]:
    """Return +mean or -mean: the sign bit set on the mean's own bits, so nothing is rounded."""
    check_padding(stream[-1], count, "signs")
    signs = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count).astype(np.uint32)
    signs <<= _SIGN
    signs |= np.float32(mean).view(np.uint32)
    return signs.view(np.float32)


def _unpack_int8(stream: memoryview, *, scale: float) -> npt.NDArray[np.float32]:
    """Return float32(level) * float32(scale), one float32 multiplication each."""
    levels = np.frombuffer(stream, dtype=np.int8)
    if int(levels.min()) < -_LEVELS:
        at = int(levels.argmin())
        raise PeerError("bad-level", f"int8: level -128 at position {at}, expected -127 to 127")
    return levels.astype(np.float32) * np.float32(scale)


def _fit(magnitudes: npt.NDArray[np.float32], *, bits: int) -> npt.NDArray[np.float32]:
    """Return 2^bits centroids float32, not falling, of magnitudes float32[k ≥ 1] (Lloyd 1982, from quantiles)."""
    ordered = np.sort(magnitudes[:: max(1, magnitudes.size // _FIT_SAMPLE)]).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    cells = 1 << bits
    centroids = ordered[(2 * np.arange(cells) + 1) * ordered.size // (2 * cells)]
    edges = np.zeros(cells + 1, dtype=np.int64)
    for _ in range(_FIT_ROUNDS):
        inner = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        found = np.concatenate([[0], inner, [ordered.size]])
        if (found == edges).all():
            break
        edges, held = found, np.diff(found)
        centroids = np.where(held, np.diff(sums[found]) / np.maximum(held, 1), centroids)
    inside = np.clip(np.maximum.accumulate(centroids), ordered[0], ordered[-1])  # the sums were rounded
    return inside.astype(np.float32)


def _pack_table(values: npt.NDArray[np.float32], *, bits: int) -> bytes:
    magnitudes = np.abs(values)
    centroids = _fit(magnitudes, bits=bits)
    exact = centroids.astype(np.float64)
    codes = np.searchsorted((exact[1:] + exact[:-1]) / 2, magnitudes.astype(np.float64)).astype(np.uint8)
    planes = np.concatenate([(codes >> plane) & 1 for plane in range(bits)])
    return b"".join(
        (
            centroids.astype("<f4").tobytes(),
            np.packbits(values < 0).tobytes(),
            np.packbits(planes).tobytes(),
        )
    )


def _unpack_table(reader: Reader, *, mode: str, count: int, sparse: bool) -> npt.NDArray[np.float32]:
    """Return each coordinate's centroid with its sign bit set on the centroid's own bits."""
    bits = _CODE_BITS[mode]
    centroids = np.frombuffer(reader.take(4 << bits), dtype="<f4").astype(np.float32)
    falling = not (centroids[:-1] <= centroids[1:]).all()  # so is a NaN
    zero = sparse and centroids[0] == 0
    if falling or zero or not math.isfinite(centroids[-1]) or np.signbit(centroids).any():
        raise PeerError("bad-centroid", f"{mode}: centroids {centroids.tolist()}")
    stream, planes = reader.take((count + 7) // 8), reader.take((count * bits + 7) // 8)
    check_padding(stream[-1], count, "signs")
    check_padding(planes[-1], count * bits, f"{mode} codes")
    codes = np.unpackbits(np.frombuffer(planes, dtype=np.uint8), count=count * bits).reshape(bits, count)
    for plane in range(1, bits):
        codes[0] |= codes[plane] << np.uint8(plane)
    signs = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=count).astype(np.uint32)
    signs <<= _SIGN
    signs |= centroids.view(np.uint32)[codes[0]]
    return signs.view(np.float32)


def _unpack_float32(stream: memoryview) -> npt.NDArray[np.float32]:
    values = np.frombuffer(stream, dtype="<f4").astype(np.float32, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        at = int(np.argmin(finite))
        raise PeerError("non-finite-value", f"float32: {values[at]} at index {at}")
    return values
