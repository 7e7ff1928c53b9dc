"""The demo as a person runs it: its claims are true, its results are there, and nothing is left running."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import tiny_task
from child_processes import Processes

pytestmark = pytest.mark.slow


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "fedfleet.cli.main", "demo", "--out", str(out), *more]


def running_for(folder: Path) -> list[int]:
    """Return the processes whose command line names this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            text = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if str(folder).encode() in text and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@pytest.mark.timeout(600)
def test_the_demo_claims_only_what_is_true(tmp_path: Path, mosquitto_binary: Path) -> None:
    del mosquitto_binary
    out = tmp_path / "demo"
    done = subprocess.run(command(out), capture_output=True, text=True, timeout=500, check=False)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    untrue = [claim for claim in report["claims"] if not claim["is_true"]]
    assert not untrue, done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(report["scores"]) == 4
    assert report["vehicles"] == 12
    assert report["ratio"] >= 50
    assert report["killed"]["exit_status"] == -9
    assert {refused["found"] for refused in report["refused"]} == {"digest-mismatch", "unknown-sender"}
    assert sha256((out / "model.onnx").read_bytes()).hexdigest() == report["released_sha256"]
    assert "<svg" in (out / "report.html").read_text(encoding="utf-8")
    assert running_for(out) == []


@pytest.mark.timeout(400)
def test_a_task_of_a_module_bears_all_faults_and_no_round_opens_before_trainers_are_warm(
    tmp_path: Path, mosquitto_binary: Path
) -> None:
    del mosquitto_binary
    tiny_task.generate(tmp_path / "recordings", regions=("east", "west"))
    out = tmp_path / "demo"
    words = ["--task", "tiny_task:TASK", "-s", str(tmp_path / "recordings"), "--rounds", "8"]
    env = {**os.environ, "PYTHONPATH": str(Path(tiny_task.__file__).parent)}
    done = subprocess.run(
        command(out, *words), env=env, capture_output=True, text=True, timeout=350, check=False
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    # then both forgeries were refused, for their own reasons
    assert {refused["found"] for refused in report["refused"]} == {"digest-mismatch", "unknown-sender"}
    assert "versions published in 8 rounds" in done.stdout
    # and every process had its trainers warm before it connected, so that the first round is published
    assert "trainers are warm and vehicles online" in done.stdout
    for name in ("v01", "fleet"):
        log = (out / "work" / "logs" / f"{name}.log").read_text(encoding="utf-8")
        assert log.startswith("trainers are warm after ")
    first = [row for row in report["rounds"] if row["round"] == 1]
    assert {row["state"] for row in first} == {"published"}


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_everything(
    tmp_path: Path,
    processes: Processes,
    wait_until: Callable[..., None],
    mosquitto_binary: Path,
    sent: signal.Signals,
    status: int,
) -> None:
    del mosquitto_binary
    out = tmp_path / "demo"
    popen = processes.start(command(out))
    wait_until(lambda: "starting" in processes.log(popen), "vehicles to start", timeout_s=90)
    assert len(running_for(out / "work")) >= 4
    popen.send_signal(sent)
    assert popen.wait(60) == status
    assert running_for(out / "work") == []
