"""What every broker and every link must do: one suite over the memory broker, Mosquitto and NATS."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from link_bench import Bench, MemoryBench, RealBench

from fedfleet.link.port import MAX_PAYLOAD_BYTES, Connected, Delivery, Disconnected, LinkFull, Published, Will
from fedfleet.protocol.errors import UsageError

T = "fl/v1/t"


@pytest.fixture(
    params=[
        "memory",
        pytest.param("mosquitto", marks=pytest.mark.mosquitto),
        pytest.param("nats", marks=pytest.mark.nats),
    ]
)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    made: Bench
    if request.param == "memory":
        made = MemoryBench()
    else:
        request.getfixturevalue(f"{request.param}_binary")
        made = RealBench(tmp_path, request.param)
    yield made
    made.end()


def test_qos_1_message_arrives_and_is_released_by_ack(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a")
    # when
    ticket = alice.link.publish(f"{T}/a", b"hello")
    (delivery,) = bob.receive()
    # then
    assert alice.next(Published) == Published(ticket)
    assert (delivery.topic, delivery.payload, delivery.qos) == (f"{T}/a", b"hello", 1)
    assert not delivery.retain
    assert not delivery.duplicate


def test_unacknowledged_delivery_comes_again_after_reconnect(bench: Bench) -> None:
    # given two messages held without ack
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a")
    alice.send(f"{T}/a", b"one")
    alice.send(f"{T}/a", b"two")
    first = bob.receive(2, ack=False)
    # when its process dies and comes back
    bench.crash(bob)
    bob = bench.join("bob")
    # then
    assert bob.connected() == Connected(session_present=True)
    again = bob.receive(2)
    assert [d.payload for d in again] == [d.payload for d in first] == [b"one", b"two"]
    assert all(d.duplicate for d in again)


def test_acknowledged_delivery_does_not_come_again(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a")
    alice.send(f"{T}/a", b"one")
    bob.receive()
    bob.settled()
    # when
    bench.crash(bob)
    bob = bench.join("bob")
    bob.connected()
    alice.send(f"{T}/a", b"fence")
    # then
    assert bob.receive()[0].payload == b"fence"


def test_persistent_session_queues_while_its_client_is_away(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a")
    bob.link.close()
    # when
    for n in range(20):
        alice.send(f"{T}/a", b"%d" % n)
    bob = bench.join("bob")
    # then
    assert bob.connected().session_present
    # Nothing is lost. The order may differ: what NATS sent while bob was leaving, it sends again later.
    assert sorted(int(d.payload) for d in bob.receive(20)) == list(range(20))


def test_queue_of_an_absent_client_survives_a_clean_restart_of_the_broker(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a")
    bob.link.close()
    alice.send(f"{T}/a", b"kept")
    alice.send(f"{T}/state", b"also kept", retain=True)
    # when
    bench.stop()
    assert alice.next(Disconnected).reason.startswith("broker ")
    bench.start()
    bob = bench.join("bob")
    # then
    assert bob.receive()[0].payload == b"kept"
    bob.listen(f"{T}/state")
    assert bob.receive()[0].payload == b"also kept"


def test_retained_message_is_given_to_a_later_subscriber_with_the_flag(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    alice.send(f"{T}/state", b"old", retain=True)
    alice.send(f"{T}/state", b"new", retain=True)
    # when
    bob.listen(f"{T}/+")
    # then only the last one, flagged
    (delivery,) = [d for d in bob.receive() if d.topic == f"{T}/state"]
    assert (delivery.payload, delivery.retain, delivery.qos) == (b"new", True, 1)


def test_live_subscriber_sees_a_retained_publish_without_the_flag(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/state")
    # when
    alice.send(f"{T}/state", b"now", retain=True)
    # then
    assert not bob.receive()[0].retain


def test_empty_payload_clears_a_retained_message(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    alice.send(f"{T}/state", b"old", retain=True)
    alice.send(f"{T}/state", b"", retain=True)
    alice.send(f"{T}/other", b"fence", retain=True)
    # when
    bob.listen(f"{T}/state", f"{T}/other")
    # then
    assert bob.receive()[0].payload == b"fence"


def test_wildcards_match_one_level_and_the_rest(bench: Bench) -> None:
    # given
    alice, bob, carol = bench.join("alice"), bench.join("bob"), bench.join("carol")
    bob.listen(f"{T}/v/+/x")
    carol.listen(f"{T}/v/#")
    # when
    for topic in (f"{T}/v/1/x", f"{T}/v/1/y", f"{T}/v/2/x", f"{T}/v/2/x/deep", f"{T}/w/1/x"):
        alice.send(topic)
    alice.send(f"{T}/v/end/x")
    # then
    assert [d.topic for d in bob.receive(3)] == [f"{T}/v/1/x", f"{T}/v/2/x", f"{T}/v/end/x"]
    assert [d.topic for d in carol.receive(5)] == [
        f"{T}/v/1/x",
        f"{T}/v/1/y",
        f"{T}/v/2/x",
        f"{T}/v/2/x/deep",
        f"{T}/v/end/x",
    ]


def test_will_is_published_when_a_client_dies_and_retained(bench: Bench) -> None:
    # given
    will = Will(f"{T}/status/bob", b"CONNECTIONBROKEN", qos=1, retain=True)
    alice, bob = bench.join("alice"), bench.join("bob", will=will)
    alice.listen(f"{T}/status/+")
    bob.send(f"{T}/status/bob", b"ONLINE", retain=True)
    alice.receive()
    # when
    bench.crash(bob)
    # then
    (delivery,) = alice.receive()
    assert (delivery.topic, delivery.payload) == (f"{T}/status/bob", b"CONNECTIONBROKEN")
    late = bench.join("late")
    late.listen(f"{T}/status/bob")
    assert late.receive()[0].payload == b"CONNECTIONBROKEN"


def test_will_is_not_published_after_a_goodbye(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob", will=Will(f"{T}/status/bob", b"BROKEN"))
    alice.listen(f"{T}/status/+")
    bob.connected()
    # when
    bob.link.close()
    alice.send(f"{T}/status/fence", b"fence")
    # then
    assert alice.receive()[0].payload == b"fence"


def test_largest_payload_arrives_whole_and_a_larger_one_is_refused(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/big")
    payload = bytes(range(256)) * (MAX_PAYLOAD_BYTES // 256)
    # when
    alice.send(f"{T}/big", payload, retain=True)
    # then
    assert bob.receive()[0].payload == payload
    late = bench.join("late")
    late.listen(f"{T}/big")
    assert late.receive()[0].payload == payload
    with pytest.raises(UsageError, match=r"fl/v1/t/big is 266241 bytes, limit 266240: cut it into chunks"):
        alice.link.publish(f"{T}/big", payload + b"x")


def test_messages_of_one_topic_keep_their_order(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a/#")
    # when
    tickets = [alice.link.publish(f"{T}/a/{n % 3}", b"%d" % n) for n in range(300)]
    # then
    got = bob.receive(300)
    for topic in {d.topic for d in got}:
        numbers = [int(d.payload) for d in got if d.topic == topic]
        assert numbers == sorted(numbers)
    assert sorted(alice.next(Published).ticket for _ in tickets) == tickets


def test_ticket_waits_while_the_broker_is_away(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a")
    alice.connected()
    bench.stop()
    alice.next(Disconnected)
    # when
    ticket = alice.link.publish(f"{T}/a", b"patient")
    assert not [e for e in alice.kept if isinstance(e, Published)]
    bench.start()
    # then
    assert alice.next(Published) == Published(ticket)
    assert bob.receive()[0].payload == b"patient"


def test_unsubscribe_stops_deliveries(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a", f"{T}/b")
    # when
    bob.link.unsubscribe(f"{T}/a")
    bob.settled()
    alice.send(f"{T}/a")
    alice.send(f"{T}/b", b"fence")
    # then
    assert bob.receive()[0].payload == b"fence"


def test_subscriptions_are_renewed_when_the_broker_lost_the_session(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a", f"{T}/gone")
    bob.link.unsubscribe(f"{T}/gone")
    bob.settled()
    assert not bob.connected().session_present
    # when
    bench.stop(lose=True)
    bob.next(Disconnected)
    bench.start()
    # then
    assert bob.connected() == Connected(session_present=False)
    bob.settled()
    alice.send(f"{T}/gone")
    alice.send(f"{T}/a", b"heard")
    assert bob.receive()[0].payload == b"heard"


def test_full_window_refuses_and_takes_again_after_published(bench: Bench) -> None:
    # given a broker that is away
    alice = bench.join("alice")
    alice.connected()
    bench.stop()
    alice.next(Disconnected)
    # when
    taken = [alice.link.publish(f"{T}/a", b"x") for _ in range(1000)]
    with pytest.raises(LinkFull, match="1000 messages, 1000 bytes are pending"):
        alice.link.publish(f"{T}/a", b"one too many")
    # then nothing that was taken is lost
    bench.start()
    assert [alice.next(Published).ticket for _ in taken] == taken
    alice.send(f"{T}/a")


def test_full_window_counts_bytes(bench: Bench) -> None:
    # given
    alice = bench.join("alice")
    alice.connected()
    bench.stop()
    alice.next(Disconnected)
    # when
    for _ in range(64):
        alice.link.publish(f"{T}/a", b"x" * 256 * 1024)
    # then
    with pytest.raises(LinkFull, match="64 messages, 16777216 bytes are pending"):
        alice.link.publish(f"{T}/a", b"x")


def test_acks_that_are_late_double_or_of_qos_0_have_no_effect(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a")
    alice.send(f"{T}/a", b"one")
    (delivery,) = bob.receive()
    # when
    bob.link.ack(delivery)
    bob.link.ack(Delivery(f"{T}/a", b"", 1, retain=False, duplicate=False, token=999))
    bob.link.ack(Delivery(f"{T}/a", b"", 0, retain=False, duplicate=False, token=1))
    alice.send(f"{T}/a", b"two")
    # then
    assert bob.receive()[0].payload == b"two"


def test_qos_0_reaches_who_is_there(bench: Bench) -> None:
    # given
    alice, bob = bench.join("alice"), bench.join("bob")
    bob.listen(f"{T}/a")
    # when
    alice.send(f"{T}/a", b"quick", qos=0)
    # then
    (delivery,) = bob.receive()
    assert (delivery.payload, delivery.qos) == (b"quick", 0)


@pytest.mark.parametrize("topic", ["", "fl/+/x", "fl/#", "fl/a b", "fl/\0", "x" * 1025])
def test_publishing_to_a_bad_topic_is_a_usage_error(bench: Bench, topic: str) -> None:
    with pytest.raises(UsageError, match="cannot publish to"):
        bench.join("alice").link.publish(topic, b"")


@pytest.mark.parametrize("topic_filter", ["", "fl/a+/x", "fl/#/x", "fl/a b", "$share/g/fl/#"])
def test_subscribing_to_a_bad_filter_is_a_usage_error(bench: Bench, topic_filter: str) -> None:
    with pytest.raises(UsageError, match="cannot subscribe to"):
        bench.join("alice").link.subscribe(topic_filter)


def test_closed_link_refuses_to_publish(bench: Bench) -> None:
    # given
    alice = bench.join("alice")
    alice.connected()
    # when
    alice.link.close()
    alice.link.close()
    # then
    with pytest.raises(UsageError, match="link alice is closed"):
        alice.link.publish(f"{T}/a", b"")
