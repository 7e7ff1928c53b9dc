import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import agent_world as aw
import numpy as np
import pytest

from fedfleet.link import embedded
from fedfleet.link.paho import Loop

LIMIT_MB = 120
TESTS = str(Path(__file__).parent)


def status_mb(pid: int, what: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def maps(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def broker(tmp_path: Path, mosquitto_binary: Path) -> Iterator[embedded.Broker]:
    del mosquitto_binary
    with embedded.start(tmp_path / "broker", kind="mosquitto") as started:
        yield started


@pytest.fixture
def server(broker: embedded.Broker) -> Iterator[aw.Server]:
    loop = Loop().start()
    made = aw.Server(lambda name, sink: loop.connect(broker.host, broker.port, client_id=name, sink=sink))
    yield made
    loop.stop()


def agent_config(tmp_path: Path, port: int, **changes: Any) -> Path:
    told = {
        "fleet": aw.FLEET,
        "task": "agent_world:TASK",
        "work_dir": str(tmp_path / "work"),
        "vehicle": "v01",
        "data_dir": str(aw.prepare(tmp_path / "data")),
        "enrolment_code": aw.CODE,
        "metrics_interval_s": 0.3,
        "nice": 0,  # other tests share the machine
        "trainer_policy": "other",
        "guard": {"late_ms": 1000},
        "broker": {"port": port},
        **changes,
    }
    path = tmp_path / "agent.json"
    path.write_text(json.dumps(told))
    return path


def driven(metrics: Any) -> int:
    """The version that drives; -1 before the first frame."""
    return metrics.active_version if metrics.frames else -1


COMMAND = [sys.executable, "-m", "fedfleet.vehicle_agent", "--config-json"]


def test_an_agent_stays_small_never_loads_torch_and_leaves_no_trainer(
    tmp_path: Path,
    broker: embedded.Broker,
    server: aw.Server,
    processes: Any,
    wait_until: Callable[..., None],
) -> None:
    server.codes = {"v01": aw.CODE}

    def until(condition: Callable[[], object], what: str) -> None:
        wait_until(lambda: server.turn() or condition(), what, timeout_s=60)

    agent = processes.start([*COMMAND, agent_config(tmp_path, broker.port)], env={"PYTHONPATH": TESTS})
    for version in range(3):
        server.publish_model(version)
        until(lambda v=version: server.metrics and driven(server.metrics[-1]) == v, f"version {version}")
    # when it trains with the real trainer, over several rounds
    for round_ in (1, 2, 3):
        server.publish(aw.plan(round_, 2, opened_at_s=time.time()))
        until(lambda r=round_: ("v01", r) in server.updates, f"update of round {round_}")
    # then it is small, without torch and its like, and the trainer is another process
    assert status_mb(agent.pid, "VmRSS") <= LIMIT_MB, processes.log(agent)
    assert not [word for word in ("libtorch", "pyarrow", "sqlalchemy", "typer") if word in maps(agent.pid)]
    (trainer,) = children(agent.pid)
    assert "libtorch" in maps(trainer)
    count = len(server.metrics)
    until(lambda: len(server.metrics) > count, "newer metrics")
    metrics = server.metrics[-1]
    assert (metrics.trainings, metrics.missed_in_swap, metrics.swaps) == (3, 0, 2)
    print(f"agent {status_mb(agent.pid, 'VmRSS'):.1f} MB, peak {status_mb(agent.pid, 'VmHWM'):.1f} MB")  # noqa: T201
    # and when it is killed, its trainer ends with it and the broker says so
    agent.send_signal(signal.SIGKILL)
    until(lambda: not alive(trainer), "end of the trainer")
    until(lambda: server.statuses[-1].state == "CONNECTIONBROKEN", "the will")


def test_sigterm_says_offline_and_ends_with_0(
    tmp_path: Path,
    broker: embedded.Broker,
    server: aw.Server,
    processes: Any,
    wait_until: Callable[..., None],
) -> None:
    server.codes = {"v01": aw.CODE}
    agent = processes.start([*COMMAND, agent_config(tmp_path, broker.port)], env={"PYTHONPATH": TESTS})
    wait_until(lambda: server.turn() or server.statuses, "ONLINE")
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(20) == 0
    wait_until(lambda: server.turn() or server.statuses[-1].state == "OFFLINE", "OFFLINE")


def test_without_a_broker_one_line_says_so_and_the_agent_goes_on(
    tmp_path: Path, free_port: int, processes: Any, wait_until: Callable[..., None]
) -> None:
    agent = processes.start([*COMMAND, agent_config(tmp_path, free_port)], env={"PYTHONPATH": TESTS})
    wait_until(lambda: "inference goes on" in processes.log(agent), "the line")
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(20) == 0
    lines = processes.log(agent).splitlines()
    assert [line for line in lines if line] == lines[:1]
    assert lines[0].startswith(f"vehicle v01: broker 127.0.0.1:{free_port}")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"vehicle": "V 1"}, "vehicle: expected 1 to 36 of a-z, 0-9 and '-', got 'V 1'"),
        ({"fleets": 3}, "fleets: Extra inputs are not permitted, got '3'"),
        ({"task": "no_such"}, "unknown task 'no_such'"),
        (
            {"data_dir": "/nowhere"},
            "/nowhere: not a folder of prepared data: meta.json: No such file or directory",
        ),
        ({"enrolment_code": None}, "vehicle v01: expected server_public_key or enrolment_code, got neither"),
        (
            {"server_public_key": "xyz"},
            "server_public_key: 'xyz' is neither 64 hex digits nor a readable file",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    path = agent_config(tmp_path, 1, **changes)
    env = {**os.environ, "PYTHONPATH": TESTS}
    ended = subprocess.run(
        [*COMMAND, str(path)], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert line in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_frames_of_another_shape_are_one_line(tmp_path: Path) -> None:
    path = agent_config(tmp_path, 1)
    np.save(tmp_path / "data" / "frames_inputs.npy", np.zeros((60, 5), dtype=np.float32))
    env = {**os.environ, "PYTHONPATH": TESTS}
    ended = subprocess.run(
        [*COMMAND, str(path)], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert str(tmp_path / "data") in line
    assert "[60, 5]" in line


def test_two_processes_on_one_journal_are_one_line(
    tmp_path: Path, free_port: int, processes: Any, wait_until: Any
) -> None:
    path = agent_config(tmp_path, free_port)
    first = processes.start([*COMMAND, path], env={"PYTHONPATH": TESTS})
    wait_until(lambda: "inference goes on" in processes.log(first), "the first one runs")
    second = processes.start([*COMMAND, path], env={"PYTHONPATH": TESTS})
    assert second.wait(30) == 2
    assert processes.log(second).strip() == (
        f"vehicle v01: journal {tmp_path / 'work' / 'v01'} is in use by another process"
    )
