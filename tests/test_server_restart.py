"""The server's process at a real broker: how it ends, whom it turns away, and what it publishes again."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_site import ALL, TASK_ID, TESTS, Site
from server_world import FLEET, Vehicle, configuration, dump, key_of, pace, sealed_update

from fedfleet.link.options import Options
from fedfleet.link.port import Connected, Delivery, Event
from fedfleet.protocol import topics


@pytest.fixture
def site(tmp_path: Path, processes: Any, mosquitto_binary: Path) -> Iterator[Site]:
    assert mosquitto_binary.exists()
    made = Site(tmp_path, processes, rounds=2)
    yield made
    made.close()


def retained(site: Site) -> dict[str, bytes]:
    """What the broker retains of the server's topics."""
    found: dict[str, bytes] = {}
    seen: list[Event] = []
    link = site.loop.connect(
        site.broker.host,
        site.broker.port,
        client_id="looker",
        sink=seen.append,
        options=Options(clean=True, username="fleet-server"),
    )
    link.subscribe(f"fl/v1/{FLEET}/r/#")
    link.subscribe(f"fl/v1/{FLEET}/blob/#")
    link.subscribe(f"fl/v1/{FLEET}/v/+/+/status")
    settled = time.monotonic() + 0.5
    pace(lambda: time.monotonic() > settled, lambda: None, timeout_s=2)
    link.close()
    assert any(isinstance(event, Connected) for event in seen)
    found.update({e.topic: e.payload for e in seen if isinstance(e, Delivery)})
    return {topic: payload for topic, payload in found.items() if not topic.endswith("/status")}


def test_a_killed_broker_gets_everything_again(site: Site) -> None:
    # given a fleet whose rounds are done
    site.drive()
    site.run_until(lambda: bool(site.shown()["is_done"]), "all rounds are done")
    site.run_for(0.3)
    before = retained(site)
    assert sum("/model/" in topic for topic in before) == 2
    # when the broker is killed, loses its files, and comes back
    site.broker.kill()
    for path in list(site.broker.data_dir.rglob("*.db")):
        path.unlink()
    site.broker.restart()
    # then it retains the same again
    site.run_until(lambda: retained(site) == before, "everything is retained again")


def test_sigterm_ends_it_with_code_0_and_it_goes_on_where_it_was(site: Site) -> None:
    # given a round that waits for one vehicle
    site.drive()
    site.vehicles[-1].link.close()
    waiting = site.vehicles.pop()
    site.run_until(lambda: site.shown()["updates"] == len(ALL) - 1, "all but one are stored")
    # when the server is asked to end, and started again
    site.server.send_signal(signal.SIGTERM)
    assert site.server.wait(10) == 0
    begun = time.time()
    site.start_server()
    site.run_until(lambda: site.shown()["server_started_at_s"] > begun, "server is up again")
    # then it resumes the round, and finishes it when the last vehicle comes
    assert site.shown()["resumed_round"] == 1
    again = Vehicle(waiting.name, waiting.region, TASK_ID, waiting.server_key, is_mute=True)
    again.link = site.loop.connect(
        site.broker.host, site.broker.port, client_id=again.name, sink=again.events.append
    )
    site.vehicles.append(again)
    site.run_until(lambda: bool(site.shown()["is_done"]), "all rounds are done")
    assert "round resumed" in site.processes.log(site.server)


def test_a_second_server_on_the_same_store_gives_way(site: Site) -> None:
    site.drive()
    first = site.server
    site.run_until(lambda: site.shown()["round"] == 1, "the first server runs")
    second = site.start_server()
    assert second.wait(30) == 2
    lines = site.processes.log(second).strip().splitlines()
    assert lines == [f"fedfleet server: store {site.config.data_dir} is in use by process {first.pid}"]
    # and the first one goes on
    site.server = first
    site.run_until(lambda: bool(site.shown()["is_done"]), "all rounds are done")


def test_bad_updates_are_refused_over_the_real_broker(site: Site) -> None:
    # given an open round in which one vehicle says nothing
    site.drive()
    quiet = site.vehicles.pop()
    site.run_until(lambda: site.shown()["updates"] == len(ALL) - 1, "all but one are stored")
    honest = site.vehicles[0]
    plan = honest.plans[1]
    good = sealed_update(honest.name, plan)
    # when a stranger, who has a client but no enrolment, and vehicles send what they must not
    stranger = Vehicle("stranger", honest.region, TASK_ID, honest.server_key, is_mute=True)
    stranger.link = site.loop.connect(
        site.broker.host, site.broker.port, client_id="stranger", sink=stranger.events.append
    )
    site.vehicles.append(stranger)
    bad = {
        "unknown-sender": (stranger, sealed_update("stranger", plan)),
        "bad-signature": (honest, sealed_update(honest.name, plan, key=key_of("thief"))),
        "truncated": (honest, good[:-1]),
        "wrong-base": (honest, sealed_update(honest.name, plan, base_version=7)),
    }
    for vehicle, sealed in bad.values():
        vehicle.link.publish(topics.update(FLEET, vehicle.name, TASK_ID, round_=1, number=0), sealed)
    replay = topics.update(FLEET, honest.name, TASK_ID, round_=1, number=0)
    honest.link.publish(replay, good)
    # then each is refused by its reason, the replay is absorbed, and nothing more is stored
    reasons = {"replayed-id" if reason == "wrong-base" else reason for reason in bad}
    site.run_until(
        lambda: {row["reason"] for row in site.shown()["quarantine"]} == reasons, "all are in the quarantine"
    )
    site.run_until(lambda: site.shown()["counters"].get("duplicates", 0) >= 1, "the replay is absorbed")
    assert site.shown()["updates"] == len(ALL) - 1
    assert {r.reason for r in stranger.receipts if r.outcome == "refused"} <= {"unknown-sender"}
    # and the round goes on
    site.vehicles.append(quiet)
    site.run_until(lambda: bool(site.shown()["is_done"]), "all rounds are done")
    assert site.server.poll() is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c | {"surprise": 1}, "surprise: Extra inputs are not permitted"),
        (lambda c: c | {"task": "nothing"}, "unknown task 'nothing'"),
        (lambda c: c | {"validation_dir": "/nowhere"}, "not a folder of prepared data"),
        (lambda c: c | {"fleet": "Bad Fleet"}, "fleet: String should match pattern"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    change: Callable[[dict[str, Any]], dict[str, Any]], words: str, tmp_path: Path, processes: Any
) -> None:
    content = change(json.loads(dump(configuration(tmp_path))))
    file = tmp_path / "server.json"
    file.write_text(json.dumps(content))
    command = [sys.executable, "-m", "fedfleet.fleet_server", "--config-json", file]
    process = processes.start(command, env={"PYTHONPATH": str(TESTS)})
    assert process.wait(60) == 2
    (line,) = processes.log(process).strip().splitlines()
    assert line.startswith("fedfleet server: ")
    assert words in line


def test_the_process_holds_no_torch(site: Site) -> None:
    site.drive()
    site.run_until(lambda: site.shown()["round"] >= 1, "the server runs")
    maps = Path(f"/proc/{site.server.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
