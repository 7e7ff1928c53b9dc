"""A vehicle whose clock was wrong once, ahead or behind: what it says afterwards counts at once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_world import FLEET, SIZE, key_of
from structlog.testing import capture_logs
from test_ingest import PLAN, SERVER_KEY, TASK

from fedfleet.fleet_server import schema, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.link.port import Delivery
from fedfleet.protocol import envelope, messages, topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.messages import Lease, Metrics, Status

NOW_S = 1_700_000_000.0
DAY_S = 86_400.0
FAR_S = 1e11
COUNTED = ("session", "active_version", "missed", "missed_in_swap", "swaps", "trainings")
COUNTS: dict[str, Any] = dict.fromkeys((*COUNTED, "p50_ms", "p99_ms", "bytes_up", "bytes_down"), 1)


@pytest.fixture
def store(tmp_path: Path, address: Address | None) -> Iterator[Store]:
    made = open_store(tmp_path, fleet=FLEET, task="linear_test", address=address)
    with made.write() as connection:
        store_vehicles.enrol(connection, "v-1", region="north", public_key=key_of("v-1").public, now_s=1.0)
        store_rounds.add_round(connection, Round(PLAN, "open", frozenset(), None, NOW_S))
    yield made
    made.close()


@pytest.fixture
def ingest(store: Store) -> Ingest:
    return Ingest(store, Party(FLEET, TASK, SERVER_KEY, {}), Limits(100_000, SIZE, 100))


def delivery(message: messages.Message, kind: Kind, topic: str) -> Delivery:
    sealed = envelope.seal(messages.encode(message), key_of("v-1"), kind=kind, sender="v-1", fleet=FLEET)
    return Delivery(topic, sealed, 1, retain=False, duplicate=False, token=1)


def status(at_s: float, state: str = "ONLINE", **fields: Any) -> Delivery:
    told = {"vehicle": "v-1", "state": state, "session": 1, "at_s": at_s} | fields
    return delivery(Status.model_validate(told), Kind.STATUS, topics.status(FLEET, "v-1"))


def metrics(at_s: float, frames: int) -> Delivery:
    told = COUNTS | {"vehicle": "v-1", "task": TASK, "at_s": at_s, "frames": frames}
    return delivery(Metrics.model_validate(told), Kind.METRICS, topics.metrics(FLEET, "v-1"))


def row(store: Store) -> Any:
    with store.read() as connection:
        return connection.execute(schema.vehicle.select()).mappings().one()


def frames(store: Store) -> int:
    with store.read() as connection:
        return store_vehicles.last_metrics(connection)["v-1"].frames


@pytest.mark.parametrize("ahead_s", [1.0, DAY_S, FAR_S - NOW_S])
def test_metrics_go_on_after_a_clock_was_ahead(ahead_s: float, ingest: Ingest, store: Store) -> None:
    # given metrics of a clock that was ahead
    ingest.receive([metrics(NOW_S + ahead_s, 1)], NOW_S)
    assert row(store)["metrics_at_s"] == NOW_S
    # when the clock is right again
    ingest.receive([metrics(NOW_S + 9.5, 2)], NOW_S + 10)
    # then they count
    assert frames(store) == 2


def test_metrics_go_on_while_the_clock_is_ahead(ingest: Ingest, store: Store) -> None:
    for number in range(3):
        ingest.receive([metrics(NOW_S + DAY_S + number, number)], NOW_S + 10 * number)
        assert frames(store) == number
    # and of several that come together the last one stays
    ingest.receive([metrics(NOW_S + DAY_S + 4, 4), metrics(NOW_S + DAY_S + 5, 5)], NOW_S + 40)
    assert frames(store) == 5


def test_metrics_go_on_after_a_clock_was_set_back(ingest: Ingest, store: Store) -> None:
    # given a clock that ran, then begins in 1970, as after an empty battery
    ingest.receive([metrics(NOW_S, 1)], NOW_S)
    ingest.receive([metrics(30.0, 2)], NOW_S + 10)
    assert frames(store) == 2
    # while what is a little older was overtaken on its way
    ingest.receive([metrics(20.0, 3)], NOW_S + 11)
    assert frames(store) == 2


@pytest.mark.parametrize("column", ["metrics_at_s", "status_at_s"])
def test_what_an_earlier_version_kept_from_the_future_holds_nothing_back(
    column: str, ingest: Ingest, store: Store
) -> None:
    # given a store in which a vehicle was last heard of in the year 5138
    with store.write() as connection:
        connection.execute(schema.vehicle.update().values({column: FAR_S, "epoch": 7}))
    # when it speaks now, from a new journal
    ingest.receive([status(NOW_S - 0.1, epoch=8), metrics(NOW_S - 0.1, 1)], NOW_S)
    # then it is heard, and the future is forgotten
    assert row(store)["state"] == "ONLINE"
    assert frames(store) == 1
    assert row(store)[column] <= NOW_S


@pytest.mark.parametrize("at_s", [NOW_S + DAY_S, 30.0])
def test_a_new_journal_is_heard_whatever_the_clock_of_the_old_one_said(
    at_s: float, ingest: Ingest, store: Store
) -> None:
    # given a status of the old journal from a clock a day ahead, then one of a new journal
    ingest.receive([status(NOW_S + DAY_S, epoch=7, session=9)], NOW_S)
    ingest.receive([status(at_s, epoch=8, session=1, reason="new")], NOW_S + 5)
    assert row(store)["reason"] == "new"
    # then the will of the old one, from before, does not end it
    ingest.receive([status(NOW_S, "CONNECTIONBROKEN", epoch=7, session=9)], NOW_S + 6)
    assert row(store)["state"] == "ONLINE"


def test_a_lease_is_as_long_as_it_is_whatever_the_clock_shows(ingest: Ingest, store: Store) -> None:
    # given a vehicle whose clock is a day ahead, which trains for a minute
    lease = Lease(task=TASK, round=5, until_s=NOW_S + DAY_S + 60)
    ingest.receive([status(NOW_S + DAY_S, lease=lease)], NOW_S)
    # then its lease lapses in a minute, not tomorrow
    assert row(store)["lease_until_s"] == pytest.approx(NOW_S + 60)


def test_someone_is_told_once_a_minute(ingest: Ingest, store: Store) -> None:
    with capture_logs() as lines:
        for number in range(5):
            ingest.receive([metrics(NOW_S + DAY_S, number)], NOW_S + number)
    told = [line for line in lines if "clock" in line["event"]]
    assert [(line["vehicle"], line["ahead_s"]) for line in told] == [("v-1", 86_400)]
    with store.read() as connection:
        assert store_updates.counters(connection) == {"corrected:clock-ahead": 5}
