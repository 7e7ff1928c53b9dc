from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.models.task import Drive
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.partition import Partition, partition


def drives(**counts: int) -> list[Drive]:
    return [Drive(region, f"d{i:02d}", 3, 15.0) for region, count in counts.items() for i in range(count)]


@given(
    counts=st.dictionaries(
        st.sampled_from(["east", "north", "south", "west"]), st.integers(8, 40), min_size=1
    ),
    each=st.integers(1, 3),
    seed=st.integers(0, 2**64),
)
def test_every_drive_has_exactly_one_place_and_vehicles_of_a_region_differ_by_one_drive(
    counts: dict[str, int], each: int, seed: int
) -> None:
    split = partition(drives(**counts), vehicles=dict.fromkeys(counts, each), seed=seed)
    dealt = [drive for _, of_vehicle in split.vehicles.values() for drive in of_vehicle]
    held = [
        drive for part in (split.validation, split.test) for of_region in part.values() for drive in of_region
    ]
    assert Counter(dealt + held) == Counter(drive.key for drive in drives(**counts))
    for region in counts:
        sizes = [len(of_vehicle) for where, of_vehicle in split.vehicles.values() if where == region]
        assert len(sizes) == each
        assert max(sizes) - min(sizes) <= 1
        assert all(
            drive.startswith(f"{region}/") for drive in (*split.validation[region], *split.test[region])
        )
        assert split.validation[region]
        assert split.test[region]


def test_the_same_seed_gives_the_same_split_whatever_the_order() -> None:
    some = drives(east=12, west=12)
    assert partition(some, vehicles=6, seed=1) == partition(some[::-1], vehicles=6, seed=1)
    assert partition(some, vehicles=6, seed=1) != partition(some, vehicles=6, seed=2)


def test_vehicles_are_named_and_shared_out_evenly() -> None:
    split = partition(drives(east=12, north=12, west=12), vehicles=8, seed=0)
    assert list(split.vehicles) == [f"v0{i}" for i in range(1, 9)]
    assert Counter(region for region, _ in split.vehicles.values()) == {"east": 3, "north": 3, "west": 2}


def test_a_hundred_vehicles_have_three_digits() -> None:
    split = partition(drives(east=200), vehicles=100, seed=0)
    assert list(split.vehicles)[:1] == ["v001"]


def test_no_test_drives_when_none_are_wanted() -> None:
    split = partition(drives(east=10), vehicles=2, seed=0, fractions=(0.8, 0.2, 0.0))
    assert (len(split.validation["east"]), split.test["east"]) == (2, ())


def test_a_small_fraction_is_still_one_whole_drive() -> None:
    split = partition(drives(east=10), vehicles=2, seed=0, fractions=(0.98, 0.01, 0.01))
    assert (len(split.validation["east"]), len(split.test["east"])) == (1, 1)


@pytest.mark.parametrize(
    ("counts", "vehicles", "fractions", "text"),
    [
        ({}, 1, (0.6, 0.2, 0.2), "no drives to split"),
        ({"east": 5, "west": 5}, 1, (0.6, 0.2, 0.2), "1 vehicles for 2 regions, expected at least one each"),
        (
            {"east": 4},
            3,
            (0.6, 0.2, 0.2),
            "region east has 4 drives, too few for 3 vehicles, 1 drives for validation",
        ),
        ({"east": 1}, 1, (0.6, 0.2, 0.2), "region east has 1 drives, too few for 1 vehicles"),
        ({"east": 9}, {"north": 1}, (0.6, 0.2, 0.2), "no region north: expected one of east"),
        ({"east": 9}, {"east": -1}, (0.6, 0.2, 0.2), "region east: -1 vehicles, expected 0 or more"),
        ({"east": 9}, 2, (0.8, 0.0, 0.2), "validation > 0"),
        ({"east": 9}, 2, (0.8, 0.2, 0.2), "together 1"),
        ({"east": 9}, 2, (1.2, -0.1, -0.1), "train > 0, validation > 0"),
    ],
)
def test_what_cannot_be_split_is_refused(
    counts: dict[str, int], vehicles: int | dict[str, int], fractions: tuple[float, float, float], text: str
) -> None:
    with pytest.raises(UsageError) as error:
        partition(drives(**counts), vehicles=vehicles, seed=0, fractions=fractions)
    assert text in str(error.value)


def test_a_drive_listed_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="drive east/d00 is listed twice"):
        partition([*drives(east=9), *drives(east=1)], vehicles=2, seed=0)


def test_a_split_that_leaks_cannot_exist() -> None:
    with pytest.raises(UsageError, match="drive east/d1 is in 2 parts of the split"):
        Partition({"v01": ("east", ("east/d1",))}, {"east": ("east/d1",)}, {})
