import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from pydantic import ValidationError

from fedfleet.link.relay import Relay
from fedfleet.link.shape import LinkProfile, Pipe, cut_until


def test_bytes_come_out_at_the_rate_and_after_the_latency() -> None:
    # given 8 kilobits = 1000 bytes a second, and 100 ms
    pipe = Pipe(8.0, 100.0)

    # when 500 bytes and at once 250 more go in
    pipe.offer(b"a" * 500, 10.0)
    pipe.offer(b"b" * 250, 10.0)

    # then they come out one after the other
    assert pipe.next_s == pytest.approx(10.6)
    assert pipe.take(10.59) == b""
    assert pipe.take(10.61) == b"a" * 500
    assert pipe.next_s == pytest.approx(10.85)
    assert pipe.take(11.0) == b"b" * 250
    assert pipe.next_s == float("inf")


def test_a_pipe_that_was_idle_does_not_save_its_rate_up() -> None:
    pipe = Pipe(8.0, 0.0)
    pipe.offer(b"a", 0.0)
    pipe.take(1.0)

    pipe.offer(b"b" * 1000, 100.0)

    assert pipe.next_s == pytest.approx(101.0)


def test_a_full_pipe_takes_nothing_until_bytes_have_come_out() -> None:
    pipe = Pipe(80.0, 0.0)
    now_s = 0.0
    while pipe.room:
        pipe.offer(b"x" * pipe.room, now_s)

    assert pipe.next_s < 1.0
    assert not pipe.room
    assert pipe.take(10.0)
    assert pipe.room


def test_without_a_rate_only_the_latency_counts() -> None:
    pipe = Pipe(None, 250.0)
    pipe.offer(b"x" * 60_000, 1.0)

    assert pipe.next_s == pytest.approx(1.25)


def test_cuts_come_every_period_for_each_vehicle_at_its_own_time() -> None:
    profile = LinkProfile(cut_every_s=100.0, cut_s=10.0)

    def cut(name: str) -> list[int]:
        return [second for second in range(1000) if cut_until(profile, name, float(second))[0]]

    assert 95 <= len(cut("v01")) <= 105
    assert cut("v01") != cut("v02")
    for second in range(200):
        is_cut, until_s = cut_until(profile, "v01", float(second))
        assert cut_until(profile, "v01", until_s - 0.01)[0] == is_cut
        assert cut_until(profile, "v01", until_s + 0.01)[0] != is_cut
    assert cut_until(LinkProfile(), "v01", 5.0) == (False, float("inf"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"cut_every_s": 10.0}, "come together"),
        ({"cut_s": 10.0}, "come together"),
        ({"cut_every_s": 10.0, "cut_s": 10.0}, "less than cut_every_s 10"),
        ({"up_kbit_s": 0.0}, "greater than 0"),
        ({"latency_ms": -1.0}, "greater than or equal to 0"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(given: dict[str, float], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        LinkProfile.model_validate(given)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@contextmanager
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what one client after the other sends."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                one, _ = listening.accept()
            except OSError:
                return
            with one:
                try:
                    while data := one.recv(4096):
                        one.sendall(data)
                except OSError:
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


@contextmanager
def relay(clock: Clock) -> Iterator[Relay]:
    made = Relay(clock).start()
    try:
        yield made
    finally:
        made.stop()


def received(client: socket.socket, size: int) -> bytes:
    client.settimeout(20.0)
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


def test_what_a_client_sends_and_gets_is_the_same_through_a_relay() -> None:
    data = bytes(range(256)) * 1200
    with echo() as where, relay(Clock()) as made:
        # when
        client = made.dial("v01", LinkProfile(latency_ms=0.0))(where, 5.0)
        writer = threading.Thread(target=client.sendall, args=(data,))
        writer.start()
        back = received(client, len(data))
        writer.join()
        client.close()

        # then
        assert back == data
        assert made.counts["connections"] == 1
        assert made.counts["bytes_up"] == made.counts["bytes_down"] == len(data)


class Hurried(Clock):
    """A clock that every look moves on."""

    def __call__(self) -> float:
        self.now_s += 0.25
        return self.now_s


def test_what_comes_back_has_travelled_both_ways() -> None:
    clock = Hurried()
    with echo() as where, relay(clock) as made:
        client = made.dial("v01", LinkProfile(latency_ms=3000.0))(where, 5.0)
        sent_s = clock.now_s

        # when
        client.sendall(b"hello")

        # then
        assert received(client, 5) == b"hello"
        assert clock.now_s - sent_s >= 6.0
        client.close()


def test_a_cut_ends_connections_and_refuses_new_ones_until_it_is_over() -> None:
    profile, clock = LinkProfile(cut_every_s=100.0, cut_s=10.0), Clock()
    while cut_until(profile, "v01", clock.now_s)[0]:
        clock.now_s += 1.0
    _, cut_s = cut_until(profile, "v01", clock.now_s)
    with echo() as where, relay(clock) as made:
        dial = made.dial("v01", profile)
        client = dial(where, 5.0)
        client.sendall(b"x")
        assert received(client, 1) == b"x"

        # when the cut begins
        clock.now_s = cut_s + 1.0

        # then
        assert received(client, 1) == b""
        assert made.counts["cuts"] == 1
        with pytest.raises(ConnectionRefusedError, match="the link is cut"):
            dial(where, 5.0)

        # when it is over
        clock.now_s = cut_s + 11.0
        client = dial(where, 5.0)
        client.sendall(b"y")
        assert received(client, 1) == b"y"
        client.close()


def test_a_server_that_ends_the_connection_ends_it_for_the_client() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with relay(Clock()) as made:
        client = made.dial("v01", LinkProfile())(listening.getsockname(), 5.0)
        server, _ = listening.accept()
        server.sendall(b"bye")
        server.close()

        assert received(client, 10) == b"bye"
    listening.close()


def test_a_server_that_is_not_there_is_an_error_at_once() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    where = listening.getsockname()
    listening.close()
    with relay(Clock()) as made, pytest.raises(ConnectionRefusedError):
        made.dial("v01", LinkProfile())(where, 5.0)
