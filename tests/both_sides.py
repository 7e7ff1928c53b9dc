"""The real server and real vehicles at one broker in memory, driven by hand; only the training is made up."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import server_world as sw

from fedfleet.fleet_server import store_vehicles
from fedfleet.fleet_server.assembly import assemble, prepare
from fedfleet.link.inbox import Inbox
from fedfleet.link.memory import MemoryBroker
from fedfleet.link.port import Event
from fedfleet.models import prepared
from fedfleet.models.task import Floats, Samples
from fedfleet.protocol.ids import SERVER
from fedfleet.vehicle_agent import config as configs
from fedfleet.vehicle_agent.fleet import Fleet, World
from fedfleet.vehicle_agent.jobs import Job, Told
from fedfleet.vehicle_agent.vehicle import Vehicle

START_S = 1_000.0
Target = Callable[[str], Floats]
"""What a vehicle's data say the weights are."""


@dataclass
class Pull:
    """A trainer without a process: half of the way from the base to the vehicle's target, at once.

    Those who are ``slow`` tell of it when they are so no more.
    """

    target: Target
    slow: set[str] = field(default_factory=set)
    told: list[Told] = field(default_factory=list)

    def submit(self, job: Job) -> None:
        base = np.load(job.base)
        np.save(job.out, ((self.target(job.id.partition("/")[0]) - base) * 0.5).astype(np.float32))
        self.told.append(Told(kind="done", id=job.id, steps=3, examples=10))

    def cancel(self, job_id: str) -> None:
        self.told = [told for told in self.told if told.id != job_id]

    def poll(self, now_s: float) -> list[Told]:
        assert now_s >= 0
        told = [one for one in self.told if one.id.partition("/")[0] not in self.slow]
        self.told = [one for one in self.told if one not in told]
        return told

    def close(self) -> None:
        self.told.clear()


class Both:
    """A server, and one fleet process with all its vehicles."""

    start_s = START_S

    def __init__(
        self,
        folder: Path,
        *,
        regions: Mapping[str, tuple[str, ...]] = sw.REGIONS,
        target: Target = lambda _: sw.TRUTH,
        server: Mapping[str, object] | None = None,
        agent: Mapping[str, object] | None = None,
    ) -> None:
        self.folder, self.regions, self.target, self.now_s = folder, regions, target, self.start_s
        self.broker = MemoryBroker(3)
        self.config = sw.configuration(folder, regions=regions, **(server or {}))
        self.agent = dict(agent or {})
        self.codes: dict[str, str] = {}
        self.start_server()
        self.trainer = Pull(target)
        self.fleet = self.start_fleet()

    def start_server(self) -> None:
        self.inbox: Inbox[Event] = Inbox(10_000)
        self.parts = prepare(self.config, now_s=self.now_s, draw=lambda n: b"k" * n)
        self.server = assemble(self.parts, self.broker.connect(SERVER, self.inbox.put))

    def start_fleet(self) -> Fleet:
        vehicles = []
        for region, names in self.regions.items():
            vehicles += [
                {
                    "vehicle": name,
                    "data_dir": str(self._data(name, region)),
                    "enrolment_code": self.codes.get(name, sw.code(name)),
                }
                for name in names
            ]
        told = {
            "fleet": sw.FLEET,
            "task": "server_world:TASK",
            "work_dir": str(self.folder / "vehicles"),
            "vehicles": vehicles,
            "inference": False,
            "metrics_interval_s": 5.0,
            **self.agent,
        }
        path = self.folder / "fleet.json"
        path.write_text(json.dumps(told))
        bits = lambda n: int.from_bytes(sha256(f"{n}:{self._draw()}".encode()).digest() * 8, "big") % 2**n  # noqa: E731
        world = self.world(World(lambda: self.now_s, lambda: self.now_s, bits, lambda: 1, lambda _: None))
        fleet = Fleet(configs.load("fleet", path), self.broker.connect, world, trainer=self.trainer)
        fleet.start()
        return fleet

    def world(self, world: World) -> World:
        """What the vehicles know of the world; a test may give them another."""
        return world

    _draws = 0

    def _draw(self) -> int:
        self._draws += 1
        return self._draws

    def _data(self, name: str, region: str) -> Path:
        folder = self.folder / "data" / name
        if not folder.exists():
            rng = np.random.default_rng(list(name.encode()))
            inputs = rng.normal(size=(8, sw.INPUTS)).astype(np.float32)
            samples = Samples(inputs, sw.answer(inputs), np.ones(8, np.bool_))
            meta = prepared.Meta(
                task=sw.TASK.name,
                task_version=sw.TASK.version,
                drives=(f"{region}/{name}",),
                parts=("train",),
                counts={"train_samples": 8, "train_judged": 8},
                problems={},
            )
            folder.parent.mkdir(exist_ok=True)
            prepared.write(folder, meta, samples={"train": samples})
        return folder

    @property
    def vehicles(self) -> dict[str, Vehicle]:
        return {vehicle.name: vehicle for vehicle in self.fleet.vehicles}

    @property
    def version(self) -> int:
        return self.parts.coordinator.model.version

    def move(self, vehicle: str, region: str) -> None:
        """Put a vehicle into another region, and let it ask anew."""
        with self.parts.store.write() as connection:
            store_vehicles.move(connection, vehicle, region=region)

    def turn(self, *, after_s: float = 0.3) -> None:
        self.now_s += after_s
        self.broker.pump()
        self.fleet.turn(0.0)
        self.broker.pump()
        self.server.handle(self.inbox.drain(10_000, 0.0), self.now_s)
        self.server.tick(self.now_s)

    def run_until(self, condition: Callable[[], object], *, turns: int = 500) -> None:
        for _ in range(turns):
            if condition():
                return
            self.turn()
        raise AssertionError(
            f"not within {turns} turns; refusals: {[dict(v.refusals) for v in self.fleet.vehicles]}"
        )

    def close(self) -> None:
        self.fleet.stop()
        self.parts.close()
