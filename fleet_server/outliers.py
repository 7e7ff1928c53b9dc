"""Whose update made the gate refuse: who stands out among the members, and who is left out of another try. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import median

import numpy as np
import numpy.typing as npt

from fedfleet.codec.delta import Delta
from fedfleet.fleet_server.fold import Update
from fedfleet.fleet_server.rules import lengths
from fedfleet.protocol.ids import UpdateId

__all__ = ["LONG", "MOST_TRIES", "Suspect", "suspects", "tries"]

LONG = 3.0
"""Median lengths of a region from which on an update is an outlier by its length alone; honest ones stay below 2."""
MOST_TRIES = 5
"""So often at most the rest is folded and judged again after a refusal."""


@dataclass(frozen=True)
class Suspect:
    """A member of a refused round: its length (L2), in median lengths of its region, and the cosine with the others."""

    id: UpdateId
    region: str
    length: float
    ratio: float
    agreement: float

    @property
    def is_long(self) -> bool:
        """Whether its length alone makes it an outlier."""
        return self.ratio > LONG


def suspects(
    updates: Iterable[Update], *, size: int, region: str, measured: npt.NDArray[np.bool_] | None = None
) -> list[Suspect]:
    """Return how each update of a region stands out: its length, and how far it goes where the others go.

    The others are what is left of the sum of all, none counted longer than the median. Where `measured` bool[M] tells
    which coordinates are running statistics, their lengths are compared apart, and the way is that of the others.
    Memory O(M); `updates` are read three times.
    """
    both = {id_: lengths(delta, measured) for id_, delta, _ in updates}
    middle, usual = map(median, zip(*both.values(), strict=True)) if both else (0.0, 0.0)
    total = np.zeros(size)
    factors = {id_: min(1.0, middle / each) if each else 0.0 for id_, (each, _) in both.items()}
    for id_, delta, _ in updates:
        _learned(delta, measured).add_to(total, factors[id_])
    square = float(total @ total)
    found = []
    for id_, delta, _ in updates:
        (own, statistics), factor = both[id_], factors[id_]
        learned = _learned(delta, measured)
        values = learned.values.astype(np.float64)
        dot = float(values @ (total if learned.indices is None else total[learned.indices]))
        rest = sqrt(max(0.0, square - 2 * factor * dot + (factor * own) ** 2))
        agreement = (dot - factor * own**2) / (own * rest) if own and rest else 0.0
        ratio = max(own / middle if middle else 0.0, statistics / usual if usual else 0.0)
        found.append(Suspect(id_, region, own, ratio, agreement))
    return found


def _learned(delta: Delta, measured: npt.NDArray[np.bool_] | None) -> Delta:
    """Return a change without its running statistics."""
    if measured is None:
        return delta
    here = measured if delta.indices is None else measured[delta.indices]
    return Delta(delta.size, delta.indices, np.where(here, np.float32(0), delta.values))


def tries(members: Sequence[Suspect]) -> list[frozenset[UpdateId]]:
    """Return whom to leave out, try after try: the long ones, then those too who agree least with the others.

    Each try leaves out more, none more than half of all; at most `MOST_TRIES`.
    """
    order = sorted(
        members, key=lambda one: (not one.is_long, -one.ratio if one.is_long else one.agreement, one.id)
    )
    long = sum(one.is_long for one in members)
    counts = [long, *(long + more for more in (1, 2, 4, 8, 16, 32))]
    fitting = [count for count in counts if count > 0 and 2 * count <= len(members)]
    return [frozenset(one.id for one in order[:count]) for count in fitting[:MOST_TRIES]]
