"""Configurations of the long-running processes, written where only their owner can read them, and their start."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import SecretStr

from fedfleet.cli import suits
from fedfleet.cli.config import Settings
from fedfleet.cli.data import calibration_dir, validation_dir, vehicle_dir
from fedfleet.cli.processes import environment
from fedfleet.fleet_server.config import ServerConfig
from fedfleet.fleet_server.registry import Place
from fedfleet.link.options import options_for
from fedfleet.link.probe import check
from fedfleet.models.interpreter import module_command
from fedfleet.vehicle_agent.config import AgentConfig, FleetConfig, VehicleEntry

__all__ = [
    "AGENT",
    "FLEET",
    "SERVER",
    "agent_config",
    "become",
    "fleet_config",
    "fleet_of",
    "must_answer",
    "server_config",
    "server_dir",
    "server_place",
    "write_config",
]

SERVER = "fedfleet.fleet_server"
AGENT = "fedfleet.vehicle_agent"
FLEET = "fedfleet.vehicle_agent.fleet"
_ANSWER_S = 5.0

Codes = Mapping[str, SecretStr]
"""One-time enrolment codes by vehicle."""


def server_dir(settings: Settings) -> Path:
    """Return the folder of the server's store, keys and models."""
    return settings.work_dir / "server"


def server_place(settings: Settings) -> Place:
    """Return where the server keeps its store, and whose it is."""
    return Place(server_dir(settings), settings.fleet, settings.task, settings.server.store.address())


def server_config(settings: Settings, regions: Sequence[str]) -> ServerConfig:
    """Return the server's whole configuration."""
    server = suits.server(settings)
    own = {name: getattr(server, name) for name in type(server).model_fields}
    if server.int8.enabled:
        own["int8"] = server.int8.model_copy(update={"calibration_dir": calibration_dir(settings)})
    return ServerConfig(
        **own,
        fleet=settings.fleet,
        task=settings.task,
        regions=tuple(sorted(regions)),
        data_dir=server_dir(settings),
        validation_dir=validation_dir(settings),
        broker=settings.broker,
    )


def _shared(settings: Settings) -> dict[str, Any]:
    own = {name: getattr(settings.agent, name) for name in type(settings.agent).model_fields}
    place = {"work_dir": settings.work_dir / "vehicles", "broker": settings.broker}
    return own | place | {"fleet": settings.fleet, "task": settings.task}


def agent_config(settings: Settings, vehicle: str, *, code: SecretStr | None) -> AgentConfig:
    """Return the whole configuration of one vehicle's process."""
    return AgentConfig(
        **_shared(settings), vehicle=vehicle, data_dir=vehicle_dir(settings, vehicle), enrolment_code=code
    )


def fleet_config(settings: Settings, vehicles: Sequence[str], *, codes: Codes) -> FleetConfig:
    """Return the whole configuration of a process that runs many vehicles."""
    return fleet_of(
        settings,
        [
            VehicleEntry(
                vehicle=vehicle, data_dir=vehicle_dir(settings, vehicle), enrolment_code=codes.get(vehicle)
            )
            for vehicle in vehicles
        ],
    )


def fleet_of(settings: Settings, vehicles: Sequence[VehicleEntry]) -> FleetConfig:
    """Return the same, of vehicles that are described already."""
    return FleetConfig(
        **_shared(settings), vehicles=tuple(vehicles), report_file=settings.work_dir / "fleet.json"
    )


def write_config(config: ServerConfig | AgentConfig | FleetConfig, path: Path) -> Path:
    """Write a configuration with its secrets to a file that only its owner can read; return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(config.model_dump(mode="python")), indent=1)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
    return path


def must_answer(settings: Settings) -> None:
    """Raise UsageError, naming host, port and why, unless the broker takes us."""
    broker = settings.broker
    check(broker.host, broker.port, timeout_s=_ANSWER_S, options=options_for(broker))


def become(module: str, config: Path) -> NoReturn:
    """Replace this process by ``python -P -m module``, so that it carries none of the command line's libraries."""
    command = module_command(module, "--config-json", str(config))
    os.execve(command[0], command, environment())  # noqa: S606 - our own interpreter, no shell


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever a configuration holds
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
