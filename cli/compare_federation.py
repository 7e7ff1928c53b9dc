"""The federated arm in one process: the shipped server and vehicles over the memory link, in virtual time.

Everything but the broker and the clock is what a fleet runs: store, rounds, codec, envelope, journals, settlements.
Contributor lists are fixed, so that the same seed gives the same model, here as over a real broker.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from fedfleet.cli import launch
from fedfleet.cli.compare_choice import Choice
from fedfleet.cli.compare_settings import ArmSettings, Rounds
from fedfleet.cli.config import Settings
from fedfleet.fleet_server import assembly, store_models, store_rounds
from fedfleet.fleet_server.coordinator import is_over
from fedfleet.fleet_server.server import Server
from fedfleet.fleet_server.status import snapshot
from fedfleet.link.inbox import Inbox
from fedfleet.link.memory import MemoryBroker
from fedfleet.link.port import Event
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import SERVER
from fedfleet.scenarios.partition import Partition
from fedfleet.vehicle_agent.fleet import Fleet, World
from fedfleet.vehicle_agent.jobs import Job, Told

__all__ = ["Federated", "configured", "run"]

START_S = 1_000_000_000.0
"""Where the virtual clock starts; any fixed time would do."""
STEP_S = 0.01
PATIENCE_S = 600.0
"""Virtual seconds without a published version after which something is wrong."""
INBOX_EVENTS = 100_000


@dataclass(frozen=True)
class Federated:
    """What came out: the model file that validation chose, its version, and the last one that was released.

    ``end`` is the server's last snapshot; the bytes are those that vehicles sent and received.
    """

    model: bytes
    version: int
    final: bytes
    end: Mapping[str, Any]
    bytes_up: int
    bytes_down: int


class InlineTrainers:
    """Trains in this process, one job a poll: what ``vehicle_agent.trainer`` does, without a process."""

    def __init__(self) -> None:
        from fedfleet.vehicle_agent.trainer import perform  # with torch

        self._perform = perform
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._waiting.append(job)

    def cancel(self, job_id: str) -> None:
        """Forget a job that waits."""
        self._waiting = deque(job for job in self._waiting if job.id != job_id)

    def poll(self, now_s: float) -> list[Told]:
        """Do the oldest job and return its end."""
        del now_s
        return [self._perform(self._waiting.popleft(), lambda _: None)] if self._waiting else []

    def close(self) -> None:
        """Forget all jobs."""
        self._waiting.clear()


@dataclass
class _Clock:
    now_s: float = START_S

    def read(self) -> float:
        return self.now_s


def configured(
    settings: Settings, parts: Partition, arms: ArmSettings, rounds: Rounds, *, codes: launch.Codes
) -> Settings:
    """Return the settings of a fleet that runs the federated arm: each round waits for all whom it asks."""
    regions: dict[str, tuple[str, ...]] = {}
    for vehicle, (region, _) in sorted(parts.vehicles.items()):
        regions[region] = (*regions.get(region, ()), vehicle)
    server, wanted = arms.federated, arms.wanted([len(vehicles) for vehicles in regions.values()])
    changed = {
        **dict(server.rounds),
        "total": rounds.count,
        "quorum": min(min(len(vehicles), wanted or len(vehicles)) for vehicles in regions.values()),
        "contributors": regions,
        "seed": settings.data.seed,
        "share_wanted": wanted,
    }
    enrolment = [
        {"vehicle": vehicle, "region": region, "code": codes[vehicle]}
        for vehicle, (region, _) in parts.vehicles.items()
    ]
    training = arms.local_training()
    whole = {**dict(server), "rounds": changed, "enrolment": enrolment, "training": training}
    agent = settings.agent.model_copy(update={"inference": False})
    return settings.model_copy(update={"server": type(server).model_validate(whole), "agent": agent})


def run(
    settings: Settings,
    parts: Partition,
    arms: ArmSettings,
    rounds: Rounds,
    *,
    tell: Callable[[int, int, str], None],
) -> Federated:
    """Run all rounds in virtual time; the same arguments give the same bytes.

    Raises UsageError, saying what the vehicles said, when the rounds come to a halt.
    """
    chance = random.Random(f"compare {settings.data.seed}")
    codes = {vehicle: SecretStr(f"{chance.getrandbits(128):032x}") for vehicle in sorted(parts.vehicles)}
    settings = configured(settings, parts, arms, rounds, codes=codes)
    clock, broker = _Clock(), MemoryBroker()
    with _server(settings, parts, clock, broker, chance) as (server, inbox):
        said: list[str] = []
        world = World(clock.read, clock.read, chance.getrandbits, lambda: 1, said.append)
        config = launch.fleet_config(settings, sorted(parts.vehicles), codes=codes)
        fleet = Fleet(config, broker.connect, world, trainer=InlineTrainers())
        choice = Choice(server.store.folder, fleet.task)
        try:
            fleet.start()
            choice.look()
            for done in _turns(server, inbox, broker, fleet, clock, said=said):
                choice.look()
                tell(done, rounds.count, f"round {done}")
            bytes_up = sum(vehicle.bytes_up for vehicle in fleet.vehicles)
            bytes_down = sum(vehicle.bytes_down for vehicle in fleet.vehicles)
        finally:
            fleet.stop()
    folder = launch.server_dir(settings)
    final, end = (folder / "model.onnx").read_bytes(), snapshot(folder, clock.now_s)
    return Federated(choice.model, choice.version, final, end, bytes_up, bytes_down)


@contextmanager
def _server(
    settings: Settings, parts: Partition, clock: _Clock, broker: MemoryBroker, chance: random.Random
) -> Iterator[tuple[Server, Inbox[Event]]]:
    config = launch.server_config(settings, sorted(parts.validation))
    made = assembly.prepare(config, now_s=clock.now_s, draw=chance.randbytes)
    try:
        inbox: Inbox[Event] = Inbox(INBOX_EVENTS)
        yield assembly.assemble(made, broker.connect(SERVER, inbox.put)), inbox
    finally:
        made.close()


def _turns(
    server: Server, inbox: Inbox[Event], broker: MemoryBroker, fleet: Fleet, clock: _Clock, *, said: list[str]
) -> Iterator[int]:
    """Let everyone act in turn until the last round is over and its model drives; yields each finished round."""
    finished, since_s = 0, clock.now_s
    while True:
        broker.pump()
        server.handle(inbox.drain(INBOX_EVENTS, 0.0), clock.now_s)
        server.tick(clock.now_s)
        broker.pump()
        fleet.turn(0.0)
        clock.now_s += STEP_S
        over = _rounds_over(server)
        if over > finished:
            finished, since_s = over, clock.now_s
            yield over
        if over >= server.coordinator.config.rounds.total and _all_current(server, fleet):
            return
        if clock.now_s - since_s > PATIENCE_S:
            why = said[-1] if said else "no vehicle said why"
            raise UsageError(f"the federated arm halts after round {finished}: {why}")


def _rounds_over(server: Server) -> int:
    with server.store.read() as connection:
        current = store_rounds.current(connection)
    newest = next((one.plan.round for one in current.values()), 0)
    return newest if not current or is_over(current) else newest - 1


def _all_current(server: Server, fleet: Fleet) -> bool:
    with server.store.read() as connection:
        released = store_models.newest_release(connection)
    actives = [vehicle.state.active for vehicle in fleet.vehicles]
    return released is not None and all(
        active is not None and active.number == released.number for active in actives
    )
