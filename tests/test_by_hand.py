"""The parts started one by one, as docs/running.md tells, with a task that has nothing of driving in it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_task
from child_processes import Processes

pytestmark = pytest.mark.timeout(300)

CONFIG = """
fleet = "tiny"
task = "tiny_task:TASK"
work_dir = "work"

[data]
scenarios = "recordings"
vehicles_per_region = 2

[broker]
port = {port}

[server.rounds]
total = 3
quorum = 2
deadline_s = 60
lease_s = 30

[server.codec]
index = "rice"
value = "int8"
density = 0.5

[server.strategy]
server_learning_rate = 1.0

[server.training]
epochs = 10
batch_size = 16
learning_rate = 0.01

[server.gate]
tolerance = 0.5

[agent]
metrics_interval_s = 0.5
nice = 0  # other tests share the machine
trainer_policy = "other"

[agent.guard]
late_ms = 1000

{codes}
"""
ENV = {**os.environ, "PYTHONPATH": str(Path(tiny_task.__file__).parent)}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedfleet.cli.main", *arguments]


def said(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=folder, env=ENV, capture_output=True, text=True, timeout=60, check=False
    )


def status(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        command("status", "--json"),
        cwd=folder,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return json.loads(done.stdout) if done.returncode == 0 else {}


def loaded(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_second_task_learns_with_another_metric(
    tmp_path: Path,
    processes: Processes,
    wait_until: Callable[..., None],
    free_port: int,
    mosquitto_binary: Path,
) -> None:
    # given: recordings of two regions, one configuration for all, a code for each vehicle but the last
    del mosquitto_binary
    tiny_task.generate(tmp_path / "recordings", regions=("east", "west"))
    codes = "".join(
        f'[[server.enrolment]]\nvehicle = "v0{n}"\nregion = "{"east" if n < 3 else "west"}"\n'
        f'code = "a-one-time-code-v0{n}"\n'
        for n in range(1, 4)
    )
    (tmp_path / "fedfleet.toml").write_text(CONFIG.format(port=free_port, codes=codes), encoding="utf-8")

    # when: every part is started by its own command, the last vehicle enrolled by hand
    processes.start(command("broker"), cwd=tmp_path, env=ENV)
    server = processes.start(command("server", "--wait"), cwd=tmp_path, env=ENV)
    key_file = tmp_path / "work" / "server" / "server.pub"
    wait_until(key_file.exists, "the server's key", timeout_s=90)
    shown = said(tmp_path, "agent", "v04", "--show-key").stdout.strip()
    enrolled = said(tmp_path, "server", "enrol", "v04", "--region", "west", "--key", shown)
    assert enrolled.returncode == 0, enrolled.stderr
    pinned = {**ENV, "FEDFLEET__AGENT__SERVER_PUBLIC_KEY": str(key_file)}
    agent = processes.start(command("agent", "v04", "--wait"), cwd=tmp_path, env=pinned)
    processes.start(command("fleet", "--vehicles", "v01,v02,v03", "--wait"), cwd=tmp_path, env=ENV)

    # then: three rounds are run, and in both regions the task's own metric beats the trivial baseline's
    wait_until(lambda: status(tmp_path).get("is_done"), "three rounds", timeout_s=150)
    end = status(tmp_path)
    assert end["metric"]["name"] == "mae"
    assert end["rounds_run"] == 3
    assert end["rounds_published"] >= 1
    for region in end["regions"].values():
        assert region["score"] < region["baseline"]
    assert {one["region"] for one in end["vehicles"].values()} == {"east", "west"}

    # and: neither server nor agent has loaded torch, and both end cleanly
    assert "libtorch" not in loaded(server.pid)
    assert "libtorch" not in loaded(agent.pid)
    for popen in (agent, server):
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(30) == 0
