"""One vehicle publishes as fast as it can: the server's memory, its log, and how long honest vehicles wait.

    python benchmarks/flood.py --json [--seconds 60] [--sizes 200,20000,250000]

A real Mosquitto, the shipped server's process, and a flooder with the name of one vehicle: a process of its own, at
nice 5, as in the world it would not run on this machine. Two
honest vehicles send an update every second. For QoS 0 and 1 and each size: resident memory (peak) of server and
broker, size of the server's log, p50 and p99 from an honest publish to its receipt, sent again after 5 s as agents do;
what still waits at the end counts with the time that it has waited. The worst case of each figure is what counts.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "security"))

from attacked_server import HONEST, AttackedServer, Courier
from child_processes import Processes
from server_world import pace

EVERY_S = 1.0
TARGETS = {"server_peak_mb": 300.0, "honest_p99_s": 3.0, "log_kb": 1000.0}


def peak(pid: int) -> float:
    """Peak resident memory in MB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def one(folder: Path, *, qos: int, size: int, seconds: float) -> dict[str, Any]:
    """A fresh broker and server under one flood."""
    processes = Processes(folder)
    site = AttackedServer(folder, processes, rounds=1)
    try:
        site.begin()
        before = site.log_bytes()
        couriers = [Courier(site.vehicle(name)) for name in HONEST]
        flood = site.flood(qos=qos, size=size, seconds=seconds)
        due, end = time.monotonic(), time.monotonic() + seconds

        def step() -> None:
            nonlocal due
            if time.monotonic() >= due:
                due += EVERY_S
                for courier in couriers:
                    courier.send()
            for courier in couriers:
                courier.step()

        pace(lambda: time.monotonic() >= end, step, timeout_s=seconds + 5)
        latencies = sorted(wait for courier in couriers for wait in courier.latencies_s + courier.waiting_s)
        waiting = sum(len(courier.waiting_s) for courier in couriers)
        figures = {"qos": qos, "size_bytes": size, **site.told(flood)}
        return figures | {
            "server_peak_mb": round(site.peak_bytes() / 1e6, 1),
            "broker_peak_mb": round(peak(site.broker.pid), 1),
            "log_kb": round((site.log_bytes() - before) / 1e3, 1),
            "honest_sent": len(latencies),
            "honest_waiting": waiting,
            "honest_p50_s": round(latencies[len(latencies) // 2], 3),
            "honest_p99_s": round(latencies[int(len(latencies) * 0.99)], 3),
            "is_well": site.is_well(),
            "counters": site.reasons(),
        }
    finally:
        site.close()
        processes.stop()


def main() -> int:
    """Print the figures; the exit code is 1 when one misses its target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each flood")
    parser.add_argument("--sizes", default="200,20000,250000", help="payloads in bytes")
    parser.add_argument("--qos", default="0,1")
    parser.add_argument("--folder", type=Path, help="where the store is; a temporary folder when not given")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    floods = []
    for qos in map(int, given.qos.split(",")):
        for size in map(int, given.sizes.split(",")):
            with tempfile.TemporaryDirectory(prefix="fedfleet-flood-", dir=given.folder) as folder:
                floods.append(one(Path(folder), qos=qos, size=size, seconds=given.seconds))
            sys.stderr.write(f"flood: {floods[-1]}\n")
    worst = {name: max(flood[name] for flood in floods) for name in TARGETS}
    missed = [name for name, target in TARGETS.items() if worst[name] > target]
    missed += ["is_well"] * (not all(flood["is_well"] for flood in floods))
    figures = {**worst, "targets": TARGETS, "missed": missed, "floods": floods}
    print(json.dumps(figures, indent=None if given.json else 2))
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
