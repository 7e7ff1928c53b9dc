"""Dense stochastic 4 bit: every value rounded at random to a multiple of its block's step, so that the mean is exact.

The step is chosen for an expected share of levels that are not zero (Wangni et al. 2018, "Gradient sparsification
for communication-efficient distributed optimization"; Alistarh et al. 2017, QSGD, for the levels), and what is not
zero is named by the index coder: the coordinates, then among them those of at least level 2, then 3, … up to 7.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from fedfleet.codec import entropy
from fedfleet.codec.wire import Reader, check_padding
from fedfleet.protocol.errors import PeerError

__all__ = ["BLOCK", "LEVELS", "pack", "unpack", "unpack_set"]

LEVELS = 7
BLOCK = 4096  # coordinates that share a step
_SPARE_BITS = 3  # a step has this many zero bits at the end, so that level * step is exact
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
_MAX_EXPONENT = 255

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def pack(values: Floats, *, density: float, seed: tuple[int, ...]) -> bytes:
    """Return finite values float32[n] with about `density` * n levels that are not zero.

    The expectation of what is decoded, over seeds, is `values`. Equal arguments give equal levels.
    """
    magnitudes = np.abs(values).astype(np.float64)
    peaks = np.maximum.reduceat(magnitudes, np.arange(0, values.size, BLOCK))
    if not peaks.any():
        return _pack_set(np.empty(0, dtype=np.int64), values.size)
    step = _step(magnitudes, peaks, density * values.size)
    exponents = _exponents(peaks, step)
    steps = np.ldexp(step, exponents)
    magnitudes /= np.repeat(steps, BLOCK)[: values.size]
    magnitudes += np.random.Generator(np.random.PCG64(seed)).random(values.size)
    levels = np.minimum(np.floor(magnitudes), np.repeat(_highest(steps), BLOCK)[: values.size]).astype(
        np.uint8
    )
    indices = np.flatnonzero(levels)
    if not indices.size:
        return _pack_set(indices, values.size)
    sent = levels[indices]
    signs = np.packbits(values[indices] < 0).tobytes()
    head = _pack_set(indices, values.size) + struct.pack("<f", step) + exponents.astype(np.uint8).tobytes()
    return head + signs + _pack_levels(sent)


def unpack(reader: Reader, indices: Indices, *, size: int) -> Floats:
    """Return the values float32[k] of the rising coordinates int64[k] that are not zero. Raises PeerError."""
    count = indices.size
    if not count:
        return np.empty(0, dtype=np.float32)
    step = reader.f32()
    if not (math.isfinite(step) and step > 0):
        raise PeerError("bad-scale", f"stochastic4: step {step}")
    exponents = np.frombuffer(reader.take(-(-size // BLOCK)), dtype=np.uint8)
    signs = reader.take((count + 7) // 8)
    check_padding(signs[-1], count, "signs")
    levels = _unpack_levels(reader, count).astype(np.float64)
    levels *= np.ldexp(step, exponents[indices // BLOCK].astype(np.int32))
    if float(levels.max()) > _LARGEST:
        raise PeerError("bad-scale", f"stochastic4: a value of {levels.max()} is beyond float32")
    values = levels.astype(np.float32)
    np.negative(
        values, out=values, where=np.unpackbits(np.frombuffer(signs, np.uint8), count=count).view(bool)
    )
    return values


def _pack_set(indices: Indices, size: int) -> bytes:
    mode, data = entropy.pack_indices(indices, size=size)
    return bytes((mode,)) + data


def unpack_set(reader: Reader, size: int, *, valued: bool = True) -> Indices:
    """Return a set of coordinates among `size`, written as index mode and index part. Raises PeerError.

    `valued`: at least one bit for each follows.
    """
    return entropy.unpack_indices(reader, size=size, mode=reader.u8(), valued=valued)


def _pack_levels(levels: npt.NDArray[np.uint8]) -> bytes:
    out = []
    for level in range(2, LEVELS + 1):
        higher = np.flatnonzero(levels >= level)
        out.append(_pack_set(higher, levels.size))
        levels = levels[higher]
        if not higher.size:
            break
    return b"".join(out)


def _unpack_levels(reader: Reader, count: int) -> npt.NDArray[np.uint8]:
    levels = np.ones(count, dtype=np.uint8)
    inside = np.arange(count)
    for level in range(2, LEVELS + 1):
        inside = inside[unpack_set(reader, inside.size, valued=False)]
        if not inside.size:
            break
        levels[inside] = level
    return levels


def _step(magnitudes: npt.NDArray[np.float64], peaks: npt.NDArray[np.float64], wanted: float) -> float:
    """Return the step for which `wanted` levels are expected not to be zero, or the least that a block can need."""
    least = float(peaks[peaks > 0].min()) / LEVELS
    step, certain = 0.0, 0
    total = float(magnitudes.sum())
    while certain < wanted:
        before, step = step, total / (wanted - certain)
        if before and step >= before * (1 - 1e-6):
            break
        sure = magnitudes >= step
        certain, total = int(np.count_nonzero(sure)), float(magnitudes.sum(where=~sure))
        if not total:
            break
    return _rounded_up(max(step, least))


def _rounded_up(step: float) -> float:
    """Return the least float32 ≥ step with spare bits for a level, within float32."""
    quantum = max(math.ldexp(1.0, math.frexp(step)[1] - 24 + _SPARE_BITS), _SMALLEST)
    return min(math.ceil(step / quantum) * quantum, math.ldexp(1.0, 127))


def _exponents(peaks: npt.NDArray[np.float64], step: float) -> npt.NDArray[np.int32]:
    """Return for each block the least doubling of the step of which LEVELS reach its peak."""
    _, exponents = np.frexp(peaks / (LEVELS * step))
    exact = np.ldexp(1.0, exponents - 1) * (LEVELS * step) >= peaks
    doublings: npt.NDArray[np.int32] = np.clip(exponents - exact, 0, _MAX_EXPONENT).astype(np.int32)
    return doublings


def _highest(steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the highest level of each block of which the value is finite in float32."""
    return np.minimum(np.floor(_LARGEST / steps), LEVELS)
