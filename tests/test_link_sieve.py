"""Messages turned away in the bytes that were read: the same packets pass however the bytes are cut."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfleet.link.sieve import Sieve


def length(size: int) -> bytes:
    out = bytearray()
    while True:
        size, low = divmod(size, 128)
        out.append(low | (128 if size else 0))
        if not size:
            return bytes(out)


def publish(topic: str, payload: bytes, *, qos: int, mid: int = 0) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic.encode() + (mid.to_bytes(2, "big") if qos else b"") + payload
    return bytes((0x30 | qos << 1,)) + length(len(body)) + body


def ack(mid: int) -> bytes:
    return b"\x40\x02" + mid.to_bytes(2, "big")


def is_good(topic: bytes, qos: int, size: int) -> bool:
    assert size >= 0
    return topic.startswith(b"good") and qos == 1


CONNACK, PINGRESP = b"\x20\x02\x00\x00", b"\xd0\x00"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300))
def test_what_passes_does_not_depend_on_how_the_bytes_are_cut(seed: int, most: int) -> None:
    # given a stream of packets, good and bad, small and large
    rng = random.Random(seed)
    packets: list[tuple[bytes, bool]] = [(CONNACK, True)]
    for mid in range(1, rng.randrange(2, 40)):
        qos, topic = rng.choice((0, 1, 1)), rng.choice(("good/a", "bad/b", "bad"))
        payload = rng.randbytes(rng.choice((0, 1, 20, 130, 500, 17_000)))
        packets.append((publish(topic, payload, qos=qos, mid=mid), topic == "good/a" and qos == 1))
        if rng.random() < 0.2:
            packets.append((rng.choice((PINGRESP, ack(7))), True))
    stream = b"".join(packet for packet, _ in packets)
    # when they come in pieces of any size
    sieve, found, at = Sieve(is_good), b"", 0
    while at < len(stream):
        size = rng.randrange(1, most + 1)
        kept = sieve.feed(stream[at : at + size])
        found, at = found + kept, at + size
    # then exactly the good ones are there, whole and in order
    assert found == b"".join(packet for packet, passes in packets if passes)


def test_what_is_turned_away_is_acknowledged_at_once() -> None:
    # given bad, good, bad, good, bad
    sieve = Sieve(is_good)
    words = ["bad", "good", "bad", "good", "bad"]
    sieve.feed(b"".join(publish(word, b"x", qos=1, mid=10 + n) for n, word in enumerate(words)))
    # then no bad one waits for a good one, and each is acknowledged once
    assert sieve.acknowledgements() == ack(10) + ack(12) + ack(14)
    assert sieve.acknowledgements() == b""


def test_a_message_is_judged_once() -> None:
    judged: list[bytes] = []

    def note(topic: bytes, _qos: int, _size: int) -> bool:
        judged.append(topic)
        return True

    sieve, packet = Sieve(note), publish("a", bytes(1000), qos=1, mid=5)
    for start in range(0, len(packet), 100):
        sieve.feed(packet[start : start + 100])
    assert judged == [b"a"]
    assert sieve.acknowledgements() == b""


def test_a_message_that_comes_again_before_it_is_acknowledged_is_not_turned_away() -> None:
    # given a message that passed, of a sender who is over its rate by now
    left = [1]

    def first(_topic: bytes, _qos: int, _size: int) -> bool:
        left[0] -= 1
        return left[0] >= 0

    sieve, packet = Sieve(first), publish("a", b"x", qos=1, mid=5)
    sieve.feed(packet)
    # when the broker repeats it, it passes: acknowledged here, its packet id could be another message's later
    assert sieve.feed(packet) == packet
    assert sieve.acknowledgements() == b""
    # once it is acknowledged, the packet id is of a new message
    sieve.released(5)
    assert sieve.feed(packet) == b""
    assert sieve.acknowledgements() == ack(5)


def test_another_connection_begins_anew() -> None:
    sieve = Sieve(is_good)
    sieve.feed(publish("good", b"x", qos=1, mid=1) + publish("bad", b"x", qos=1, mid=2) + b"\x32\xff")
    sieve.reset()
    assert sieve.acknowledgements() == b""
    assert sieve.feed(CONNACK) == CONNACK
    sieve.released(1)  # of the connection before
    assert sieve.acknowledgements() == b""


@pytest.mark.parametrize(
    "odd",
    [
        b"\x32\x02\x00\x09",
        b"\x32\x01\x00",
        b"\x30\x00",
        b"\x32\x04\x00\x01a\x00",
        b"\xff\xff\xff\xff\xff\xff",
    ],
)
def test_what_is_malformed_is_left_to_the_client_library(odd: bytes) -> None:
    sieve = Sieve(is_good)
    kept = sieve.feed(odd + CONNACK)
    assert kept in {odd + CONNACK, odd, b""}  # nothing raised, nothing invented


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_junk_never_raises(junk: list[bytes]) -> None:
    sieve = Sieve(is_good)
    for data in junk:
        sieve.feed(data)
        sieve.acknowledgements()
