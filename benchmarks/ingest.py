"""Durable updates per second through a real Mosquitto and one server process, and what an update costs the server.

``python benchmarks/ingest.py --json``. Keys: ``updates_per_s_20kb`` and ``updates_per_s_3kb`` (from the first publish
to the last receipt, each sent after the commit; as many on their way as the server takes), ``p99_ms`` and ``p50_ms``
(publish to receipt, updates of 20 kB coming at ``offered_per_s``), ``server_cpu_ms_per_update`` (CPU of the server's
process to take in an update of a model of 1 M parameters, top 1 %, plus its decoding and folding),
``ingest_cpu_ms_20kb``, ``ingest_cpu_ms_3kb``, ``fold_cpu_ms`` (its parts). Dense float32 updates of 1 MB and 4 MB, in
pieces: ``dense_1mb_per_s``, ``dense_4mb_per_s`` and ``server_cpu_ms_per_mb_dense`` (the dearer of the two, ingest
plus fold). ``--against FOLDER`` measures the 20 kB load of another checkout in turns with this one:
``server_cpu_ms_before`` and ``server_cpu_ratio``. The store is on ``--folder``'s disk. The load comes from a process
of its own (tests/ingest_load.py).
"""

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import structlog
from ingest_load import Client, Load, drive, messages, names
from server_world import FLEET, configuration, key_of
from test_ingest import SERVER_KEY, TASK, plan_of

from fedfleet.codec import payload
from fedfleet.fleet_server import main as server_main
from fedfleet.fleet_server import store_rounds, store_updates, store_vehicles
from fedfleet.fleet_server.admission import Limits
from fedfleet.fleet_server.assembly import prepare
from fedfleet.fleet_server.config import GroupCommitConfig
from fedfleet.fleet_server.fold import fold_ordered
from fedfleet.fleet_server.heartbeat import Heart
from fedfleet.fleet_server.ingest import Ingest
from fedfleet.fleet_server.intake import Intake
from fedfleet.fleet_server.publisher import Publisher
from fedfleet.fleet_server.rate import Limiter, Rate
from fedfleet.fleet_server.requests import Party
from fedfleet.fleet_server.server import Server
from fedfleet.fleet_server.store_rounds import Round
from fedfleet.link import embedded
from fedfleet.link.options import Options
from fedfleet.link.paho import Loop
from fedfleet.protocol.ids import SERVER
from fedfleet.protocol.messages import Plan, Status

HERE = Path(__file__).resolve().parents[1]
PLAN = plan_of(5, base=0)
LARGE = {"parameters": 1_000_000, "density": 0.01, "value": "int8"}
SMALL = {"parameters": 100_000, "density": 0.033, "value": "sign"}
DENSE = {"density": 1.0, "value": "float32", "index": "dense"}
DENSE_UPDATES = {1: 400, 4: 160}
"""How many of so many MB."""
DENSE_WINDOW_MB = 64
TURNS = 3


class _Stop:
    """Asked for by a line on stdin."""

    @property
    def asked(self) -> bool:
        return bool(select.select([sys.stdin], [], [], 0)[0])


def serve(folder: Path, port: int, load: Load) -> None:
    """The server's process: all of the shipped one, in an open round. Prints its CPU seconds, and those of the fold.

    The round waits for one vehicle more than there are, so that it stays open while the coordinator looks at it.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    parts = prepare(configuration(folder, enrolment=[]), now_s=time.time(), draw=lambda count: b"k" * count)
    store = parts.store
    with store.write() as connection:
        for name in names(load.vehicles):
            store_vehicles.enrol(connection, name, region="north", public_key=key_of(name).public, now_s=1.0)
            store_vehicles.save_status(
                connection, Status(vehicle=name, state="ONLINE", session=1), now_s=time.time()
            )
        target = frozenset((*names(load.vehicles), "absent"))
        store_rounds.add_round(connection, Round(_plan(), "open", target, None, time.time()))
    limits = Limits(max(4_000_000, 4 * load.parameters + 8192), load.parameters, 100)
    ingest = Ingest(store, Party(FLEET, TASK, SERVER_KEY, {}), limits, Limiter(Rate(1e6, 1e6)))
    inbox = Intake()
    loop = Loop().start()
    window = server_main.WINDOW
    options = Options(receive_window=window, send_window=window)
    link = loop.connect("127.0.0.1", port, client_id=SERVER, sink=inbox.put, options=options)
    server = Server(store, link, ingest, parts.coordinator, Publisher(link, FLEET, lambda _: b""))
    while not server._connected:  # noqa: SLF001 - only then the load may begin
        server.handle(inbox.drain(1, 0.1), time.time())
    time.sleep(0.3)  # until the subscriptions are granted
    begun = time.process_time()
    print("ready", flush=True)
    server_main._serve(  # noqa: SLF001 - the loop that is measured
        server,
        inbox,
        _Stop(),  # type: ignore[arg-type]
        commit=GroupCommitConfig(),
        seen=(Heart(folder, time.time()), server_main._Unseen()),  # noqa: SLF001
    )
    used = time.process_time() - begun
    loop.stop()
    print(json.dumps([ingest.stored, used, _fold(store, load)]), flush=True)
    store.close()


def _plan() -> Plan:
    """The load's plan, open for as long as it takes."""
    now_s = time.time()
    told = {"opened_at_s": now_s, "deadline_s": now_s + 1e5, "lease_s": 1e5}
    return PLAN.model_copy(update=told)


def _fold(store: Any, load: Load) -> float:  # noqa: ANN401 - the open store
    """CPU seconds to read, decode and fold what is stored."""
    begun = time.process_time()
    with store.read() as connection:
        ids = store_updates.pending(connection, round_=PLAN.round, region="north")
    with store.write() as connection:
        one = Round(_plan(), "open", frozenset(), None, 1.0)
        store_rounds.close(connection, one, state="closing", members=ids, now_s=2.0, reason="deadline")
    with store.read() as connection:
        members = store_updates.members(connection, round_=PLAN.round, region="north")
        decoded = ((id_, payload.decode(data, size=load.parameters).delta, 1.0) for id_, data, _ in members)
        fold_ordered(decoded, size=load.parameters)
    return time.process_time() - begun


def run(load: Load, folder: Path, *, checkout: Path = HERE) -> dict[str, float]:
    """One fresh broker and server, of this checkout or another, under one load."""
    sending, size = messages(load, PLAN)
    broker = embedded.start(folder / "broker", kind="mosquitto")
    told = json.dumps([str(folder / "server"), broker.port, load.told()])
    server = subprocess.Popen(
        [sys.executable, str(checkout / "benchmarks" / "ingest.py"), "--serve", told],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (checkout / ".view", checkout / "tests")))},
    )
    try:
        if server.stdin is None or server.stdout is None or server.stdout.readline() != "ready\n":
            raise RuntimeError("the server did not start")
        client = Client("127.0.0.1", broker.port)
        seconds = drive(client, sending, load)
        server.stdin.write("stop\n")
        server.stdin.flush()
        stored, used, fold = json.loads(server.stdout.readline())
        server.wait(30)
    finally:
        server.kill()
        server.wait(30)
        broker.stop()
    if stored != load.updates:
        raise RuntimeError(f"{stored} of {load.updates} updates are stored")
    latencies = sorted(client.latencies)
    return {
        "size_bytes": size,
        "per_s": stored / seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
        "ingest_ms": used / stored * 1e3,
        "fold_ms": fold / stored * 1e3,
    }


def measure(folder: Path, *, updates: int, vehicles: int, offered: float) -> dict[str, float]:
    """The loads of small updates."""
    figures: dict[str, float] = {}
    large = run(Load(**LARGE, updates=updates, vehicles=vehicles), folder / "large")
    sys.stderr.write(f"ingest: 20 kB: {large}\n")
    small = run(Load(**SMALL, updates=2 * updates, vehicles=vehicles), folder / "small")
    sys.stderr.write(f"ingest: 3 kB: {small}\n")
    paced = run(Load(**LARGE, updates=updates, vehicles=vehicles, rate=offered), folder / "paced")
    sys.stderr.write(f"ingest: 20 kB at {offered:g}/s: {paced}\n")
    figures["updates_per_s_20kb"] = round(large["per_s"])
    figures["updates_per_s_3kb"] = round(small["per_s"])
    figures["p99_ms"] = round(paced["p99_ms"], 1)
    figures["p50_ms"] = round(paced["p50_ms"], 1)
    figures["offered_per_s"] = offered
    figures["server_cpu_ms_per_update"] = round(_cost(large), 3)
    figures["ingest_cpu_ms_20kb"] = round(large["ingest_ms"], 3)
    figures["ingest_cpu_ms_3kb"] = round(small["ingest_ms"], 3)
    figures["fold_cpu_ms"] = round(large["fold_ms"], 3)
    figures["bytes_20kb"], figures["bytes_3kb"] = large["size_bytes"], small["size_bytes"]
    return figures


def dense(folder: Path) -> dict[str, float]:
    """The loads of dense updates."""
    figures: dict[str, float] = {}
    dearest = 0.0
    for size_mb, updates in DENSE_UPDATES.items():
        window = DENSE_WINDOW_MB // size_mb
        load = Load(**DENSE, parameters=size_mb * 250_000, updates=updates, vehicles=updates, window=window)
        found = run(load, folder / f"dense-{size_mb}")
        sys.stderr.write(f"ingest: dense, {size_mb} MB: {found}\n")
        figures[f"dense_{size_mb}mb_per_s"] = round(found["per_s"], 1)
        dearest = max(dearest, _cost(found) / found["size_bytes"] * 1e6)
    figures["server_cpu_ms_per_mb_dense"] = round(dearest, 2)
    return figures


def compare(folder: Path, checkout: Path, *, updates: int, vehicles: int) -> dict[str, float]:
    """The load of 20 kB in turns with another checkout; the middle of the turns."""
    subprocess.run([sys.executable, str(checkout / "setup" / "view.py")], check=True)
    load = Load(**LARGE, updates=updates, vehicles=vehicles)
    turns = [
        tuple(
            _cost(run(load, folder / f"{turn}-{name}", checkout=where))
            for name, where in (("before", checkout), ("now", HERE))
        )
        for turn in range(TURNS)
    ]
    sys.stderr.write(f"ingest: 20 kB, CPU ms per update before and now: {turns}\n")
    before, now = (median(each) for each in zip(*turns, strict=True))
    return {"server_cpu_ms_before": round(before, 3), "server_cpu_ratio": round(now / before, 3)}


def _cost(found: Mapping[str, float]) -> float:
    return found["ingest_ms"] + found["fold_ms"]


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=6000, help="updates of 20 kB; twice as many of 3 kB")
    parser.add_argument("--vehicles", type=int, default=1000, help="vehicles that they come from")
    parser.add_argument(
        "--offered", type=float, default=1500, help="updates per second while p99 is measured"
    )
    parser.add_argument("--folder", type=Path, help="where the store is; a temporary folder when not given")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turns with this one")
    parser.add_argument(
        "--only",
        choices=("small", "dense"),
        help="measure only these loads (with --against: only the comparison and these)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.serve:
        where, port, load = json.loads(told.serve)
        serve(Path(where), port, Load(**load))
        return 0
    with tempfile.TemporaryDirectory(prefix="fedfleet-ingest-", dir=told.folder) as folder:
        load = {"updates": told.updates, "vehicles": told.vehicles}
        figures = measure(Path(folder), offered=told.offered, **load) if told.only != "dense" else {}
        figures |= dense(Path(folder)) if told.only != "small" else {}
        if told.against:
            figures |= compare(Path(folder), told.against.resolve(), **load)
    if told.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:26} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
