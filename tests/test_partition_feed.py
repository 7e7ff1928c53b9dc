"""Whether a split feeds everyone, and what becomes of a region that cannot."""

import numpy as np
import pytest

from fedfleet.models.task import Drive, Samples
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.partition import Dealing, Partition, partition
from fedfleet.scenarios.partition_feed import starving, usable

FRACTIONS = (0.6, 0.2, 0.2)


def drives(region: str, count: int) -> list[Drive]:
    return [Drive(region, f"d{number}", recordings=1, seconds=10.0) for number in range(count)]


class Reader:
    """Gives each drive its samples, of which the last few are judged; counts how often it is asked."""

    def __init__(self, samples: dict[str, int], judged: int = 1) -> None:
        self.samples, self.judged = samples, judged
        self.read: list[str] = []

    def __call__(self, drive: str) -> Samples:
        self.read.append(drive)
        count = self.samples.get(drive, 10)
        some = np.zeros((count, 1), dtype=np.float32)
        return Samples(some, some, np.arange(count) >= count - self.judged)


def dealt(folder: list[Drive], reader: Reader, *, vehicles: int, by_hand: bool = False) -> Partition:
    dealing = Dealing(leave_out=not by_hand)
    wanted = dict.fromkeys({drive.region for drive in folder}, vehicles)
    parts = partition(
        folder, vehicles=wanted, seed=1, fractions=FRACTIONS, fewer=not by_hand, dealing=dealing
    )
    hungry = starving(parts, reader)
    known = usable((drive.key for drive in folder if drive.region in hungry), reader)
    dealing = Dealing(leave_out=not by_hand, usable=known)
    return partition(folder, vehicles=wanted, seed=1, fractions=FRACTIONS, fewer=not by_hand, dealing=dealing)


def test_where_all_can_be_used_one_drive_of_each_part_is_read_and_nothing_changes() -> None:
    folder, reader = drives("town", 20) + drives("coast", 20), Reader({})
    parts = partition(folder, vehicles={"town": 3, "coast": 3}, seed=1, fractions=FRACTIONS)
    assert starving(parts, reader) == ()
    assert len(reader.read) == 2 * (3 + 1 + 1)
    assert dealt(folder, Reader({}), vehicles=3) == parts
    assert parts.notes == ()


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_region_with_few_usable_drives_gets_fewer_vehicles_whoever_chose_the_number(by_hand: bool) -> None:
    # given ten drives, of which seven are empty and one has a single sample
    empty = {f"town/d{number}": 0 for number in range(6)} | {"town/d6": 1}
    folder = drives("town", 10) + drives("coast", 20)
    parts = dealt(folder, Reader(empty), vehicles=3, by_hand=by_hand)
    homes = {name: some for name, (region, some) in parts.vehicles.items() if region == "town"}
    # then every vehicle has two samples or more, no empty drive is anywhere
    assert 1 <= len(homes) < 3
    assert all(sum(empty.get(drive, 10) for drive in some) >= 2 for some in homes.values())
    used = {drive for some in homes.values() for drive in some} | {
        *parts.validation["town"],
        *parts.test["town"],
    }
    assert not used & {drive for drive, count in empty.items() if not count}
    (note,) = parts.notes
    assert note.startswith(f"region town: {len(homes)} instead of 3 vehicles, as it has usable drives")
    # and the other region is dealt as if this one were not there
    alone = dealt(drives("coast", 20), Reader({}), vehicles=3, by_hand=by_hand)
    assert parts.validation["coast"] == alone.validation["coast"]


def test_validation_and_test_get_a_drive_that_is_judged_where_there_is_one() -> None:
    folder = drives("town", 10)

    class Some(Reader):
        def __call__(self, drive: str) -> Samples:
            self.judged = 1 if drive in {"town/d1", "town/d8"} else 0
            return super().__call__(drive)

    parts = dealt(folder, Some({}), vehicles=2)
    assert {"town/d1", "town/d8"} & set(parts.validation["town"])
    assert {"town/d1", "town/d8"} & set(parts.test["town"])


def test_a_region_that_can_feed_no_one_is_left_out_and_the_only_one_is_refused() -> None:
    empty = {f"town/d{number}": 0 for number in range(10)}
    parts = dealt(drives("town", 10) + drives("coast", 10), Reader(empty), vehicles=2)
    assert {region for region, _ in parts.vehicles.values()} == set(parts.validation) == {"coast"}
    (note,) = parts.notes
    assert note.startswith("region town has 10 drives, 0 of them usable, too few for 1 vehicles")
    with pytest.raises(UsageError, match="region town has 10 drives, 0 of them usable"):
        dealt(drives("town", 10), Reader(empty), vehicles=2)


def test_a_region_with_too_few_drives_is_refused_only_where_the_number_was_chosen() -> None:
    folder = drives("town", 2) + drives("coast", 10)
    assert dealt(folder, Reader({}), vehicles=2).notes[0].endswith("the region is left out")
    with pytest.raises(UsageError, match="region town has 2 drives, too few for 2 vehicles"):
        dealt(folder, Reader({}), vehicles=2, by_hand=True)
