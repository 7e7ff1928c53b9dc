"""``fedfleet agent`` and ``fedfleet fleet``: one vehicle in a process of its own, or many in one."""

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import SecretStr

from fedfleet.cli import load_run, preflight, unheeded
from fedfleet.cli.config import Settings, load
from fedfleet.cli.data import jobs_of, prepare, scenarios_dir, split
from fedfleet.cli.launch import (
    AGENT,
    FLEET,
    agent_config,
    become,
    fleet_config,
    fleet_of,
    must_answer,
    write_config,
)
from fedfleet.cli.options import ConfigFile, ScenariosDir, Wait
from fedfleet.cli.terminal import Terminal
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.ids import check_id
from fedfleet.vehicle_agent import keys
from fedfleet.vehicle_agent.config import FleetConfig

__all__ = ["agent", "fleet"]


def agent(
    vehicle: Annotated[str, typer.Argument(help="Id of the vehicle, for example v01.", show_default=False)],
    config: ConfigFile = None,
    scenarios: ScenariosDir = None,
    wait: Wait = False,
    code: Annotated[
        str | None,
        typer.Option(
            envvar="FEDFLEET_ENROLMENT_CODE",
            help="One-time enrolment code; by default the one in the configuration.",
        ),
    ] = None,
    show_key: Annotated[
        bool, typer.Option("--show-key", help="Print the vehicle's public key (made when absent), and end.")
    ] = False,
) -> None:
    """Run one vehicle until Ctrl-C: it replays its drives, infers, learns in the background, and sends updates."""
    settings = load(config)
    check_id(vehicle, "vehicle")
    if show_key:
        if given := [
            name
            for name, value in (("--scenarios", scenarios), ("--wait", wait), ("--code", code))
            if value and not (name == "--code" and "FEDFLEET_ENROLMENT_CODE" in os.environ)
        ]:
            raise UsageError(f"{given[0]}: goes with a vehicle that runs, not with --show-key")
        typer.echo(keys.load_or_create(settings.work_dir / "vehicles" / vehicle).public.hex())
        return
    _check(settings, wait=wait)
    folder = scenarios_dir(settings, scenarios)
    prepare(settings, folder, jobs_of(settings, split(settings, folder), [vehicle]))
    secret = SecretStr(code) if code else _codes(settings).get(vehicle)
    path = write_config(
        agent_config(settings, vehicle, code=secret), settings.work_dir / "config" / f"agent-{vehicle}.json"
    )
    become(AGENT, path)


def fleet(
    config: ConfigFile = None,
    scenarios: ScenariosDir = None,
    wait: Wait = False,
    vehicles: Annotated[
        str | None,
        typer.Option(
            help="Ids of the vehicles, separated by commas, or their number, as 1000: then they are enrolled at the "
            "server on this machine, and several get the same drives where there are too few. "
            "By default all of the split.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run many vehicles in one process until Ctrl-C, each with its own journal, key, drives, link and conditions.

    At its end it writes what each did to fleet.json in the working folder.
    """
    settings = load(config)
    number = load_run.wanted(vehicles)
    _check(settings, wait=wait)
    folder = scenarios_dir(settings, scenarios)
    if number is not None:
        for note in unheeded.of_load_run(settings):
            Terminal(stderr=True).say(f"note: {note}")
        _run(settings, _load(settings, folder, number))
    parts = split(settings, folder)
    chosen = (
        [check_id(name.strip(), "vehicle") for name in vehicles.split(",")]
        if vehicles
        else sorted(parts.vehicles)
    )
    prepare(settings, folder, jobs_of(settings, parts, chosen))
    _run(settings, fleet_config(settings, chosen, codes=_codes(settings)))


def _check(settings: Settings, *, wait: bool) -> None:
    """Raise UsageError for what would end, or idle, a vehicle only later."""
    preflight.task_is_usable(settings)
    preflight.can_train()
    preflight.has_space(settings.work_dir)
    if not wait:
        must_answer(settings)


def _load(settings: Settings, folder: Path, number: int) -> FleetConfig:
    placed = load_run.deal(settings, folder, number)
    prepare(settings, folder, load_run.jobs(placed))
    key = load_run.register(settings, placed)
    agent = settings.agent.model_copy(update={"server_public_key": key})
    return fleet_of(settings.model_copy(update={"agent": agent}), load_run.entries(placed))


def _run(settings: Settings, config: FleetConfig) -> NoReturn:
    become(FLEET, write_config(config, settings.work_dir / "config" / "fleet.json"))


def _codes(settings: Settings) -> dict[str, SecretStr]:
    """Return the codes of a configuration file that server and simulated vehicles share."""
    return {entry.vehicle: entry.code for entry in settings.server.enrolment}
