"""A decoded change of a parameter vector, ready to be added; valid when it exists."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedfleet.protocol.errors import UsageError

__all__ = ["Delta"]

_BLOCK = 65_536


@dataclass(frozen=True, eq=False)
class Delta:
    """A change of `size` parameters: `values` float32[k] at rising `indices` int64[k], or at all (None)."""

    size: int
    indices: npt.NDArray[np.int64] | None
    values: npt.NDArray[np.float32]

    def add_to(self, accumulator: npt.NDArray[np.float64], weight: float) -> None:
        """Add weight * values to accumulator float64[size]: per coordinate one float64 product and one sum.

        A weight of zero adds zero. A sparse delta allocates O(k), a dense one O(1).
        Raises UsageError, the accumulator unchanged, for a wrong shape or type or a weight not finite.
        """
        if accumulator.shape != (self.size,) or accumulator.dtype != np.float64:
            got = f"{accumulator.dtype}{list(accumulator.shape)}"
            raise UsageError(f"accumulator: expected float64[{self.size}], got {got}")
        if not math.isfinite(weight):
            raise UsageError(f"weight: expected a finite number, got {weight}")
        if self.indices is not None:
            np.add.at(accumulator, self.indices, self.values * np.float64(weight))
            return
        for start in range(0, self.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            accumulator[block] += self.values[block] * np.float64(weight)

    def dense(self) -> npt.NDArray[np.float32]:
        """Return the change as a new float32[size]."""
        if self.indices is None:
            return self.values.copy()
        out = np.zeros(self.size, dtype=np.float32)
        out[self.indices] = self.values
        return out
