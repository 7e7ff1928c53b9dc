"""Which coordinates are sent: the exact top k by magnitude, with a sampled prefilter for speed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedfleet.protocol.errors import UsageError

__all__ = ["magnitude_bits", "top_k"]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = 0x7F800000
_SAMPLE = 16_384  # magnitudes looked at to guess the threshold
_SLACK_SIGMAS = 4.0  # how far beyond `count` the guess aims, so that it rarely falls short


def magnitude_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Return the bits of |values| as uint32[M]: they order as the magnitudes do.

    Raises UsageError that names the first index which holds NaN or an infinity.
    """
    bits: npt.NDArray[np.uint32] = values.view(np.uint32) & _MAGNITUDE
    if bits.size and int(bits.max()) >= _INFINITY:
        at = int(np.argmax(bits >= _INFINITY))
        raise UsageError(f"delta: expected finite numbers, got {values[at]} at index {at} of {values.size}")
    return bits


def top_k(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Return rising indices int64[≤ count] of the largest magnitudes in values float32[M], zeros left out.

    Among equal magnitudes the lowest index wins, so the result depends on nothing but the values.
    Raises UsageError when a value is not finite.
    """
    bits = magnitude_bits(values)
    candidates = _candidates(bits, count)
    strength = bits[candidates]
    if candidates.size > count:
        threshold = np.partition(strength, candidates.size - count)[candidates.size - count]
        above = strength > threshold
        ties = np.flatnonzero(strength == threshold)[: count - int(np.count_nonzero(above))]
        above[ties] = True
        candidates = candidates[above]
    return candidates


def _candidates(bits: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.int64]:
    """Return rising indices of nonzero magnitudes, among them the top `count` with all their ties."""
    guess = _sampled_threshold(bits, count)
    candidates = np.flatnonzero(bits >= guess)
    if candidates.size < count and guess > 1:
        candidates = np.flatnonzero(bits)
    return candidates


def _sampled_threshold(bits: npt.NDArray[np.uint32], count: int) -> int:
    """Return a magnitude, at least the smallest nonzero one, that slightly more than `count` should reach."""
    sample = bits[:: max(1, bits.size // _SAMPLE)]
    expected = sample.size * count / bits.size
    rank = int(expected + _SLACK_SIGMAS * expected**0.5) + 4
    if bits.size <= _SAMPLE or rank >= sample.size:
        return 1
    return max(1, int(np.partition(sample, sample.size - rank)[sample.size - rank]))
