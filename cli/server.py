"""``fedfleet server``: run the fleet server; look at what it keeps; enrol and deny vehicles."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fedfleet.cli import preflight, server_codes, server_store, server_views
from fedfleet.cli.config import Settings, load
from fedfleet.cli.data import held_out_jobs, prepare, scenarios_dir, split
from fedfleet.cli.launch import (
    SERVER,
    become,
    must_answer,
    server_config,
    server_dir,
    server_place,
    write_config,
)
from fedfleet.cli.options import ConfigFile, ScenariosDir, Wait
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server.store import open_reader
from fedfleet.protocol.errors import UsageError
from fedfleet.protocol.signing import KEY_BYTES

__all__ = ["app"]

app = typer.Typer(
    help="Run the fleet server; look at what it keeps; enrol and deny vehicles.", invoke_without_command=True
)
app.command("rounds")(server_views.rounds)
app.command("vehicles")(server_views.vehicles)
app.command("models")(server_views.models)
app.add_typer(server_store.quarantine, name="quarantine")
app.command("check")(server_store.check)
app.command("backup")(server_store.backup)
app.command("restore")(server_store.restore)
app.command("ahead")(server_store.ahead)
app.command("rekey")(server_store.rekey)
app.command("code")(server_codes.code)

Vehicle = Annotated[str, typer.Argument(help="Id of the vehicle: a-z, 0-9 and '-'.", show_default=False)]


@app.callback()
def server(
    context: typer.Context, config: ConfigFile = None, scenarios: ScenariosDir = None, wait: Wait = False
) -> None:
    """Run the fleet server until Ctrl-C: rounds, aggregation, gate, releases. A restart resumes where it was."""
    if context.invoked_subcommand is not None:
        for name, is_given in (("--scenarios", scenarios is not None), ("--wait", wait)):
            if is_given:
                raise UsageError(
                    f"{name}: goes with `fedfleet server` alone, not with `{context.invoked_subcommand}`"
                )
        return
    settings = load(config)
    preflight.task_is_usable(settings)
    preflight.can_export(settings)
    preflight.can_store(settings)
    preflight.has_space(settings.work_dir)
    if not wait:
        must_answer(settings)
    folder = scenarios_dir(settings, scenarios)
    parts = split(settings, folder)
    prepare(settings, folder, held_out_jobs(settings, parts, test=False))
    path = write_config(
        server_config(settings, list(parts.validation)), settings.work_dir / "config" / "server.json"
    )
    become(SERVER, path)


@app.command("enrol")
def enrol(
    vehicle: Vehicle,
    region: Annotated[str, typer.Option(help="Region to put the vehicle in.", show_default=False)],
    key: Annotated[
        str,
        typer.Option(help="Its public key: 64 hex digits, or a file that holds them.", show_default=False),
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Take this key in place of the one that is enrolled.")
    ] = False,
    config: ConfigFile = None,
) -> None:
    """Register a vehicle's public key (shown by `fedfleet agent VEHICLE --show-key`), also while the server runs."""
    from fedfleet.fleet_server import registry

    public_key = _key(key)
    settings = _settings_of_a_fleet(config)
    registry.enrol(
        server_place(settings),
        vehicle,
        region=region,
        public_key=public_key,
        now_s=time.time(),
        replace=replace,
    )
    Terminal().say(f"{vehicle} is enrolled in region {region}")


@app.command("deny")
def deny(
    vehicle: Vehicle,
    undo: Annotated[bool, typer.Option("--undo", help="Take the vehicle off the deny-list again.")] = False,
    config: ConfigFile = None,
) -> None:
    """Put a vehicle on the deny-list: from now on everything it sends is refused."""
    from fedfleet.fleet_server import registry

    settings = _settings_of_a_fleet(config)
    registry.deny(server_place(settings), vehicle, denied=not undo)
    Terminal().say(f"{vehicle} is {'no longer ' if undo else ''}denied")


def _settings_of_a_fleet(config: Path | None) -> Settings:
    """Return the configuration; UsageError where no server has kept a store: a new one would be nobody's."""
    settings = load(config)
    open_reader(server_dir(settings)).close()
    return settings


def _key(text: str) -> bytes:
    digits = text.strip()
    path = Path(digits)
    if len(digits) != 2 * KEY_BYTES and path.is_file():
        digits = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        key = bytes.fromhex(digits)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise UsageError(
            f"--key: expected {2 * KEY_BYTES} hex digits or a file that holds them, got {text[:80]!r}"
        )
    return key
