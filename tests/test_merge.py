"""The merge of regions: capped weights by water-filling, and bytes that do not depend on an order."""

from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.merge import capped, merge, merge_controls

amounts = st.dictionaries(
    st.sampled_from([f"region-{n}" for n in range(12)]), st.floats(1e-3, 1e9), min_size=1
)
caps = st.floats(0.01, 1)


def region(mean: list[float], weight: float) -> Aggregate:
    return Aggregate(np.array(mean), weight, 1)


@given(amounts=amounts, cap=caps)
def test_weights_sum_to_one_and_none_is_above_the_cap_where_possible(
    amounts: dict[str, float], cap: float
) -> None:
    weights = capped(amounts, cap=cap)
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights.values()) <= max(cap, 1 / len(amounts)) * (1 + 1e-12)
    assert min(weights.values()) > 0
    assert list(weights) == sorted(amounts)


@given(amounts=amounts, cap=caps)
def test_weights_keep_the_order_and_the_ratio_of_those_below_the_cap(
    amounts: dict[str, float], cap: float
) -> None:
    weights = capped(amounts, cap=cap)
    names = sorted(amounts, key=amounts.__getitem__)
    assert all(weights[a] <= weights[b] * (1 + 1e-12) for a, b in pairwise(names))
    free = [name for name in names if weights[name] < cap * (1 - 1e-9)]
    if cap * len(names) > 1:
        ratios = [weights[name] / amounts[name] for name in free]
        assert ratios == pytest.approx([ratios[0]] * len(ratios)) if ratios else True


@given(count=st.integers(1, 50), nudge=st.integers(-3, 3), scale=st.floats(1e-3, 1e6))
def test_a_cap_at_the_edge_of_the_possible_gives_equal_weights(count: int, nudge: int, scale: float) -> None:
    # given a cap within some bits of 1/n
    cap = min(1.0, (1 / count) * (1 + nudge * 2.0**-52))
    weights = capped({f"r{n}": scale * (1 + n) for n in range(count)}, cap=cap)
    assert list(weights.values()) == pytest.approx([1 / count] * count)


@pytest.mark.parametrize(
    ("regions", "cap", "expected"),
    [
        ({"a": 1, "b": 3}, 1.0, {"a": 0.25, "b": 0.75}),
        ({"a": 10, "b": 10, "c": 80}, 0.5, {"a": 0.25, "b": 0.25, "c": 0.5}),
        # capping c pushes b above the cap as well
        ({"a": 1, "b": 9, "c": 90}, 0.4, {"a": 0.2, "b": 0.4, "c": 0.4}),
        # two regions cannot both stay below 0.3
        ({"a": 1, "b": 99}, 0.3, {"a": 0.5, "b": 0.5}),
        ({"a": 7}, 0.5, {"a": 1.0}),
    ],
)
def test_water_filling_by_hand(regions: dict[str, float], cap: float, expected: dict[str, float]) -> None:
    assert capped(regions, cap=cap) == pytest.approx(expected)


def test_the_merge_is_the_weighted_mean_of_the_regions() -> None:
    merged, weights = merge({"south": region([0, 4], 90), "north": region([4, 0], 10)}, cap=0.75)
    assert weights == {"north": 0.25, "south": 0.75}
    assert merged.tolist() == [1.0, 3.0]
    assert merged.dtype == np.float64


def test_a_large_region_does_not_drown_a_small_one() -> None:
    merged, _ = merge({"city": region([1], 1e6), "village": region([-1], 1)}, cap=0.5)
    assert merged.tolist() == [0.0]


def test_the_bytes_do_not_depend_on_the_order_of_the_regions() -> None:
    rng = np.random.default_rng(0)
    regions = {f"r{n}": Aggregate(rng.normal(size=50), float(n + 1), 1) for n in range(7)}
    backwards = dict(reversed(regions.items()))
    assert merge(regions, cap=0.3)[0].tobytes() == merge(backwards, cap=0.3)[0].tobytes()


def test_one_region_alone_is_itself_and_not_changed() -> None:
    only = region([1.5, -2.5], 3)
    merged, weights = merge({"north": only}, cap=0.1)
    assert (merged.tolist(), weights) == ([1.5, -2.5], {"north": 1.0})
    merged += 1
    assert only.mean.tolist() == [1.5, -2.5]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_region_without_a_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=f"north has {weight}, expected a finite number above 0"):
        merge({"north": region([1], weight), "south": region([1], 1)}, cap=0.5)


def test_regions_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one size, got \{'north': 1, 'south': 2\}"):
        merge({"north": region([1], 1), "south": region([1, 2], 1)}, cap=0.5)


@pytest.mark.parametrize("cap", [0.0, -0.5, 1.1, float("nan")])
def test_a_cap_outside_its_range_is_refused(cap: float) -> None:
    with pytest.raises(ValueError, match="0 < cap ≤ 1"):
        merge({"north": region([1], 1)}, cap=cap)


def test_no_region_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one name"):
        merge({}, cap=0.5)


# --- trimmed mean over regions ---


def test_the_trimmed_merge_leaves_out_the_ends_of_each_coordinate() -> None:
    # given five regions, one of which is far away in one coordinate each way
    means = [[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [1e9, 8.0], [2.5, -1e9]]
    regions = {f"r{n}": region(mean, 10.0 ** (n + 1)) for n, mean in enumerate(means)}
    merged, weights = merge(regions, cap=0.5, trim=0.2)
    # then the three in the middle count, whatever their weights
    assert merged == pytest.approx([2.5, 6.0])
    assert weights == {f"r{n}": 0.2 for n in range(5)}


@given(count=st.integers(1, 12), trim=st.floats(0.01, 0.49), seed=st.integers(0, 99))
def test_the_trimmed_merge_equals_a_plain_loop(count: int, trim: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    regions = {f"r{n}": region(rng.normal(size=3).tolist(), float(rng.uniform(1, 9))) for n in range(count)}
    left_out = int(Decimal(str(trim)) * count)
    expected = []
    for coordinate in range(3):
        ordered = sorted(float(one.mean[coordinate]) for one in regions.values())
        kept = ordered[left_out : count - left_out]
        expected.append(sum(kept) / len(kept))
    assert merge(regions, cap=0.5, trim=trim)[0] == pytest.approx(expected)


def test_a_segment_merges_the_slices_of_its_regions() -> None:
    whole = {f"r{n}": region([float(n), 10.0 * n, -n], n + 1.0) for n in range(4)}
    part = {name: replace(one, mean=one.mean[1:]) for name, one in whole.items()}
    for trim in (0.0, 0.3):
        assert np.array_equal(merge(part, cap=0.4, trim=trim)[0], merge(whole, cap=0.4, trim=trim)[0][1:])


@pytest.mark.parametrize("trim", [-0.1, 0.5, float("nan")])
def test_a_trim_that_leaves_nothing_is_refused(trim: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0 ≤ trim < 0\.5"):
        merge({"north": region([1], 1)}, cap=0.5, trim=trim)


# --- what FedNova and SCAFFOLD add ---


def test_effective_steps_are_merged_with_the_weights_and_multiply_the_mean() -> None:
    regions = {
        "a": Aggregate(np.array([1.0]), 30.0, 1, steps=4.0),
        "b": Aggregate(np.array([3.0]), 10.0, 1, steps=8.0),
    }
    # the mean is 1.5 and the steps 5
    assert merge(regions, cap=1.0)[0].tolist() == [7.5]


def test_control_steps_are_divided_by_all_vehicles_or_by_those_that_sent() -> None:
    regions = {
        "a": Aggregate(np.zeros(2), 1.0, 3, control=np.array([6.0, 0.0])),
        "b": Aggregate(np.zeros(2), 1.0, 1, control=np.array([2.0, 4.0])),
    }
    assert merge_controls(regions, vehicles=8) == pytest.approx([1.0, 0.5])
    assert merge_controls(regions, vehicles=2) == pytest.approx([2.0, 1.0])
    assert merge_controls({"c": region([1.0], 1.0)}, vehicles=8) is None
