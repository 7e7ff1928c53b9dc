"""One pseudo-gradient from the regions' aggregates: by examples with no region above a cap, or trimmed by coordinate.

Works on aggregates of any size, so a segment of the model merges the slices of those regions that have it.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.rules import part

__all__ = ["capped", "merge", "merge_controls"]


def merge(
    regions: Mapping[str, Aggregate], *, cap: float, trim: float = 0.0
) -> tuple[npt.NDArray[np.float64], Mapping[str, float]]:
    """Return the weighted mean float64[M] of the regions' means, and each region's weight (they sum to 1).

    Weights are those of `capped`. With `trim` above 0 the merge is the trimmed mean over regions instead (Yin et al.
    2018): of every coordinate floor(trim · n) largest and as many smallest are left out, all regions weigh the same.
    FedNova's effective steps, where aggregates have them, are merged with the same weights and multiply the mean.
    Regions are added in the order of their names (trimmed: of their values), so the bytes do not depend on the order
    of the mapping. Regions without an aggregate are simply not given.
    Raises ValueError for no region, sizes that differ, a trim outside [0, 0.5), or what `capped` refuses.
    """
    if not 0 <= trim < 0.5:
        raise ValueError(f"merge: expected 0 ≤ trim < 0.5, got {trim}")
    weights = capped({name: aggregate.weight for name, aggregate in regions.items()}, cap=cap)
    if trim:
        weights = dict.fromkeys(weights, 1 / len(weights))
    sizes = {name: regions[name].mean.size for name in weights}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"merge: expected regions of one size, got {sizes}")
    if trim:
        total = _trimmed([regions[name].mean for name in weights], part(trim, len(weights)))
    else:
        total = np.zeros(next(iter(sizes.values())))
        for name, weight in weights.items():
            total += weight * regions[name].mean
    steps = {name: regions[name].steps for name in weights}
    if any(each is not None for each in steps.values()):
        total *= sum(weights[name] * (1.0 if each is None else each) for name, each in steps.items())
    return total, weights


def merge_controls(regions: Mapping[str, Aggregate], *, vehicles: int) -> npt.NDArray[np.float64] | None:
    """Return SCAFFOLD's step of the server's control variate, Σ (c_k⁺ − c_k) / N over all regions; None without any.

    `vehicles` N is how many are enrolled; where fewer are than have sent something, these count.
    """
    moved = [regions[name] for name in sorted(regions) if regions[name].control is not None]
    if not moved:
        return None
    total = np.zeros(moved[0].mean.size)
    for one in moved:
        if one.control is not None:
            total += one.control
    return total / max(vehicles, sum(one.count for one in moved))


def _trimmed(means: list[npt.NDArray[np.float64]], trim: int) -> npt.NDArray[np.float64]:
    ordered = np.sort(np.stack(means), axis=0)
    kept: npt.NDArray[np.float64] = ordered[trim : len(means) - trim].mean(axis=0)
    return kept


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
