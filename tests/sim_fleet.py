"""Many vehicles of one fleet process and the shipped server in virtual time, undisturbed: for benchmarks.

Only the clocks and the trainer are stand-ins; how long a training takes, and what it finds, is the caller's.
"""

import random
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from server_world import FLEET, Floats, configuration
from sim_world import START_S, Template

from fedfleet.fleet_server.assembly import assemble, prepare
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.link.inbox import Inbox
from fedfleet.link.memory import MemoryBroker
from fedfleet.link.port import Event
from fedfleet.protocol.ids import SERVER
from fedfleet.vehicle_agent.config import FleetConfig
from fedfleet.vehicle_agent.fleet import Fleet, World
from fedfleet.vehicle_agent.jobs import Job, Told

INBOX = 100_000
Train = Callable[[str, Floats, int], tuple[Floats, int]]
"""Of vehicle, base float32[M] and seed: the change float32[M], and the number of examples."""


class VirtualTrainers:
    """Trains in no time, and tells it when the vehicle would be done; ``duration_s`` of None: never."""

    def __init__(self, train: Train, duration_s: Callable[[str], float | None]) -> None:
        self._train, self._duration_s = train, duration_s
        self._waiting: list[Job] = []
        self._under: dict[str, tuple[float, Job]] = {}

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def cancel(self, job_id: str) -> None:
        self._waiting = [job for job in self._waiting if job.id != job_id]
        self._under.pop(job_id, None)

    def poll(self, now_s: float) -> list[Told]:
        for job in self._waiting:
            takes_s = self._duration_s(job.id.partition("/")[0])
            if takes_s is not None:
                self._under[job.id] = now_s + takes_s, job
        self._waiting.clear()
        return [self._finish(job) for due_s, job in list(self._under.values()) if due_s <= now_s]

    def _finish(self, job: Job) -> Told:
        del self._under[job.id]
        delta, examples = self._train(job.id.partition("/")[0], np.load(job.base), job.seed)
        np.save(job.out, delta)
        return Told(kind="done", id=job.id, steps=1, examples=examples)

    def close(self) -> None:
        self._waiting.clear()
        self._under.clear()


class VirtualFleet:
    """A server and its vehicles; ``step`` lets time pass, in seconds. A context manager: closes its files."""

    def __init__(
        self,
        folder: Path,
        template: Template,
        trainers: VirtualTrainers,
        *,
        rounds: dict[str, Any],
        names: tuple[str, ...] | None = None,
        **changes: Any,
    ) -> None:
        template.copy(folder)
        self._folder, self._template = folder, template
        base = configuration(template.folder, regions=template.regions)
        told = {name: getattr(base, name) for name in type(base).model_fields}
        told |= {"rounds": rounds, "data_dir": folder / "server", "enrolment": []}
        self.now_s, self._chance = 0.0, random.Random("virtual fleet")
        self.broker, self._inbox = MemoryBroker(), Inbox[Event](INBOX)
        self.broker.max_pending = INBOX
        config = ServerConfig.model_validate(told | changes)
        self.parts = prepare(config, now_s=START_S, draw=lambda n: b"k" * n)
        self.server = assemble(self.parts, self.broker.connect(SERVER, self._inbox.put))
        everyone = tuple(name for names in template.regions.values() for name in names)
        self._joined: list[Fleet] = []
        self.fleet = self.join(everyone if names is None else names, trainers)

    def join(self, names: tuple[str, ...], trainers: VirtualTrainers) -> Fleet:
        """Switch vehicles on, in a process of their own."""
        folder, template = self._folder, self._template
        told = {
            "fleet": FLEET,
            "task": "server_world:TASK",
            "work_dir": folder / "agents",
            "vehicles": [{"vehicle": name, "data_dir": template.folder / "data"} for name in names],
            "inference": False,
            "tick_s": 0.01,
            "metrics_interval_s": 1e6,
            "training_limit_s": 1e6,
        }
        world = World(self._wall, lambda: self.now_s, self._chance.getrandbits, lambda: 1, lambda _: None)
        fleet = Fleet(FleetConfig.model_validate(told), self.broker.connect, world, trainer=trainers)
        self._joined.append(fleet)
        fleet.start()
        return fleet

    def vanish(self, fleet: Fleet) -> None:
        """Switch vehicles off as a power cut does: what they have not sent yet stays in their journals."""
        self._joined.remove(fleet)
        for vehicle in fleet.vehicles:
            self.broker.kill(vehicle.name)
            vehicle.parts.journal.close()

    def _wall(self) -> float:
        return START_S + self.now_s

    def step(self, dt_s: float) -> None:
        """Let time pass, then let everyone act until all is quiet."""
        self.now_s += dt_s
        while True:
            handled = self.broker.pump()
            self.server.handle(self._inbox.drain(INBOX, 0.0), self._wall())
            self.server.tick(self._wall(), self.now_s)
            for fleet in self._joined:
                fleet.turn(0.0)
            if not handled:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fleet in self._joined:
            fleet.stop()
        self.parts.close()
