"""A server process and a real broker, both of which are killed at random; vehicles that live through it all.

Used by the tests of crashes and by ``benchmarks/crash.py``: what they show is made by the same code.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from child_processes import Processes
from server_world import FLEET, REGIONS, Vehicle, configuration, dump, key_of, pace
from sqlalchemy import Connection, func, select

from fedfleet.fleet_server import registry, schema, status, store_rounds
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.registry import Place
from fedfleet.fleet_server.store import START, open_reader
from fedfleet.fleet_server.store_properties import properties
from fedfleet.link import embedded
from fedfleet.link.options import Backoff, Options
from fedfleet.link.paho import Loop
from fedfleet.protocol.errors import UsageError

__all__ = ["ALL", "TASK_ID", "TESTS", "Plan", "Site", "Told", "python_path", "shake", "tell"]

TASK_ID = "linear-test"
TESTS = Path(__file__).parent
PATIENCE_S = 120.0
ALL = tuple(name for names in REGIONS.values() for name in names)
RESEND_S = 0.3
THINK_S = 0.3
LOOK_S = 0.03


class Site:
    """The server and the broker, and the vehicles. ``allowed`` is the newest round that they may answer.

    ``changes`` are keys of the server's configuration.
    """

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        *,
        rounds: int,
        seed: int = 0,
        kind: Literal["mosquitto", "nats"] = "mosquitto",
        **changes: object,
    ) -> None:
        self.processes, self.rng, self.rounds, self.allowed = processes, random.Random(seed), rounds, rounds
        self.broker = embedded.start(folder / "broker", kind=kind)
        contributors = {name: list(vehicles) for name, vehicles in REGIONS.items()}
        self.config: ServerConfig = configuration(
            folder,
            broker={"host": self.broker.host, "port": self.broker.port, "embedded": "none"},
            rounds={"total": rounds, "quorum": 1, "contributors": contributors},
            **changes,
        )
        self.file = folder / "server.json"
        self.file.write_text(dump(self.config))
        place = Place(self.config.data_dir, FLEET, self.config.task)
        for region, names in REGIONS.items():
            for name in names:
                registry.enrol(place, name, region=region, public_key=key_of(name).public, now_s=1.0)
        self.server = self.start_server()
        self.loop = Loop(rng=self.rng).start()
        self.vehicles: list[Vehicle] = []
        self._resend_at_s = 0.0
        self._due: dict[tuple[str, int], float] = {}

    def start_server(self, *, before: tuple[str, ...] = ()) -> "subprocess.Popen[bytes]":
        command = [*before, sys.executable, "-m", "fedfleet.fleet_server", "--config-json", self.file]
        self.started_at_s = time.time()
        self.server = self.processes.start(command, env={"PYTHONPATH": python_path()})
        return self.server

    def drive(self) -> None:
        """Connect all vehicles; they need the server's key, so the server has begun before."""
        public = self.config.data_dir / "server.pub"
        assert pace(public.exists, lambda: None, timeout_s=PATIENCE_S), self.processes.log(self.server)
        for region, names in REGIONS.items():
            for name in names:
                vehicle = Vehicle(name, region, TASK_ID, bytes.fromhex(public.read_text()))
                vehicle.link = self.loop.connect(
                    self.broker.host,
                    self.broker.port,
                    client_id=name,
                    sink=vehicle.events.append,
                    options=Options(backoff=Backoff(cap_s=0.5)),
                )
                vehicle.is_mute = True  # it answers when `step` lets it
                self.vehicles.append(vehicle)

    def step(self) -> None:
        """Let every vehicle handle what came, train for a while, and now and then send again what has no receipt."""
        now = time.monotonic()
        for vehicle in self.vehicles:
            vehicle.step()
            for number in sorted(set(vehicle.plans) - vehicle.answered):
                if number > self.allowed:
                    continue
                due = self._due.setdefault((vehicle.name, number), now + self.rng.uniform(0.0, THINK_S))
                if now >= due:
                    vehicle.reply(vehicle.plans[number])
        if now > self._resend_at_s:
            self._resend_at_s = now + RESEND_S
            for vehicle in self.vehicles:
                vehicle.resend()

    def run_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        pace(lambda: time.monotonic() >= end, self.step, timeout_s=seconds + 1)

    def run_until(self, condition: Callable[[], bool], what: str) -> None:
        """Go on until the condition holds, which is looked at now and then."""
        seen = [0.0]

        def holds() -> bool:
            if time.monotonic() < seen[0]:
                return False
            found = condition()
            seen[0] = time.monotonic() + LOOK_S
            return found

        assert pace(holds, self.step, timeout_s=PATIENCE_S), f"{what}\n{self.processes.log(self.server)}"

    def shown(self) -> dict[str, Any]:
        try:
            return status.snapshot(self.config.data_dir, time.time())
        except UsageError:
            return {"round": 0, "is_done": False, "updates": 0, "server_started_at_s": 0.0}

    def look(self) -> "Look":
        """What the store of the running server says of the newest round, without the rest of a snapshot."""
        assert self.server.poll() is None, self.processes.log(self.server)
        try:
            store = open_reader(self.config.data_dir)
        except UsageError:
            return Look(0.0, 0, frozenset(), 0)
        try:
            with store.read() as connection:
                return _look(connection)
        finally:
            store.close()

    def is_up(self) -> bool:
        """Whether the newest server process has opened the store."""
        return self.look().started_at_s >= self.started_at_s

    def is_done(self) -> bool:
        """Whether the last round is over."""
        look = self.look()
        return look.round >= self.rounds and look.states <= {"published", "abandoned"}

    def kill_server(self) -> None:
        """Kill -9 the server and start another at once."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait(10)
        self.start_server()

    def kill_broker(self) -> None:
        """Kill -9 the broker, and start it again a moment later."""
        self.broker.kill()
        self.run_for(self.rng.uniform(0.0, 0.2))
        self.broker.restart()

    def finish(self) -> None:
        """Run the rest, until every vehicle has its last settlement."""
        self.allowed = self.rounds
        self.run_until(self.is_done, "all rounds are done")
        self.run_until(
            lambda: all(max(v.settlements, default=0) == self.rounds and not v.outbox for v in self.vehicles),
            "every vehicle has its last settlement",
        )

    def close(self) -> None:
        self.loop.stop()
        self.broker.stop()


@dataclass(frozen=True)
class Look:
    """When the server last opened its store; number and states of the newest round; updates that it has."""

    started_at_s: float
    round: int
    states: frozenset[str]
    received: int

    @property
    def point(self) -> str:
        """Where in a round this is."""
        if not self.round:
            return "before the first round"
        if self.states & {"closing", "aggregated", "evaluated"}:
            return "closing"
        if "open" not in self.states:
            return "between rounds"
        return "in mid-round" if 0 < self.received < len(ALL) else "round open"


def _look(connection: Connection) -> Look:
    current = store_rounds.current(connection)
    number = next((one.plan.round for one in current.values()), 0)
    mine = select(func.count()).select_from(schema.update).where(schema.update.c.round == number)
    start = properties(connection).get(START)
    return Look(
        json.loads(start)["started_at_s"] if start else 0.0,
        number,
        frozenset(one.state for one in current.values()),
        connection.execute(mine).scalar_one(),
    )


@dataclass(frozen=True)
class Plan:
    """How often who is killed. Half of the kills wait for the rounds to get on, the others come at any moment."""

    server: int
    broker: int

    @property
    def total(self) -> int:
        """All kills."""
        return self.server + self.broker


def shake(site: Site, plan: Plan, *, heard: Callable[[int], None] = lambda _: None) -> Counter[str]:
    """Kill by a shuffled list at random points, then let the rest run; count where the kills came.

    ``heard`` is told the number of kills so far. The vehicles may run at most one round ahead of the kills, so that
    these are spread over the whole run.
    """
    site.drive()
    victims = ["server"] * plan.server + ["broker"] * plan.broker
    site.rng.shuffle(victims)
    points: Counter[str] = Counter()
    for number, victim in enumerate(victims):
        due = 1 + number * site.rounds // plan.total
        site.allowed = due
        if site.rng.random() < 0.5:
            site.run_until(lambda due=due: site.is_up() and site.look().round >= due, f"round {due} is open")  # type: ignore[misc]
            site.run_for(site.rng.uniform(0.0, THINK_S))
        else:
            site.run_for(site.rng.uniform(0.0, 1.0))
        points[_where(site, victim)] += 1
        (site.kill_server if victim == "server" else site.kill_broker)()
        heard(number + 1)
    site.finish()
    return points


def _where(site: Site, victim: str) -> str:
    return f"{victim}: {'server starting' if not site.is_up() else site.look().point}"


@dataclass(frozen=True)
class Told:
    """What the store and the vehicles say when all is over.

    ``versions`` are the digests of vector and file of every version, ``vector`` the bytes of the newest.
    """

    lost: int
    doubled: int
    versions: tuple[tuple[int, str, str], ...]
    vector: bytes
    rounds: Mapping[str, int]


def tell(site: Site) -> Told:
    """Count what was lost and what counts twice, over all vehicles and rounds.

    Lost: an update that a vehicle has a receipt for and the store lacks, or that was not folded. Doubled: one that
    is in the audit chain or among the members of rounds more than once, or a vehicle folded twice in a round.
    """
    store = open_reader(site.config.data_dir)
    try:
        with store.read() as connection:
            folded = _folded(connection)
            stored = set(connection.execute(select(schema.update.c.id)).scalars())
            audited = Counter(connection.execute(select(schema.audit.c.update_id)).scalars())
            members = Counter(connection.execute(select(schema.member.c.update_id)).scalars())
            columns = (schema.model.c.version, schema.model.c.vector_sha256, schema.model.c.onnx_sha256)
            rows = connection.execute(select(*columns).order_by(schema.model.c.version)).all()
            query = select(schema.model.c.vector).order_by(schema.model.c.version.desc()).limit(1)
            vector = bytes(connection.execute(query).scalar_one())
            states = Counter(one.state for one in store_rounds.rounds(connection))
    finally:
        store.close()
    wanted = {(name, number) for name in ALL for number in range(1, site.rounds + 1)}
    promised = {r.update for v in site.vehicles for r in v.receipts if r.outcome == "stored" and r.update}
    lost = len(promised - stored) + len(wanted - set(folded)) + len(stored - set(audited))
    doubled = sum(times - 1 for found in (folded, audited, members) for times in found.values())
    return Told(lost, doubled, tuple((r[0], r[1], r[2]) for r in rows), vector, dict(states))


def _folded(connection: Connection) -> Counter[tuple[str, int]]:
    columns = (schema.update.c.vehicle, schema.update.c.round)
    rows = connection.execute(select(*columns).where(schema.update.c.fate == "folded"))
    return Counter((row.vehicle, row.round) for row in rows)


def python_path() -> str:
    """The path for child processes: the tests' modules, besides what we were told ourselves."""
    return os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH", ""))))
