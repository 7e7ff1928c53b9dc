"""The door of the server: every message that must not count is refused by its reason, and nothing is lost."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from server_world import EPOCH, FLEET, SIZE, code, key_of, sealed_update

from fedfleet.codec import payload
from fedfleet.codec.settings import Settings
from fedfleet.fleet_server import store_quarantine, store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.requests import Code, Outgoing, Party
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.fleet_server.store_postgres import Address
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.link.port import Delivery
from fedfleet.protocol import chunks, enrolment, envelope, messages, topics, update
from fedfleet.protocol.envelope import Kind
from fedfleet.protocol.ids import SERVER, UpdateId
from fedfleet.protocol.messages import CodecPlan, Command, Lease, Metrics, Plan, Receipt, Request, Status
from fedfleet.protocol.signing import Keyring, SigningKey

NOW_S = 1_000.0
TASK = "linear-test"
SERVER_KEY = SigningKey(b"s" * 32)
NONCE = "ab" * 16


def plan_of(number: int, region: str = "north", *, base: int = 4) -> Plan:
    return Plan(
        task=TASK,
        region=region,
        round=number,
        revision=0,
        base_version=base,
        onnx_sha256="0" * 64,
        opened_at_s=NOW_S,
        deadline_s=NOW_S + 60,
        lease_s=10,
        seed=0,
        share=1.0,
        codec=CodecPlan(value="int8", density=0.5),
        training={},
    )


@pytest.fixture
def store(tmp_path: Path, address: Address | None) -> Iterator[Store]:
    """Vehicles v-1 and v-2 in the north, v-3 in the south; round 4 is over, round 5 open."""
    made = open_store(tmp_path, fleet=FLEET, task="linear_test", address=address)
    with made.write() as connection:
        for name, region in (("v-1", "north"), ("v-2", "north"), ("v-3", "south")):
            store_vehicles.enrol(connection, name, region=region, public_key=key_of(name).public, now_s=1.0)
        for number, state in ((4, "published"), (5, "open")):
            for region in ("north", "south"):
                plan = plan_of(number, region, base=number - 1)
                one = Round(plan, state, frozenset(), None, NOW_S)  # type: ignore[arg-type]
                store_rounds.add_round(connection, one)
    yield made
    made.close()


@pytest.fixture
def ingest(store: Store) -> Ingest:
    codes = {"v-9": Code(code("v-9"), "south")}
    return Ingest(store, Party(FLEET, TASK, SERVER_KEY, codes), Limits(100_000, SIZE, 100))


PLAN = plan_of(5)


def to_topic(vehicle: str, sealed: bytes, *, round_: int = 5, task: str = TASK, number: int = 0) -> Delivery:
    topic = topics.update(FLEET, vehicle, task, round_=round_, number=number)
    return Delivery(topic, sealed, 1, retain=False, duplicate=False, token=1)


def told(outgoing: list[Outgoing]) -> list[Receipt]:
    ring = Keyring({SERVER: SERVER_KEY.public})
    opened = [envelope.open_sealed(o.payload, ring, fleet=FLEET, limit_bytes=10_000) for o in outgoing]
    return [messages.decode(Receipt, one.body, sender=SERVER) for one in opened if one.kind is Kind.RECEIPT]


def commanded(outgoing: list[Outgoing]) -> list[Command]:
    ring = Keyring({SERVER: SERVER_KEY.public})
    opened = [envelope.open_sealed(o.payload, ring, fleet=FLEET, limit_bytes=10_000) for o in outgoing]
    return [messages.decode(Command, one.body, sender=SERVER) for one in opened if one.kind is Kind.COMMAND]


def stored(store: Store) -> list[str]:
    with store.read() as connection:
        found = connection.exec_driver_sql('select id from "update" order by id').scalars().all()
        leaves = connection.exec_driver_sql("select update_id from audit order by update_id").scalars().all()
    assert found == leaves
    return list(found)


def quarantined(store: Store) -> list[str]:
    with store.read() as connection:
        return [one.reason for one in store_quarantine.quarantined(connection, limit=100)]


def test_a_good_update_is_stored_and_its_receipt_names_it(ingest: Ingest, store: Store) -> None:
    sealed = sealed_update("v-1", PLAN)
    (receipt,) = told(ingest.receive([to_topic("v-1", sealed)], NOW_S))
    assert receipt.outcome == "stored"
    assert receipt.fate is None
    assert receipt.sealed_sha256 == sha256(sealed).hexdigest()
    assert stored(store) == [receipt.update] == [str(UpdateId("v-1", EPOCH, 5))]


def test_the_same_message_again_is_absorbed_and_told_again(ingest: Ingest, store: Store) -> None:
    # given an update that comes three times, twice in one batch
    delivery = to_topic("v-1", sealed_update("v-1", PLAN))
    receipts = told(ingest.receive([delivery, delivery], NOW_S)) + told(ingest.receive([delivery], NOW_S))
    # then it is stored once, and every time told so
    assert [r.outcome for r in receipts] == ["stored"] * 3
    assert len(stored(store)) == 1
    # and once it has a fate, that is told too
    with store.write() as connection:
        store_updates.set_fates(connection, {UpdateId("v-1", EPOCH, 5): ("folded", "")})
    assert told(ingest.receive([delivery], NOW_S))[0].fate == "folded"


def _payload(values: object, *, examples: int = 10) -> bytes:
    delta = np.asarray(values, np.float32)
    return payload.encode(delta, Settings("dense", "float32"), steps=1, examples=examples)


def _sealed(body: bytes, *, kind: Kind = Kind.UPDATE, sender: str = "v-1", fleet: str = FLEET) -> bytes:
    return envelope.seal(body, key_of(sender), kind=kind, sender=sender, fleet=fleet)


def _manifest(**changes: object) -> update.Manifest:
    return replace(
        update.Manifest(UpdateId("v-1", EPOCH, 5), TASK, "north", round=5, base_version=4), **changes
    )


def _nan_payload() -> bytes:
    good = bytearray(_payload(np.ones(SIZE)))
    at = bytes(good).index(np.float32(1).tobytes())
    good[at : at + 4] = np.float32(np.nan).tobytes()
    good[-4:] = zlib.crc32(bytes(good[:-4])).to_bytes(4, "little")
    return bytes(good)


GOOD = _payload(np.ones(SIZE))
REFUSED: dict[str, tuple[str, Callable[[], Delivery]]] = {
    "stranger": ("unknown-sender", lambda: to_topic("v-8", sealed_update("v-8", PLAN))),
    "re-signed": ("bad-signature", lambda: to_topic("v-1", sealed_update("v-1", PLAN, key=key_of("thief")))),
    "stranger in a vehicle's name": ("wrong-sender", lambda: to_topic("v-1", sealed_update("v-2", PLAN))),
    "truncated": ("truncated", lambda: to_topic("v-1", sealed_update("v-1", PLAN)[:-1])),
    "flipped": ("digest-mismatch", lambda: to_topic("v-1", sealed_update("v-1", PLAN)[:-1] + b"\x00")),
    "too large": ("too-large", lambda: to_topic("v-1", _sealed(bytes(100_001)))),
    "not ours": ("truncated", lambda: to_topic("v-1", b"hello")),
    "another fleet": ("bad-signature", lambda: to_topic("v-1", _sealed(b"", fleet="other"))),
    "another kind": ("wrong-kind", lambda: to_topic("v-1", _sealed(b"", kind=Kind.STATUS))),
    "no manifest": ("malformed-manifest", lambda: to_topic("v-1", _sealed(b"\x01"))),
    "another round in its topic": (
        "wrong-topic",
        lambda: to_topic("v-1", sealed_update("v-1", PLAN), round_=4),
    ),
    "another task": ("wrong-topic", lambda: to_topic("v-1", sealed_update("v-1", PLAN), task="other")),
    "another region": (
        "wrong-region",
        lambda: to_topic("v-1", sealed_update("v-1", plan_of(5, "south"))),
    ),
    "the future": ("from-the-future", lambda: to_topic("v-1", sealed_update("v-1", plan_of(6)), round_=6)),
    "long ago": ("round-unknown", lambda: to_topic("v-1", sealed_update("v-1", plan_of(3)), round_=3)),
    "another base": ("wrong-base", lambda: to_topic("v-1", sealed_update("v-1", plan_of(5, base=3)))),
    "no examples": (
        "bad-weight",
        lambda: to_topic("v-1", _sealed(update.pack(_manifest(), _payload(np.ones(SIZE), examples=0)))),
    ),
    "another size": (
        "size-mismatch",
        lambda: to_topic("v-1", _sealed(update.pack(_manifest(), _payload(np.ones(SIZE + 1))))),
    ),
    "not a number": (
        "non-finite-value",
        lambda: to_topic("v-1", _sealed(update.pack(_manifest(), _nan_payload()))),
    ),
    "payload cut": (
        "checksum-mismatch",
        lambda: to_topic("v-1", _sealed(update.pack(_manifest(), GOOD[:-9]))),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_update_is_refused_by_its_reason(what: str, ingest: Ingest, store: Store) -> None:
    # given a bad update with a good one before and after it
    reason, make = REFUSED[what]
    bad = make()
    good = [
        to_topic("v-2", sealed_update("v-2", PLAN)),
        to_topic("v-3", sealed_update("v-3", plan_of(5, "south"))),
    ]
    # when they come in one batch
    receipts = told(ingest.receive([good[0], bad, good[1]], NOW_S))
    # then the bad one is in the quarantine and its receipt says why; the good ones are stored
    assert [(r.outcome, r.reason) for r in receipts] == [("stored", ""), ("refused", reason), ("stored", "")]
    assert receipts[1].sealed_sha256 == sha256(bad.payload).hexdigest()
    assert len(stored(store)) == 2
    assert quarantined(store) == [reason]
    with store.read() as connection:
        assert store_updates.counters(connection) == {f"refused:{reason}": 1}
        (one,) = store_quarantine.quarantined(connection, limit=9)
    assert (one.vehicle, one.topic, one.size_bytes) == (
        topics.parse(bad.topic).vehicle,
        bad.topic,
        len(bad.payload),
    )
    assert one.head == bad.payload[:64_000]


def test_a_replayed_id_with_other_content_is_refused(ingest: Ingest, store: Store) -> None:
    ingest.receive([to_topic("v-1", sealed_update("v-1", PLAN))], NOW_S)
    other = _sealed(update.pack(_manifest(), GOOD))
    (receipt,) = told(ingest.receive([to_topic("v-1", other)], NOW_S))
    assert (receipt.outcome, receipt.reason) == ("refused", "replayed-id")
    assert len(stored(store)) == 1


def test_a_late_update_is_stored_and_returned(ingest: Ingest, store: Store) -> None:
    (receipt,) = told(
        ingest.receive([to_topic("v-1", sealed_update("v-1", plan_of(4, base=3)), round_=4)], NOW_S)
    )
    assert (receipt.outcome, receipt.fate, receipt.reason) == ("stored", "returned", "late")
    assert len(stored(store)) == 1


def test_what_comes_too_late_is_recorded_without_its_bytes(ingest: Ingest, store: Store) -> None:
    ingest.receive([to_topic("v-1", sealed_update("v-1", plan_of(4, base=3)), round_=4)], NOW_S)
    ingest.receive([to_topic("v-1", sealed_update("v-1", PLAN))], NOW_S)
    with store.read() as connection:
        rows = connection.exec_driver_sql('select round, payload is null from "update" order by round').all()
    assert [(row[0], bool(row[1])) for row in rows] == [(4, True), (5, False)]


def test_one_vehicle_fills_a_bounded_part_of_a_round(ingest: Ingest) -> None:
    # when a vehicle sends more good updates for a round than a fold could ever take, in two batches
    many = [to_topic("v-1", sealed_update("v-1", PLAN, id=UpdateId("v-1", EPOCH, n))) for n in range(150)]
    receipts = told(ingest.receive(many[:60], NOW_S)) + told(ingest.receive(many[60:], NOW_S))
    # then a hundred are stored, the rest is refused; the first, sent again, is still a duplicate
    assert [one.outcome for one in receipts] == ["stored"] * 100 + ["refused"] * 50
    assert {one.reason for one in receipts[100:]} == {"too-many-updates"}
    assert told(ingest.receive(many[:1], NOW_S))[0].outcome == "stored"
    # and the others have their room
    assert told(ingest.receive([to_topic("v-2", sealed_update("v-2", PLAN))], NOW_S))[0].outcome == "stored"


def test_one_vehicle_stores_three_of_the_largest_updates_in_a_round(store: Store) -> None:
    # given a limit that an update of this size just fits
    size = len(sealed_update("v-1", PLAN))
    ingest = Ingest(store, Party(FLEET, TASK, SERVER_KEY, {}), Limits(size, SIZE, 100))
    many = [to_topic("v-1", sealed_update("v-1", PLAN, id=UpdateId("v-1", EPOCH, n))) for n in range(5)]
    receipts = told(ingest.receive(many, NOW_S))
    assert [one.outcome for one in receipts] == ["stored"] * 3 + ["refused"] * 2


def test_rubbish_of_one_vehicle_does_not_push_out_that_of_others(store: Store) -> None:
    # given room for ten refused messages, three of which are of v-2
    limits = Limits(100_000, SIZE, 100, quarantine_keep=10)
    ingest = Ingest(store, Party(FLEET, TASK, SERVER_KEY, {}), limits)
    ingest.receive([to_topic("v-2", b"evidence %d" % n) for n in range(3)], NOW_S)
    # when v-1 sends much more
    for start in range(0, 100, 10):
        ingest.receive([to_topic("v-1", b"noise %d" % n) for n in range(start, start + 10)], NOW_S)
    # then all of v-2 is there, and the newest of v-1
    with store.read() as connection:
        kept = [(one.vehicle, one.head) for one in store_quarantine.quarantined(connection, limit=100)]
    assert [head for vehicle, head in kept if vehicle == "v-2"] == [b"evidence %d" % n for n in (2, 1, 0)]
    assert [head for vehicle, head in kept if vehicle == "v-1"] == [
        b"noise %d" % n for n in range(99, 92, -1)
    ]


def test_a_denied_vehicle_is_refused_at_once(ingest: Ingest, store: Store) -> None:
    # given a vehicle whose update was good
    ingest.receive([to_topic("v-1", sealed_update("v-1", PLAN))], NOW_S)
    # when another process puts it on the deny-list
    other = open_store(store.folder, fleet=FLEET, task="linear_test", exclusive=False)
    with other.write() as connection:
        store_vehicles.deny(connection, "v-1")
    other.close()
    # then its next message is refused
    (receipt,) = told(ingest.receive([to_topic("v-1", sealed_update("v-1", PLAN))], NOW_S))
    assert receipt.reason == "denied-sender"


def frames(sealed: bytes, vehicle: str = "v-1") -> list[Delivery]:
    pieces = chunks.split(sealed, chunk_bytes=120)
    return [to_topic(vehicle, piece, number=number) for number, piece in enumerate(pieces)]


@pytest.mark.parametrize("order", ["forward", "first, then backward", "doubled", "one by one"])
def test_an_update_in_pieces_is_stored_when_it_is_complete(order: str, ingest: Ingest, store: Store) -> None:
    sealed = _sealed(update.pack(_manifest(), GOOD))
    pieces = frames(sealed)
    assert len(pieces) > 2
    if order == "one by one":
        outgoing = [o for piece in pieces for o in ingest.receive([piece], NOW_S)]
    else:
        sent = {
            "forward": pieces,
            "first, then backward": [pieces[0], *pieces[:0:-1]],
            "doubled": pieces[:2] * 2 + pieces[2:] * 2,
        }[order]
        outgoing = ingest.receive(sent, NOW_S)
    (receipt,) = told(outgoing)
    assert (receipt.outcome, receipt.sealed_sha256) == ("stored", sha256(sealed).hexdigest())
    assert len(stored(store)) == 1
    assert list((store.folder / "incomplete").iterdir()) == []


def test_pieces_survive_a_restart_and_the_receipt_of_a_bad_whole_names_it(
    ingest: Ingest, store: Store
) -> None:
    # given all but the last piece of an update that is not as its header says
    sealed = sealed_update("v-1", PLAN)[:-1] + b"\x00"
    pieces = frames(sealed)
    assert ingest.receive(pieces[:-1], NOW_S) == []
    # when another server takes the last one
    again = Ingest(store, ingest.party, ingest.limits)
    (receipt,) = told(again.receive(pieces[-1:], NOW_S))
    # then the whole message is refused
    assert (receipt.reason, receipt.sealed_sha256) == ("digest-mismatch", sha256(sealed).hexdigest())


def test_a_message_outside_the_topics_is_put_aside(ingest: Ingest, store: Store) -> None:
    odd = [
        Delivery("fl/v1/test-fleet/v/99/v-1/status", b"x", 1, retain=False, duplicate=False, token=1),
        Delivery(topics.receipt(FLEET, "v-1"), b"x", 1, retain=False, duplicate=False, token=2),
        Delivery(topics.status(FLEET, "v-1"), b"", 1, retain=True, duplicate=False, token=3),
    ]
    assert ingest.receive(odd, NOW_S) == []
    assert sorted(quarantined(store)) == ["malformed-topic", "wrong-topic"]


def status(
    vehicle: str, state: str, *, session: int, at_s: float = 0.0, lease: Lease | None = None
) -> Delivery:
    body = Status(vehicle=vehicle, state=state, session=session, at_s=at_s, lease=lease)  # type: ignore[arg-type]
    sealed = _sealed(messages.encode(body), kind=Kind.STATUS, sender=vehicle)
    return Delivery(topics.status(FLEET, vehicle), sealed, 1, retain=True, duplicate=False, token=1)


def is_online(store: Store, vehicle: str) -> bool:
    with store.read() as connection:
        return {p.vehicle: p.online for p in store_vehicles.presences(connection)}[vehicle]


def test_a_will_of_an_older_session_does_not_end_the_newer_one(ingest: Ingest, store: Store) -> None:
    # given a vehicle that came back before its will was published
    ingest.receive([status("v-1", "ONLINE", session=1, at_s=10.0)], NOW_S)
    ingest.receive([status("v-1", "ONLINE", session=2, at_s=20.0)], NOW_S)
    # when the will of its first session comes
    ingest.receive([status("v-1", "CONNECTIONBROKEN", session=1, at_s=10.0)], NOW_S)
    # then it is online; its second session's will, deposited when it connected, ends it
    assert is_online(store, "v-1")
    ingest.receive([status("v-1", "CONNECTIONBROKEN", session=2, at_s=15.0)], NOW_S)
    assert not is_online(store, "v-1")


def test_a_lease_and_metrics_are_recorded(ingest: Ingest, store: Store) -> None:
    lease = Lease(task=TASK, round=5, until_s=NOW_S + 9)
    ingest.receive([status("v-1", "ONLINE", session=1, lease=lease)], NOW_S)
    counted = ("session", "active_version", "frames", "missed", "missed_in_swap", "swaps", "trainings")
    counts = dict.fromkeys((*counted, "p50_ms", "p99_ms", "bytes_up", "bytes_down"), 1)
    for at_s, frames_ in ((5.0, 50), (4.0, 40)):
        content = counts | {"vehicle": "v-1", "task": TASK, "at_s": at_s, "frames": frames_}
        sealed = _sealed(messages.encode(Metrics.model_validate(content)), kind=Kind.METRICS)
        topic = topics.metrics(FLEET, "v-1")
        ingest.receive([Delivery(topic, sealed, 1, retain=False, duplicate=False, token=1)], NOW_S)
    with store.read() as connection:
        presence = store_vehicles.presences(connection)[0]
        assert (presence.lease_round, presence.lease_until_s) == (5, NOW_S + 9)
        assert store_vehicles.last_metrics(connection)["v-1"].frames == 50
        assert store_updates.counters(connection) == {"ignored:stale-metrics": 1}


def request(vehicle: str, kind: str, *, secret: str = "", key: SigningKey | None = None) -> Delivery:
    own = key or key_of(vehicle)
    public = own.public.hex()
    proof = enrolment.vehicle_proof(secret, fleet=FLEET, vehicle=vehicle, nonce=NONCE, public_key=public)
    asked = Request(vehicle=vehicle, kind=kind, nonce=NONCE, public_key=public, proof=proof)  # type: ignore[arg-type]
    sealed = envelope.seal(messages.encode(asked), own, kind=Kind.REQUEST, sender=vehicle, fleet=FLEET)
    return Delivery(topics.request(FLEET, vehicle), sealed, 1, retain=False, duplicate=False, token=1)


def test_a_vehicle_enrols_with_its_code_and_its_earlier_status_counts(ingest: Ingest, store: Store) -> None:
    # given a vehicle that says ONLINE before it is known, as every vehicle does
    assert ingest.receive([status("v-9", "ONLINE", session=1)], NOW_S) == []
    # when it enrols, and asks again because the answer was lost
    enrol = request("v-9", "enrol", secret=code("v-9"))
    outgoing = ingest.receive([enrol], NOW_S)
    again = ingest.receive([enrol], NOW_S)
    # then it learns its region and proves the server's key by the code, twice; it is online, nothing is put aside
    command = enrolment.open_enrolled(
        outgoing[0].payload, code("v-9"), fleet=FLEET, vehicle="v-9", nonce=NONCE
    )
    assert (command.region, command.server_key) == ("south", SERVER_KEY.public.hex())
    assert again == outgoing
    assert is_online(store, "v-9")
    assert quarantined(store) == []
    # and its updates count
    sealed = sealed_update("v-9", plan_of(5, "south"))
    assert told(ingest.receive([to_topic("v-9", sealed)], NOW_S))[0].outcome == "stored"


def test_a_code_is_good_once_and_only_when_it_is_known(ingest: Ingest, store: Store) -> None:
    # when someone guesses the code, or has none
    wrong = ingest.receive([request("v-9", "enrol", secret="a wrong guess")], NOW_S)
    nobody = ingest.receive([request("v-8", "enrol", secret="whatever it is")], NOW_S)
    assert [commanded(each)[0].reason for each in (wrong, nobody)] == ["wrong-code", "unknown-sender"]
    # and when, after its use, a thief of the code enrols another key
    ingest.receive([request("v-9", "enrol", secret=code("v-9"))], NOW_S)
    thief = ingest.receive([request("v-9", "enrol", secret=code("v-9"), key=key_of("thief"))], NOW_S)
    # then the enrolled key stays
    assert commanded(thief)[0].reason == "bad-signature"
    with store.read() as connection:
        assert store_vehicles.keyring(connection).keys["v-9"] == key_of("v-9").public


def test_a_vehicle_that_lost_its_key_enrols_again_by_a_fresh_code(ingest: Ingest, store: Store) -> None:
    # given an enrolled vehicle that has another key now, and a fresh code from the operator
    ingest.receive([request("v-9", "enrol", secret=code("v-9"))], NOW_S)
    new, fresh = key_of("v-9 after its disk died"), "a fresh code for v-9"
    with_code = Ingest(store, replace(ingest.party, codes={"v-9": Code(fresh, "north")}), ingest.limits)
    # when it asks with the old code, then its old key stays
    old = with_code.receive([request("v-9", "enrol", secret=code("v-9"), key=new)], NOW_S)
    assert commanded(old)[0].reason == "bad-signature"
    # when it asks with the fresh one, then the new key is its key, in the region of the code, and only once
    outgoing = with_code.receive([request("v-9", "enrol", secret=fresh, key=new)], NOW_S)
    command = enrolment.open_enrolled(outgoing[0].payload, fresh, fleet=FLEET, vehicle="v-9", nonce=NONCE)
    assert (command.region, command.server_key) == ("north", SERVER_KEY.public.hex())
    thief = with_code.receive([request("v-9", "enrol", secret=fresh, key=key_of("thief"))], NOW_S)
    assert commanded(thief)[0].reason == "bad-signature"
    with store.read() as connection:
        assert store_vehicles.keyring(connection).keys["v-9"] == new.public
        assert store_updates.counters(connection)["enrolled:new-key"] == 1
    # and what bears the old key is refused, what bears the new one counts
    sealed = [sealed_update("v-9", PLAN), sealed_update("v-9", PLAN, key=new)]
    receipts = told(with_code.receive([to_topic("v-9", one) for one in sealed], NOW_S))
    assert [(one.outcome, one.reason) for one in receipts] == [("refused", "bad-signature"), ("stored", "")]


def test_a_denied_vehicle_does_not_come_back_by_a_code(ingest: Ingest, store: Store) -> None:
    ingest.receive([request("v-9", "enrol", secret=code("v-9"))], NOW_S)
    with store.write() as connection:
        store_vehicles.deny(connection, "v-9")
    party = replace(ingest.party, codes={"v-9": Code("a fresh code for v-9", "north")})
    again = Ingest(store, party, ingest.limits)
    asked = request("v-9", "enrol", secret="a fresh code for v-9", key=key_of("new"))
    assert commanded(again.receive([asked], NOW_S))[0].reason == "denied-sender"
    with store.read() as connection:
        assert store_vehicles.keyring(connection).keys["v-9"] == key_of("v-9").public


def test_hello_tells_the_region(ingest: Ingest) -> None:
    (command,) = commanded(ingest.receive([request("v-3", "hello")], NOW_S))
    assert (command.kind, command.region, command.nonce) == ("assign", "south", NONCE)
