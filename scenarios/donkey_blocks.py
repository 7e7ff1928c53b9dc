"""Where the recording of a car is cut into drives: at pauses, and between blocks of consecutive frames. numpy only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BETWEEN",
    "BLOCK_S",
    "DEFAULT_RATE_HZ",
    "GUARD_S",
    "MIN_BLOCKS",
    "PAUSE",
    "PAUSE_S",
    "SHORT",
    "STRETCH_S",
    "Cuts",
    "cut_blocks",
]

DEFAULT_RATE_HZ: Final = 20.0
"""The rate of recordings whose time stamps tell none."""
MAX_RATE_HZ: Final = 120.0
BLOCK_S: Final = 25.0
"""Length of one drive. Neighbouring frames are nearly equal: they are never on both sides of a split."""
MIN_BLOCKS: Final = 3
"""A car with less than MIN_BLOCKS × BLOCK_S is cut into so many shorter blocks: train, validation, test."""
GUARD_S: Final = 1.0
"""Left out between two blocks of a car, so that the last frame of one and the first of the next are not neighbours."""
PAUSE_S: Final = 1.0
"""A longer step of the clock ends a drive, and so does a step back: the recording stopped, or the clock was set."""
STRETCH_S: Final = 5.0
"""A stretch between pauses that is shorter is left out, where a longer one is there."""

BETWEEN: Final = "between-blocks"
PAUSE: Final = "pause"
SHORT: Final = "short-stretch"


@dataclass(frozen=True)
class Cuts:
    """Blocks as half-open ranges of frames, the rate of the frames, and by reason what the cuts cost.

    `left_out` counts frames between blocks (`between-blocks`), frames of stretches of less than STRETCH_S
    (`short-stretch`), and the pauses themselves (`pause`).
    """

    blocks: tuple[tuple[int, int], ...]
    rate_hz: float
    left_out: Counter[str]


def cut_blocks(times_ms: NDArray[np.int64]) -> Cuts:
    """Cut a recording, int64[frames] of its time stamps in the order in which they were taken."""
    steps_s = np.diff(times_ms) * 1e-3
    rate_hz = _rate(steps_s)
    stretches, pauses = _stretches(len(times_ms), steps_s, 1.0 / rate_hz)
    guard, block = max(1, round(GUARD_S * rate_hz)), max(1, round(BLOCK_S * rate_hz))
    least = STRETCH_S * rate_hz
    long_enough = [each for each in stretches if each[1] - each[0] >= least] or stretches
    frames = sum(end - start for start, end in long_enough)
    blocks: list[tuple[int, int]] = []
    for (start, end), count in zip(
        long_enough, _counts(long_enough, max(MIN_BLOCKS, frames // block)), strict=True
    ):
        size = end - start
        count = count if size >= count * 2 * guard else 1  # noqa: PLW2901 - too short to be cut
        edges = [start + round(size * number / count) for number in range(count + 1)]
        ends = [*(edge - guard for edge in edges[1:-1]), end]
        blocks += [(first, last) for first, last in zip(edges, ends, strict=False) if last > first]
    kept = sum(end - start for start, end in blocks)
    left_out = {BETWEEN: frames - kept, SHORT: len(times_ms) - frames, PAUSE: pauses}
    return Cuts(tuple(blocks), rate_hz, +Counter(left_out))


def _rate(steps_s: NDArray[np.float64]) -> float:
    """Frames a second by the median step; a rate within 2 % of a whole number is that."""
    rising = steps_s[steps_s > 0]
    if not len(rising) or 2 * len(rising) < len(steps_s):
        return DEFAULT_RATE_HZ
    rate = min(1.0 / float(np.median(rising)), MAX_RATE_HZ)
    whole = round(rate)
    return float(whole) if whole and abs(rate - whole) <= 0.02 * whole else rate


def _stretches(
    frames: int, steps_s: NDArray[np.float64], period_s: float
) -> tuple[list[tuple[int, int]], int]:
    """Ranges of frames without a pause between them, and how many pauses there are."""
    limit = max(PAUSE_S, 5.0 * period_s)
    cuts = (np.flatnonzero((steps_s > limit) | (steps_s < -PAUSE_S)) + 1).tolist()
    edges = [0, *cuts, frames]
    return [(start, end) for start, end in pairwise(edges) if end > start], len(cuts)


def _counts(stretches: list[tuple[int, int]], wanted: int) -> list[int]:
    """Into how many blocks each stretch is cut: at least one, `wanted` together or a few more, by their lengths."""
    sizes = [end - start for start, end in stretches]
    total = sum(sizes)
    counts = [max(1, round(wanted * size / total)) for size in sizes]
    while counts and sum(counts) < MIN_BLOCKS:
        longest = max(range(len(sizes)), key=lambda at: sizes[at] / counts[at])
        counts[longest] += 1
    return counts
