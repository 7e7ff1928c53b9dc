import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from traffic import write_folder

from fedfleet.models.task import Drive, Samples
from fedfleet.protocol.errors import UsageError
from fedfleet.scenarios.divergence import jensen_shannon, skews
from fedfleet.scenarios.partition import Dealing, Partition, partition
from fedfleet.scenarios.partition_file import as_json, read_split


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


# --- by data, by label, from a file ---


def test_regions_by_place_have_a_vehicle_for_each_district() -> None:
    # given four districts of two cities
    some = drives(**{"mia-e": 6, "mia-w": 8, "pit-e": 6, "pit-w": 6})
    # when
    split = partition(some, vehicles=1, seed=0, dealing=Dealing(by="data", regions="place"))
    # then
    assert [region for region, _ in split.vehicles.values()] == ["mia", "mia", "pit", "pit"]
    for _, of_vehicle in split.vehicles.values():
        assert len({key.rpartition("/")[0] for key in of_vehicle}) == 1
    assert set(split.validation) == {"mia", "pit"}


def test_a_small_alpha_makes_vehicles_less_alike_than_a_large_one() -> None:
    # given drives of three labels
    some = drives(east=120)
    labels = {drive.key: f"label{i % 3}" for i, drive in enumerate(some)}

    def unlike(alpha: float) -> float:
        found = []
        for seed in range(5):
            dealing = Dealing(by="dirichlet", alpha=alpha, labels=labels)
            split = partition(some, vehicles=4, seed=seed, dealing=dealing)
            whole = Counter(labels[key] for _, each in split.vehicles.values() for key in each)
            for _, each in split.vehicles.values():
                own = Counter(labels[key] for key in each)
                counts = np.array([[of[name] for name in sorted(whole)] for of in (own, whole)], dtype=float)
                found.append(jensen_shannon(*counts))
        return float(np.mean(found))

    # then
    assert unlike(0.1) > 3 * unlike(100.0)


@given(alpha=st.floats(0.01, 100), seed=st.integers(0, 2**32), count=st.integers(1, 6))
def test_dealt_by_labels_every_drive_has_one_place_and_every_vehicle_one_drive(
    alpha: float, seed: int, count: int
) -> None:
    some = drives(east=20, west=14)
    labels = {drive.key: str(i % 2) for i, drive in enumerate(some)}
    dealing = Dealing(by="dirichlet", alpha=alpha, labels=labels)
    wanted = dict.fromkeys(("east", "west"), count)
    split = partition(some, vehicles=wanted, seed=seed, dealing=dealing)
    dealt = [drive for _, each in split.vehicles.values() for drive in each]
    held = [drive for part in (split.validation, split.test) for each in part.values() for drive in each]
    assert Counter(dealt + held) == Counter(drive.key for drive in some)
    assert all(each for _, each in split.vehicles.values())
    assert split == partition(some[::-1], vehicles=wanted, seed=seed, dealing=dealing)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_none_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match="expected a number above 0"):
        Dealing(alpha=alpha)


@given(seed=st.integers(0, 2**32))
def test_drives_that_overlap_are_never_on_two_sides_nor_vehicles(seed: int) -> None:
    # given six groups of three drives that show the same seconds, and others
    some = [replace(drive, overlap=f"g{i // 3}" if i < 18 else "") for i, drive in enumerate(drives(east=30))]
    # when
    split = partition(some, vehicles=3, seed=seed)
    # then
    parts = [set(each) for _, each in split.vehicles.values()]
    parts += [set(split.validation["east"]), set(split.test["east"])]
    for group in range(6):
        keys = {drive.key for drive in some if drive.overlap == f"g{group}"}
        assert sum(bool(keys & part) for part in parts) == 1


def test_an_overlap_over_two_regions_is_refused() -> None:
    some = [
        replace(drive, overlap="g") if drive.drive == "d00" else drive for drive in drives(east=9, west=9)
    ]
    with pytest.raises(UsageError, match="overlap group g is in regions east, west, expected one"):
        partition(some, vehicles=2, seed=0)


def split_file(path: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "format": 1,
        "vehicles": {"v01": {"region": "east", "drives": ["east/d00", "east/d01"]}},
        "validation": {"east": ["east/d02"]},
        "test": {"east": ["east/d03"]},
    }
    path.write_text(json.dumps(content | changes))
    return path


def test_a_split_from_a_file_is_what_was_written(tmp_path: Path) -> None:
    some = drives(east=12, west=12)
    split = partition(some, vehicles=4, seed=3)
    (tmp_path / "split.json").write_text(json.dumps(as_json(split)))
    assert read_split(tmp_path / "split.json", some) == split
    assert read_split(split_file(tmp_path / "own.json"), some).vehicles == {
        "v01": ("east", ("east/d00", "east/d01"))
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"validation": {"east": ["east/d00"]}}, "drive east/d00 is in 2 parts of the split"),
        ({"validation": {"east": ["east/d99"]}}, "no drive east/d99 in the recordings"),
        (
            {"validation": {"west": ["west/d00"]}},
            "vehicle v01 is in region east, which has no drive for validation",
        ),
        (
            {"test": {"east": ["east/d05"]}},
            "drives of overlap group g leak: east/d00 is in vehicle v01, east/d05 in test",
        ),
        ({"format": 2}, "format: Input should be 1"),
        ({"vehicles": {}}, "vehicles: Dictionary should have at least 1 item"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"vehicles": {"V 1": {"region": "east", "drives": ["east/d00"]}}}, "vehicles.V 1"),
    ],
)
def test_a_split_that_leaks_or_is_none_is_refused(tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    some = [
        replace(drive, overlap="g") if drive.drive in {"d00", "d05"} else drive
        for drive in drives(east=9, west=2)
    ]
    path = split_file(tmp_path / "split.json", **changes)
    with pytest.raises(UsageError) as error:
        read_split(path, some)
    assert str(error.value).startswith(f"{path}: ")
    assert text in str(error.value)


def test_a_split_file_that_is_absent_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"split\.json: cannot be read: No such file"):
        read_split(tmp_path / "split.json", drives(east=9))
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(UsageError, match=r"split\.json: file: Invalid JSON"):
        read_split(tmp_path / "split.json", drives(east=9))


# --- how unlike ---


def samples(chance: np.random.Generator, count: int, *, shift: float = 0.0) -> Samples:
    inputs = (chance.normal(size=(count, 20, 2)) + shift).astype(np.float32)
    return Samples(inputs, inputs[:, :3], np.ones(count, dtype=np.bool_))


def test_vehicles_that_are_alike_are_as_far_apart_as_chance_makes_them_and_others_farther() -> None:
    # given three vehicles of which one is shifted by two standard deviations and turns left only
    chance = np.random.default_rng(0)
    parts = {"a": samples(chance, 400), "b": samples(chance, 400), "c": samples(chance, 400, shift=2.0)}
    labels = {
        name: {"turn": np.where(np.arange(400) % 2 == 0, "left", "left" if name == "c" else "right")}
        for name in parts
    }
    # when
    found = skews(parts, labels, seed=1)
    # then
    assert found["c"].feature > 1.5 * found["a"].feature > 0
    assert found["c"].feature > 5 * found["c"].shuffled_feature
    assert found["c"].target > 5 * found["c"].shuffled_target
    assert found["c"].labels["turn"] > 10 * found["c"].shuffled_labels["turn"]
    alike = skews({"a": parts["a"], "b": parts["b"]}, labels, seed=1)["a"]
    assert alike.feature < 2 * alike.shuffled_feature
    assert found == skews(parts, labels, seed=1)


def test_divergence_of_labels_is_between_nothing_and_one_bit() -> None:
    assert jensen_shannon(np.array([3.0, 1.0]), np.array([6.0, 2.0])) == pytest.approx(0)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(1)


def test_a_vehicle_without_samples_is_left_out() -> None:
    chance = np.random.default_rng(0)
    assert list(skews({"a": samples(chance, 9), "b": samples(chance, 0)}, {"a": {}, "b": {}}, seed=0)) == [
        "a"
    ]
    assert skews({}, {}, seed=0) == {}


# --- the command ---


def command(*words: object) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "fedfleet.cli.main", "scenarios", "partition", *map(str, words)]
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def test_the_command_reports_writes_and_reads_its_split(tmp_path: Path) -> None:
    # given
    folder = write_folder(tmp_path / "pack", drives=8)
    way = ("--scenarios", folder, "--vehicles-per-region", 2)
    # when
    done = command(*way, "--by", "dirichlet", "--alpha", "0.3", "--out", tmp_path / "split.json", "--json")
    # then
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["by"] == "dirichlet, alpha 0.3"
    assert len(found["vehicles"]) == 4
    assert {"label manoeuvre", "target", "feature"} <= found["divergence"].keys()
    assert (
        sum(found["vehicles"]["v01"]["slices"]["manoeuvre"].values()) == found["vehicles"]["v01"]["samples"]
    )
    # when the file is looked at, the vehicles are the same
    again = command("--scenarios", folder, "--file", tmp_path / "split.json", "--json")
    assert json.loads(again.stdout)["vehicles"] == found["vehicles"]
    # and every command takes it from the configuration
    (tmp_path / "fedfleet.toml").write_text(f'[data]\nsplit_file = "{tmp_path / "split.json"}"\n')
    told = command("--scenarios", folder, "--config", tmp_path / "fedfleet.toml")
    assert "divergence of label manoeuvre" in told.stdout
    assert "split as" in told.stdout


def test_a_split_of_other_recordings_is_one_line(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "pack", drives=3)
    done = command("--scenarios", folder, "--file", split_file(tmp_path / "split.json"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("split.json: no drive east/d00 in the recordings")
