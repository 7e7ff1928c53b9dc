"""How the samples of a pass are cut into batches. Pure.

A rest of one sample joins the batch before it: the statistics of a single sample are none (a batch norm refuses them),
and its gradient would weigh as much as that of a whole batch.
"""

from __future__ import annotations

__all__ = ["bounds", "count", "fitting", "seen", "smallest"]


def count(size: int, most: int) -> int:
    """How many batches of at most `most` samples (one more in the last, where one would be left over) a pass has."""
    whole, rest = divmod(size, most)
    return whole + (1 if rest > 1 or (rest == 1 and (whole == 0 or most == 1)) else 0)


def bounds(number: int, size: int, most: int) -> tuple[int, int]:
    """Where batch `number` of a pass, from 0, begins and ends."""
    last = number == count(size, most) - 1
    return number * most, size if last else (number + 1) * most


def seen(done: int, size: int, most: int) -> int:
    """How many samples were seen at least once after `done` batches."""
    return size if done >= count(size, most) else done * most


def smallest(size: int, most: int) -> int:
    """The size of the smallest batch of a pass."""
    start, end = bounds(count(size, most) - 1, size, most)
    return min(end - start, most)


def fitting(size: int, most: int) -> int:
    """The largest batch of at most `most` samples that leaves no rest of one, so that none has more; 1 stays 1."""
    return next((each for each in range(most, 1, -1) if size <= each or size % each != 1), most)
