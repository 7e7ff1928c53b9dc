"""Two clients with one id: each is told, each gives way more and more, and the one that stays is shown online."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_task
from child_processes import Processes
from link_bench import PATIENCE_S, Party
from scripted_broker import CONNACK, DISCONNECT, ScriptedBroker
from server_world import FLEET, key_of
from test_by_hand import CONFIG

from fedfleet.fleet_server import gauges, store_vehicles, views
from fedfleet.fleet_server.store import Store, open_store
from fedfleet.link import embedded
from fedfleet.link.inbox import Inbox
from fedfleet.link.limits import Takeovers
from fedfleet.link.options import Backoff, Options
from fedfleet.link.paho import Loop
from fedfleet.link.port import Disconnected, Event
from fedfleet.protocol.messages import Status

NOW_S = 1_000.0
OLD, NEW = 111, 222


# --- what the server makes of it ---


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(tmp_path, fleet=FLEET, task="linear_test")
    with made.write() as connection:
        store_vehicles.enrol(connection, "v01", region="north", public_key=key_of("v01").public, now_s=1.0)
    yield made
    made.close()


def said(store: Store, state: str, session: int, process: int, *, at_s: float = 0.0, epoch: int = 7) -> str:
    """Save a status, and return what became of it."""
    told = {
        "vehicle": "v01",
        "state": state,
        "session": session,
        "process": process,
        "at_s": at_s,
        "epoch": epoch,
    }
    with store.write() as connection:
        return store_vehicles.save_status(connection, Status.model_validate(told), now_s=NOW_S)


def shown(store: Store) -> tuple[str, float | None]:
    """What `server vehicles` shows: the state, and when the id was seen to be used twice."""
    with store.read() as connection:
        one = views.vehicles(connection)["v01"]
    return one["state"], one["shared_at_s"]


def test_the_one_that_stays_is_shown_online_when_the_copy_is_gone(store: Store) -> None:
    # given a vehicle, and a copy of it that was started later and took its connection
    assert said(store, "ONLINE", 1, OLD, at_s=10.0) == "saved"
    assert said(store, "CONNECTIONBROKEN", 1, OLD) == "saved"
    assert said(store, "ONLINE", 2, NEW, at_s=20.0) == "saved"
    assert shown(store) == ("ONLINE", None)
    # when the vehicle takes it back
    assert said(store, "CONNECTIONBROKEN", 2, NEW) == "saved"
    assert said(store, "ONLINE", 1, OLD, at_s=21.0) == "shared"
    # then it is online, whatever will of the copy comes later, and the server knows
    assert said(store, "CONNECTIONBROKEN", 2, NEW) == "ignored"
    assert shown(store) == ("ONLINE", NOW_S)
    with store.read() as connection:
        samples = {one.name: one.value for one in gauges.read(connection, ["north"])}
    assert samples["fedfleet_shared_id_timestamp_seconds"] == NOW_S


@pytest.mark.parametrize("at_s", [0.0, 5.0, 5e6])
def test_clocks_that_differ_do_not_hide_the_one_that_stays(store: Store, at_s: float) -> None:
    said(store, "ONLINE", 1, OLD, at_s=10.0)
    said(store, "ONLINE", 2, NEW, at_s=500.0)
    assert said(store, "ONLINE", 1, OLD, at_s=at_s) == "shared"
    assert shown(store)[0] == "ONLINE"


def test_copies_with_equal_sessions_are_told_apart(store: Store) -> None:
    # given both were started again after the copy was made
    said(store, "ONLINE", 2, OLD, at_s=10.0)
    said(store, "ONLINE", 2, NEW, at_s=20.0)
    assert said(store, "ONLINE", 2, OLD, at_s=30.0) == "shared"


def test_a_copy_with_a_journal_of_its_own_is_told_apart(store: Store) -> None:
    said(store, "ONLINE", 1, OLD, at_s=10.0)
    said(store, "ONLINE", 1, NEW, at_s=20.0, epoch=8)
    assert said(store, "ONLINE", 1, OLD, at_s=30.0) == "shared"


def test_restarts_and_wills_that_come_late_are_no_sign_of_a_copy(store: Store) -> None:
    # given a vehicle that starts again and again, whose wills come before or after its greeting
    for session in range(1, 30):
        process = 1000 + session
        assert said(store, "ONLINE", session, process, at_s=float(session)) == "saved"
        assert said(store, "ONLINE", session, process, at_s=float(session)) == "saved"
        assert said(store, "CONNECTIONBROKEN", session - 1, process - 1) == "ignored"
        assert shown(store) == ("ONLINE", None)
    # and a greeting of long ago that a broker repeats
    assert said(store, "ONLINE", 3, 1003, at_s=3.0) == "ignored"
    assert said(store, "CONNECTIONBROKEN", 29, 1029) == "saved"
    assert shown(store) == ("CONNECTIONBROKEN", None)


def test_vehicles_of_before_are_judged_by_their_sessions(store: Store) -> None:
    # given vehicles that do not name their process
    assert said(store, "ONLINE", 1, 0, at_s=10.0) == "saved"
    assert said(store, "ONLINE", 2, 0, at_s=20.0) == "saved"
    # then an older session counts only with a newer time
    assert said(store, "CONNECTIONBROKEN", 1, 0) == "ignored"
    assert said(store, "ONLINE", 1, 0, at_s=10.0) == "ignored"
    assert said(store, "ONLINE", 1, 0, at_s=21.0) == "shared"
    assert said(store, "CONNECTIONBROKEN", 2, 0) == "saved"


# --- what the link makes of it ---


def test_three_ends_within_seconds_look_like_a_rival_until_a_connection_stands() -> None:
    found = Takeovers()
    assert [found.lost(1.0, told=False, silent=True) for _ in range(4)] == [False, False, True, True]
    assert found.times == 2
    found.stands(59.0)
    assert found.times == 2
    found.stands(60.0)
    assert found.times == 0
    # a broker that was down in between was not taken over
    for _ in range(4):
        assert not found.lost(1.0, told=False, silent=True)
        assert not found.lost(1.0, told=False, silent=True)
        found.unreachable()
    # a broker that was silent for long, or ends after long, is none
    assert not any(found.lost(25.0, told=False, silent=True) for _ in range(9))
    assert not any(found.lost(1.0, told=False, silent=False) for _ in range(9))


def test_waits_grow_with_every_takeover_up_to_the_cap() -> None:
    backoff, rng = Backoff(), random.Random(1)
    means = [sum(backoff.rival_delay_s(times, rng) for _ in range(500)) / 500 for times in (1, 2, 4, 50)]
    assert means == sorted(means)
    assert means[0] == pytest.approx(1.0, rel=0.2)
    assert means[3] == pytest.approx(15.0, rel=0.2)
    assert max(backoff.rival_delay_s(50, rng) for _ in range(500)) <= 30.0


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop(rng=random.Random(1)).start()
    yield made
    made.stop()


def join(loop: Loop, port: int, *, mqtt: str, client_id: str = "v01") -> Party:
    inbox: Inbox[Event] = Inbox(10_000)
    backoff = Backoff(base_s=0.01, cap_s=0.1, rival_base_s=0.05, rival_cap_s=0.8)
    options = Options(mqtt=mqtt, backoff=backoff)  # type: ignore[arg-type]
    link = loop.connect("127.0.0.1", port, client_id=client_id, sink=inbox.put, options=options)
    return Party(link, inbox, pump=lambda: None, patience_s=PATIENCE_S)


@pytest.mark.parametrize("kind", ["mosquitto", "nats"])
@pytest.mark.parametrize("mqtt", ["auto", "3.1.1"])
@pytest.mark.parametrize("client_id", ["v01", "fleet-server"])
def test_two_links_with_one_id_say_so_and_the_one_that_stays_comes_back(
    loop: Loop, request: pytest.FixtureRequest, tmp_path: Path, kind: embedded.Kind, mqtt: str, client_id: str
) -> None:
    request.getfixturevalue(f"{kind}_binary")
    with embedded.start(tmp_path, kind=kind) as broker:
        # given a client
        one = join(loop, broker.port, mqtt=mqtt, client_id=client_id)
        one.connected()
        # when another comes with its id, and both want the connection
        other = join(loop, broker.port, mqtt=mqtt, client_id=client_id)
        told = f"taken over by another client with the id {client_id}"
        while told not in (reason := one.next(Disconnected).reason):
            assert reason.startswith(f"broker 127.0.0.1:{broker.port} ended the connection")
        while told not in other.next(Disconnected).reason:
            pass
        # then both say so; and when the other goes, the one that stays is there again
        other.link.close()
        one.settled()


def test_the_brokers_word_is_taken_at_once(loop: Loop) -> None:
    # given a broker that speaks MQTT 5
    with ScriptedBroker() as scripted:
        one = join(loop, scripted.port, mqtt="auto")
        conversation = scripted.accept(code=None)
        conversation.send(CONNACK, bytes([0, 0, 0]))
        one.connected()
        # when it says that the session was taken over
        conversation.send(DISCONNECT, bytes([142, 0]))
        # then that is the reason, the first time already
        told = "ended the connection: taken over by another client with the id v01; waiting longer each time"
        assert one.next(Disconnected).reason == f"broker 127.0.0.1:{scripted.port} {told}"


# --- a folder that was copied ---


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_copied_vehicle_is_told_by_everyone_and_the_original_is_shown_online_afterwards(
    mosquitto_binary: Path,
    processes: Processes,
    tmp_path: Path,
    free_port: int,
    wait_until: Callable[..., None],
) -> None:
    # given a vehicle of a fleet at a real broker
    del mosquitto_binary
    tiny_task.generate(tmp_path / "recordings", regions=("east",))
    text = '[[server.enrolment]]\nvehicle = "v01"\nregion = "east"\ncode = "8f3b5d8e2c7a4b19aa60"\n'
    (tmp_path / "fedfleet.toml").write_text(CONFIG.format(port=free_port, codes=text))
    env = {**os.environ, "PYTHONPATH": str(Path(tiny_task.__file__).parent)}
    command = [sys.executable, "-P", "-m", "fedfleet.cli.main"]
    processes.start([*command, "broker"], cwd=tmp_path, env=env)
    server = processes.start([*command, "server", "--wait"], cwd=tmp_path, env=env)
    wait_until((tmp_path / "work" / "server" / "server.pub").exists, "the server's key", timeout_s=90)
    agent = processes.start([*command, "agent", "v01", "--wait"], cwd=tmp_path, env=env)

    def vehicle() -> dict[str, object]:
        done = subprocess.run(
            [*command, "server", "vehicles", "--json"],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        found: dict[str, dict[str, object]] = json.loads(done.stdout) if done.returncode == 0 else {}
        return found.get("v01", {})

    wait_until(lambda: vehicle().get("state") == "ONLINE", "v01 is online", timeout_s=90)
    # when its folder is copied, and the copy runs
    (tmp_path / "copy").mkdir()
    shutil.copytree(tmp_path / "work" / "vehicles", tmp_path / "copy" / "vehicles")
    if (tmp_path / "work" / "data").is_dir():
        shutil.copytree(tmp_path / "work" / "data", tmp_path / "copy" / "data")
    copied = {**env, "FEDFLEET__WORK_DIR": str(tmp_path / "copy")}
    copy = processes.start([*command, "agent", "v01", "--wait"], cwd=tmp_path, env=copied)
    # then both say so, and the server does
    for one in (agent, copy):
        wait_until(
            lambda one=one: "uses the id v01" in processes.log(one), "the vehicle says so", timeout_s=90
        )
    wait_until(lambda: "vehicle id used twice" in processes.log(server), "the server says so", timeout_s=90)
    # when the copy is gone
    copy.kill()
    copy.wait(10)
    # then the vehicle is shown online, with what was seen
    wait_until(lambda: vehicle().get("state") == "ONLINE", "v01 is online again", timeout_s=60)
    assert vehicle()["shared_at_s"]
    table = subprocess.run(
        [*command, "server", "vehicles"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "v01: its id was used twice" in table
