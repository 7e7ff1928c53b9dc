"""What paho 2.2 does that surprises, one test each, and the loop's own promises."""

import os
import random
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from link_bench import EVERYONE, PATIENCE_S, Party
from scripted_broker import PUBACK, PUBLISH, SUBSCRIBE, Conversation, ScriptedBroker

from fedfleet.link import embedded
from fedfleet.link.inbox import Inbox, InboxFull
from fedfleet.link.live import LiveLink
from fedfleet.link.options import Backoff, Options
from fedfleet.link.paho import Loop
from fedfleet.link.port import Connected, Delivery, Disconnected, Event, Link, Published
from fedfleet.link.probe import check
from fedfleet.protocol.errors import UsageError

T = "fl/v1/t"
NOBODY = "connection refused: nothing listens there; `fedfleet broker` starts a broker on this machine"
UNKNOWN = "not authorized: it knows no such user name (username), or wants a password or a certificate"
QUICK = Backoff(base_s=0.01, cap_s=0.05)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(rng=random.Random(1)).start()
    yield made
    made.stop()


@pytest.fixture
def scripted() -> Iterator[ScriptedBroker]:
    with ScriptedBroker() as broker:
        yield broker


@pytest.fixture
def mosquitto(mosquitto_binary: Path, tmp_path: Path) -> Iterator[embedded.Broker]:
    assert mosquitto_binary.is_file()
    with embedded.start(tmp_path / "broker", kind="mosquitto") as broker:
        yield broker


def join(loop: Loop, port: int, client_id: str = "bob", options: Options | None = None) -> Party:
    """A client that speaks MQTT 3.1.1, as the scripted broker does; the contract suite speaks MQTT 5."""
    inbox: Inbox[Event] = Inbox(10_000)
    options = replace(options or Options(backoff=QUICK), mqtt="3.1.1")
    link = loop.connect("127.0.0.1", port, client_id=client_id, sink=inbox.put, options=options)
    return Party(link, inbox, pump=lambda: None, patience_s=PATIENCE_S)


def fence(party: Party, conversation: Conversation) -> None:
    """Assert that nothing but the answer to this subscription is on its way to the broker."""
    party.link.subscribe(f"{T}/fence")
    assert conversation.read().kind == SUBSCRIBE


# --- acknowledgements ---


def test_stale_ack_after_reconnect_does_not_acknowledge_another_message(
    loop: Loop, scripted: ScriptedBroker
) -> None:
    # given a delivery from the connection before
    bob = join(loop, scripted.port)
    first = scripted.accept()
    first.publish(1, b"old")
    (old,) = bob.receive(ack=False)
    first.cut()
    # and the same packet id for another message in this one
    second = scripted.accept(session_present=True)
    second.publish(1, b"new")
    (new,) = bob.receive(ack=False)
    # when
    bob.link.ack(old)
    # then nothing is released
    fence(bob, second)
    bob.link.ack(new)
    answer = second.read()
    assert (answer.kind, answer.mid) == (PUBACK, 1)
    assert isinstance(bob.link, LiveLink)
    assert bob.link.counts["stale_acks"] == 1


def test_acks_are_released_in_the_order_of_arrival(loop: Loop, scripted: ScriptedBroker) -> None:
    # given
    bob = join(loop, scripted.port)
    broker = scripted.accept()
    for mid in (5, 6, 7):
        broker.publish(mid, b"x")
    deliveries = bob.receive(3, ack=False)
    # when the last ones are acknowledged first
    bob.link.ack(deliveries[2])
    bob.link.ack(deliveries[1])
    # then they wait for the first
    fence(bob, broker)
    bob.link.ack(deliveries[0])
    assert [broker.read().mid for _ in range(3)] == [5, 6, 7]


def test_repetition_of_a_message_that_we_still_hold_is_not_delivered_twice(
    loop: Loop, scripted: ScriptedBroker
) -> None:
    # given
    bob = join(loop, scripted.port)
    broker = scripted.accept()
    broker.publish(5, b"held")
    # when the broker loses patience on the same connection, as NATS does
    broker.publish(5, b"held", duplicate=True)
    broker.publish(6, b"next")
    # then
    deliveries = bob.receive(2)
    assert [d.payload for d in deliveries] == [b"held", b"next"]
    assert [broker.read().mid for _ in range(2)] == [5, 6]
    assert isinstance(bob.link, LiveLink)
    assert bob.link.counts["repeated"] == 1


def test_message_never_acknowledged_holds_the_window_until_it_is_quarantined(
    loop: Loop, mosquitto: embedded.Broker
) -> None:
    # given a window of three and ten messages
    options = Options(username=embedded.SERVER_USER, receive_window=3)
    bob = join(loop, mosquitto.port, options=options)
    alice = join(loop, mosquitto.port, "alice", EVERYONE)
    bob.listen(f"{T}/a")
    for n in range(10):
        alice.send(f"{T}/a", b"%d" % n)
    # when the first is held and later ones are acknowledged
    first, second, third = bob.receive(3, ack=False)
    bob.link.ack(second)
    bob.link.ack(third)
    # then nothing more comes but QoS 0
    alice.send(f"{T}/a", b"fence", qos=0)
    assert bob.next(Delivery).payload == b"fence"
    # when it is put aside and acknowledged
    bob.link.ack(first)
    # then the rest comes
    assert [d.payload for d in bob.receive(7)] == [b"%d" % n for n in range(3, 10)]


# --- publishing ---


def test_own_window_bounds_what_is_in_flight(loop: Loop, scripted: ScriptedBroker) -> None:
    # given
    bob = join(loop, scripted.port, options=Options(send_window=4, backoff=QUICK))
    broker = scripted.accept()
    bob.connected()
    # when
    tickets = [bob.link.publish(f"{T}/a", b"%d" % n) for n in range(10)]
    # then four leave, and one more for each acknowledgement
    sent = [broker.read() for _ in range(4)]
    fence(bob, broker)
    for n in range(4, 10):
        broker.puback(sent.pop(0).mid)
        sent.append(broker.read())
        assert sent[-1].payload == b"%d" % n
    for packet in sent:
        broker.puback(packet.mid)
    assert [bob.next(Published).ticket for _ in tickets] == tickets


def test_offline_publish_is_sent_once_and_not_as_a_duplicate(loop: Loop, free_port: int) -> None:
    # given no broker
    bob = join(loop, free_port)
    assert bob.next(Disconnected).reason == f"broker 127.0.0.1:{free_port} refuses: {NOBODY}"
    for n in range(3):
        bob.link.publish(f"{T}/a", b"%d" % n)
    # when one comes
    with socket.create_server(("127.0.0.1", free_port)) as listener:
        listener.settimeout(PATIENCE_S)
        broker = Conversation(listener.accept()[0], code=0, session_present=False)
        # then
        sent = [broker.read() for _ in range(3)]
        assert [p.payload for p in sent] == [b"0", b"1", b"2"]
        assert not any(p.duplicate for p in sent)
        fence(bob, broker)
        broker.cut()


def test_message_in_flight_is_sent_again_in_order_after_a_reconnect_before_later_ones(
    loop: Loop, scripted: ScriptedBroker
) -> None:
    # given two in flight and one that waits for the window
    bob = join(loop, scripted.port, options=Options(send_window=2, backoff=QUICK))
    tickets = [bob.link.publish(f"{T}/a", b"%d" % n) for n in range(3)]
    first = scripted.accept()
    sent = [first.read(), first.read()]
    # when
    first.cut()
    second = scripted.accept(session_present=True)
    # then
    again = [second.read(), second.read()]
    assert [(p.mid, p.payload, p.duplicate) for p in again] == [(p.mid, p.payload, True) for p in sent]
    second.puback(again[0].mid)
    third = second.read()
    assert (third.payload, third.duplicate) == (b"2", False)
    second.puback(again[1].mid)
    second.puback(third.mid)
    assert [bob.next(Published).ticket for _ in tickets] == tickets


def test_packet_id_still_in_flight_is_not_used_again(loop: Loop, scripted: ScriptedBroker) -> None:
    # given packet id 1 in flight and a counter about to come round
    bob = join(loop, scripted.port)
    bob.link.publish(f"{T}/a", b"held")
    broker = scripted.accept()
    assert broker.read().mid == 1
    assert isinstance(bob.link, LiveLink)
    bob.link._wire._client._last_mid = 65534  # type: ignore[attr-defined]
    # when
    tickets = [bob.link.publish(f"{T}/a", b"later"), bob.link.publish(f"{T}/a", b"last")]
    # then
    mids = [broker.read().mid, broker.read().mid]
    assert mids == [65535, 2]
    for mid in mids:
        broker.puback(mid)
    assert [bob.next(Published).ticket for _ in tickets] == tickets


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("mosquitto", marks=pytest.mark.mosquitto),
        pytest.param("nats", marks=pytest.mark.nats),
    ],
)
def test_no_ticket_is_lost_when_the_broker_is_killed(
    request: pytest.FixtureRequest, tmp_path: Path, loop: Loop, kind: embedded.Kind
) -> None:
    # given
    request.getfixturevalue(f"{kind}_binary")
    with embedded.start(tmp_path, kind=kind) as broker:
        alice = join(loop, broker.port, "alice", EVERYONE)
        tickets: list[int] = []
        # when the broker dies in the middle of each hundred
        for _ in range(3):
            tickets += [alice.link.publish(f"{T}/a", b"x" * 1000) for _ in range(50)]
            alice.next(Published)
            broker.kill()
            tickets += [alice.link.publish(f"{T}/a", b"x" * 1000) for _ in range(50)]
            broker.restart()
        # then each ticket comes once
        rest = [alice.next(Published).ticket for _ in range(len(tickets) - 3)]
        assert len(set(rest)) == len(rest)
        assert set(rest) < set(tickets)


# --- callbacks ---


def test_sink_that_raises_does_not_end_the_loop_and_gets_the_message_again(
    loop: Loop, mosquitto: embedded.Broker
) -> None:
    # given a sink that fails at its first delivery
    inbox: Inbox[Event] = Inbox(100)
    failures = iter([ValueError("first"), KeyError("second")])

    def sink(event: Event) -> None:
        if isinstance(event, Delivery) and (failure := next(failures, None)):
            raise failure
        inbox.put(event)

    link = loop.connect("127.0.0.1", mosquitto.port, client_id="bob", sink=sink, options=EVERYONE)
    bob = Party(link, inbox, pump=lambda: None, patience_s=PATIENCE_S)
    alice = join(loop, mosquitto.port, "alice", EVERYONE)
    bob.listen(f"{T}/a")
    # when
    alice.send(f"{T}/a", b"important")
    # then
    (delivery,) = bob.receive()
    assert (delivery.payload, delivery.duplicate) == (b"important", False)
    assert link.counts["sink_errors"] == 2


def test_events_refused_by_a_full_inbox_are_offered_again(loop: Loop, mosquitto: embedded.Broker) -> None:
    # given an inbox with room for one
    inbox: Inbox[Event] = Inbox(1)
    link = loop.connect("127.0.0.1", mosquitto.port, client_id="bob", sink=inbox.put, options=EVERYONE)
    bob = Party(link, inbox, pump=lambda: None, patience_s=PATIENCE_S)
    # when
    tickets = [link.publish(f"{T}/a", b"x") for _ in range(20)]
    # then no ticket is lost
    assert [bob.next(Published).ticket for _ in tickets] == tickets
    assert inbox.overflows == link.counts["sink_errors"]


def test_link_may_be_used_and_closed_inside_its_own_sink(loop: Loop, scripted: ScriptedBroker) -> None:
    # given a sink that publishes, subscribes, acknowledges and closes
    links: list[Link] = []

    def sink(event: Event) -> None:
        if isinstance(event, Delivery):
            links[0].subscribe(f"{T}/x")
            links[0].publish(f"{T}/answer", b"pong")
            links[0].ack(event)
        if isinstance(event, Published):
            links[0].close()

    options = Options(mqtt="3.1.1")
    links.append(loop.connect("127.0.0.1", scripted.port, client_id="bob", sink=sink, options=options))
    broker = scripted.accept()
    # when
    broker.publish(1, b"ping")
    # then it neither waits for itself nor dies
    kinds = [broker.read(), broker.read(), broker.read()]
    assert sorted(p.kind for p in kinds) == [PUBLISH, PUBACK, SUBSCRIBE]
    broker.puback(next(p.mid for p in kinds if p.kind == PUBLISH))
    link = links[0]
    assert isinstance(link, LiveLink)
    assert link.gone.wait(PATIENCE_S)


# --- connections ---


def test_one_loop_carries_more_clients_than_select_could(loop: Loop, mosquitto: embedded.Broker) -> None:
    # given descriptors beyond 1024, where select ends
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    ballast = [os.open(os.devnull, os.O_RDONLY) for _ in range(800)]
    try:
        # when
        parties = [join(loop, mosquitto.port, f"v-{n}", EVERYONE) for n in range(400)]
        for n, party in enumerate(parties):
            party.link.subscribe(f"{T}/{n}")
            party.link.publish(f"{T}/{n}", b"%d" % n)
        # then each hears itself
        assert [p.receive()[0].payload for p in parties] == [b"%d" % n for n in range(400)]
    finally:
        for descriptor in ballast:
            os.close(descriptor)


def test_session_is_kept_with_a_stable_client_id(loop: Loop, scripted: ScriptedBroker) -> None:
    # given
    join(loop, scripted.port, "v-17")
    # when
    first = scripted.accept()
    first.cut()
    second = scripted.accept()
    # then: level 4, clean session off, user name on, keepalive 30
    assert first.connect.body[:10] == b"\x00\x04MQTT\x04\x80\x00\x1e"
    assert first.connect.body[10:] == b"\x00\x04v-17" * 2
    assert second.connect == first.connect


def test_back_off_has_full_jitter_and_a_cap(free_port: int) -> None:
    # given an rng that notes what it is asked
    asked: list[float] = []

    class Noting(random.Random):
        def uniform(self, a: float, b: float) -> float:
            asked.append(b)
            return a + super().uniform(a, b) / 1000

    loop = Loop(rng=Noting(1)).start()
    try:
        # when the broker stays away
        options = Options(backoff=Backoff(base_s=0.25, cap_s=3.0))
        bob = join(loop, free_port, options=options)
        for _ in range(6):
            bob.next(Disconnected)
    finally:
        loop.stop()
    # then
    assert asked[:6] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]


def test_back_off_delays_differ_between_vehicles() -> None:
    # given
    rng = random.Random(5)
    # when
    delays = [Backoff(base_s=1.0, cap_s=8.0).delay_s(10_000, rng) for _ in range(1000)]
    # then they fill the whole range
    assert min(delays) < 0.1
    assert max(delays) > 7.9
    assert 3.5 < sum(delays) / len(delays) < 4.5


def test_refusal_of_the_broker_is_an_event_and_not_the_end(loop: Loop, scripted: ScriptedBroker) -> None:
    # given
    bob = join(loop, scripted.port)
    # when
    scripted.accept(code=5)
    # then
    assert bob.next(Disconnected).reason == f"broker 127.0.0.1:{scripted.port} refuses: {UNKNOWN}"
    scripted.accept()
    assert bob.connected() == Connected(session_present=False)


def test_silent_broker_is_noticed_by_keepalive(loop: Loop, scripted: ScriptedBroker) -> None:
    # given
    bob = join(loop, scripted.port, options=Options(keepalive_s=1, backoff=QUICK))
    scripted.accept()
    bob.connected()
    # when it answers no ping; then
    reason = bob.next(Disconnected).reason
    assert reason == f"broker 127.0.0.1:{scripted.port} did not answer within 1 s (keepalive)"


def test_silent_host_does_not_stop_other_links(loop: Loop, scripted: ScriptedBroker) -> None:
    # given a link that is connected
    bob = join(loop, scripted.port)
    broker = scripted.accept()
    bob.connected()
    # when another waits for a TLS handshake that never ends
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        options = Options(tls=tls, connect_timeout_s=1.0)
        other = join(loop, silent.getsockname()[1], "other", options)
        silent.accept()[0].settimeout(PATIENCE_S)
        # then the first goes on
        broker.publish(1, b"x")
        bob.receive()
        assert not other.kept
        assert other.next(Disconnected).reason.startswith("broker 127.0.0.1:")


def test_defect_in_one_link_is_counted_and_leaves_the_others_alone(
    loop: Loop, mosquitto: embedded.Broker
) -> None:
    # given
    bob, alice = join(loop, mosquitto.port, "bob", EVERYONE), join(loop, mosquitto.port, "alice", EVERYONE)
    bob.connected()
    assert isinstance(bob.link, LiveLink)
    # when something breaks below
    bob.link._acks.append([])  # type: ignore[arg-type]
    bob.link.ack(Delivery("t", b"", 1, retain=False, duplicate=False, token=1))
    # then
    assert "was left after" in bob.next(Disconnected).reason
    assert bob.link.counts["defects"] >= 1
    alice.send(f"{T}/a")


def test_lost_connections_are_dropped_without_leaking_descriptors(
    loop: Loop, mosquitto: embedded.Broker, wait_until: Callable[..., None]
) -> None:
    # given
    parties = [join(loop, mosquitto.port, f"v-{n}", EVERYONE) for n in range(20)]
    for party in parties:
        party.connected()
    before = sum(1 for _ in Path("/proc/self/fd").iterdir())
    # when
    for _ in range(3):
        mosquitto.kill()
        mosquitto.restart()
        for party in parties:
            party.connected()
    # then
    wait_until(lambda: sum(1 for _ in Path("/proc/self/fd").iterdir()) <= before, "descriptors are back")


# --- the probe and the inbox ---


def test_probe_says_in_one_line_why_there_is_no_broker(free_port: int) -> None:
    with pytest.raises(UsageError, match=f"^broker 127.0.0.1:{free_port} refuses: {NOBODY}$"):
        check("127.0.0.1", free_port, timeout_s=1.0)


def test_probe_tells_a_broker_from_something_that_only_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(UsageError, match=f"^broker 127.0.0.1:{port} refuses: no answer in time$"):
            check("127.0.0.1", port, timeout_s=0.2)


@pytest.mark.mosquitto
def test_probe_is_content_with_a_broker(mosquitto: embedded.Broker) -> None:
    check(mosquitto.host, mosquitto.port, timeout_s=5.0, options=Options(username="u" * 200, password="p"))


def test_inbox_is_bounded_and_counts_what_it_refuses() -> None:
    # given
    inbox: Inbox[int] = Inbox(2)
    inbox.put(1)
    inbox.put(2)
    # when
    with pytest.raises(InboxFull, match="inbox holds 2 items, its limit"):
        inbox.put(3)
    # then
    assert inbox.overflows == 1
    assert inbox.drain(10, 0.0) == [1, 2]
    assert inbox.get(0.0) is None
