"""Rows of attacks on the running server: pieces, poison and floods. The server lives, honest vehicles are served."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attacked_server import ATTACKER, DENIED, HONEST, AttackedServer, Courier, sealed
from crash_site import TASK_ID
from server_world import FLEET, pace

from fedfleet.fleet_server import registry
from fedfleet.fleet_server.registry import Place
from fedfleet.protocol import chunks, topics
from fedfleet.protocol.envelope import Kind

LIMIT_BYTES = 4_000_000


@pytest.fixture
def site(tmp_path: Path, processes: Any, mosquitto_binary: Path) -> Iterator[AttackedServer]:
    assert mosquitto_binary.exists()
    made = AttackedServer(tmp_path, processes, rounds=1, update_limit_bytes=LIMIT_BYTES)
    made.begin()
    yield made
    made.close()


def frames(size: int, name: str, *, seed: int = 0, key: str = "") -> list[bytes]:
    """Pieces of a message of this vehicle that only claims to be an update."""
    body = seed.to_bytes(8, "big") + bytes(size)
    return list(chunks.split(sealed(body, Kind.UPDATE, name, key=key)))


def topic(name: str, *, number: int, round_: int = 1) -> str:
    return topics.update(FLEET, name, TASK_ID, round_=round_, number=number)


def test_pieces_of_whoever_may_not_send_them_take_no_room(site: AttackedServer) -> None:
    # given a denied vehicle, and one that is enrolled but signs with a key of its own making
    place = Place(site.config.data_dir, FLEET, site.config.task)
    registry.deny(place, DENIED, denied=True)
    before = site.kept_bytes()
    denied, thief = site.attacker(DENIED), site.attacker(ATTACKER)
    # when both send pieces: of an open round, of one that nobody opened, of one that no manifest can name
    for seed in range(4):
        for number, frame in enumerate(frames(1_500_000, DENIED, seed=seed)):
            site.publish(denied, topic(DENIED, number=number), frame)
        for number, frame in enumerate(frames(1_500_000, ATTACKER, seed=seed, key="thief")):
            site.publish(thief, topic(ATTACKER, number=number), frame)
        for number, frame in enumerate(frames(1_500_000, ATTACKER, seed=seed)):
            site.publish(thief, topic(ATTACKER, number=number, round_=4_000_000_000), frame)
            site.publish(thief, topic(ATTACKER, number=number).replace("/1/", "/9999999999/"), frame)
    # then all are refused or ignored, and the disk has nothing of 24 MB but the quarantine's bounded heads
    wanted = {
        "refused:denied-sender",
        "refused:bad-signature",
        "refused:from-the-future",
        "refused:malformed-topic",
    }
    site.wait_for(lambda: wanted <= set(site.reasons()), "all are refused")
    site.wait_for(lambda: site.reasons()["refused:denied-sender"] == 4 * 6, "every piece of the denied one")
    incomplete = site.config.data_dir / "incomplete"
    assert [path for path in incomplete.rglob("*") if path.is_file()] == []
    assert site.kept_bytes() - before < 10_000_000
    assert site.is_well()


def test_a_vehicle_that_begins_updates_and_finishes_none_is_bounded(site: AttackedServer) -> None:
    # when a vehicle sends all but the last piece of forty updates, 240 MB
    attacker = site.attacker()
    for seed in range(40):
        for number, frame in enumerate(frames(3_500_000, ATTACKER, seed=seed)[:4]):
            site.publish(attacker, topic(ATTACKER, number=number), frame)
    # then three updates of the largest size is all it keeps, and the server has not grown
    site.wait_for(site.is_well, "an honest update is stored behind them")
    incomplete = [p for p in (site.config.data_dir / "incomplete").rglob("*") if p.is_file()]
    size = sum(path.stat().st_size for path in incomplete)
    assert 0 < size <= 3 * LIMIT_BYTES
    assert site.peak_bytes() < 300e6
    # and it starts again with them there, and serves
    site.kill_server()
    site.wait_for(site.is_up, "the server is up again")
    site.wait_for(site.is_well, "it serves")


@pytest.mark.parametrize("text", ["\0", "a\x1b[2Jb", "\x9b31m", "\ud800"])
def test_no_text_of_a_vehicle_stops_the_server(text: str, site: AttackedServer) -> None:
    # when a vehicle signs a status with text that databases and terminals do not take, retained as statuses are
    attacker = site.attacker()
    told = {"vehicle": ATTACKER, "state": "ONLINE", "session": 99, "at_s": time.time(), "reason": text}
    bad = sealed(json.dumps(told).encode(), Kind.STATUS)
    attacker.publish(topics.status(FLEET, ATTACKER), bad, retain=True)
    site.wait_for(lambda: site.reasons().get("refused:malformed-message", 0) > 0, "it is refused")
    # then the server goes on, and starts again with that status still at the broker
    assert site.is_well()
    site.kill_server()
    site.wait_for(site.is_up, "the server is up again")
    assert site.is_well()


@pytest.mark.parametrize(("qos", "size"), [(0, 200), (0, 250_000), (1, 200), (1, 250_000)])
def test_a_flood_of_one_vehicle_harms_nobody(qos: int, size: int, site: AttackedServer) -> None:
    # given an honest vehicle that sends an update now and then
    courier = Courier(site.vehicle(HONEST[1]))
    before = site.log_bytes()
    # when another one publishes as fast as it can for three seconds
    flood = site.flood(qos=qos, size=size, seconds=3.0)
    for _ in range(6):
        courier.send()
        until = time.monotonic() + 0.5
        pace(lambda until=until: time.monotonic() > until, courier.step, timeout_s=2)
    assert site.told(flood)["sent"] > 100
    # then every honest update has its receipt, memory and log stay small, and it is counted
    assert pace(lambda: not courier.waiting_s, courier.step, timeout_s=30), courier.waiting_s
    assert site.peak_bytes() < 300e6
    assert site.log_bytes() - before < 20_000
    site.wait_for(
        lambda: site.reasons().get("dropped:qos-0" if qos == 0 else "dropped:rate", 0) > 0, "it is counted"
    )
    assert site.server.poll() is None
