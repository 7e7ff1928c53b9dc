"""What an agent takes when there is nothing to learn: memory, CPU and traffic over a real Mosquitto.

    python benchmarks/footprint.py --json [--seconds 120] [--task NAME] [--scenarios DIR]

One vehicle as `fedfleet agent` starts it, with the default settings, after two rounds and the end of its trainer
(steady state): `idle_*` is a parked car (no inference) that holds the model and its connection, `driving_*` the same
car with inference at the rate of its recording. `*_rss_mb` is the largest resident memory (10^6 bytes) while measured,
`*_cpu_pct` of one core, `*_kb_s` all bytes of its TCP connection both ways, as the kernel counts them (1 kB = 1000
bytes), without TCP and IP headers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedfleet.link import embedded

TARGET_MB, TARGET_CPU_PCT, TARGET_KB_S = 120.0, 1.0, 0.1
LIMIT_S = 900.0
SETTLE_S = 20.0
CODE = "one-time code of the footprint"


def configuration(told: argparse.Namespace, port: int, region: str, *, inference: bool) -> str:
    """Return the TOML: all defaults but the broker, two short rounds of one vehicle, and whether it drives."""
    return f"""
task = "{told.task}"
work_dir = "work"
[broker]
port = {port}
embedded = "none"
[server.rounds]
total = 2
quorum = 1
start_wait_s = 5
deadline_s = 40
lease_s = 40
[[server.enrolment]]
vehicle = "v01"
region = "{region}"
code = "{CODE}"
[agent]
inference = {str(inference).lower()}
trainer_idle_s = 5
"""


def memory(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process."""
    parts = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def trainers(pid: int) -> list[str]:
    """Return the process ids below the agent."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()


def traffic(pid: int, port: int) -> int:
    """Return the bytes that the agent's connection to this port carried so far, both ways."""
    line = ["ss", "-tniHp", "state", "established", f"( dport = :{port} )"]
    rows = subprocess.run(line, capture_output=True, text=True, timeout=30, check=True).stdout
    found = 0
    ours = False
    for row in rows.splitlines():
        ours = f"pid={pid}," in row if "pid=" in row else ours
        if ours:
            fields = dict(
                word.split(":", 1) for word in row.split() if word.startswith("bytes_") and ":" in word
            )
            found += int(fields.get("bytes_sent", 0)) + int(fields.get("bytes_received", 0))
    return found


@contextmanager
def command(name: str, arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a `fedfleet` command, ended by its process id."""
    with (folder / f"{name}.log").open("ab") as log:
        words = [sys.executable, "-P", "-m", "fedfleet.cli.main", *arguments]
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60.0)


def rows(folder: Path, what: str) -> list[dict[str, Any]]:
    """Return what a `fedfleet server` command tells as JSON."""
    line = [sys.executable, "-P", "-m", "fedfleet.cli.main", "server", what, "--json"]
    done = subprocess.run(line, cwd=folder, capture_output=True, timeout=120, check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout) if done.returncode == 0 else []
    return found


def after_rounds(folder: Path, pid: int) -> None:
    """Wait until both rounds are over and the trainer is gone."""
    end_s, is_over = time.monotonic() + LIMIT_S, False
    while not is_over:
        if time.monotonic() > end_s:
            sys.exit("the rounds do not end: " + (folder / "server.log").read_text(errors="replace")[-2000:])
        time.sleep(5.0)
        done = [row for row in rows(folder, "rounds") if row["state"] in {"published", "abandoned"}]
        is_over = any(row["round"] == 2 for row in done) and not trainers(pid)


def steady(pid: int, port: int, seconds: float) -> dict[str, float]:
    """Look at the agent for some time."""
    time.sleep(SETTLE_S)
    begin_s, cpu_s, carried, most = time.monotonic(), cpu(pid), traffic(pid, port), 0.0
    while time.monotonic() - begin_s < seconds:
        time.sleep(1.0)
        most = max(most, memory(pid))
    took_s = time.monotonic() - begin_s
    return {
        "rss_mb": round(most, 1),
        "cpu_pct": round(100 * (cpu(pid) - cpu_s) / took_s, 2),
        "kb_s": round((traffic(pid, port) - carried) / took_s / 1000, 4),
    }


def measure(told: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run server and agent: rounds and driving first, then parked."""
    data = ["--scenarios", str(told.scenarios.resolve())] if told.scenarios else []
    broker = embedded.start(folder / "broker", kind="mosquitto")
    found: dict[str, Any] = {"task": told.task, "seconds": told.seconds}
    file = folder / "fedfleet.toml"
    try:
        file.write_text(configuration(told, broker.port, told.region, inference=True), encoding="utf-8")
        with command("server", ["server", *data], folder):
            while not rows(folder, "models"):
                time.sleep(2.0)
            with command("agent", ["agent", "v01", *data], folder) as agent:
                after_rounds(folder, agent.pid)
                seen = steady(agent.pid, broker.port, told.seconds)
                found |= {f"driving_{name}": value for name, value in seen.items()}
            file.write_text(configuration(told, broker.port, told.region, inference=False), encoding="utf-8")
            with command("agent", ["agent", "v01", *data], folder) as agent:
                seen = steady(agent.pid, broker.port, told.seconds)
                found |= {f"idle_{name}": value for name, value in seen.items()}
    finally:
        broker.stop()
    found["load_average"] = os.getloadavg()[0]
    found["memory_within_120_mb"] = max(found["driving_rss_mb"], found["idle_rss_mb"]) <= TARGET_MB
    found["idle_cpu_within_1_pct"] = found["idle_cpu_pct"] <= TARGET_CPU_PCT
    found["idle_traffic_within_0_1_kb_s"] = found["idle_kb_s"] <= TARGET_KB_S
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What an idle agent takes.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--seconds", type=float, default=120.0, help="seconds to look, each time")
    parser.add_argument("--task", default="motion_forecast")
    parser.add_argument("--scenarios", type=Path, help="recordings; without it the shipped pack")
    parser.add_argument("--region", default="grid-city", help="region of the vehicle v01 in them")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(told, Path(folder))
    print(json.dumps(found) if told.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
