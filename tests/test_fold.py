"""The fold: the same bytes in any order of arrival, and what it refuses."""

from itertools import groupby
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet.codec.delta import Delta
from fedfleet.fleet_server.fold import check_update, example_weight, fold, fold_key, fold_ordered
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId, shard

SIZE = 257
Update = tuple[UpdateId, Delta, float]


def sparse(values: list[float], indices: list[int], size: int = SIZE) -> Delta:
    return Delta(size, np.array(indices, dtype=np.int64), np.array(values, dtype=np.float32))


def dense(values: list[float]) -> Delta:
    return Delta(len(values), None, np.array(values, dtype=np.float32))


def named(vehicle: str, sequence: int = 0, epoch: int = 0) -> UpdateId:
    return UpdateId(vehicle, epoch, sequence)


def some_updates(count: int, *, seed: int, vehicles: int = 12) -> list[Update]:
    """Updates whose float sums depend on the order of addition: magnitudes over many decades."""
    rng = np.random.default_rng(seed)
    updates: list[Update] = []
    for n in range(count):
        k = SIZE if n % 3 == 0 else int(rng.integers(0, 60))
        values = (rng.normal(size=k) * 10.0 ** rng.integers(-12, 12, k)).astype(np.float32)
        indices = None if k == SIZE else np.sort(rng.choice(SIZE, k, replace=False)).astype(np.int64)
        weight = float(10.0 ** rng.uniform(-3, 6))
        updates.append((named(f"v{n % vehicles}", sequence=n), Delta(SIZE, indices, values), weight))
    return updates


# --- what it computes ---


def test_the_mean_is_weighted() -> None:
    # given an update from 30 examples and one from 10
    result = fold([(named("v1"), dense([1, 0]), 30.0), (named("v2"), dense([0, 4]), 10.0)], size=2)
    # then
    assert result.mean.tolist() == [0.75, 1.0]
    assert result.mean.dtype == np.float64
    assert (result.weight, result.count) == (40.0, 2)


def test_a_coordinate_that_an_update_does_not_send_counts_as_zero() -> None:
    result = fold([(named("v1"), sparse([2], [1], 3), 1.0), (named("v2"), sparse([6], [2], 3), 1.0)], size=3)
    assert result.mean.tolist() == [0.0, 1.0, 3.0]


def test_an_empty_update_still_weighs() -> None:
    result = fold([(named("v1"), sparse([], [], 2), 1.0), (named("v2"), dense([2, 2]), 1.0)], size=2)
    assert (result.mean.tolist(), result.count) == ([1.0, 1.0], 2)


def test_one_update_is_its_own_mean() -> None:
    delta = sparse([0.1, -3.0], [0, 200])
    assert np.allclose(fold([(named("v1"), delta, 7.0)], size=SIZE).mean, delta.dense(), rtol=1e-15)


def test_the_weight_is_the_number_of_examples_up_to_the_cap() -> None:
    assert example_weight(31, cap=100) == 31.0
    assert example_weight(10**9, cap=100) == 100.0
    assert example_weight(0, cap=100) == 0.0


# --- the same bytes ---


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 30), seed=st.integers(0, 99), chance=st.randoms(use_true_random=False))
def test_the_bytes_do_not_depend_on_the_order_of_arrival(count: int, seed: int, chance: Random) -> None:
    # given updates, and the same ones shuffled
    updates = some_updates(count, seed=seed)
    shuffled = list(updates)
    chance.shuffle(shuffled)
    # when both are folded
    one, two = fold(updates, size=SIZE), fold(iter(shuffled), size=SIZE)
    # then not one bit differs
    assert one.mean.tobytes() == two.mean.tobytes()
    assert (one.weight, one.count) == (two.weight, two.count)


def test_the_order_of_addition_would_matter() -> None:
    # given the same updates added one after the other as they came, without shards or sorting
    updates = some_updates(30, seed=1)
    plain = np.zeros(SIZE)
    for _, delta, weight in updates:
        delta.add_to(plain, weight)
    # then the bits differ, so the test above proves something
    result = fold(updates, size=SIZE)
    assert plain.tobytes() != (result.mean * result.weight).tobytes()


def test_shards_folded_elsewhere_add_up_to_the_same_bytes() -> None:
    # given each shard folded on its own, as a cluster does
    updates = sorted(some_updates(30, seed=2), key=lambda update: fold_key(update[0]))
    total, weight = np.zeros(SIZE), 0.0
    for _, group in groupby(updates, key=lambda update: shard(update[0].vehicle)):
        part, part_weight = np.zeros(SIZE), 0.0
        for _, delta, update_weight in group:
            delta.add_to(part, update_weight)
            part_weight += update_weight
        total += part
        weight += part_weight
    # then their sum in shard order is the fold
    result = fold(updates, size=SIZE)
    assert result.mean.tobytes() == (total / weight).tobytes()
    assert result.weight == weight


def test_the_order_is_shard_then_vehicle_epoch_and_sequence() -> None:
    ids = [named(f"v{n}", sequence=s, epoch=e) for n in range(20) for s in (0, 10, 9) for e in (2, 1)]
    in_order = sorted(ids, key=fold_key)
    keys = [(shard(i.vehicle), i.vehicle, i.epoch, i.sequence) for i in in_order]
    assert keys == sorted(keys)


def test_streaming_in_order_gives_the_same_bytes_and_refuses_another_order() -> None:
    updates = sorted(some_updates(20, seed=3), key=lambda update: fold_key(update[0]))
    assert fold_ordered(iter(updates), size=SIZE).mean.tobytes() == fold(updates, size=SIZE).mean.tobytes()
    with pytest.raises(ValueError, match=r"expected \(shard, id\) order"):
        fold_ordered(reversed(updates), size=SIZE)


# --- what it refuses ---


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_above_zero_is_refused(weight: float) -> None:
    with pytest.raises(PeerError) as caught:
        fold([(named("v1"), dense([1.0]), 1.0), (named("v2", sequence=4), dense([1.0]), weight)], size=1)
    assert caught.value.reason == "bad-weight"
    expected = f"update v2:0000000000000000:4 has weight {weight}, expected a finite number above 0"
    assert caught.value.detail == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("is_sparse", [True, False])
def test_a_value_that_is_not_finite_is_refused(value: float, is_sparse: bool) -> None:
    delta = sparse([1.0, value], [0, 2], 3) if is_sparse else dense([1.0, value, 0.0])
    with pytest.raises(PeerError, match=r"not-finite: update v1:\S+: 1 of \d values are NaN or infinite"):
        fold([(named("v1"), delta, 1.0)], size=3)


@pytest.mark.parametrize("size", [1, 3])
def test_another_size_is_refused(size: int) -> None:
    with pytest.raises(PeerError, match=rf"wrong-size: update v1:\S+ has 2 parameters, the model has {size}"):
        fold([(named("v1"), dense([1.0, 2.0]), 1.0)], size=size)


def test_a_duplicate_is_refused_not_counted_twice() -> None:
    # given the same id twice, with others between
    update = (named("v1"), dense([1.0]), 1.0)
    with pytest.raises(PeerError, match=r"duplicate-update: update v1:\S+ comes twice"):
        fold([update, (named("v2"), dense([1.0]), 1.0), update], size=1)


def test_nothing_to_fold_is_our_error() -> None:
    with pytest.raises(ValueError, match="expected at least one update"):
        fold([], size=3)


def test_the_check_alone_lets_a_good_update_pass() -> None:
    check_update(named("v1"), dense([1.0]), 0.5, size=1)


def test_extreme_but_finite_updates_do_not_overflow() -> None:
    largest = float(np.finfo(np.float32).max)
    updates = [(named(f"v{n}"), dense([largest]), 1e9) for n in range(100)]
    assert fold(updates, size=1).mean.tolist() == pytest.approx([largest])


def test_shards_of_few_coordinates_add_up_to_the_same_bytes() -> None:
    # given sparse updates of many vehicles, of which a shard has few, and one dense one among them
    rng = np.random.default_rng(3)
    size, updates = 20_000, []
    for number in range(60):
        places = np.sort(rng.choice(size, 200, replace=False)).astype(np.int64)
        values = rng.normal(size=200).astype(np.float32)
        updates.append((UpdateId(f"v-{number}", 1, 1), Delta(size, places, values), float(1 + number % 7)))
    updates.append((UpdateId("v-60", 1, 1), Delta(size, None, rng.normal(size=size).astype(np.float32)), 2.0))
    # when they are folded, and added up with a look at every coordinate of every shard
    found = fold(updates, size=size)
    total, weight = np.zeros(size), 0.0
    for name in sorted({fold_key(id_)[0] for id_, _, _ in updates}):
        part = np.zeros(size)
        for id_, delta, each in sorted(updates, key=lambda one: fold_key(one[0])):
            if fold_key(id_)[0] == name:
                delta.add_to(part, each)
                weight += each
        total += part
    # then the bytes are the same
    assert found.mean.tobytes() == (total / weight).tobytes()
