"""Shares, the draw, and leases that were not kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.fleet_server.selection import FEW, lapsed, selected, share, share_of, widened
from fedfleet.protocol.selection import draw

MANY = [f"v{n:03d}" for n in range(200)]
vehicles = st.sets(st.sampled_from(MANY))


@pytest.mark.parametrize(
    ("enrolled", "wanted", "expected"),
    [(0, 5, 1.0), (FEW - 1, 1, 1.0), (FEW, 5, 0.5), (100, None, 1.0), (100, 25, 0.25), (100, 500, 1.0)],
)
def test_the_share_asks_for_the_wanted_number_and_all_of_a_few(
    enrolled: int, wanted: int | None, expected: float
) -> None:
    assert share(enrolled, wanted) == expected


@pytest.mark.parametrize(("enrolled", "wanted"), [(-1, 5), (20, 0)])
def test_a_share_of_nonsense_is_refused(enrolled: int, wanted: int) -> None:
    with pytest.raises(ValueError, match=rf"got {enrolled} and {wanted}"):
        share(enrolled, wanted)


def test_the_share_selects_about_that_many() -> None:
    assert 30 <= len(selected(MANY, seed=1, round_=1, share=0.25)) <= 70
    assert selected(MANY, seed=1, round_=1, share=0.0) == frozenset()
    assert selected(MANY, seed=1, round_=1, share=1.0) == frozenset(MANY)


@given(wanted=st.integers(1, 300), round_=st.integers(0, 1000))
def test_of_listed_vehicles_exactly_so_many_are_drawn(wanted: int, round_: int) -> None:
    part = share_of(MANY, wanted, seed=4, round_=round_)
    assert len(selected(MANY, seed=4, round_=round_, share=part)) == min(wanted, len(MANY))
    assert share_of(MANY, None, seed=4, round_=round_) == 1.0


@given(smaller=st.floats(0, 1), larger=st.floats(0, 1), round_=st.integers(0, 1000))
def test_a_larger_share_keeps_those_selected(smaller: float, larger: float, round_: int) -> None:
    smaller, larger = sorted((smaller, larger))
    assert selected(MANY, seed=3, round_=round_, share=smaller) <= selected(
        MANY, seed=3, round_=round_, share=larger
    )


@given(online=vehicles, start=st.floats(0, 1), missing=st.integers(-2, 50))
def test_widening_selects_exactly_the_missing_number_of_others(
    online: set[str], start: float, missing: int
) -> None:
    # given vehicles that the share does not select
    others = online - selected(online, seed=5, round_=9, share=start)
    # when it is widened
    wider = widened(start, others, missing=missing, seed=5, round_=9)
    # then the wanted number of them is selected, or all
    found = selected(others, seed=5, round_=9, share=wider)
    assert start <= wider <= 1
    if missing <= 0:
        assert wider == start
    elif missing <= len(others):
        assert len(found) == missing
    else:
        assert wider == 1
        assert found == others


def test_widening_by_one_takes_the_next_smallest_draw() -> None:
    order = sorted(MANY, key=lambda vehicle: draw(0, 0, vehicle))
    wider = widened(0.0, MANY, missing=1, seed=0, round_=0)
    assert selected(MANY, seed=0, round_=0, share=wider) == {order[0]}


def test_a_lease_is_over_at_its_last_second() -> None:
    leases = {"v1": 100.0, "v2": 100.5}
    found = lapsed({"v1", "v2"}, leases, announced_at_s=0.0, lease_s=10.0, now_s=100.0)
    assert found == {"v1"}


def test_without_a_lease_one_lease_after_the_announcement_counts() -> None:
    assert lapsed({"v1"}, {}, announced_at_s=50.0, lease_s=10.0, now_s=59.9) == frozenset()
    assert lapsed({"v1"}, {}, announced_at_s=50.0, lease_s=10.0, now_s=60.0) == {"v1"}


def test_leases_of_vehicles_that_are_not_asked_about_do_not_matter() -> None:
    assert lapsed(set(), {"v1": 0.0}, announced_at_s=0.0, lease_s=1.0, now_s=99.0) == frozenset()
