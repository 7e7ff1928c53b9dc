"""The processes of the demo: broker, server, three agents, one fleet; started, killed and stopped by process id."""

import secrets
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Self

from pydantic import SecretStr

from fedfleet.cli import launch, suits
from fedfleet.cli.config import Settings
from fedfleet.cli.data import held_out_jobs, jobs_of, prepare, split, test_dir, validation_dir
from fedfleet.cli.processes import Child, start
from fedfleet.fleet_server import registry
from fedfleet.link import embedded
from fedfleet.models import prepared
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import SigningKey
from fedfleet.scenarios.partition import Partition

__all__ = ["SABOTEUR", "DemoFleet"]

SABOTEUR = "saboteur"
"""An enrolled vehicle that the demo plays itself, to send a corrupt update through the broker."""
_SEPARATE_AGENTS = 3


class DemoFleet:
    """All processes of one demo. Leaving the ``with`` block stops every one of them."""

    def __init__(self, settings: Settings, scenarios: Path) -> None:
        self.scenarios = scenarios
        self.parts: Partition = split(settings, scenarios)
        codes = {vehicle: SecretStr(secrets.token_hex(16)) for vehicle in self.parts.vehicles}
        self._codes = codes
        enrolment = [
            {"vehicle": vehicle, "region": region, "code": codes[vehicle]}
            for vehicle, (region, _) in self.parts.vehicles.items()
        ]
        told = settings.server.model_copy(update={"enrolment": enrolment})  # what is set stays what was set
        rounds = told.rounds.model_copy(update={"quorum": min(told.rounds.quorum, *self._sizes().values())})
        server = suits.server(settings.model_copy(update={"server": told}))
        server = type(server).model_validate({**dict(server), "rounds": rounds})
        self.settings = settings.model_copy(update={"server": server})
        self.saboteur = SigningKey(secrets.token_bytes(32))
        self.agents = self._one_per_region()
        self.children: dict[str, Child] = {}
        self.broker: embedded.Broker | None = None

    @property
    def regions(self) -> list[str]:
        """The regions, by name."""
        return sorted(self.parts.validation)

    @property
    def server_dir(self) -> Path:
        """The folder of the server's store."""
        return launch.server_dir(self.settings)

    def region_of(self, vehicle: str) -> str:
        """Return the region of a vehicle."""
        return self.parts.vehicles[vehicle][0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_broker(self) -> None:
        """Start the embedded broker on a free port, and point everyone at it."""
        kind = self.settings.broker.embedded
        if kind == "none":
            raise UsageError("broker.embedded is 'none': the demo starts a broker of its own")
        self.broker = embedded.start(self.settings.work_dir / "broker", kind=kind, fleet=self.settings.fleet)
        update = {"host": self.broker.host, "port": self.broker.port}
        self.settings = self.settings.model_copy(
            update={"broker": self.settings.broker.model_copy(update=update)}
        )

    def prepare(self) -> None:
        """Turn recordings into arrays: each vehicle's own, the server's validation, the test set for the end."""
        jobs = [*held_out_jobs(self.settings, self.parts, test=True)]
        prepare(
            self.settings,
            self.scenarios,
            [*jobs, *jobs_of(self.settings, self.parts, sorted(self.parts.vehicles))],
        )

    def must_be_judged(self) -> None:
        """Raise UsageError when a region has nothing to judge a model on: no claim could be made of it."""
        for region in self.regions:
            for folder, part in (
                (validation_dir(self.settings), "validation"),
                (test_dir(self.settings), "test"),
            ):
                place = folder / region
                counts = prepared.open_meta(place).counts if (place / "meta.json").is_file() else {}
                if not counts.get(f"{part}_judged", 0):
                    raise UsageError(
                        f"region {region}: no sample of its {part} drives can be judged: more drives are needed, "
                        f"or another share of them (data.{part})"
                    )

    def must_have_test_drives(self) -> None:
        """Raise UsageError when a region keeps no drive for the end."""
        for region in self.regions:
            if not self.parts.test.get(region):
                raise UsageError(
                    f"region {region}: no drive is kept for the test at the end: more drives are needed, or "
                    "another share of them (data.test)"
                )

    def must_bear_faults(self) -> None:
        """Raise UsageError when no region makes a quorum without the vehicle that is killed."""
        quorum = self.settings.server.rounds.quorum
        if self._sizes()[self.region_of(self.victim())] <= quorum:
            raise UsageError(
                f"no region has more than {quorum} vehicles, so its round cannot close without the one that is "
                "killed: more vehicles_per_region, a smaller quorum, or --no-faults"
            )

    def enrol_saboteur(self) -> None:
        """Register the key of the vehicle that the demo plays, by hand as an operator would."""
        place = launch.server_place(self.settings)
        key = self.saboteur.public
        registry.enrol(place, SABOTEUR, region=self.regions[0], public_key=key, now_s=time.time())

    def start_server(self) -> None:
        """Start the server, or start it again after a kill."""
        config = launch.server_config(self.settings, self.regions)
        self._start("server", launch.SERVER, launch.write_config(config, self._config("server")))

    def start_vehicles(self) -> None:
        """Start the separate agents, and one process for all other vehicles."""
        others = [vehicle for vehicle in sorted(self.parts.vehicles) if vehicle not in self.agents]
        if others:
            config = launch.fleet_config(self.settings, others, codes=self._codes)
            self._start("fleet", launch.FLEET, launch.write_config(config, self._config("fleet")))
        for vehicle in self.agents:
            self.start_agent(vehicle)

    def start_agent(self, vehicle: str) -> None:
        """Start one vehicle in a process of its own, or start it again after a kill."""
        config = launch.agent_config(self.settings, vehicle, code=self._codes[vehicle])
        self._start(vehicle, launch.AGENT, launch.write_config(config, self._config(vehicle)))

    def kill(self, name: str) -> int:
        """Kill -9 a process and return its exit status."""
        return self.children.pop(name).kill()

    def check(self) -> None:
        """Raise UsageError when a process ended that nobody stopped."""
        for child in self.children.values():
            if not child.is_running():
                status = child.process.returncode
                raise UsageError(
                    f"{child.name} ended by itself with status {status}: {child.last_words()} (see {child.log})"
                )
        if self.broker is not None and not self.broker.running():
            raise UsageError(f"the broker ended by itself (see {self.broker.log_file})")

    def stop(self) -> None:
        """Stop every process: vehicles first, then the server, then the broker."""
        order = [name for name in self.children if name != "server"] + ["server"]
        stopping = [self.children.pop(name) for name in order if name in self.children]
        for child in stopping[:-1]:
            if child.is_running():
                child.process.terminate()
        for child in stopping:
            child.stop()
        if self.broker is not None:
            self.broker.stop()
            self.broker = None

    def _start(self, name: str, module: str, config: Path) -> None:
        logs = self.settings.work_dir / "logs"
        self.children[name] = start(name, module, ["--config-json", str(config)], log_dir=logs)

    def _config(self, name: str) -> Path:
        return self.settings.work_dir / "config" / f"{name}.json"

    def victim(self) -> str:
        """A separate agent whose region still makes a quorum without it, when there is one."""
        sizes, quorum = self._sizes(), self.settings.server.rounds.quorum
        able = (agent for agent in self.agents if sizes[self.region_of(agent)] > quorum)
        return next(able, self.agents[0])

    def _sizes(self) -> Counter[str]:
        return Counter(region for region, _ in self.parts.vehicles.values())

    def _one_per_region(self) -> list[str]:
        first: dict[str, str] = {}
        for vehicle, (region, _) in sorted(self.parts.vehicles.items()):
            first.setdefault(region, vehicle)
        return sorted(first.values())[:_SEPARATE_AGENTS]


def clean(work_dir: Path) -> None:
    """Remove an earlier demo's work, so that this one starts from nothing."""
    if work_dir.exists():
        if not (work_dir / "logs").exists() and any(work_dir.iterdir()):
            raise UsageError(f"{work_dir}: not a folder of an earlier demo, so it is not removed")
        shutil.rmtree(work_dir)
