"""One pseudo-gradient from the regions' aggregates: weighted by examples, no region above a cap."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedfleet.fleet_server.fold import Aggregate

__all__ = ["capped", "merge"]


def merge(
    regions: Mapping[str, Aggregate], *, cap: float
) -> tuple[npt.NDArray[np.float64], Mapping[str, float]]:
    """Return the weighted mean float64[M] of the regions' means, and each region's weight (they sum to 1).

    Weights are those of `capped`. Regions are added in the order of their names, so the bytes do not depend on
    the order of the mapping. Regions without an aggregate are simply not given.
    Raises ValueError for no region, sizes that differ, or what `capped` refuses.
    """
    weights = capped({name: aggregate.weight for name, aggregate in regions.items()}, cap=cap)
    sizes = {name: regions[name].mean.size for name in weights}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"merge: expected regions of one size, got {sizes}")
    total = np.zeros(next(iter(sizes.values())))
    for name, weight in weights.items():
        total += weight * regions[name].mean
    return total, weights


def capped(amounts: Mapping[str, float], *, cap: float) -> dict[str, float]:
    """Return weights proportional to `amounts`, none above `cap`, by name in sorted order.

    Water-filling: who is above the cap gets the cap, the rest is shared among the others in proportion, again and
    again. When n names cannot sum to 1 below the cap (cap < 1/n), all get 1/n: the nearest to it.
    Raises ValueError for no name, an amount that is not a finite number above 0, or a cap outside (0, 1].
    """
    if not amounts or not 0 < cap <= 1:
        raise ValueError(
            f"capped weights: expected at least one name and 0 < cap ≤ 1, got {len(amounts)} and {cap}"
        )
    for name, amount in amounts.items():
        if not (np.isfinite(amount) and amount > 0):
            raise ValueError(f"capped weights: {name} has {amount}, expected a finite number above 0")
    names = sorted(amounts)
    if cap * len(names) <= 1:
        return dict.fromkeys(names, 1 / len(names))
    full: set[str] = set()
    while True:
        free = [name for name in names if name not in full]
        left = 1 - cap * len(full)
        scale = left / sum(amounts[name] for name in free)
        above = {name for name in free if amounts[name] * scale > cap}
        if len(above) in {0, len(free)}:  # all above: by rounding only, when cap is barely above 1/n
            return {name: cap if name in full else amounts[name] * scale for name in names}
        full |= above
