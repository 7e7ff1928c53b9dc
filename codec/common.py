"""Coordinates that a plan names by a rule, so that none is sent: the same for every vehicle and for the server. Pure.

The rule (docs/codec-format.md, "Coordinates by plan"): what moved most in the step to the base version, and a share
that the seed draws, so that every coordinate comes up.
"""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import numpy.typing as npt

from fedfleet.codec.delta import Delta
from fedfleet.codec.parts import Parts
from fedfleet.codec.select import top_k

__all__ = ["common"]

Indices = npt.NDArray[np.int64]


def common(step: Delta | None, parts: Parts, *, density: float, seeded: float, seed: str) -> Indices:
    """Return rising int64[k]: k = max(1, round(density * n)) of the n coordinates in sparse parts.

    round(seeded * k) of them, and what the step (None: there is none) has too few for, are drawn: the unused
    coordinates i with the smallest SplitMix64(h + i), h the first 8 bytes of SHA-256(seed), big-endian. The others
    have the largest magnitudes in the step; the lowest of equal ones wins. Empty when no part is sparse.
    """
    free = np.zeros(parts.size, dtype=np.bool_)
    for start, end in (span for part in parts.coded if part.coding == "sparse" for span in part.spans):
        free[start:end] = True
    available = int(np.count_nonzero(free))
    count = min(available, max(1, round(density * available)))
    moved = _moved(step, free, count - min(count, round(seeded * count)))
    free[moved] = False
    drawn = _drawn(np.flatnonzero(free), count - moved.size, seed)
    return np.sort(np.concatenate([moved, drawn]))


def _moved(step: Delta | None, free: npt.NDArray[np.bool_], count: int) -> Indices:
    if step is None or count == 0:
        return np.empty(0, dtype=np.int64)
    indices = np.arange(step.size, dtype=np.int64) if step.indices is None else step.indices
    usable = free[indices]
    indices, values = indices[usable], step.values[usable]
    return indices[top_k(values, count)] if indices.size else indices


def _drawn(candidates: Indices, count: int, seed: str) -> Indices:
    start = np.uint64(int.from_bytes(sha256(seed.encode()).digest()[:8], "big"))
    keys = _splitmix64(candidates.astype(np.uint64) + start)
    if count < candidates.size:  # keys are distinct: the mix is a bijection
        candidates = candidates[np.argpartition(keys, count)[:count]] if count else candidates[:0]
    return candidates


def _splitmix64(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the output function of SplitMix64 (Steele, Lea, Flood 2014); arithmetic wraps at 2^64."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
