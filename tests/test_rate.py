"""One vehicle that sends without end is held to its rate; the others do not notice, whatever the clock does."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_world import EPOCH, FLEET, SIZE, key_of, sealed_update
from test_ingest import NOW_S, PLAN, SERVER_KEY, TASK, to_topic, told

from fedfleet.fleet_server import store_quarantine, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.rate import Limiter, Rate
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store import open_store
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.protocol.ids import UpdateId


def passed(limiter: Limiter, key: str, now_s: float, times: int = 100) -> int:
    return sum(limiter.admits(key, now_s) for _ in range(times))


def test_a_burst_passes_then_the_rate() -> None:
    limiter = Limiter(Rate(per_s=2.0, burst=10))
    assert passed(limiter, "v-1", 0.0) == 10
    assert passed(limiter, "v-1", 0.4) == 0
    assert passed(limiter, "v-1", 3.0) == 6
    # the bucket holds no more than a burst, and each has its own
    assert passed(limiter, "v-1", 1e9) == 10
    assert passed(limiter, "v-2", 0.0) == 10


def test_bytes_are_held_to_their_own_rate() -> None:
    limiter = Limiter(Rate(per_s=100.0, burst=1000, bytes_per_s=10.0, burst_bytes=100))
    assert limiter.admits("v-1", 0.0, size_bytes=100)
    assert not limiter.admits("v-1", 0.0, size_bytes=1)
    assert limiter.admits("v-1", 0.0)  # nothing in it
    assert limiter.admits("v-1", 5.0, size_bytes=50)
    assert not limiter.admits("v-1", 5.0, size_bytes=1)
    # what is refused takes nothing, and one that is larger than a burst never passes
    assert not limiter.admits("v-1", 1000.0, size_bytes=101)
    assert limiter.admits("v-1", 1000.0, size_bytes=100)


def test_who_is_charged_owes_a_burst_at_most() -> None:
    limiter = Limiter(Rate(per_s=1.0, burst=10))
    for _ in range(100):
        limiter.charge("v-1", 0.0, share=0.5)
    assert passed(limiter, "v-1", 10.5) == 0
    assert passed(limiter, "v-1", 12.0) == 2


@pytest.mark.parametrize("jump_s", [-1e9, -3600.0, 3600.0, 1e9])
def test_a_clock_that_jumps_stops_nobody_and_gives_one_burst_at_most(jump_s: float) -> None:
    # given a vehicle that has used up its burst
    limiter = Limiter(Rate(per_s=1.0, burst=5))
    assert passed(limiter, "v-1", 1000.0) == 5
    # when the clock jumps, it may at most send a burst at once, and goes on at its rate from there
    now_s = 1000.0 + jump_s
    assert passed(limiter, "v-1", now_s) == (5 if jump_s > 0 else 0)
    assert passed(limiter, "v-1", now_s + 3.0) == 3


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-100.0, 100.0)), max_size=300))
def test_nobody_sends_more_than_burst_and_rate_allow(events: list[tuple[str, float]]) -> None:
    limiter, now_s, forward_s, count = Limiter(Rate(per_s=0.5, burst=3)), 0.0, 0.0, 0
    for key, step_s in events:
        now_s += step_s
        forward_s += max(0.0, step_s)
        count += limiter.admits(key, now_s) and key == "a"
    assert count <= 3 + 0.5 * forward_s + 1e-6


def test_buckets_are_bounded() -> None:
    # given more senders than there is room for, one of which is over its rate
    limiter = Limiter(Rate(per_s=1.0, burst=2), capacity=100)
    assert passed(limiter, "loud", 0.0) == 2
    for number in range(1000):
        assert limiter.admits(f"v-{number}", 0.5)
    assert len(limiter) <= 100


def test_a_hundred_thousand_updates_of_one_vehicle_harm_nobody(tmp_path: Path) -> None:
    # given a vehicle that sends 100,000 messages, good ones and junk, and others that send one each among them
    store = open_store(tmp_path, fleet=FLEET, task="linear_test")
    others = [f"v-{number}" for number in range(20)]
    with store.write() as connection:
        for name in ("loud", *others):
            store_vehicles.enrol(connection, name, region="north", public_key=key_of(name).public, now_s=1.0)
        store_rounds.add_round(connection, Round(PLAN, "open", frozenset(), None, 1.0))
    limiter = Limiter(Rate(per_s=10.0, burst=50))
    ingest = Ingest(store, Party(FLEET, TASK, SERVER_KEY, {}), Limits(100_000, SIZE, 100), limiter)
    flood = [to_topic("loud", sealed_update("loud", PLAN, id=UpdateId("loud", EPOCH, n))) for n in range(8)]
    flood.append(to_topic("loud", b"junk" * 1000))
    answers = []
    for number, name in enumerate(others):
        batch = [flood[n % len(flood)] for n in range(5000)]
        batch.insert(number * 100, to_topic(name, sealed_update(name, PLAN)))
        answers += told(ingest.receive(batch, NOW_S + number * 0.1))
    # then every other vehicle has its receipt, and of the loud one little was even looked at
    assert [one.vehicle for one in answers if one.vehicle != "loud" and one.outcome == "stored"] == others
    with store.read() as connection:
        counted = store_updates.counters(connection)
        kept, _ = store_quarantine.totals(connection)
    looked_at = 100_000 - counted["dropped:rate"]
    assert 50 <= looked_at <= 50 + 10 * 2 + 1
    assert kept == counted["refused:not-an-envelope"] <= looked_at
    store.close()
