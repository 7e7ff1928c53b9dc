"""What both sides learn of rows and columns while an index set is coded row by row; docs/codec-format.md, "Row by row".

Whole numbers, and binary64 quotients, products and differences in a fixed order: the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedfleet.codec.entropy_range import TOTAL_LIMIT

__all__ = ["MAX_COLUMNS", "STRENGTHS", "SURE", "SYMBOLS", "Columns", "Counts", "Run", "bounds_of", "rows_of"]

Ints = npt.NDArray[np.int64]
Run = tuple[int, int]  # rows, columns

MAX_COLUMNS = 4_096
STRENGTHS = (1, 4, 16, 64)
"""What a column's past weighs against the run's mean, by the two bits of the header."""
SYMBOLS = 16  # of a row: counts 0 … 14, and 15 for all above, told apart by equal shares
_PRIOR = 4096
_SEEN = 512
_SEEN_LIMIT = 1 << 15
SURE = 1.0 - 2.0**-10
_FALLING = np.arange(MAX_COLUMNS, 0, -1, dtype=np.int64)
_FALLING.flags.writeable = False


@dataclass
class Counts:
    """How many rows of this run had 0, 1, 2, … indices, beside a geometric guess of the mean from what is left."""

    left: int  # indices
    room: int  # coordinates
    columns: int
    shares: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        mean = (self.left * self.columns << 16) // self.room
        more = (mean << 16) // (mean + (1 << 16))
        rest = _PRIOR
        for _ in range(SYMBOLS - 1):
            here = rest * ((1 << 16) - more) >> 16
            self.shares.append(here + 1)
            rest -= here
        self.shares.append(rest + 1)
        self.total = sum(self.shares)

    def seen(self, symbol: int) -> None:
        """Count a row."""
        self.shares[symbol] += _SEEN
        self.total += _SEEN
        if self.total > _SEEN_LIMIT:
            self.shares = [(share >> 1) + 1 for share in self.shares]
            self.total = sum(self.shares)


class Columns:
    """How often each column of this run was chosen, lately more than long ago."""

    def __init__(self, columns: int) -> None:
        self.past = np.zeros(columns, dtype=np.int64)
        self._columns = columns
        self._rows = self._found = 0

    @property
    def base(self) -> int:
        """The share of coordinates that were chosen, ≥ 1, in 1 / 65536."""
        return max(1, ((self._found + 1) << 16) // ((self._rows + 1) * self._columns))

    def weights(self, strength: int) -> Ints:
        """Return int64[columns], each ≥ 4."""
        return self.past * strength + 4 * self.base

    def seen(self, places: Ints) -> None:
        """Count a row's places int64[n ≥ 0]."""
        self._rows += 1
        self._found += places.size
        if self._found:
            self.past -= self.past >> 6
            if places.size:
                self.past[places] += 1024


def bounds_of(weights: Ints, rest: npt.NDArray[np.float64], at: int, left: int) -> Ints:
    """Return falling bounds int64[L - 1] for where the next of `left` indices stands, of L places from `at` on.

    It is the i-th when the stream's number is below bounds[i - 1] (or `TOTAL_LIMIT`) and not below bounds[i] (or 0).
    """
    places = weights.size - left - at + 1
    stay = weights[at : at + places - 1] * float(left)
    stay /= rest[at : at + places - 1]
    np.minimum(stay, SURE, out=stay)
    np.subtract(1.0, stay, out=stay)
    np.multiply.accumulate(stay, out=stay)
    stay *= float(TOTAL_LIMIT - places)
    bounds = stay.astype(np.int64)
    bounds += _FALLING[MAX_COLUMNS - places + 1 :]
    return bounds


def rows_of(runs: tuple[Run, ...], size: int) -> Iterator[tuple[int, int, bool]]:
    """Yield each row's start, width, and whether a run begins with it; the last run goes on to `size`."""
    at = 0
    for number, (rows, columns) in enumerate(runs):
        end = size if number == len(runs) - 1 else at + rows * columns
        for start in range(at, end, columns):
            yield start, min(columns, end - start), start == at
        at = end
