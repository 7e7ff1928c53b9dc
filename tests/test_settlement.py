"""Membership of a closed round, and one fate for every update."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.fleet_server.fold import fold_key
from fedfleet.fleet_server.settlement import Outcome, fates, membership
from fedfleet.protocol.ids import UpdateId

A, B, C, D = (UpdateId(vehicle, 1, 5) for vehicle in ("va", "vb", "vc", "vd"))
OUTCOMES: list[Outcome] = ["published", "below-quorum", "refused-by-gate"]
ids = st.sets(st.builds(UpdateId, st.sampled_from(["va", "vb", "vc"]), st.integers(0, 2), st.integers(0, 2)))


# --- membership ---


def test_members_are_in_fold_order_whatever_came_first() -> None:
    expected = tuple(sorted([A, B, C, D], key=fold_key))
    assert {membership(order).members for order in permutations([A, B, C, D])} == {expected}


def test_of_two_updates_of_a_vehicle_the_smaller_id_counts() -> None:
    # given a vehicle whose journal was replaced in mid-round
    again = UpdateId("va", 2, 0)
    # then only one of its updates is in, in whatever order they came
    for order in ([A, again], [again, A]):
        found = membership(order)
        assert (found.members, found.dropped, found.returned) == ((A,), {again: "second-update"}, {})


def test_who_is_not_a_contributor_is_returned() -> None:
    found = membership([A, B], contributors={"va"})
    assert (found.members, found.dropped, found.returned) == ((A,), {}, {B: "not-a-contributor"})


def test_a_repeated_id_counts_once() -> None:
    assert membership([A, A]).members == (A,)


@given(stored=ids)
def test_every_stored_update_has_one_place(stored: set[UpdateId]) -> None:
    found = membership(stored, contributors={"va", "vb"})
    places = [*found.members, *found.returned, *found.dropped]
    assert sorted(places) == sorted(stored)
    assert len({id_.vehicle for id_ in found.members}) == len(found.members)


# --- fates ---


def test_a_published_round_folds_its_members_and_returns_the_late() -> None:
    assert fates([A, B], [C], outcome="published", refused={}) == {
        A: ("folded", ""),
        B: ("folded", ""),
        C: ("returned", "late"),
    }


def test_a_round_below_quorum_returns_all() -> None:
    assert fates([A], [C], outcome="below-quorum", refused={}) == {
        A: ("returned", "below-quorum"),
        C: ("returned", "late"),
    }


def test_what_the_gate_refused_comes_back() -> None:
    assert fates([A], [C], outcome="refused-by-gate", refused={}) == {
        A: ("returned", "refused-by-gate"),
        C: ("returned", "late"),
    }


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_refused_update_is_dropped_however_the_round_ended(outcome: Outcome) -> None:
    found = fates(
        [A, B], [C], outcome=outcome, refused={B: "not-finite", C: "bad-weight", D: "second-update"}
    )
    assert found[B] == ("dropped", "not-finite")
    assert found[C] == ("dropped", "bad-weight")
    assert found[D] == ("dropped", "second-update")


def test_others_are_returned_with_their_own_reason() -> None:
    found = fates([A], [], outcome="published", refused={}, returned={B: "not-a-contributor"})
    assert found == {A: ("folded", ""), B: ("returned", "not-a-contributor")}


def test_an_update_cannot_be_member_and_late() -> None:
    with pytest.raises(ValueError, match=r"va:0000000000000001:5 is both member and late"):
        fates([A], [A], outcome="published", refused={})


def test_fates_come_in_fold_order() -> None:
    found = fates([D, B], [C, A], outcome="published", refused={})
    assert list(found) == sorted([A, B, C, D], key=fold_key)


@given(members=ids, late=ids, refused=ids, outcome=st.sampled_from(OUTCOMES))
def test_every_update_has_exactly_one_fate(
    members: set[UpdateId], late: set[UpdateId], refused: set[UpdateId], outcome: Outcome
) -> None:
    found = fates(members, late - members, outcome=outcome, refused=dict.fromkeys(refused, "norm"))
    assert set(found) == members | late | refused
    assert all(reason for fate, reason in found.values() if fate != "folded")
    assert all(found[id_][0] == "dropped" for id_ in refused)
    if outcome != "published":
        assert "folded" not in {fate for fate, _ in found.values()}
