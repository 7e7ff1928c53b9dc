"""``fedfleet status``: what the fleet does now, read from the server's store, and who of it is alive."""

import json
import time
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from rich.live import Live

from fedfleet.cli import live
from fedfleet.cli.config import load
from fedfleet.cli.health import Health, Watch
from fedfleet.cli.launch import server_dir
from fedfleet.cli.options import ConfigFile, Json
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server.status import snapshot
from fedfleet.protocol.errors import UsageError

__all__ = ["status"]

Look = tuple[dict[str, Any], Health]


def status(
    config: ConfigFile = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until Ctrl-C.")] = False,
    interval_s: Annotated[
        float | None,
        typer.Option(
            "--interval", min=0.1, help="Seconds between two looks, with --watch; 1.", show_default=False
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Exit with 1 unless the server is at work, connected, and the broker answers."
        ),
    ] = False,
) -> None:
    """Show the fleet: who is alive, rounds, vehicles, error now and of the baseline, bytes, refusals.

    Without a terminal it prints one plain line per look; with --json one JSON document per look (`health`: who is
    alive, `is_done`: whether all rounds are).
    """
    if watch and check:
        raise UsageError("--check: goes with one look, not with --watch")
    if interval_s is not None and not watch:
        raise UsageError("--interval: goes with --watch")
    wait_s = 1.0 if interval_s is None else interval_s
    settings = load(config)
    folder, console = server_dir(settings), Terminal()
    guard = Watch(folder, settings.broker)

    def look() -> Look:
        now_s = time.time()
        return snapshot(folder, now_s), guard.look(now_s)

    found = look()
    if watch and console.is_terminal and not as_json:
        _follow(console, look, wait_s)
    _show(console, found, as_json=as_json)
    while watch:
        time.sleep(wait_s)
        _show(console, look(), as_json=as_json)
    if check and not found[1].is_well:
        raise typer.Exit(1)


def _show(console: Terminal, found: Look, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**found[0], "health": found[1].as_json()}))
    elif console.is_terminal:
        console.print(live.view(*found, width=console.width))
    else:
        console.say(live.line(*found))


def _follow(console: Terminal, look: Callable[[], Look], interval_s: float) -> NoReturn:
    """Keep the newest look on the terminal until Ctrl-C."""
    with Live(console=console, auto_refresh=False) as shown:
        while True:
            shown.update(live.view(*look(), width=console.width), refresh=True)
            time.sleep(interval_s)
