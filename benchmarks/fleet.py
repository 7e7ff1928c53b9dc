"""A thousand vehicles on one machine: rounds of real updates over a real Mosquitto, their time and memory.

    python benchmarks/fleet.py --json [--vehicles 1000] [--rounds 3] [--scenarios DIR] [--task NAME] [--profiles]

`fedfleet server` and `fedfleet fleet --vehicles N` as a user starts them, each vehicle with its own key, journal and
drives (or, where the recordings have too few, with drives that several have: then nothing is said of accuracy), every
update a real fine-tuning of one pass. Inference is off: trainers and link are measured. `round_s` is from the opening
to the close of each round, `next_opens_after_s` to the next opening, with fold, gate and release; `memory_mb` the
largest sum of what broker, server, fleet and trainers hold (PSS: pages that processes share count once); `cpu_s` by
process. With `--profiles` a fifth of the vehicles has a slow link that is cut every two minutes, and a fifth trains
only its last layer.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from fedfleet.link import embedded

T = TypeVar("T")
LIMIT_S = 1500.0
TARGET_S = 60.0
TARGET_MB = 1500.0
PROFILES = """
[agent.profiles.far]
share = 0.2
link = { up_kbit_s = 500, down_kbit_s = 4000, latency_ms = 80, cut_every_s = 120, cut_s = 3 }
[agent.profiles.weak]
share = 0.2
trainable = "head"
batch_memory_mb = 16
"""


def configuration(told: argparse.Namespace, port: int, regions: int) -> str:
    """Return the TOML of server and fleet: a round waits for every vehicle."""
    quorum = told.vehicles // regions
    text = f"""
fleet = "load"
task = "{told.task}"
work_dir = "work"
[broker]
port = {port}
embedded = "none"
[server.rounds]
total = {told.rounds}
quorum = {quorum}
deadline_s = 1200
lease_s = 1200
start_wait_s = 1200
[server.training]
epochs = 1
[server.logs]
level = "warning"
[agent]
inference = false
metrics_interval_s = 60
training_limit_s = 1200
resend_min_s = 30
tick_s = 1
nice = 0
trainer_policy = "other"
trainer_idle_s = 600
trainer_hang_s = 600
"""
    return text + (PROFILES if told.profiles else "")


def children(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            below = (task / "children").read_text(encoding="ascii").split()
        except OSError:
            continue
        for each in below:
            found += children(int(each))
    return found


def memory(pid: int) -> float:
    """Return the MB (10^6 bytes) that a process holds, shared pages in parts."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process so far."""
    try:
        parts = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


class Gauge:
    """Looks at the processes every second: most memory of all at once and of each, CPU of each."""

    def __init__(self, roots: dict[str, int]) -> None:
        self._roots = roots
        self.most_mb, self.mb, self.cpu_s = 0.0, dict[str, float](), dict[str, float]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            sums: dict[str, float] = {}
            for name, root in self._roots.items():
                for pid in children(root):
                    kind = name if pid == root else "trainers"
                    sums[kind] = sums.get(kind, 0.0) + memory(pid)
                    self.cpu_s[f"{kind} {pid}"] = max(self.cpu_s.get(f"{kind} {pid}", 0.0), cpu(pid))
            if sum(sums.values()) > self.most_mb:
                self.most_mb, self.mb = sum(sums.values()), sums


@contextmanager
def command(name: str, arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a `fedfleet` command, ended by its process id."""
    with (folder / f"{name}.log").open("wb") as log:
        words = [sys.executable, "-P", "-m", "fedfleet.cli.main", *arguments]
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ask(folder: Path, *words: str) -> list[dict[str, Any]] | None:
    """Return what a `fedfleet server` command prints as JSON; None while there is nothing."""
    line = [sys.executable, "-P", "-m", "fedfleet.cli.main", "server", *words, "--json"]
    done = subprocess.run(line, cwd=folder, capture_output=True, timeout=120, check=False)
    found: list[dict[str, Any]] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return found


def wait(condition: Callable[[], T], what: str, folder: Path, *processes: subprocess.Popen[bytes]) -> T:
    """Ask every few seconds until there is an answer."""
    end_s = time.monotonic() + LIMIT_S
    while not (found := condition()):
        for process in processes:
            if process.poll() is not None:
                words = "".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log"))
                sys.exit(f"a process ended: {words}")
        if time.monotonic() > end_s:
            sys.exit(f"not within {LIMIT_S:.0f} s: {what}")
        time.sleep(10.0)
    return found


def finished(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Return the rows of all rounds when the last is over in every region."""
    rows = ask(folder, "rounds", "--last", "1000") or []
    last = [row for row in rows if row["round"] == rounds]
    return rows if last and all(row["state"] in {"published", "abandoned"} for row in last) else []


def measure(told: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start all, wait for the rounds, stop all, and sum up."""
    data = ["--scenarios", str(told.scenarios.resolve())] if told.scenarios else []
    broker = embedded.start(folder / "broker", kind="mosquitto")
    try:
        (folder / "fedfleet.toml").write_text(configuration(told, broker.port, 4), encoding="utf-8")
        with command("server", ["server", *data], folder) as server:
            public = folder / "work" / "server" / "server.pub"
            wait(public.is_file, "a server", folder, server)
            with command("fleet", ["fleet", "--vehicles", str(told.vehicles), *data], folder) as fleet:
                gauge = Gauge({"broker": broker.pid, "server": server.pid, "fleet": fleet.pid})
                rows = wait(lambda: finished(folder, told.rounds), "the rounds", folder, server, fleet)
                gauge.stop()
    finally:
        broker.stop()
    report = json.loads((folder / "work" / "fleet.json").read_text(encoding="utf-8"))
    return figures(told, rows, gauge, report)


def figures(
    told: argparse.Namespace, rows: list[dict[str, Any]], gauge: Gauge, report: dict[str, Any]
) -> dict[str, Any]:
    """Return what the targets speak of, and what it is made of."""
    by_round: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_round.setdefault(row["round"], []).append(row)
    round_s = [round(max(row["seconds"] for row in each), 1) for _, each in sorted(by_round.items())]
    folded = [sum(row["fates"].get("folded", 0) for row in each) for _, each in sorted(by_round.items())]
    opened_s = [min(row["opened_at_s"] for row in each) for _, each in sorted(by_round.items())]
    cpu_s: dict[str, float] = {}
    for name, seconds in gauge.cpu_s.items():
        kind = name.split()[0]
        cpu_s[kind] = round(cpu_s.get(kind, 0.0) + seconds, 1)
    return {
        "vehicles": told.vehicles,
        "task": told.task,
        "profiles": told.profiles,
        "load_run": report["load_run"],
        "vehicles_that_share_drives": report["vehicles_that_share_drives"],
        "metrics": report["metrics"],
        "round_s": round_s,
        "next_opens_after_s": [round(after - before, 1) for before, after in pairwise(opened_s)],
        "folded": folded,
        "memory_mb": round(gauge.most_mb),
        "memory_mb_by_process": {name: round(value) for name, value in gauge.mb.items()},
        "cpu_s": cpu_s,
        "cpu_ms_per_update": round(1000 * sum(cpu_s.values()) / max(1, sum(folded)), 1),
        "relay": report["relay"],
        "refusals": _refusals(report),
        "bytes_up_per_vehicle": report["total"]["bytes_up"] // told.vehicles,
        "bytes_down_per_vehicle": report["total"]["bytes_down"] // told.vehicles,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg(),
        "round_within_60_s": min(round_s) <= TARGET_S,
        "memory_within_1500_mb": gauge.most_mb <= TARGET_MB,
    }


def _refusals(report: dict[str, Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in report["vehicles"]:
        for reason, count in row["refusals"].items():
            found[reason] = found.get(reason, 0) + count
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="A large fleet on one machine.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--vehicles", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--task", default="motion_forecast")
    parser.add_argument("--scenarios", type=Path, help="recordings; without it the shipped pack")
    parser.add_argument("--profiles", action="store_true", help="with slow links, cuts and weak vehicles")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(told, Path(folder))
    print(json.dumps(found) if told.json else "\n".join(f"{name}: {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
