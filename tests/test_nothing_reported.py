"""No library of ours reports to anyone: what agent, server, replay and brokers say, system call by call."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tiny_task
from child_processes import Processes
from test_by_hand import CONFIG, command, said, status

from fedfleet.fleet_server.export import export
from fedfleet.models.layout import patch

TESTS = str(Path(tiny_task.__file__).parent)
OUTWARD = re.compile(r"\b(connect|sendto|sendmsg|sendmmsg)\(")
LOOPBACK = re.compile(r'sa_family=AF_(UNIX|NETLINK|UNSPEC)|"(::ffff:)?127\.\d+\.\d+\.\d+"|"::1"')
LOOK_UPS = ("/etc/resolv.conf", "/etc/hosts", "libnss_dns.so.2")
"""What the C library opens when it is asked for a host's name."""


class Watched:
    """Runs commands under strace, with a home folder in which nothing was before."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        self.env = {
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "PYTHONPATH": TESTS,
            "ORT_DISABLE_TELEMETRY": "0",  # whoever runs us may have set it: it is not what silences us
        }

    def trace(self, name: str, words: Sequence[str], *, apart: bool = False) -> list[str]:
        """The command line that runs `words` and writes their calls to a file by this name.

        `apart`: the process that is started is the command itself, so that signals reach it.
        """
        calls = ["-f", "-qq", "--seccomp-bpf", "-e", "trace=network,openat", "-s", "200"]
        return [
            "strace",
            *(["-D"] if apart else []),
            *calls,
            "-o",
            str(self.folder / f"{name}.trace"),
            *words,
        ]

    def calls(self, name: str) -> list[str]:
        return (self.folder / f"{name}.trace").read_text(encoding="utf-8", errors="replace").splitlines()

    def abroad(self, name: str) -> list[str]:
        """The calls that name an address outside this machine, or look a name up."""
        named = [
            line
            for line in self.calls(name)
            if OUTWARD.search(line) and "sa_family=" in line and not LOOPBACK.search(line)
        ]
        opened = [
            line
            for line in self.calls(name)
            if any(f'{file}"' in line for file in LOOK_UPS) and "ENOENT" not in line
        ]
        return named + opened

    def kept(self) -> list[str]:
        """The files that anyone left in the home folder."""
        return [str(path.relative_to(self.home)) for path in self.home.rglob("*") if path.is_file()]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    if shutil.which("strace") is None:
        pytest.skip("no strace installed")
    probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"strace may not trace here: {probe.stderr.decode()[:100]}")
    return Watched(tmp_path)


@pytest.mark.timeout(300)
def test_a_server_and_an_agent_that_learns_and_drives_speak_to_their_broker_only(
    tmp_path: Path,
    watched: Watched,
    processes: Processes,
    wait_until: Callable[..., None],
    free_port: int,
    mosquitto_binary: Path,
) -> None:
    # given a fleet of one vehicle, and no home folder that anyone has written to
    del mosquitto_binary
    tiny_task.generate(tmp_path / "recordings", regions=("east",))
    code = '[[server.enrolment]]\nvehicle = "v01"\nregion = "east"\ncode = "one-time-code-of-v01"\n'
    config = CONFIG.format(port=free_port, codes=code).replace("quorum = 2", "quorum = 1")
    config = config.replace("vehicles_per_region = 2", "vehicles_per_region = 1")
    (tmp_path / "fedfleet.toml").write_text(config, encoding="utf-8")
    # when broker, server (with its export and its gate) and agent (with its trainer) run three rounds
    for name, words in (
        ("broker", ("broker",)),
        ("server", ("server", "--wait")),
        ("agent", ("agent", "v01", "--wait")),
    ):
        processes.start(watched.trace(name, command(*words), apart=True), cwd=tmp_path, env=watched.env)

    def drives() -> bool:
        told = said(tmp_path, "server", "vehicles", "--json").stdout
        return any(one.get("metrics", {}).get("frames") for one in json.loads(told).values())

    wait_until(lambda: status(tmp_path).get("is_done"), "three rounds", timeout_s=150)
    wait_until(drives, "a vehicle that drives", timeout_s=60)
    processes.stop()
    # then each spoke to the broker on this machine, looked nothing up, and left nothing behind
    for name in ("server", "agent"):
        assert any("connect(" in line and f"htons({free_port})" in line for line in watched.calls(name))
    assert [watched.abroad(name) for name in ("broker", "server", "agent")] == [[], [], []]
    assert watched.kept() == []


def test_a_replay_speaks_to_nobody(tmp_path: Path, watched: Watched) -> None:
    # given a model and recordings
    tiny_task.generate(tmp_path / "recordings", regions=("east",))
    made = export(tiny_task.TASK, seed=1)
    (tmp_path / "model.onnx").write_bytes(patch(made.onnx, made.layout, made.initial))
    words = ("--task", "tiny_task:TASK", "--scenarios", "recordings", "--model", "model.onnx")
    # when
    done = subprocess.run(
        watched.trace("replay", command("replay", *words, "--speed", "max", "--out", "out")),
        cwd=tmp_path,
        env={**os.environ, **watched.env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # then
    assert done.returncode == 0, done.stderr
    assert watched.calls("replay")
    assert watched.abroad("replay") == []
    # and matplotlib, which draws its report, keeps the list of this machine's fonts
    assert [name for name in watched.kept() if not name.startswith("cache/matplotlib/fontlist-")] == []


@pytest.mark.parametrize(
    "first", ["fedfleet.models.task", "fedfleet.vehicle_agent.main", "fedfleet.cli.main"]
)
def test_who_imports_us_may_import_the_runtime_itself_afterwards(first: str, watched: Watched) -> None:
    # given a program (a task's own code, an example) that uses both
    program = f"import {first}, onnxruntime, time; time.sleep(1)"
    # when
    subprocess.run(
        watched.trace("program", [sys.executable, "-c", program]),
        env={**os.environ, **watched.env},
        timeout=60,
        check=True,
    )
    # then
    assert watched.abroad("program") == []
    assert watched.kept() == []


@pytest.mark.nats
def test_the_nats_server_speaks_to_nobody(
    tmp_path: Path,
    watched: Watched,
    processes: Processes,
    wait_until: Callable[..., None],
    free_port: int,
    nats_binary: Path,
) -> None:
    del nats_binary
    config = f'fleet = "quiet"\nwork_dir = "work"\n[broker]\nport = {free_port}\nembedded = "nats"\n'
    (tmp_path / "fedfleet.toml").write_text(config, encoding="utf-8")
    # when it runs for some seconds
    broker = processes.start(
        watched.trace("broker", command("broker"), apart=True), cwd=tmp_path, env=watched.env
    )
    wait_until(lambda: f"127.0.0.1:{free_port}" in processes.log(broker), "the broker")
    # then
    assert watched.abroad("broker") == []
    assert watched.kept() == []


def test_the_watch_sees_a_look_up(watched: Watched) -> None:
    # given a program that asks for a host, as the runtime does when it is not silenced
    program = "import socket\ntry: socket.getaddrinfo('events.invalid', 443)\nexcept OSError: pass"
    # when
    subprocess.run(
        watched.trace("asks", [sys.executable, "-c", program]),
        env={**os.environ, **watched.env},
        timeout=60,
        check=True,
    )
    # then
    assert watched.abroad("asks")


def test_a_model_is_loaded_through_the_one_import() -> None:
    # given the file that may import it, and all others
    root = Path(__file__).resolve().parent.parent
    files = [path for path in root.rglob("*.py") if not {".venv", ".view"} & set(path.parts)]
    pattern = re.compile(r"^\s*(import|from) onnxruntime\b", re.MULTILINE)
    # when
    importers = {str(path.relative_to(root)) for path in files if pattern.search(path.read_text())}
    # then
    assert importers == {"models/onnx_runtime.py"}
