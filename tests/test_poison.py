"""One message that cannot be handled costs itself only: the others are stored, the server goes on, someone is told."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_world import EPOCH, FLEET, SIZE, key_of, sealed_update
from sqlalchemy import select
from structlog.testing import capture_logs
from test_ingest import NOW_S, PLAN, SERVER_KEY, TASK, plan_of, quarantined, stored, to_topic, told

from fedfleet.fleet_server import gauges, schema, store_rounds, store_updates, store_vehicles, views
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.rate import Limiter, Rate
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.store import Store, StoreFailed, open_store
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.link.port import Delivery
from fedfleet.protocol import envelope, messages, topics
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.errors import PeerError
from fedfleet.protocol.ids import UpdateId

NAMES = tuple(f"v-{number}" for number in range(1, 9))
POISON = {
    "sqlite": "create trigger poison before insert on {table} when new.vehicle = 'v-3' "
    "begin select raise(abort, 'cannot be stored'); end",
    "postgresql": "create function poison() returns trigger language plpgsql as $$ begin "
    "if new.vehicle = 'v-3' then raise exception 'cannot be stored' using errcode = '22P05'; end if; "
    "return new; end $$; create trigger poison before insert on {table} for each row execute function poison()",
}
"""A database that does not take what v-3 sends: a DataError in PostgreSQL, an IntegrityError in SQLite."""


@pytest.fixture
def store(tmp_path: Path, address: Address | None) -> Iterator[Store]:
    """Eight vehicles in the north, round 5 open."""
    made = open_store(tmp_path, fleet=FLEET, task="linear_test", address=address)
    with made.write() as connection:
        for name in NAMES:
            store_vehicles.enrol(connection, name, region="north", public_key=key_of(name).public, now_s=1.0)
        store_rounds.add_round(connection, Round(PLAN, "open", frozenset(), None, NOW_S))
    yield made
    made.close()


def poisoned(store: Store, table: str) -> None:
    with store.write() as connection:
        for statement in POISON[connection.dialect.name].format(table=table).split("; create trigger"):
            whole = statement if statement.startswith("create") else f"create trigger{statement}"
            connection.exec_driver_sql(whole)


def ingest_of(store: Store) -> Ingest:
    party, limits = Party(FLEET, TASK, SERVER_KEY, {}), Limits(100_000, SIZE, 100)
    return Ingest(store, party, limits, Limiter(Rate(100.0, 1000)))


def test_the_others_of_a_batch_are_stored_and_the_culprit_is_put_aside(store: Store) -> None:
    # given a store that cannot take the update of one vehicle
    poisoned(store, '"update"')
    ingest = ingest_of(store)
    # when it comes among those of others
    with capture_logs() as lines:
        receipts = told(ingest.receive([to_topic(name, sealed_update(name, PLAN)) for name in NAMES], NOW_S))
    # then every vehicle has its answer, in order, and all but one are stored
    assert [(one.vehicle, one.outcome) for one in receipts] == [
        (name, "refused" if name == "v-3" else "stored") for name in NAMES
    ]
    assert stored(store) == [str(UpdateId(name, EPOCH, 5)) for name in NAMES if name != "v-3"]
    # and the culprit is in the quarantine, counted, and someone is told
    assert quarantined(store) == ["internal-error"]
    with store.read() as connection:
        assert store_updates.counters(connection) == {"refused:internal-error": 1}
        samples = {sample.name: sample.value for sample in gauges.read(connection, ["north"])}
    assert samples["fedfleet_internal_errors_total"] == 1
    (line,) = [line for line in lines if line["log_level"] == "error"]
    assert line["vehicle"] == "v-3"
    assert "cannot be stored" in line["error"]


def test_a_vehicle_whose_messages_fail_again_and_again_pays_for_them(store: Store) -> None:
    # given a vehicle whose every update fails, of which each costs a batch
    poisoned(store, '"update"')
    ingest = ingest_of(store)
    bad = [to_topic("v-3", sealed_update("v-3", PLAN, id=UpdateId("v-3", EPOCH, n))) for n in range(50)]
    # when it sends fifty, a batch each, in a second, far below its rate
    with capture_logs() as lines:
        for number, one in enumerate(bad):
            ingest.receive([one, to_topic("v-1", sealed_update("v-1", PLAN))], NOW_S + number / 50)
    # then a few are looked at, the rest is dropped unread, and the log has one line
    with store.read() as connection:
        counted = store_updates.counters(connection)
    assert counted["refused:internal-error"] <= 12
    assert counted["dropped:rate"] >= 38
    assert len([line for line in lines if line["log_level"] == "error"]) == 1


def test_when_nothing_can_be_written_it_is_the_store_that_failed(store: Store) -> None:
    # given a store in which a table is missing
    with store.write() as connection:
        connection.exec_driver_sql("alter table quarantine rename to elsewhere")
    with pytest.raises(StoreFailed, match="quarantine"):
        ingest_of(store).receive([to_topic("v-1", b"junk")], NOW_S)


def test_what_could_not_be_stored_costs_no_vehicle_its_rate(store: Store) -> None:
    # given a store that cannot be written for a while, in which the same messages are tried again and again
    party, limits = Party(FLEET, TASK, SERVER_KEY, {}), Limits(100_000, SIZE, 100)
    ingest = Ingest(store, party, limits, Limiter(Rate(0.001, 3, 1.0, 10_000)))
    batch = [to_topic("v-1", sealed_update("v-1", PLAN)), to_topic("v-1", b"junk")]
    with store.write() as connection:
        connection.exec_driver_sql("alter table quarantine rename to elsewhere")
    for _ in range(10):
        with pytest.raises(StoreFailed):
            ingest.receive(batch, NOW_S)
    # when it can be written again
    with store.write() as connection:
        connection.exec_driver_sql("alter table elsewhere rename to quarantine")
    # then they are taken
    assert [one.outcome for one in told(ingest.receive(batch, NOW_S))] == ["stored", "refused"]


def sealed_json(content: dict[str, object], kind: Kind, vehicle: str = "v-1") -> bytes:
    body = json.dumps(content).encode()
    return envelope.seal(body, key_of(vehicle), kind=kind, sender=vehicle, fleet=FLEET)


def status(**changes: object) -> Delivery:
    content = {"vehicle": "v-1", "state": "ONLINE", "session": 1, "at_s": NOW_S} | changes
    sealed = sealed_json(content, Kind.STATUS)
    return Delivery(topics.status(FLEET, "v-1"), sealed, 1, retain=True, duplicate=False, token=1)


COUNTED = ("session", "active_version", "frames", "missed", "missed_in_swap", "swaps", "trainings")
COUNTS = dict.fromkeys((*COUNTED, "p50_ms", "p99_ms", "bytes_up", "bytes_down"), 1)


def metrics(vehicle: str = "v-1", **changes: object) -> Delivery:
    content = {**COUNTS, "vehicle": vehicle, "task": TASK, "at_s": NOW_S} | changes
    sealed = sealed_json(content, Kind.METRICS, vehicle)
    return Delivery(topics.metrics(FLEET, vehicle), sealed, 1, retain=False, duplicate=False, token=1)


ODD = ["\0", "a\0b", "\x1b[31m", "line\nline", "\x7f", "\x9b31m", "\ud800"]


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("field", ["reason", "refusals", "scores", "variant"])
def test_text_that_databases_and_terminals_do_not_take_is_refused(
    text: str, field: str, store: Store
) -> None:
    # when a signed message has such text
    value = {"refusals": {text: 1}, "scores": {text: (1.0, 1)}}.get(field, text)
    odd = status(reason=value) if field == "reason" else metrics(**{field: value})
    ingest_of(store).receive([odd, to_topic("v-2", sealed_update("v-2", PLAN))], NOW_S)
    # then it is refused, as the message of a peer, and nothing else is
    assert quarantined(store) == ["malformed-message"]
    assert len(stored(store)) == 1


@pytest.mark.parametrize(
    "changes", [{"refusals": {"x": 10**400}}, {"scores": {"x": (1.0, 2**70)}}, {"frames": -1}]
)
def test_numbers_that_no_column_holds_are_refused(changes: dict[str, object], store: Store) -> None:
    ingest_of(store).receive([metrics(**changes)], NOW_S)
    assert quarantined(store) == ["malformed-message"]


def test_what_an_earlier_version_kept_does_not_stop_the_views(store: Store) -> None:
    # given metrics with a control character in a name, as an earlier version stored them, and good ones
    ingest = ingest_of(store)
    ingest.receive([metrics()], NOW_S)
    old = {**COUNTS, "vehicle": "v-2", "task": TASK, "at_s": 1.0, "refusals": {"a\0b": 1}}
    with store.write() as connection:
        mine = schema.vehicle.c.id == "v-2"
        connection.execute(schema.vehicle.update().where(mine).values(metrics=json.dumps(old).encode()))
        # then the vehicles are shown, that one without its metrics
        shown = views.vehicles(connection)
        assert "metrics" in shown["v-1"]
        assert "metrics" not in shown["v-2"]
        assert connection.execute(select(schema.vehicle.c.metrics).where(mine)).scalar_one()
    # and its next metrics replace them
    ingest.receive([metrics("v-2")], NOW_S)
    with store.read() as connection:
        assert "metrics" in views.vehicles(connection)["v-2"]


def test_no_text_on_the_wire_holds_a_control_character() -> None:
    """Every text of every message has a pattern or a list of words, and no pattern lets one through."""
    kinds = messages.Message.__subclasses__()
    assert len(kinds) > 15
    loose = [f"{kind.__name__}: {where}" for kind in kinds for where in loose_texts(kind.model_json_schema())]
    assert loose == []


def loose_texts(schema_: object, where: str = "") -> Iterator[str]:
    if isinstance(schema_, dict):
        if schema_.get("type") == "string" and not {"pattern", "enum", "const"} & set(schema_):
            yield where
        if (
            schema_.get("type") == "object"
            and "additionalProperties" in schema_
            and not keys_are_bounded(schema_)
        ):
            yield f"{where}: keys"
        for name, part in schema_.items():
            yield from loose_texts(part, f"{where}/{name}")
    elif isinstance(schema_, list):
        for number, part in enumerate(schema_):
            yield from loose_texts(part, f"{where}/{number}")


def keys_are_bounded(schema_: dict[str, object]) -> bool:
    names = schema_.get("propertyNames") or schema_.get("patternProperties")
    return bool(names) and "pattern" in json.dumps(names)


def test_a_status_before_enrolment_takes_little_room(store: Store) -> None:
    # given a vehicle with an open code, whose status is kept until it enrols
    from fedfleet.fleet_server.requests import Code

    ingest = Ingest(
        store, Party(FLEET, TASK, SERVER_KEY, {"w-1": Code("x" * 20, "north")}), Limits(100_000, SIZE, 100)
    )
    big = Delivery(topics.status(FLEET, "w-1"), bytes(200_000), 1, retain=True, duplicate=False, token=1)
    ingest.receive([big], NOW_S)
    assert quarantined(store) == ["too-large"]


def test_a_plan_of_ours_is_what_it_was() -> None:
    assert messages.decode(messages.Plan, messages.encode(plan_of(5)), sender="x") == plan_of(5)
    with pytest.raises(PeerError, match="malformed-message"):
        messages.decode(messages.Status, b'{"vehicle": "v-1\\n"}', sender="x")
