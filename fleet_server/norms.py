"""How long an update may be: a bound from the lengths (L2) of updates that were folded lately. Pure.

A rule bounds what an update does to a fold; this bounds what is let in at all, and names the vehicle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

__all__ = ["ABSURD", "ABSURD_STATISTIC", "FEW", "Recent"]

FEW = 5
"""With fewer lengths there is nothing to compare an update with."""
ABSURD = 1000.0
"""Change per parameter (root mean square) that no training makes: the bound while there is nothing to compare with."""
ABSURD_STATISTIC = 1e9
"""The same of running statistics, which are in the unit of the data, or its square: a sensor's 30,000 squared."""


@dataclass(frozen=True)
class Recent:
    """The lengths of updates that the newest folds took, of one codec; ``round`` is the newest of those rounds."""

    lengths: Sequence[float] = ()
    round: int = -1

    @property
    def usual(self) -> float | None:
        """The median length; None where there are too few, or all are zero."""
        if len(self.lengths) < FEW:
            return None
        return median(self.lengths) or None

    def limit(self, *, factor: float, parameters: int, round_: int) -> float:
        """Return the longest update for this round that is let in: ``factor`` times the usual.

        It doubles with every round since the last one that was folded, so that a fleet whose training has changed
        is not shut out for ever; nothing is let in above `ABSURD` a parameter.
        """
        most = ABSURD * sqrt(parameters)
        usual = self.usual
        if usual is None:
            return most
        silent = max(0, round_ - self.round - 1)
        return min(most, factor * usual * 2.0 ** min(silent, 100))
