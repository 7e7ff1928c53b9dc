"""The queue between link and server: bounded in bytes as well as in number, and closed to QoS 0."""

import pytest

from fedfleet.fleet_server.intake import MAX_BYTES, Intake
from fedfleet.fleet_server.log_limit import LogLimit
from fedfleet.fleet_server.rate import Rate
from fedfleet.link.inbox import Inbox, InboxFull
from fedfleet.link.port import Connected, Delivery


def delivery(size: int, *, qos: int = 1, topic: str = "fl/v1/f/v/00/v-1/status") -> Delivery:
    return Delivery(topic, bytes(size), qos, retain=False, duplicate=False, token=1)


def test_an_inbox_holds_so_many_bytes_or_one_large_item() -> None:
    inbox: Inbox[bytes] = Inbox(100, max_bytes=10, size_of=len)
    inbox.put(bytes(6))
    inbox.put(bytes(4))
    with pytest.raises(InboxFull, match="inbox holds 10 bytes, its limit is 10"):
        inbox.put(bytes(1))
    inbox.put(b"")  # takes no room
    assert inbox.overflows == 1
    # what is taken makes room, and one that is too large for any inbox passes alone
    assert [len(item) for item in inbox.drain(10, 0.0)] == [6, 4, 0]
    inbox.put(bytes(99))
    with pytest.raises(InboxFull):
        inbox.put(bytes(1))


def test_a_batch_ends_with_its_bytes() -> None:
    inbox: Inbox[bytes] = Inbox(100, max_bytes=100, size_of=len)
    for _ in range(9):
        inbox.put(bytes(10))
    assert len(inbox.drain(100, 0.0, limit_bytes=25)) == 3
    assert len(inbox.drain(100, 0.0, limit_bytes=25)) == 3
    assert len(inbox.drain(100, 0.0)) == 3


def test_what_comes_at_qos_0_is_counted_by_its_vehicle_and_gone() -> None:
    intake = Intake()
    intake.put(Connected(session_present=False))
    for number in range(2000):
        intake.put(delivery(250_000, qos=0))
        intake.put(delivery(250_000, qos=0, topic=f"fl/v1/f/v/00/w-{number}/status"))
    intake.put(delivery(1, qos=0, topic="odd"))
    assert len(intake) == 1
    found = intake.turned_away()
    assert found.total() == 4001
    assert found["v-1", "qos-0"] > 0
    assert len(found) <= 1001
    assert intake.turned_away().total() == 0


def test_the_intake_is_bounded_in_bytes() -> None:
    intake = Intake()
    for _ in range(MAX_BYTES // 250_000):
        intake.put(delivery(250_000))
    with pytest.raises(InboxFull):
        intake.put(delivery(250_000))
    assert len(intake) == MAX_BYTES // 250_000
    assert sum(len(event.payload) for event in intake.drain(4096, 0.0) if isinstance(event, Delivery)) <= 17e6


def test_a_matter_has_one_line_a_minute_and_what_was_left_out_is_told() -> None:
    limit: LogLimit[str] = LogLimit(capacity=2)
    assert limit.admits("a", 0.0)
    assert not limit.admits("a", 1.0)
    assert not limit.admits("a", 2.0, times=7)
    assert limit.admits("b", 30.0)
    assert not limit.admits("c", 31.0)  # of more matters than there is room for, none is written
    assert limit.ended(59.0) == []
    assert limit.ended(60.0) == [("a", 8)]
    assert limit.admits("a", 61.0)
    # a clock that is set back ends a minute, and loses nothing
    assert not limit.admits("b", 62.0)
    assert sorted(limit.ended(1.0)) == [("b", 1)]


def test_above_a_whole_burst_within_a_second_nothing_comes_in() -> None:
    now = [0.0]
    intake = Intake(clock=lambda: now[0])
    intake.allow(Rate(1.0, 4, 100.0, 1000))
    topic = b"fl/v1/f/v/00/v-1/status"
    assert [intake.admits(topic, 1, 10) for _ in range(6)] == [True] * 4 + [False] * 2
    assert intake.admits(topic.replace(b"v-1", b"v-2"), 1, 10)
    assert not intake.admits(topic.replace(b"v-1", b"v-3"), 1, 1001)
    # in the next second, twice its rate; who was quiet then has a burst again
    now[0] = 1.0
    assert [intake.admits(topic, 1, 10) for _ in range(3)] == [True, True, False]
    now[0] = 2.0
    assert [intake.admits(topic, 1, 10) for _ in range(5)] == [True] * 4 + [False]
    assert intake.turned_away() == {("v-1", "rate"): 4, ("v-3", "rate"): 1}


def test_the_servers_own_topics_are_not_bounded() -> None:
    intake = Intake(clock=lambda: 0.0)
    intake.allow(Rate(1.0, 1, 1.0, 1))
    assert all(intake.admits(b"fl/v1/f/r/north/model/t", 1, 1000) for _ in range(10))
