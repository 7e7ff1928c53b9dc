"""A fleet in virtual time: the shipped server and agents over the memory link, killed where a scenario says.

Only the trainer and the clocks are stand-ins. Everything is drawn from the seed: the same seed gives the same bytes.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import server_world
from server_world import FLEET, INPUTS, SIZE, TASK, TRUTH, answer, configuration
from sim_scenario import REGIONS, Driver, Scenario
from sqlalchemy import Connection

from fedfleet.fleet_server import store_vehicles
from fedfleet.fleet_server.assembly import Parts, assemble, prepare
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.server import Server
from fedfleet.fleet_server.store import Store
from fedfleet.link.inbox import Inbox
from fedfleet.link.memory import Faults, MemoryBroker, MemoryLink
from fedfleet.link.port import Delivery, Event, Sink, Will
from fedfleet.models import prepared
from fedfleet.models.task import Samples
from fedfleet.protocol.ids import SERVER, task_id
from fedfleet.vehicle_agent import actions as act
from fedfleet.vehicle_agent import events as ev
from fedfleet.vehicle_agent.config import FleetConfig
from fedfleet.vehicle_agent.fleet import Fleet, World
from fedfleet.vehicle_agent.jobs import Job, Told
from fedfleet.vehicle_agent.journal import Journal

START_S = 1_700_000_000.0
INBOX = 100_000
Floats = server_world.Floats


class Killed(BaseException):
    """The process is gone, as by kill -9."""


class MortalStore(Store):
    """A store whose process dies at a commit: after the ``n``-th for n > 0, just before it for n < 0."""

    def __init__(self, store: Store, kill_at: int | None) -> None:
        self.__dict__.update(vars(store))
        self.kill_at, self._commits = kill_at, 0

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with super().write() as connection:
            yield connection
            self._commits += 1
            if self.kill_at == -self._commits:
                raise Killed("before a commit")
        if self.kill_at == self._commits:
            raise Killed("after a commit")


class MortalLink:
    """A vehicle's link; its process dies at the n-th word to the broker, before it is said."""

    def __init__(self, link: MemoryLink, kill_at: int | None) -> None:
        self._link, self.kill_at, self._words = link, kill_at, 0

    def _count(self) -> None:
        self._words += 1
        if self._words == self.kill_at:
            raise Killed("a word to the broker")

    @property
    def max_payload_bytes(self) -> int:
        return self._link.max_payload_bytes

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        self._count()
        return self._link.publish(topic, payload, qos=qos, retain=retain)

    def ack(self, delivery: Delivery) -> None:
        self._count()
        self._link.ack(delivery)

    def subscribe(self, topic_filter: str, *, qos: int = 1) -> None:
        self._link.subscribe(topic_filter, qos=qos)

    def unsubscribe(self, topic_filter: str) -> None:
        self._link.unsubscribe(topic_filter)

    def close(self) -> None:
        self._link.close()


def trained(base: Floats, job_seed: int, *, is_bad: bool) -> Floats:
    """The change that the stand-in finds: towards the truth with noise, or away from it."""
    noise = np.random.default_rng(job_seed).normal(0, 0.05, SIZE)
    aim = -9.0 * TRUTH if is_bad else 0.15 * (TRUTH - base)
    return (aim + noise).astype(np.float32)


class StandIn:
    """Trains without torch, in virtual time; a silent driver's training never ends."""

    def __init__(self, machine: "Machine") -> None:
        self._machine = machine
        self._jobs: list[tuple[float | None, Job]] = []

    def submit(self, job: Job) -> None:
        self._jobs.append((None, job))

    def cancel(self, job_id: str) -> None:
        self._jobs = [(due, job) for due, job in self._jobs if job.id != job_id]

    def poll(self, now_s: float) -> list[Told]:
        driver = self._machine.driver
        if driver.is_silent:
            return []
        told, waiting = [], []
        for due_s, job in self._jobs:
            if due_s is None:
                waiting.append((now_s + driver.training_s, job))
            elif now_s < due_s:
                waiting.append((due_s, job))
            else:
                delta = trained(np.load(job.base), job.seed, is_bad=driver.is_bad)
                self._machine.ledger[int(job.id.partition("/")[2].partition("-")[0])] = delta
                np.save(job.out, delta)
                told.append(Told(kind="done", id=job.id, steps=2, examples=8 + job.seed % 5))
        self._jobs = waiting
        return told

    def close(self) -> None:
        self._jobs.clear()


@dataclass
class Machine:
    """What of a vehicle outlives its process: its folder, and the books that the invariants are checked with.

    ``ledger`` has the change of each round that was trained for, ``journaled`` the round and the sealed bytes of each
    update, ``told`` the fate and reason that the vehicle took for it.
    """

    name: str
    driver: Driver
    kills: list[int]
    skew_s: float
    fleet: Fleet | None = None
    link: MortalLink | None = None
    ledger: dict[int, Floats] = field(default_factory=dict)
    journaled: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    told: dict[str, tuple[str, str]] = field(default_factory=dict)
    bases: list[int] = field(default_factory=list)
    releases: list[int] = field(default_factory=list)


class Template:
    """The files that all runs begin with: an enrolled fleet and the first model."""

    def __init__(self, folder: Path, regions: Mapping[str, tuple[str, ...]] = REGIONS) -> None:
        self.folder, self.regions = folder, regions
        config = configuration(folder, regions=regions)
        parts = prepare(config, now_s=START_S, draw=lambda n: b"k" * n)
        self.server_key = parts.party.key.public
        with parts.store.write() as connection:
            for region, names in regions.items():
                for name in names:
                    key = sha256(name.encode()).digest()
                    journal = Journal(
                        folder / "agents" / name,
                        vehicle=name,
                        task=task_id(TASK.name),
                        epoch=int.from_bytes(key[:6], "big"),
                        seed=key,
                    )
                    journal.assign(region, self.server_key)
                    store_vehicles.enrol(
                        connection, name, region=region, public_key=journal.key.public, now_s=START_S
                    )
                    journal.close()
        parts.close()
        inputs = np.random.default_rng(3).normal(size=(8, INPUTS)).astype(np.float32)
        meta = prepared.Meta(
            task=TASK.name,
            task_version=TASK.version,
            drives=("north/d1",),
            parts=("train",),
            counts={"train_samples": 8, "train_judged": 8},
            problems={},
        )
        samples = Samples(inputs, answer(inputs), np.ones(8, np.bool_))
        prepared.write(folder / "data", meta, samples={"train": samples})

    def copy(self, folder: Path) -> None:
        """Make the files of one run; validation and training data are shared."""
        shutil.copytree(
            self.folder / "server", folder / "server", ignore=shutil.ignore_patterns("export", "*.lock")
        )
        shutil.copytree(self.folder / "agents", folder / "agents")


class Sim:
    """One run. ``step`` lets a moment pass; what is observed is checked by `sim_checks`."""

    def __init__(self, scenario: Scenario, template: Template, folder: Path) -> None:
        self.scenario, self.template, self.folder = scenario, template, folder
        template.copy(folder)
        self.chance = random.Random(f"run {scenario.seed}")
        self.now_s, self.server_skew_s = 0.0, 0.0
        self.broker = MemoryBroker(scenario.seed, faults=scenario.faults)
        self.config = self._config()
        self.server_kills = list(scenario.server_kills)
        self.server: Server | None = None
        self.parts: Parts | None = None
        self.store: MortalStore | None = None
        self.inbox: Inbox[Event] = Inbox(INBOX)
        self.counts: Counter[str] = Counter()
        self.machines = {
            name: Machine(name, driver, list(scenario.vehicle_kills[name]), driver.skew_s)
            for name, driver in scenario.drivers.items()
        }
        self.lines: list[str] = []

    def _config(self) -> ServerConfig:
        base = configuration(self.template.folder, regions=REGIONS)
        content: dict[str, Any] = {
            "rounds": self.scenario.rounds,
            "data_dir": self.folder / "server",
            "gate": {"tolerance": 0.1},
            "release_policy": "no-worse-than-released",
            "enrolment": [],
        }
        return ServerConfig.model_validate(
            {name: getattr(base, name) for name in type(base).model_fields} | content
        )

    # --- the server ---

    @property
    def server_s(self) -> float:
        """The server's wall clock."""
        return START_S + self.now_s + self.server_skew_s

    def start_server(self) -> None:
        """Start it, or again after a kill."""
        kill_at = self.server_kills.pop(0) if self.server_kills else None
        self.inbox = Inbox(INBOX)
        try:
            self.parts = prepare(self.config, now_s=self.server_s, draw=lambda n: b"k" * n)
            self.store = store = MortalStore(self.parts.store, kill_at)
            self.parts.store = self.parts.coordinator.store = self.parts.ingest.store = store
            self.server = assemble(self.parts, self.broker.connect(SERVER, self.inbox.put))
        except Killed:
            self.kill_server()

    def kill_server(self) -> None:
        """As kill -9 does."""
        self.counts["server kills"] += 1
        self.broker.kill(SERVER)
        if self.parts is not None:
            self.parts.close()
        self.server = self.parts = None

    def _serve(self) -> None:
        if self.server is None:
            return
        try:
            self.server.handle(self.inbox.drain(self.chance.choice((1, 3, 32, 32)), 0.0), self.server_s)
            self.server.tick(self.server_s, self.now_s)
        except Killed:
            self.kill_server()

    # --- the vehicles ---

    def start_vehicle(self, machine: Machine) -> None:
        """Switch a vehicle on."""
        config = FleetConfig.model_validate(
            {
                "fleet": FLEET,
                "task": "server_world:TASK",
                "work_dir": self.folder / "agents",
                "vehicles": [{"vehicle": machine.name, "data_dir": self.template.folder / "data"}],
                "inference": False,
                "tick_s": 0.01,
                "metrics_interval_s": 1000.0,
                "resend_min_s": 2.0,
                "resend_cap_s": 8.0,
                "blob_timeout_s": 4.0,
                "training_limit_s": 100.0,
            }
        )
        kill_at = machine.kills.pop(0) if machine.kills else None

        def connect(client_id: str, sink: Sink, *, will: Will) -> MortalLink:
            machine.link = MortalLink(self.broker.connect(client_id, sink, will=will), kill_at)
            return machine.link

        world = World(
            lambda: START_S + self.now_s + machine.skew_s,
            lambda: self.now_s,
            self.chance.getrandbits,
            lambda: 1,
            self.lines.append,
        )
        fleet = Fleet(config, connect, world, trainer=StandIn(machine))
        fleet.vehicles[0].observer = self._observer(machine)
        machine.fleet = fleet
        self.note(machine)
        try:
            fleet.start()
        except Killed:
            self.kill_vehicle(machine)

    def kill_vehicle(self, machine: Machine) -> None:
        """As kill -9 does."""
        self.counts["vehicle kills"] += 1
        self.broker.kill(machine.name)
        if machine.fleet is not None:
            self.note(machine)
            machine.fleet.vehicles[0].parts.journal.close()
        machine.fleet = None

    def _observer(self, machine: Machine) -> Callable[[ev.Event, float, tuple[act.Action, ...]], None]:
        def observe(event: ev.Event, _now_s: float, actions: tuple[act.Action, ...]) -> None:
            if isinstance(event, ev.BaseReady):
                machine.bases.append(event.version)
            if isinstance(event, ev.Activated):
                machine.releases.append(event.number)
            for action in actions:
                if isinstance(action, act.Settle):
                    self.note(machine)
                    update = next(u for u in machine.journaled if u.endswith(f":{action.sequence}"))
                    machine.told[update] = (action.fate, action.reason)

        return observe

    def note(self, machine: Machine) -> None:
        """Write down what the journal holds."""
        if machine.fleet is None:
            return
        journal = machine.fleet.vehicles[0].parts.journal
        for pending in journal.outbox:
            entry = journal.sealed(pending.sequence)
            if pending.update not in machine.journaled and entry is not None:
                machine.journaled[pending.update] = (pending.round, entry.sealed)

    def _drive(self, machine: Machine) -> None:
        if machine.fleet is None:
            return
        try:
            machine.fleet.turn(0.0)
        except Killed:
            self.kill_vehicle(machine)

    # --- time ---

    def step(self, dt_s: float, *, is_calm: bool = False) -> None:
        """Let time pass, then let everyone act."""
        before_s, self.now_s = self.now_s, self.now_s + dt_s
        if not is_calm:
            self._disturb(before_s)
        if self.server is None and (is_calm or self.chance.random() < 0.5):
            self.start_server()
        for machine in self.machines.values():
            away = any(start <= self.now_s < end for start, end in machine.driver.away) and not is_calm
            if machine.fleet is None and not away:
                self.start_vehicle(machine)
        for _ in range(2):
            self.broker.pump(None if is_calm else self.chance.choice((None, None, 5)))
            self._serve()
            self.broker.pump(None if is_calm else self.chance.choice((None, None, 5)))
            for machine in self.machines.values():
                self._drive(machine)

    def _disturb(self, before_s: float) -> None:
        for at_s, whose, by_s in self.scenario.jumps:
            if before_s < at_s <= self.now_s:
                self.counts["jumps"] += 1
                if whose:
                    self.machines[whose].skew_s += by_s
                else:
                    self.server_skew_s += by_s
        for at_s in self.scenario.losses:
            if before_s < at_s <= self.now_s:
                self.counts["broker losses"] += 1
                self.broker.stop(lose=True)
                self.broker.start()
        for machine in self.machines.values():
            leaves = any(before_s < start <= self.now_s for start, _ in machine.driver.away)
            if leaves and machine.fleet is not None:
                self.kill_vehicle(machine)

    def calm(self) -> None:
        """End all faults: nobody is killed or away any more, and all trainings end."""
        self.broker.faults = Faults()
        self.server_kills.clear()
        if self.store is not None:
            self.store.kill_at = None
        for machine in self.machines.values():
            machine.kills.clear()
            machine.driver = Driver(1.0, (), 0.0, is_silent=False, is_bad=False)
            machine.skew_s = self.server_skew_s
            if machine.link is not None:
                machine.link.kill_at = None

    def close(self) -> None:
        """Close all files."""
        for machine in self.machines.values():
            if machine.fleet is not None:
                self.broker.kill(machine.name)
                machine.fleet.vehicles[0].parts.journal.close()
        if self.parts is not None:
            self.parts.close()
