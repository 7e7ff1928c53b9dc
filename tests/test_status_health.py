"""Status says who is alive, and since when; that all rounds are done; and stays readable at any width."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from child_processes import Processes
from crash_site import Site
from server_world import configuration
from test_coordinator import World
from typer.testing import CliRunner

from fedfleet.cli import live
from fedfleet.cli.health import Health
from fedfleet.cli.main import app
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server import heartbeat, store_counters, store_vehicles
from fedfleet.fleet_server.heartbeat import FILE, Heart, Life, life
from fedfleet.fleet_server.status import snapshot
from fedfleet.link.port import Connected, Disconnected
from fedfleet.protocol.messages import Metrics

RUNNING = Life("running", seen_at_s=120.0, started_at_s=1.0, pid=7, host="here", broker=True)


# --- a real server and broker, killed ---


@pytest.fixture
def site(tmp_path: Path, processes: Processes, mosquitto_binary: Path) -> Iterator[Site]:
    del mosquitto_binary
    made = Site(tmp_path, processes, rounds=500)
    yield made
    made.close()


def asked(site: Site, *words: str) -> Any:
    """What `fedfleet status` says with this site's configuration."""
    folder = site.config.data_dir.parent
    told = f'work_dir = "{folder}"\n[broker]\nhost = "{site.broker.host}"\nport = {site.broker.port}\n'
    (folder / "fedfleet.toml").write_text(told, encoding="utf-8")
    return CliRunner().invoke(app, ["status", "-c", str(folder / "fedfleet.toml"), *words])


def test_a_server_killed_without_a_goodbye_is_said_to_be_dead_at_once(
    site: Site, wait_until: Callable[..., None]
) -> None:
    # given a fleet at work
    site.drive()
    site.run_until(lambda: site.shown().get("version", 0) >= 1, "a version")
    site.run_until(lambda: json.loads(asked(site, "--json").stdout)["health"]["well"], "all is well")
    assert asked(site, "--check").exit_code == 0
    line = asked(site).stdout
    assert line.startswith("server up for ")
    assert " · broker answers · 5 of 5 vehicles online · " in line

    # when
    site.server.kill()
    site.server.wait(10)

    # then
    done = asked(site, "--check")
    assert done.exit_code == 1
    assert done.stdout.startswith("server is DEAD: process ")
    assert "5 of 5 vehicles were online when the server last heard of them" in done.stdout
    told = json.loads(asked(site, "--json").stdout)["health"]
    assert (told["well"], told["server"]["state"], told["broker"]["answers"]) == (False, "gone", True)

    # and when it is started again, it runs
    site.start_server()
    wait_until(lambda: json.loads(asked(site, "--json").stdout)["health"]["well"], "it is well again")


def test_a_dead_broker_and_a_stopped_server_are_said(site: Site, wait_until: Callable[..., None]) -> None:
    site.drive()
    site.run_until(
        lambda: json.loads(asked(site, "--json").stdout or "{}").get("health", {}).get("well"), "well"
    )
    # when
    site.broker.kill()
    # then
    wait_until(lambda: not json.loads(asked(site, "--json").stdout)["health"]["server"]["broker"], "noticed")
    done = asked(site, "--check")
    assert done.exit_code == 1
    assert f"broker {site.broker.host}:{site.broker.port} does NOT ANSWER: connection refused" in done.stdout
    assert "vehicles were online when" in done.stdout
    # and when the server is asked to end
    site.server.terminate()
    site.server.wait(30)
    assert asked(site).stdout.startswith("server STOPPED 0 s ago: asked to end")


# --- the sign of life ---


def test_a_beat_between_changes_only_sets_the_time(tmp_path: Path) -> None:
    heart = Heart(tmp_path, 100.0)
    heart.beat(100.0)
    before = (tmp_path / FILE).stat()
    heart.beat(101.0)  # too early
    assert (tmp_path / FILE).stat().st_mtime == 100.0
    heart.beat(103.0)
    after = (tmp_path / FILE).stat()
    assert (after.st_ino, after.st_mtime) == (before.st_ino, 103.0)
    heart.note([Connected(session_present=False)], 103.5)
    heart.beat(103.5)
    told = life(tmp_path, 104.0)
    assert (told.state, told.broker, told.broker_since_s) == ("running", True, 103.5)
    heart.note([Disconnected("gone")], 104.0)
    heart.beat(104.0)
    assert not life(tmp_path, 104.0).broker


def test_a_silent_server_hangs_here_and_is_silent_elsewhere(tmp_path: Path) -> None:
    heart = Heart(tmp_path, 0.0)
    heart.beat(100.0)
    assert life(tmp_path, 100.0 + heartbeat.SILENT_S).state == "running"
    assert life(tmp_path, 101.0 + heartbeat.SILENT_S).state == "hanging"
    told = json.loads((tmp_path / FILE).read_bytes()) | {"host": "elsewhere", "news": 1}
    (tmp_path / FILE).write_text(json.dumps(told))
    os.utime(tmp_path / FILE, (100.0, 100.0))
    assert life(tmp_path, 105.0).state == "running"
    assert life(tmp_path, 120.0).state == "silent"


def test_a_number_that_another_process_got_is_not_the_server(tmp_path: Path) -> None:
    Heart(tmp_path, 0.0).beat(100.0)
    told = json.loads((tmp_path / FILE).read_bytes())
    (tmp_path / FILE).write_text(json.dumps(told | {"process_start": told["process_start"] - 1}))
    os.utime(tmp_path / FILE, (100.0, 100.0))
    assert life(tmp_path, 100.0).state == "gone"


def test_a_server_that_ended_says_why(tmp_path: Path) -> None:
    heart = Heart(tmp_path, 0.0)
    heart.beat(1.0)
    heart.stop(2.0, "disk on fire")
    told = life(tmp_path, 3.0)
    assert (told.state, told.why, told.stopped_at_s, told.is_alive) == ("stopped", "disk on fire", 2.0, False)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff", b'{"pid": "x"}'])
def test_a_file_that_says_nothing_is_no_sign_of_life(tmp_path: Path, content: bytes) -> None:
    assert life(tmp_path, 0.0).state == "unknown"
    (tmp_path / FILE).write_bytes(content)
    assert life(tmp_path, 0.0).state == "unknown"


def test_a_folder_that_takes_no_file_costs_the_server_nothing(tmp_path: Path) -> None:
    heart = Heart(tmp_path / "nowhere", 0.0)
    heart.beat(1.0)
    heart.stop(2.0, "")


# --- counters ---


def metrics(at_s: float, **counted: int) -> Metrics:
    zero = dict.fromkeys(
        ("frames", "missed", "missed_in_swap", "swaps", "bytes_up", "bytes_down", "trainings"), 0
    )
    return Metrics(
        vehicle="n-0",
        task="linear-test",
        at_s=at_s,
        session=1,
        active_version=0,
        p50_ms=1.0,
        p99_ms=1.0,
        **zero | counted,
    )


def test_what_vehicles_count_goes_on_after_their_restarts(tmp_path: Path) -> None:
    # given a vehicle that counted, was restarted twice and counts again from 0
    world = World(configuration(tmp_path))
    with world.parts.store.write() as connection:
        for at_s, bytes_down, frames in ((1, 500, 10), (2, 900, 20), (3, 100, 25), (4, 300, 30), (5, 1, 1)):
            assert store_vehicles.save_metrics(
                connection, metrics(at_s, bytes_down=bytes_down, frames=frames), now_s=10.0
            )
    # then its sums never fall: 900 of the first process, 300 of the second, 1 of the third
    found = snapshot(tmp_path / "server", 10.0)
    assert found["regions"]["north"]["bytes_down"] == 900 + 300 + 1
    assert found["inference"]["frames"] == 20 + 30 + 1
    assert found["vehicles"]["n-0"]["totals"]["frames"] == 51
    assert found["vehicles"]["n-0"]["metrics"]["frames"] == 1
    # and older metrics that come late change nothing
    with world.parts.store.write() as connection:
        assert not store_vehicles.save_metrics(connection, metrics(4, bytes_down=0), now_s=10.0)
    with world.parts.store.read() as connection:
        assert store_counters.totals(connection)["n-0"]["bytes_down"] == 1201
    world.parts.close()


# --- what is seen ---


@pytest.fixture
def shown(tmp_path: Path) -> dict[str, Any]:
    world = World(configuration(tmp_path))
    world.drive("n-0", "n-1", "n-2", "s-0", "s-1")
    world.turn(30)
    world.parts.close()
    return snapshot(tmp_path / "server", 121.0)


def drawn(found: dict[str, Any], health: Health, width: int) -> str:
    console = Terminal()
    console.file, console.width = io.StringIO(), width
    console.print(live.view(found, health, width=width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 140, 200])
def test_nothing_is_cut_off_at_any_width(shown: dict[str, Any], width: int) -> None:
    shown["regions"] = {
        f"{name}-city-1": region
        | {"bytes_up": 12_345_678, "bytes_down": 98_765_432, "ratio": 180.0, "p50_ms": 1.5, "p99_ms": 12.5}
        for name, region in shown["regions"].items()
    }
    text = drawn(shown, Health(RUNNING, "127.0.0.1:1883", ""), width)
    assert text.startswith("server up for 2 min · broker answers · 5 of 5 vehicles online\n")
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for word in ("north-city-1", "published", "3/3", "+43", "distance now"):
        assert word in text
    assert ("98765" in text) == (width >= 120)
    assert ("p50 ms" in text) == (width >= 140)
    assert len(text.splitlines()) < 16  # a row per region: nothing wraps


def test_it_says_that_all_rounds_are_done_and_which_published_nothing(shown: dict[str, Any]) -> None:
    assert "ALL 3 ROUNDS ARE DONE: 3 versions published" in live.line(shown)
    some = shown | {"is_done": False, "rounds_published": 1, "rounds_run": 3, "rounds_total": 10, "round": 4}
    assert live.progress(some) == "round 4 of 10: 1 version published, 2 rounds published nothing"
    assert live.progress(some | {"rounds_total": 0}).startswith("round 4: ")


@pytest.mark.parametrize(
    ("server", "words"),
    [
        (
            Life("hanging", seen_at_s=70.0, pid=7),
            "server HANGS or does a long step: process 7 lives, last heard",
        ),
        (Life("silent", seen_at_s=40.0, host="far"), "server is SILENT: last heard of 1 min ago"),
        (Life("unknown"), "server: no sign of life is kept here"),
        (Life("running", started_at_s=1.0, broker_since_s=109.0), "the server is NOT CONNECTED for 12 s"),
    ],
    ids=lambda value: value.state if isinstance(value, Life) else "",
)
def test_what_is_not_well_is_said(shown: dict[str, Any], server: Life, words: str) -> None:
    text = re.sub(r"\s+", " ", drawn(shown, Health(server, "127.0.0.1:1883", ""), 80))
    assert words in text
    assert "vehicles were online when the server last heard of them" in text
    assert not Health(server, "", "").is_well


def test_a_process_that_ended_and_was_not_waited_for_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from fedfleet.fleet_server.heartbeat import Heart; "
        "Heart(pathlib.Path(sys.argv[1]), 1.0).beat(1.0)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        assert life(tmp_path, 1.0).state == "gone"
