"""kill -9 of the server and of a real Mosquitto in mid-round: nothing stored is lost, nothing counts twice."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_world import FLEET, REGIONS, Vehicle, configuration, dump, key_of, pace

from fedfleet.fleet_server import registry, store_models, store_updates
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.registry import Place
from fedfleet.fleet_server.status import snapshot
from fedfleet.fleet_server.store import open_reader
from fedfleet.link import embedded
from fedfleet.link.options import Backoff, Options
from fedfleet.link.paho import Loop
from fedfleet.protocol.errors import UsageError

TASK_ID = "linear-test"
TESTS = Path(__file__).parent
PATIENCE_S = 120.0
ALL = tuple(name for names in REGIONS.values() for name in names)


class Site:
    """A server process and a real broker, both of which may be killed; vehicles that live through it all."""

    def __init__(self, folder: Path, processes: Any, *, rounds: int, seed: int = 0) -> None:
        self.processes, self.rng = processes, random.Random(seed)
        self.broker = embedded.start(folder / "broker", kind="mosquitto")
        contributors = {name: list(vehicles) for name, vehicles in REGIONS.items()}
        self.config: ServerConfig = configuration(
            folder,
            broker={"host": self.broker.host, "port": self.broker.port, "embedded": "none"},
            rounds={"total": rounds, "quorum": 1, "contributors": contributors},
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
        self.server = self.processes.start(command, env={"PYTHONPATH": str(TESTS)})
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
        for vehicle in self.vehicles:
            vehicle.step()
            for number in sorted(set(vehicle.plans) - vehicle.answered):
                begun = time.monotonic()
                due = self._due.setdefault((vehicle.name, number), begun + self.rng.uniform(0.0, 0.3))
                if time.monotonic() >= due:
                    vehicle.reply(vehicle.plans[number])
        if time.monotonic() > self._resend_at_s:
            self._resend_at_s = time.monotonic() + 0.3
            for vehicle in self.vehicles:
                vehicle.resend()

    def run_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        pace(lambda: time.monotonic() >= end, self.step, timeout_s=seconds + 1)

    def run_until(self, condition: Callable[[], bool], what: str) -> None:
        assert pace(condition, self.step, timeout_s=PATIENCE_S), f"{what}\n{self.processes.log(self.server)}"

    def shown(self) -> dict[str, Any]:
        try:
            return snapshot(self.config.data_dir, time.time())
        except UsageError:
            return {"round": 0, "is_done": False, "updates": 0, "server_started_at_s": 0.0}

    def is_in_mid_round(self, reached: int) -> bool:
        """Whether a round from this one on is open and has some, but not all, of its updates."""
        shown = self.shown()
        received = sum(region["received"] for region in shown.get("regions", {}).values())
        return shown["round"] >= reached and 0 < received < len(ALL)

    def kill_server(self) -> None:
        """Kill the server in mid-round and start another at once."""
        self.server.send_signal(signal.SIGKILL)
        self.server.wait(10)
        begun = time.time()
        self.start_server()
        self.run_until(lambda: self.shown()["server_started_at_s"] > begun, "server is up again")

    def kill_broker(self) -> None:
        self.broker.kill()
        self.run_for(self.rng.uniform(0.0, 0.2))
        self.broker.restart()

    def close(self) -> None:
        self.loop.stop()
        self.broker.stop()


@pytest.fixture
def build(tmp_path: Path, processes: Any, mosquitto_binary: Path) -> Iterator[Callable[..., Site]]:
    """Make sites; the binary is only asked for so that the test is skipped without it."""
    assert mosquitto_binary.exists()
    made: list[Site] = []

    def site(**arguments: int) -> Site:
        made.append(Site(tmp_path / str(len(made)), processes, **arguments))
        return made[-1]

    yield site
    for each in made:
        each.close()


def calm_vector(folder: Path, rounds: int) -> str:
    """The final vector of an undisturbed run over the memory link."""
    from test_coordinator import World

    contributors = {name: list(vehicles) for name, vehicles in REGIONS.items()}
    world = World(configuration(folder, rounds={"total": rounds, "quorum": 1, "contributors": contributors}))
    world.drive(*ALL)
    world.turn(rounds * 8)
    assert world.snapshot()["is_done"]
    found = world.vector()
    world.parts.close()
    return found


def check(site: Site, rounds: int, vector: str) -> None:
    """Every update of every vehicle is stored once and folded once, and the model is that of the calm run."""
    store = open_reader(site.config.data_dir)
    try:
        with store.read() as connection:
            model = store_models.newest_model(connection)
            assert store_updates.audit_head(connection)[0] == len(ALL) * rounds
            for number in range(1, rounds + 1):
                for region, names in REGIONS.items():
                    fates = store_updates.settled(connection, round_=number, region=region)
                    assert sorted(id_.vehicle for id_ in fates) == sorted(names)
                    assert {fate for fate, _ in fates.values()} == {"folded"}
    finally:
        store.close()
    assert model is not None
    assert model.version == rounds
    assert model.vector_sha256 == vector
    for vehicle in site.vehicles:
        assert max(vehicle.settlements) == rounds
        assert not vehicle.outbox


def shake(site: Site, *, server_kills: int, broker_kills: int, rounds: int) -> None:
    """Kill by a shuffled list, each time a random moment into a running round, then let the rest run."""
    site.drive()
    victims = ["server"] * server_kills + ["broker"] * broker_kills
    site.rng.shuffle(victims)
    for number, victim in enumerate(victims):
        reached = 1 + number * rounds // len(victims)
        site.run_until(lambda reached=reached: site.is_in_mid_round(reached), f"mid-round {reached}")  # type: ignore[misc]
        site.run_for(site.rng.uniform(0.0, 0.1))
        assert not site.shown()["is_done"], f"{number} of {len(victims)} kills came in time"
        (site.kill_server if victim == "server" else site.kill_broker)()
    site.run_until(lambda: bool(site.shown()["is_done"]), "all rounds are done")
    site.run_until(
        lambda: all(max(v.settlements, default=0) == rounds and not v.outbox for v in site.vehicles),
        "every vehicle has its last settlement",
    )


def test_some_kills_lose_nothing(build: Callable[..., Site], tmp_path: Path) -> None:
    rounds = 8
    site = build(rounds=rounds, seed=1)
    shake(site, server_kills=4, broker_kills=2, rounds=rounds)
    check(site, rounds, calm_vector(tmp_path / "calm", rounds))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_of_the_server_and_ten_of_the_broker_lose_nothing(
    build: Callable[..., Site], tmp_path: Path
) -> None:
    rounds = 40
    site = build(rounds=rounds, seed=2)
    shake(site, server_kills=20, broker_kills=10, rounds=rounds)
    check(site, rounds, calm_vector(tmp_path / "calm", rounds))
