"""The merge of regions: capped weights by water-filling, and bytes that do not depend on an order."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.fleet_server.fold import Aggregate
from fedfleet.fleet_server.merge import capped, merge

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
