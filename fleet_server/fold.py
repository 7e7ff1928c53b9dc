"""The weighted mean of a region's updates, the same to the last bit however they arrived.

Updates are added per shard in id order into a float64 accumulator, and the shards' accumulators in shard order,
so that a restart, or several ingest processes, fold to the same bytes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedfleet.codec.delta import Delta
from fedfleet.codec.payload import Values
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId, shard

__all__ = ["Aggregate", "Update", "check_update", "example_weight", "fold", "fold_key", "fold_ordered"]

FEW = 8
"""A shard whose updates changed less than one in so many coordinates is added by those."""

Update: TypeAlias = tuple[UpdateId, Delta, float]
"""What is folded: the update's id, its delta, and its weight, capped already."""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The result of a fold: `mean` float64[M] (of what a rule took), the sum of weights, how many updates.

    `dropped` are the updates that a rule left out or nothing could fold, `returned` those that were too many, with the
    reason. `steps` is FedNova's effective number of steps,
    by which the merged mean is multiplied; `control` float64[M] the sum of SCAFFOLD's control steps.
    """

    mean: npt.NDArray[np.float64]
    weight: float
    count: int
    dropped: Mapping[UpdateId, str] = field(default_factory=dict)
    returned: Mapping[UpdateId, str] = field(default_factory=dict)
    steps: float | None = None
    control: npt.NDArray[np.float64] | None = None


def example_weight(examples: int, *, cap: int) -> float:
    """Return an update's weight: its number of examples, at most `cap`, so that no vehicle dominates.

    No examples give weight 0, which the fold refuses.
    """
    return float(min(examples, cap))


def fold_key(id_: UpdateId) -> tuple[str, UpdateId]:
    """Return the sort key of the fold order: shard, then vehicle, journal epoch and sequence."""
    return shard(id_.vehicle), id_


def check_update(id_: UpdateId, delta: Delta | Values, weight: float, *, size: int) -> None:
    """Raise PeerError unless the update can be folded into a model of `size` parameters.

    Reasons: wrong-size, bad-weight (zero, negative, not finite), not-finite (a value is NaN or infinite).
    """
    if delta.size != size:
        raise PeerError("wrong-size", f"update {id_} has {delta.size} parameters, the model has {size}")
    if not (isfinite(weight) and weight > 0):
        raise PeerError("bad-weight", f"update {id_} has weight {weight}, expected a finite number above 0")
    if not np.isfinite(delta.values).all():
        wrong = int(np.count_nonzero(~np.isfinite(delta.values)))
        raise PeerError(
            "not-finite", f"update {id_}: {wrong} of {delta.values.size} values are NaN or infinite"
        )


def fold(updates: Iterable[Update], *, size: int) -> Aggregate:
    """Return the weighted mean of the updates (id, delta of `size` parameters, weight), in whatever order they come.

    All are held at once; `fold_ordered` streams. The weights are the caller's, capped already. Nothing is
    skipped: one bad update fails the fold, so the caller drops those that `check_update` refuses first.
    Raises PeerError as `check_update`, or duplicate-update for an id that comes twice; ValueError for no updates.
    """
    return fold_ordered(sorted(updates, key=lambda update: fold_key(update[0])), size=size)


def fold_ordered(
    updates: Iterable[Update],
    *,
    size: int,
    factors: Mapping[UpdateId, float] = MappingProxyType({}),
    checked: bool = False,
) -> Aggregate:
    """Fold as `fold` does, in memory O(size); the updates must come sorted by `fold_key` (else ValueError).

    A delta enters times its factor, 1 when it has none: Σ weight·factor·delta / Σ weight. `checked` says that
    `check_update` has passed them all.
    """
    total, part = np.zeros(size), np.zeros(size)
    touched: list[npt.NDArray[np.int64]] | None = []
    weight = part_weight = 0.0
    count = 0
    last: tuple[str, UpdateId] | None = None
    for id_, delta, update_weight in updates:
        key = fold_key(id_)
        _check_order(last, key)
        if not checked:
            check_update(id_, delta, update_weight, size=size)
        if last is not None and last[0] != key[0]:
            _move(part, total, touched)
            weight += part_weight
            part_weight, touched = 0.0, []
        touched = _touching(touched, delta)
        delta.add_to(part, update_weight * factors.get(id_, 1.0))
        part_weight += update_weight
        count += 1
        last = key
    if last is None:
        raise ValueError("nothing to fold: expected at least one update")
    _move(part, total, touched)
    weight += part_weight
    return Aggregate(total / weight, weight, count)


def _touching(
    touched: list[npt.NDArray[np.int64]] | None, delta: Delta
) -> list[npt.NDArray[np.int64]] | None:
    """Return the coordinates that a shard's updates changed so far; None when it is better to look at all."""
    if touched is None or delta.indices is None:
        return None
    touched.append(delta.indices)
    return touched if FEW * sum(one.size for one in touched) < delta.size else None


def _move(
    part: npt.NDArray[np.float64],
    total: npt.NDArray[np.float64],
    touched: list[npt.NDArray[np.int64]] | None,
) -> None:
    """Add a shard's sum to the total, and set it to zero; of few coordinates, without a look at the others."""
    if touched is None:
        total += part
        part.fill(0.0)
        return
    for indices in touched:  # a second time a coordinate adds the zero that it was set to
        total[indices] += part[indices]
        part[indices] = 0.0


def _check_order(last: tuple[str, UpdateId] | None, key: tuple[str, UpdateId]) -> None:
    if last is None or last < key:
        return
    if last == key:
        raise PeerError("duplicate-update", f"update {key[1]} comes twice in one fold")
    raise ValueError(f"fold: update {key[1]} comes after {last[1]}, expected (shard, id) order")
