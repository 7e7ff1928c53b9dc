"""The round table, the decisions of an open round, and when rounds open and merge."""

from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfleet.fleet_server.rounds import (
    FINAL,
    TABLE,
    Abandon,
    Close,
    Event,
    Republish,
    RoundError,
    RoundView,
    State,
    advance,
    decide,
    diagram,
    may_open,
    ready_to_merge,
)
from fedfleet.protocol.selection import draw

STATES: tuple[State, ...] = get_args(State)
EVENTS: tuple[Event, ...] = get_args(Event)
OPENED_S, LEASE_S, DEADLINE_S = 1000.0, 60.0, 1300.0
THREE = frozenset({"v1", "v2", "v3"})
MANY = [f"v{n:02d}" for n in range(20)]
SEED, ROUND = 7, 12


def by_draw(vehicles: list[str]) -> list[str]:
    return sorted(vehicles, key=lambda vehicle: draw(SEED, ROUND, vehicle))


def view(**changes: object) -> RoundView:
    """An open round of a small region: three vehicles online and asked, nothing stored."""
    plain = RoundView(
        region="north",
        round=ROUND,
        seed=SEED,
        share=1.0,
        quorum=2,
        deadline_s=DEADLINE_S,
        lease_s=LEASE_S,
        announced_at_s=OPENED_S,
        target=THREE,
        stored=frozenset(),
        online=THREE,
        leases={},
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def drawn_view(count: int, **changes: object) -> RoundView:
    """A round of twenty vehicles that asked the `count` with the smallest draws."""
    order = by_draw(MANY)
    share = draw(SEED, ROUND, order[count])  # not below its own draw, so not selected itself
    target = frozenset(order[:count])
    return view(**({"share": share, "target": target, "online": frozenset(MANY)} | changes))


# --- the table ---


@pytest.mark.parametrize(("state", "event"), sorted(TABLE))
def test_every_cell_of_the_table_leads_on(state: State, event: Event) -> None:
    assert advance(state, event) == TABLE[state, event]


@pytest.mark.parametrize(("state", "event"), sorted(set(product(STATES, EVENTS)) - set(TABLE)))
def test_every_missing_cell_is_an_error_naming_state_and_event(state: State, event: Event) -> None:
    with pytest.raises(RoundError, match=f"event '{event}' in state '{state}'"):
        advance(state, event)


def test_a_missing_cell_tells_what_was_expected() -> None:
    with pytest.raises(RoundError) as caught:
        advance("closing", "close")
    assert str(caught.value) == (
        "event 'close' in state 'closing' of a round: expected one of: aggregate, abandon"
    )
    with pytest.raises(RoundError, match="none, it is final"):
        advance("published", "close")


def test_the_final_states_lead_nowhere_and_every_state_is_reached() -> None:
    assert set(STATES) - {state for state, _ in TABLE} == FINAL == {"published", "abandoned", "carried"}
    assert {"open", *TABLE.values()} == set(STATES)
    assert {event for _, event in TABLE} == set(EVENTS)


def test_the_whole_way_of_a_round() -> None:
    state: State = "open"
    way: tuple[Event, ...] = ("republish", "close", "aggregate", "evaluate", "publish")
    for event in way:
        state = advance(state, event)
    assert state == "published"


def test_the_diagram_is_drawn_from_the_table() -> None:
    lines = [line.strip() for line in diagram().splitlines()]
    assert lines[:2] == ["stateDiagram-v2", "[*] --> open"]
    assert lines[2:-3] == [f"{state} --> {after}: {event}" for (state, event), after in TABLE.items()]
    assert lines[-3:] == ["abandoned --> [*]", "carried --> [*]", "published --> [*]"]


# --- closing and abandoning ---


def test_a_round_waits_while_its_vehicles_train() -> None:
    leases = dict.fromkeys(THREE, OPENED_S + 100)
    assert decide(view(stored=frozenset({"v1"}), leases=leases), OPENED_S + 90) is None


def test_it_closes_when_the_target_is_stored() -> None:
    assert decide(view(stored=THREE), OPENED_S + 1) == Close("target")


def test_others_count_for_the_target_as_well() -> None:
    assert decide(view(stored=frozenset({"v1", "v2", "v9"})), OPENED_S + 1) == Close("target")


def test_a_target_below_the_quorum_does_not_close_it() -> None:
    # given one vehicle asked, and a quorum of two
    asked_one = view(target=frozenset({"v1"}), stored=frozenset({"v1"}), online=frozenset({"v1"}))
    # then its update alone never makes a round
    assert decide(asked_one, DEADLINE_S - 1) is None
    assert isinstance(decide(asked_one, DEADLINE_S), Abandon)


def test_an_empty_region_does_not_close_with_nothing() -> None:
    empty = view(target=frozenset(), online=frozenset(), quorum=1)
    assert decide(empty, OPENED_S) is None
    assert isinstance(decide(empty, DEADLINE_S), Abandon)


@pytest.mark.parametrize("late_s", [0.0, 0.5, 1e6])
def test_at_the_deadline_it_closes_with_the_quorum(late_s: float) -> None:
    assert decide(view(stored=frozenset({"v1", "v3"})), DEADLINE_S + late_s) == Close("deadline")


def test_at_the_deadline_it_is_abandoned_below_the_quorum() -> None:
    assert decide(view(stored=frozenset({"v1"})), DEADLINE_S) == Abandon(
        "round 12 of north: 1 updates at the deadline, quorum 2"
    )


def test_a_contributor_list_closes_exactly_when_all_are_stored() -> None:
    listed = view(contributors=frozenset({"v1", "v2"}))
    # neither others, nor quorum, nor deadline close or abandon it
    assert decide(listed, DEADLINE_S + 1e6) is None
    assert decide(replace(listed, stored=frozenset({"v1", "v3", "v4"})), DEADLINE_S + 1) is None
    assert decide(replace(listed, stored=frozenset({"v1", "v2"})), OPENED_S) == Close("contributors")
    assert decide(replace(listed, stored=THREE), OPENED_S) == Close("contributors")


# --- publishing again ---


def test_lapsed_leases_bring_in_as_many_others_as_are_missing() -> None:
    # given five of twenty asked: three stored, one whose lease is over, one that never took one
    order = by_draw(MANY)
    lapsing = drawn_view(5, stored=frozenset(order[:3]), leases={order[3]: OPENED_S + 30})
    # when only the first of them has lapsed, then one more vehicle is asked
    one = decide(lapsing, OPENED_S + 30)
    assert isinstance(one, Republish)
    assert [v for v in order if draw(SEED, ROUND, v) < one.share] == order[:6]
    # when both have, then two more
    two = decide(lapsing, OPENED_S + LEASE_S)
    assert isinstance(two, Republish)
    assert [v for v in order if draw(SEED, ROUND, v) < two.share] == order[:7]


def test_a_running_lease_is_awaited_even_from_a_vehicle_that_is_offline() -> None:
    order = by_draw(MANY)
    away = drawn_view(
        5,
        stored=frozenset(order[:4]),
        leases={order[4]: OPENED_S + 200},
        online=frozenset(MANY) - {order[4]},
    )
    assert decide(away, OPENED_S + 199) is None
    assert isinstance(decide(away, OPENED_S + 200), Republish)


def test_those_asked_by_the_new_revision_get_time_to_take_a_lease() -> None:
    # given a plan published again for six at 1100 s
    order = by_draw(MANY)
    again = drawn_view(6, target=frozenset(order[:5]), stored=frozenset(order[:3]), announced_at_s=1100.0)
    # then the sixth is awaited until one lease after that
    leases = {order[3]: OPENED_S + 30, order[4]: OPENED_S + 300}
    assert decide(replace(again, leases=leases), 1100.0 + LEASE_S - 1) is None
    assert isinstance(decide(replace(again, leases=leases), 1100.0 + LEASE_S), Republish)


def test_without_enough_others_everyone_is_asked_once() -> None:
    order = by_draw(MANY)
    few = drawn_view(5, online=frozenset(order[:6]))
    assert decide(few, OPENED_S + LEASE_S) == Republish(1.0)
    assert decide(replace(few, share=1.0), OPENED_S + LEASE_S) is None


def test_a_region_that_asks_all_waits_for_its_deadline() -> None:
    # given a vehicle that died in mid-round
    dead = view(stored=frozenset({"v1", "v2"}), online=frozenset({"v1", "v2"}))
    assert decide(dead, DEADLINE_S - 1) is None
    assert decide(dead, DEADLINE_S) == Close("deadline")


@given(
    stored=st.sets(st.sampled_from(MANY)),
    online=st.sets(st.sampled_from(MANY)),
    count=st.integers(0, 19),
    quorum=st.integers(1, 8),
    leases=st.dictionaries(st.sampled_from(MANY), st.floats(900, 1500)),
    now_s=st.floats(1000, 1400),
)
def test_decisions_hold_their_promises(
    stored: set[str], online: set[str], count: int, quorum: int, leases: dict[str, float], now_s: float
) -> None:
    # given any round of twenty vehicles
    any_view = drawn_view(
        count, stored=frozenset(stored), online=frozenset(online), quorum=quorum, leases=leases
    )
    # when it decides
    decision = decide(any_view, now_s)
    # then it closes only with a quorum, is abandoned only at the deadline without, and only ever asks more
    match decision:
        case Close():
            assert len(stored) >= quorum
            assert len(stored) >= any_view.wanted or now_s >= DEADLINE_S
        case Abandon():
            assert len(stored) < quorum
            assert now_s >= DEADLINE_S
        case Republish(share):
            assert any_view.share < share <= 1
            assert now_s < DEADLINE_S
        case None:
            assert now_s < DEADLINE_S
    # and the same view decides the same again
    assert decide(any_view, now_s) == decision


# --- opening and merging ---


@pytest.mark.parametrize(
    ("online", "waited_s", "opens"),
    [
        ({"north": 2, "south": 2}, 0, True),
        ({"north": 2, "south": 1}, 29, False),
        ({"north": 2, "south": 1}, 30, True),
        ({"north": 1, "south": 1}, 1e9, False),
        ({}, 1e9, False),
    ],
)
def test_a_round_opens_with_every_quorum_or_after_the_wait_with_one(
    online: dict[str, int], waited_s: float, opens: bool
) -> None:
    assert may_open(online, quorum=2, waited_s=waited_s, start_wait_s=30) is opens


def test_the_merge_waits_for_every_region() -> None:
    assert ready_to_merge({"north": "aggregated", "south": "open"}) is None
    assert ready_to_merge({"north": "aggregated", "south": "closing"}) is None
    assert ready_to_merge({"south": "aggregated", "north": "aggregated", "east": "abandoned"}) == (
        "north",
        "south",
    )
    assert ready_to_merge({"north": "abandoned"}) == ()


def test_a_region_is_not_merged_twice() -> None:
    with pytest.raises(RoundError, match="state 'published' of a round: south is past its merge"):
        ready_to_merge({"north": "aggregated", "south": "published"})
