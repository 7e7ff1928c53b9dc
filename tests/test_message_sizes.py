"""Brokers that take only small messages: the link learns it, server and vehicles cut smaller, and a person is told."""

import os
import random
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import agent_world as aw
import pytest
import wide_task
from child_processes import Processes
from link_bench import PATIENCE_S, Party
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from scripted_broker import ScriptedBroker
from test_agent import fresh

from fedfleet.fleet_server import announcements, store_blobs
from fedfleet.fleet_server.publisher import Publisher
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.link.config import BrokerConfig
from fedfleet.link.inbox import Inbox
from fedfleet.link.limits import SizeLimit
from fedfleet.link.live import LiveLink
from fedfleet.link.memory import MemoryBroker
from fedfleet.link.options import Backoff, Options
from fedfleet.link.paho import Loop
from fedfleet.link.port import MAX_PAYLOAD_BYTES, Disconnected, Event, Notice, Published, TooLarge
from fedfleet.link.probe import check
from fedfleet.protocol import chunks, topics
from fedfleet.protocol.errors import PeerError, UsageError
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent import versions

QUICK = Backoff(base_s=0.01, cap_s=0.05, rival_base_s=0.01, rival_cap_s=0.05)
T = "fl/v1/f/blob/x/0"


# --- sizes of pieces ---


@pytest.mark.parametrize(
    ("limit", "piece"),
    [
        (MAX_PAYLOAD_BYTES, 256_000),
        (131_072, 128_000),
        (130_772, 128_000),
        (128_045, 64_000),
        (8_192, 8_000),
        (1, 8_000),
    ],
)
def test_the_largest_piece_that_fits_is_taken(limit: int, piece: int) -> None:
    assert chunks.piece_for(limit) == piece
    assert max(map(len, chunks.split(bytes(600_000), chunk_bytes=piece))) <= max(limit, 8_192)


@pytest.mark.parametrize("total", [0, 1, 7_999, 8_001, 255_999, 256_000, 256_001, 404_012, 10_000_000])
def test_the_length_of_a_blobs_pieces_follows_from_their_number(total: int) -> None:
    for piece in chunks.PIECES:
        count = max(1, -(-total // piece))
        found = chunks.blob_piece(total, count)
        assert found == piece or count == 1


def test_blobs_of_another_number_of_pieces_are_refused() -> None:
    with pytest.raises(
        PeerError, match="malformed-blob: 300000 bytes in 4 chunks: of no length that is in use"
    ):
        chunks.blob_piece(300_000, 4)


def test_a_size_is_found_guilty_the_third_time_in_a_row_and_never_when_it_was_taken() -> None:
    # given
    size = SizeLimit(MAX_PAYLOAD_BYTES)
    # when connections end after 256 kB, with something small between that is taken
    assert size.lost([256_000, 300]) == 0
    assert size.lost([256_000]) == 0
    assert size.lost([200]) == 0  # nothing large was on its way
    assert size.lost([256_000]) == 256_000
    assert size.refused(256_000)
    # then half is tried
    assert chunks.piece_for(size.limit) == 128_000
    # and what was taken once is not to blame
    size.took(128_000)
    assert [size.lost([128_000]) for _ in range(5)] == [0] * 5


@pytest.mark.parametrize("size", [8_000, 100])
def test_what_cannot_be_cut_smaller_stays(size: int) -> None:
    limit = SizeLimit(MAX_PAYLOAD_BYTES)
    assert not limit.refused(size)
    assert limit.limit == MAX_PAYLOAD_BYTES


@pytest.mark.parametrize("told", [{"max_message_bytes": 8_191}, {"max_message_bytes": 0}, {"mqtt": "4"}])
def test_settings_that_cannot_work_are_refused(told: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(told))):
        BrokerConfig.model_validate(told)


# --- the link at real and at scripted brokers ---


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(rng=random.Random(1)).start()
    yield made
    made.stop()


@pytest.fixture
def mosquitto(
    mosquitto_binary: Path, processes: Processes, tmp_path: Path, free_port: int
) -> Callable[[str], int]:
    """`mosquitto("message_size_limit 9000")`: a Mosquitto with this line; returns its port."""

    def start(line: str) -> int:
        config = tmp_path / "mosquitto.conf"
        config.write_text(f"listener {free_port} 127.0.0.1\nallow_anonymous true\n{line}\n")
        process = processes.start([mosquitto_binary, "-c", config])
        for _ in range(400):
            try:
                check("127.0.0.1", free_port, timeout_s=5.0)
            except UsageError:
                assert process.poll() is None, processes.log(process)
            else:
                break
        return free_port

    return start


def join(loop: Loop, port: int, client_id: str = "bob", **options: object) -> Party:
    inbox: Inbox[Event] = Inbox(10_000)
    made = Options(backoff=QUICK, **options)  # type: ignore[arg-type]
    link = loop.connect("127.0.0.1", port, client_id=client_id, sink=inbox.put, options=made)
    return Party(link, inbox, pump=lambda: None, patience_s=PATIENCE_S)


def test_the_brokers_word_is_taken_before_anything_is_sent(
    loop: Loop, mosquitto: Callable[[str], int]
) -> None:
    # given a broker that says in MQTT 5 what it takes
    bob = join(loop, mosquitto("max_packet_size 131072"))
    # when
    bob.connected()
    # then
    assert chunks.piece_for(bob.link.max_payload_bytes) == 128_000
    bob.send(T, bytes(128_000), retain=True)
    with pytest.raises(TooLarge, match=rf"^140000 bytes for {T}, broker .* takes \d+$"):
        bob.link.publish(T, bytes(140_000))
    assert isinstance(bob.link, LiveLink)
    assert bob.link.counts["connects"] == 1


def test_a_message_that_the_broker_refuses_by_its_size_is_dropped_and_the_next_are_smaller(
    loop: Loop, mosquitto: Callable[[str], int]
) -> None:
    # given a broker that does not say what it takes, and keeps the connection
    bob = join(loop, mosquitto("message_size_limit 131072"))
    bob.connected()
    assert bob.link.max_payload_bytes == MAX_PAYLOAD_BYTES
    # when
    ticket = bob.link.publish(T, bytes(256_000), retain=True)
    # then
    told = bob.next(Notice).text
    assert re.fullmatch(
        r"broker 127\.0\.0\.1:\d+ does not take messages of 256000 bytes: "
        r"sending at most 128300 bytes at once from now on",
        told,
    )
    bob.send(T, bytes(128_000), retain=True)
    assert isinstance(bob.link, LiveLink)
    assert bob.link.counts["connects"] == 1
    assert ticket not in [event.ticket for event in bob.kept if isinstance(event, Published)]


def test_a_broker_that_hangs_up_on_large_messages_gets_smaller_ones(
    loop: Loop, mosquitto: Callable[[str], int]
) -> None:
    # given a broker that speaks MQTT 3.1.1 and takes 128 kB
    bob = join(loop, mosquitto("max_packet_size 131072"), mqtt="3.1.1")
    bob.connected()
    bob.send(T, bytes(50_000))
    # when
    bob.link.publish(T, bytes(256_000), retain=True)
    bob.link.publish(T, b"small")
    # then the size is named as soon as it is suspected
    assert re.search(
        r"ended the connection.*, after a message of 256000 bytes$", bob.next(Disconnected).reason
    )
    assert "does not take messages of 256000 bytes" in bob.next(Notice).text
    # and what fits goes on
    bob.send(T, bytes(128_000), retain=True)
    assert isinstance(bob.link, LiveLink)
    assert bob.link.counts["too_large"] == 1
    assert bob.link.counts["takeovers"] == 0


def test_a_broker_that_takes_too_little_is_named(loop: Loop, mosquitto: Callable[[str], int]) -> None:
    bob = join(loop, mosquitto("max_packet_size 4000"))
    told = bob.next(Disconnected).reason
    assert re.fullmatch(r"broker .* takes packets of at most 4000 bytes: fedfleet needs 8492", told)


def test_the_brokers_window_is_kept(loop: Loop, mosquitto: Callable[[str], int]) -> None:
    # given a broker that ends a connection with more than three messages on their way
    bob = join(loop, mosquitto("max_inflight_messages 3"))
    bob.connected()
    # when
    tickets = [bob.link.publish(T, b"%d" % n) for n in range(200)]
    # then
    assert [bob.next(Published).ticket for _ in tickets] == tickets
    assert isinstance(bob.link, LiveLink)
    assert bob.link.counts["connects"] == 1


def test_a_broker_that_answers_a_new_version_by_hanging_up_is_asked_in_the_old_one(loop: Loop) -> None:
    # given a broker of before MQTT 5 that says nothing
    with ScriptedBroker() as scripted:
        bob = join(loop, scripted.port)
        refused = scripted.accept(code=None)
        assert refused.connect.body[6] == 5
        refused.cut()
        # when it is asked again
        accepted = scripted.accept()
        # then it is in MQTT 3.1.1, and stays so
        assert accepted.connect.body[6] == 4
        bob.connected()
        accepted.cut()
        assert scripted.accept(session_present=True).connect.body[6] == 4


@pytest.mark.parametrize("note", ["", "x", "y" * 200, "z" * 20_000])
def test_what_a_sender_puts_into_properties_is_skipped(
    loop: Loop, mosquitto: Callable[[str], int], note: str
) -> None:
    # given a link that speaks MQTT 5, and a client that adds to its messages
    port = mosquitto("")
    bob = join(loop, port)
    bob.connected()
    bob.link.subscribe(T)
    bob.send("fl/v1/f/fence")
    alice = Client(CallbackAPIVersion.VERSION2, client_id="alice", protocol=MQTTProtocolVersion.MQTTv5)
    alice.connect("127.0.0.1", port)
    alice.loop_start()
    # when
    extra = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    extra.UserProperty = [("note", note)]
    extra.MessageExpiryInterval = 100
    for number, properties in enumerate((None, extra, extra)):
        alice.publish(T, b"payload %d" % number, 1, properties=properties).wait_for_publish(PATIENCE_S)
    # then
    assert [one.payload for one in bob.receive(3)] == [b"payload 0", b"payload 1", b"payload 2"]
    alice.disconnect()
    alice.loop_stop()


def test_a_configured_limit_holds_whatever_the_broker_says(
    loop: Loop, mosquitto: Callable[[str], int]
) -> None:
    bob = join(loop, mosquitto("max_packet_size 131072"), max_message_bytes=20_000)
    bob.connected()
    assert bob.link.max_payload_bytes == 20_000
    with pytest.raises(TooLarge):
        bob.link.publish(T, bytes(20_001))


# --- the server's side ---


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = open_store(tmp_path / "store", fleet="f", task="t")
    yield opened
    opened.close()


def test_what_is_announced_is_cut_anew_and_what_is_left_over_is_cleared(store: Store) -> None:
    # given a blob of 300 kB, in two pieces
    blob = bytes(range(250)) * 1200
    broker = MemoryBroker(1)
    inbox: Inbox[Event] = Inbox(1000)
    with store.write() as connection:
        digest = store_blobs.put(connection, "full", blob)
    publisher = Publisher(broker.connect("fleet-server", inbox.put), "f", lambda _: blob)

    def retained() -> list[int]:
        with store.read() as connection:
            blobs = {each.sha256: each for each in store_blobs.kept(connection)}
            clear = tuple(store_blobs.to_clear(connection))
        publisher.want(announcements.Announcement(blobs, {}, clear))
        publisher.reset()
        for _ in range(4):
            publisher.pump()
            broker.pump()
            for event in inbox.drain(1000, 0.0):
                if isinstance(event, Published):
                    publisher.published(event.ticket)
        found = [broker.retained.get(topics.blob("f", digest, n), b"") for n in range(40)]
        assert b"".join(found) == blob
        return [len(piece) for piece in found if piece]

    assert retained() == [256_000, 44_000]
    for piece, expected in ((128_000, [128_000, 128_000, 44_000]), (8_000, [8_000] * 37 + [4_000])):
        # when the broker takes less
        with store.write() as connection:
            announcements.resize(connection, "f", piece)
        # then it is in smaller pieces
        assert retained() == expected
    # when a broker comes that takes more
    with store.write() as connection:
        announcements.resize(connection, "f", 256_000)
    # then nothing is left of the small ones
    assert retained() == [256_000, 44_000]


def test_a_message_that_cannot_be_cut_is_told_once_and_the_others_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # given a broker that takes 9 kB, and a plan of 10 kB
    broker, inbox = MemoryBroker(1), Inbox[Event](100)
    broker.max_payload_bytes = 9_000
    publisher = Publisher(broker.connect("fleet-server", inbox.put), "f", lambda _: b"")
    publisher.want(
        announcements.Announcement({}, {"t/large": bytes(10_000), "t/small": b"small"}, ("t/old",))
    )
    # when
    for _ in range(5):
        publisher.pump()
        broker.pump()
        for event in inbox.drain(100, 0.0):
            if isinstance(event, Published):
                publisher.published(event.ticket)
    # then
    assert broker.retained == {"t/small": b"small"}
    assert publisher.cleared == ["t/old"]
    told = capsys.readouterr().out
    assert told.count("message too large for the broker") == 1
    assert "10000 bytes for t/large, the broker takes 9000" in told


def test_a_vehicle_that_fetches_hurries_when_the_model_was_cut_anew() -> None:
    # given a vehicle that fetches a model
    state = replace(fresh(), region="north", pointer=aw.pointer(3), fetching=True)
    old = aw.pointer(3)
    # when the same comes, and when it comes in other pieces
    same, actions = versions.pointer(state, ev.PointerCame(old), 0.0)
    anew = old.model_copy(update={"full": old.full.model_copy(update={"chunks": 2})})
    state, more = versions.pointer(same, ev.PointerCame(anew), 0.0)
    # then it does not wait long for pieces that are no more
    assert not actions
    assert more == [act.HurryFetch()]
    assert state.pointer == anew


# --- a whole round ---

CONFIG = """
fleet = "wide"
task = "wide_task:TASK"
work_dir = "work"

[data]
scenarios = "recordings"
vehicles_per_region = 1

[broker]
port = {port}
embedded = "none"
mqtt = "{mqtt}"

[server.rounds]
total = 1
quorum = 1
deadline_s = 120
lease_s = 60

[server.codec]
index = "dense"
value = "float32"

[server.training]
epochs = 1
batch_size = 16
learning_rate = 0.0001

[server.gate]
tolerance = 1.0

[agent]
nice = 0  # other tests share the machine
trainer_policy = "other"

[agent.guard]
late_ms = 5000

[[server.enrolment]]
vehicle = "v01"
region = "east"
code = "8f3b5d8e2c7a4b19aa60"
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("line", "mqtt"),
    [
        ("max_packet_size 131072", "auto"),
        ("message_size_limit 131072", "auto"),
        ("max_packet_size 131072", "3.1.1"),
    ],
)
def test_a_model_is_published_trained_and_folded_over_a_broker_of_128_kb(
    line: str,
    mqtt: str,
    mosquitto: Callable[[str], int],
    processes: Processes,
    tmp_path: Path,
    wait_until: Callable[..., None],
) -> None:
    # given a model and updates of 288 kB, and a broker that takes 128 kB
    wide_task.generate(tmp_path / "recordings", regions=("east",))
    (tmp_path / "fedfleet.toml").write_text(CONFIG.format(port=mosquitto(line), mqtt=mqtt))
    command = [sys.executable, "-P", "-m", "fedfleet.cli.main"]
    env = {**os.environ, "PYTHONPATH": str(Path(wide_task.__file__).parent)}
    # when
    server = processes.start([*command, "server"], cwd=tmp_path, env=env)
    key = tmp_path / "work" / "server" / "server.pub"
    wait_until(key.exists, "the server's key", timeout_s=90)
    agent = processes.start([*command, "agent", "v01"], cwd=tmp_path, env=env)

    def published() -> bool:
        assert server.poll() is None, processes.log(server)
        assert agent.poll() is None, processes.log(agent)
        return '"version": 1' in processes.log(server)

    # then the update is folded
    wait_until(
        published, f"version 1: {processes.log(server)[-2000:]} {processes.log(agent)[-2000:]}", timeout_s=200
    )
    # and who had to find it out names the size
    told = processes.log(server) + processes.log(agent)
    assert ("does not take messages of 256" in told) == (line != "max_packet_size 131072" or mqtt == "3.1.1")
    assert '"piece_bytes": 128000' in told
