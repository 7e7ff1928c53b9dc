"""``fedfleet agent`` and ``fedfleet fleet``: one vehicle in a process of its own, or many in one."""

from typing import Annotated

import typer
from pydantic import SecretStr

from fedfleet.cli.config import Settings, load
from fedfleet.cli.data import jobs_of, prepare, scenarios_dir, split
from fedfleet.cli.launch import AGENT, FLEET, agent_config, become, fleet_config, must_answer, write_config
from fedfleet.cli.options import ConfigFile, ScenariosDir, Wait
from fedfleet.protocol.ids import check_id
from fedfleet.vehicle_agent import keys

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
        typer.echo(keys.load_or_create(settings.work_dir / "vehicles" / vehicle).public.hex())
        return
    if not wait:
        must_answer(settings)
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
            help="Ids of the vehicles, separated by commas; by default all of the split.", show_default=False
        ),
    ] = None,
) -> None:
    """Run many vehicles in one process until Ctrl-C, each with its own journal, key and drives."""
    settings = load(config)
    if not wait:
        must_answer(settings)
    folder = scenarios_dir(settings, scenarios)
    parts = split(settings, folder)
    chosen = (
        [check_id(name.strip(), "vehicle") for name in vehicles.split(",")]
        if vehicles
        else sorted(parts.vehicles)
    )
    prepare(settings, folder, jobs_of(settings, parts, chosen))
    path = write_config(
        fleet_config(settings, chosen, codes=_codes(settings)), settings.work_dir / "config" / "fleet.json"
    )
    become(FLEET, path)


def _codes(settings: Settings) -> dict[str, SecretStr]:
    """Return the codes of a configuration file that server and simulated vehicles share."""
    return {entry.vehicle: entry.code for entry in settings.server.enrolment}
