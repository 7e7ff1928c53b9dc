"""The memory broker's faults, and what of MQTT they may and may not break."""

from collections import Counter

import pytest

from fedfleet.link.inbox import Inbox
from fedfleet.link.memory import Faults, MemoryBroker, MemoryLink
from fedfleet.link.port import Connected, Delivery, Disconnected, Event, Published, Will, matches
from fedfleet.protocol.errors import UsageError

ALL = Faults(drop=0.2, duplicate=0.2, reorder=0.2, disconnect=0.1)


def storm(seed: int, faults: Faults, *, count: int = 200) -> tuple[list[Event], list[Event]]:
    """Alice publishes, Bob acknowledges what he gets; returns what each has heard."""
    broker = MemoryBroker(seed, faults=faults, window=10)
    heard: tuple[list[Event], list[Event]] = ([], [])
    alice = broker.connect("alice", heard[0].append)
    bob = broker.connect("bob", heard[1].append)
    bob.subscribe("t/#")
    broker.pump()
    for n in range(count):
        alice.publish(f"t/{n % 3}", b"%d" % n)
    seen = 0
    for _ in range(1000):
        broker.pump(limit=50)
        for event in heard[1][seen:]:
            if isinstance(event, Delivery):
                bob.ack(event)
        seen = len(heard[1])
    assert broker.pump() == 0
    return heard


def payloads(events: list[Event]) -> list[bytes]:
    return [e.payload for e in events if isinstance(e, Delivery)]


def test_same_seed_gives_the_same_storm_and_another_seed_another() -> None:
    assert storm(1, ALL) == storm(1, ALL)
    assert storm(1, ALL) != storm(2, ALL)


@pytest.mark.parametrize("seed", range(10))
def test_no_fault_loses_a_message_of_qos_1_or_a_ticket(seed: int) -> None:
    # when
    alice, bob = storm(seed, ALL)
    # then
    assert {int(p) for p in payloads(bob)} == set(range(200))
    assert [e.ticket for e in alice if isinstance(e, Published)] == list(range(1, 201))


def test_each_fault_happens() -> None:
    # given
    calm = storm(1, Faults())[1]
    # then
    assert payloads(calm) == [b"%d" % n for n in range(200)]
    assert max(Counter(payloads(storm(1, Faults(drop=0.5))[1])).values()) == 2
    doubled = [e for e in storm(1, Faults(duplicate=0.5))[1] if isinstance(e, Delivery) and e.duplicate]
    assert 60 < len(doubled) < 140
    numbers = [int(p) for p in payloads(storm(1, Faults(reorder=0.5))[1])]
    assert numbers != sorted(numbers)
    assert sorted(numbers) == list(range(200))
    assert any(isinstance(e, Disconnected) for e in storm(1, Faults(disconnect=0.1))[1])


def test_dropped_qos_0_is_gone() -> None:
    # given
    broker = MemoryBroker(1, faults=Faults(drop=1.0))
    heard: list[Event] = []
    link = broker.connect("bob", heard.append)
    link.subscribe("t")
    link.publish("t", b"x", qos=0)
    # when
    broker.pump()
    # then its ticket comes all the same
    assert heard == [Connected(session_present=False), Published(1)]


def test_chance_outside_0_to_1_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"fault drop = 1.5: expected a chance from 0 to 1"):
        Faults(drop=1.5)


def test_cut_publishes_the_will_and_the_link_returns_with_its_session() -> None:
    # given
    broker = MemoryBroker()
    heard: list[Event] = []
    bob = broker.connect("bob", heard.append, will=Will("t/bob", b"gone", retain=True))
    bob.subscribe("t/#")
    broker.pump()
    # when
    broker.cut("bob")
    # then
    assert broker.retained == {"t/bob": b"gone"}
    broker.pump()
    assert heard[1:3] == [
        Disconnected("broker memory:0 connection lost"),
        Connected(session_present=True),
    ]
    assert payloads(heard) == [b"gone"]


def test_second_connection_with_a_client_id_takes_the_first_over() -> None:
    # given
    broker = MemoryBroker()
    first: list[Event] = []
    old = broker.connect("bob", first.append)
    broker.pump()
    # when
    broker.connect("bob", list[Event]().append)
    # then
    assert isinstance(first[-1], Disconnected)
    assert "taken over" in first[-1].reason
    with pytest.raises(UsageError, match="link bob is closed"):
        old.publish("t", b"")


def test_clean_session_ends_with_its_connection() -> None:
    # given
    broker = MemoryBroker()
    bob = broker.connect("bob", list[Event]().append, clean=True)
    bob.subscribe("t")
    broker.pump()
    # when
    broker.kill("bob")
    broker.connect("alice", list[Event]().append).publish("t", b"missed")
    broker.pump()
    heard: list[Event] = []
    broker.connect("bob", heard.append, clean=True)
    broker.pump()
    # then
    assert heard == [Connected(session_present=False)]


def test_message_never_acknowledged_holds_the_window() -> None:
    # given
    broker = MemoryBroker(window=2)
    heard: list[Event] = []
    bob = broker.connect("bob", heard.append)
    bob.subscribe("t")
    for n in range(4):
        bob.publish("t", b"%d" % n)
    # when
    broker.pump()
    # then
    assert payloads(heard) == [b"0", b"1"]
    bob.ack(next(e for e in heard if isinstance(e, Delivery)))
    broker.pump()
    assert payloads(heard) == [b"0", b"1", b"2"]


def test_refused_events_are_offered_again() -> None:
    # given an inbox with room for one
    broker = MemoryBroker()
    inbox: Inbox[Event] = Inbox(1)
    bob: MemoryLink = broker.connect("bob", inbox.put)
    bob.subscribe("t")
    for n in range(5):
        bob.publish("t", b"%d" % n)
    # when
    heard: list[Event] = []
    for _ in range(100):
        broker.pump()
        heard += inbox.drain(10, 0.0)
        if heard and isinstance(heard[-1], Delivery):
            bob.ack(heard[-1])
    # then
    assert {int(p) for p in payloads(heard)} == set(range(5))
    assert [e.ticket for e in heard if isinstance(e, Published)] == [1, 2, 3, 4, 5]
    assert bob.counts["sink_errors"] == inbox.overflows > 0


@pytest.mark.parametrize(
    ("topic_filter", "topic", "expected"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/b", "a/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "b/c", False),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("a/+/c", "a//c", True),
    ],
)
def test_filters_match_as_mqtt_says(topic_filter: str, topic: str, expected: bool) -> None:
    assert matches(topic_filter, topic) == expected
