"""``fedfleet status``: what the fleet does now, read from the server's store."""

import json
import time
from typing import Annotated, Any

import typer
from rich.live import Live

from fedfleet.cli import live
from fedfleet.cli.config import load
from fedfleet.cli.launch import server_dir
from fedfleet.cli.options import ConfigFile, Json
from fedfleet.cli.terminal import Terminal
from fedfleet.fleet_server.status import snapshot

__all__ = ["status"]


def status(
    config: ConfigFile = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until Ctrl-C.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.1, help="Seconds between two looks, with --watch.")
    ] = 1.0,
) -> None:
    """Show the fleet as the server knows it: rounds, vehicles, error now and of the baseline, bytes, refusals.

    Without a terminal it prints one plain line per look; with --json one JSON document per look.
    """
    folder = server_dir(load(config))
    console = Terminal()
    is_plain = as_json or not console.is_terminal

    def look() -> dict[str, Any]:
        return snapshot(folder, time.time())

    def show(found: dict[str, Any]) -> None:
        if is_plain:
            typer.echo(json.dumps(found)) if as_json else console.say(live.line(found))
        else:
            console.print(live.table(found))

    if not watch:
        show(look())
    elif is_plain:
        while True:
            show(look())
            time.sleep(interval_s)
    else:
        with Live(live.table(look()), console=console, auto_refresh=False) as view:
            while True:
                time.sleep(interval_s)
                view.update(live.table(look()), refresh=True)
