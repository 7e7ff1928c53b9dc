"""Deals whole drives out to vehicles, validation and test: pure, and the same for the same seed.

No recording of one drive, and none of drives that overlap, is ever on both sides of a split or on two vehicles.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

import numpy as np

from fedfleet.models.task import Drive
from fedfleet.protocol.errors import UsageError

__all__ = ["Dealing", "Partition", "check_overlaps", "partition"]

FRACTIONS = (0.6, 0.2, 0.2)
FEWEST = 2
"""Samples that a vehicle gets at least: a batch norm needs two."""


@dataclass(frozen=True)
class Partition:
    """Who has which drives (`Drive.key` values): vehicle id -> (region, drives), and per region validation and test.

    Raises UsageError when a drive is in two places, so that one that exists leaks nothing.
    """

    vehicles: Mapping[str, tuple[str, tuple[str, ...]]]
    validation: Mapping[str, tuple[str, ...]]
    test: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What a person should know of it, a line each."""

    def __post_init__(self) -> None:
        places = [
            *(drives for _, drives in self.vehicles.values()),
            *self.validation.values(),
            *self.test.values(),
        ]
        for drive, times in Counter(drive for drives in places for drive in drives).items():
            if times > 1:
                raise UsageError(f"drive {drive} is in {times} parts of the split, expected one")


@dataclass(frozen=True)
class Dealing:
    """How drives become regions and vehicles.

    `regions`: "data" takes the region that the recordings tell; "place" its name up to the first hyphen, so that the
    districts `mia-e` and `mia-w` are one region `mia`.
    `by`: "drive" deals a region's drives out in turn; "data" makes one vehicle of each region that the recordings tell;
    "dirichlet" deals, for studies, the drives of each label (`labels`, drive key to text) by shares drawn from a
    symmetric Dirichlet distribution with `alpha` (Hsu et al. 2019): the smaller, the less alike are the vehicles.
    Drives without a label are one label, so that only their number is skewed.
    `usable` has, of drives that were read, how many samples one can learn from and how many of them are judged. Drives
    without any are not dealt; vehicles get two samples at least, validation and test a judged one, or the region gets
    fewer vehicles, or is left out. With `leave_out` any region that has too few drives is left out, not refused.
    """

    by: Literal["drive", "data", "dirichlet"] = "drive"
    regions: Literal["data", "place"] = "data"
    alpha: float = 0.5
    labels: Mapping[str, str] = field(default_factory=dict)
    usable: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    leave_out: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for an alpha that is no concentration."""
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UsageError(f"alpha {self.alpha}: expected a number above 0")

    def region(self, drive: Drive) -> str:
        """Return the region that a drive is in."""
        return drive.region.partition("-")[0] or drive.region if self.regions == "place" else drive.region


IN_TURN = Dealing()


def partition(
    drives: Sequence[Drive],
    *,
    vehicles: Mapping[str, int] | int,
    seed: int,
    fractions: tuple[float, float, float] = FRACTIONS,
    fewer: bool = False,
    dealing: Dealing = IN_TURN,
) -> Partition:
    """Split every region's drives into train, validation and test, and deal the train drives out to its vehicles.

    `vehicles` is a number per region, or of all regions together, then shared out evenly (the first regions by name
    take what is over). Vehicles are named v01, v02, … in the order of the regions' names; drives are dealt in turn,
    in an order drawn from the seed. A region's validation and test take their fraction, at least one drive. With
    `fewer`, a region that has not enough drives gets one vehicle for each that is left to train on. Drives with the
    same `overlap` are dealt as one. With `dealing.by` "data" the number of vehicles is that of the data.

    Raises UsageError when a drive appears twice, a region has too few drives, or a number or fraction is out of range.
    """
    _check_fractions(fractions)
    keys = [drive.key for drive in drives]
    if len(set(keys)) != len(keys):
        raise UsageError(f"drive {Counter(keys).most_common(1)[0][0]} is listed twice")
    units = _units(drives, dealing)
    regions = sorted(units)
    by_data = dealing.by == "data"
    counts = dict.fromkeys(regions, 1) if by_data and regions else _share_out(vehicles, regions)
    dealt: list[tuple[str, list[str]]] = []
    held: dict[str, tuple[list[str], list[str]]] = {}
    notes: list[str] = []
    refused: UsageError | None = None
    for region in regions:
        one = _Region(region, units[region], counts[region], dealing, seed)
        try:
            hands, validation, test = one.deal(fractions, fewer=fewer)
        except UsageError as error:
            if not (dealing.leave_out or one.is_known):
                raise
            refused = refused or error
            notes.append(f"{error}: the region is left out")
            continue
        held[region] = validation, test
        dealt += [(region, hand) for hand in hands]
        if not by_data and len(hands) < counts[region]:
            drives_left = sum(map(len, hands))
            why = f"it has {'usable ' if one.is_known else ''}drives to train on: {drives_left}"
            notes.append(f"region {region}: {len(hands)} instead of {counts[region]} vehicles, as {why}")
    if refused is not None and not dealt:
        raise refused
    width = max(2, len(str(len(dealt) if by_data else sum(counts.values()))))
    each_unit = {key: keys for of_region in units.values() for key, keys in of_region.items()}

    def whole(some: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted(drive for key in some for drive in each_unit[key]))

    found = Partition(
        {f"v{i:0{width}d}": (region, whole(some)) for i, (region, some) in enumerate(dealt, start=1)},
        {region: whole(validation) for region, (validation, _) in held.items()},
        {region: whole(test) for region, (_, test) in held.items()},
        tuple(notes),
    )
    check_overlaps(found, drives)
    return found


@dataclass(frozen=True)
class _Region:
    """One region's units (first drive's key -> keys), and how many vehicles are wanted there."""

    name: str
    units: Mapping[str, Sequence[str]]
    wanted: int
    dealing: Dealing
    seed: int

    @property
    def is_known(self) -> bool:
        """Whether its drives were read, so that it is known what can be used of them."""
        return any(key in self.dealing.usable for key in self.units)

    def deal(
        self, fractions: tuple[float, float, float], *, fewer: bool
    ) -> tuple[list[list[str]], list[str], list[str]]:
        """Return the units of each vehicle, of validation and of test; UsageError when there are too few."""
        fewer = fewer or self.is_known
        order = sorted(
            (key for key in self.units if self._samples(key)), key=lambda key: _draw(self.seed, key)
        )
        needed = min(self.wanted, 1) if fewer else self.wanted
        sizes = _sizes(len(order), fractions)
        train, validation, test = _split(self._judged_first(order, sizes), sizes, vehicles=needed, of=self)
        count = min(self.wanted, len(train)) if fewer else self.wanted
        hands = self._hands(train, count)
        while self.is_known and len(hands) > 1 and not all(map(self._feeds, hands)):
            count -= 1
            by_data = self.dealing.by == "data"
            hands = [hand for hand in hands if self._feeds(hand)] if by_data else self._hands(train, count)
        return hands, validation, test

    def _hands(self, train: list[str], count: int) -> list[list[str]]:
        return _deal(train, count, self.name, seed=self.seed, dealing=self.dealing)

    def _samples(self, key: str) -> float:
        """Samples of a unit; of one that was not read it is taken for granted that they are enough."""
        return sum(self.dealing.usable.get(drive, (math.inf, math.inf))[0] for drive in self.units[key])

    def _feeds(self, hand: Sequence[str]) -> bool:
        return sum(map(self._samples, hand)) >= FEWEST

    def _judged_first(self, order: list[str], sizes: tuple[int, int]) -> list[str]:
        """Move units with a judged sample to where validation and test take theirs, if these would have none."""
        order, start = list(order), 0
        for size in sizes:
            if self.is_known and not any(map(self._is_judged, order[start : start + size])):
                later = next((key for key in order[start + size :] if self._is_judged(key)), None)
                if later is not None and size:
                    order.remove(later)
                    order.insert(start, later)
            start += size
        return order

    def _is_judged(self, key: str) -> bool:
        return any(self.dealing.usable.get(drive, (1, 1))[1] for drive in self.units[key])


def check_overlaps(parts: Partition, drives: Sequence[Drive]) -> None:
    """Raise UsageError when drives that overlap are on two vehicles, or on two sides of the split."""
    places = {drive: f"vehicle {name}" for name, (_, some) in parts.vehicles.items() for drive in some}
    for side, regions in (("validation", parts.validation), ("test", parts.test)):
        places |= {drive: f"{side} of {region}" for region, some in regions.items() for drive in some}
    first: dict[str, str] = {}
    for drive in sorted(drives, key=lambda each: each.key):
        if not drive.overlap or drive.key not in places:
            continue
        other = first.setdefault(drive.overlap, drive.key)
        if places[other] != places[drive.key]:
            text = f"{other} is in {places[other]}, {drive.key} in {places[drive.key]}"
            raise UsageError(f"drives of overlap group {drive.overlap} leak: {text}")


def _units(drives: Sequence[Drive], dealing: Dealing) -> dict[str, dict[str, list[str]]]:
    """Return what is dealt whole, by region: its first drive's key -> keys; drives that overlap are one unit."""
    groups: dict[str, list[Drive]] = {}
    for drive in sorted(drives, key=lambda each: each.key):
        groups.setdefault(f"overlap {drive.overlap}" if drive.overlap else drive.key, []).append(drive)
    found: dict[str, dict[str, list[str]]] = {}
    for group in groups.values():
        regions = sorted({dealing.region(drive) for drive in group})
        if len(regions) > 1:
            raise UsageError(
                f"overlap group {group[0].overlap} is in regions {', '.join(regions)}, expected one"
            )
        found.setdefault(regions[0], {})[group[0].key] = [drive.key for drive in group]
    return found


def _deal(train: list[str], count: int, region: str, *, seed: int, dealing: Dealing) -> list[list[str]]:
    """Deal the units of a region's training out to its vehicles; every vehicle gets one at least."""
    if dealing.by == "data":
        places = sorted({key.rpartition("/")[0] for key in train})
        return [[key for key in train if key.rpartition("/")[0] == place] for place in places]
    if dealing.by == "drive" or not count:
        return [train[i::count] for i in range(count)]
    hands: list[list[str]] = [[] for _ in range(count)]
    for label in sorted({dealing.labels.get(key, "") for key in train}):
        same = [key for key in train if dealing.labels.get(key, "") == label]
        chance = np.random.default_rng([*_draw(seed, f"{region}\n{label}")])
        ends = np.round(np.cumsum(chance.dirichlet(np.full(count, dealing.alpha))) * len(same)).astype(int)
        for hand, start, end in zip(hands, [0, *ends[:-1]], [*ends[:-1], len(same)], strict=True):
            hand.extend(same[start:end])
    for hand in hands:
        if not hand:
            hand.append(max(hands, key=len).pop())
    return hands


def _draw(seed: int, key: str) -> bytes:
    """A drive's place in the order: a hash, so that another drive more does not shuffle all others."""
    return sha256(f"{seed}\n{key}".encode()).digest()


def _sizes(units: int, fractions: tuple[float, float, float]) -> tuple[int, int]:
    """Return how many of the units are for validation and for test."""
    validation, test = (max(1, round(share * units)) if share else 0 for share in fractions[1:])
    return validation, test


def _split(
    order: list[str], sizes: tuple[int, int], *, vehicles: int, of: _Region
) -> tuple[list[str], list[str], list[str]]:
    for_validation, for_test = sizes
    train = order[for_validation + for_test :]
    if len(train) < vehicles:
        text = f"{vehicles} vehicles, {for_validation} drives for validation and {for_test} for test"
        usable = f", {len(order)} of them usable" if of.is_known else ""
        raise UsageError(f"region {of.name} has {len(of.units)} drives{usable}, too few for {text}")
    held = order[: for_validation + for_test]
    return train, held[:for_validation], held[for_validation:]


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
