"""Deals whole drives out to vehicles, validation and test: pure, and the same for the same seed.

No recording of one drive is ever on both sides of a split, and none on two vehicles.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from fedfleet.models.task import Drive
from fedfleet.protocol.errors import UsageError

__all__ = ["Partition", "partition"]

FRACTIONS = (0.6, 0.2, 0.2)


@dataclass(frozen=True)
class Partition:
    """Who has which drives (`Drive.key` values): vehicle id -> (region, drives), and per region validation and test.

    Raises UsageError when a drive is in two places, so that one that exists leaks nothing.
    """

    vehicles: Mapping[str, tuple[str, tuple[str, ...]]]
    validation: Mapping[str, tuple[str, ...]]
    test: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        places = [
            *(drives for _, drives in self.vehicles.values()),
            *self.validation.values(),
            *self.test.values(),
        ]
        for drive, times in Counter(drive for drives in places for drive in drives).items():
            if times > 1:
                raise UsageError(f"drive {drive} is in {times} parts of the split, expected one")


def partition(
    drives: Sequence[Drive],
    *,
    vehicles: Mapping[str, int] | int,
    seed: int,
    fractions: tuple[float, float, float] = FRACTIONS,
    fewer: bool = False,
) -> Partition:
    """Split every region's drives into train, validation and test, and deal the train drives out to its vehicles.

    `vehicles` is a number per region, or of all regions together, then shared out evenly (the first regions by name
    take what is over). Vehicles are named v01, v02, … in the order of the regions' names; drives are dealt in turn,
    in an order drawn from the seed. A region's validation and test take their fraction, at least one drive. With
    `fewer`, a region that has not enough drives gets one vehicle for each that is left to train on.

    Raises UsageError when a drive appears twice, a region has too few drives, or a number or fraction is out of range.
    """
    _check_fractions(fractions)
    keys = [drive.key for drive in drives]
    if len(set(keys)) != len(keys):
        raise UsageError(f"drive {Counter(keys).most_common(1)[0][0]} is listed twice")
    regions = sorted({drive.region for drive in drives})
    counts = _share_out(vehicles, regions)
    dealt: dict[str, tuple[str, tuple[str, ...]]] = {}
    validation, test = {}, {}
    width = max(2, len(str(sum(counts.values()))))
    for region in regions:
        order = sorted(
            (drive.key for drive in drives if drive.region == region), key=lambda key: _draw(seed, key)
        )
        needed = min(counts[region], 1) if fewer else counts[region]
        train, validation[region], test[region] = _split(region, order, fractions, vehicles=needed)
        count = min(counts[region], len(train)) if fewer else counts[region]
        for i in range(count):
            dealt[f"v{len(dealt) + 1:0{width}d}"] = (region, tuple(sorted(train[i::count])))
    return Partition(dealt, validation, test)


def _draw(seed: int, key: str) -> bytes:
    """A drive's place in the order: a hash, so that another drive more does not shuffle all others."""
    return sha256(f"{seed}\n{key}".encode()).digest()


def _split(
    region: str, order: list[str], fractions: tuple[float, float, float], *, vehicles: int
) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    _, for_validation, for_test = (max(1, round(share * len(order))) if share else 0 for share in fractions)
    train = order[for_validation + for_test :]
    if len(train) < vehicles:
        text = f"{vehicles} vehicles, {for_validation} drives for validation and {for_test} for test"
        raise UsageError(f"region {region} has {len(order)} drives, too few for {text}")
    held = order[: for_validation + for_test]
    return train, tuple(sorted(held[:for_validation])), tuple(sorted(held[for_validation:]))


def _share_out(vehicles: Mapping[str, int] | int, regions: Sequence[str]) -> dict[str, int]:
    if not regions:
        raise UsageError("no drives to split")
    if isinstance(vehicles, int):
        if vehicles < len(regions):
            raise UsageError(f"{vehicles} vehicles for {len(regions)} regions, expected at least one each")
        each, over = divmod(vehicles, len(regions))
        return {region: each + (i < over) for i, region in enumerate(regions)}
    unknown = sorted(set(vehicles) - set(regions))
    if unknown:
        raise UsageError(f"no region {unknown[0]}: expected one of {', '.join(regions)}")
    counts = {region: vehicles.get(region, 0) for region in regions}
    for region, count in counts.items():
        if count < 0:
            raise UsageError(f"region {region}: {count} vehicles, expected 0 or more")
    return counts


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    train, validation, test = fractions
    sums_up = math.isclose(sum(fractions), 1.0, abs_tol=1e-9)
    if not (sums_up and train > 0 and validation > 0 and test >= 0):
        raise UsageError(f"fractions {fractions}: expected train > 0, validation > 0, test ≥ 0, together 1")
