"""Which coordinates are sent: the exact top k by magnitude, with a sampled prefilter for speed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fedfleet.protocol.errors import UsageError

__all__ = ["magnitude_bits", "top_k"]

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INFINITY = 0x7F800000
_SAMPLE = 16_384  # magnitudes looked at to guess the threshold
_SLACK_SIGMAS = 4.0  # how far beyond `count` the guess aims, so that it rarely falls short
_BLOCK = 1 << 17  # values compared at a time: they and their bits stay in the cache


def magnitude_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Return the bits of |values| as uint32[M]: they order as the magnitudes do.

    Raises UsageError that names the first index which holds NaN or an infinity.
    """
    bits: npt.NDArray[np.uint32] = values.view(np.uint32) & _MAGNITUDE
    if bits.size and int(bits.max()) >= _INFINITY:
        raise _not_finite(values, int(np.argmax(bits >= _INFINITY)))
    return bits


def top_k(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Return rising indices int64[≤ count] of the largest magnitudes in values float32[M], zeros left out.

    Among equal magnitudes the lowest index wins, so the result depends on nothing but the values.
    Raises UsageError that names the first index which holds NaN or an infinity.
    """
    bits = values.view(np.uint32)
    candidates = _candidates(bits, count)
    strength = bits[candidates] & _MAGNITUDE
    if strength.size and int(strength.max()) >= _INFINITY:
        raise _not_finite(values, int(candidates[np.argmax(strength >= _INFINITY)]))
    if candidates.size > count:
        threshold = np.partition(strength, candidates.size - count)[candidates.size - count]
        chosen = np.flatnonzero(strength > threshold)
        ties = np.flatnonzero(strength == threshold)[: count - chosen.size]
        candidates = candidates[np.sort(np.concatenate([chosen, ties]), kind="stable")]
    return candidates


def _candidates(bits: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.int64]:
    """Return rising indices of nonzero magnitudes, among them the top `count` with all their ties.

    What is not finite is above every finite magnitude, and the guess never is, so all of it is among them.
    """
    guess = _sampled_threshold(bits, count)
    candidates = _at_least(bits, guess)
    if candidates.size < count and guess > 1:
        candidates = _at_least(bits, 1)
    return candidates


def _at_least(bits: npt.NDArray[np.uint32], guess: int) -> npt.NDArray[np.int64]:
    """Return rising indices of magnitudes of at least `guess`.

    Eight comparisons become one byte, and only bytes that are not zero are taken apart.
    """
    marks = np.concatenate([*_marks(bits, np.uint32(guess))]) if bits.size > _BLOCK else None
    if marks is None:
        return np.flatnonzero((bits & _MAGNITUDE) >= guess)
    used = np.flatnonzero(marks != 0)
    if used.size * 2 > marks.size:
        return np.flatnonzero(np.unpackbits(marks, count=bits.size).view(np.bool_))
    inside = np.flatnonzero(np.unpackbits(marks[used]).view(np.bool_))
    indices: npt.NDArray[np.int64] = used[inside >> 3]
    indices <<= 3
    inside &= 7
    indices += inside
    return indices


def _marks(bits: npt.NDArray[np.uint32], guess: np.uint32) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield for each block one bit per magnitude: whether it is at least `guess`."""
    held, marked = np.empty(_BLOCK, dtype=np.uint32), np.empty(_BLOCK, dtype=np.bool_)
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        np.abs(
            block.view(np.float32), out=held[: block.size].view(np.float32)
        )  # faster than to mask the sign's bit
        yield np.packbits(np.greater_equal(held[: block.size], guess, out=marked[: block.size]))


def _sampled_threshold(bits: npt.NDArray[np.uint32], count: int) -> int:
    """Return a magnitude, at least the smallest nonzero one, that slightly more than `count` should reach."""
    if bits.size <= _SAMPLE:
        return 1
    sample = bits[:: bits.size // _SAMPLE] & _MAGNITUDE
    expected = sample.size * count / bits.size
    rank = int(expected + _SLACK_SIGMAS * expected**0.5) + 4
    if rank >= sample.size:
        return 1
    return min(_INFINITY, max(1, int(np.partition(sample, sample.size - rank)[sample.size - rank])))


def _not_finite(values: npt.NDArray[np.float32], at: int) -> UsageError:
    return UsageError(f"delta: expected finite numbers, got {values[at]} at index {at} of {values.size}")
